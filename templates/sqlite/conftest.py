"""Where the tests' throwaway database comes from: a file in the temporary folder of each test.

`contract` holds what Errbot expects of every storage. Keep it as it is, and keep it green.
"""

from pathlib import Path
from types import SimpleNamespace

import pytest

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


@pytest.fixture(scope="session")
def outlives_process() -> bool:
    """Whether the data are still there when the process that stored them is gone."""
    return True
