"""Other processes open the database of a running bot, and a bot may be killed."""

import subprocess
from contextlib import ExitStack

import pytest

from contract.support.database import Database, process_command, run_process
from contract.support.expectations import same
from contract.support.sample_values import MARK, Person

pytestmark = pytest.mark.usefixtures("other_processes")

NAME = "Gr\u00f6\u00dfe 1"  # not a word that a shell, a file or a statement could take as it is
TURNS = 150
SETS = 197  # A prime, so that no storage that writes in batches has just written one.


def test_another_process_and_a_running_bot_see_the_same(database: Database) -> None:
    storage = database.open(NAME)
    storage.set("b", MARK)
    assert run_process(database, NAME, "read") == str({"b": MARK}), (
        "While the bot runs, another process does not see its data."
    )
    run_process(database, NAME, "write")
    assert {key: storage.get(key) for key in storage.keys()} == {
        "a": Person(MARK),
        "c": Person(MARK),
    }, "A running bot does not see what another process stored and removed."


def test_data_outlive_the_process_that_set_them(database: Database) -> None:
    run_process(database, NAME, "write")
    assert run_process(database, NAME, "read") == str({"a": Person(MARK), "c": Person(MARK)}), (
        "Data are gone when the process that stored them has ended without closing the storage."
    )


def await_line(process: "subprocess.Popen[str]") -> None:
    """Wait until a process prints a line. Fails with its error where it ends instead."""
    assert process.stdout
    assert process.stderr
    line = process.stdout.readline()
    assert line, f"Several processes cannot use the database at once:\n{process.stderr.read()}"


def test_processes_start_and_write_at_once(database: Database) -> None:
    command = process_command(database, NAME, "write-at-once")
    pipe = subprocess.PIPE
    with ExitStack() as running:
        processes = [
            running.enter_context(
                subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8")
            )
            for _ in range(3)
        ]
        for process in processes:
            await_line(process)
        for number, process in enumerate(processes):
            assert process.stdin
            process.stdin.write(f"{number} {TURNS}\n")
            process.stdin.flush()
        for process in processes:
            await_line(process)
        storage = database.open(NAME)
        got = {key: storage.get(key) for key in storage.keys()}
        length = storage.len()
    expected = {f"{number} {turn}" for number in range(3) for turn in range(TURNS)}
    assert same(set(got), expected | {"shared"}), (
        "Processes that wrote at once lost each other's data."
    )
    assert length == len(got), "`len` went wrong when processes wrote at once."
    wrong = [key for key in expected if got[key] != [MARK, key]]
    assert not wrong, f"Processes that wrote at once mixed up {len(wrong)} values."


def test_a_killed_process_has_lost_no_set_that_returned(database: Database) -> None:
    command = process_command(database, NAME, "write-many")
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        done = [process.stdout.readline() for _ in range(SETS)]
        process.kill()
        done += process.stdout.readlines()
    finished = {line.strip() for line in done if line.endswith("\n")}
    assert len(finished) >= SETS, "The process that was to be killed had failed before."
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
