"""Where the tests' throwaway database comes from: the one file of the tests that is yours to edit.

`contract` holds what Errbot expects of every storage. Keep it as it is, and keep it green.
"""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy
from contract.support.faults import Faults, Proxy

from {{ cookiecutter.__package }}.storage import read_url

SOURCE = Path(__file__).parent.parent / "src"
URL = os.environ.get("STORAGE_TEST_URL")
PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}


def pytest_report_header() -> str:
    """Say which database is tested, and not with which password."""
    place = repr(read_url(URL)) if URL else "a temporary SQLite file"
    return f"database: {place} (STORAGE_TEST_URL names another one)"


@pytest.fixture
def errbot_config(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """What config.py says: this storage plugin, on a table that is this test's alone."""
    table = f"test_{uuid4().hex}"
    yield SimpleNamespace(
        STORAGE="{{ cookiecutter.plugin_name }}",
        STORAGE_CONFIG={
            "url": URL or f"sqlite:///{(tmp_path / 'storage.sqlite').as_posix()}",
            "table": table,
        },
        BOT_EXTRA_STORAGE_PLUGINS_DIR=str(SOURCE),
        BOT_DATA_DIR=str(tmp_path),
    )
    if URL:
        engine = sqlalchemy.create_engine(read_url(URL))
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(f"DROP TABLE IF EXISTS {table}"))
        engine.dispose()


{% include "shared/locked_file.py" %}
    def unreachable(self) -> dict[str, Any]:
        """Return the address of a file in a folder that does not exist."""
        return {"url": f"sqlite:///{self._path.parent.as_posix()}/no such folder/storage.sqlite"}


@pytest.fixture
def faults(errbot_config: SimpleNamespace, tmp_path: Path) -> Iterator[Faults]:
    """How the tests make the database fail. A file has no connection that could be dropped."""
    errbot_config.STORAGE_CONFIG["timeout"] = 2.0 if URL else 0.1
    if not URL:
        yield LockedFile(tmp_path / "storage.sqlite")
        return
    url = read_url(URL)

    def config(port: int) -> dict[str, Any]:
        through = url.set(host="127.0.0.1", port=port)
        return {"url": through.render_as_string(hide_password=False)}

    port = url.port or PORTS[url.get_backend_name()]
    with Proxy(url.host or "localhost", port, config) as proxy:
        errbot_config.STORAGE_CONFIG |= proxy.config()
        yield proxy


@pytest.fixture(scope="session")
def outlives_process() -> bool:
    """Whether the data are still there when the process that stored them is gone."""
    return True
