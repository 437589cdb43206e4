"""Other processes open a running bot's database, and a bot may be killed."""

import ast
import json
import os
import random
import sys
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from time import sleep

import pytest

from contract.support.amounts import many
from contract.support.database import (
    PROCESS,
    Database,
    await_line,
    let_work,
    process_command,
    reason,
    run_command,
    run_process,
    running_process,
)
from contract.support.deadlines import at_once, deadline
from contract.support.expectations import set_or_skip, skip_if_misses_pass
from contract.support.faults import FULL_DISK, Faults
from contract.support.outcomes import contents, outcome, refusal, same
from contract.support.sample_values import MARK, REPLACED, SHARED, large_value, replacement

ELSEWHERE = {
    **{"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    **{"PYTHONIOENCODING": "ascii", "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"},
    **{
        "HOME": "/nowhere",
        "USER": "somebody",
        "LOGNAME": "somebody",
        "HOSTNAME": "elsewhere",
        "COLUMNS": "7",
    },
}
"""The environment of a bot elsewhere."""
PLACES = {"as a service": "check", "on another machine with another Python": "check-elsewhere"}
"""By place: what a second process does there."""

pytestmark = pytest.mark.usefixtures("other_processes")

NAME = "Gr\u00f6\u00dfe 1"  # not a word that a shell, a file or a statement could use unchanged
TURNS = many(150, 30)
LARGE_VALUES = 3
OPENED = many(40, 15)
STARTED = many(200, 40)
REMOVED = many(300, 100)
SETS = many(197, 61)  # A prime, so that a storage that writes in batches has not just written one.


def skip_if_seen_only_later(database: Database) -> None:
    """Skip a test if another process does not see at once what is set, which a test reports."""
    storage = database.open("seen")
    for value in [MARK, [MARK, "longer"]]:
        storage.set("key", value)
    done = run_command(process_command(database, "seen", "read"))
    if done.stdout.strip() != str({"key": [MARK, "longer"]}):
        pytest.skip("another process does not see at once what is set")


def test_another_process_and_a_running_bot_see_the_same(
    faults_if_any: Faults, database: Database
) -> None:
    """Another process and a running bot see the same data, even after an error."""
    storage = database.open(NAME)
    before = {"a": [MARK], "b": [MARK]}
    busy = database.open("busy")
    sets = [partial(busy.set, f"{number}", large_value(number)) for number in range(4)]
    refusal(at_once, *sets)  # Now several connections are open, if there is one for each thread.
    for key in list(busy.keys()):
        busy.remove(key)
    with suppress(pytest.skip.Exception):  # A database that does not fail causes no error.
        faults_if_any.stop()
        refusal(storage.set, "a", MARK)
        faults_if_any.start()
    if not database.notes:  # Windows cannot limit the size of files.
        with suppress(pytest.skip.Exception), FULL_DISK():
            refusal(storage.set, "a", large_value(1))
    for key, value in before.items():
        storage.set(key, value)
    assert run_process(database, NAME, "read") == str(before), (
        "While the bot runs, another process does not see its data."
    )
    for _ in range(30):  # Keys that are read often must not be cached, either.
        assert contents(storage) == before
    assert outcome(storage.get, "c") is KeyError
    run_process(database, NAME, "write")
    assert contents(storage) == {"a": MARK, "c": MARK}, (
        "A running bot does not see what another process stored and removed."
    )
    assert outcome(storage.get, "c") == MARK, (
        "A running bot does not see which keys another process added. Remember no missing keys."
    )
    assert outcome(storage.remove, "b") == outcome(storage.remove, "never there"), (
        "A running bot removes a key that another process has removed."
    )
    storage.set("a", [MARK])  # what it had set before the other process changed it
    storage.set("d", MARK)
    seen = run_process(database, NAME, "read")
    assert seen == str({"a": [MARK], "c": MARK, "d": MARK}), (
        f"After another process has ended, the next one sees only {seen} of what the bot stores."
        " Write every time. Where a file is locked, do not open and close it a second time: this"
        " drops the locks of the process."
    )
    storage.remove("c")
    counts = [storage.len()]
    run_process(database, NAME, "write")
    counts.append(storage.len())
    assert counts == [2, 3], (
        f"Another process added a key, and before and after that `len` gave {counts}. Let the"
        " database count each time."
    )


@pytest.mark.parametrize("optimize", ["", "2"], ids=["plain", "without asserts"])
def test_data_outlive_the_process_that_set_them(
    database: Database, monkeypatch: pytest.MonkeyPatch, optimize: str
) -> None:
    """Data outlive the process that set them, even if it closed nothing or ran with `python -O`."""
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONOPTIMIZE", optimize)
        run_process(database, NAME, "write")
    assert run_process(database, NAME, "read") == str({"a": MARK, "c": MARK}), (
        "Data are lost when the process that stored them ends without closing the storage."
    )


def test_data_outlive_a_process_that_does_not_open_their_namespace(database: Database) -> None:
    """Data outlive a process that uses only another namespace."""
    storage = database.open(NAME)
    storage.set("key", MARK)
    run_process(database, "other", "write-and-close")
    assert contents(storage) == {"key": MARK}, (
        "Data are lost when another process ends that did not open their namespace. Errbot opens a"
        " namespace only if its plugin is loaded. Do not remove data because nobody opened them."
    )


def test_every_value_comes_back_from_another_process(database: Database) -> None:
    """Every value that another process has set comes back, as after a restart."""
    printed = run_process(database, NAME, "write-values").splitlines()
    before = dict(ast.literal_eval(line) for line in printed)
    assert before, "Another process could not set any value."
    storage = database.open(NAME)
    changed = {}
    for name, expected in before.items():
        got = storage.get(name)
        if f"{type(got)} {got!r}" != expected:
            changed[name] = got
    assert not changed, (
        f"After a restart, a plugin gets other values than it stored: {changed}. `get` must return"
        " what is in the database, not the object that was passed to `set`."
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no exec")
def test_a_bot_that_restarts_itself_keeps_everything(database: Database) -> None:
    """After `!restart`, which keeps the number of the process, all values are there."""
    set_or_skip(database.open("probe"), "key", [MARK * 20_000])
    run_process(database, NAME, "restart")
    names = {f"{key} {number}": [key, number] for key in "ab" for number in range(3)}
    expected: dict[str, object] = {key: [MARK * 20_000, *of] for key, of in names.items()}
    storage = database.open(NAME, database.plugin())
    assert same(contents(storage), expected), (
        "After `!restart`, values are lost or mixed up. The bot's process keeps its number, and in"
        " a container each one has the same. Name nothing after it; use uuid4."
    )


@pytest.mark.parametrize("where", PLACES)
def test_data_are_the_same_for_a_bot_that_starts_elsewhere(database: Database, where: str) -> None:
    """Data do not depend on the machine, account, locale, terminal and Python of a bot."""
    storage = database.open(NAME)
    for key in [NAME, *(f"key {number}" for number in range(20))]:
        storage.set(key, [MARK, key])
    storage.set("long", [MARK * 5_000])
    refusal(storage.set, "large", large_value(1))  # Another test checks whether it can be stored.
    command = process_command(database, NAME, PLACES[where])
    done = run_command(command, environment=os.environ | ELSEWHERE)
    printed = done.stdout.strip()
    assert printed == f"{len(contents(storage))} values", (
        f"For a bot that starts {where}, data are lost or changed:"
        f" {printed or reason(done.stderr)}. Names and values must not depend on where it starts."
    )


@pytest.mark.parametrize("order", ["first", "last"])
def test_what_is_set_when_python_ends_is_stored(database: Database, order: str) -> None:
    """What is set in a function of `atexit` is stored, or is an error."""
    printed = run_process(database, NAME, f"write-at-exit-{order}").splitlines()
    storage = database.open(NAME)
    got = {key: storage.get(key) for key in storage.keys()}
    refused = {line.partition(":")[0] for line in printed}
    expected = {"small": [MARK], "large": large_value(1)}
    if refusal(database.open("probe").set, "large", large_value(1)):
        del expected["large"]  # Another test checks whether it can be stored.
    assert order == "last" or not refused & expected.keys(), (
        f"When Python ends, a plugin cannot save its data: {printed}. Python stops executors before"
        " it calls the functions of `atexit`."
    )
    assert same(got, {key: expected[key] for key in expected.keys() - refused}), (
        "What was set when Python ended is lost, although `set` raised no error."
    )


def test_a_bot_that_has_closed_a_namespace_and_processes_see_the_same(database: Database) -> None:
    """After a bot has closed a namespace, it and other processes see the same in the others."""
    skip_if_seen_only_later(database)
    storage, closed = database.open("namespace"), database.open("closed")
    for opened in [storage, closed]:
        opened.set("key", MARK)
    database.close(closed)
    run_process(database, "namespace", "read")
    storage.set("key", [MARK, "newer"])
    assert run_process(database, "namespace", "read") == str({"key": [MARK, "newer"]}), (
        "After a namespace was closed, another process does not see what the bot sets in the"
        " others. Do not open and close the database's file yourself: that drops the locks that"
        " the bot's other connections hold, and a process that ends removes what they still use."
    )


def test_new_namespaces_of_processes_are_told_apart(database: Database) -> None:
    """Processes can open new namespaces at the same time, and each has its own."""
    skip_if_seen_only_later(database)
    commands = [process_command(database, f"new {n}", "open-at-once") for n in range(3)]
    with ExitStack() as stack:
        processes = [stack.enter_context(running_process(command)) for command in commands]
        let_work(processes, OPENED)
    for number in range(3):
        for turn in range(OPENED):
            assert contents(database.open(f"new {number} {turn}")) == {
                "key": [MARK, str(number)]
            }, (
                "Processes that opened new namespaces at the same time see each other's data. Let"
                " the database choose numbers or names that nobody else has."
            )
    for turn in range(0, OPENED, SHARED):
        shared = contents(database.open(f"new shared {turn}"))
        assert shared == {str(number): MARK for number in range(3)}, (
            f"Processes opened one new namespace at the same time, each set a key, and then it has"
            f" {sorted(shared)}. Let the database ensure that a name exists once."
        )


def test_processes_that_remove_one_key_succeed_once(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If several processes remove a key at once, exactly one succeeds."""
    skip_if_seen_only_later(database)
    storage = database.open(NAME)
    skip_if_misses_pass(storage)
    for number in range(REMOVED):
        storage.set(str(number), MARK)
    with ExitStack() as stack:
        command = process_command(database, NAME, "remove-at-once")
        processes = []
        for number in range(3):  # As a service, a process may have a temporary folder of its own.
            (folder := tmp_path / f"temporary {number}").mkdir()
            monkeypatch.setenv("TMPDIR", str(folder))
            processes.append(stack.enter_context(running_process(command)))
        for process in processes:
            await_line(process)
        taken: list[int] = []
        for process in processes:
            assert process.stdin
            process.stdin.write(f"{REMOVED}\n")
            process.stdin.flush()
        for process in processes:
            taken += json.loads(await_line(process))
    assert same(sorted(taken), list(range(REMOVED))), (
        f"{REMOVED} keys were removed {len(taken)} times by processes at the same time, so two bots"
        " do the same job. Let one statement remove the key and tell whether it was there. A lock"
        " in the folder for temporary files binds nobody: processes may have different ones."
    )


def test_processes_can_start_at_the_same_moment(database: Database) -> None:
    """If several processes start at the same moment, again and again, each can."""
    database.open(NAME).set("key", MARK)  # so that there is something to open
    command = process_command(database, NAME, "start-at-once")
    with ExitStack() as stack:
        processes = [stack.enter_context(running_process(command)) for _ in range(3)]
        told = let_work(processes, STARTED)
    errors = [error for line in told for error in json.loads(line)]
    assert not errors, (
        f"When a bot and `errbot --storage-get` start at the same moment, {len(errors)} of"
        f" {3 * STARTED} fail: {errors[0]}. Let a start change nothing that others may change, too."
    )


def test_processes_start_and_write_at_once(database: Database) -> None:
    """Processes can start and write at the same time."""
    command = process_command(database, NAME, "write-at-once")
    with ExitStack() as stack:
        processes = [stack.enter_context(running_process(command)) for _ in range(3)]
        let_work(processes, TURNS)
        storage = database.open(NAME)
        got = contents(storage)
        length = storage.len()
    expected = {f"{number} {turn}" for number in range(3) for turn in range(TURNS)}
    assert same(set(got), expected | {"shared"}), (
        "Processes that wrote at the same time lost each other's data."
    )
    assert length == len(got), "`len` is wrong after processes wrote at the same time."
    wrong = [key for key in expected if got[key] != [MARK, key]]
    assert not wrong, f"Processes that wrote at the same time mixed up {len(wrong)} values."


def store_large_values(database: Database) -> int:
    """Store some large values in "namespace", and return how many bytes they have."""
    storage = database.open("namespace")
    for number in range(LARGE_VALUES):
        set_or_skip(storage, f"large {number}", large_value(number))
    return sum(len(large_value(number)) for number in range(LARGE_VALUES))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process writes")
def test_a_start_writes_little_however_much_is_stored(database: Database) -> None:
    """To start and to close does not write what is stored again, because a bot may be running."""
    stored = store_large_values(database)
    written = json.loads(run_process(database, "namespace", "start").splitlines()[-1])["written"]
    assert written < stored / 2, (
        f"With {stored} bytes stored, a start and `close` write {written}. `errbot --storage-get`"
        " does both, too, and with some GB the running bot could not use its database for minutes."
        " Do not compact or rewrite it each time."
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process reads")
def test_a_start_reads_little_however_much_is_stored(database: Database) -> None:
    """To start and to close does not read what is stored."""
    stored = store_large_values(database)
    used = json.loads(run_process(database, "namespace", "start").splitlines()[-1])
    if used["written"] >= stored / 2:
        pytest.skip("a start writes again what is stored, which another test reports")
    assert used["read"] < stored / 2, (
        f"With {stored} bytes stored, a start and `close` read {used['read']}. With some GB, a bot"
        " and `errbot --storage-get` would need minutes. Let nobody check or load everything."
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what a process transfers")
@pytest.mark.parametrize("name", ["namespace", "empty"])
def test_a_small_change_transfers_little_however_much_is_stored(
    database: Database, name: str
) -> None:
    """To set, get and remove a small value does not transfer what else is stored."""
    stored = store_large_values(database)
    turns, most = json.loads(run_process(database, name, "change-little").splitlines()[-1])
    used = {operation: min(turn[operation] for turn in turns) for operation in turns[0]}
    costly = max(used, key=lambda operation: used[operation])
    assert used[costly] < stored / 2, (
        f"With {stored} bytes stored, `{costly}` of a small value reads and writes"
        f" {used[costly]} bytes: with some GB, a bot stands still for minutes. Change one record,"
        " and compact nothing."
    )
    assert most < stored, (
        f"With {stored} bytes stored, one of many `set` and `remove` of a small value reads and"
        f" writes {most} bytes: with some GB, a bot stands still for minutes. Do not compact"
        " everything now and then, but let the database use again what is free."
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_process_killed_while_it_starts_harms_nothing(database: Database) -> None:
    """If processes are killed at any moment while they start, the next one starts."""
    first = run_process(database, "namespace", "start-and-be-killed")
    assert first == str({}), (
        f"After bots were killed in the middle of their first start, the next one fails: {first}."
        " Create everything in one transaction, or go on with what is there."
    )
    database.open("namespace").set("key", MARK)
    database.close_all()  # Another test checks whether others see it before.
    printed = run_process(database, "namespace", "start-and-be-killed")
    assert printed == str({"key": MARK}), (
        f"After bots were killed while they started, the next one fails: {printed}. A lock file"
        " remains when its process is killed. Use a lock that ends with the process, such as flock"
        " or one of the database's."
    )


def finished_when_killed(database: Database, task: str) -> list[str]:
    """Let a process work until it is killed. Returns the numbers that it has finished."""
    with running_process(process_command(database, NAME, task)) as process:
        assert process.stdout is not None
        with deadline(PROCESS, f"Another process that sets {SETS} keys is too slow, or hangs."):
            done = [process.stdout.readline() for _ in range(SETS)]
        sleep(random.uniform(0.002, 0.02))  # so that the kill comes in the middle of a `set`
        process.kill()
        done += process.stdout.readlines()
        errors = process.stderr.read() if process.stderr else ""
    finished = [line.strip() for line in done if line.endswith("\n")]
    assert len(finished) >= SETS, f"A process fails before it is killed: {reason(errors)}"
    return finished


def test_a_killed_process_has_lost_no_value_that_it_replaced(database: Database) -> None:
    """If a process is killed while it replaces values, each value is complete and not outdated."""
    last = int(finished_when_killed(database, "replace-many")[-1])
    storage = database.open(NAME)
    keys = sorted(f"key {number}" for number in range(REPLACED))
    assert sorted(storage.keys()) == keys, (
        "A bot that was killed has lost keys that it had replaced."
    )
    for number in range(last - REPLACED + 1, last + 1):
        try:
            got = storage.get(f"key {number % REPLACED}")
        except Exception as error:
            pytest.fail(
                "A value that was being replaced when the bot was killed cannot be read:"
                f" {error!r}. Write the new value beside the old one, and switch in one step."
            )
        # The process may have been killed in the next `set`, or after it.
        may_be = [replacement(number), replacement(number + REPLACED)]
        assert any(same(got, value) for value in may_be), (
            "A value that was being replaced when the bot was killed is outdated, or a mix of two."
            " Commit before `set` returns."
        )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_killed_process_leaves_no_lock_for_one_of_its_number(database: Database) -> None:
    """If a bot is killed, another process works, even with the same number, as in a container."""
    failures = run_process(database, NAME, "be-killed-in-container").splitlines()
    assert not failures, (
        f"After a bot was killed in a `set`, the next one {failures[0]}: in a container, both are"
        " process 1. A lock file with a number remains. Use a lock that ends with the process, such"
        " as flock or one of the database's."
    )


def test_a_killed_process_has_lost_no_set_that_returned(database: Database) -> None:
    """If a process is killed, no `set` that had returned is lost."""
    finished = set(finished_when_killed(database, "write-many"))
    storage = database.open(NAME)
    keys = set(storage.keys())
    lost = finished - keys
    assert not lost, (
        f"{len(lost)} of {len(finished)} values that had been set when the bot was killed are lost."
        " Commit before `set` returns."
    )
    unlisted = {str(max(map(int, finished)) + 1)} - keys  # It was perhaps being set.
    assert all(refusal(storage.get, key) for key in unlisted), (
        "A key that was being set when the bot was killed has a value, but `keys` does not return"
        " it. Write a value and its entry in the list in one step, or list the values."
    )
    for key in keys:
        number = int(key)
        assert storage.get(key) == [MARK, number, "x" * (number % 50 * 200)], (
            "A bot that was killed left an incomplete value."
        )


def test_a_killed_process_has_undone_no_removal(database: Database) -> None:
    """If a process is killed, no `remove` that had returned is undone, and `keys` matches `len`."""
    skip_if_seen_only_later(database)
    finished = [int(number) for number in finished_when_killed(database, "remove-many")]
    storage = database.open(NAME)
    keys = list(storage.keys())
    assert storage.len() == len(keys) == len(set(keys)), (
        f"After a bot was killed, `len` returns {storage.len()}, and `keys` returns {len(keys)}"
        " keys. Write a value and its entry in the list and count in one step, or count and list"
        " the values."
    )
    back = {f"gone {number}" for number in finished} & set(keys)
    assert not back, (
        f"{len(back)} of {len(finished)} keys that a bot removed before it was killed are back."
        " Commit before `remove` returns."
    )
    lost = {f"kept {number}" for number in finished} - set(keys)
    assert not lost, f"{len(lost)} of {len(finished)} keys were lost when others were removed."
    for key in keys:
        kind, number = key.split()
        try:
            got = storage.get(key)
        except KeyError:
            pytest.fail("After a bot was killed, `keys` returns a key that has no value.")
        assert got == [MARK, int(number)], "A bot that was killed has mixed up values."
