"""Keys are found, missed, counted, listed and told apart, to the letter."""

import logging
import tracemalloc
from collections.abc import Callable
from enum import Enum
from itertools import islice

import pytest
from errbot.storage.base import StorageBase

from contract.support.amounts import many
from contract.support.database import Database
from contract.support.expectations import expect, outcome, refusal, same, taken
from contract.support.sample_values import MARK
from contract.support.tricky_names import ALIKE, HARD

PAGES = many(3_000, 300)
"""Keys that fill several pages, where a database gives them page by page."""
MANY = many(11_000, 800)
"""More keys than some databases ever give at once: ten thousand, or a megabyte of them."""
ODD = ["%s", "a'b", "a/b", "größe"]
"""Keys that are missing as well: what an author puts into a statement, a path or a message."""


class Name(str, Enum):
    """A choice of a plugin that is a str."""

    LOW = "low"


def test_getting_a_missing_key_raises_key_error(storage: StorageBase) -> None:
    """`get` of a missing key raises `KeyError`, and changes nothing."""
    storage.set("key", MARK)
    for missing in ["missing", *ODD]:
        with expect(
            KeyError, "Errbot takes KeyError for a missing key: `in`, `get`, `mutable` rest on it."
        ):
            storage.get(missing)
    assert (storage.len(), storage.get("key")) == (1, MARK), (
        "`get` of a missing key changed something."
    )


def test_removing_a_missing_key_raises_key_error(storage: StorageBase) -> None:
    """`remove` of a missing key raises `KeyError`, and changes nothing."""
    storage.set("key", MARK)
    for missing in ["missing", *ODD]:
        with expect(
            KeyError, "`del` and `pop` of a missing key would succeed, and a plugin's mistake pass."
        ):
            storage.remove(missing)
    assert (storage.len(), storage.get("key")) == (1, MARK), (
        "`remove` of a missing key changed something."
    )


def test_len_and_keys_agree_at_every_moment(storage: StorageBase) -> None:
    """`len` and `keys` say at every moment what is there."""
    expected: set[str] = set()
    for step in range(60):
        key = str(step * 7 % 20)
        if key in expected and step % 3:
            storage.remove(key)
            expected.remove(key)
        else:
            storage.set(key, step)
            expected.add(key)
        assert (storage.len(), sorted(storage.keys())) == (len(expected), sorted(expected)), (
            "`len` and `keys` do not say what was set and removed. Let the database count and list"
            " at each call, and keep no count of your own."
        )


def test_keys_gives_str(storage: StorageBase) -> None:
    """`keys` gives texts."""
    for key in ["key", "1", "é"]:
        storage.set(key, MARK)
    kinds = {type(key) for key in storage.keys()}
    assert kinds == {str}, (
        f"Plugins get keys of the kind {kinds} and find none of them. Decode to str."
    )


def test_keys_gives_thousands_of_keys_once_each(storage: StorageBase) -> None:
    """`keys` gives thousands of keys, each once."""
    # Of three that differ in case alone, a page may end between two.
    spellings = ["key", "Key", "KEY"]
    expected = [f"{spellings[n % 3]} {n // 3} {'k' * 90}" for n in range(MANY)]
    for key in expected:
        storage.set(key, None)
    got = list(islice(storage.keys(), 2 * MANY))
    assert same(sorted(got), sorted(expected)), (
        f"Of {MANY} keys `keys` gave {len(got)}, {len(set(got))} of them different. Look at the"
        " limit and at the seams of the pages in which you fetch them."
    )
    assert storage.len() == MANY, f"`len` says {storage.len()} where there are {MANY} keys."


def test_no_page_of_keys_shows_those_of_another_namespace(database: Database) -> None:
    """Among many keys, `keys` gives none of another namespace."""
    storage, other = database.open("namespace"), database.open("other")
    expected = [f"key {number}" for number in range(PAGES)]
    for key in expected:
        storage.set(key, None)
    for key in ["", "a", "key 15", "key 15x", "key 25x", "z"]:
        other.set(key, None)
    assert same(sorted(storage.keys()), sorted(expected)), (
        "Among many keys `keys` gives those of another namespace. Ask for the namespace in the"
        " query of each page."
    )


def test_loops_over_the_keys_do_not_get_into_each_others_way(storage: StorageBase) -> None:
    """Many loops over the keys may be under way at once."""
    expected = sorted(f"key {number}" for number in range(PAGES))
    for key in expected:
        storage.set(key, None)
    loops = [iter(storage.keys()) for _ in range(30)]
    (one, first), (other, second), *_ = [(loop, [next(loop)]) for loop in loops]
    for key in one:
        first.append(key)
        second.extend(islice(other, 2))  # is always somewhere else
    assert same((sorted(first), sorted(second)), (expected, expected)), (
        "Two loops over the keys at once lost some. Keep the place of a loop in the loop, and not"
        " in the storage."
    )
    assert same(sorted(storage.keys()), expected), "After one loop the next one finds other keys."
    storage.set("key 0", MARK)
    assert storage.get("key 0") == MARK, (
        "Loops that were left keep what the others need. Hold no connection between two keys."
    )


def test_starting_keys_does_not_fetch_them_all(storage: StorageBase) -> None:
    """To start `keys` is cheap, so that clearing a namespace is."""
    for number in range(PAGES):
        storage.set(f"{number} {'k' * 200}", None)

    def memory(use: Callable[[], object]) -> int:
        logging.disable()  # What is logged is kept as well, by the tests.
        tracemalloc.start()
        use()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        logging.disable(logging.NOTSET)
        return peak

    every = memory(lambda: list(storage.keys()))
    first = memory(lambda: next(iter(storage.keys())))
    # Less than a tenth of the keys' own text is what points at keys that are in memory anyway.
    assert first < max(every * 2 / 3, PAGES * 20), (
        f"To give the first key alone, `keys` takes {first:,} bytes of memory, and to give all"
        f" {PAGES:,} of them {every:,}. Errbot asks for the first key once for each key that it"
        " clears: fetch the keys page by page."
    )


def test_keys_can_be_removed_while_iterating(storage: StorageBase) -> None:
    """Keys can be removed in a loop over them."""
    for number in range(PAGES):
        storage.set(str(number), None)
    seen = []
    for key in storage.keys():
        storage.remove(key)
        seen.append(key)
    assert same(sorted(seen), sorted(map(str, range(PAGES)))), (
        f"`for key in self: del self[key]` saw {len(seen)} of {PAGES} keys. Page by the last key"
        " seen, not by position, or list the keys before."
    )
    assert storage.len() == 0, "`for key in self: del self[key]` left keys."


def test_keys_can_be_added_while_iterating(storage: StorageBase) -> None:
    """Keys can be added in a loop over them."""
    expected = {str(number) for number in range(PAGES)}
    for key in expected:
        storage.set(key, None)
    seen = []
    for key in storage.keys():
        seen.append(key)
        if len(seen) <= PAGES:
            storage.set(f"{key[::-1]} added", None)  # before and behind where the loop is
    assert same(expected - set(seen), set()), (
        "A loop over the keys lost some when others were added. Page by the last key seen, until a"
        " page is empty."
    )
    assert len(seen) == len(set(seen)), (
        "A loop over the keys gave some twice when others were added."
    )


def test_values_can_be_replaced_while_iterating(storage: StorageBase) -> None:
    """Values can be replaced in a loop over the keys."""
    for number in range(PAGES):
        storage.set(str(number), number)
    seen = []
    for key in storage.keys():
        storage.set(key, [MARK, storage.get(key)])
        seen.append(key)
        if len(seen) > PAGES:
            break
    assert same(sorted(seen), sorted(map(str, range(PAGES)))), (
        "A plugin that renews its values in a loop over its keys lost some keys, or met some twice,"
        " and so may never come to an end. Page by the key, not by the time of its last change."
    )


def test_a_loop_over_the_keys_can_be_left(storage: StorageBase) -> None:
    """A loop over the keys can be left early."""
    for number in range(500):
        storage.set(str(number), None)
    for number in range(50):
        for _key in storage.keys():
            storage.set(f"inside {number}", MARK)
            break
    storage.set("after", MARK)
    assert (storage.get("after"), storage.len()) == (MARK, 551), (
        "A loop over the keys that was left early undoes what was set in it, or blocks what comes"
        " after it. Keep no transaction open between two keys."
    )


@pytest.mark.parametrize("keys", ALIKE.values(), ids=ALIKE)
def test_keys_that_look_alike_are_told_apart(storage: StorageBase, keys: list[str]) -> None:
    """Keys that look alike are told apart to the letter."""
    for key in keys:
        with taken(key):
            storage.set(key, f"{MARK} {keys.index(key)}")
    expected = {key: f"{MARK} {number}" for number, key in enumerate(keys)}
    assert {key: storage.get(key) for key in keys} == expected, (
        "Two keys share a value. Compare keys as bytes: collations ignore case, accents and spaces."
    )
    assert sorted(storage.keys()) == sorted(keys), "`keys` does not give the keys to the letter."
    assert storage.len() == len(keys), "`len` does not tell all these keys apart."
    for number, key in enumerate(keys, 1):
        storage.remove(key)
        left = {other: storage.get(other) for other in storage.keys()}
        assert left == {other: expected[other] for other in keys[number:]}, (
            f"Removing {key!r} removed another key too, or did not remove this one."
        )


@pytest.mark.parametrize("keys", ALIKE.values(), ids=ALIKE)
def test_no_key_is_found_under_another(storage: StorageBase, keys: list[str]) -> None:
    """No key is found or removed under another that looks like it."""
    for key in keys:
        others = {f"{key[:249]}.", f".{key[:249]}"}
        for other in others:
            storage.set(other, MARK)
        assert storage.len() == len(others)
        # Whether a missing key raises KeyError is another test's matter.
        assert outcome(storage.get, key) != MARK, f"{key!r} was never set, and yet is found."
        outcome(storage.remove, key)
        assert {other: storage.get(other) for other in storage.keys()} == dict.fromkeys(
            others, MARK
        ), f"{key!r} was never set, and removing it removed another key."
        for other in others:
            storage.remove(other)


@pytest.mark.parametrize("key", HARD, ids=lambda key: ascii(f"{key[:12]} {len(key)}"))
def test_a_key_is_held_to_the_letter_or_refused(storage: StorageBase, key: str) -> None:
    """A key is held to the letter, or refused, and then nothing is stored."""
    storage.set("key", MARK)
    try:
        storage.set(key, MARK)
    except Exception:
        held = ["key"]
    else:
        held = ["key", key]
        assert storage.get(key) == MARK, "A key was taken, but does not give its value back."
    assert sorted(storage.keys()) == sorted(held), (
        "A key was stored as another one. Raise ValueError for a key that the database cannot hold."
    )
    assert storage.len() == len(held), "`len` does not agree with what was stored."


def test_hard_keys_are_told_apart_or_refused(storage: StorageBase) -> None:
    """Long and odd keys are told apart, or refused."""
    held = {}
    for number, key in enumerate(HARD):
        try:
            storage.set(key, f"{MARK} {number}")
        except Exception:
            continue
        held[key] = f"{MARK} {number}"
    assert same({key: storage.get(key) for key in held}, held), (
        "Long or odd keys share a value. Raise ValueError for a key that the database cannot hold."
    )


def test_a_key_is_refused_with_a_value_error(storage: StorageBase) -> None:
    """A key that the database cannot hold is refused with a `ValueError`."""
    for key in HARD:
        refused = refusal(storage.set, key, MARK)
        assert not refused or issubclass(refused, ValueError), (
            f"A key of {len(key)} characters, {key[:5]!r} ..., was refused with"
            f" {refused.__name__}. A plugin that stores what people type catches ValueError: raise"
            " it, and say what the database can hold."
        )


def test_a_key_of_a_kind_of_str_is_its_text(storage: StorageBase) -> None:
    """A key of a class of its own that is a `str` is its text."""
    storage.set(Name.LOW, MARK)
    assert list(storage.keys()) == ["low"], (
        "A key that is a member of an enumeration of texts came back as another text."
    )
    assert (storage.get("low"), storage.get(Name.LOW)) == (MARK, MARK), (
        "A key that equals another finds no value, or a different one."
    )


@pytest.mark.parametrize("key", [1, None, b"key", ("a", "b"), 1.5], ids=repr)
def test_a_key_that_is_no_str_is_refused(database: Database, key: object) -> None:
    """A key that is no `str` is refused, or kept as it is: it does not come back as a text."""
    storage = database.open()
    refused = refusal(storage.set, key, [MARK])
    assert list(storage.keys()) == ([] if refused else [key]), (
        f"The key {key!r} came back as another, a str, or was stored though it was refused."
    )
    text = key.decode() if isinstance(key, bytes) else str(key)
    storage.set(text, MARK)
    assert storage.get(text) == MARK, "A key that looks like one that is no str is not held."
    why = f"The key {key!r} was taken for {text!r}. Refuse a key that is no str, or miss it."
    assert outcome(storage.get, key) != MARK, why
    outcome(storage.remove, key)
    assert text in storage.keys(), why
