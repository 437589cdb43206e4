"""Provides the tests' throwaway database: a file in the temporary folder of each test.

`contract` tests what Errbot expects of every storage. Do not change it, and keep it green.
"""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contract.support.clock import ten_years_earlier
from contract.support.faults import Faults
from contract.support.sample_values import AS_IT_WAS, FIRST_KEYS

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture
def errbot_config(tmp_path: Path) -> SimpleNamespace:
    """The bot's configuration: this storage plugin, on an empty database for one test.

    STORAGE_CONFIG can be empty, because the database is a file in BOT_DATA_DIR.
    """
    return SimpleNamespace(
        STORAGE="{{ cookiecutter.plugin_name }}",
        STORAGE_CONFIG={},
        BOT_EXTRA_STORAGE_PLUGINS_DIR=str(SOURCE),
        BOT_DATA_DIR=str(tmp_path),
    )


@pytest.fixture
def another_database() -> dict[str, Any]:
    """Keys of STORAGE_CONFIG of another file, as a second bot may have in the same folder."""
    return {"path": "another.sqlite3"}


@pytest.fixture
def first_release(tmp_path: Path) -> None:
    """What the first release of this plugin stored. Do not change it, so that upgrades are safe."""
    columns = "namespace NOT NULL, key NOT NULL, value NOT NULL, PRIMARY KEY (namespace, key)"
    with closing(sqlite3.connect(tmp_path / "errbot.sqlite3")) as connection, connection:
        connection.execute(f"CREATE TABLE errbot ({columns})")
        rows = [(*place, AS_IT_WAS) for place in FIRST_KEYS]
        connection.executemany("INSERT INTO errbot VALUES (?, ?, ?)", rows)


{% include "shared/sqlite_faults.py" %}
    def unreachable(self) -> dict[str, Any]:
        """Return a path in a folder that does not exist."""
        return {"path": "no such folder/errbot.sqlite3"}


@pytest.fixture
def faults(errbot_config: SimpleNamespace, tmp_path: Path) -> Faults:
    """Makes the database fail. A file has no connections to drop."""
    errbot_config.STORAGE_CONFIG["timeout"] = 0.1
    return SQLiteFaults(tmp_path / "errbot.sqlite3")


@pytest.fixture(scope="session")
def outlives_process() -> bool:
    """Whether data survive the process that stored them."""
    return True
