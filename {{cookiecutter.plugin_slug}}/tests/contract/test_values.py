"""Values come back unchanged, and belong to the storage once they are set."""

import copyreg
import pickle
import random
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

import pytest
from errbot.storage.base import StorageBase

from contract.support.database import Database
from contract.support.expectations import set_or_skip
from contract.support.outcomes import outcome, refusal, same
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
    Growing,
    Person,
    Registered,
    Samples,
    Slots,
    Unreadable,
    Unshowable,
    Unstorable,
    reduce_registered,
)

PARTS = 100
"""Objects in a value that cannot be stored."""
ERRORS = [TypeError, ValueError, RuntimeError, RecursionError, OSError, KeyError, StopIteration]
"""What objects may raise while they are pickled. A dict that another thread changes at that moment
is a RuntimeError, and a long chain of objects a RecursionError.
"""


def check_comes_back(storage: StorageBase, value: Any) -> None:
    """Set a value and get it again. The type and repr of these values tell them apart."""
    storage.set("key", value)
    got = storage.get("key")
    assert (type(got), repr(got)) == (type(value), repr(value)), (
        "A plugin got a different value than it stored. Pickle values, and store all of the bytes."
    )


@pytest.mark.parametrize("value", FALSY.values(), ids=FALSY)
def test_a_falsy_value_comes_back(storage: StorageBase, value: Any) -> None:
    """A falsy value comes back, including `None`."""
    check_comes_back(storage, value)


@pytest.mark.parametrize("value", FALSY.values(), ids=FALSY)
def test_a_falsy_value_counts_as_there(database: Database, value: Any) -> None:
    """A key with a falsy value exists."""
    mapping = database.mapping()
    if refusal(mapping.__setitem__, "key", value):
        pytest.skip("the storage refuses this value, which another test checks")
    there = ("key" in mapping, len(mapping), list(mapping.keys()))
    assert there == (True, 1, ["key"]), (
        f"A key with the value {value!r} is not found (`in`, `len`, `keys`). Ask the database"
        " whether the key exists, not whether its value is true."
    )


@pytest.mark.parametrize("value", PLAIN.values(), ids=PLAIN)
def test_a_plain_value_comes_back(storage: StorageBase, value: Any) -> None:
    """Numbers, texts and bytes come back unchanged."""
    check_comes_back(storage, value)


@pytest.mark.parametrize("value", CONTAINERS.values(), ids=CONTAINERS)
def test_a_container_comes_back_with_its_types(storage: StorageBase, value: Any) -> None:
    """Containers come back with their types: tuples, sets, dict keys that are not texts."""
    check_comes_back(storage, value)


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS)
def test_an_object_comes_back(storage: StorageBase, value: Any) -> None:
    """Objects come back: dates, exceptions, instances of a plugin's own classes."""
    check_comes_back(storage, value)


@pytest.mark.parametrize("value", KINDS.values(), ids=KINDS)
def test_an_instance_of_a_subclass_of_str_or_int_keeps_its_class(
    storage: StorageBase, value: Any
) -> None:
    """An instance of a class derived from `str`, `int` and so on keeps its class."""
    check_comes_back(storage, value)


def test_a_value_comes_back_whose_library_was_imported_later(
    storage: StorageBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value comes back if a function stores it that was registered later with `copyreg`."""
    set_or_skip(storage, "key", Person(MARK))  # Not every storage stores instances.
    monkeypatch.setitem(copyreg.dispatch_table, Registered, reduce_registered)
    check_comes_back(storage, Registered(7))


@pytest.mark.parametrize("values", MARKUP.values(), ids=MARKUP)
def test_a_value_that_looks_like_markup_comes_back(storage: StorageBase, values: list[Any]) -> None:
    """A value that looks like the markup of a serializer or database comes back unchanged."""
    for value in values:
        for whole in [value, [value], {"a": value}]:
            if refusal(storage.set, "key", whole):
                continue  # Another test checks whether it can be stored at all.
            got = storage.get("key")
            assert same((type(got), repr(got)), (type(whole), repr(whole))), (
                f"A plugin stored {whole!r} and got {got!r}. The markup for a type must not look"
                " like a value: pickle the value as a whole."
            )


def test_classes_of_one_name_are_told_apart(
    storage: StorageBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two plugins may have classes of the same name, and each gets its own instances back."""
    values = {}
    for name in ["weather", "news"]:
        module = ModuleType(f"contract_{name}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        module.Entry = type("Entry", (Person,), {"__module__": module.__name__})  # type: ignore[attr-defined]
        values[name] = module.Entry(MARK)
        set_or_skip(storage, name, values[name])
    for name, value in values.items():
        got = storage.get(name)
        assert (type(got), got) == (type(value), value), (
            "A plugin got an instance of another plugin's class of the same name. Identify a class"
            " by its module and name, as pickle does."
        )


@pytest.mark.parametrize("base", [Person, Slots], ids=["without a hash", "with a hash"])
def test_a_class_that_was_loaded_anew_gets_its_values_back(
    database: Database, monkeypatch: pytest.MonkeyPatch, base: type[Any]
) -> None:
    """After a plugin is reloaded, `get` returns instances of its new class."""
    module: Any = ModuleType("contract_reloaded")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    storage = database.open()
    for turn in range(3):
        module.Entry = type("Entry", (base,), {"__module__": module.__name__})
        if not storage.len():
            set_or_skip(storage, "key", module.Entry(MARK))
        for _ in range(4):
            assert type(storage.get("key")) is module.Entry, (
                "After a plugin was reloaded, it gets instances of its old class, with old code,"
                " and `isinstance` is false. Look up the class by name in each `get`."
            )
        if turn:  # At first it stays open: the class is that of another plugin, say.
            database.close(storage)
            storage = database.open()


def test_every_value_comes_back_after_a_restart(database: Database) -> None:
    """Every value also comes back through a second plugin instance, as after a restart."""
    storage, before = database.open(), {}
    for name, value in SAMPLES.items():
        try:
            storage.set(name, value)
            got = storage.get(name)
        except Exception:
            # Other tests check whether it can be stored, and what a failed `set` leaves behind.
            outcome(storage.remove, name)
            continue
        before[name] = type(got), repr(got)
    database.close(storage)
    restarted = database.open(plugin=database.plugin())
    changed = {}
    for name, expected in before.items():
        with suppress(Exception):  # And whether it exists at all.
            got = restarted.get(name)
            if (type(got), repr(got)) != expected:
                changed[name] = got
    assert not changed, (
        f"After a restart, a plugin gets other values than it stored: {changed}. `get` must return"
        " what is in the database, not the object that was passed to `set`."
    )


def test_a_deeply_nested_value_comes_back(storage: StorageBase) -> None:
    """Deeply nested values come back."""
    value: Any = MARK
    for level in range(50):
        value = {"level": level, "below": [value]}
    check_comes_back(storage, value)
    person = Person(MARK)
    for _ in range(125):
        person = Person(MARK, [person])
    check_comes_back(storage, person)


def test_a_value_that_holds_itself_comes_back(storage: StorageBase) -> None:
    """A value that contains itself comes back."""
    value: list[Any] = [MARK]
    value.append(value)
    storage.set("key", value)
    got = storage.get("key")
    assert got[1] is got, "A recursive value changed its structure. Pickle the value as a whole."


def test_an_object_held_twice_comes_back_as_one(storage: StorageBase) -> None:
    """An object that a value contains twice comes back as one object."""
    shared = [MARK]
    storage.set("key", {"one": shared, "two": shared})
    got = storage.get("key")
    assert got["one"] is got["two"], (
        "Two references to one object became two objects. Pickle the value as a whole."
    )


@pytest.mark.parametrize("size", [255, 256, 32_768, 65_535, 65_536, 1_000_000, 5_000_000])
def test_a_value_of_any_size_comes_back(storage: StorageBase, size: int) -> None:
    """Values of any size come back, up to at least 5 MB."""
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
    assert len(got) == size, f"Of {size:,} bytes, {len(got):,} came back. {advice}"
    assert same(got, value), f"A value of {size} bytes came back changed."
    assert (storage.len(), list(storage.keys())) == (1, ["key"]), (
        f"A value of {size} bytes appears as several keys. Keep its parts where they are not"
        " counted."
    )
    storage.set("key", MARK)
    assert storage.get("key") == MARK, f"A value of {size} bytes could not be replaced."


@pytest.mark.parametrize(
    "block",
    [4_096, 65_536, 262_144]
    + [pytest.param(n, marks=pytest.mark.thorough) for n in [400_000, 500_000, 1_000_000, 2**20]],
)
def test_a_value_that_just_fills_a_block_comes_back(storage: StorageBase, block: int) -> None:
    """A value that exactly fills a block comes back."""
    for size in range(block - 40, block + 2):  # pickled, it is some bytes longer
        set_or_skip(storage, "key", b"x" * size)
        assert same(storage.get("key"), b"x" * size), (
            f"A value of {size} bytes came back changed. Check the boundaries of the parts in which"
            " you store large values."
        )


def test_set_replaces_the_value(storage: StorageBase) -> None:
    """`set` replaces the value, even with an equal one, such as `1` and `True`."""
    different = [[MARK] * 1_000, "short", None, {"a": MARK, "b": MARK}, {"a": 1}, [], [MARK]]
    equal = [1, True, 1.0, 0, False, 0.0, -0.0, [1], [True]]
    for value in [*different, *equal]:
        storage.set("key", value)
        assert same(repr(storage.get("key")), repr(value)), (
            "A plugin got an old or mixed value after a newer `set`. Replace the whole value."
        )
    assert storage.len() == 1, (
        "Setting a key again added another key. Insert or replace in one step."
    )


def form(value: object) -> object:
    """Return what tells these values apart."""
    return type(value), repr(value), getattr(value, "__dict__", None)


@pytest.mark.parametrize("twins", TWINS.values(), ids=TWINS)
def test_a_value_is_replaced_by_one_that_looks_the_same(
    storage: StorageBase, twins: tuple[Any, Any]
) -> None:
    """`set` replaces a value even with one of the same length, checksum or hash."""
    for value in [*twins, *twins]:
        set_or_skip(storage, "key", value)
        got = storage.get("key")
        assert same(form(got), form(value)), (
            "`set` did nothing because it treated the value as unchanged. Write every time."
        )


@pytest.mark.parametrize("size", [20_000, 60_000], ids=["large", "very large"])
def test_equal_values_of_two_keys_go_their_own_ways(database: Database, size: int) -> None:
    """If two keys have equal values, removing or replacing one does not affect the other."""
    storage, other = database.open("one"), database.open("other")
    changes: list[Callable[[str], object]] = [storage.remove, lambda key: storage.set(key, MARK)]
    for number, change in enumerate(changes):
        value = [MARK * size, number]
        storage.set("copied", value)
        other.set("copied", value)
        change("copied")
        assert same(outcome(other.get, "copied"), value), (
            "A plugin's data were copied to another namespace. When a key was then removed or"
            " replaced in one of them, the other lost its value. A key says nothing without its"
            " namespace."
        )
    storage.remove("copied")
    other.remove("copied")
    value, left = [MARK * size], ["a", "b", "c", "d"]
    for key in left:
        storage.set(key, value)
        other.set(key, value)
    for change, changed in zip(changes, ["b", "d"], strict=True):
        change(changed)
        left.remove(changed)
        try:
            got = [storage.get(key) for key in left] + [other.get(key) for key in "abcd"]
        except KeyError:
            got = []
        assert same(got, [value] * (len(left) + 4)), (
            "When a key was removed or replaced, other keys with an equal value lost theirs. Count"
            " the references to a value that is stored once, or store it for each key."
        )
    assert (sorted(storage.keys()), other.len()) == (["a", "c", "d"], 4)


def test_changing_an_object_after_set_changes_nothing_stored(storage: StorageBase) -> None:
    """Changing an object after `set` changes nothing stored."""
    value = {"list": [MARK]}
    storage.set("key", value)
    value["list"].append("later")
    assert storage.get("key") == {"list": [MARK]}, (
        "A plugin that changes an object after `set` changed what it had stored. Store a copy: the"
        " pickled bytes."
    )


def test_an_object_that_has_changed_is_stored_when_it_is_set_again(storage: StorageBase) -> None:
    """An object that has changed is stored when it is set again."""
    value = {"list": [MARK]}
    storage.set("key", value)
    value["list"].append("later")
    storage.set("key", value)
    assert storage.get("key") == {"list": [MARK, "later"]}, (
        "`set` did nothing because it got the same object as before, but that had changed. Write"
        " every time."
    )


@pytest.mark.parametrize(
    "value",
    [[MARK], [MARK * 40_000], ([MARK],), Person(MARK), Slots(MARK)],
    ids=["list", "large list", "tuple", "instance", "instance with a hash"],
)
def test_changing_an_object_got_changes_nothing_stored(storage: StorageBase, value: Any) -> None:
    """Changing an object that `get` returned changes nothing stored."""
    set_or_skip(storage, "key", value)
    before = repr(storage.get("key"))
    for turn in range(4):
        got = storage.get("key")
        if type(got) is not type(value):
            pytest.skip("the value comes back changed, which another test checks")
        assert repr(got) == before, (
            "A plugin that changes what it got also changed what is stored, without `set`, for"
            " everyone. Return a new copy from each `get`."
        )
        if isinstance(got, (Person, Slots)):
            got.name = f"later {turn}"
        else:
            (got[0] if isinstance(got, tuple) else got).append("later")


@pytest.mark.parametrize(
    "value", [lambda: MARK, [MARK, Unstorable()]], ids=["function", "instance"]
)
def test_a_failed_set_leaves_the_old_value(
    database: Database, storage: StorageBase, value: Any
) -> None:
    """A `set` that fails leaves the old value, even for a bot that starts again."""

    def got_after_a_start() -> object:
        return outcome(lambda: database.open(plugin=database.plugin()).get("key"))

    storage.set("key", MARK)
    is_stored = got_after_a_start() == MARK  # as another test checks
    if not refusal(storage.set, "key", value):
        pytest.skip("the storage also accepts what cannot be pickled")
    assert (storage.get("key"), storage.len(), list(storage.keys())) == (MARK, 1, ["key"]), (
        "A `set` that failed damaged the old value. Pickle first, and then access the database."
    )
    assert not is_stored or got_after_a_start() == MARK, (
        "After a `set` that failed, a bot that starts again does not find the old value. Pickle"
        " first, and then access the database."
    )


@pytest.mark.parametrize(
    "value", [lambda: MARK, [MARK, Unstorable()]], ids=["function", "instance"]
)
def test_a_failed_set_adds_no_key(storage: StorageBase, value: Any) -> None:
    """A `set` that fails adds no key."""
    if not refusal(storage.set, "key", value):
        pytest.skip("the storage also accepts what cannot be pickled")
    assert (storage.len(), list(storage.keys())) == (0, []), (
        "A `set` that failed left a key behind. Pickle first, and then access the database."
    )
    storage.set("key", MARK)
    assert storage.get("key") == MARK, "After a `set` that failed, the next one failed."


class Part:
    """A part of a value that refers to all the others, and counts how often a part is pickled."""

    pickled = 0

    def __init__(self, others: list[Any]) -> None:
        self.others = others

    def __getstate__(self) -> dict[str, Any]:
        Part.pickled += 1
        return vars(self)


def test_a_failed_set_pickles_each_part_only_a_few_times(storage: StorageBase) -> None:
    """A `set` that fails does not work much longer than one that succeeds."""
    value: list[Any] = []
    value += [*(Part(value) for _ in range(PARTS)), Unstorable()]
    Part.pickled = 0
    if not refusal(storage.set, "key", value):
        pytest.skip("the storage also accepts what cannot be pickled")
    assert Part.pickled <= 10 * PARTS, (
        f"A `set` that failed has pickled {PARTS} objects {Part.pickled} times. If a plugin stores"
        " by mistake what leads to the whole bot, this takes minutes. Pickle the value once."
    )


@pytest.mark.parametrize(
    "value",
    [
        *[lambda: MARK, [MARK, Lock()], [MARK, (part for part in MARK)]],
        *([MARK, Unstorable(error)] for error in ERRORS),
    ],
    ids=["function", "lock", "generator", *(error.__name__ for error in ERRORS)],
)
def test_what_cannot_be_given_back_is_refused(storage: StorageBase, value: Any) -> None:
    """A value that the storage could not return is refused."""
    if not refusal(storage.set, "key", value):
        got, expected = (
            re.sub(" at 0x[0-9a-fA-F]+", "", repr(each))
            for each in (outcome(storage.get, "key"), value)
        )
        assert got == expected, (
            f"A value that cannot be pickled was accepted, and `get` returns {got:.100}: a plugin"
            " loses it silently. Raise pickle's error."
        )


@pytest.mark.parametrize("size", [0, 3_000_000])
def test_an_object_that_grows_while_it_is_set_comes_back(storage: StorageBase, size: int) -> None:
    """An object that changes while it is set comes back as it was at one moment."""
    storage.set("key", MARK)
    growing = Growing(bytes(size))
    if refusal(storage.set, "key", [growing, MARK]):
        assert storage.get("key") == MARK, "A `set` that failed has replaced the value."
        return
    got = outcome(storage.get, "key")
    assert isinstance(got, list), (
        "An object that changed while it was set, as a list does to which a thread appends, cannot"
        f" be read: {got}. Pickle a value once, because a second pickle may have another length."
    )
    parts = got[0].parts
    assert same(parts, growing.parts[: len(parts)]), (
        "An object that changed while it was set came back as it never was."
    )


@pytest.mark.parametrize(
    "error",
    [
        *[KeyError("id"), AttributeError("id"), ImportError("id"), TypeError("id")],
        *[ValueError("id"), EOFError("id"), pickle.UnpicklingError("id")],
    ],
    ids=repr,
)
def test_a_value_that_cannot_be_read_is_not_missing(storage: StorageBase, error: Exception) -> None:
    """A value that cannot be unpickled is an error, not a missing key or an older value."""
    storage.set("key", MARK)
    set_or_skip(storage, "key", Unreadable(error))
    try:
        got = storage.get("key")
    except KeyError:
        pytest.fail(
            f"A value that cannot be unpickled because of a {type(error).__name__} counts as"
            " missing: `in` is false, and `setdefault` replaces it. Raise another error, such as"
            " StoreException."
        )
    except Exception:
        assert (storage.len(), list(storage.keys())) == (1, ["key"]), (
            "A value that cannot be unpickled was removed, or is not counted. It may become"
            " readable when its plugin is loaded again."
        )
    else:
        assert isinstance(got, Unreadable), (
            f"A value that cannot be read came back as a {type(got).__name__}, perhaps an older"
            " one, which a plugin treats as its own. Raise an error, such as StoreException."
        )


def test_a_value_whose_class_is_not_loaded_waits_for_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value whose class is not loaded, as in `errbot --storage-get`, is kept for its plugin."""
    database.open_twice("probe")
    name, other = "errbot.plugins.One", "errbot.plugins.Other"  # as Errbot names them
    module = ModuleType(name)
    kind = type("Thing", (Person,), {"__module__": name})
    vars(module)["Thing"] = kind
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        database.open("namespace", database.plugin()).set("key", kind(MARK))
    storage = database.open("namespace", database.plugin())
    another = ModuleType(other)
    vars(another)["Thing"] = type("Thing", (Person,), {"__module__": other})
    monkeypatch.setitem(sys.modules, other, another)
    got = outcome(storage.get, "key")  # It need not fail: the class may be stored as well.
    assert type(got) is not another.Thing, (
        "A value whose class is not loaded came back as an object of another plugin's class, which"
        " has the same name. Raise an error, such as StoreException."
    )
    assert isinstance(got, (type, Person)), (
        f"A value whose class is not loaded came back as something else, a {type(got).__name__}. A"
        " plugin or a backup would store that instead. Raise an error, such as StoreException."
    )
    assert (storage.len(), list(storage.keys())) == (1, ["key"]), (
        "A value whose class is not loaded is not listed."
    )
    monkeypatch.setitem(sys.modules, name, module)
    restarted = database.open("namespace", database.plugin())
    assert outcome(restarted.get, "key") == kind(MARK), (
        "A value whose class was not loaded is lost. `errbot --storage-get` loads no plugins, and"
        " must not change what they have stored."
    )


def test_a_value_that_cannot_be_shown_comes_back(storage: StorageBase) -> None:
    """A value comes back although its `repr`, `str` or `len` fails."""
    set_or_skip(storage, "key", Person(MARK))
    for value in [Unshowable(), [Unshowable()]]:
        refused = refusal(storage.set, "key", value)
        assert not refused, (
            f"`set` of a value whose `repr` and `len` fail raises {refused}. Some libraries have"
            " such values. Use nothing of a value but what pickle makes of it."
        )
    got = outcome(storage.get, "key")
    assert isinstance(got, list), f"A value whose `repr` fails cannot be read: {got}."
    assert type(got[0]) is Unshowable, "A value whose `repr` fails came back as something else."


def test_a_value_whose_module_is_not_imported_yet_comes_back(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value comes back if its class is in a module that is installed, but not imported yet."""
    database.open_twice("probe")
    (tmp_path / "installed_later.py").write_text("class Thing(list):\n    pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    kind = import_module("installed_later").Thing
    set_or_skip(database.open("namespace", database.plugin()), "key", kind([MARK]))
    del sys.modules["installed_later"]
    try:
        got = outcome(database.open("namespace", database.plugin()).get, "key")
    finally:
        sys.modules.pop("installed_later", None)
    assert same(got, [MARK]), (
        f"The class of a value is in a module that nothing had imported yet, and `get` returned"
        f" {got!r}. Plugins import such modules only when they need them. Import them, as pickle"
        " does."
    )


def test_a_buffer_can_be_changed_when_it_comes_back(storage: StorageBase) -> None:
    """An object with a writable buffer, such as an array of NumPy, can be changed afterwards."""
    set_or_skip(storage, "key", bytearray(MARK.encode()))
    if storage.get("key") != MARK.encode():
        pytest.skip("a bytearray comes back changed, which another test checks")
    set_or_skip(storage, "key", Samples(bytearray(MARK.encode())))
    got = storage.get("key")
    assert bytes(got.data) == MARK.encode(), "A buffer came back changed."
    try:
        got.data[0] = 0
    except TypeError:
        pytest.fail(
            "A writable buffer came back read-only, so plugins cannot change their arrays. Do not"
            " give buffers to pickle out of band, or give it bytearrays back."
        )


def test_a_value_that_cannot_be_read_can_be_replaced_and_removed(storage: StorageBase) -> None:
    """A value that cannot be unpickled can be replaced and removed."""
    set_or_skip(storage, "key", Unreadable(AttributeError("no such attribute")))
    refusal(storage.get, "key")
    storage.set("key", MARK)
    assert storage.get("key") == MARK, "A value that cannot be unpickled cannot be replaced."
    storage.set("key", Unreadable(AttributeError("no such attribute")))
    storage.remove("key")
    assert storage.len() == 0, "A value that cannot be unpickled cannot be removed."
