"""The database under test, reached as Errbot and other processes reach it."""

import importlib.util
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any, cast

import pytest
from errbot.bootstrap import get_storage_plugin
from errbot.storage import StoreMixin
from errbot.storage.base import StorageBase, StoragePluginBase

SECOND_PROCESS = Path(__file__).with_name("second_process.py")
EXAMPLE = "contract"
LONG = 200
"""Characters of a name that is long: storages may hold no more than 250."""
ENOUGH = 100_000
"""More keys than a test sets: `keys` of a storage under test may never end."""


class Database:
    """The database under test, reached as Errbot reaches it: by the storage plugin of a config."""

    def __init__(self, config: Any, config_file: Path, prefix: str) -> None:
        self.config = config
        self.config_file = config_file
        """The same configuration as a file, for `errbot -c` and for other processes."""
        self._prefix = prefix
        self._plugin: StoragePluginBase | None = None
        self._opened: list[StorageBase] = []
        self._namespaces: set[str] = set()

    def namespace(self, name: str) -> str:
        """Return the throwaway namespace that stands for a name, and note it for the clean-up."""
        namespace = self._throwaway(name)
        self._namespaces.add(namespace)
        return namespace

    def _throwaway(self, name: str) -> str:
        """Put the prefix before a name; a long name loses as much of its middle."""
        middle = len(self._prefix) if len(name) >= LONG else 0
        return self._prefix + name[:50] + name[50 + middle :]

    def plugin(self) -> StoragePluginBase:
        """Load the storage plugin anew, as a bot that starts does."""
        return cast(StoragePluginBase, get_storage_plugin(self.config))

    def open(self, name: str = EXAMPLE, plugin: StoragePluginBase | None = None) -> StorageBase:
        """Open a throwaway namespace, by default with one plugin instance for the whole test."""
        if plugin is None:
            plugin = self._plugin = self._plugin or self.plugin()
        storage = plugin.open(self._throwaway(name))
        self.namespace(name)
        self._opened.append(storage)
        return storage

    def mapping(self, name: str = EXAMPLE) -> StoreMixin:
        """Open a throwaway namespace as plugins see theirs: as a mapping."""
        mapping = StoreMixin()
        self._plugin = self._plugin or self.plugin()
        mapping.open_storage(self._plugin, self.namespace(name))
        self._opened.append(cast(StorageBase, mapping._store))
        return mapping

    def close(self, storage: StorageBase) -> None:
        """Close a storage, once, as Errbot does."""
        self._opened.remove(storage)
        storage.close()

    def close_all(self) -> None:
        """Close what the test left open."""
        while self._opened:
            self._opened.pop().close()

    def empty(self) -> None:
        """Remove every key from every namespace of the test."""
        plugin = self.plugin()
        for namespace in self._namespaces:
            storage = plugin.open(namespace)
            for key in set(islice(storage.keys(), ENOUGH)):
                storage.remove(key)
            storage.close()


def open_files() -> int:
    """Return how many files and connections this process has open. Not on Windows."""
    return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))


def process_command(database: Database, name: str, task: str) -> list[str]:
    """Return the command that does a task of second_process.py on a throwaway namespace."""
    file, namespace = str(database.config_file), database.namespace(name)
    return [sys.executable, str(SECOND_PROCESS), file, namespace, task]


def run_process(database: Database, name: str, task: str) -> str:
    """Let another process do a task of second_process.py, and return what it printed."""
    command = process_command(database, name, task)
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, f"A second process failed on the same database:\n{done.stderr}"
    return done.stdout.strip()


def load_config(path: Path) -> Any:
    """Execute an Errbot configuration file. Raises pytest.UsageError where there is none."""
    spec = importlib.util.spec_from_file_location("errbot_config", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise pytest.UsageError(f"--errbot-config: there is no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # as `errbot -c` does
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.path[0]
    return module
