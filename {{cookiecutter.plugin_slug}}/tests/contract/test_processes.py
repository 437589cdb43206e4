"""Other processes open the database of a running bot, and a bot may be killed."""

import ast
import random
import subprocess
from contextlib import ExitStack
from time import sleep

import pytest

from contract.support.amounts import many
from contract.support.database import (
    PROCESS,
    Database,
    process_command,
    reason,
    run_process,
    running,
)
from contract.support.deadlines import deadline
from contract.support.expectations import contents, same
from contract.support.sample_values import MARK, REPLACED, replacement

pytestmark = pytest.mark.usefixtures("other_processes")

NAME = "Gr\u00f6\u00dfe 1"  # not a word that a shell, a file or a statement could take as it is
TURNS = many(150, 30)
SETS = many(197, 61)  # A prime, so that no storage that writes in batches has just written one.


def test_another_process_and_a_running_bot_see_the_same(database: Database) -> None:
    """Another process and a running bot see the same data."""
    storage = database.open(NAME)
    before = {"a": [MARK], "b": [MARK]}
    for key, value in before.items():
        storage.set(key, value)
    assert run_process(database, NAME, "read") == str(before), (
        "While the bot runs, another process does not see its data."
    )
    for _ in range(30):  # What is asked for often is not to be kept in memory either.
        assert contents(storage) == before
    run_process(database, NAME, "write")
    assert contents(storage) == {"a": MARK, "c": MARK}, (
        "A running bot does not see what another process stored and removed."
    )


def test_data_outlive_the_process_that_set_them(database: Database) -> None:
    """Data outlive the process that set them, also one that closed nothing."""
    run_process(database, NAME, "write")
    assert run_process(database, NAME, "read") == str({"a": MARK, "c": MARK}), (
        "Data are gone when the process that stored them has ended without closing the storage."
    )


def test_data_outlive_a_process_that_does_not_open_their_namespace(database: Database) -> None:
    """Data outlive a process that opens, uses and closes another namespace alone."""
    storage = database.open(NAME)
    storage.set("key", MARK)
    run_process(database, "other", "write-and-close")
    assert contents(storage) == {"key": MARK}, (
        "Data are gone when another process has ended that did not open their namespace. Errbot"
        " opens one only if its plugin is loaded: remove nothing because nobody opened it."
    )


def test_every_value_comes_back_from_another_process(database: Database) -> None:
    """Every value that another process has set comes back, as after a restart of the bot."""
    printed = run_process(database, NAME, "write-values").splitlines()
    before = dict(ast.literal_eval(line) for line in printed)
    assert before, "Another process could set no value at all."
    storage = database.open(NAME)
    changed = {}
    for name, expected in before.items():
        got = storage.get(name)
        if f"{type(got)} {got!r}" != expected:
            changed[name] = got
    assert not changed, (
        f"After a restart a plugin gets other values than it stored: {changed}. What `get` gives"
        " must come from the database, and not from the object that `set` was given."
    )


def await_line(process: "subprocess.Popen[str]") -> None:
    """Wait until a process prints a line. Fails with its error where it ends instead."""
    assert process.stdout
    assert process.stderr
    with deadline(PROCESS, "Of several processes on one database, one waits for ever."):
        line = process.stdout.readline()
    if not line:
        why = reason(process.stderr.read())
        pytest.fail(f"Several processes cannot use the database at once: {why}")


def test_processes_start_and_write_at_once(database: Database) -> None:
    """Processes can start and write at once."""
    command = process_command(database, NAME, "write-at-once")
    with ExitStack() as stack:
        processes = [stack.enter_context(running(command)) for _ in range(3)]
        for process in processes:
            await_line(process)
        for number, process in enumerate(processes):
            assert process.stdin
            process.stdin.write(f"{number} {TURNS}\n")
            process.stdin.flush()
        for process in processes:
            await_line(process)
        storage = database.open(NAME)
        got = contents(storage)
        length = storage.len()
    expected = {f"{number} {turn}" for number in range(3) for turn in range(TURNS)}
    assert same(set(got), expected | {"shared"}), (
        "Processes that wrote at once lost each other's data."
    )
    assert length == len(got), "`len` went wrong when processes wrote at once."
    wrong = [key for key in expected if got[key] != [MARK, key]]
    assert not wrong, f"Processes that wrote at once mixed up {len(wrong)} values."


def finished_when_killed(database: Database, task: str) -> list[str]:
    """Let a process do something until it is killed. Returns the numbers of what it has done."""
    with running(process_command(database, NAME, task)) as process:
        assert process.stdout is not None
        with deadline(PROCESS, f"Another process sets {SETS} keys, and waits for ever."):
            done = [process.stdout.readline() for _ in range(SETS)]
        sleep(random.uniform(0.002, 0.02))  # so that it is in the middle of a `set`
        process.kill()
        done += process.stdout.readlines()
        errors = process.stderr.read() if process.stderr else ""
    finished = [line.strip() for line in done if line.endswith("\n")]
    assert len(finished) >= SETS, f"A process fails before it is killed: {reason(errors)}"
    return finished


def test_a_killed_process_has_lost_no_value_that_it_replaced(database: Database) -> None:
    """A process that is killed leaves each value that it replaced whole, and no older one."""
    last = int(finished_when_killed(database, "replace-many")[-1])
    storage = database.open(NAME)
    keys = sorted(f"key {number}" for number in range(REPLACED))
    assert sorted(storage.keys()) == keys, "A bot that was killed has lost keys that it replaced."
    for number in range(last - REPLACED + 1, last + 1):
        try:
            got = storage.get(f"key {number % REPLACED}")
        except Exception as error:
            pytest.fail(
                f"A value cannot be read that was replaced when the bot was killed: {error!r}."
                " Write the new value beside the old one, and switch in one step."
            )
        # The process may have been killed in the next `set`, or after it.
        may_be = [replacement(number), replacement(number + REPLACED)]
        assert any(same(got, value) for value in may_be), (
            "A value that was replaced when the bot was killed is an older one, or a mix of two."
            " Commit before `set` returns."
        )


def test_a_killed_process_has_lost_no_set_that_returned(database: Database) -> None:
    """A process that is killed has lost no `set` that had returned."""
    finished = set(finished_when_killed(database, "write-many"))
    storage = database.open(NAME)
    keys = set(storage.keys())
    lost = finished - keys
    assert not lost, (
        f"{len(lost)} of {len(finished)} values are lost that had been set when the bot was killed."
        " Commit before `set` returns."
    )
    for key in keys:
        number = int(key)
        assert storage.get(key) == [MARK, number, "x" * (number % 50 * 200)], (
            "A bot that was killed left half of a value."
        )


def test_a_killed_process_has_undone_no_removal(database: Database) -> None:
    """A process that is killed has undone no `remove`, and leaves `len` and `keys` in agreement."""
    finished = [int(number) for number in finished_when_killed(database, "remove-many")]
    storage = database.open(NAME)
    keys = list(storage.keys())
    assert storage.len() == len(keys) == len(set(keys)), (
        f"After a bot was killed, `len` says {storage.len()}, and `keys` gives {len(keys)} keys."
        " Write a value and what is counted and listed in one step, or count and list the values."
    )
    back = {f"gone {number}" for number in finished} & set(keys)
    assert not back, (
        f"{len(back)} of {len(finished)} keys that a bot removed before it was killed are back."
        " Commit before `remove` returns."
    )
    lost = {f"kept {number}" for number in finished} - set(keys)
    assert not lost, f"{len(lost)} of {len(finished)} keys are lost with others that were removed."
    for key in keys:
        kind, number = key.split()
        try:
            got = storage.get(key)
        except KeyError:
            pytest.fail("After a bot was killed, `keys` gives a key that has no value.")
        assert got == [MARK, int(number)], "A bot that was killed has mixed up values."
