"""Provides the tests' throwaway database: a table of its own for each test.

`contract` tests what Errbot expects of every storage. Do not change it, and keep it green.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy
from contract.support.clock import ten_years_earlier
from contract.support.faults import Faults, Proxy
from contract.support.sample_values import AS_IT_WAS, FIRST_KEYS

from {{ cookiecutter.__package }}.storage import read_url

SOURCE = Path(__file__).parent.parent / "src"
URL = os.environ.get("STORAGE_TEST_URL")
PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


def pytest_report_header() -> str:
    """Report which database is tested, without its password."""
    place = repr(read_url(URL)) if URL else "a temporary SQLite file"
    return f"database: {place} (to use another one, set STORAGE_TEST_URL)"


@pytest.fixture
def table() -> Iterator[str]:
    """The name of a table for one test."""
    name = f"test_{uuid4().hex}"
    yield name
    if URL:
        engine = sqlalchemy.create_engine(read_url(URL))
        with engine.begin() as connection:
            for each in [name, f"{name}_another"]:
                connection.execute(sqlalchemy.text(f"DROP TABLE IF EXISTS {each}"))
        engine.dispose()


@pytest.fixture
def errbot_config(tmp_path: Path, table: str) -> SimpleNamespace:
    """The bot's configuration: this storage plugin, with a table for one test."""
    return SimpleNamespace(
        STORAGE="{{ cookiecutter.plugin_name }}",
        STORAGE_CONFIG={
            "url": URL or f"sqlite:///{(tmp_path / 'storage.sqlite').as_posix()}",
            "table": table,
        },
        BOT_EXTRA_STORAGE_PLUGINS_DIR=str(SOURCE),
        BOT_DATA_DIR=str(tmp_path),
    )


@pytest.fixture
def another_database(table: str) -> dict[str, Any]:
    """Keys of STORAGE_CONFIG of another bot on the server: another table."""
    return {"table": f"{table}_another"}


@pytest.fixture
def first_release(errbot_config: SimpleNamespace) -> None:
    """What the first release of this plugin stored. Do not change it, so that upgrades are safe."""
    engine = sqlalchemy.create_engine(read_url(errbot_config.STORAGE_CONFIG["url"]))
    table = errbot_config.STORAGE_CONFIG["table"]
    key = engine.dialect.identifier_preparer.quote("key")
    types = {"sqlite": ["BLOB"] * 3, "postgresql": ["BYTEA"] * 3}
    mysql = ["VARBINARY(1000)", "VARBINARY(1600)", "LONGBLOB"]
    short, long, value = types.get(engine.dialect.name, mysql)
    create = f"""CREATE TABLE {table} (namespace {short} NOT NULL, {key} {long} NOT NULL,
        value {value} NOT NULL, PRIMARY KEY (namespace, {key}))"""
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(create))
        connection.execute(
            sqlalchemy.text(f"INSERT INTO {table} VALUES (:namespace, :key, :value)"),
            [
                {"namespace": namespace.encode(), "key": key.encode(), "value": AS_IT_WAS}
                for namespace, key in FIRST_KEYS
            ],
        )
    engine.dispose()


{% include "shared/sqlite_faults.py" %}
    def unreachable(self) -> dict[str, Any]:
        """Return the address of a file in a folder that does not exist."""
        return {"url": f"sqlite:///{self._path.parent.as_posix()}/no such folder/storage.sqlite"}


class ServerFaults(Proxy):
    """How a server fails: the tests break the connections to it."""

    def __init__(self, url: sqlalchemy.URL, table: str) -> None:
        def config(port: int) -> dict[str, Any]:
            through = url.set(host="127.0.0.1", port=port)
            return {"url": through.render_as_string(hide_password=False)}

        port = url.port or PORTS[url.get_backend_name()]
        super().__init__(url.host or "localhost", port, config)
        self._engine = sqlalchemy.create_engine(
            url, isolation_level="REPEATABLE READ", poolclass=sqlalchemy.NullPool
        )
        self._table = sqlalchemy.table(table)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Delete all rows, and roll back."""
        with self._engine.connect() as connection:
            connection.execute(sqlalchemy.delete(self._table))
            yield

    @contextmanager
    def backup(self) -> Iterator[None]:
        """Read the table in a transaction."""
        with self._engine.connect() as connection:
            connection.execute(sqlalchemy.select(sqlalchemy.text("*")).select_from(self._table))
            yield


@pytest.fixture
def faults(errbot_config: SimpleNamespace, tmp_path: Path) -> Iterator[Faults]:
    """Makes the database fail: a server by a proxy in between, a file by locks and damage."""
    errbot_config.STORAGE_CONFIG["timeout"] = 2.0 if URL else 0.1
    if not URL:
        yield SQLiteFaults(tmp_path / "storage.sqlite")
        return
    with ServerFaults(read_url(URL), errbot_config.STORAGE_CONFIG["table"]) as server:
        errbot_config.STORAGE_CONFIG |= server.config()
        yield server


@pytest.fixture(scope="session")
def outlives_process() -> bool:
    """Whether data survive the process that stored them."""
    return True
