"""The baked SQL storage on PostgreSQL and MariaDB: against bare psycopg, and its bounds.

Bare psycopg is what one would write without a storage: one connection in autocommit, the same table
and pickle. It fails if a limit is missed. support/speed_and_memory.py says how
it is measured.
"""

import pickle
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
from errbot.storage.base import StoragePluginBase
from support.speed_and_memory import TEMPLATE, Report, load_plugin

sys.path.append(str(TEMPLATE / "tests"))

from servers.mariadb import MariaDB  # noqa: E402
from servers.postgresql import PostgreSQL  # noqa: E402

LIMITS = {"set": 0.7, "get": 0.5}
VALUE = pickle.dumps(None, protocol=5).hex()


class Bare:
    """The same work in bare psycopg."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("CREATE TABLE bare (LIKE errbot_storage INCLUDING ALL)")

    def set(self, key: str, value: Any) -> None:
        """Insert or replace a row."""
        self._connection.execute(
            "INSERT INTO bare (namespace, key, value) VALUES (%s, %s, %s)"
            " ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value",
            (b"namespace", key.encode(), pickle.dumps(value, protocol=5)),
        )

    def get(self, key: str) -> Any:
        """Select a row."""
        row = self._connection.execute(
            "SELECT value FROM bare WHERE namespace = %s AND key = %s", (b"namespace", key.encode())
        ).fetchone()
        assert row
        return pickle.loads(row[0])


def connect(folder: Path, url: str) -> StoragePluginBase:
    """Connect as a bot does that starts."""
    # The servers work at some of this for more than the default 10 s.
    config = SimpleNamespace(STORAGE_CONFIG={"url": url, "timeout": 60.0}, BOT_DATA_DIR=".")
    return load_plugin("sql", folder)(config)


def measure_postgresql(folder: Path, report: Report) -> None:
    """Measure on PostgreSQL with its default settings, which wait for the disk."""
    server = PostgreSQL(folder / "server", fsync="on", shared_buffers="128MB")

    def fill(namespace: str, count: int) -> None:
        server.sql(
            f"INSERT INTO errbot_storage SELECT '{namespace}', convert_to('key ' || n, 'UTF8'),"
            f" decode('{VALUE}', 'hex') FROM generate_series(1, {count}) AS n"
        )

    server.start()
    try:
        print(f"Python {sys.version.split()[0]}, PostgreSQL {server.sql('SHOW server_version')}")
        url = f"postgresql://admin@{server.host}:{server.port}/postgres"
        plugin = connect(folder, url)
        report.speeds("bare psycopg", plugin.open("namespace"), Bare(url), LIMITS)
        report.iterating(plugin, fill)
        # Not to measure the disk, which has to be waited for once for each key.
        server.sql("ALTER SYSTEM SET synchronous_commit = off")
        server.sql("SELECT pg_reload_conf()")
        report.clearing(plugin, fill)
    finally:
        server.stop()


def measure_mariadb(folder: Path, report: Report) -> None:
    """Measure on MariaDB, which does not wait for the disk here."""
    settings = {"innodb-flush-log-at-trx-commit": "2", "innodb-buffer-pool-size": "128M"}
    server = MariaDB(folder / "server", None, **settings)

    def fill(namespace: str, count: int) -> None:
        server.sql(
            f"USE bot; INSERT INTO errbot_storage SELECT '{namespace}', CONCAT('key ', seq),"
            f" UNHEX('{VALUE}') FROM seq_1_to_{count}"
        )

    server.start()
    try:
        server.add_account("bot", "bot", "bot")
        print(f"Python {sys.version.split()[0]}, MariaDB {server.sql('SELECT version()')}")
        plugin = connect(folder, f"mariadb://bot:bot@{server.host}:{server.port}/bot")
        report.iterating(plugin, fill)
        report.clearing(plugin, fill)
    finally:
        server.stop()


def main() -> None:
    """Measure, print, and fail where a limit is missed."""
    report = Report()
    for measure in (measure_postgresql, measure_mariadb):
        with tempfile.TemporaryDirectory() as name:
            measure(Path(name), report)
    sys.exit(not report.kept)


if __name__ == "__main__":
    main()
