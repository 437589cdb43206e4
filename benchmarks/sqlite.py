"""The baked SQLite storage against bare sqlite3, Errbot's Shelf, and the bounds that it must keep.

Bare sqlite3 is what one would write without a storage: one connection, the same table and pragmas,
the same pickle. Both do the same in turn, so that whatever else the machine does slows down both.
Each figure is the speed of the storage over that of the other: the median of the ratios of all
rounds, which are a few milliseconds long. It fails where a limit is missed. Memory is read from
/proc, so it runs on Linux.
"""

import dbm
import importlib.util
import os
import pickle
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cookiecutter.main import cookiecutter
from errbot.storage import StoreMixin
from errbot.storage.base import StorageBase, StoragePluginBase
from errbot.storage.shelf import ShelfStoragePlugin

TEMPLATE = Path(__file__).parent.parent
ROUNDS = 101
KEYS = [f"key {number}" for number in range(1000)]
VALUE = {"name": "somebody", "since": 1_700_000_000, "tags": ["a", "b", "c"], "note": "x" * 200}
SPEED_LIMITS = {"set": 0.7, "get": 0.7, "len": 0.9, "keys": 0.9}
CLEAR_LIMIT = 12
FIRST_KEY_LIMIT = 0.050
MEMORY_LIMIT = 50_000_000

INSERT = "INSERT INTO errbot VALUES ('many', ?, ?)"


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


def set_all(storage: Any) -> None:
    """Set every key."""
    for key in KEYS:
        storage.set(key, VALUE)


def get_all(storage: Any) -> None:
    """Get every key."""
    for key in KEYS:
        storage.get(key)


def count_often(storage: Any) -> None:
    """Count the keys 50 times."""
    for _ in range(50):
        storage.len()


def list_often(storage: Any) -> None:
    """List the keys 5 times."""
    for _ in range(5):
        list(storage.keys())


WORK = {"set": set_all, "get": get_all, "len": count_often, "keys": list_often}


def bake(folder: Path) -> Callable[..., StoragePluginBase]:
    """Bake the storage, and return its plugin class."""
    answers = {"database": "sqlite"}
    project = Path(cookiecutter(str(TEMPLATE), None, True, answers, output_dir=str(folder)))
    file = next(project.glob("src/*/storage.py"))
    spec = importlib.util.spec_from_file_location("errbot.storage.storage", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plugin: Callable[..., StoragePluginBase] = module.AcmePlugin
    return plugin


def seconds(work: Callable[[Any], None], storage: Any) -> float:
    """Return the seconds that some work takes."""
    start = time.perf_counter()
    work(storage)
    return time.perf_counter() - start


def speed(work: Callable[[Any], None], ours: Any, other: Any, rounds: int) -> float:
    """Return the speed of one storage over that of another, as the median of all rounds."""
    ratios = []
    for turn in range(rounds):
        if turn % 2:
            took, other_took = seconds(work, ours), seconds(work, other)
        else:
            other_took, took = seconds(work, other), seconds(work, ours)
        ratios.append(other_took / took)
    return statistics.median(ratios)


def clear_seconds(plugin: StoragePluginBase, file: Path, count: int) -> float:
    """Return the seconds that it takes to clear a namespace of so many keys."""
    fill(file, count)
    mapping = StoreMixin()
    mapping.open_storage(plugin, "many")
    start = time.perf_counter()
    mapping.clear()
    return time.perf_counter() - start


def fill(file: Path, count: int) -> None:
    """Put so many keys into the namespace `many`."""
    value = pickle.dumps(VALUE, protocol=5)
    connection = sqlite3.connect(file)
    connection.executemany(INSERT, ((f"key {number}", value) for number in range(count)))
    connection.commit()
    connection.close()


def resident_bytes() -> int:
    """Return how much memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def iterate(storage: StorageBase) -> tuple[float, int, int]:
    """Return the seconds to the first key, the number of keys, and the growth of memory."""
    before = most = resident_bytes()
    start = time.perf_counter()
    keys = iter(storage.keys())
    next(keys)
    first = time.perf_counter() - start
    count = 1
    for count, _key in enumerate(keys, 2):
        if count % 5000 == 0:
            most = max(most, resident_bytes())
    return first, count, most - before


def main() -> None:
    """Measure, print, and fail where a limit is missed."""
    failed = False

    def tell(text: str, good: bool) -> None:
        nonlocal failed
        failed = failed or not good
        print(f"{text}  {'' if good else '<- MISSED'}".rstrip(), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start_plugin = bake(folder)
        config = SimpleNamespace(STORAGE_CONFIG={}, BOT_DATA_DIR=name)
        plugin = start_plugin(config)
        file = folder / "errbot.sqlite3"

        print(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}")
        fill(file, 1_000_000)
        first, count, memory = iterate(plugin.open("many"))
        print(f"one namespace of {count:,} keys:")
        tell(
            f"  first key after {first * 1000:.2f} ms (limit {FIRST_KEY_LIMIT * 1000:.0f})",
            first <= FIRST_KEY_LIMIT,
        )
        tell(
            f"  iterating over all grows memory by {memory / 1e6:.1f} MB"
            f" (limit {MEMORY_LIMIT / 1e6:.0f})",
            memory <= MEMORY_LIMIT,
        )
        del plugin
        file.unlink()

        plugin = start_plugin(config)
        small = statistics.median(clear_seconds(plugin, file, 10_000) for _ in range(3))
        large = clear_seconds(plugin, file, 100_000)
        tell(
            f"clear: 100,000 keys in {large:.1f} s, 10,000 in {small:.2f} s,"
            f" ratio {large / small:.1f} (limit {CLEAR_LIMIT})",
            large / small <= CLEAR_LIMIT,
        )

        ours = plugin.open("namespace")
        bare = Bare(folder / "bare")
        # Shelf writes its own key into the dict that it is given.
        shelf_config = SimpleNamespace(STORAGE_CONFIG={}, BOT_DATA_DIR=name)
        shelf = ShelfStoragePlugin(shelf_config).open("shelf")
        print(f"speed over that of bare sqlite3, {len(KEYS)} keys, {ROUNDS} rounds:")
        for operation, work in WORK.items():
            ratio = speed(work, ours, bare, ROUNDS)
            limit = SPEED_LIMITS[operation]
            tell(f"  {operation:5} {ratio:6.2f} (limit {limit})", ratio >= limit)
        print("speed over that of Errbot's Shelf:")
        for operation, work in WORK.items():
            set_all(shelf)
            ratio = speed(work, ours, shelf, 5)
            print(f"  {operation:5} {ratio:6.2f}")
        shelf.close()
        print(f"  (Shelf is on {dbm.whichdb(str(folder / 'shelf.db'))} here)")
    sys.exit(failed)


if __name__ == "__main__":
    main()
