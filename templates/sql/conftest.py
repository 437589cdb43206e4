"""Where the tests' throwaway database comes from: the one file of the tests that is yours to edit.

`contract` holds what Errbot expects of every storage. Keep it as it is, and keep it green.
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


@pytest.fixture(scope="session")
def outlives_process() -> bool:
    """Whether the data are still there when the process that stored them is gone."""
    return True
