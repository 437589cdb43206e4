"""Provides the tests' throwaway database. This is the only test file that you edit.

`contract` tests what Errbot expects of every storage. Do not change it, and keep it green.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture
def errbot_config(tmp_path: Path) -> SimpleNamespace:
    """The bot's configuration: this storage plugin, on an empty database for one test.

    To drop the database afterwards, yield the configuration instead of returning it. To start a
    server for all tests, use `running` from contract/support/server.py in a session fixture.
    """
    return SimpleNamespace(
        STORAGE="{{ cookiecutter.plugin_name }}",
        STORAGE_CONFIG={"url": f"dict://{uuid4()}"},  # YOUR DATABASE: a throwaway one
        BOT_EXTRA_STORAGE_PLUGINS_DIR=str(SOURCE),
        BOT_DATA_DIR=str(tmp_path),
    )


@pytest.fixture
def another_database(errbot_config: SimpleNamespace) -> dict[str, Any]:
    """Keys of STORAGE_CONFIG of another empty database on the server, as a staging bot has."""
    return {"url": errbot_config.STORAGE_CONFIG["url"] + "/another"}  # YOUR DATABASE


@pytest.fixture(scope="session")
def outlives_process() -> bool:
    """Whether data survive the process that stored them."""
    return False  # YOUR DATABASE: True
