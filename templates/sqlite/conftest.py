"""Where the tests' throwaway database comes from: a file in the temporary folder of each test.

`contract` holds what Errbot expects of every storage. Keep it as it is, and keep it green.
"""

import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from contract.support.faults import Faults

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture
def errbot_config(tmp_path: Path) -> SimpleNamespace:
    """What config.py says: this storage plugin, on a database that is empty and this test's alone.

    An empty STORAGE_CONFIG does: the database is a file in BOT_DATA_DIR.
    """
    return SimpleNamespace(
        STORAGE="{{ cookiecutter.plugin_name }}",
        STORAGE_CONFIG={},
        BOT_EXTRA_STORAGE_PLUGINS_DIR=str(SOURCE),
        BOT_DATA_DIR=str(tmp_path),
    )


{% include "shared/locked_file.py" %}
    def unreachable(self) -> dict[str, Any]:
        """Return a path in a folder that does not exist."""
        return {"path": "no such folder/errbot.sqlite3"}


@pytest.fixture
def faults(errbot_config: SimpleNamespace, tmp_path: Path) -> Faults:
    """How the tests make the database fail. A file has no connection that could be dropped."""
    errbot_config.STORAGE_CONFIG["timeout"] = 0.1
    return LockedFile(tmp_path / "errbot.sqlite3")


@pytest.fixture(scope="session")
def outlives_process() -> bool:
    """Whether the data are still there when the process that stored them is gone."""
    return True
