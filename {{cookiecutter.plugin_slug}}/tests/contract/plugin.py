"""The contract's fixtures, and its option --errbot-config."""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
from errbot import utils
from errbot.bootstrap import get_storage_plugin
from errbot.storage import StoreMixin
from errbot.storage.base import StorageBase, StoragePluginBase

from contract.values import MARK

CONTRACT = Path(__file__).parent
EXAMPLE = "contract"
LONG = 200
"""Characters of a name that is long: storages may hold no more than 250."""
ENOUGH = 100_000
"""More keys than a test sets: `keys` of a storage under test may never end."""


class Recorder(logging.Handler):
    """Keeps what is logged, as text with tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.lines.append(self.format(record))


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


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --errbot-config."""
    parser.addoption(
        "--errbot-config",
        metavar="CONFIG.PY",
        type=Path,
        help="check the storage that this Errbot configuration names, in namespaces of its own"
        " that are emptied afterwards, instead of this project's storage",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --errbot-config, leave out the tests of this project: only the contract is asked for."""
    if config.getoption("--errbot-config"):
        others = [item for item in items if CONTRACT not in item.path.parents]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if CONTRACT in item.path.parents]


def open_files() -> int:
    """Return how many files and connections this process has open. Not on Windows."""
    return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))


def process_command(database: Database, name: str, task: str) -> list[str]:
    """Return the command that does a task of process.py on a throwaway namespace."""
    script = str(CONTRACT / "process.py")
    return [sys.executable, script, str(database.config_file), database.namespace(name), task]


def run_process(database: Database, name: str, task: str) -> str:
    """Let another process do a task of process.py, and return what it printed."""
    command = process_command(database, name, task)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
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


@pytest.fixture(scope="session", autouse=True)
def _search_once() -> Iterator[None]:
    """Let Errbot search a folder for plugins once, and not again for each plugin instance.

    Where this project is installed as editable, it searches all that is installed.
    """
    with pytest.MonkeyPatch.context() as patch:
        search = cache(utils.entry_point_plugins)
        patch.setattr("errbot.backend_plugin_manager.entry_point_plugins", search)
        patch.setattr("errbot.utils.find_roots", cache(utils.find_roots))
        yield


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The database under test: this project's, or that of --errbot-config."""
    path = request.config.getoption("--errbot-config")
    if path is None:
        config = request.getfixturevalue("errbot_config")
        file = tmp_path / "config.py"
        lines = (f"{name} = {value!r}\n" for name, value in vars(config).items())
        file.write_text("".join(lines), encoding="utf-8")
        database = Database(config, file, prefix="")
    else:
        database = Database(load_config(path), path.resolve(), prefix=f"contract {uuid4().hex} ")
    yield database
    database.close_all()
    if path is not None:
        database.empty()


@pytest.fixture
def other_processes(database: Database, request: pytest.FixtureRequest) -> None:
    """Skip a test that needs other processes, where the data live and die with their process."""
    if request.config.getoption("--errbot-config"):
        run_process(database, "probe", "write")
        outlive = bool(database.open("probe").len())
    else:
        outlive = request.getfixturevalue("outlives_process")
    if not outlive:
        pytest.skip("the data of this database live and die with their process")


@pytest.fixture(autouse=True)
def log_lines() -> Iterator[list[str]]:
    """All that is logged during a test, at DEBUG. No value may ever stand in it."""
    recorder, root = Recorder(), logging.getLogger()
    level = root.level
    root.addHandler(recorder)
    root.setLevel(logging.DEBUG)
    yield recorder.lines
    root.setLevel(level)
    root.removeHandler(recorder)
    told = [line for line in recorder.lines if MARK in line]
    assert not told, f"A value stands in the log: {told[0]}"


@pytest.fixture
def storage(database: Database) -> StorageBase:
    """One open and empty namespace."""
    return database.open()
