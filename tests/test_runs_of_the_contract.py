"""A run of the contract ends, whatever the storage does, and says why."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_cookies.plugin import Cookies
from servers.base import free_port

Run = Callable[..., tuple[int, str]]
"""Runs tests of a bake, and returns pytest's exit status and output."""


@pytest.fixture
def project(cookies_session: Cookies, tmp_path: Path, database: str) -> Path:
    """A bake for a database. Tests may break its storage."""
    baked = cookies_session.bake(extra_context={"database": database})
    assert baked.exception is None, baked.exception
    return Path(shutil.copytree(baked.project_path, tmp_path / "project"))


@pytest.fixture
def run_tests(project: Path) -> Run:
    """Runs tests of the bake, after breaking its storage with some code."""

    def run_tests(code: str, *options: object, **environment: str) -> tuple[int, str]:
        with next(project.glob("src/*/storage.py")).open("a", encoding="utf-8") as source:
            source.write(code)
        plugins = [f"-pno:{name}" for name in ["cacheprovider", "cookies"]]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--tb=line", *plugins, *map(str, options)],
            cwd=project,
            env=os.environ | {"PYTHONPATH": str(project / "tests")} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
        )
        return done.returncode, done.stdout

    return run_tests


@pytest.mark.parametrize(
    ("database", "url"),
    [
        ("sql", "postgresql://bot:hunter2-s3cret@127.0.0.1:{}/bot"),
        ("redis", "redis://:hunter2-s3cret@127.0.0.1:{}/0"),
    ],
)
def test_an_unreachable_server_ends_the_run_with_one_sentence(run_tests: Run, url: str) -> None:
    test = "tests/contract/test_keys.py"
    status, output = run_tests("", test, STORAGE_TEST_URL=url.format(free_port()))
    assert status == 1, output
    assert len(output.strip().splitlines()) < 5, output
    assert re.search(r"cannot be tested: .* fails before any test: .*refused", output), output
    assert "hunter2" not in output


def configured(folder: Path) -> Path:
    """Write a config.py that names the storage of the bake in a folder."""
    config = folder / "config.py"
    config.write_text(
        f"STORAGE = 'Acme'\nBOT_DATA_DIR = {str(folder)!r}\n"
        f"BOT_EXTRA_STORAGE_PLUGINS_DIR = {str(folder / 'project' / 'src')!r}\n"
    )
    return config


PATCH = """
import itertools
import threading

_load, _get, _set = AcmePlugin.__init__, AcmeStorage.get, AcmeStorage.set
_keys, _open, _remove = AcmeStorage.keys, AcmePlugin.open, AcmeStorage.remove


def wait():
    threading.Event().wait()


"""
SLOW = pytest.mark.slow
NEVER_ENDS = {
    "threads at once": (
        "test_threads.py::test_threads_with_keys_of_their_own_lose_nothing",
        """
AcmeStorage.set = lambda self, key, value: wait() if key == "3 0" else _set(self, key, value)
""",
        "Commands at the same time hang: ",
    ),
    "a second opener": (
        "test_lifecycle.py::test_a_removal_is_done_when_it_returns",
        """
import sys

AcmePlugin.open = lambda self, namespace: (
    wait()
    if namespace == "namespace" and vars(sys).setdefault("opener", self) is not self
    else _open(self, namespace)
)
""",
        "`open` hangs while another",
    ),
    "clear": (
        "test_mapping.py::test_clear_empties_the_namespace",
        """
AcmeStorage.remove = lambda self, key: None
""",
        "self.clear() never ends",
    ),
    "a backup": (
        "test_bot.py",
        """
AcmeStorage.keys = lambda self: itertools.cycle(list(_keys(self)))
""",
        "Errbot's !backup failed",
    ),
    "another process": (
        "test_processes.py::test_data_outlive_the_process_that_set_them",
        """
import sys

AcmeStorage.set = lambda self, key, value: (
    wait() if sys.argv[-1] == "write" else _set(self, key, value)
)
""",
        "Another process on the same database is too slow, or hangs.",
    ),
    "a process that reports": (
        "test_processes.py::test_a_killed_process_has_lost_no_set_that_returned",
        """
AcmeStorage.set = lambda self, key, value: wait() if key == "9" else _set(self, key, value)
""",
        "Another process that sets 197 keys is too slow, or hangs.",
    ),
    "any test": (
        "test_values.py::test_a_value_that_holds_itself_comes_back",
        """
AcmeStorage.get = lambda self, key: wait() if key == "key" else _get(self, key)
""",
        "test_a_value_that_holds_itself_comes_back is too slow, or hangs",
    ),
    "a test whose first interrupt is lost": (
        "test_values.py::test_a_value_that_holds_itself_comes_back",
        """
def forgive():
    try:
        wait()
    except BaseException:
        wait()


AcmeStorage.get = lambda self, key: forgive() if key == "key" else _get(self, key)
""",
        "test_a_value_that_holds_itself_comes_back is too slow, or hangs",
    ),
    "a test that no signal interrupts": (
        "test_values.py::test_a_value_that_holds_itself_comes_back",
        """
import signal


def wait():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    threading.Event().wait()


AcmeStorage.get = lambda self, key: wait() if key == "key" else _get(self, key)
""",
        "and no signal interrupts it",
    ),
    "a test that lets no other thread run": (
        "test_values.py::test_a_value_that_holds_itself_comes_back",
        """
from collections import deque
from itertools import count


AcmeStorage.get = lambda self, key: (
    deque(count(), maxlen=0) if key == "key" else _get(self, key)
)
""",
        "Timeout (0:",
    ),
    "the end of pytest": (
        "test_basics.py::test_errbot_finds_the_storage_plugin",
        """
AcmePlugin.open = lambda self, namespace: (
    threading.Thread(target=wait, name="writer").start() or _open(self, namespace)
)
""",
        "The storage has left threads that never end, so a bot could not stop",
    ),
    "the first use": (
        "test_basics.py",
        """
AcmePlugin.__init__ = lambda self, config: wait()
""",
        "cannot be tested: loading it fails before any test: it has not come back",
    ),
}
"""Storages that hang, by where they do: the tests to run, the code, and the message to expect."""


@pytest.mark.parametrize("database", ["sqlite"])
@pytest.mark.parametrize(
    ("tests", "code", "said"),
    [
        pytest.param(*case, id=place, marks=[] if place in ["any test", "the first use"] else SLOW)
        for place, case in NEVER_ENDS.items()
    ],
)
def test_a_storage_that_waits_for_ever_ends_the_run_with_an_explanation(
    project: Path, run_tests: Run, tests: str, code: str, said: str
) -> None:
    for file in ["database.py", "deadlines.py", "first_try.py"]:
        path = project / "tests" / "contract" / "support" / file
        seconds = r"^(OPENING|PROCESS|AT_ONCE|GRACE|SECONDS) = \d+$"
        path.write_text(re.sub(seconds, r"\1 = 3", path.read_text(), flags=re.MULTILINE))
    mapping = project / "tests" / "contract" / "test_mapping.py"
    mapping.write_text(mapping.read_text().replace("deadline(100", "deadline(3"))
    status, output = run_tests(PATCH + code, f"tests/contract/{tests}", "--time-limit=7")
    assert status == 1, output
    assert said in output
    assert "TimeoutExpired" not in output


LOGS = """
_set = AcmeStorage.set
AcmeStorage.set = lambda self, key, value: (
    logging.getLogger("acme").error("%s = %r", key, value), _set(self, key, value)
)[1]
"""


@pytest.mark.parametrize("database", ["sqlite"])
def test_values_in_the_log_are_reported_once(run_tests: Run) -> None:
    code = f"import logging\n{LOGS}"
    status, output = run_tests(
        code, "tests/contract/test_mapping.py", "tests/contract/test_basics.py"
    )
    assert status == 1, output
    assert len(re.findall("^ERROR tests/", output, re.MULTILINE)) == 1, output
    assert "A value appears in the log" in output


@pytest.mark.parametrize("database", ["sqlite"])
def test_the_report_lists_kept_and_broken_promises(run_tests: Run, tmp_path: Path) -> None:
    code = f"""
import logging
{LOGS}
_remove = AcmeStorage.remove
AcmeStorage.remove = lambda self, key: _remove(self, key.strip())
"""
    config = configured(tmp_path)
    page = tmp_path / "report.md"
    options = [f"--errbot-config={config}", f"--contract-report={page}", "-k", "alike or getting"]
    status, output = run_tests(code, *options, "tests/contract/test_keys.py")
    assert status == 1, output
    text = page.read_text()
    broken, _, kept = text.partition("## Kept")
    assert text.startswith("# What Acme keeps of the contract of Errbot\n"), text
    assert "- **Keys that look alike are distinguished exactly.**" in broken
    assert "(spaces around" in broken
    assert "- **No value appears in the log or in the output.**" in broken
    assert kept.strip() == "- `get` of a missing key raises `KeyError`, and changes nothing."
    assert "The storage keeps 1 promises, breaks 2; 0 were not tested." in text
    assert "Broken: Keys that look alike are distinguished exactly." in output


@pytest.mark.parametrize("database", ["dict"])
def test_processes_at_once_report_what_one_process_does(run_tests: Run, tmp_path: Path) -> None:
    files = [f"tests/contract/test_{name}.py" for name in ["keys", "lifecycle", "mapping"]]
    code = """
_remove = AcmeStorage.remove
AcmeStorage.remove = lambda self, key: _remove(self, key.strip())
"""
    run_tests(code, *files, "--collect-only")
    reports = []
    for number in [0, 2]:
        page = tmp_path / f"{number}.md"
        status, output = run_tests("", *files, f"-n{number}", f"--contract-report={page}")
        assert status == 1, output
        reports.append(sorted(page.read_text().splitlines()))
    assert reports[0] == reports[1]
    assert "## Not tested" in reports[0]


@pytest.mark.parametrize("database", ["dict"])
def test_processes_at_once_end_if_the_storage_cannot_be_tested(run_tests: Run) -> None:
    code = "\nAcmeStorage.get = lambda self, key: self.missing\n"
    status, output = run_tests(code, "-n2", "tests/contract/test_keys.py")
    assert status != 0, output
    assert "The storage cannot be tested: `get` fails before any test: AttributeError" in output
    assert "passed" not in output


@pytest.mark.parametrize("database", ["dict"])
def test_a_configured_storage_is_tested_by_one_process(run_tests: Run, tmp_path: Path) -> None:
    status, output = run_tests("", f"--errbot-config={configured(tmp_path)}", "-n2")
    assert status == pytest.ExitCode.USAGE_ERROR, output
    assert "--errbot-config: run the tests in one process, without -n" in output


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_configuration_may_have_no_storage_config(run_tests: Run, tmp_path: Path) -> None:
    options = [f"--errbot-config={configured(tmp_path)}", "-k", "symbolic_link or on_one_host"]
    status, output = run_tests("", *options)
    assert status == 0, output
    assert "1 passed, 1 skipped" in output


@pytest.mark.parametrize("database", ["sqlite"])
def test_an_error_of_the_storage_is_reported_with_the_broken_promise(run_tests: Run) -> None:
    code = """
_get = AcmeStorage.get


def get(self, key):
    if key == "after":
        raise OSError("the disk is away")
    return _get(self, key)


AcmeStorage.get = get
"""
    test = "tests/contract/test_keys.py::test_a_loop_over_the_keys_can_be_left"
    status, output = run_tests(code, test, "--tb=short", CI="true")
    assert status == 1, output
    told = "A loop over the keys can be left early. Here `get` raised OSError: the disk is away"
    assert output.count(told) == 2, output  # with the traceback, and in the summary


@pytest.mark.parametrize("database", ["sqlite"])
def test_an_error_that_the_command_line_hides_is_reported(run_tests: Run) -> None:
    code = """
import sys


def _open(self, namespace, open=AcmePlugin.open):
    if sys.argv[0].endswith(("cli.py", "second_process.py")):
        raise OSError("another process has locked the file")
    return open(self, namespace)


AcmePlugin.open = _open
"""
    status, output = run_tests(
        code, "tests/contract/test_command_line.py", "-k", "empty_dict", CI="true"
    )
    assert status == 1, output
    assert "`errbot --storage-get` fails with OSError: another process has locked" in output


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_quick_run_uses_hundreds_of_keys_instead_of_thousands(run_tests: Run) -> None:
    code = """
import atexit
import itertools

_set, _sets = AcmeStorage.set, itertools.count()
AcmeStorage.set = lambda self, key, value: (next(_sets), _set(self, key, value))[1]
atexit.register(lambda: print("sets:", next(_sets)))
"""
    test = "tests/contract/test_keys.py::test_keys_gives_thousands_of_keys_once_each"
    status, output = run_tests(code, test, "--quick")
    assert status == 0, output
    sets = [int(number) for number in re.findall(r"sets: (\d+)", output)]
    assert 500 < sum(sets) < 1_000, output


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_slow_test_says_how_much_it_did(run_tests: Run, tmp_path: Path) -> None:
    code = """
import time

_set = AcmeStorage.set
AcmeStorage.set = lambda self, key, value: (time.sleep(0.01), _set(self, key, value))[1]
"""
    config = configured(tmp_path)
    test = "tests/contract/test_keys.py::test_keys_gives_thousands_of_keys_once_each"
    page = tmp_path / "report.md"
    options = [f"--errbot-config={config}", f"--contract-report={page}", "--time-limit=2"]
    status, output = run_tests(code, test, *options)
    assert status == 1, output
    assert "`len` counts them. Because its test has not ended in time." in page.read_text()
    assert re.search(
        r"--quick asks for less\. .* after 2 seconds, in which it set \d+ keys", output
    )


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_storage_that_ignores_missing_keys_is_not_said_to_mix_up_namespaces(
    run_tests: Run, tmp_path: Path
) -> None:
    code = """
from contextlib import suppress

_remove = AcmeStorage.remove


def remove(self, key):
    with suppress(KeyError):
        _remove(self, key)


AcmeStorage.remove = remove
"""
    config = configured(tmp_path)
    options = [f"--errbot-config={config}", "-k", "missing or another_namespace or remove_one_key"]
    status, output = run_tests(code, "tests/contract", *options)
    assert status == 1, output
    assert re.findall("^FAILED .*::(test_[a-z_]+)", output, re.MULTILINE) == [
        "test_removing_a_missing_key_raises_key_error"
    ], output


@pytest.mark.parametrize("database", ["sqlite"])
def test_what_an_earlier_test_has_broken_is_not_the_fault_of_the_next(
    run_tests: Run, tmp_path: Path
) -> None:
    code = """
import gc
import sqlite3
from contextlib import suppress


def close(self):
    if self._namespace.endswith("contract"):
        gc.disable()
        connection = sqlite3.connect(self._run.__self__._path, timeout=0)
        with suppress(sqlite3.OperationalError):
            connection.execute("BEGIN IMMEDIATE")
        cycle = [connection]
        cycle.append(cycle)  # Only a call of `gc.collect` frees the lock.


AcmeStorage.close = close
"""
    config = configured(tmp_path)
    with config.open("a") as file:
        file.write("STORAGE_CONFIG = {'timeout': 0.1}\n")
    page = tmp_path / "report.md"
    options = [
        f"--errbot-config={config}",
        f"--contract-report={page}",
        "-k",
        "getting or removing",
    ]
    status, output = run_tests(code, *options, "tests/contract/test_keys.py")
    assert status == 1, output
    assert re.findall("^(?:FAILED|ERROR) .*::(test_[a-z_]+)", output, re.MULTILINE) == [
        "test_removing_a_missing_key_raises_key_error"
    ]
    text = page.read_text()
    assert "The storage keeps 1 promises, breaks 1; 1 were not tested." in text
    assert "- **A storage works, whatever came before.** (`open, after a test`)" in text
    assert "After other tests, `set` fails: StoreException: " in text
    assert "Because the storage did not work any more after other tests." in text
