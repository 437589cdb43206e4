"""Errbot runs commands in a pool of threads, so one open storage is used by many at once."""

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from threading import Barrier, BrokenBarrierError, Thread
from time import monotonic, sleep
from typing import Any

import pytest
from errbot.storage.base import StorageBase

from contract.support.amounts import many
from contract.support.database import Database, open_files
from contract.support.deadlines import at_once
from contract.support.expectations import set_or_skip, skip_if_misses_pass, skip_if_threads_fail
from contract.support.outcomes import contents, outcome, refusal, same
from contract.support.sample_values import (
    MARK,
    Asking,
    AskingToReduce,
    Unstorable,
    large_value,
)
from contract.support.tricky_names import ALIKE

THREADS = 16
NAMES = ["a key", "A KEY", "a_key", "gr\u00f6\u00dfe", "\U0001f600"]
"""Keys that only a connection with the right settings tells apart."""
LOOPED = many(1_100, 120)
"""Keys of a loop: more than a page of a thousand."""
BUSY = 0.2
"""Seconds for which the threads of an event loop are busy with something else."""
CROWD = 60
"""Threads that are more than a pool usually has connections."""
ROUNDS = many(30, 8)
ALIKE_ROUNDS = many(12, 5)
RACES = many(300, 30)
SETS = many(400, 8)
"""Sets of each thread: together thousands, after each of which a storage may tidy up."""
READ, WATCHED = many(2_000, 200), 0.5
"""How often a key is replaced that others read all the time, and for how many seconds."""

pytestmark = pytest.mark.usefixtures("switch_often")


@pytest.fixture
def storages(database: Database) -> list[StorageBase]:
    """The storage for each thread: the same for all, as in a bot."""
    return [skip_if_threads_fail(database.open("namespace"))] * THREADS


def in_threads(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Run the work in all threads at the same moment, and return what each returned.

    An error in a thread is raised here.
    """
    try:
        return at_once(*(partial(work, number) for number in range(count)))
    except TimeoutError as error:
        pytest.fail(
            f"Commands at the same time hang: {error}. Take locks in a fixed order, hold none while"
            " you wait for another, and give the database a timeout."
        )


def test_threads_with_keys_of_their_own_lose_nothing(storage: StorageBase) -> None:
    """Sixteen threads with keys of their own lose nothing."""

    def work(number: int) -> None:
        for turn in range(SETS):
            key = f"{number} {turn}"
            storage.set(key, [MARK, number, turn])
            assert storage.get(key) == [MARK, number, turn], "A thread got another thread's value."
            if turn % 3 == 0:
                storage.remove(key)

    in_threads(work)
    expected = {f"{n} {turn}" for n in range(THREADS) for turn in range(SETS) if turn % 3}
    assert same(set(storage.keys()), expected), "Commands at the same time lost data."
    assert storage.len() == len(expected), "`len` is wrong after commands at the same time."


@pytest.mark.parametrize("names", ALIKE.values(), ids=ALIKE)
def test_threads_with_keys_that_look_alike_lose_nothing(
    storage: StorageBase, names: list[str]
) -> None:
    """Threads that set keys that look alike at the same time each get their own value."""
    skip_if_threads_fail(storage).remove("key")
    for name in names:
        outcome(storage.set, name, name)
    keys = [name for name in names if outcome(storage.get, name) == name]  # as other tests check
    wrong: list[str] = []

    def work(number: int) -> None:
        for turn in range(ALIKE_ROUNDS):
            value = [MARK, number, turn]
            storage.set(keys[number], value)
            got = outcome(storage.get, keys[number])
            if got != value:
                wrong.append(f"{keys[number]!r} {got} instead of {value}")

    in_threads(work, len(keys))
    assert not wrong, (
        f"Threads set the keys {keys} at the same time, each its own, and then one of them gets for"
        f" {wrong[0]}. Give the files, locks and so on of two keys different names."
    )


def test_a_crowd_of_threads_is_served(storage: StorageBase) -> None:
    """Sixty threads at once are served, if need be one after the other."""
    skip_if_threads_fail(storage)

    def work(number: int) -> None:
        for turn in range(5):
            storage.set(f"{number} {turn}", MARK)
            storage.get(f"{number} {turn}")

    refused = [*filter(None, in_threads(partial(refusal, work), CROWD))]
    assert not refused, (
        f"Of {CROWD} threads that use the storage at once, {len(refused)} fail with"
        f" {refused[0].__name__}. If a pool has no connection left, wait for one."
    )


@pytest.mark.parametrize("size", [200, 450_000], ids=["small", "large"])
def test_a_key_that_threads_replace_is_always_there_and_whole(
    storages: list[StorageBase], size: int
) -> None:
    """While threads replace a key, it always exists, with a complete value."""
    rounds = ROUNDS if size == 200 else 2
    set_or_skip(storages[0], "key", b"\0" * size)
    writing = [number for number in range(THREADS) if number % 4]

    def write(number: int) -> None:
        try:
            for _ in range(rounds):
                storages[number].set("key", bytes([number]) * (size + number))
        finally:
            writing.remove(number)

    def read(number: int) -> None:
        while writing:
            got = storages[number].get("key")
            assert same(got, bytes(got[:1]) * (size + got[0])), (
                "A value is a mix of two that were set at the same time. Write the whole value in"
                " one step."
            )
            listed = (storages[number].len(), list(storages[number].keys()))
            assert listed == (1, ["key"]), (
                f"While a key is replaced, `len` and `keys` give {listed}. Replace it in one step."
            )

    def work(number: int) -> None:
        if number % 4:
            write(number)
        else:
            read(number)

    try:
        in_threads(work)
    except KeyError:
        pytest.fail("A key was missing while it was replaced. Replace it in one step.")
    assert (storages[0].len(), list(storages[0].keys())) == (1, ["key"]), (
        "Threads that set one key made several keys."
    )


def test_a_thread_sees_what_it_has_set_while_others_read(
    storages: list[StorageBase], database: Database
) -> None:
    """A thread that has set a key gets its new value, however many others are reading it."""
    value, stale = "x" * 50_000, list[tuple[object, object]]()
    storages[0].set("key", [0, value])
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            outcome(storages[0].get, "key")  # Another test checks whether this works.

    def number_there(storage: StorageBase = storages[0]) -> object:
        return outcome(lambda: storage.get("key")[0])

    def replace() -> None:
        end = monotonic() + WATCHED
        try:
            for number in range(READ):
                if stale or (number > ROUNDS and monotonic() > end):
                    break
                if not refusal(storages[0].set, "key", [number, value]):
                    got = number_there()
                    if isinstance(got, int) and got != number:
                        stale.append((number, got))
        finally:
            ended.set()

    in_threads(lambda number: read() if number else replace(), 5)
    # If the value is lost, another test reports it.
    stored = [number_there(), number_there(database.open("namespace", database.plugin()))]
    late = [got for number, got in stale if number in stored]
    assert not late, (
        f"A thread that has set {stale[0][0]} gets {late[0]}, while others read the key: what it"
        " changes in that value and sets again is wrong. Let a `get` use only what was asked for"
        " after it began."
    )


def test_after_threads_have_set_one_key_everybody_gets_the_same(database: Database) -> None:
    """After threads have set one key at once, all openers get the same of these values."""
    one, _ = map(skip_if_threads_fail, database.open_twice("namespace"))
    plugin = database.plugin()
    for turn in range(RACES):
        key, values = f"key {turn}", [[turn, number] for number in range(4)]
        at_once(*[partial(one.set, key, value) for value in values])
        other = database.open("namespace", plugin)
        got, there = one.get(key), other.get(key)
        database.close(other)
        assert same(got, there), (
            f"Four threads set one key, and then one opener gets {got}, another {there}. Keep no"
            " copy of what was set: another thread may have set the key since."
        )


def set_together(storage: StorageBase, keys: list[str], together: Barrier) -> None:
    """Set each key at the same moment as other threads, unless one of them has failed."""
    for key in keys:
        with suppress(BrokenBarrierError):
            together.wait(5)
        storage.set(key, MARK)


def test_threads_can_set_one_new_key_at_once(storages: list[StorageBase]) -> None:
    """Several threads can set the same new key at once."""
    keys, together = [f"new {turn:02}" for turn in range(ROUNDS)], Barrier(THREADS)
    in_threads(lambda number: set_together(storages[number], keys, together))
    found = sorted(storages[0].keys())
    assert same(found, ["key", *keys]), "Threads that set one key made several keys."


def test_threads_that_remove_one_key_succeed_once(storages: list[StorageBase]) -> None:
    """If several threads remove a key at once, exactly one succeeds."""

    def work(number: int) -> int:
        try:
            storages[number].remove("key")
        except KeyError:
            return 0
        return 1

    skip_if_misses_pass(storages[0])
    for _ in range(10):
        storages[0].set("key", MARK)
        removed = sum(in_threads(work))
        assert removed == 1, (
            f"One key was removed {removed} times, so two commands could take the same job. Let the"
            " database say whether it removed something, instead of looking first."
        )


def test_a_key_that_others_remove_has_its_value_or_is_missing(database: Database) -> None:
    """While others set and remove a key, `get` returns its value or raises KeyError."""
    plugin, wrong, ended = database.plugin(), list[str](), threading.Event()
    storages = [skip_if_threads_fail(database.open(name, plugin)) for name in ["one", "other"]]

    def change(number: int) -> None:
        end = monotonic() + WATCHED
        try:
            for turn in count():
                if turn > ROUNDS and monotonic() > end:
                    break
                storages[number].set("taken", [MARK, number])
                outcome(storages[number].remove, "taken")
        finally:
            ended.set()

    def read(number: int) -> None:
        while not ended.is_set():
            got = outcome(storages[number].get, "taken")
            if got is not KeyError and got != [MARK, number]:
                wrong.append(f"{got} instead of {[MARK, number]}")

    at_once(*[partial(work, number) for number in range(2) for work in [change, read, read]])
    assert not wrong, (
        f"While others removed a key, a plugin got {wrong[0]}: the value of another plugin, or an"
        " error that is no KeyError. Read with one statement, by namespace and key. A row's number"
        " may be another key's by now."
    )


def test_threads_that_get_one_value_at_once_get_copies(storages: list[StorageBase]) -> None:
    """Threads that get the same value at once each get a copy of their own."""
    storages[0].set("key", [MARK])
    if storages[0].get("key") is storages[0].get("key"):
        pytest.skip("every `get` returns the same object, which another test reports")

    def work(number: int) -> list[object]:
        return [storages[number].get("key") for _ in range(ROUNDS)]

    got = [value for values in in_threads(work) for value in values]
    shared = len(got) - len({*map(id, got)})
    assert not shared, (
        f"{shared} times, a thread got the same object as another one, so two commands change each"
        " other's value. Let each `get` unpickle for itself."
    )


def test_two_openers_at_once_lose_nothing(database: Database) -> None:
    """Two plugin instances used at the same time, each in its own namespace, lose nothing."""
    plugins = [database.plugin(), database.plugin()]
    expected = {str(turn): f"{MARK} {turn}" for turn in range(ROUNDS)}

    def work(number: int) -> None:
        storage = plugins[number].open(database.namespace(f"namespace {number}"))
        for key, value in expected.items():
            storage.set(key, value)
        storage.close()

    in_threads(work, 2)
    for number, plugin in enumerate(plugins):
        storage = database.open(f"namespace {number}", plugin)
        assert same(contents(storage), expected), (
            "Two bots on one database lose each other's data, although each has its own namespace."
            " A lock of the plugin instance does not bind others. Change shared data in one step of"
            " the database."
        )


def two_openers(database: Database, values: dict[str, str]) -> Callable[[int], StorageBase]:
    """Set values, and let each of two threads open the namespace with its own plugin instance."""
    plugins = [database.plugin(), database.plugin()]
    one, other = (database.open("namespace", plugin) for plugin in plugins)
    for key, value in values.items():
        one.set(key, value)
    if [outcome(other.get, key) for key in values] != list(values.values()):
        pytest.skip("a second opener does not see what the first one sets")
    return lambda number: plugins[number].open(database.namespace("namespace"))


def test_a_key_that_another_opener_replaces_is_always_there_and_whole(database: Database) -> None:
    """While one opener replaces a key, it always exists for another, with a complete value."""
    open_storage = two_openers(database, {"key": "0 " * 100})
    writing = [True]

    def write(storage: StorageBase) -> None:
        try:
            for turn in range(10 * ROUNDS):
                storage.set("key", f"{turn} " * 100)
        finally:
            writing.clear()

    def read(storage: StorageBase) -> None:
        while writing:
            got = storage.get("key")
            assert same(got, f"{got.split()[0]} " * 100), (
                "Another opener gets an incomplete value while it is replaced. Write the whole"
                " value in one step."
            )

    def work(number: int) -> None:
        storage = open_storage(number)
        if number:
            read(storage)
        else:
            write(storage)
        storage.close()

    try:
        in_threads(work, 2)
    except KeyError:
        pytest.fail(
            "A key is missing for another opener while it is replaced. Replace it in one step of"
            " the database: a lock of the storage does not bind other openers."
        )


def test_two_openers_can_set_one_new_key_at_once(database: Database) -> None:
    """Two openers can set the same new key at once."""
    keys, together = [f"new {turn:02}" for turn in range(2 * ROUNDS)], Barrier(2)
    open_storage = two_openers(database, {"key": MARK})

    def work(number: int) -> None:
        storage = open_storage(number)
        set_together(storage, keys, together)
        storage.close()

    in_threads(work, 2)
    found = sorted(database.open("namespace").keys())
    assert same(found, ["key", *keys]), "Two openers that set one key made several keys."


def test_two_openers_that_remove_one_key_succeed_once(database: Database) -> None:
    """If two openers remove a key at once, exactly one succeeds."""
    keys = [f"key {number}" for number in range(ROUNDS)]
    open_storage = two_openers(database, dict.fromkeys(keys, MARK))
    skip_if_misses_pass(database.open("namespace"))

    def work(number: int) -> list[str]:
        storage = open_storage(number)
        removed = []
        for key in keys:
            with suppress(KeyError):
                storage.remove(key)
                removed.append(key)
        storage.close()
        return removed

    one, other = in_threads(work, 2)
    assert same(sorted([*one, *other]), sorted(keys)), (
        f"Of {ROUNDS} keys, {len({*one} & {*other})} were removed by both of two openers. Let the"
        " database say whether it removed something, instead of looking first. A lock of the"
        " storage does not bind other openers."
    )


def test_a_key_that_is_set_and_removed_at_once_is_there_or_not(database: Database) -> None:
    """If one opener sets a key while another removes it, `get`, `keys` and `len` agree."""
    one, other = map(skip_if_threads_fail, database.open_twice())
    one.remove("key")
    for _ in range(RACES // 3):
        one.set("raced", MARK)
        at_once(partial(one.set, "raced", [MARK]), partial(outcome, other.remove, "raced"))
        got = (outcome(one.get, "raced"), list(one.keys()), one.len())
        assert got in (([MARK], ["raced"], 1), (KeyError, [], 0)), (
            f"A key was set and removed at once, and `get`, `keys` and `len` give {got}: from now"
            " on, `!backup` fails. Change a value and its entry in the list in one step."
        )


def test_keys_and_len_work_while_others_write(storage: StorageBase) -> None:
    """`keys` and `len` work while other threads write."""
    skip_if_threads_fail(storage).remove("key")
    kept = {f"kept {number}" for number in range(250)}
    for key in kept:
        storage.set(key, MARK)

    def work(number: int) -> None:
        for turn in range(ROUNDS):
            key = f"{number} {turn}"
            storage.set(key, MARK)
            if number % 4 == 0:
                seen = list(storage.keys())
                assert len(seen) == len(set(seen)), (
                    "`keys` returned a key twice while others wrote."
                )
                assert same(kept - set(seen), set()), "`keys` missed a key while others wrote."
                assert key in seen, (
                    "`keys` missed a key that this thread had set. Let `keys` use only what was"
                    " asked for after it began."
                )
                assert storage.len() >= len(kept), "`len` is too small while others write."
            storage.remove(key)

    in_threads(work)
    assert same(set(storage.keys()), kept), "Commands at the same time lost each other's data."


def test_a_loop_over_the_keys_keeps_no_other_thread_waiting(storage: StorageBase) -> None:
    """A loop over the keys blocks no other thread."""
    skip_if_threads_fail(storage).remove("key")
    for key in ["a", "b", "c"]:
        storage.set(key, MARK)

    def others(key: str) -> None:
        storage.set(key, [MARK])
        storage.set("other", MARK)
        storage.remove("other")

    loop = iter(storage.keys())
    key = next(loop)
    try:
        at_once(partial(others, key), seconds=10)
    except TimeoutError:
        pytest.fail(
            "While one command loops over its keys, all others wait. Hold no lock and no"
            " transaction between two keys."
        )
    del loop  # Another test checks whether the loop continues.
    assert storage.get(key) == [MARK], "What is set during a loop over the keys is lost."


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not list a process's open files")
def test_threads_that_have_ended_leave_nothing_open(storage: StorageBase) -> None:
    """Threads that have ended leave no connection open."""
    skip_if_threads_fail(storage)

    def work() -> None:
        storage.set("key", MARK)
        storage.get("key")

    work()
    before = open_files()
    for _ in range(100):
        at_once(work)
    left = open_files() - before
    assert left <= 10, (
        f"100 threads that have ended left {left} files or connections open. Errbot polls in a new"
        " thread each time (`start_poller`). Return connections to a pool, or close them with their"
        " thread."
    )


def test_operations_that_fail_harm_no_other_thread(storage: StorageBase) -> None:
    """A failed operation affects no other thread."""
    skip_if_threads_fail(storage)
    storage.set("unstorable", MARK)
    refusal(storage.set, "unstorable", Unstorable())
    if refusal(storage.set, "key", MARK):
        pytest.skip("after a `set` that failed, the next one fails")
    names = ["\ud800", "k" * 70_000]
    refused = [name for name in names if refusal(storage.set, name, MARK)]
    for name in names:
        outcome(storage.remove, name)
    errors: list[Exception] = []

    def work(number: int) -> None:
        for turn in range(20):
            with suppress(KeyError):
                storage.get("missing")
            with suppress(KeyError):
                storage.remove("missing")
            with suppress(Exception):
                storage.set("unstorable", Unstorable())
            for name in refused:
                with suppress(Exception):
                    storage.set(name, MARK)
            storage.set(f"{number} {turn}", MARK)
            storage.get(f"{number} {turn}")

    def note_errors(number: int) -> None:
        try:
            work(number)
        except Exception as error:
            errors.append(error)

    threads = [Thread(target=note_errors, args=[number], daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    deadline = monotonic() + 60
    for thread in threads:
        thread.join(max(0, deadline - monotonic()))
    if any(thread.is_alive() for thread in threads):
        pytest.fail("After an operation that failed, all others hang. Let it release what it held.")
    assert not errors, (
        f"After operations that failed, others failed too: {errors[0]!r}. Release the connection"
        " and the lock after each failure."
    )
    lost = {f"{number} {turn}" for number in range(THREADS) for turn in range(20)}
    lost -= set(storage.keys())
    assert not lost, (
        f"{len(lost)} values are gone: an operation that failed undid what other threads had set."
    )


def in_one_thread(work: Callable[[], Any], why: str) -> Any:
    """Run the work in its own thread. Fails with the reason if it raises an error or hangs."""
    try:
        [result] = at_once(work, seconds=20)
    except TimeoutError:
        pytest.fail(f"{why} It hangs.")
    except Exception as error:
        pytest.fail(f"{why} It raised {type(error).__name__}: {error}")
    return result


def use(storage: StorageBase, key: str) -> None:
    """Do one operation of each kind."""
    storage.set(key, MARK)
    assert storage.get(key) == MARK
    assert key in storage.keys()
    assert storage.len() > 0
    storage.remove(key)


def test_a_storage_that_one_thread_opened_is_used_and_closed_by_another(
    database: Database,
) -> None:
    """A storage that one thread has opened can be used and closed by others later."""
    why = (
        "Errbot opens a storage in one thread, uses it in another and closes it in a third. Keep"
        " nothing that belongs to one thread (with sqlite3: check_same_thread=False)."
    )
    plugin = in_one_thread(database.plugin, why)
    name = database.namespace("namespace")
    storage = in_one_thread(lambda: plugin.open(name), why)
    in_one_thread(lambda: storage.set("kept", MARK), why)
    for key in NAMES:
        outcome(storage.set, key, key)  # Other tests check which ones can be stored.
    expected = [outcome(storage.get, key) for key in NAMES]
    got = in_one_thread(lambda: [outcome(storage.get, key) for key in NAMES], why)
    in_one_thread(lambda: [outcome(storage.set, key, key) for key in NAMES], why)
    got += [outcome(storage.get, key) for key in NAMES]
    assert got == expected * 2, (
        f"Of the keys {NAMES}, another thread gets {got}. Configure each new connection."
    )
    for key in NAMES:
        outcome(storage.remove, key)
    in_one_thread(lambda: use(storage, "key"), why)
    in_one_thread(storage.close, why)
    again = in_one_thread(lambda: plugin.open(name), why)
    assert again.get("kept") == MARK, (
        "Data that one thread has set are gone after another has closed the storage."
    )
    use(again, "key")
    again.close()


def test_a_loop_over_the_keys_may_go_on_in_another_thread(database: Database) -> None:
    """A loop over the keys that one thread has begun can be continued by another."""
    skip_if_threads_fail(database.open("probe"))
    storage = database.open("namespace")
    expected = sorted(f"key {number}" for number in range(LOOPED))
    for key in expected:
        storage.set(key, MARK)
    why = (
        "A plugin with an event loop lets other threads take the keys one by one. Keep nothing for"
        " a loop that belongs to a thread or a context."
    )
    keys = in_one_thread(lambda: iter(storage.keys()), why)
    seen = [in_one_thread(partial(next, keys), why)]
    seen += in_one_thread(lambda: list(keys), why)
    assert sorted(seen) == expected, "A loop that another thread continued returned other keys."


@pytest.mark.parametrize("kind", [Asking, AskingToReduce])
def test_an_object_may_ask_the_storage_while_it_is_pickled(
    database: Database, kind: type[Asking], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object can use the storage while it is pickled or unpickled."""
    storage, other = skip_if_threads_fail(database.open("namespace")), database.open("other")

    def ask() -> None:
        for each in [storage, other]:
            use(each, "asked")

    def work() -> object:
        storage.set("key", kind())
        storage.set("key", [kind(), kind()])
        return storage.get("key")

    monkeypatch.setattr(Asking, "ask", [lambda: None])
    set_or_skip(storage, "key", kind())
    if storage.get("key") != kind():
        pytest.skip("such an object comes back changed, even if it asks nothing")
    storage.remove("key")
    monkeypatch.setattr(Asking, "ask", [ask])
    got = in_one_thread(
        work,
        "A plugin's class uses the storage in `__getstate__`, `__setstate__` or `__reduce__`."
        " Pickle and unpickle while you hold no lock, transaction or connection.",
    )
    assert got == [kind(), kind()], "An object that uses the storage itself comes back changed."
    assert (storage.len(), list(storage.keys()), other.len()) == (1, ["key"], 0)


def test_objects_of_many_threads_may_ask_the_storage_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects of many threads can use the storage at the same time, while they are unpickled."""
    storage = skip_if_threads_fail(database.open("namespace"))
    storage.set("asked", MARK)
    monkeypatch.setattr(Asking, "ask", [lambda: None])
    set_or_skip(storage, "key", Asking())
    together = Barrier(THREADS)

    def ask() -> None:
        with suppress(BrokenBarrierError):  # Some wait for others, before they can begin.
            together.wait(1)
        assert storage.get("asked") == MARK

    monkeypatch.setattr(Asking, "ask", [ask])
    try:
        at_once(*[partial(storage.get, "key")] * THREADS, seconds=20)
    except TimeoutError:
        pytest.fail(
            f"{THREADS} threads get objects that use the storage in `__setstate__`, and wait for"
            " each other for ever. Hold no connection while you unpickle, or a pool runs out."
        )


class Guarded:
    """An object that takes a lock of its own while it is pickled or unpickled."""

    lock, began = threading.Lock(), threading.Event()

    def __getstate__(self) -> str:
        self.began.set()
        with self.lock:
            return MARK

    def __setstate__(self, state: str) -> None:
        self.began.set()
        with self.lock:
            assert state == MARK


@pytest.mark.parametrize("operation", ["get", "set"])
def test_an_object_may_take_a_lock_of_its_own(database: Database, operation: str) -> None:
    """An object may take a lock while it is pickled that another thread holds during a `set`."""
    storage = skip_if_threads_fail(database.open("namespace"))
    set_or_skip(storage, "guarded", Guarded())
    arguments = ["guarded", Guarded()][: 2 if operation == "set" else 1]
    thread = Thread(target=outcome, args=[getattr(storage, operation), *arguments], daemon=True)
    Guarded.began.clear()
    with Guarded.lock:
        thread.start()
        Guarded.began.wait(1)
        try:
            at_once(partial(storage.set, "key", MARK), partial(outcome, storage.get, "missing"))
        except TimeoutError:
            pytest.fail(
                f"While an object waits for a lock in `{operation}`, all others wait for the"
                " storage. If the one that holds that lock is among them, the bot hangs. Pickle"
                " before you take a lock, and unpickle after you have released it."
            )
    thread.join(10)
    assert storage.get("key") == MARK


class Held(Guarded):
    """The same with a lock that its thread may take again."""

    lock = threading.RLock()  # type: ignore[assignment]


@pytest.mark.parametrize("operation", ["get", "set"])
def test_an_object_may_take_a_lock_that_its_thread_holds(
    database: Database, operation: str
) -> None:
    """An object may take a lock while it is pickled that the thread that sets it already holds."""
    storage = skip_if_threads_fail(database.open("namespace"))
    set_or_skip(storage, "held", Held())

    def work() -> object:
        with Held.lock:
            return storage.set("held", Held()) if operation == "set" else storage.get("held")

    try:
        at_once(work, seconds=10)
    except TimeoutError:
        pytest.fail(
            f"`{operation}` hangs: an object takes an RLock that its plugin holds around"
            f" `{operation}`. Pickle and unpickle in the thread that calls."
        )


@pytest.mark.parametrize(
    ("value", "turns"),
    [([MARK], many(300, 60)), (large_value(1), many(12, 5))],
    ids=["small", "large"],
)
def test_equal_values_of_threads_go_their_own_ways(
    database: Database, value: object, turns: int
) -> None:
    """Threads can set and remove equal values at the same time."""
    storage = skip_if_threads_fail(database.open("namespace"))
    set_or_skip(storage, "key", value)

    def work(number: int) -> None:
        for _ in range(turns):
            storage.set(f"key {number}", value)
            assert same(outcome(storage.get, f"key {number}"), value), (
                "While other threads removed an equal value, a value was lost. If equal values are"
                " stored once, count and remove them in one transaction."
            )
            storage.remove(f"key {number}")

    storage.remove("key")
    in_threads(work, 3)
    assert storage.len() == 0


def test_operations_of_every_kind_at_once_come_to_their_end(database: Database) -> None:
    """Operations of every kind at once, in several namespaces, do not block each other forever."""
    database.open_twice("probe")
    plugin = database.plugin()
    names = [database.namespace(name) for name in ["one", "other"]]
    storages = [skip_if_threads_fail(plugin.open(name)) for name in names]
    for storage in storages:
        storage.remove("key")
        for key in "abc":
            storage.set(key, MARK)

    def remove(storage: StorageBase, key: str) -> None:
        with suppress(KeyError):
            storage.remove(key)

    def loop(storage: StorageBase, key: str) -> None:
        for found in storage.keys():
            if found not in "abc":
                remove(storage, found)
            if found == key[0]:
                break  # a loop may be left early

    def reopen(name: str) -> None:
        storage = plugin.open(name)
        assert storage.get("a") == MARK
        storage.close()

    def kinds(number: int, name: str, storage: StorageBase) -> list[Callable[[], object]]:
        own = f"{number}"
        return [
            lambda: storage.set(own, [MARK]),
            lambda: storage.set("a", MARK),
            lambda: storage.get("a"),
            lambda: remove(storage, own),
            lambda: remove(storage, "missing"),
            lambda: storage.len(),
            lambda: list(storage.keys()),
            lambda: loop(storage, "abc"[number % 3]),
            lambda: reopen(name),
        ]

    def work(number: int) -> None:
        pairs = zip(names, storages, strict=True)
        mine = [kind for name, storage in pairs for kind in kinds(number, name, storage)]
        turn, until = 0, monotonic() + 0.3
        while turn < len(mine) or monotonic() < until:
            mine[(number + turn * (number + 1)) % len(mine)]()
            mine[turn % len(mine)]()
            turn += 1

    in_threads(work)
    for storage in storages:
        assert {"a", "b", "c"} <= set(storage.keys()), (
            "Operations at the same time have lost a key."
        )
        try:
            left = contents(storage)
        except KeyError:
            pytest.fail(
                "After operations at the same time, a key has no value. Change both at once."
            )
        assert len(left) == storage.len(), "After operations at the same time, `len` is wrong."
    for storage in storages:
        storage.close()


def test_a_storage_works_beside_an_event_loop(database: Database) -> None:
    """A storage works in a thread that runs an event loop, as some of Errbot's backends do."""

    if refused := refusal(lambda: use(database.open("probe"), "key")):
        pytest.skip(f"the storage fails without an event loop, too, with a {refused.__name__}")

    async def start() -> tuple[Any, StorageBase]:
        plugin = database.plugin()
        storage = plugin.open(database.namespace("namespace"))
        use(storage, "key")
        return plugin, storage

    async def go_on(storage: StorageBase, number: int) -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        loop.run_in_executor(None, sleep, BUSY)
        use(storage, f"{number}")
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0)

    def work() -> None:
        plugin, storage = asyncio.run(start())
        use(storage, "key")
        for number in range(2):  # a different loop each time, because the previous one is closed
            asyncio.run(go_on(storage, number))
        use(plugin.open(database.namespace("other")), "key")
        storage.close()

    in_one_thread(
        work,
        "Backends such as Discord's run an event loop in the bot's thread, where `asyncio.run`"
        " fails. Use a synchronous client, or run the client's loop in its own thread.",
    )


def test_threads_that_have_ended_leave_no_thread_behind(database: Database) -> None:
    """Threads that have ended, and storages that are closed, leave no thread behind."""
    plugin = database.plugin()
    name = database.namespace("namespace")

    def work() -> None:
        storage = plugin.open(name)
        use(storage, f"{threading.get_ident()}")
        storage.close()

    work()
    before = threading.active_count()
    for _ in range(40):
        at_once(work)
    deadline = monotonic() + 2
    while (left := threading.active_count() - before) > 4 and monotonic() < deadline:
        sleep(0.01)
    assert left <= 4, (
        f"40 threads that have ended, and had closed what they opened, left {left} threads. A bot"
        " that runs for months can start no more. Let one thread serve all, or none."
    )
