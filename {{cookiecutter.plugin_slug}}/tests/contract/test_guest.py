"""A storage is a guest in the bot's process: it leaves what belongs to others alone."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from contract.support.database import (
    PROCESS,
    Database,
    process_command,
    reason,
    run_command,
    run_process,
    running_process,
)
from contract.support.deadlines import deadline
from contract.support.guest import use
from contract.support.outcomes import same
from contract.support.sample_values import MARK

WAKES, BUSY = 50, 0.5
"""How often threads may wake up in a second of rest, and for how many seconds they may work."""
GRACE = 10
"""Seconds after which Docker kills a container that it has told to stop."""

on_unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows does not count wake-ups")


def test_a_storage_changes_nothing_of_its_process(
    database: Database, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading, opening and using a storage changes nothing of its process."""
    for name in os.environ.keys() - environment.keys():
        monkeypatch.delenv(name)
    if not database.notes:  # Secrets of a bot that is in use stay where they are.
        for key, value in database.config.STORAGE_CONFIG.items():
            if isinstance(value, str):  # A config.py may read it there, again after `!restart`.
                monkeypatch.setenv(f"CONTRACT_{key}", value)
    changed = json.loads(run_process(database, "guest", "visit").splitlines()[-1])
    assert not changed, (
        f"The storage changes what belongs to the bot and all its plugins: {', '.join(changed)}."
        " Set options only on the database's client, and restore what you have to change."
    )


def test_a_storage_changes_nothing_of_the_configuration(database: Database) -> None:
    """Loading, opening and using a storage changes nothing of the bot's configuration."""

    def settings() -> dict[str, str]:
        return {key: repr(value) for key, value in vars(database.config).items() if key.isupper()}

    before = settings()
    storage = database.open("namespace", database.plugin())
    use(storage)
    database.close(storage)
    after = settings()
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    assert not changed, (
        f"The storage changes the bot's {', '.join(changed)}, so it finds other settings when it is"
        " loaded again, as do plugins. Change a copy."
    )


@contextmanager
def used(database: Database, task: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run a process that has used a storage in this task, and the line that it prints."""
    with running_process(process_command(database, "namespace", task)) as process:
        assert process.stdout is not None
        with deadline(PROCESS, "Another process that uses the storage is too slow, or hangs."):
            line = next((line for line in process.stdout if line.startswith("[")), "")
            errors = "" if line or process.stderr is None else process.stderr.read()
        assert line, f"Another process that uses the storage fails: {reason(errors)}"
        yield process, line


@on_unix
def test_a_storage_that_nobody_uses_does_nothing(database: Database) -> None:
    """While nobody uses a storage, its threads sleep."""
    with used(database, "rest") as (_, line):
        woken, busy = json.loads(line)
    sleeps = woken < WAKES and busy < BUSY
    assert sleeps, (
        f"In one second in which nobody used the storage, its threads woke up {woken} times, and"
        f" needed the processor for {busy:.2f} seconds. Wait for events, do not look for them."
    )


@on_unix
def test_python_ends_soon_after_a_storage_was_used(database: Database) -> None:
    """Python ends soon after a storage was used, so nobody kills a bot that stops."""
    with used(database, "use") as (process, _):
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            pytest.fail(
                f"A bot that stops has not ended {GRACE} seconds after `close`. Docker kills it"
                " then, and `errbot --storage-get` makes people wait. A timer, or a thread that is"
                " no daemon, keeps Python from ending: stop it in `close`, or make it a daemon."
            )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_bot_that_is_told_to_end_in_a_set_ends(database: Database) -> None:
    """SIGTERM ends a bot, even in the middle of a `set`."""
    told = run_process(database, "namespace", "be-terminated").splitlines()
    assert not told, (
        f"A bot got SIGTERM in the middle of a `set`, and went on ({', '.join(told)}). `systemctl"
        " stop` waits for it and then kills it. If you delay signals, send them again afterwards:"
        " a handler may be signal.SIG_DFL, which nobody can call."
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no groups of processes")
def test_plugins_can_store_what_they_have_when_ctrl_c_ends_a_bot(database: Database) -> None:
    """After Ctrl-C in a terminal, plugins can still store what they have."""
    printed = run_process(database, "namespace", "be-interrupted")
    assert same(printed, str([("after", [MARK]), ("before", MARK)])), (
        f"After Ctrl-C, a bot deactivates its plugins, and one that still stores something gets"
        f" {printed[:200]}. A terminal sends Ctrl-C to all processes of its group. Let a process"
        " that the storage starts ignore it, or start it with `start_new_session=True`."
    )


def test_a_storage_prints_nothing(database: Database, capfd: pytest.CaptureFixture[str]) -> None:
    """Loading, opening and using a storage prints nothing, even when Python ends."""
    storage = database.open("namespace", database.plugin())
    use(storage)
    database.close(storage)
    printed = "".join(capfd.readouterr())
    for task in ["write", "write-and-close"]:  # by a process that ends without or with `close`
        process = run_command(process_command(database, "namespace", task))
        if "Exception ignored" in process.stderr:  # not only warnings, for which nothing is set up
            printed += process.stderr
    assert not printed, (
        f"The storage prints {printed[:200]!r}. This appears on a bot's screen, and in the output"
        " of `errbot --storage-get`. Use `logging`, or print nothing."
    )
