"""The database under test, accessed as Errbot and other processes do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from errbot.storage import StoreMixin
from errbot.storage.base import StorageBase, StoragePluginBase

from contract.support.deadlines import deadline
from contract.support.loading import load_plugin
from contract.support.outcomes import refusal
from contract.support.sample_values import MARK
from contract.support.throwaway import PREFIX, Notes

SECOND_PROCESS = Path(__file__).with_name("second_process.py")
EXAMPLE = "contract"
OPENING = 30
"""Seconds that opening a namespace may take while others are open."""
PROCESS = 60
"""Seconds that another process may take."""
LONG = 200
"""Characters of a long name. Storages may limit names to 250."""


class Database:
    """The database under test, accessed as Errbot does: through the storage plugin of a config."""

    def __init__(
        self, config: Any, config_file: Path, notes: Notes | None = None, mark: str = ""
    ) -> None:
        self.config = config
        self.config_file = config_file
        """The same configuration as a file, for `errbot -c` and for other processes."""
        self.notes = notes
        """Notes of what the tests set in a database that is in use."""
        self._mark = mark
        """Part of all the tests' namespaces in that database. Empty in a test's own database."""
        self._plugin: StoragePluginBase | None = None
        self._opened: list[StorageBase] = []

    def namespace(self, name: str) -> str:
        """Return the throwaway namespace for a name.

        A name that looks like a path also ends with the mark, because `b/../a` may lead to
        another's `a`. Long names lose some of their middle.
        """
        if not self._mark:
            return name
        prefix = f"{PREFIX}{self._mark} "
        if "/" in name or "\\" in name:
            return f"{prefix}{name} {self._mark}"
        middle = len(prefix) if len(name) >= LONG else 0
        return prefix + name[:50] + name[50 + middle :]

    def plugin(self) -> StoragePluginBase:
        """Load the storage plugin again, as a bot does when it starts."""
        return load_plugin(self.config, self.notes)

    def open(self, name: str = EXAMPLE, plugin: StoragePluginBase | None = None) -> StorageBase:
        """Open a throwaway namespace, by default with one plugin instance for the whole test."""
        if plugin is None:
            plugin = self._plugin = self._plugin or self.plugin()
        with deadline(OPENING, "`open` hangs while another has the database open."):
            storage = plugin.open(self.namespace(name))
        self._opened.append(storage)
        return storage

    def open_twice(self, name: str = "namespace") -> tuple[StorageBase, StorageBase]:
        """Open a namespace with two plugin instances.

        Skips the test if one does not see what the other sets, which another test reports.
        """
        one, other = (self.open(name, self.plugin()) for _ in range(2))
        one.set("key", MARK)
        if refusal(other.get, "key"):
            pytest.skip("a second opener of a namespace does not see what the first one sets")
        one.remove("key")
        return one, other

    def mapping(self, name: str = EXAMPLE) -> StoreMixin:
        """Open a throwaway namespace as plugins see it: as a mapping."""
        mapping = StoreMixin()
        self._plugin = self._plugin or self.plugin()
        mapping.open_storage(self._plugin, self.namespace(name))
        self._opened.append(cast(StorageBase, mapping._store))
        return mapping

    def close(self, storage: StorageBase) -> None:
        """Close a storage once, as Errbot does."""
        self._opened.remove(storage)
        storage.close()

    def note(self, name: str, *keys: str) -> None:
        """Record what a process is going to set, because it does not record this itself."""
        if self.notes:
            if not self.notes.knows(self.namespace(name)):
                self.close(self.open(name))
            self.notes.add(self.namespace(name), *keys)

    def close_all(self) -> None:
        """Close everything that the test left open, before raising the first error."""
        with ExitStack() as stack:
            while self._opened:
                stack.callback(self._opened.pop().close)


def open_files() -> int:
    """Return how many files and connections this process has open. Not available on Windows."""
    return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))


def process_command(database: Database, name: str, task: str) -> list[str]:
    """Return the command that runs a task of second_process.py on a throwaway namespace."""
    database.note(name)
    notes = str(database.notes.path) if database.notes else ""
    words = [str(database.config_file), notes, database.namespace(name), task]
    return [sys.executable, str(SECOND_PROCESS), *words]


def run_command(
    command: list[str],
    given: str = "",
    folder: Path | None = None,
    environment: dict[str, str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a command. If it does not end in time, fail with an explanation."""
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(
            command,
            input=given,
            capture_output=True,
            encoding="utf-8",
            timeout=PROCESS,
            cwd=folder,
            env=environment,
        )
    pytest.fail(
        f"Another process on the same database is too slow, or hangs. It has not ended after"
        f" {PROCESS} seconds: `{' '.join(command[-2:])}`. It may wait for a lock that the bot holds"
        " all the time, or for a non-daemon thread."
    )


@contextmanager
def running_process(command: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """Run a command, and kill it if it is still running at the end of the block."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8"
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def await_line(process: "subprocess.Popen[str]") -> str:
    """Return the next line that a process prints. Fails with its error if it ends instead."""
    assert process.stdout
    assert process.stderr
    with deadline(PROCESS, "One of several processes on the database is too slow, or hangs."):
        line = process.stdout.readline()
    if not line:
        why = reason(process.stderr.read())
        pytest.fail(f"Several processes cannot use the database at once: {why}")
    return line


def let_work(processes: "list[subprocess.Popen[str]]", turns: int) -> list[str]:
    """Let processes that wait work at the same moment, and return what each then says."""
    for process in processes:
        await_line(process)
    for number, process in enumerate(processes):
        assert process.stdin
        process.stdin.write(f"{number} {turns}\n")
        process.stdin.flush()
    return [await_line(process) for process in processes]


def run_process(database: Database, name: str, task: str) -> str:
    """Run a task of second_process.py in another process, and return its output."""
    command = process_command(database, name, task)
    done = run_command(command)
    assert not done.returncode, f"A second process fails on the database: {reason(done.stderr)}"
    return done.stdout.strip()


def reason(stderr: str) -> str:
    """Return the error output of a process, the error itself first."""
    lines = stderr.strip().splitlines() or ["it says nothing"]
    return "\n".join([lines[-1], *lines])
