"""The contract's fixtures and options, such as --errbot-config."""

import gc
import logging
import os
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from errbot import utils
from errbot.plugin_info import PluginInfo
from errbot.storage.base import StorageBase

from contract.support import amounts
from contract.support.database import Database, process_command, run_command
from contract.support.deadlines import deadline, end_with_threads, last_resort
from contract.support.expectations import shows
from contract.support.faults import Faults
from contract.support.first_try import try_again, try_once
from contract.support.loading import load_config, load_plugin
from contract.support.report import LOGGED, WORKS, Promises, explain
from contract.support.sample_values import MARK
from contract.support.throwaway import Notes, clean, describe, read_notes, shielded

CONTRACT = Path(__file__).parent.parent
THROWAWAY = {"another_database", "faults", "first_release"}
"""Fixtures of conftest.py for a throwaway database, not for one that is in use."""


class Configured:
    """The storage that --errbot-config names, and what this run's tests store in it."""

    def __init__(self, options: pytest.Config) -> None:
        path: Path = options.getoption("--errbot-config")
        left: Path | None = options.getoption("--remove-left")
        self.config = load_config(path)
        self.path = path.resolve()
        self.run = uuid4().hex[:16]
        self.numbers = count()
        self.notes = (
            read_notes(left) if left else Notes(options.rootpath / f"contract-{self.run}.jsonl")
        )
        self.between_tests = Database(self.config, self.path, self.notes, self.run)
        self.terminated = False
        signal.signal(signal.SIGTERM, self.terminate)

    def terminate(self, *_: object) -> None:
        """Handle SIGTERM like Ctrl-C, which a test may use for itself."""
        self.terminated = True
        raise KeyboardInterrupt

    def clean(self, attempts: int) -> list[int]:
        """Remove what the tests have stored, if that is safe. Returns the signals received."""
        with shielded() as came:
            if not self.notes.stopped:
                clean(self.notes, partial(load_plugin, self.config, None), attempts)
        return came

    def database(self) -> Database:
        """Return the database for a test."""
        return Database(self.config, self.path, self.notes, f"{self.run}.{next(self.numbers)}")


CONFIGURED = pytest.StashKey[Configured]()
PROMISES = pytest.StashKey[Promises]()
FAULT = pytest.StashKey[str]()
"""Once the storage has been tried: why it cannot be tested, or ""."""
SLOW = pytest.StashKey[int]()
"""How many tests hung."""
TOLD = pytest.StashKey[bool]()
"""Whether a value in the log has been reported."""


USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
"""What each log record contains, beside its message."""


class Recorder(logging.Handler):
    """Keeps log records, as text with tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, with what it contains beside its message: formatters for JSON show it."""
        more = {name: value for name, value in vars(record).items() if name not in USUAL}
        self.lines.append(self.format(record) + (f" {more}" if more else ""))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the contract's options."""
    parser.addoption(
        "--errbot-config",
        metavar="CONFIG.PY",
        type=Path,
        help=(
            "check the storage that this Errbot configuration names, instead of this project's"
            " storage, in separate namespaces that are emptied afterwards"
        ),
    )
    parser.addoption(
        "--remove-left",
        metavar="FILE",
        type=Path,
        help=(
            "run no test, but remove from the storage of --errbot-config what an earlier run could"
            " not remove and listed in this file"
        ),
    )
    parser.addoption(
        "--contract-report",
        metavar="FILE.MD",
        type=Path,
        help="write a report on which promises of the contract the storage keeps",
    )
    parser.addoption(
        "--time-limit",
        metavar="SECONDS",
        type=float,
        default=120,
        help="fail a test that takes longer (default: 120)",
    )
    parser.addoption(
        "--quick",
        action="store_true",
        help=(
            "check every promise of the contract with hundreds of keys instead of thousands, for"
            " slow databases"
        ),
    )


def pytest_configure(config: pytest.Config) -> None:
    """Read the configuration of --errbot-config."""
    os.environ["PYTHONUTF8"] = "1"  # Every Python that a test starts prints UTF-8, even on Windows.
    config.stash[PROMISES] = Promises()
    config.pluginmanager.register(config.stash[PROMISES])
    amounts.quick = config.getoption("--quick")
    if config.getoption("--errbot-config"):
        if config.getoption("tx", None):
            raise pytest.UsageError("--errbot-config: run the tests in one process, without -n")
        try:
            config.stash[CONFIGURED] = Configured(config)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        for line in [
            "default",
            "ignore::ResourceWarning",
        ]:  # A warning in another plugin's code must not fail the run.
            config.addinivalue_line("filterwarnings", line)
    elif config.getoption("--remove-left"):
        raise pytest.UsageError("--remove-left: give --errbot-config as well")


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Let `-n auto` start one process more than there are processors, because many tests wait."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Let `gc.collect` look only at what the tests make, because some tests call it often."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, object]:
    """Name the promise that a contract test checks, even if an error of the storage breaks it."""
    report = yield
    if CONTRACT in item.path.parents:
        words = getattr(item, "function", item).__doc__ or item.name
        if report.failed and call.excinfo:
            explain(report, call.excinfo, words)
        vars(report)["promise"] = words  # pytest-xdist passes it on to the process that reports
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which promises the configured storage breaks, and write the report if requested."""
    promises, path = config.stash[PROMISES], config.getoption("--contract-report")
    configured = config.stash.get(CONFIGURED, None)
    if configured and not config.getoption("--remove-left"):
        terminalreporter.section("the contract")
        for promise in promises.broken():
            terminalreporter.write_line(f"Broken: {promise.words}")
            for told in promise.told():
                terminalreporter.write_line(f"    {told}")
        terminalreporter.write_line(promises.summary())
    if path:
        name = getattr(configured.config, "STORAGE", "Shelf") if configured else "this storage"
        session: Any = config.pluginmanager.get_plugin("session")
        stopped = config.stash.get(FAULT, "") or session.shouldfail or session.shouldstop or ""
        path.write_text(promises.page(name, str(stopped).rstrip(".")), encoding="utf-8")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --errbot-config, run only the contract, not this project's other tests."""
    if CONFIGURED in config.stash:
        left = config.getoption("--remove-left")
        asked = [] if left else [item for item in items if CONTRACT in item.path.parents]
        config.hook.pytest_deselected(items=[item for item in items if item not in asked])
        items[:] = asked
        in_use = pytest.mark.skip(reason="this needs a throwaway database, not one that is in use")
        for item in asked:
            if THROWAWAY & {*getattr(item, "fixturenames", ())}:
                item.add_marker(in_use)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Remove remaining data after all fixtures have ended, even after Ctrl-C."""
    try:
        return (yield)
    except Exception:
        if session.config.stash.get(FAULT, ""):
            return None  # The fixtures fail too, because of the one reported fault.
        raise
    except KeyboardInterrupt:
        if CONFIGURED in session.config.stash:
            session.exitstatus = pytest.ExitCode.INTERRUPTED
            return None  # The run is ending, and what a fixture did not remove is removed now.
        raise
    finally:
        clean_up(session)


def clean_up(session: pytest.Session) -> None:
    """Remove what the tests have left in the storage of --errbot-config."""
    if configured := session.config.stash.get(CONFIGURED, None):
        configured.clean(attempts=3)
        if configured.notes.read():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        elif session.config.getoption("--remove-left"):
            session.exitstatus = pytest.ExitCode.OK


def pytest_unconfigure(config: pytest.Config) -> None:
    """Say at the end what remains, and let no thread keep this process alive."""
    end_with_threads()
    if configured := config.stash.get(CONFIGURED, None):
        with shielded():
            reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
            if left := configured.notes.read():
                for line in describe(left, configured.notes):
                    reporter.write_line(line, red=True)
            configured.notes.close()


@contextmanager
def limited(item: pytest.Item) -> Iterator[None]:
    """Limit the time of a phase of a test. After three that hang, the run ends.

    The interrupt tests use the same signal, and have their own limits.
    """
    seconds = item.config.getoption("--time-limit")
    stash = item.session.stash
    configured = item.config.stash.get(CONFIGURED, None)
    before = configured.notes.sets if configured else 0

    def count_it() -> str:
        stash[SLOW] = stash.get(SLOW, 0) + 1
        if stash[SLOW] == 3:
            item.session.shouldfail = "three tests have not ended, and so would many others"
        sets = configured.notes.sets - before if configured else 0
        return f", in which it set {sets:,} keys" * bool(sets)

    why = (
        f"{item.name} is too slow, or hangs. --time-limit gives it more time"
        f"{', and --quick asks for less' * (not amounts.quick)}."
    )
    with last_resort(2 * seconds, item.name):
        if "interrupts" in getattr(item, "fixturenames", ()):
            yield
        else:
            with deadline(seconds, why, count_it):
                yield


@pytest.hookimpl(wrapper=True, trylast=True)
def log_everything(item: pytest.Item) -> Generator[None, object, object]:
    """Let `log_lines` see every record, whatever pytest's setting `log_level` is.

    With a `log_level`, pytest resets the root logger's level for each phase of a test.
    """
    __tracebackhide__ = True
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    try:
        with limited(item):
            return (yield)
    finally:
        root.setLevel(level)
        if configured := item.config.stash.get(CONFIGURED, None):
            if configured.notes.stopped:
                pytest.exit(configured.notes.stopped, pytest.ExitCode.TESTS_FAILED)
            if configured.terminated:
                pytest.exit("stopped by SIGTERM", pytest.ExitCode.INTERRUPTED)


pytest_runtest_setup = pytest_runtest_call = pytest_runtest_teardown = log_everything


@pytest.fixture(scope="session", autouse=True)
def _search_once() -> Iterator[None]:
    """Let Errbot search a folder for plugins only once, and read each .plug file only once.

    If this project is an editable install, Errbot searches all installed packages.
    """
    with pytest.MonkeyPatch.context() as patch:
        search = cache(utils.entry_point_plugins)
        patch.setattr("errbot.backend_plugin_manager.entry_point_plugins", search)
        patch.setattr("errbot.utils.find_roots", cache(utils.find_roots))
        patch.setattr(PluginInfo, "load", cache(PluginInfo.load))
        yield


@pytest.fixture(scope="session", autouse=True)
def environment() -> dict[str, str]:
    """The environment variables before any storage was loaded."""
    return dict(os.environ)


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The database under test: this project's, or that of --errbot-config."""
    configured = request.config.stash.get(CONFIGURED, None)
    if configured:
        database = configured.database()
    else:
        config = request.getfixturevalue("errbot_config")
        file = tmp_path / "config.py"
        lines = (f"{name} = {value!r}\n" for name, value in vars(config).items())
        file.write_text("".join(lines), encoding="utf-8")
        database = Database(config, file)
    stash = request.config.stash
    upgrades = "first_release" in request.fixturenames  # A trial would do that before the test.
    if FAULT not in stash and not upgrades:
        stash[FAULT] = try_once(database)
        if stash[FAULT]:
            if hasattr(request.config, "workerinput"):  # pytest-xdist takes an exit for a crash
                request.session.shouldfail = stash[FAULT]
                pytest.skip(stash[FAULT])
            pytest.exit(stash[FAULT], pytest.ExitCode.TESTS_FAILED)
    elif configured and (harm := try_again(configured.between_tests)):
        pytest.fail(f"{WORKS} {harm}")
    if configured:
        configured.clean(attempts=1)
    try:
        yield database
        database.close_all()
    finally:
        if configured and configured.clean(attempts=1):
            raise KeyboardInterrupt


@pytest.fixture
def faults() -> Faults:
    """How the database is made to fail. conftest.py may override this fixture."""
    return Faults()


@pytest.fixture
def another_database() -> dict[str, Any]:
    """Keys of STORAGE_CONFIG of another empty database on the server.

    conftest.py may override this fixture.
    """
    pytest.skip("tests/conftest.py knows no other database on the server (`another_database`)")


@pytest.fixture
def first_release() -> None:
    """What the first release of this plugin stored. conftest.py may override this fixture.

    It stores AS_IT_WAS under each of FIRST_KEYS, without the plugin.
    """
    pytest.skip("tests/conftest.py does not say what the first release stored (`first_release`)")


@pytest.fixture
def faults_if_any(request: pytest.FixtureRequest) -> Faults:
    """How the database is made to fail, for tests that are useful even without it."""
    if CONFIGURED in request.config.stash:
        return Faults()
    faults: Faults = request.getfixturevalue("faults")
    return faults


@pytest.fixture
def other_processes(database: Database, request: pytest.FixtureRequest) -> None:
    """Skip a test that needs other processes if the data are lost with their process."""
    if database.notes:
        probe = run_command(process_command(database, "probe", "write-and-close"))
        # The test itself reports a process that fails.
        outlive = bool(probe.returncode or database.open("probe").len())
    else:
        outlive = request.getfixturevalue("outlives_process")
    if not outlive:
        pytest.skip("the data of this database are lost when their process ends")


@pytest.fixture(autouse=True)
def log_lines(pytestconfig: pytest.Config) -> Iterator[list[str]]:
    """Everything that is logged during a test, at DEBUG. No value may ever appear in it.

    If one does, it is reported once.
    """
    recorder, root = Recorder(), logging.getLogger()
    root.addHandler(recorder)
    yield recorder.lines
    root.removeHandler(recorder)
    told = [line for line in recorder.lines if shows(line, MARK)]
    if told and TOLD not in pytestconfig.stash:
        pytestconfig.stash[TOLD] = True
        pytest.fail(f"{LOGGED} Log names, never values: {told[0]:.200}")


@pytest.fixture
def storage(database: Database) -> StorageBase:
    """One open and empty namespace."""
    return database.open()


@pytest.fixture
def switch_often() -> Iterator[None]:
    """Let threads take turns as often as possible, so that they collide."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
