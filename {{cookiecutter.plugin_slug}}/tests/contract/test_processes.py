"""Other processes open the database of a running bot, and a bot may be killed."""

import subprocess

import pytest

from contract.plugin import Database, process_command, run_process
from contract.values import MARK, Person

pytestmark = pytest.mark.usefixtures("other_processes")

SETS = 197  # A prime, so that no storage that writes in batches has just written one.


def test_another_process_and_a_running_bot_see_the_same(database: Database) -> None:
    storage = database.open("namespace")
    storage.set("b", MARK)
    assert run_process(database, "namespace", "read") == str({"b": MARK}), (
        "While the bot runs, another process does not see its data."
    )
    run_process(database, "namespace", "write")
    assert {key: storage.get(key) for key in storage.keys()} == {
        "a": Person(MARK),
        "c": Person(MARK),
    }, "A running bot does not see what another process stored and removed."


def test_data_outlive_the_process_that_set_them(database: Database) -> None:
    run_process(database, "namespace", "write")
    assert run_process(database, "namespace", "read") == str(
        {"a": Person(MARK), "c": Person(MARK)}
    ), "Data are gone when the process that stored them has ended without closing the storage."


def test_two_processes_write_at_once(database: Database) -> None:
    database.open("namespace").set("b", "old")
    command = process_command(database, "namespace", "write")
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    failed = [error for process, error in zip(processes, errors, strict=True) if process.returncode]
    # Of processes that remove the same key, one finds it gone: that is right, all else is not.
    wrong = [error for error in failed if "KeyError: 'b'" not in error]
    assert not wrong, f"Two processes cannot use the database at once:\n{wrong[0]}"
    assert run_process(database, "namespace", "read") == str(
        {"a": Person(MARK), "c": Person(MARK)}
    ), "Two processes that wrote at once harmed the data."


def test_a_killed_process_has_lost_no_set_that_returned(database: Database) -> None:
    command = process_command(database, "namespace", "write-many")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        done = [process.stdout.readline() for _ in range(SETS)]
        process.kill()
        done += process.stdout.readlines()
    finished = {line.strip() for line in done if line.endswith("\n")}
    assert len(finished) >= SETS, "The process that was to be killed had failed before."
    storage = database.open("namespace")
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
