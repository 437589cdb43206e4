"""Values of several MB: above what databases store in one row, packet or request."""

import os
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

from contract.support.database import (
    PROCESS,
    Database,
    process_command,
    run_process,
    running_process,
)
from contract.support.deadlines import at_once, deadline
from contract.support.expectations import expect, set_or_skip, skip_if_threads_fail
from contract.support.measure import memory
from contract.support.outcomes import outcome, same
from contract.support.sample_values import LARGE, MARK, REPLACERS, Person, large_value

MEGABYTE = 2**20
READERS = 3
LISTED = 12
SMALL = 9
"""Bytes of a value that is not stored in parts."""
LIKE_FILES = ["a", "a/b", "a b", "a_b", "a-b", "a.b", "A/b", "ab", "a%2Fb", "a:b", "a\\b"]
"""Names that become equal when characters not allowed in file names are replaced.

The first one is the beginning of all others.
"""


def is_unchanged(got: Any, value: Any) -> bool:
    """Return whether a value came back with its type and, if it is a dict, in its order."""
    if type(got) is not type(value) or not same(got, value):
        return False
    return not isinstance(value, dict) or same([*got], [*value])


def test_large_values_of_each_kind_come_back(storage: StorageBase) -> None:
    """Large texts, lists and dicts come back, as large bytes do."""
    data = MARK.encode()
    pairs: list[tuple[Any, Any]] = [
        (f"{MARK} \r\n\r \n\t", f"{MARK} \r\n\r \n\t" * 200_000),
        ("\U0001f600", "\U0001f600" * 1_200_000),
        (data, data * 100_000),
        (bytearray(data), bytearray(data * 100_000)),
        ([1], list(range(200_000))),
        (
            {"b": [1, MARK], "a": [2, MARK]},
            {f"key {number * 7_919 % 50_000}": [number, MARK] for number in range(50_000)},
        ),
        (Person(MARK, [Person("")]), Person(MARK, [Person(MARK * 100) for _ in range(2_000)])),
    ]
    for number, (small, _) in enumerate(pairs):
        outcome(storage.set, f"key {number}", small)
    large = {  # Other tests check whether small ones come back.
        f"key {number}": value
        for number, (small, value) in enumerate(pairs)
        if is_unchanged(outcome(storage.get, f"key {number}"), small)
    }
    for key, value in large.items():
        random.seed(1)  # as a plugin may do
        storage.set(key, value)
    for key, value in large.items():
        assert is_unchanged(storage.get(key), value), (
            f"A large {type(value).__name__} came back changed. Keep all pickles in one column of"
            " bytes, of the largest type that the database has."
        )


@pytest.mark.parametrize("kind", ["keys", "namespaces"])
def test_large_values_under_names_that_look_alike_are_told_apart(
    database: Database, kind: str
) -> None:
    """Large values are told apart even if their keys or namespaces look alike."""
    common = database.open("namespace")
    places: dict[str, tuple[StorageBase, str]] = {}
    for name in LIKE_FILES:
        with suppress(Exception):
            place = (common, name) if kind == "keys" else (database.open(name), "key")
            place[0].set(place[1], name)
            places[name] = place
    stored = {  # Other tests check which names are accepted, and told apart with small values.
        name: (storage, key, name.encode().ljust(MEGABYTE))
        for name, (storage, key) in places.items()
        if outcome(storage.get, key) == name
    }
    for storage, key, value in stored.values():
        set_or_skip(storage, key, value)

    def changed() -> list[str]:
        places = stored.items()
        return [name for name, (of, key, value) in places if not same(outcome(of.get, key), value)]

    assert not changed(), (
        f"Large values of the {kind} {changed()} are lost or mixed up. If you keep large values"
        " under names of their own, use uuid4, and do not leave out or replace characters."
    )
    storage, key, _ = stored.pop(LIKE_FILES[0])
    storage.remove(key)
    assert not changed(), (
        f"When the large value of the {kind[:-1]} {LIKE_FILES[0]!r} was removed, so were those of"
        f" {changed()}. Remove only the parts of the value itself, not everything whose name begins"
        " with its name."
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
                value = large_value(10 * turn + number)
                storages[number % 2].set("key", value if number == 1 or turn % 2 else value[:SMALL])
        finally:
            writing.remove(number)

    def read(number: int) -> None:
        while writing:
            got = storages[number % 2].get("key")
            assert same(got, large_value(got[0])) or same(got, large_value(got[0])[:SMALL]), (
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
    with running_process(process_command(database, "namespace", "replace-large")) as process:
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.usefixtures("other_processes")
def test_a_change_of_a_large_value_that_is_killed_is_done_or_not(database: Database) -> None:
    """If a process is killed in a `set` or `remove` of a large value, it is done or not."""
    set_or_skip(database.open("probe"), "key", large_value(1))
    damage = run_process(database, "namespace", "change-and-be-killed").splitlines()
    assert not damage, (
        f"The value of a bot that was killed is damaged: {damage[0]}. Do an operation in one"
        " transaction, or write new parts beside the old ones, switch to them in one step, and then"
        " remove the old ones."
    )


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
