"""A real bot on the storage: it starts, answers, stops, and starts again."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import Any, cast

import pytest
from errbot import bootstrap
from errbot.backends import test as test_backend
from errbot.storage.base import StorageBase, StoragePluginBase

from contract.support.database import Database
from contract.support.throwaway import Wrapper

ANSWER = 20
"""Seconds within which a bot must answer."""
MANY = 1_000
"""More keys than the bot has in any namespace."""


class Throwaway(StoragePluginBase):
    """The storage plugin under test, with the bot's namespaces replaced by throwaway ones."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._plugin = database.plugin()

    def open(self, namespace: str) -> StorageBase:
        """Open the throwaway namespace that replaces a namespace of the bot."""
        return cast(StorageBase, Bounded(self._plugin.open(self._database.namespace(namespace))))


class Bounded(Wrapper):
    """A namespace of the bot with a limit on its keys, because `!backup` writes all of them."""

    def keys(self) -> Iterator[str]:
        """Return the keys. Raises RuntimeError if there are more than the bot ever set."""
        for number, key in enumerate(self._wrapped.keys()):
            if number == MANY:
                raise RuntimeError(
                    f"`keys` returns more than {MANY} keys for a bot that has only a few."
                )
            yield key


def answer(bot: Any, command: str) -> str:
    """Return the bot's answer to a command."""
    try:
        return str(bot.exec_command(command, timeout=ANSWER))
    except Empty:
        pytest.fail(f"A bot has not answered `{command}` after {ANSWER} seconds.")


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
    """A bot keeps its plugins' data and configuration when it restarts, and `!backup` works."""
    with running_bot(tmp_path / "first") as bot:
        answer(bot, "!plugin config Notes {'GREETING': 'Good morning'}")
        assert "Noted" in answer(bot, "!note milk"), "A bot's plugin cannot store anything."
    with running_bot(tmp_path / "second") as bot:
        assert "Noted" in answer(bot, "!note bread")
        shown = answer(bot, "!notes")
        assert "milk, bread" in shown, (
            f"After a restart, the bot's plugins have lost their data: {shown}"
        )
        assert "Good morning" in shown, (
            f"After a restart, the bot has lost its plugins' configuration: {shown}"
        )
        assert "has been written" in answer(bot, "!backup"), "Errbot's !backup failed."
    backup = (tmp_path / "second" / "backup.py").read_text(encoding="utf-8")
    assert "['milk', 'bread']" in backup, "Errbot's !backup does not contain the plugins' data."
