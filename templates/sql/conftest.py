"""Provides the tests' throwaway database. This is the only test file that you edit.

`contract` tests what Errbot expects of every storage. Do not change it, and keep it green.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import sqlalchemy

from {{ cookiecutter.__package }}.storage import read_url

SOURCE = Path(__file__).parent.parent / "src"
URL = os.environ.get("STORAGE_TEST_URL")


def pytest_report_header() -> str:
    """Report which database is tested, without its password."""
    place = repr(read_url(URL)) if URL else "a temporary SQLite file"
    return f"database: {place} (to use another one, set STORAGE_TEST_URL)"


@pytest.fixture
def errbot_config(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """The bot's configuration: this storage plugin, with a table for one test."""
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


@pytest.fixture(scope="session")
def outlives_process() -> bool:
    """Whether data survive the process that stored them."""
    return True
