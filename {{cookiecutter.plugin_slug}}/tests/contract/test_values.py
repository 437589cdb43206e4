"""Values come back as they were, whatever they are, and belong to the storage once they are set."""

import random
import sys
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
from errbot.storage.base import StorageBase

from contract.support.database import Database
from contract.support.expectations import outcome, refusal, same, set_or_skip
from contract.support.sample_values import (
    CONTAINERS,
    FALSY,
    KINDS,
    MARK,
    MARKUP,
    OBJECTS,
    PLAIN,
    SAMPLES,
    TWINS,
    Person,
    Unreadable,
    Unstorable,
)


def check_comes_back(storage: StorageBase, value: Any) -> None:
    """Set a value and get it again; its type and its repr tell all that these values are."""
    storage.set("key", value)
    got = storage.get("key")
    assert (type(got), repr(got)) == (type(value), repr(value)), (
        "A plugin got another value than it stored. Store the pickled bytes, all of them."
    )


@pytest.mark.parametrize("value", FALSY.values(), ids=FALSY)
def test_a_falsy_value_comes_back(storage: StorageBase, value: Any) -> None:
    """A falsy value comes back, `None` among them."""
    check_comes_back(storage, value)


@pytest.mark.parametrize("value", FALSY.values(), ids=FALSY)
def test_a_falsy_value_counts_as_there(database: Database, value: Any) -> None:
    """A key with a falsy value counts as there."""
    mapping = database.mapping()
    if refusal(mapping.__setitem__, "key", value):
        pytest.skip("the storage refuses this value, which is another test's matter")
    there = ("key" in mapping, len(mapping), list(mapping.keys()))
    assert there == (True, 1, ["key"]), (
        f"A key with the value {value!r} is not seen (`in`, `len`, `keys`). Ask the database"
        " whether the key exists, never whether its value is true."
    )


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_a_plain_value_comes_back(storage: StorageBase, value: Any) -> None:
    """Numbers, texts and bytes come back as they were."""
    check_comes_back(storage, value)


@pytest.mark.parametrize("value", CONTAINERS.values(), ids=CONTAINERS)
def test_a_container_comes_back_with_its_types(storage: StorageBase, value: Any) -> None:
    """Containers come back with their types: tuples, sets, keys that are no texts."""
    check_comes_back(storage, value)


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
def test_an_object_comes_back(storage: StorageBase, value: Any) -> None:
    """Objects come back: dates, exceptions, instances of a plugin's own classes."""
    check_comes_back(storage, value)


@pytest.mark.parametrize("value", KINDS.values(), ids=KINDS)
def test_a_kind_of_a_plain_value_comes_back_as_what_it_is(storage: StorageBase, value: Any) -> None:
    """An instance of a class derived from `str`, `int` and the like comes back as what it is."""
    check_comes_back(storage, value)


@pytest.mark.parametrize("values", MARKUP.values(), ids=MARKUP)
def test_a_value_that_looks_like_markup_comes_back(storage: StorageBase, values: list[Any]) -> None:
    """A value that looks like the markup of a serializer or a database comes back as it was."""
    for value in values:
        for whole in [value, [value], {"a": value}]:
            storage.set("key", whole)
            got = storage.get("key")
            assert same((type(got), repr(got)), (type(whole), repr(whole))), (
                f"A plugin stored {whole!r} and got {got!r}. What stands for a type must not look"
                " like a value: pickle the value as a whole."
            )


def test_classes_of_one_name_are_told_apart(
    storage: StorageBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two plugins may have classes of one name, and each gets instances of its own back."""
    values = {}
    for name in ["weather", "news"]:
        module = ModuleType(f"contract_{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        module.Entry = type("Entry", (Person,), {"__module__": module.__name__})  # type: ignore[attr-defined]
        values[name] = module.Entry(MARK)
        storage.set(name, values[name])
    for name, value in values.items():
        got = storage.get(name)
        assert (type(got), got) == (type(value), value), (
            "A plugin got an instance of another plugin's class, which has the same name. A class"
            " is known by its module and its name, as in a pickle."
        )


def test_a_class_that_was_loaded_anew_gets_its_values_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a plugin was reloaded, `get` gives instances of its class as it is now."""
    module: Any = ModuleType("contract_reloaded")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    storage = database.open()
    for _ in range(2):
        module.Entry = type("Entry", (Person,), {"__module__": module.__name__})
        if not storage.len():
            storage.set("key", module.Entry(MARK))
        assert type(storage.get("key")) is module.Entry, (
            "After a plugin was reloaded, it gets instances of its old class, with old code, and"
            " `isinstance` is false. Look up the class by its name at each `get`."
        )
        database.close(storage)
        storage = database.open()


def test_every_value_comes_back_after_a_restart(database: Database) -> None:
    """Every value comes back through a second plugin instance as well, as after a restart."""
    storage, before = database.open(), {}
    for name, value in SAMPLES.items():
        with suppress(Exception):  # Whether it can be stored at all is another test's matter.
            storage.set(name, value)
            got = storage.get(name)
            before[name] = type(got), repr(got)
    database.close(storage)
    restarted = database.open(plugin=database.plugin())
    changed = {}
    for name, expected in before.items():
        with suppress(Exception):  # Whether it is there at all, too.
            got = restarted.get(name)
            if (type(got), repr(got)) != expected:
                changed[name] = got
    assert not changed, (
        f"After a restart a plugin gets other values than it stored: {changed}. What `get` gives"
        " must come from the database, and not from the object that `set` was given."
    )


def test_a_deeply_nested_value_comes_back(storage: StorageBase) -> None:
    """Deeply nested values come back."""
    value: Any = MARK
    for level in range(50):
        value = {"level": level, "below": [value]}
    check_comes_back(storage, value)


def test_a_value_that_holds_itself_comes_back(storage: StorageBase) -> None:
    """A value that holds itself comes back."""
    value: list[Any] = [MARK]
    value.append(value)
    storage.set("key", value)
    got = storage.get("key")
    assert got[1] is got, "A recursive value lost its shape. Pickle the value as a whole."


def test_an_object_held_twice_comes_back_as_one(storage: StorageBase) -> None:
    """An object that a value holds twice is one object afterwards."""
    shared = [MARK]
    storage.set("key", {"one": shared, "two": shared})
    got = storage.get("key")
    assert got["one"] is got["two"], (
        "Two names of one object became two objects. Pickle the value as a whole."
    )


@pytest.mark.parametrize("size", [255, 256, 32_768, 65_535, 65_536, 1_000_000, 5_000_000])
def test_a_value_of_any_size_comes_back(storage: StorageBase, size: int) -> None:
    """Values of any size come back, 5 MB at least."""
    value = random.Random(size).randbytes(size)
    advice = (
        "Errbot's index of plugins alone has hundreds of KB. Take the database's type for large"
        " objects, or keep large values in parts: under the key their number, and the parts where"
        " no other key is, under a name that is new with each `set`."
    )
    try:
        storage.set("key", value)
        got = storage.get("key")
    except Exception as error:
        pytest.fail(
            f"A plugin that stores {size:,} bytes fails with {type(error).__name__}:"
            f" {error!s:.200}. {advice}"
        )
    assert len(got) == size, f"Of {size:,} bytes {len(got):,} came back. {advice}"
    assert same(got, value), f"A value of {size} bytes came back changed."
    assert (storage.len(), list(storage.keys())) == (1, ["key"]), (
        f"A value of {size} bytes shows as several keys. Keep its parts where nobody counts them."
    )
    storage.set("key", MARK)
    assert storage.get("key") == MARK, f"A value of {size} bytes could not be replaced."


@pytest.mark.parametrize(
    "block",
    [4_096, 65_536, 262_144]
    + [pytest.param(n, marks=pytest.mark.thorough) for n in [400_000, 500_000, 1_000_000, 2**20]],
)
def test_a_value_that_just_fills_a_block_comes_back(storage: StorageBase, block: int) -> None:
    """A value that just fills a block comes back."""
    for size in range(block - 40, block + 2):  # pickled, it is some bytes longer
        set_or_skip(storage, "key", b"x" * size)
        assert same(storage.get("key"), b"x" * size), (
            f"A value of {size} bytes came back changed. Look at the seams of the parts in which"
            " you keep large values."
        )


def test_set_replaces_the_value(storage: StorageBase) -> None:
    """`set` replaces the value, also by one that is equal, such as `1` and `True`."""
    different = [[MARK] * 1_000, "short", None, {"a": MARK, "b": MARK}, {"a": 1}, [], [MARK]]
    equal = [1, True, 1.0, 0, False, 0.0, -0.0, [1], [True]]
    for value in [*different, *equal]:
        storage.set("key", value)
        assert same(repr(storage.get("key")), repr(value)), (
            "A plugin got an old value, or a mix, after a newer `set`. Replace the whole value."
        )
    assert storage.len() == 1, "Setting a key again added another. Insert or replace, in one step."


@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS)
def test_a_value_is_replaced_by_one_that_looks_the_same(
    storage: StorageBase, twins: tuple[Any, Any]
) -> None:
    """`set` replaces a value by one that a comparison or a checksum takes for the same."""
    for value in [*twins, *twins]:
        storage.set("key", value)
        got = storage.get("key")
        assert same((type(got), repr(got)), (type(value), repr(value))), (
            "`set` did nothing: it took the value for the one that was there. Write each time."
        )


@pytest.mark.parametrize("size", [20_000, 60_000], ids=["large", "very large"])
def test_equal_values_of_two_keys_go_their_own_ways(database: Database, size: int) -> None:
    """Keys with equal values, here and in another namespace, are removed and replaced apart."""
    storage, other = database.open("one"), database.open("other")
    value, left = [MARK * size], ["a", "b", "c", "d"]
    for key in left:
        storage.set(key, value)
        other.set(key, value)
    changes: list[Callable[[str], object]] = [storage.remove, lambda key: storage.set(key, MARK)]
    for change, changed in zip(changes, ["b", "d"], strict=True):
        change(changed)
        left.remove(changed)
        try:
            got = [storage.get(key) for key in left] + [other.get(key) for key in "abcd"]
        except KeyError:
            got = []
        assert same(got, [value] * (len(left) + 4)), (
            "When a key was removed or replaced, others that had an equal value lost theirs. Count"
            " who uses a value that is stored once, or store it for each."
        )
    assert (sorted(storage.keys()), other.len()) == (["a", "c", "d"], 4)


def test_changing_an_object_after_set_changes_nothing_stored(storage: StorageBase) -> None:
    """Changing an object after `set` changes nothing that is stored."""
    value = {"list": [MARK]}
    storage.set("key", value)
    value["list"].append("later")
    assert storage.get("key") == {"list": [MARK]}, (
        "A plugin that goes on working with an object changed what it had stored before."
        " Keep a copy: the pickled bytes."
    )


def test_an_object_that_has_changed_is_stored_when_it_is_set_again(storage: StorageBase) -> None:
    """An object that has changed is stored when it is set again."""
    value = {"list": [MARK]}
    storage.set("key", value)
    value["list"].append("later")
    storage.set("key", value)
    assert storage.get("key") == {"list": [MARK, "later"]}, (
        "`set` did nothing, since it was given the same object as before; but that had changed."
        " Write each time."
    )


@pytest.mark.parametrize(
    "value",
    [[MARK], [MARK * 40_000], ([MARK],), Person(MARK)],
    ids=["list", "large list", "tuple", "instance"],
)
def test_changing_an_object_got_changes_nothing_stored(storage: StorageBase, value: Any) -> None:
    """Changing an object that `get` gave changes nothing that is stored."""
    set_or_skip(storage, "key", value)
    got = storage.get("key")
    if type(got) is not type(value):
        pytest.skip("the value comes back as another, which is another test's matter")
    before = repr(got)
    if isinstance(got, Person):
        got.name = "later"
    else:
        (got[0] if isinstance(got, tuple) else got).append("later")
    assert repr(storage.get("key")) == before, (
        "A plugin that changes what it got changed what is stored, without `set`, for everyone."
        " Give a new copy for each `get`."
    )


@pytest.mark.parametrize(
    "value", [lambda: MARK, [MARK, Unstorable()]], ids=["function", "instance"]
)
def test_a_failed_set_leaves_the_old_value(storage: StorageBase, value: Any) -> None:
    """A `set` that fails leaves the old value."""
    storage.set("key", MARK)
    if not refusal(storage.set, "key", value):
        pytest.skip("the storage takes also what cannot be pickled")
    assert (storage.get("key"), storage.len(), list(storage.keys())) == (MARK, 1, ["key"]), (
        "A `set` that failed harmed the old value. Pickle first, and touch the database after that."
    )


@pytest.mark.parametrize(
    "value", [lambda: MARK, [MARK, Unstorable()]], ids=["function", "instance"]
)
def test_a_failed_set_adds_no_key(storage: StorageBase, value: Any) -> None:
    """A `set` that fails adds no key."""
    if not refusal(storage.set, "key", value):
        pytest.skip("the storage takes also what cannot be pickled")
    assert (storage.len(), list(storage.keys())) == (0, []), (
        "A `set` that failed left a key. Pickle first, and touch the database after that."
    )
    storage.set("key", MARK)
    assert storage.get("key") == MARK, "After a `set` that failed, the next one did not work."


@pytest.mark.parametrize(
    "value", [lambda: MARK, [MARK, Unstorable()]], ids=["function", "instance"]
)
def test_what_cannot_be_given_back_is_refused(storage: StorageBase, value: Any) -> None:
    """A value that the storage could not give back is refused."""
    if not refusal(storage.set, "key", value):
        got = outcome(storage.get, "key")
        assert (type(got), repr(got)) == (type(value), repr(value)), (
            f"A value that cannot be pickled was taken, and `get` gives {got!r:.100}: a plugin"
            " loses it without a word. Raise the error of pickle."
        )


@pytest.mark.parametrize(
    "error", [KeyError("id"), AttributeError("id"), ImportError("id")], ids=repr
)
def test_a_value_that_cannot_be_read_is_not_missing(storage: StorageBase, error: Exception) -> None:
    """A value that cannot be unpickled is an error, and not a missing key."""
    set_or_skip(storage, "key", Unreadable(error))
    try:
        got = storage.get("key")
    except KeyError:
        pytest.fail(
            f"A value that cannot be unpickled, for a {type(error).__name__}, counts as missing:"
            " `in` is false, and `setdefault` replaces it. Raise another error, such as"
            " StoreException."
        )
    except Exception:
        assert (storage.len(), list(storage.keys())) == (1, ["key"]), (
            "A value that cannot be unpickled was removed, or does not count. It may be read again"
            " when the plugin that stored it is back."
        )
    else:
        assert isinstance(got, Unreadable), (
            f"A value that cannot be read came back as a {type(got).__name__}, and a plugin takes"
            " that for its own. Raise an error, such as StoreException."
        )


def test_a_value_that_cannot_be_read_can_be_replaced_and_removed(storage: StorageBase) -> None:
    """A value that cannot be unpickled can be replaced and removed."""
    set_or_skip(storage, "key", Unreadable(AttributeError("no such attribute")))
    storage.set("key", MARK)
    assert storage.get("key") == MARK, "A value that cannot be unpickled cannot be replaced."
    storage.set("key", Unreadable(AttributeError("no such attribute")))
    storage.remove("key")
    assert storage.len() == 0, "A value that cannot be unpickled cannot be removed."
