"""Where the tests' throwaway database comes from: the one file of the tests that is yours to edit.

`contract` holds what Errbot expects of every storage. Keep it as it is, and keep it green.
"""

from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture
def errbot_config(tmp_path: Path) -> SimpleNamespace:
    """What config.py says: this storage plugin, on a database that is empty and this test's alone.

    A fixture that has to drop the database afterwards yields the configuration instead. To start a
    server for all tests, use `running` from contract/support/server.py in a fixture of the session.
    """
    return SimpleNamespace(
        STORAGE="{{ cookiecutter.plugin_name }}",
        STORAGE_CONFIG={"url": f"dict://{uuid4()}"},  # YOUR DATABASE: a throwaway one
        BOT_EXTRA_STORAGE_PLUGINS_DIR=str(SOURCE),
        BOT_DATA_DIR=str(tmp_path),
    )


@pytest.fixture(scope="session")
def outlives_process() -> bool:
    """Whether the data are still there when the process that stored them is gone."""
    return False  # YOUR DATABASE: True
