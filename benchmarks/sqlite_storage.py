"""The baked SQLite storage against bare sqlite3, Errbot's Shelf, and the bounds that it must keep.

Bare sqlite3 is what one would write without a storage: one connection, the same table and pragmas,
the same pickle. It fails if a limit is missed. support/speed_and_memory.py says how
it is measured.
"""

import dbm
import pickle
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from errbot.storage.shelf import ShelfStoragePlugin
from support.speed_and_memory import KEYS, VALUE, WORK, Report, load_plugin, speed

LIMITS = {"set": 0.7, "get": 0.7, "len": 0.9, "keys": 0.7}


class Bare:
    """The same work in bare sqlite3."""

    def __init__(self, file: Path) -> None:
        self._connection = sqlite3.connect(file, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute(
            "CREATE TABLE errbot (namespace TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,"
            " PRIMARY KEY (namespace, key))"
        )

    def set(self, key: str, value: Any) -> None:
        """Insert or replace a row."""
        self._connection.execute(
            "INSERT INTO errbot VALUES (?, ?, ?)"
            " ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value",
            ("namespace", key, pickle.dumps(value, protocol=5)),
        )

    def get(self, key: str) -> Any:
        """Select a row."""
        row = self._connection.execute(
            "SELECT value FROM errbot WHERE namespace = ? AND key = ?", ("namespace", key)
        ).fetchone()
        return pickle.loads(row[0])

    def len(self) -> int:
        """Count the rows."""
        row = self._connection.execute(
            "SELECT count(*) FROM errbot WHERE namespace = ?", ("namespace",)
        ).fetchone()
        return int(row[0])

    def keys(self) -> Iterator[str]:
        """Select all keys."""
        for (key,) in self._connection.execute(
            "SELECT key FROM errbot WHERE namespace = ?", ("namespace",)
        ):
            yield key


def main() -> None:
    """Measure, print, and fail where a limit is missed."""
    print(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}")
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin_class = load_plugin("sqlite", folder)

        def start(file: str) -> Any:
            config = {"path": str(folder / file)}
            return plugin_class(SimpleNamespace(STORAGE_CONFIG=config, BOT_DATA_DIR=name))

        def fill(namespace: str, count: int) -> None:
            value = pickle.dumps(VALUE, protocol=5)
            connection = sqlite3.connect(folder / "large")
            connection.executemany(
                "INSERT INTO errbot VALUES (?, ?, ?)",
                ((namespace, f"key {number}", value) for number in range(count)),
            )
            connection.commit()
            connection.close()

        ours = start("small").open("namespace")
        report.speeds("bare sqlite3", ours, Bare(folder / "bare"), LIMITS)

        # Shelf writes its own key into the dict that it is given.
        shelf_config = SimpleNamespace(STORAGE_CONFIG={}, BOT_DATA_DIR=name)
        shelf = ShelfStoragePlugin(shelf_config).open("shelf")
        for key in KEYS:
            shelf.set(key, VALUE)
        print(f"speed over that of Errbot's Shelf, on {dbm.whichdb(str(folder / 'shelf.db'))}:")
        for operation, work in WORK.items():
            print(f"  {operation:5} {speed(work, ours, shelf, 5):.2f}")
        shelf.close()

        plugin = start("large")
        report.iterating(plugin, fill)
        report.clearing(plugin, fill)
    sys.exit(not report.kept)


if __name__ == "__main__":
    main()
