"""A real bot on the storage, started, talked to, stopped and started again."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from errbot import bootstrap
from errbot.backends import test as test_backend
from errbot.storage.base import StorageBase, StoragePluginBase

from contract.support.database import Database


class Throwaway(StoragePluginBase):
    """The storage plugin under test, with the bot's namespaces replaced by throwaway ones."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._plugin = database.plugin()

    def open(self, namespace: str) -> StorageBase:
        """Open the throwaway namespace that stands for a namespace of the bot."""
        return self._plugin.open(self._database.namespace(namespace))


@contextmanager
def running_bot(data: Path) -> Iterator[Any]:
    """Boot a bot, and stop it."""
    data.mkdir(exist_ok=True)
    bot = test_backend.TestBot(
        extra_plugin_dir=str(Path(__file__).with_name("support") / "notes_plugin"),
        extra_config={
            "BOT_DATA_DIR": str(data),
            "BOT_LOG_FILE": str(data / "errbot.log"),
            "BOT_ADMINS": ("gbin@localhost",),
            "BOT_EXTRA_BACKEND_DIR": [],
            "CORE_PLUGINS": ("Plugins", "Utils", "Backup"),
            "AUTOINSTALL_DEPS": False,
        },
    )
    bot.start()
    try:
        yield bot
    finally:
        bot.stop()


@pytest.fixture(autouse=True)
def _throwaway_namespaces(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let Errbot load the storage plugin under test, and drop its log handlers."""
    monkeypatch.setattr(bootstrap, "get_storage_plugin", lambda _config: Throwaway(database))
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers


def test_a_bot_remembers_over_a_restart(tmp_path: Path) -> None:
    with running_bot(tmp_path / "first") as bot:
        bot.exec_command("!plugin config Notes {'GREETING': 'Good morning'}")
        assert "Noted" in bot.exec_command("!note milk"), "A plugin of a bot cannot store anything."
    with running_bot(tmp_path / "second") as bot:
        assert "Noted" in bot.exec_command("!note bread")
        answer = bot.exec_command("!notes")
        assert "milk, bread" in answer, (
            f"After a restart the bot's plugins have lost their data: {answer}"
        )
        assert "Good morning" in answer, (
            f"After a restart the bot has lost the configuration of its plugins: {answer}"
        )
        assert "has been written" in bot.exec_command("!backup"), "Errbot's !backup failed."
    backup = (tmp_path / "second" / "backup.py").read_text(encoding="utf-8")
    assert "['milk', 'bread']" in backup, "Errbot's !backup does not hold the plugins' data."
