"""Values of several MB: above what databases store in one row, packet or request."""

import random
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from time import sleep
from typing import Any

import pytest
from errbot.storage.base import StorageBase

from contract.support.database import PROCESS, Database, process_command, running
from contract.support.deadlines import at_once, deadline
from contract.support.expectations import (
    expect,
    outcome,
    same,
    set_or_skip,
    skip_if_threads_fail,
)
from contract.support.measure import memory
from contract.support.sample_values import LARGE, MARK, REPLACERS, Person, large_value

MEGABYTE = 2**20
READERS = 3
LISTED = 12
LIKE_FILES = ["a/b", "a b", "a_b", "a-b", "a.b", "A/b", "ab", "a%2Fb", "a:b", "a\\b"]
"""Names that are equal if the characters are replaced that a file name cannot have."""


def comes_back(storage: StorageBase, key: str, value: Any) -> bool:
    """Return whether `get` returns a value with its type and, if it is a dict, its order."""
    got = outcome(storage.get, key)
    in_order = not isinstance(got, dict) or same([*got], [*value])
    return type(got) is type(value) and same(got, value) and in_order


def test_large_values_of_each_kind_come_back(storage: StorageBase) -> None:
    """Large texts, lists and dicts come back, as large bytes do."""
    small: list[Any] = [
        *[f"{MARK} \r\n\r \n\t", "\U0001f600", MARK.encode(), bytearray(MARK.encode()), [1]],
        *[{"b": [1, MARK], "a": [2, MARK]}, Person(MARK, [Person(MARK)])],
    ]
    large: list[Any] = [
        f"{MARK} \r\n\r \n\t" * 200_000,
        "\U0001f600" * 1_200_000,
        MARK.encode() * 100_000,
        bytearray(MARK.encode() * 100_000),
        list(range(200_000)),
        {f"key {number * 7_919 % 50_000}": [number, MARK] for number in range(50_000)},
        Person(MARK, [Person(MARK * 100) for _ in range(2_000)]),
    ]
    for number, value in enumerate(small):
        outcome(storage.set, f"key {number}", value)
    # Other tests check whether small ones come back.
    numbers = [n for n, value in enumerate(small) if comes_back(storage, f"key {n}", value)]
    for number in numbers:
        random.seed(1)  # as a plugin may do
        storage.set(f"key {number}", large[number])
    for number in numbers:
        assert comes_back(storage, f"key {number}", large[number]), (
            f"A large {type(large[number]).__name__} came back changed. Keep all pickles in one"
            " column of bytes, of the largest type that the database has."
        )


@pytest.mark.parametrize("kind", ["keys", "namespaces"])
def test_large_values_under_names_that_look_alike_are_told_apart(
    database: Database, kind: str
) -> None:
    """Large values are told apart even if their keys or namespaces look alike."""
    places = [("namespace", name) if kind == "keys" else (name, "key") for name in LIKE_FILES]
    opened: dict[str, StorageBase] = {}
    for number, (namespace, key) in enumerate(places):
        with suppress(Exception):
            if namespace not in opened:
                opened[namespace] = database.open(namespace)
            opened[namespace].set(key, [number])
    # Other tests check which names are accepted, and told apart with small values.
    told_apart = [
        number
        for number, (namespace, key) in enumerate(places)
        if namespace in opened and outcome(opened[namespace].get, key) == [number]
    ]
    stored: dict[tuple[str, str], bytes] = {}
    for number in told_apart:
        namespace, key = places[number]
        value = bytes([number]) * (MEGABYTE + number)
        set_or_skip(opened[namespace], key, value)
        stored[namespace, key] = value
    mixed = [
        (namespace, key)
        for (namespace, key), value in stored.items()
        if not same(outcome(opened[namespace].get, key), value)
    ]
    assert not mixed, (
        f"Large values are lost or mixed up, where namespace and key are {mixed}. If you keep large"
        " values under names of their own, use uuid4, and do not leave out or replace characters."
    )


def test_listing_reads_no_values(storage: StorageBase) -> None:
    """`len` and `keys` read no values."""
    for number in range(LISTED):
        set_or_skip(storage, f"key {number}", bytes([number]) * MEGABYTE)
    uses: dict[str, Callable[[], object]] = {
        "`len`": storage.len,
        "`keys`": lambda: list(storage.keys()),
    }
    for name, use in uses.items():
        taken = memory(use) / MEGABYTE
        assert taken < LISTED / 4, (
            f"{name} of {LISTED} values of 1 MB takes {taken:.1f} MB of memory. Let the database"
            " count, and read only the keys."
        )


def test_large_values_follow_each_other(storage: StorageBase) -> None:
    """A large value leaves nothing behind for the next one, shorter or longer."""
    for turn, size in enumerate([2, 5, 3, 0, 4, 1, 0, 2]):
        value = secrets.token_bytes(size * MEGABYTE + 9)
        storage.set("key", value)
        assert same(storage.get("key"), value), (
            f"Of {len(value)} bytes, {len(storage.get('key'))} came back after a value of another"
            " length. Store the number of parts with the parts of a value."
        )
        assert (storage.len(), list(storage.keys())) == (1, ["key"]), (
            "A large value that was replaced or removed has left keys behind."
        )
        if turn % 2:
            storage.remove("key")
            with expect(KeyError, "A large value that was removed is still there."):
                storage.get("key")
            assert (storage.len(), list(storage.keys())) == (0, [])


LOST = "Small values that were set while others replaced large ones are lost."


@pytest.mark.parametrize("turns", [4, pytest.param(20, marks=pytest.mark.thorough)])
def test_a_large_value_that_is_replaced_is_whole_for_every_reader(
    database: Database, turns: int
) -> None:
    """While a large value is replaced, every reader gets a complete value, and nothing is lost."""
    storages = database.open_twice()
    skip_if_threads_fail(storages[0]).set("key", large_value(0))
    writing = [1, 2]
    small: dict[str, int] = {}

    def write(number: int) -> None:
        try:
            for turn in range(turns):
                storages[number % 2].set("key", large_value(10 * turn + number))
        finally:
            writing.remove(number)

    def read(number: int) -> None:
        while writing:
            got = storages[number % 2].get("key")
            assert same(got, large_value(got[0])), (
                "A reader got a mixed or incomplete large value. Write the parts of the new value"
                " beside the old ones, and switch to them in one step."
            )

    def change(storage: StorageBase) -> None:
        for turn in count():
            key = f"small {turn % 50}"
            if key in small:
                assert outcome(storage.get, key) == small[key], LOST
            storage.set(key, turn)
            small[key] = turn
            if not writing:
                return

    works: list[Callable[[], object]] = [partial(write, n) for n in [1, 2]]
    works += [partial(read, n) for n in range(READERS)] + [partial(change, storages[0])]
    try:
        at_once(*works)
    except KeyError:
        pytest.fail("A large value was missing while it was replaced. Replace it in one step.")
    except TimeoutError as error:
        pytest.fail(f"Those who read and replace a large value hang: {error}.")
    assert {key: storages[1].get(key) for key in small} == small, LOST


@pytest.mark.usefixtures("other_processes")
def test_a_killed_process_leaves_a_large_value_whole(database: Database) -> None:
    """If a process is killed while it replaces values of several MB, each value is complete."""
    skip_if_threads_fail(database.open("probe"))
    last: dict[str, int] = {}
    with running(process_command(database, "namespace", "replace-large")) as process:
        assert process.stdout is not None
        with deadline(PROCESS, "Another process that replaces large values is too slow, or hangs."):
            for line in process.stdout:
                key, number = line.split()
                last[key] = int(number)
                if len(last) == REPLACERS and min(last.values()) >= 2:
                    break
        sleep(random.uniform(0, 0.03))  # so that the kill comes in the middle of a `set`
        process.kill()
        for line in process.stdout:
            if line.endswith("\n"):
                key, number = line.split()
                last[key] = int(number)
    assert min(last.values(), default=0) >= 2, "The process failed before it was killed."
    storage = database.open("namespace")
    assert (storage.len(), sorted(storage.keys())) == (REPLACERS, sorted(last)), (
        "A bot that was killed while it replaced large values has lost one, or left extra keys."
    )
    for key, latest in last.items():
        got = storage.get(key)
        assert any(same(got, large_value(number)) for number in [latest, latest + 1]), (
            "A bot that was killed while it replaced a large value has left an incomplete, mixed or"
            " outdated value. Write the parts of the new value beside the old ones, and switch to"
            " them in one step."
        )
        storage.set(key, MARK)
        assert storage.get(key) == MARK, "A value that a killed bot left cannot be replaced."


@pytest.mark.parametrize("megabytes", [17, 33, pytest.param(130, marks=pytest.mark.thorough)])
def test_a_value_of_tens_of_megabytes_comes_back_or_is_refused(
    storage: StorageBase, megabytes: int
) -> None:
    """A value above 16 MB comes back unchanged, or `set` refuses it and changes nothing."""
    value = random.Random(megabytes).randbytes(megabytes * MEGABYTE)
    storage.set("key", MARK)
    for key in ["key", "new"]:
        try:
            storage.set(key, value)
        except Exception:
            held: dict[str, object] = {"key": MARK}
        else:
            held = {"key": value, key: value}
            got = storage.get(key)
            assert same(got, value), (
                f"Of a value of {megabytes} MB, {len(got)} bytes came back. Refuse values that the"
                " database would truncate, with an error that names the limit, before you write"
                " anything."
            )
        got_keys = sorted(storage.keys())
        assert (storage.len(), got_keys) == (len(held), sorted(held)), (
            f"After a `set` of {megabytes} MB, these keys exist: {got_keys}. A `set` that is"
            " refused because of its size must change nothing."
        )
        assert same(storage.get("key"), held["key"]), (
            f"A `set` of {megabytes} MB was refused, but damaged the old value."
        )
    storage.set("key", [MARK])
    assert storage.get("key") == [MARK], f"After a `set` of {megabytes} MB, the next one failed."


@pytest.mark.parametrize("megabytes", [36, pytest.param(300, marks=pytest.mark.thorough)])
def test_a_namespace_holds_many_megabytes(database: Database, megabytes: int) -> None:
    """A namespace stores tens of MB in total."""
    storage, other = database.open("namespace"), database.open("other")
    other.set("key", MARK)
    values = megabytes * MEGABYTE // LARGE
    for number in range(values):
        storage.set(f"large {number}", large_value(number))
        storage.set(f"small {number}", [MARK, number])
    for number in range(values):
        assert same(storage.get(f"large {number}"), large_value(number)), (
            f"Of {megabytes} MB in values of 5 MB, one is lost or changed. Find the database's"
            " limit on the total size, raise it, and disable eviction."
        )
        assert storage.get(f"small {number}") == [MARK, number]
    assert (storage.len(), len(set(storage.keys()))) == (2 * values,) * 2
    assert other.get("key") == MARK, "Large values have displaced those of another namespace."
