"""Many keys, and many sets of one key: only stored data take up space and time."""

import gc
import logging
import math
import random
import sys
import threading
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count, islice
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any
from weakref import ref

import pytest
from errbot.storage.base import StorageBase

from contract.support.amounts import many
from contract.support.database import Database, open_files, run_process
from contract.support.deadlines import at_once
from contract.support.expectations import set_or_skip, skip_if_threads_fail
from contract.support.faults import Faults
from contract.support.measure import memory, steps
from contract.support.outcomes import contents, outcome, same
from contract.support.sample_values import (
    LARGE,
    MARK,
    Person,
    Unreadable,
    Unstorable,
    large_value,
)

PAGES = many(3_000, 600)
"""Keys that fill several pages, if a database returns them page by page."""
READ = many(400, 150)
"""Values of 100 KB that are read one after the other."""
FAILURES, MISSES, FAILING = many(300, 100), many(1_100, 100), 45
"""Operations that fail and that find no key, and for how many seconds they do."""
ERRORS = 30
"""How often an operation fails while its caller holds an object."""
GROWING = 150
"""Sets with which a value grows to its size."""
INODE = 256
"""Bytes that a file system needs for each file, even an empty one."""
SIXTEEN_BITS = 66_000
"""More than 65,536, the limit of a 16-bit number."""
VERY_MANY = 110_000
"""More than that, and than the removed keys that a query skips."""


def test_the_way_to_the_next_key_does_not_get_longer(storage: StorageBase) -> None:
    """The next key of a loop over the keys costs the same on every page."""
    for number in range(PAGES):
        storage.set(f"key {number}", None)
    loop = iter(storage.keys())

    def cost_after(keys: int) -> float:
        deque(islice(loop, keys), maxlen=0)
        return median(steps(lambda: next(loop, None)) for _ in range(31))

    early, late = cost_after(20), cost_after(PAGES - 200)
    assert late <= early + 3, (
        f"The {PAGES}th key takes {late} Python steps, an early one takes {early}: a loop over a"
        " million keys would never end, or raise RecursionError. Fetch the pages in a `while` loop,"
        " not each in a generator inside the previous one."
    )


def test_the_first_key_is_cheap_whatever_was_removed_before(database: Database) -> None:
    """The first key, `len` and `keys` stay cheap, however many keys were removed before."""
    fresh, cleared = database.open("fresh"), database.open("cleared")
    for number in range(PAGES):
        cleared.set(f"{number} {'k' * 100}", None)
    for key in list(cleared.keys())[:-5]:
        cleared.remove(key)
    for key in list(cleared.keys()):
        fresh.set(key, None)

    def cost(use: Callable[[], object]) -> tuple[int, int]:
        use()  # It may connect.
        return steps(use), memory(use)

    uses: dict[str, Callable[[StorageBase], object]] = {
        "The first key": lambda storage: next(iter(storage.keys())),
        "`keys`": lambda storage: list(storage.keys()),
        "`len`": lambda storage: storage.len(),
    }
    for name, use in uses.items():
        (few, small), (more, large) = (cost(partial(use, one)) for one in [fresh, cleared])
        assert (more <= 2 * few + 50, large <= 2 * small + PAGES * 30) == (True, True), (
            f"{name} took {few} Python steps and {small} bytes in a new namespace, but {more} steps"
            f" and {large} bytes in one from which {PAGES} keys had been removed. `clear` asks for"
            " the first key after each removal. Never iterate over removed keys."
        )


def test_other_keys_cost_an_operation_nothing(storage: StorageBase) -> None:
    """The other keys of a namespace make no operation on one key slower."""
    uses: dict[str, Callable[[], object]] = {
        "`get`": lambda: storage.get("key"),
        "`get` of a missing key": lambda: outcome(storage.get, "missing"),
        "`set`": lambda: storage.set("key", MARK),
        "`set` of a new key and its `remove`": lambda: (
            storage.set("new", MARK),
            storage.remove("new"),
        ),
    }

    def cost(use: Callable[[], object]) -> tuple[int, int]:
        use()  # It may connect.
        return steps(use), min(memory(use) for _ in range(3))  # A table may grow meanwhile.

    storage.set("key", MARK)
    before = {name: cost(use) for name, use in uses.items()}
    for number in range(PAGES):
        storage.set(f"{number} {'k' * 100}", None)
    for name, use in uses.items():
        (few, small), (more, large) = before[name], cost(use)
        assert (more <= 2 * few + 100, large <= 2 * small + PAGES * 30) == (True, True), (
            f"{name} took {few} Python steps and {small} bytes in a new namespace, and takes"
            f" {more} steps and {large} bytes among {PAGES} other keys. Let the database find a key"
            " by an index, instead of going through all."
        )


@pytest.mark.parametrize(
    "owner", ["namespace", "other"], ids=["of the same namespace", "of others"]
)
def test_many_keys_make_the_database_do_no_more(
    faults: Faults, database: Database, owner: str
) -> None:
    """The database does not do more for an operation because it holds many other keys."""
    with faults.counting() as done:
        plugin = database.plugin()
        storage, full = database.open("namespace", plugin), database.open(owner, plugin)
        uses: dict[str, Callable[[], object]] = {
            "`get`": lambda: storage.get("key"),
            "`get` of a missing key": lambda: outcome(storage.get, "missing"),
            "`set`": lambda: storage.set("key", MARK),
            "`set` and `remove`": lambda: (storage.set("new", MARK), storage.remove("new")),
            "the first key of `keys`": lambda: next(iter(storage.keys())),
        }
        if owner != "namespace":
            uses |= {"`keys`": lambda: list(storage.keys()), "`len`": storage.len}

        def costs() -> dict[str, int]:
            for use in uses.values():
                use()  # It may connect.
            found = {}
            for name, use in uses.items():
                before = done()
                use()
                found[name] = done() - before
            return found

        storage.set("key", MARK)
        few = costs()
        for number in range(PAGES):
            full.set(f"{number} {'k' * 100}", None)
        dearer = {
            name: (few[name], cost)
            for name, cost in costs().items()
            if cost > 2 * few[name] + PAGES
        }
    assert not dearer, (
        f"Because the database holds {PAGES} other keys, it does more steps: {dearer}. Let it find"
        " a namespace and a key by an index that begins with the namespace."
    )


@pytest.mark.thorough
def test_a_hundred_thousand_keys_are_all_there(storage: StorageBase) -> None:
    """More than a hundred thousand keys are counted, listed, found and removed, each once."""
    expected = [f"key {number}" for number in range(VERY_MANY)]
    for number, key in enumerate(expected):
        storage.set(key, number)
    assert storage.len() == VERY_MANY, f"`len` returns {storage.len()} for {VERY_MANY} keys."
    got = list(islice(storage.keys(), 2 * VERY_MANY))
    assert same(sorted(got), sorted(expected)), (
        f"Of {VERY_MANY} keys, `keys` returned {len(got)}, {len(set(got))} of them different. Check"
        " the database's limits: on the rows in an answer, and on the time for it."
    )
    for number in range(0, VERY_MANY, 500):
        assert storage.get(expected[number]) == number, (
            "Among many keys, one has another key's value."
        )
    for key in storage.keys():
        storage.remove(key)
    assert (storage.len(), list(storage.keys())) == (0, []), "A loop over the keys has left some."


@pytest.mark.parametrize(
    ("least", "size", "seconds"),
    [(1_000, 0, 2.0), pytest.param(VERY_MANY, 4_000, 0.0, marks=pytest.mark.thorough)],
)
def test_a_key_can_be_set_any_number_of_times(
    database: Database, least: int, size: int, seconds: float
) -> None:
    """A key can be set tens of thousands of times, which makes nothing slower and loses no key."""
    storage, listed = database.open(), database.open("listed")
    names = [f"key {number}" for number in range(PAGES)]
    for name in names:
        listed.set(name, None)
    loop = iter(listed.keys())
    seen = [next(loop)]
    storage.set("other", MARK)
    turns = count()

    def set_next() -> None:
        storage.set("key", ["x" * size, next(turns)])

    def cost() -> list[float]:
        uses: list[Callable[[], object]] = [set_next, lambda: storage.get("key"), storage.len]
        return [median(steps(use) for _ in range(9)) for use in uses]

    set_next()
    early = cost()
    until = monotonic() + seconds
    for times in count(1):
        set_next()
        if times >= least and (times >= SIXTEEN_BITS or monotonic() > until):
            break
    late = cost()
    last = ["x" * size, next(turns) - 1]
    assert (storage.get("key"), storage.get("other")) == (last, MARK), (
        f"After {times} sets of one key, it does not have the last value."
    )
    assert storage.len() == 2, f"{times} sets of one key made several keys."
    for key in ["new", "newer"]:
        storage.set(key, [MARK, key])
    assert contents(storage) == {
        **{"key": last, "other": MARK},
        **{key: [MARK, key] for key in ["new", "newer"]},
    }, f"After {times} sets of one key, new keys or others are lost, or have its value."
    seen += loop
    assert same(sorted(seen), sorted(names)), (
        f"A loop that began before {times} changes shows {len(seen)} of {len(names)} keys."
    )
    assert all(after <= 1.5 * before + 50 for before, after in zip(early, late, strict=True)), (
        f"At first, `set`, `get` and `len` took {early} Python steps; after {times} sets of one"
        f" key, they take {late}. Keep only the newest value."
    )


def test_any_number_of_operations_may_fail(database: Database) -> None:
    """Hundreds of operations that fail have no effect afterwards."""
    storage = skip_if_threads_fail(database.open("namespace"))
    outcome(storage.set, "unreadable", Unreadable(AttributeError("no such attribute")))
    no_text: Any = 7
    missing = [lambda: storage.get("missing"), lambda: storage.remove("missing")]
    failing: list[Callable[[], object]] = [
        *[lambda: storage.get(no_text), lambda: storage.remove(no_text)],
        *[lambda: storage.set(no_text, MARK), lambda: storage.set("key", Unstorable())],
        *[lambda: storage.get("\ud800"), lambda: storage.set("k" * 70_000, MARK)],
        lambda: storage.get("unreadable"),
    ]

    def fail_often() -> None:
        for operation in [*missing, *failing]:
            for _ in range(MISSES if operation in missing else FAILURES):
                if monotonic() < until:  # A slow database fails less often.
                    outcome(operation)
            storage.set("key", [MARK])
            assert storage.get("key") == [MARK]

    until = monotonic() + FAILING
    try:
        at_once(fail_often, seconds=2 * FAILING)
    except TimeoutError:
        pytest.fail(
            f"After up to {MISSES} operations that failed, the next one hangs. Return what each"
            " operation takes from a pool in a `finally`."
        )


@pytest.fixture
def quiet() -> Iterator[None]:
    """Log nothing, because the tests keep the log in memory."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def turn_of(storage: StorageBase, work: str, size: int) -> Callable[[], object]:
    """Return an action to repeat, with values of this size."""
    numbers, made = count(), random.Random(size)

    def replace() -> None:
        storage.set("key", made.randbytes(size))
        storage.get("key")

    def set_twice() -> None:
        value = made.randbytes(size)
        storage.set("key", value)
        storage.set("key", value)

    def append() -> None:
        storage.set("key", made.randbytes(next(numbers) * size // GROWING))

    def remove_value() -> None:
        key = f"key {next(numbers)}"
        storage.set(key, made.randbytes(size))
        storage.get(key)
        storage.remove(key)

    def long_key() -> str:
        return f"{next(numbers)}{'k' * (size - 9)}"

    def remove_key() -> None:
        key = long_key()
        storage.set(key, None)
        storage.get(key)
        storage.remove(key)

    def miss() -> None:
        with pytest.raises(KeyError):
            storage.get(long_key())

    def set_in_vain() -> None:
        with suppress(Exception):
            storage.set("key", [made.randbytes(size), Unstorable()])

    def get_in_vain() -> None:
        with suppress(Exception):
            storage.set(
                "key", Unreadable(AttributeError("no such attribute"), made.randbytes(size))
            )
            storage.get("key")

    def replace_in_thread() -> None:
        at_once(replace)

    def replace_under_long_key() -> None:
        storage.set("k" * size, next(numbers))

    works: dict[str, Callable[[], object]] = {
        "replaced values": replace,
        "values that were set twice": set_twice,
        "a value that grew": append,
        "removed values": remove_value,
        "removed keys": remove_key,
        "missed keys": miss,
        "values that cannot be stored": set_in_vain,
        "values that cannot be read": get_in_vain,
        "values that short threads replace": replace_in_thread,
        "small values that short threads replace": replace_in_thread,
        "small values that are replaced": replace_under_long_key,
        "small values that are replaced and read": replace,
    }
    return works[work]


def growth(
    turn: Callable[[], object], turns: int, size: int, used: Callable[[], int], limit: float
) -> float:
    """Return the growth of the space used, as a share of all that was written.

    As long as it is above the limit, more is written, because it may end somewhere, as a cache
    does, or a log that is compacted. Half-way, it is measured anew, because Python may have made
    its table of interned strings larger, which takes megabytes at once.
    """
    share = math.inf
    for _ in range(2):
        before = used()
        for written in range(turns, 5 * turns + 1, turns):
            for _ in range(turns):
                turn()
            if (share := (used() - before) / (written * size)) < limit:
                return share
    return share


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("work", "turns", "size", "limit"),
    [
        *[("replaced values", 150, 20_000, 0.4), ("removed values", 150, 20_000, 0.4)],
        *[("removed keys", 1_500, 240, 0.4), ("missed keys", 1_500, 240, 0.4)],
        *[
            ("values that were set twice", 150, 20_000, 0.4),
            ("a value that grew", GROWING, 30_000, 0.2),
        ],
        ("values that cannot be stored", 150, 20_000, 0.4),
        ("values that cannot be read", 150, 20_000, 0.4),
        ("values that short threads replace", 150, 20_000, 0.4),
        ("small values that short threads replace", 500, 240, 0.4),
        ("small values that are replaced and read", 1_500, 240, 0.05),  # less than a float for each
    ],
)
def test_what_is_replaced_removed_or_missed_takes_no_memory(
    storage: StorageBase, work: str, turns: int, size: int, limit: float
) -> None:
    """Replaced, removed and refused values, and missing keys, use no memory."""
    if "threads" in work:
        skip_if_threads_fail(storage)

    def used() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        turn = turn_of(storage, work, size)
        for _ in range(turns // 5):
            turn()
        share = growth(turn, turns, size, used, limit)
    finally:
        tracemalloc.stop()
    assert share < limit, (
        f"{100 * share:.1f} % of all bytes of {work} stay in memory, so over months a bot needs"
        " more and more. Keep none of them, or limit how many."
    )


@pytest.mark.usefixtures("quiet")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not list a process's open files")
def test_loops_that_were_left_leave_nothing_behind(storage: StorageBase) -> None:
    """Loops over the keys that were left early keep no memory, file, connection or thread."""
    for number in range(PAGES):
        storage.set(f"key {number}", None)

    def leave() -> None:
        for _ in range(20):
            for length in [1, PAGES // 2, PAGES - 100]:
                loop = iter(storage.keys())
                deque(islice(loop, length), maxlen=0)
                sleep(0.003)  # What reads ahead waits for it meanwhile.
                del loop
        gc.collect()

    leave()
    opened, threads = open_files(), threading.active_count()
    limit = max(PAGES * 40, 100_000)
    tracemalloc.start()
    try:
        for _ in range(2):  # Now and then, Python makes a table of its own larger.
            before = tracemalloc.get_traced_memory()[0]
            leave()
            grown = tracemalloc.get_traced_memory()[0] - before
            if grown < limit:
                break
    finally:
        tracemalloc.stop()
    left = open_files() - opened
    assert left < 10, (
        f"60 loops over {PAGES} keys that were left early keep {left} files or connections open:"
        " eventually the bot fails with `Too many open files`. Use no connection for a loop."
    )
    until = monotonic() + 2
    while (started := threading.active_count() - threads) >= 10 and monotonic() < until:
        sleep(0.01)
    assert started < 10, (
        f"60 loops over {PAGES} keys that were left early leave {started} threads: eventually the"
        " bot can start no more. A loop that nobody continues must end what works for it."
    )
    assert grown < limit, (
        f"60 loops over {PAGES} keys that were left early keep {grown} bytes of memory. Each"
        " `popitem` leaves one. Remember no loops."
    )


@pytest.mark.usefixtures("quiet")
def test_an_error_that_was_handled_keeps_nothing_in_memory(storage: StorageBase) -> None:
    """An error that was handled is freed, and with it what its callers held."""
    outcome(storage.set, "unreadable", Unreadable(AttributeError("no such attribute")))
    operations: list[Callable[[], object]] = [
        *[lambda: storage.get("unreadable"), lambda: storage.set("key", Unstorable())],
        *[lambda: storage.get("missing"), lambda: storage.remove("missing")],
    ]
    held: list[ref[Person]] = []

    def fail_once(operation: Callable[[], object]) -> None:
        person = Person(MARK)
        held.append(ref(person))
        with suppress(Exception):
            operation()

    for operation in operations:
        for _ in range(ERRORS):
            fail_once(operation)
    gc.collect()
    kept = sum(person() is not None for person in held)
    assert kept <= 2 * len(operations), (
        f"After {len(held)} errors, {kept} of the objects that their callers held are still in"
        " memory: an error leads to all variables of each frame. Keep the words of an error."
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process uses")
def test_large_values_that_are_replaced_leave_memory_at_once(database: Database) -> None:
    """Large values that are replaced are freed at once, including by libraries written in C."""
    set_or_skip(database.open("namespace"), "key", large_value(0))
    left = int(run_process(database, "namespace", "replace-in-memory"))
    assert left < 10, (
        f"While values of {LARGE} bytes were replaced, {left} of them stayed in memory. Keep no"
        " history, and let no object refer to itself, such as a function that calls itself by its"
        " name: only Python's garbage collection frees it, and that counts no bytes."
    )


@pytest.mark.usefixtures("other_processes")
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process uses")
def test_what_was_read_leaves_memory(database: Database) -> None:
    """Values that were read are freed, including by libraries written in C."""
    storage, size = database.open("namespace"), 100_000
    for number in range(READ):
        set_or_skip(storage, f"key {number}", number.to_bytes(4, "big") * (size // 4))
    left = int(run_process(database, "namespace", "read-in-memory"))
    assert left < READ * size / 2, (
        f"After values of {READ * size} bytes were read, {left} bytes stay in memory, so a bot"
        " that reads everything once needs as much as it has stored. Limit the client's cache."
    )


@pytest.mark.parametrize(
    ("work", "turns", "size", "limit"),
    [
        *[("replaced values", 100, 200_000, 0.4), ("removed values", 100, 200_000, 0.4)],
        # less than a date for each
        *[("small values that are replaced", 500, 240, 0.04), ("removed keys", 500, 240, 0.04)],
    ],
)
def test_what_is_replaced_or_removed_takes_no_space_on_the_disk(
    database: Database, work: str, turns: int, size: int, limit: float
) -> None:
    """Replaced and removed values, and removed keys, use no space in BOT_DATA_DIR."""
    folder = Path(database.config.BOT_DATA_DIR)
    own = database.notes.path if database.notes else None  # may be in this folder, too

    def used() -> int:
        files = [path for path in folder.rglob("*") if path.is_file() and path != own]
        return sum(INODE + path.stat().st_size for path in files)

    filled = database.open()
    for number in range(keys := many(1_100, 110)):
        filled.set(f"looped over {number}", None)
    storage = database.open(plugin=database.plugin())  # starts with all these keys
    loops = [iter(storage.keys()), iter(storage.keys())]
    for loop, begun in zip(loops, [1, keys - 50], strict=True):
        deque(islice(loop, begun), maxlen=0)  # and continues with it later
    before, turn = used(), turn_of(storage, work, size)
    for _ in range(20 if size > 10_000 else 1_000):  # SQLite's WAL grows to a thousand pages.
        turn()
    share = growth(turn, turns, size, used, limit) if used() != before else 0
    assert share < limit, (
        f"{100 * share:.0f} % of all bytes of {work} stay in BOT_DATA_DIR, so the disk fills up."
        " Overwrite old data, or clean up automatically, because nobody runs a command for it. Keep"
        " no transaction open, neither in a loop over the keys nor from the start on."
    )
