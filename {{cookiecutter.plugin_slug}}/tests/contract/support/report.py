"""The result of a run in plain words: which promises of the contract a storage keeps."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pytest

CONTRACT = Path(__file__).parent.parent
OPERATIONS = ["open", "get", "set", "remove", "len", "keys", "close"]
LOGGED = "A value appears in the log."
SLOW = " is too slow, or hangs."
FAST = "No operation is too slow, or hangs."
CLOSED = "A storage can be closed, whatever came before."
WORKS = "A storage works, whatever came before."
ENDLESS = "its test has not ended in time"
HARMED = "the storage did not work any more after other tests"
LOGGED_PROMISE = "No value appears in the log or in the output."


@dataclass
class Promise:
    """The results of a contract test, for all the names and values that it tried."""

    words: str
    """The docstring of the test."""
    test: str
    kept: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)
    """The messages of failing runs, each with its names or values."""
    skipped: str = ""
    """Why the promise was not tested."""

    def told(self) -> Iterator[str]:
        """Return how the promise is broken, once for all names and values with the same message."""
        for said, names in self.faults.items():
            shown = ", ".join(islice(names, 5)) + f" and {len(names) - 5} more" * (len(names) > 5)
            yield said + f" ({shown})" * bool(names)


class Promises:
    """All results of a run."""

    def __init__(self) -> None:
        self._promises: dict[str, Promise] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the result of one phase of a contract test."""
        if words := vars(report).get("promise"):
            self._note(report, words)

    def _note(self, report: pytest.TestReport, words: str) -> None:
        """Record a result. `words` is the test's docstring."""
        node, _, parameter = report.nodeid.partition("[")
        test = node.rpartition("::")[2]
        said = said_by(report).removeprefix(f"{words} ")
        if report.failed and said.startswith(LOGGED):  # whichever test found it
            test, parameter, words = "test_no_value_stands_in_the_log", "", LOGGED_PROMISE
        elif report.failed and said.startswith(CLOSED):
            test, words = "close, after a test", CLOSED
            said = said.removeprefix(f"{CLOSED} ")
        elif report.failed and said.startswith(WORKS):
            self._promises.setdefault(test, Promise(words, test)).skipped = HARMED
            test, words = "open, after a test", WORKS
            said = said.removeprefix(f"{WORKS} ")
        elif report.failed and SLOW in said:
            self._promises.setdefault(test, Promise(words, test)).skipped = ENDLESS
            test, parameter, words = "--time-limit", "", FAST
        promise = self._promises.setdefault(test, Promise(words, test))
        if report.failed:
            names = promise.faults.setdefault(said, [])
            names += [parameter.removesuffix("]")] if parameter else []
        elif report.skipped:
            promise.skipped = said
        else:
            promise.kept += report.when == "call"

    def broken(self) -> list[Promise]:
        """Return the promises that are broken."""
        return [promise for promise in self._promises.values() if promise.faults]

    def kept(self) -> list[Promise]:
        """Return the promises that are kept."""
        return [
            promise for promise in self._promises.values() if promise.kept and not promise.faults
        ]

    def untested(self) -> list[Promise]:
        """Return the promises that were not tested."""
        return [
            promise
            for promise in self._promises.values()
            if not promise.kept and not promise.faults
        ]

    def summary(self) -> str:
        """Return in one sentence how many promises are kept."""
        kept, broken, untested = map(len, [self.kept(), self.broken(), self.untested()])
        return f"The storage keeps {kept} promises, breaks {broken}; {untested} were not tested."

    def page(self, storage: str, stopped: str) -> str:
        """Return the whole report as Markdown."""
        lines = [f"# What {storage} keeps of the contract of Errbot", "", self.summary()]
        lines += ["", f"The run stopped early: {stopped}."] * bool(stopped)
        lines += ["", "## Broken", ""] * bool(self.broken())
        for promise in self.broken():
            lines += [f"- **{promise.words}** (`{promise.test}`)"]
            lines += [f"  - {told}" for told in promise.told()]
        lines += ["", "## Not tested", ""] * bool(self.untested())
        lines += [f"- {promise.words} Because {promise.skipped}." for promise in self.untested()]
        lines += ["", "## Kept", ""] * bool(self.kept())
        lines += [f"- {promise.words}" for promise in self.kept()]
        return "\n".join(lines) + "\n"


def explain(
    report: pytest.TestReport, caught: pytest.ExceptionInfo[BaseException], words: str
) -> None:
    """Let the report of an error that the test did not raise itself name the broken promise."""
    crash = getattr(report.longrepr, "reprcrash", None)
    operation = raised_by(caught)
    own = isinstance(caught.value, (AssertionError, pytest.fail.Exception)) and not operation
    if crash is None or own:
        return
    if operation == "close":
        words = CLOSED
    raised = f"`{operation}` raised " if operation else "it ended with "
    text = " ".join(str(caught.value).split())
    crash.message = f"{words} Here {raised}{type(caught.value).__name__}: {text:.300}"
    report.sections.append(("the promise", crash.message))


def raised_by(caught: pytest.ExceptionInfo[BaseException]) -> str:
    """Return the storage operation that has raised an error, or "" if none has."""
    names = [
        "" if CONTRACT in Path(entry.path).parents else entry.name for entry in caught.traceback
    ]
    last = max((number for number, name in enumerate(names) if not name), default=-1)
    return next((name for name in names[last + 1 :] if name in OPERATIONS), "")


def said_by(report: pytest.TestReport) -> str:
    """Return the message of a test that failed or was skipped, without pytest's additions."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash:
        said = crash.message
    else:
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    said = said.partition("\nassert ")[0]
    for prefix in ["AssertionError: ", "Failed: ", "Skipped: "]:
        said = said.removeprefix(prefix)
    said = " ".join(said.split())
    return said if len(said) < 500 else f"{said[:500]} ..."
