"""Run tests of one project many times, each time in a fork of a pytest that has collected them.

Starting Python, importing Errbot and collecting the tests takes longer than most of the tests.
`Forking` does this once. It starts pytest with this file as a plugin, which waits after the
collection, and forks for each request. In the child, pytest runs the tests as usual.
"""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

import pytest

FOLDER = "FORKING_PYTEST"
"""The environment variable with the folder for output, and the pipes to read and write."""
OUTPUT, OUTCOMES, TEMPORARY = "output.txt", "outcomes.json", "temporary"
TIMEOUT = 300.0
"""Seconds that the tests of one request may take."""


class Result(NamedTuple):
    """The names of the test functions by outcome."""

    passed: set[str]
    failed: set[str]
    output: str


class Forking:
    """A pytest that has collected a project's tests, and runs some of them on request."""

    def __init__(self, project: Path, folder: Path) -> None:
        self._folder = folder
        requests, replies = os.pipe(), os.pipe()
        paths = [str(Path(__file__).parent), str(project / "tests")]
        with (folder / OUTPUT).open("ab") as output:
            self._pytest = subprocess.Popen(
                [
                    *[sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "forking_pytest"],
                    *["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist"],
                    *["-p", "no:cookies", f"--basetemp={folder / TEMPORARY}", "-m", ""],
                ],
                cwd=project,
                env={
                    **os.environ,
                    FOLDER: json.dumps([str(folder), requests[0], replies[1]]),
                    "PYTHONPATH": os.pathsep.join(paths),
                    "CI": "true",  # so that pytest shows differences in full, which must be fast
                },
                stdout=output,
                stderr=output,
                pass_fds=[requests[0], replies[1]],
            )
        os.close(requests[0])
        os.close(replies[1])
        self._requests = os.fdopen(requests[1], "w")
        self._replies = os.fdopen(replies[0])

    def run(
        self,
        tests: Iterable[str],
        thorough: bool = False,
        time_limit: float = 12,
        **environment: str,
    ) -> Result:
        """Run these test functions in a fork with more environment variables.

        Each test may take `time_limit` seconds. Tests that take minutes run only if `thorough` is
        true.
        """
        output = self._folder / OUTPUT
        start = output.stat().st_size
        outcomes = self._folder / OUTCOMES
        outcomes.unlink(missing_ok=True)
        with suppress(BrokenPipeError):  # pytest has ended, and its output says why.
            request = [sorted(tests), thorough, time_limit, environment]
            print(json.dumps(request), file=self._requests, flush=True)
        reply = self._replies.readline()
        printed = output.read_bytes()[start:].decode(errors="replace")[-20_000:]
        assert reply == "done\n", f"pytest failed: {reply}\n{printed}"
        assert outcomes.exists(), f"The tests ended before the last one:\n{printed}"
        passed, failed = json.loads(outcomes.read_text())
        return Result(set(passed), set(failed), printed)

    def end(self) -> None:
        """End pytest."""
        with suppress(BrokenPipeError):
            self._requests.close()
        self._replies.close()
        self._pytest.wait(TIMEOUT)


class Outcomes:
    """In the child: records the outcomes of the tests, and writes them to a file at the end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._passed: set[str] = set()
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record one phase of one test."""
        if report.failed or (report.passed and report.when == "call"):
            function = report.location[2].partition("[")[0]
            (self._failed if report.failed else self._passed).add(function)

    def pytest_unconfigure(self) -> None:
        """Write which functions passed with all their parameters, and which failed."""
        outcomes = [sorted(self._passed - self._failed), sorted(self._failed)]
        self._file.write_text(json.dumps(outcomes))


def await_end(pid: int) -> str:
    """Wait until a child has ended, and return how. After TIMEOUT, kill its process group."""
    deadline = monotonic() + TIMEOUT
    while monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return "done" if code in (0, 1) else f"it ended with {code}"
        sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return f"it did not end within {TIMEOUT:.0f} s"


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Fork for each request. The child runs the requested tests; the parent runs none."""
    name, asked, answered = json.loads(os.environ.pop(FOLDER))
    folder, environment = Path(name), dict(os.environ)
    gc.freeze()  # Each collection of garbage would copy the parent's memory into the child.
    with os.fdopen(asked) as requests, os.fdopen(answered, "w") as replies:
        for request in requests:
            tests, thorough, time_limit, added = json.loads(request)
            os.environ.update(added)
            pid = os.fork()
            if not pid:
                os.setpgid(0, 0)
                session.config.option.time_limit = time_limit
                session.config.pluginmanager.register(Outcomes(folder / OUTCOMES))
                functions = (item for item in session.items if isinstance(item, pytest.Function))
                session.items = [
                    item
                    for item in functions
                    if item.originalname in tests
                    if thorough or not item.get_closest_marker("thorough")
                ]
                return None
            os.environ.clear()
            os.environ.update(environment)
            print(await_end(pid), file=replies, flush=True)
    return True
