"""Provides the tests' throwaway database: a file in the temporary folder of each test.

`contract` tests what Errbot expects of every storage. Do not change it, and keep it green.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest

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


@pytest.fixture(scope="session")
def outlives_process() -> bool:
    """Whether data survive the process that stored them."""
    return True
