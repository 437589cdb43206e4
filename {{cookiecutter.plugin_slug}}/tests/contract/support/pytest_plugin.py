"""The contract's fixtures, and its option --errbot-config."""

import logging
import os
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from uuid import uuid4

import pytest
from errbot import utils
from errbot.storage.base import StorageBase

from contract.support.database import Database, load_config, run_process
from contract.support.sample_values import MARK

CONTRACT = Path(__file__).parent.parent


class Recorder(logging.Handler):
    """Keeps what is logged, as text with tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.lines.append(self.format(record))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --errbot-config."""
    parser.addoption(
        "--errbot-config",
        metavar="CONFIG.PY",
        type=Path,
        help="check the storage that this Errbot configuration names, in namespaces of its own"
        " that are emptied afterwards, instead of this project's storage",
    )


def pytest_configure() -> None:
    """Let every Python that a test starts print UTF-8, as the tests read it, on Windows too."""
    os.environ["PYTHONUTF8"] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --errbot-config, leave out the tests of this project: only the contract is asked for."""
    if config.getoption("--errbot-config"):
        others = [item for item in items if CONTRACT not in item.path.parents]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if CONTRACT in item.path.parents]


@pytest.hookimpl(wrapper=True, trylast=True)
def log_everything(item: pytest.Item) -> Generator[None, object, object]:
    """Let `log_lines` see every record, whatever `log_level` of pytest's settings is.

    With a `log_level`, pytest sets the level of the root logger anew for each phase of a test.
    """
    __tracebackhide__ = True
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    try:
        return (yield)
    finally:
        root.setLevel(level)


pytest_runtest_setup = pytest_runtest_call = pytest_runtest_teardown = log_everything


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
    root.addHandler(recorder)
    yield recorder.lines
    root.removeHandler(recorder)
    told = [line for line in recorder.lines if MARK in line]
    assert not told, f"A value stands in the log: {told[0]}"


@pytest.fixture
def storage(database: Database) -> StorageBase:
    """One open and empty namespace."""
    return database.open()
