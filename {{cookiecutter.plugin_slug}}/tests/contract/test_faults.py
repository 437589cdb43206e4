"""If the database is away or refuses, plugins get an error, never a wrong answer."""

import logging
import os
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Event, Thread, Timer
from time import monotonic, process_time, sleep
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from errbot.storage import StoreMixin
from errbot.storage.base import StorageBase

from contract.support.amounts import many
from contract.support.database import Database, open_files, run_process
from contract.support.deadlines import at_once, deadline
from contract.support.expectations import set_or_skip, shows, skip_if_threads_fail
from contract.support.faults import FULL_DISK, Faults, none_left
from contract.support.guest import use
from contract.support.outcomes import contents, outcome, refusal, same
from contract.support.sample_values import MARK, Unreadable, large_value

AFTER = 0.5
"""Seconds after a fault within which nothing may change by itself."""
RETRIED = 3
"""How often a late retry is met, because it does no harm if it comes before the newer value."""
WAITING = 60
"""Threads that wait for the database at the same time."""
FAILING_SETS = 30
"""Threads that all fail to set a key."""
SOON = 30
"""Seconds within which an operation must give up."""
STARTING = 90
"""Seconds within which a start must give up. Some clients wait a minute for a lock then."""
READERS = 16
"""How often others read meanwhile, more often than there are connections in most pools."""
MOMENT = 0.1
"""Seconds of a short fault."""
HOUR = 3_600
MEANWHILE = 10
"""Seconds within which a bot does something while a backup goes on."""
LOOPED = many(2_100, 120)
"""Keys of a loop: more than two pages of a thousand."""
FILES = 400
"""More open files than the tests have, so that the rest can be used up."""
CONNECTIONS, TRYING = 16, 0.05
"""Threads that need connections at the same time, and for how many seconds."""
FAILURES, FAILING, FAILING_THREADS = 3, 3, 16
"""Failing operations in a row, maximum seconds of all of them, and threads that they fail in."""
ANSWERS = 6
"""How many answers are lost, one per try: the first one may be to a `ping` or `BEGIN`."""
PATIENCE, LINES = 1.0, 20
"""Seconds for which an operation waits for the database, and fewer lines than it may log."""
OUTAGES, REPLACED_AFTER = 8, 24
"""Short outages, and how often a large value is replaced after them."""
ROOM, FITTED = 1_000_000, 30
"""Bytes for which a disk that is nearly full has room, and how often a larger value is set."""
LARGE = 20_000_000
"""More bytes than servers accept at once by default."""


def mapping_of(storage: StorageBase) -> StoreMixin:
    """Return a storage as plugins see theirs: as a mapping."""
    mapping = StoreMixin()
    mapping._store = storage
    return mapping


NEW = f"new {MARK}"
OPERATIONS: dict[str, Callable[[StorageBase], object]] = {
    "`get`": lambda storage: storage.get("0"),
    "`in`": lambda storage: "0" in mapping_of(storage),
    "`set`": lambda storage: storage.set("0", NEW),
    "`set` of a new key": lambda storage: storage.set("new", NEW),
    "`remove`": lambda storage: storage.remove("0"),
    "`len`": lambda storage: storage.len(),
    "`keys`": lambda storage: sorted(storage.keys()),
}
CHANGES = [name for name in OPERATIONS if "set" in name or "remove" in name]
LONG_KEYS = [f"key {number} ".ljust(200, "-") for number in range(120)]
"""Too many for a database to read all of them when it is opened."""
READS: dict[str, Callable[[StorageBase], object]] = {
    "`get`": lambda storage: [storage.get(key) for key in LONG_KEYS],
    "`in`": lambda storage: [key in mapping_of(storage) for key in LONG_KEYS],
    "`len`": lambda storage: storage.len(),
    "`keys`": lambda storage: len(set(storage.keys())),
}


def secrets_of(config: dict[str, Any]) -> list[str]:
    """Return the secrets in a STORAGE_CONFIG, as far as they can be recognized."""
    secrets = []
    for name, value in config.items():
        if isinstance(value, str):
            password = urlsplit(value).password if "://" in value else None
            secrets += [password, unquote(password)] if password else []
            secrets += [value] if any(word in name for word in ("pass", "secret", "key")) else []
    return secrets


def let_wait(database: Database, seconds: float) -> None:
    """Let operations wait for the database for so many seconds, if this can be configured."""
    if "timeout" in database.config.STORAGE_CONFIG:
        database.config.STORAGE_CONFIG["timeout"] = seconds


@contextmanager
def fault(
    database: Database, name: str, what: str = "The database is away", seconds: float = SOON
) -> Iterator[list[object]]:
    """Record the block's answer unless it fails. Only the wrong kind of error fails the test."""
    answers: list[object] = []
    try:
        with deadline(seconds, f"{what}, and {name} hangs."):
            yield answers
    except KeyError:
        pytest.fail(
            f"{what}, and {name} raises KeyError: Errbot and plugins treat the key as missing, and"
            " store their defaults over its value. Raise another error."
        )
    except Exception as error:
        shown = "".join([repr(error), *traceback.format_exception(error)])
        secrets = secrets_of(database.config.STORAGE_CONFIG)
        told = [secret for secret in secrets if shows(shown, secret)]
        assert not told, f"{what}, and the error of {name} shows a secret."
        assert not shows(shown, MARK), (
            f"{what}, and the error of {name} shows the value, which then is in the log and in the"
            " bot's answers. Do not show a statement's parameters."
        )


def test_a_database_that_cannot_be_reached_is_an_error(faults: Faults, database: Database) -> None:
    """If the database cannot be reached, the start fails, or every operation does."""
    database.config.STORAGE_CONFIG |= faults.unreachable()
    storages: list[StorageBase] = []
    with fault(database, "the start"):
        storages.append(database.open("namespace", database.plugin()))
    for name, operation in OPERATIONS.items():
        for storage in storages:
            with fault(database, name) as answers:
                answers.append(operation(storage))
            assert not answers, (
                f"There is no database, but {name} returned {answers[0]!r}. Raise an error. Data"
                " kept in memory instead, or errors that are only logged, are lost silently."
            )


def test_a_start_while_the_database_is_away_has_no_effect_afterwards(
    faults: Faults, database: Database
) -> None:
    """If the database is away at the start, the start fails, or all works when it is back."""
    before, _ = database.open_twice()
    before.set("0", MARK)
    storages: list[StorageBase] = []
    with faults.away(), fault(database, "the start", seconds=STARTING):
        storages.append(database.open("namespace", database.plugin()))
        storages[0].set("1", MARK)
    for storage in storages:
        storage.set("2", [MARK])
        seen = [outcome(each.get, key) for each, key in [(storage, "0"), (before, "2")]]
        assert seen == [MARK, [MARK]], (
            "A bot that started while the database was away still uses something else. Raise the"
            " error, or try the database again at each operation."
        )


def test_a_namespace_can_be_opened_after_the_database_was_away(
    faults: Faults, database: Database
) -> None:
    """A plugin whose first activation failed, because the database was away, works afterwards."""
    plugin = database.plugin()
    database.open("namespace", plugin).set("0", MARK)
    with faults.away(), fault(database, "`open` and `set`"):
        database.open("late", plugin).set("0", MARK)
    late = database.open("late", plugin)
    got = (refusal(late.set, "0", [MARK]), outcome(late.get, "0"))
    assert got == (None, [MARK]), (
        "A plugin was activated while the database was away, which failed. When the database is"
        f" back, its `set` and `get` give {got}. Remember what exists only after it was created."
    )


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_whose_answer_is_lost_is_right_or_an_error(
    faults: Faults, database: Database, name: str
) -> None:
    """If the connection breaks before a change is answered, it is right, or an error."""
    storage = database.open("namespace", database.plugin())
    for answer in range(ANSWERS):
        storage.set("0", MARK)
        outcome(storage.remove, "new")
        expected = {"0": MARK}
        faults.lose_answer(answer)
        try:
            with fault(database, name, "The connection broke") as answers:
                answers.append(OPERATIONS[name](storage))
        finally:
            faults.start()
        after = {} if "remove" in name else expected | {"new" if "new" in name else "0": NEW}
        got = contents(storage)
        assert got in ([after] if answers else [expected, after]), (
            f"The connection broke before {name} was answered, and the namespace has {got}."
        )


def test_a_database_that_does_not_answer_is_an_error(faults: Faults, database: Database) -> None:
    """If the database accepts connections but does not answer, that is an error, in time."""
    let_wait(database, PATIENCE)
    storage = database.open("namespace", database.plugin())
    for key in ["0", "1"]:
        storage.set(key, [MARK, key])
    faults.stall()
    try:
        with fault(database, "`get`", "The database does not answer") as answers:
            answers.append(storage.get("0"))
    finally:
        faults.start()
    assert answers in ([], [[MARK, "0"]]), "The database does not answer, and `get` is wrong."
    got = [outcome(storage.get, key) for key in ["1", "0"]]
    assert got == [[MARK, "1"], [MARK, "0"]], (
        f"The database answers again, and `get` of two keys gives {got}. After a timeout, close"
        " the connection, because it may still get the last answer."
    )


def test_an_operation_gives_up_in_time_although_the_clock_is_put_back(
    faults: Faults, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the clock is put back while an operation waits for the database, it gives up in time."""
    let_wait(database, PATIENCE)
    storage = database.open("namespace", database.plugin())
    storage.set("0", MARK)
    clock, put_back = time.time, Event()
    monkeypatch.setattr(time, "time", lambda: clock() - HOUR * put_back.is_set())
    timer = Timer(MOMENT, put_back.set)
    with faults.away():
        timer.start()
        try:
            with fault(database, "`set`", "The clock was put back while the database is away"):
                storage.set("0", NEW)
        finally:
            timer.cancel()
    assert outcome(storage.get, "0") in (MARK, NEW), "After an outage, the value is lost."


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_database_that_goes_away_is_an_error(
    faults: Faults, database: Database, name: str
) -> None:
    """While the database is away, each operation is right or raises an error, and does no harm."""
    storage, other = database.open_twice()
    expected: dict[str, object] = {"0": MARK, "1": [MARK]}
    use(storage)
    for key in ["0", "removed"]:
        storage.set(key, [MARK, "old"])
        storage.get(key)
    other.remove("removed")
    for key, value in expected.items():
        other.set(key, value)
    right = {"`get`": MARK, "`in`": True, "`len`": 2, "`keys`": ["0", "1"]}
    with faults.away(), fault(database, name) as answers:
        answers.append(OPERATIONS[name](storage))
    assert answers in ([], [right.get(name)]), (
        f"The database is away, and a plugin gets a wrong or outdated answer from {name}. Raise an"
        " error."
    )
    check_after(database, storage, name, expected, bool(answers))


def check_after(
    database: Database, storage: StorageBase, name: str, expected: dict[str, object], returned: bool
) -> None:
    """Check that the storage works after a fault, kept what returned, and did no harm."""
    restarted = database.open("namespace", database.plugin())
    after = dict(expected)
    if name == "`remove`":
        del after["0"]
    elif name.startswith("`set`"):
        after["new" if "new" in name else "0"] = NEW
    for each in [restarted, storage]:  # what is only in the memory of the first one is not stored
        try:
            got = contents(each)
            length = each.len()
        except Exception as error:
            pytest.fail(
                f"The fault is over, but the storage still fails: {error!r}. Reconnect after each"
                " error."
            )
        # A failed operation may still have taken effect.
        assert got in ([after] if returned else [expected, after]), (
            f"{name} returned despite the fault, but did nothing: {sorted(got)}. Or it failed, but"
            " changed other data. Raise an error, and change nothing."
        )
        assert length == len(got), "After the fault, `len` is wrong."
    storage.set("after", MARK)
    assert restarted.get("after") == MARK, "The fault is over, but the storage stores nothing."


def check_that_it_sets_again(storage: StorageBase, why: str) -> None:
    """Check that a storage that has met a fault works at the latest at the fifth try."""
    for _ in range(5):
        refused = refusal(storage.set, "after", MARK)
        if not refused:
            break
    assert (refused, outcome(storage.get, "after")) == (None, MARK), (
        f"The database {why}, but to a storage that has met the fault, `set` still raises"
        f" {refused}. Do not reuse a connection that raised an error, and remember no faults."
    )


def error_of(operation: Callable[[], object]) -> list[Exception]:
    """Return the error that an operation raises, if any."""
    try:
        operation()
    except Exception as error:
        return [error]
    return []


def reaches_another_process(error: Exception) -> bool:
    """Return whether an error is still what it is after it was pickled."""
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False


def test_an_error_reaches_another_process(faults_if_any: Faults, database: Database) -> None:
    """An error can be pickled, as `multiprocessing` does to raise it in the bot's process."""
    storage = database.open("namespace", database.plugin())
    wrong: list[Callable[[], object]] = [
        lambda: storage.get("missing"),
        lambda: storage.remove("missing"),
        lambda: storage.set(1, MARK),  # type: ignore[arg-type]
        lambda: storage.set("\ud800", MARK),
        lambda: storage.get("unreadable"),
    ]
    # If this is refused, the error may hold the value, which cannot be unpickled.
    outcome(storage.set, "unreadable", Unreadable(AttributeError("no such attribute")))
    errors = [error for operation in wrong for error in error_of(operation)]
    outcome(storage.set, "0", MARK)
    with suppress(pytest.skip.Exception), faults_if_any.away():
        for name in CHANGES:
            errors += error_of(partial(OPERATIONS[name], storage))
    lost = {type(error).__name__ for error in errors if not reaches_another_process(error)}
    assert not lost, (
        f"Errors cannot be pickled: {sorted(lost)}. If a plugin's process of `multiprocessing` gets"
        " one, its pool waits for ever. Pass all arguments of `__init__` to `super().__init__`."
    )


def in_threads(*works: Callable[[], object]) -> list[object]:
    """Do each work in its own thread while the database is away. Fails if they hang."""
    try:
        return at_once(*works, seconds=SOON)
    except TimeoutError as error:
        pytest.fail(f"The database is away, and operations hang: {error}.")


def test_a_storage_closes_while_the_database_is_away(faults: Faults, database: Database) -> None:
    """A storage can be closed while the database is away, and its plugin activated again."""
    plugin = database.plugin()
    storage = database.open("namespace", plugin)
    storage.set("0", MARK)
    with faults.away(), deadline(SOON, "The database is away, and `close` hangs."):
        raised = outcome(partial(database.close, storage))
    assert raised is None, (
        f"The database is away, and `close` raises {raised}: Errbot counts the storage as open, so"
        " its plugin can be activated only after a restart. Write nothing in `close`."
    )
    assert database.open("namespace", plugin).get("0") == MARK, "After `close`, data are gone."


def test_many_errors_in_a_row_have_no_effect_afterwards(faults: Faults, database: Database) -> None:
    """After an outage with many failing operations, everything works at once."""
    storage = database.open("namespace", database.plugin())
    storage.set("0", MARK)
    before = open_files() + threading.active_count()

    def fail_often() -> None:
        for name in [*CHANGES, *OPERATIONS]:
            for _ in range(FAILURES):
                if monotonic() < until:
                    with fault(database, name):
                        OPERATIONS[name](storage)

    with faults.away():
        until = monotonic() + FAILING
        in_threads(*[fail_often] * FAILING_THREADS)
    for number in range(FAILURES):
        try:
            storage.set("0", [MARK, number])
            got = storage.get("0")
        except Exception as error:
            pytest.fail(
                f"The database is back, but after many errors the storage still fails: {error!r}."
                " Return what each operation takes from a pool, even after an error, and try the"
                " database again each time."
            )
        assert got == [MARK, number]
    left = open_files() + threading.active_count() - before
    assert left < 2 * FAILING_THREADS, (
        f"After an outage with many errors, {left} more files, connections and threads are open:"
        " eventually the bot fails with `Too many open files`. Close what an operation has opened."
    )


def test_a_set_that_failed_does_not_take_effect_later(faults: Faults, database: Database) -> None:
    """A `set` that failed because the database was away never takes effect."""
    storage = database.open("namespace", database.plugin())
    new = [f"new {number}" for number in range(FAILING_SETS)]
    with faults.away():
        refused = in_threads(*(partial(refusal, storage.set, key, MARK) for key in new))
    sleep(AFTER)
    failed = {key for key, error in zip(new, refused, strict=True) if error}
    late = sorted(failed & set(storage.keys()))
    assert not late, (
        f"While the database was away, {len(failed)} threads failed to set new keys, and yet"
        f" {len(late)} of these are there. If an operation gives up, whatever it waits for must"
        " not go on without it."
    )
    for _ in range(RETRIED):
        storage = database.open("namespace", database.plugin())
        storage.set("0", MARK)
        with faults.away():
            for name in ["`set`", "`remove`"]:
                with fault(database, name):
                    OPERATIONS[name](storage)
        storage.set("0", [MARK, "newer"])
        until = monotonic() + AFTER
        restarted = database.open("namespace", database.plugin())
        while monotonic() < until:
            assert outcome(restarted.get, "0") == [MARK, "newer"], (
                "A `set` or `remove` that had failed took effect later, and a newer value is lost."
                " When an operation has raised an error, do not retry it in the background or at"
                " the start."
            )
            sleep(0.01)


def test_operations_wait_for_the_database_at_the_same_time(
    faults: Faults, database: Database
) -> None:
    """While the database is away, the operations of many threads do not wait for each other."""
    storage = skip_if_threads_fail(database.open("namespace", database.plugin()))

    def seconds(threads: int) -> float:
        began = monotonic()
        in_threads(*[partial(outcome, storage.set, "key", MARK)] * threads)
        return monotonic() - began

    seconds(1)
    with faults.away():
        alone, together = seconds(1), seconds(WAITING)
    assert together < alone * WAITING / 3 + 2, (
        f"While the database is away, `set` fails after {alone:.1f} s, but if {WAITING} threads do"
        f" it at once, after {together:.1f} s: each waits for all before it, so the bot stands"
        " still. Do not wait for the database while you hold a lock."
    )


def test_a_reader_does_not_wait_for_a_program_that_writes(
    faults: Faults, database: Database
) -> None:
    """While another program changes the database, everything can be read as it was before."""
    storage = database.open("namespace", database.plugin())
    expected = {"0": MARK, "1": [MARK]}
    for key, value in expected.items():
        storage.set(key, value)
    with faults.writing():
        got = outcome(contents, storage)
        count = outcome(storage.len)
    assert (got, count) == (expected, 2), (
        "While another program changes the database in a transaction, to read everything gives"
        f" {got}, and `len` {count}. A long import would stop all the bot's commands, so read"
        " without a lock for writing, and only what was committed."
    )


def test_a_set_that_waits_for_the_database_keeps_no_reader_waiting(
    faults: Faults, database: Database
) -> None:
    """While a `set` waits for the database, others do not wait longer to read."""
    let_wait(database, 2 * PATIENCE)
    plugin = database.plugin()
    storage = skip_if_threads_fail(database.open("namespace", plugin))
    other = database.open("another namespace", plugin)
    other.set("0", MARK)

    def seconds() -> float:
        began = monotonic()
        outcome(other.get, "0")
        return monotonic() - began

    with faults.away():
        alone = seconds()
        setting = Thread(target=outcome, args=[storage.set, "1", MARK], daemon=True)
        setting.start()
        sleep(MOMENT)
        # If each gets another connection, one of them meets that of the `set`.
        beside = max(seconds() for _ in range(READERS if alone < MOMENT else 1))
    with deadline(SOON, "The database was away, and `set` hangs."):
        setting.join()
    assert beside < alone + PATIENCE, (
        f"While the database cannot be changed, a `get` takes {alone:.1f} s, but {beside:.1f} s if"
        " another thread's `set` is waiting: one command that stores something stops all others."
        " Do not wait while you hold a lock or the only connection."
    )


def test_each_of_many_sets_that_fail_is_an_error(faults: Faults, database: Database) -> None:
    """If many threads set keys while the database is away, each of them gets an error."""
    storage = skip_if_threads_fail(database.open("namespace", database.plugin()))
    keys = [f"new {number}" for number in range(WAITING)]
    with faults.away():
        if not refusal(storage.set, "key", NEW):
            pytest.skip("one `set` alone does not fail, which another test checks")
        failed = in_threads(*(partial(outcome, storage.set, key, MARK) for key in keys))
    stored = set(database.open("namespace", database.plugin()).keys())
    returned = {key for key, raised in zip(keys, failed, strict=True) if raised is None}
    assert returned <= stored, (
        f"The database was away while {WAITING} threads set a key each. {len(returned - stored)} of"
        " the `set` returned without an error, but did nothing. If sets are written together, raise"
        " the error in each of their threads."
    )


def test_waiting_for_the_database_keeps_no_processor_busy(
    faults: Faults, database: Database
) -> None:
    """An operation that waits for the database sleeps."""
    let_wait(database, PATIENCE)
    storage = database.open("namespace", database.plugin())
    with faults.away():
        began = process_time()
        outcome(storage.set, "0", NEW)
        sleep(AFTER)  # Something may go on in the background.
        busy = process_time() - began
    assert busy < PATIENCE / 4, (
        f"While the database is away, one `set` keeps a processor busy for {busy:.1f} seconds, so"
        " the bot and its machine become slow. Sleep before you try again."
    )


def test_waiting_for_the_database_does_not_fill_the_log(
    faults: Faults, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """An operation that waits for the database logs at most a few lines."""
    let_wait(database, PATIENCE)
    storage = database.open("namespace", database.plugin())
    caplog.set_level(logging.INFO)
    caplog.clear()
    with faults.away():
        outcome(storage.set, "0", NEW)
        sleep(AFTER)  # Something may go on in the background.
    told = [record.getMessage() for record in caplog.records]
    assert len(told) < LINES, (
        f"While the database is away, one `set` logs {len(told)} lines, such as {told[0]:.200}. All"
        " commands of an hour would fill the disk. Log the first try, or the last."
    )


def ways(faults: Faults, what: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what makes the database "away" or "damaged", and what ends that."""
    if what == "damaged":
        return partial(faults.damage, everything=False), faults.mend
    return faults.stop, faults.start


def long_loop(storage: StorageBase) -> tuple[list[str], Iterator[str]]:
    """Begin a loop over keys that fill several pages. Returns those it has given, and the rest."""
    for number in range(LOOPED):
        storage.set(f"{number} {'k' * 90}", MARK)
    keys = iter(storage.keys())
    return [next(keys), next(keys)], keys


@pytest.mark.parametrize("what", ["away", "damaged"])
def test_a_loop_over_the_keys_does_not_just_end_when_the_database_goes_away(
    faults: Faults, database: Database, what: str
) -> None:
    """If the database goes away or is damaged, a loop over the keys continues, or is an error."""
    begin, end = ways(faults, what)
    storage = database.open("namespace", database.plugin())
    seen, keys = long_loop(storage)
    begin()
    try:
        with fault(database, "a loop over the keys", f"The database is {what}") as answers:
            seen += keys
            answers.append(len(seen))
    finally:
        end()
    assert answers in ([], [LOOPED]), (
        f"The database was {what}, and a loop over the keys simply ended: it returned {len(seen)}"
        f" of {LOOPED} keys, so the plugin's result is wrong. Do not catch the error."
    )
    assert len(list(storage.keys())) == LOOPED, "The database is back, but `keys` returns too few."


@pytest.mark.parametrize("what", ["away", "damaged"])
def test_a_loop_over_the_keys_does_not_begin_again_after_a_fault(
    faults: Faults, database: Database, what: str
) -> None:
    """If the database is away or damaged for a moment, a loop returns no key twice."""
    begin, end = ways(faults, what)
    seen, keys = long_loop(database.open("namespace", database.plugin()))
    loop = Thread(target=outcome, args=[seen.extend, keys], daemon=True)
    begin()
    loop.start()
    sleep(MOMENT)
    end()
    loop.join(SOON)
    assert not loop.is_alive(), f"The database was {what} for a moment, and a loop hangs."
    twice = len(seen) - len(set(seen))
    assert not twice, (
        f"The database was {what} for a moment, and a loop over the keys returned {twice} of them"
        " twice, so the plugin does everything twice. Retry the query of one page, not the loop."
    )


@pytest.mark.parametrize("restored", [False, True], ids=["new", "restored"])
def test_a_backup_keeps_nobody_waiting(faults: Faults, database: Database, restored: bool) -> None:
    """While another program reads the database, as a backup does, a bot starts and works."""
    let_wait(database, 2.0 * MEANWHILE)  # so that it is noticed
    if restored:
        database.open("before", database.plugin()).set("key", MARK)
        with faults.backup():
            pass
        database.close_all()
        faults.restore()
    storage, other = database.open_twice()
    expected = {"1": [MARK], "0": NEW, "after": b"large" * 100_000}
    for key in ["0", "1", "removed"]:
        storage.set(key, [MARK])
    why = "While a backup reads the database, operations hang."
    with faults.backup(), deadline(MEANWHILE, why):
        try:
            for each in [storage, database.open("namespace", database.plugin())]:
                for key in ["new", "removed"]:
                    each.set(key, MARK)
                    each.remove(key)
                for key, value in expected.items():
                    each.set(key, value)
                database.open("opened meanwhile", database.plugin()).set("key", MARK)
            database.close(storage)
        except Exception as error:
            pytest.fail(
                f"While another program reads the database, as a backup does, the bot fails:"
                f" {error!r}. Let the database keep what a reader still needs, instead of locking"
                " it: in SQLite with `PRAGMA journal_mode = WAL`."
            )
    assert contents(other) == expected, "While a backup read the database, changes were lost."


def test_a_backup_can_be_restored(faults: Faults, database: Database) -> None:
    """An older backup of the database can be restored, and the bot goes on from there."""
    storage, large = database.open("namespace", database.plugin()), b"large" * 600_000
    set_or_skip(storage, "removed", large[::2])
    storage.set("0", MARK)
    storage.set("large", large)
    storage.remove("removed")
    with faults.backup():
        pass
    for turn in range(3):
        database.close(storage)
        storage = database.open("namespace", database.plugin())
        storage.set("0", [MARK, turn])
        storage.set("large", large[turn + 1 :])
        storage.set(f"new {turn}", MARK)
    database.close_all()
    del storage  # The plugin that opened it has the database open.
    faults.restore()
    restored = database.open("namespace", database.plugin())
    restored.set("1", [MARK])
    got = outcome(lambda: contents(restored))
    assert same(got, {"0": MARK, "1": [MARK], "large": large}), (
        "After the database was restored from a backup, it has other data than the backup."
    )


NO_MORE_FILES = partial(none_left, "RLIMIT_NOFILE", "open files and connections")


@contextmanager
def one_more_file() -> Iterator[None]:
    """Let this process open just one more file or connection."""
    with NO_MORE_FILES(FILES), ExitStack() as stack:
        last = os.open(os.devnull, os.O_RDONLY)
        with suppress(OSError):
            while True:
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        os.close(last)
        yield


@pytest.mark.usefixtures("switch_often")
@pytest.mark.parametrize(
    ("name", "limited"),
    [
        *[pytest.param(each, NO_MORE_FILES, id=each) for each in OPERATIONS if each != "`remove`"],
        pytest.param("`get`", one_more_file, id="`get` with one more"),
    ],
)
def test_too_many_open_files_are_an_error(
    database: Database, name: str, limited: Callable[[], AbstractContextManager[None]]
) -> None:
    """If a bot cannot open any more files or connections, that is an error, and does no harm."""
    if database.notes:
        pytest.skip("a database that is in use is not made to fail")
    database.open_twice("probe")
    storage = skip_if_threads_fail(database.open("namespace", database.plugin()))
    expected: dict[str, object] = {"key": MARK, "0": MARK, "1": [MARK]}
    for key, value in expected.items():
        storage.set(key, value)
    # Another test checks whether it can be stored. SQLite then moves its log into the file.
    if not refusal(storage.set, "large", large_value(1)):
        expected["large"] = None
    database.close_all()
    storage = database.open("namespace", database.plugin())  # with hardly any connection yet

    def work() -> list[object]:
        got, until = list[object](), monotonic() + TRYING
        while monotonic() < until:
            got.append(outcome(OPERATIONS[name], storage))
        return got

    with limited():
        got = at_once(*[work] * CONNECTIONS)
    missing = [each for each in chain(*got) if each is KeyError or each is False]
    assert not missing, (
        f"A bot has too many open files, and for {name} the key is missing: plugins store their"
        " defaults over its value. Raise another error."
    )
    right = {"`len`": len(expected), "`keys`": sorted(expected)}.get(name)
    wrong = [each for each in chain(*got) if right and each != right and not isinstance(each, type)]
    assert not wrong, (
        f"A bot has too many open files, and {name} gives {wrong[0]}: a plugin that finds nothing"
        " begins anew, and `!backup` writes an empty backup. Raise an error."
    )
    storage.set("0", [MARK])
    assert storage.get("0") == [MARK], "After too many open files, the bot must be restarted."
    other = database.open("namespace", database.plugin())
    other.set("0", [MARK, "newer"])
    now = {str(each) for each in at_once(*[partial(storage.get, "0")] * CONNECTIONS)}
    assert now == {str([MARK, "newer"])}, (
        f"After too many open files, threads get {now}, although another opener has set a newer"
        " value: a connection was made in another way. If one cannot be made, raise an error."
    )


@pytest.fixture(params=["with every message", "without debug messages"])
def logged(request: pytest.FixtureRequest) -> Iterator[None]:
    """What is logged. The tests see every record, but most bots log no debug messages."""
    if request.param == "without debug messages":
        logging.disable(logging.DEBUG)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("logged")
@pytest.mark.parametrize("name", CHANGES)
def test_a_full_disk_is_an_error(database: Database, name: str) -> None:
    """If the disk is full, what cannot be written is an error, and does no harm."""
    if database.notes:
        pytest.skip("a database that is in use is not made to fail")
    storage = database.open("namespace", database.plugin())
    expected: dict[str, object] = {"0": MARK, "1": [MARK]}
    for key, value in expected.items():
        storage.set(key, value)
    with fault(database, name, "The disk is full") as answers, FULL_DISK():
        answers.append(OPERATIONS[name](storage))
    check_after(database, storage, name, expected, bool(answers))


@pytest.mark.usefixtures("other_processes")
def test_what_is_set_after_a_disk_was_nearly_full_is_there(database: Database) -> None:
    """After a full disk, when a value was only written in part, what is set later is there."""
    if database.notes:
        pytest.skip("a database that is in use is not made to fail")
    storage = database.open("namespace", database.plugin())
    storage.set("0", MARK)
    expected = {"0": MARK}
    for room in [1, 20, 200, 2_000]:
        with FULL_DISK(but=max(sizes(database)) + room):
            outcome(storage.set, "large", MARK * 1_000)
        outcome(storage.remove, "large")
        storage.set(f"{room}", MARK)
        expected[f"{room}"] = MARK
    got = run_process(database, "namespace", "read")
    assert got == str(dict(sorted(expected.items()))), (
        f"The disk was full for a moment, and what was set afterwards is lost: a bot that starts"
        f" finds {got}. After an incomplete write, begin again before it, or write a new file."
    )


def sizes(database: Database) -> list[int]:
    """Return the sizes of the bot's files, in bytes."""
    files = Path(database.config.BOT_DATA_DIR).rglob("*")
    return [0, *(file.stat().st_size for file in files if file.is_file())]


def test_a_large_value_that_does_not_fit_takes_no_space(database: Database) -> None:
    """A large value for which the disk is too full takes no space, however often it is tried."""
    if database.notes:
        pytest.skip("a database that is in use is not made to fail")
    storage = database.open("namespace", database.plugin())
    used = []
    for _ in range(2):  # At first, a database may take some space to work with.
        for turn in range(FITTED):
            storage.set("0", [MARK * 30_000, turn])
        used.append(sum(sizes(database)))
    if used[1] - used[0] >= ROOM:
        pytest.skip("values that are replaced use space, which another test reports")
    value = MARK.encode() * 300_000
    for _ in range(FITTED):
        with FULL_DISK(but=max(sizes(database)) + ROOM):
            outcome(storage.set, "0", value)
    added = sum(sizes(database)) - used[1]
    # A log and a file may each hold it, or as many as three transactions.
    assert added < 4 * len(value), (
        f"The disk has no room for a large value. A plugin tries {FITTED} times to set it, and"
        f" {added:,} more bytes of the disk are in use: soon, nothing can be stored. Remove what"
        " was written, or write all in one transaction."
    )


def test_large_values_that_are_replaced_after_outages_take_no_space(
    faults: Faults, database: Database
) -> None:
    """Large values that are replaced leave nothing on the disk, even after short outages."""
    storage = skip_if_threads_fail(database.open("namespace", database.plugin()))
    values, over = [bytes([number]) * ROOM for number in range(2)], Event()

    def replace_on() -> None:
        while not over.is_set():
            outcome(storage.set, "large", values[0])

    def added() -> int:
        used = []
        for turn in range(REPLACED_AFTER):
            storage.set("large", values[turn % 2])
            used.append(sum(sizes(database)))
        return used[-1] - used[0]

    usual = added()
    replacing = Thread(target=replace_on, daemon=True)
    replacing.start()
    try:
        for _ in range(OUTAGES):
            with faults.away():
                sleep(1.5 * MOMENT)
            sleep(MOMENT / 5)  # so that some values are set, and the next outage meets what follows
    finally:  # A database that cannot be away skips the test.
        over.set()
    with deadline(SOON, "The database was away for moments, and `set` hangs."):
        replacing.join()
    more = added() - usual  # Another test checks what is usual.
    assert more < REPLACED_AFTER * ROOM / 2, (
        f"After outages of some moments, a value of 1 MB is set {REPLACED_AFTER} times, which uses"
        f" {more:,} more bytes of the disk than before: what tidies up has ended with an error."
        " Catch errors within its loop, or tidy up in `set` itself."
    )


@pytest.mark.parametrize("key", ["0", "new"])
def test_a_full_database_is_an_error(faults: Faults, database: Database, key: str) -> None:
    """If the database has no more space, a `set` is an error, and does no harm."""
    storage = database.open("namespace", database.plugin())
    expected = {"0": MARK, "1": [MARK]}
    for each, value in expected.items():
        storage.set(each, value)
    value = [MARK * 50_000]
    limited = storage  # unless a start also needs space, and fails
    with fault(database, "`set`", "The database is full") as answers, faults.full():
        limited = database.open("namespace", database.plugin())
        answers.append(limited.set(key, value))
    got = contents(database.open("namespace", database.plugin()))
    assert same(got, expected | ({key: value} if answers else {})), (
        "The database is full, and `set` returned, but did nothing. Or it failed, but changed other"
        " data. Raise an error, and change nothing."
    )
    check_that_it_sets_again(limited, "is no longer full")


@pytest.mark.parametrize("name", CHANGES)
def test_a_database_that_nobody_may_change_is_an_error(
    faults: Faults, database: Database, name: str
) -> None:
    """If the database is read-only, a change is an error, and everything can still be read."""
    storage = database.open("namespace", database.plugin())
    expected = {"0": MARK, "1": [MARK]}
    for key, value in expected.items():
        storage.set(key, value)
    got: object = expected
    limited = storage  # unless a start also writes, and fails
    with fault(database, name, "The database is read-only") as answers, faults.read_only():
        limited = database.open("namespace", database.plugin())
        got = outcome(lambda: contents(limited))
        answers.append(OPERATIONS[name](limited))
    assert not answers, (
        f"The database is read-only, and {name} returned without an error: what a plugin has set is"
        " lost at the restart. Keep nothing in memory instead."
    )
    assert got == expected, f"The database is read-only, and to read it gives {got}."
    assert contents(storage) == expected, f"The database is read-only, and {name} changed it."
    check_that_it_sets_again(limited, "can be changed again")


@pytest.mark.parametrize("everything", [False, True], ids=["in part", "as a whole"])
@pytest.mark.parametrize("name", READS)
def test_what_is_damaged_is_an_error(
    faults: Faults, database: Database, name: str, everything: bool
) -> None:
    """Data that can no longer be read are an error, and nothing replaces them."""

    def start() -> StorageBase:
        return database.open("namespace", database.plugin())

    database.open_twice("probe")
    storage = start()
    expected: dict[str, object] = dict.fromkeys(LONG_KEYS, MARK * 100)
    for key, value in expected.items():
        storage.set(key, value)
    running = start()
    for read in READS.values():
        read(running)
    for key in LONG_KEYS[:2]:
        expected[key] = [MARK]
        storage.set(key, [MARK])
    right = READS[name](storage)
    database.close(storage)
    openers: list[Callable[[], StorageBase]] = [lambda: running, start]
    faults.damage(everything)
    try:
        for open_storage in openers:
            with fault(database, name, "The database is damaged") as answers:
                answers.append(READS[name](open_storage()))
            assert answers in ([], [right]), (
                f"The database is damaged, and a plugin gets a wrong or outdated answer from"
                f" {name}. Raise an error."
            )
        database.close_all()
    finally:
        faults.mend()
    assert contents(start()) == expected, (
        "The database was damaged, and the storage replaced it with a new one: data that could have"
        " been repaired are lost. Raise an error, and leave the database as it is."
    )


@pytest.mark.parametrize("everything", [False, True], ids=["in part", "as a whole"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_what_is_damaged_loses_nothing(
    faults: Faults, database: Database, name: str, everything: bool
) -> None:
    """If data can no longer be read, a change replaces nothing that can still be repaired."""
    database.open_twice("probe")
    storage, neighbour = database.open("namespace"), database.open("neighbour")
    expected: dict[str, object] = dict.fromkeys(["0", *LONG_KEYS], MARK * 100)
    for each in [storage, neighbour]:
        for key, value in expected.items():
            each.set(key, value)
    database.close(storage)
    database.close(neighbour)
    running = database.open("namespace", database.plugin())
    running.get("0")
    openers: list[Callable[[], StorageBase]] = [
        lambda: running,
        lambda: database.open("namespace", database.plugin()),
    ]
    faults.damage(everything)
    try:
        for open_storage in openers:
            with fault(database, name, "The database is damaged") as answers:
                answers.append(OPERATIONS[name](open_storage()))
            if answers and name == "`remove`":
                break  # A second one has nothing to remove.
        database.close_all()
    finally:
        faults.mend()
    plugin = database.plugin()
    after = dict(expected)
    if name == "`remove`":
        del after["0"]
    else:
        after["new" if "new" in name else "0"] = NEW
    got = [outcome(partial(contents, database.open(n, plugin))) for n in ["namespace", "neighbour"]]
    kept = same(got[1], expected) and (same(got[0], expected) or same(got[0], after))
    assert kept, (
        f"The database was damaged, and then repaired. A {name} in the meantime has replaced it:"
        " other keys and other plugins' data are lost. Raise an error, and leave the database as"
        " it is."
    )


def test_a_set_refused_for_its_size_changes_nothing(storage: StorageBase) -> None:
    """A `set` that is refused because of its size changes nothing."""
    storage.set("key", MARK)
    storage.set("other", [MARK])
    for key in ["key", "new"]:
        expected = contents(storage)
        try:
            storage.set(key, b"\xff" * LARGE)
        except Exception:
            got = contents(storage)
            assert same(got, expected), (
                f"A `set` of {LARGE} bytes was refused, but changed stored data. Check the size"
                " first, or replace the value in one step."
            )
            assert storage.len() == len(expected), "`len` counts a key that was refused."
        else:
            assert same(storage.get(key), b"\xff" * LARGE), (
                f"A value of {LARGE} bytes was truncated."
            )
            storage.remove(key)
    storage.set("key", MARK)
    assert storage.get("key") == MARK, "After a value that was too large, nothing can be stored."
