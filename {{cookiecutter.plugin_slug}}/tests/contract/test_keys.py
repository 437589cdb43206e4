"""Keys are found, counted and listed, and are compared exactly."""

import logging
import random
import tracemalloc
from collections.abc import Callable
from enum import Enum
from itertools import islice

import pytest
from errbot.storage.base import StorageBase

from contract.support.amounts import many
from contract.support.database import Database
from contract.support.expectations import expect, taken
from contract.support.outcomes import outcome, refusal, same
from contract.support.sample_values import MARK
from contract.support.tricky_names import ALIKE, HARD

PAGES = many(3_000, 300)
"""Keys that fill several pages, if a database returns them page by page."""
LISTED = many(3_000, 1_600)
"""Keys, of which a page may contain 1,000."""
MANY = many(11_000, 800)
GROWN = 1_000_000
"""Bytes of a value that some storages keep apart from small ones."""
"""More keys than some databases return at once: ten thousand, or 1 MB of keys."""
ODD = ["%s", "a'b", "a/b", "größe"]
"""More missing keys, with what is special in a statement, a path or a message."""


class Name(str, Enum):
    """A plugin's enumeration whose members are str."""

    LOW = "low"


def test_getting_a_missing_key_raises_key_error(storage: StorageBase) -> None:
    """`get` of a missing key raises `KeyError`, and changes nothing."""
    storage.set("key", MARK)
    for missing in ["missing", *ODD]:
        with expect(
            KeyError,
            "Errbot treats KeyError as a missing key: `in`, `get` and `mutable` rely on it.",
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
            KeyError, "`del` and `pop` of a missing key would succeed, and hide a plugin's mistake."
        ):
            storage.remove(missing)
    assert (storage.len(), storage.get("key")) == (1, MARK), (
        "`remove` of a missing key changed something."
    )


def test_len_and_keys_agree_at_every_moment(storage: StorageBase) -> None:
    """`len` and `keys` are correct at every moment."""
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
            "`len` and `keys` do not match what was set and removed. Let the database count and"
            " list at each call; keep no count of your own."
        )


def test_keys_gives_str(storage: StorageBase) -> None:
    """`keys` returns texts."""
    for key in ["key", "1", "é"]:
        storage.set(key, MARK)
    kinds = {type(key) for key in storage.keys()}
    assert kinds == {str}, (
        f"Plugins get keys of the type {kinds}, and then find none of them. Decode them to str."
    )


def test_keys_gives_thousands_of_keys_once_each(storage: StorageBase) -> None:
    """`keys` returns each of thousands of keys once, and `len` counts them."""
    # A page may end between two of three keys that differ only in case, and after a blank. The
    # orders of these letters and signs as UTF-8, UTF-16 and code points differ.
    spellings = ["gr\u00f6\u00dfe", "Gr\u00f6\u00dfe", "GR\u00d6SSE"]
    signs = [chr(first + n) for n in range(94) for first in [0x4E80, 0xFF01, 0x1F300]]
    expected = [
        f"{signs[n // 3 % len(signs)]}{spellings[n % 3]} {n // 3} {'k' * 84} " for n in range(MANY)
    ]
    for key in expected:
        storage.set(key, None)
    got = list(islice(storage.keys(), 2 * MANY))
    assert same(sorted(got), sorted(expected)), (
        f"Of {MANY} keys, `keys` returned {len(got)}, {len(set(got))} of them different. Check the"
        " limit, and the transition from one page to the next."
    )
    assert storage.len() == MANY, f"`len` returns {storage.len()} for {MANY} keys."


def test_no_page_of_keys_shows_those_of_another_namespace(database: Database) -> None:
    """Among many keys, `keys` returns none of another namespace."""
    storage, other = database.open("namespace"), database.open("other")
    expected = [f"key {number}" for number in range(PAGES)]
    for key in expected:
        storage.set(key, None)
    for key in ["", "a", "key 25x", "z", *(f"key 15 {number}" for number in range(LISTED))]:
        other.set(key, None)
    assert same(sorted(storage.keys()), sorted(expected)), (
        "Among many keys, `keys` returns some of another namespace, or ends at a page that has only"
        " those. Name the namespace in the query of each page."
    )


def test_loops_over_the_keys_do_not_get_into_each_others_way(storage: StorageBase) -> None:
    """Many loops over the keys can run at once."""
    expected = sorted(f"key {number}" for number in range(PAGES))
    for key in expected:
        storage.set(key, None)
    loops = [iter(storage.keys()) for _ in range(30)]
    (one, first), (other, second), *_ = [(loop, [next(loop)]) for loop in loops]
    for key in one:
        first.append(key)
        second.extend(islice(other, 2))  # its position always differs
    assert same((sorted(first), sorted(second)), (expected, expected)), (
        "Two loops over the keys at once missed some. Keep the position in the loop, not in the"
        " storage."
    )
    assert same(sorted(storage.keys()), expected), "After one loop, the next one finds other keys."
    storage.set("key 0", MARK)
    assert storage.get("key 0") == MARK, (
        "Loops that were left early keep resources that others need. Hold no connection between two"
        " keys."
    )


def test_starting_keys_does_not_fetch_them_all(storage: StorageBase) -> None:
    """Starting `keys` is cheap, so clearing a namespace is cheap."""
    for number in range(LISTED):
        storage.set(f"{number} {'k' * 200}", None)

    def memory(use: Callable[[], object]) -> int:
        logging.disable()  # The tests also keep whatever is logged.
        tracemalloc.start()
        use()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        logging.disable(logging.NOTSET)
        return peak

    every = memory(lambda: list(storage.keys()))
    first = memory(lambda: next(iter(storage.keys())))
    # Less than a tenth of the keys' own text: references to keys that are in memory anyway.
    assert first < max(every * 2 / 3, LISTED * 20), (
        f"To return only the first key, `keys` takes {first:,} bytes of memory; to return all"
        f" {LISTED:,}, it takes {every:,}. Errbot asks for the first key once for each key that it"
        " clears. Fetch a few keys first, and all others when they are asked for."
    )


def test_keys_can_be_removed_while_iterating(storage: StorageBase) -> None:
    """A loop over the keys can remove them."""
    for number in range(PAGES):
        storage.set(str(number), None)
    seen = []
    for key in storage.keys():
        storage.remove(key)
        seen.append(key)
    assert same(sorted(seen), sorted(map(str, range(PAGES)))), (
        f"`for key in self: del self[key]` saw {len(seen)} of {PAGES} keys. Start each page after"
        " the last key seen, not at a position, or fetch all keys first."
    )
    assert storage.len() == 0, "`for key in self: del self[key]` left keys."


def test_keys_can_be_removed_and_set_again_while_iterating(storage: StorageBase) -> None:
    """A loop over the keys can remove each one and set it again."""
    for number in range(PAGES):
        storage.set(str(number), number)
    seen = []
    for key in islice(storage.keys(), 2 * PAGES):
        value = storage.get(key)
        storage.remove(key)
        storage.set(key, value)
        seen.append(key)
    assert same(sorted(seen), sorted(map(str, range(PAGES)))), (
        "`for key in self: self[key] = self.pop(key)` missed some keys, or met some twice, and so"
        " may never end. Order the pages by key, not by the rows' numbers."
    )


def test_keys_can_be_added_while_iterating(storage: StorageBase) -> None:
    """A loop over the keys can add keys."""
    expected = {str(number) for number in range(PAGES)}
    for key in expected:
        storage.set(key, None)
    seen = []
    for key in storage.keys():
        seen.append(key)
        if len(seen) <= PAGES:
            storage.set(f"{key[::-1]} added", None)  # before and after the loop's position
    assert same(expected - set(seen), set()), (
        "A loop over the keys missed some after others were added. Fetch a few keys first, and then"
        " all that come after these at once."
    )
    assert len(seen) == len(set(seen)), (
        "A loop over the keys returned some twice after others were added."
    )


def test_values_can_be_replaced_while_iterating(storage: StorageBase) -> None:
    """A loop over the keys can replace their values."""
    for number in range(PAGES):
        storage.set(str(number), number)
    seen = []
    for key in storage.keys():
        storage.set(key, [MARK, storage.get(key)])
        seen.append(key)
        if len(seen) > PAGES:
            break
    assert same(sorted(seen), sorted(map(str, range(PAGES)))), (
        "A plugin that replaces values in a loop over its keys missed some keys, or met some twice,"
        " and so may never end. Order the pages by key, not by the time of the last change."
    )


def test_values_can_grow_and_shrink_while_iterating(storage: StorageBase) -> None:
    """A loop over the keys shows each one once, also if values become large or small meanwhile."""
    ahead = set(map(str, range(PAGES)))
    expected = sorted(ahead)
    for key in expected:
        storage.set(key, None)
    seen, large = [], []
    for key in islice(storage.keys(), 2 * PAGES):
        seen.append(key)
        ahead.discard(key)
        if len(seen) % (PAGES // 10) == 1 and ahead:
            large.append(random.choice(sorted(ahead)))
            storage.set(large[-1], bytes(GROWN))
            for shrinking in set(large) - ahead:
                storage.set(shrinking, None)
    assert same(sorted(seen), expected), (
        f"While values became large or small, a loop over the keys missed"
        f" {len(set(expected) - set(seen))} of {PAGES} keys, and met {len(seen) - len(set(seen))}"
        " twice, as a `!backup` would. Keep the keys of all values in one place, and list these."
    )


def test_a_loop_over_the_keys_can_be_left(storage: StorageBase) -> None:
    """A loop over the keys can be left early."""
    for number in range(LISTED):
        storage.set(str(number), None)
    for number in range(120):
        for place, _key in enumerate(storage.keys()):
            if place == LISTED // 2 or number % 2:
                storage.set(f"inside {number}", MARK)
                break
    storage.set("after", MARK)
    assert (storage.get("after"), storage.len()) == (MARK, LISTED + 121), (
        "Leaving a loop over the keys early undoes what was set in it, or blocks later operations."
        " Keep no transaction and no cursor open between two keys."
    )
    assert len(list(storage.keys())) == LISTED + 121, (
        "After loops that were left, keys are missing."
    )


@pytest.mark.parametrize("keys", ALIKE.values(), ids=ALIKE)
def test_keys_that_look_alike_are_told_apart(storage: StorageBase, keys: list[str]) -> None:
    """Keys that look alike are distinguished exactly."""
    for key in keys:
        with taken(key):
            storage.set(key, f"{MARK} {keys.index(key)}")
    expected = {key: f"{MARK} {number}" for number, key in enumerate(keys)}
    assert {key: storage.get(key) for key in keys} == expected, (
        "Two keys share a value. Compare keys as bytes, because collations ignore case, accents and"
        " spaces."
    )
    assert sorted(storage.keys()) == sorted(keys), "`keys` does not return the keys exactly."
    assert storage.len() == len(keys), "`len` does not distinguish all these keys."
    for number, key in enumerate(keys, 1):
        storage.remove(key)
        left = {other: storage.get(other) for other in storage.keys()}
        assert left == {other: expected[other] for other in keys[number:]}, (
            f"Removing {key!r} also removed another key, or did not remove this one."
        )


@pytest.mark.parametrize("keys", ALIKE.values(), ids=ALIKE)
def test_no_key_is_found_under_another(storage: StorageBase, keys: list[str]) -> None:
    """No key is found or removed under another one that looks like it."""
    for key in keys:
        others = {f"{key[:249]}.", f".{key[:249]}"}
        for other in others:
            storage.set(other, MARK)
        assert storage.len() == len(others)
        # Another test checks whether a missing key raises KeyError.
        assert outcome(storage.get, key) != MARK, f"{key!r} was never set, but is found."
        outcome(storage.remove, key)
        assert {other: storage.get(other) for other in storage.keys()} == dict.fromkeys(
            others, MARK
        ), f"{key!r} was never set, but removing it removed another key."
        for other in others:
            storage.remove(other)


@pytest.mark.parametrize("key", HARD, ids=lambda key: ascii(f"{key[:12]} {len(key)}"))
def test_a_key_is_held_to_the_letter_or_refused(storage: StorageBase, key: str) -> None:
    """A key is stored exactly, or refused, in which case nothing is stored."""
    storage.set("key", MARK)
    try:
        storage.set(key, MARK)
    except Exception:
        held = ["key"]
    else:
        held = ["key", key]
        assert storage.get(key) == MARK, "`set` accepted a key, but its value does not come back."
    assert sorted(storage.keys()) == sorted(held), (
        "A key was stored as a different key. Raise ValueError for a key that the database cannot"
        " store."
    )
    assert storage.len() == len(held), "`len` does not match what was stored."


def test_hard_keys_are_told_apart_or_refused(storage: StorageBase) -> None:
    """Long and unusual keys are distinguished or refused."""
    held = {}
    for number, key in enumerate(HARD):
        try:
            storage.set(key, f"{MARK} {number}")
        except Exception:
            continue
        held[key] = f"{MARK} {number}"
    assert same({key: storage.get(key) for key in held}, held), (
        "Long or unusual keys share a value. Raise ValueError for a key that the database cannot"
        " store."
    )


def test_a_key_is_refused_with_a_value_error(storage: StorageBase) -> None:
    """If the database cannot store a key, `set` raises a `ValueError`."""
    for key in HARD:
        refused = refusal(storage.set, key, MARK)
        assert not refused or issubclass(refused, ValueError), (
            f"A key of {len(key)} characters, {key[:5]!r} ..., was refused with {refused.__name__}."
            " Plugins that store what people type catch ValueError. Raise it, and name the limit."
        )


def test_a_key_of_a_subclass_of_str_is_its_text(storage: StorageBase) -> None:
    """A key whose class is derived from `str` counts as its text."""
    storage.set(Name.LOW, MARK)
    assert list(storage.keys()) == ["low"], (
        "A key that is a member of an enumeration came back as another text."
    )
    assert (storage.get("low"), storage.get(Name.LOW)) == (MARK, MARK), (
        "A key that equals another finds no value, or a different one."
    )
    storage.remove(Name.LOW)
    assert storage.len() == 0, "A key that is a member of an enumeration is not removed."


@pytest.mark.parametrize("key", [1, None, b"key", ("a", "b"), 1.5], ids=repr)
def test_a_key_that_is_no_str_is_refused(database: Database, key: object) -> None:
    """A key that is not a `str` is refused or kept as it is, never converted to text."""
    storage = database.open()
    refused = refusal(storage.set, key, [MARK])
    assert list(storage.keys()) == ([] if refused else [key]), (
        f"The key {key!r} came back as a str, or was stored although it was refused."
    )
    text = key.decode() if isinstance(key, bytes) else str(key)
    storage.set(text, MARK)
    assert storage.get(text) == MARK, "A key that looks like one of another type is not stored."
    why = f"The key {key!r} was taken for {text!r}. Refuse a key that is no str, or miss it."
    assert outcome(storage.get, key) != MARK, why
    outcome(storage.remove, key)
    assert text in storage.keys(), why
