"""signing_key: a value that somebody planted in the database is refused, and never unpickled."""

from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from contract.support.database import Database
from contract.support.sample_values import FALSY, MARK
from contract.support.tricky_names import ALIKE, SEPARATORS
from errbot.storage import StoreException
from errbot.storage.base import StorageBase

EXECUTED: list[str] = []

SIGNED = (
    b"\x80\x05\x95\r\x00\x00\x00\x00\x00\x00\x00\x8c\tas it was\x94."
    b".6QvBb8yX8yGlummjdPn66s4PuV94JV6xK7Zw-cpVbu0"
)
"""What the first version stored in "namespace" under "key", with the signing key "key one"."""


def run_code() -> None:
    """Note that an attacker's code ran."""
    EXECUTED.append("code ran")


class Evil:
    """What an attacker would store: unpickling it runs code."""

    def __reduce__(self) -> Any:
        # A function, for a method such as EXECUTED.append would be pickled with a copy of its list.
        return run_code, ()


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    EXECUTED.clear()


def signed(database: Database, *keys: str) -> StorageBase:
    """Open "namespace" with these signing keys, the newest last, or with none."""
    settings = dict(database.config.STORAGE_CONFIG)
    settings.pop("signing_key", None)
    database.config.STORAGE_CONFIG = settings | ({"signing_key": list(keys)} if keys else {})
    return database.open("namespace", database.plugin())


def stored(storage: StorageBase, key: str) -> bytes:
    """Return the bytes that the database holds for a key."""
    with patch.object(storage, "_load", lambda _key, data: data):
        return bytes(storage.get(key))


def store(storage: StorageBase, key: str, data: bytes) -> None:
    """Put bytes into the database, as somebody does who can write to it."""
    with patch.object(storage, "_dump", lambda _key, data: data):
        storage.set(key, data)


@pytest.mark.parametrize("value", FALSY.values(), ids=FALSY)
def test_a_signed_falsy_value_comes_back(database: Database, value: Any) -> None:
    signed(database, "key one").set("key", value)
    assert signed(database, "key one").get("key") == value


@pytest.mark.parametrize("value", [{"a": [MARK]}, MARK * 100_000], ids=["dict", "large"])
def test_a_signed_value_comes_back(database: Database, value: Any) -> None:
    storage = signed(database, "key one")
    storage.set("key", MARK * 200_000)
    storage.set("key", value)
    assert signed(database, "key one").get("key") == value


def test_a_value_that_the_first_version_signed_can_still_be_read(database: Database) -> None:
    storage = signed(database, "key one")
    store(storage, "key", SIGNED)
    assert storage.get("key") == "as it was", "A bot that is updated can read nothing any more."


@pytest.mark.parametrize("signing_key", ["key one", "k"])
def test_one_key_needs_no_list(database: Database, signing_key: str) -> None:
    signed(database, signing_key).set("key", MARK)
    database.config.STORAGE_CONFIG["signing_key"] = signing_key
    storage = database.open("namespace", database.plugin())
    assert storage.get("key") == MARK
    storage.set("key", [MARK])
    assert signed(database, signing_key).get("key") == [MARK]


def test_an_unsigned_value_is_refused_and_not_unpickled(database: Database) -> None:
    signed(database).set("key", Evil())
    storage = signed(database, "key one")
    with pytest.raises(StoreException, match="signing_key") as caught:
        storage.get("key")
    assert str(caught.value) == (
        "Refused the value of the key 'key' in the namespace 'namespace': it is not signed with a"
        " signing_key of STORAGE_CONFIG, so it was changed, moved here, or stored without one."
    ), "The error does not say what was refused, where, and why."
    assert EXECUTED == [], "An unsigned value was unpickled."
    for value in [MARK, None, 5, [Evil(), "x" * 2_000_000]]:
        signed(database).set("key", value)
        with pytest.raises(StoreException, match="signing_key"):
            storage.get("key")
    assert EXECUTED == [], "An unsigned value was unpickled."


def test_a_value_signed_with_another_key_is_refused(database: Database) -> None:
    signed(database, "key two").set("key", Evil())
    with pytest.raises(StoreException, match="signing_key"):
        signed(database, "key one").get("key")
    assert EXECUTED == [], "A value with another signature was unpickled."


@pytest.mark.parametrize(
    ("one", "other"),
    [("key", "Key"), ("key", "key "), ("k" * 32, "k" * 33), ("k" * 99 + "a", "k" * 99 + "b")],
)
def test_signing_keys_are_told_apart_to_the_letter(
    database: Database, one: str, other: str
) -> None:
    signed(database, one).set("key", MARK)
    with pytest.raises(StoreException, match="signing_key"):
        signed(database, other).get("key")
    assert signed(database, one).get("key") == MARK, "What was refused is lost."


def test_a_value_moved_to_another_place_is_refused(database: Database) -> None:
    signed(database, "key one")
    plugin = database.plugin()
    for origin, target in [
        (("namespace", "a"), ("namespace", "b")),
        (("namespace", "a"), ("other", "a")),
        (("a", "b:c"), ("a:b", "c")),
        (("a", "bc"), ("ab", "c")),
        (("a", 'b", "c'), ('a", "b', "c")),
        *((("a", f"b{mark}c"), (f"a{mark}b", "c")) for mark in SEPARATORS),
    ]:
        one, other = database.open(origin[0], plugin), database.open(target[0], plugin)
        one.set(origin[1], MARK)
        assert one.get(origin[1]) == MARK
        store(other, target[1], stored(one, origin[1]))
        with pytest.raises(StoreException, match="signing_key"):
            other.get(target[1])


def test_a_value_moved_between_long_keys_is_refused(database: Database) -> None:
    storage = signed(database, "key one")
    one, other = "k" * 300 + "a", "k" * 300 + "b"
    try:
        storage.set(one, MARK)
    except ValueError:  # no database has to hold keys of this length
        return
    store(storage, other, stored(storage, one))
    with pytest.raises(StoreException, match="signing_key"):
        storage.get(other)


@pytest.mark.parametrize("names", ALIKE.values(), ids=ALIKE)
def test_a_value_moved_to_a_name_that_looks_alike_is_refused(
    database: Database, names: list[str]
) -> None:
    signed(database, "key one")
    plugin = database.plugin()
    storages = {name: database.open(name, plugin) for name in names}
    for one, other in pairwise([*names, names[0]]):
        storages[one].set(one, MARK)
        for storage, key in [(storages[one], other), (storages[other], one)]:
            store(storage, key, stored(storages[one], one))
            with pytest.raises(StoreException, match="signing_key"):
                storage.get(key)


def test_a_changed_value_is_refused(database: Database) -> None:
    storage = signed(database, "key one")
    storage.set("key", MARK)
    data = stored(storage, "key")
    for position in range(0, len(data), 7):
        store(storage, "key", data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(StoreException, match="signing_key"):
            storage.get("key")
    storage.set("large", MARK * 200_000)
    large = stored(storage, "large")
    for position in [20, 1_000_000]:
        store(storage, "large", large[:position] + b"x" + large[position + 1 :])
        with pytest.raises(StoreException, match="signing_key"):
            storage.get("large")
    for cut in [b"", data[:-1], data[1:], data + b"x", b"." + data, b"."]:
        store(storage, "key", cut)
        with pytest.raises(StoreException, match="signing_key"):
            storage.get("key")


def test_a_refused_value_harms_nothing_else(database: Database) -> None:
    signed(database).set("planted", Evil())
    storage = signed(database, "key one")
    storage.set("key", MARK)
    assert storage.get("key") == MARK
    assert (storage.len(), sorted(storage.keys())) == (2, ["key", "planted"])
    storage.remove("planted")
    assert list(storage.keys()) == ["key"]


def test_keys_can_be_rotated(database: Database) -> None:
    signed(database, "old key").set("key", MARK)
    both = signed(database, "old key", "new key")
    assert both.get("key") == MARK, "The old key does not count while the list still has it."
    both.set("key", both.get("key"))
    assert signed(database, "new key").get("key") == MARK, "The last key of the list does not sign."
    with pytest.raises(StoreException, match="signing_key"):
        signed(database, "old key").get("key")


def test_every_key_of_the_list_counts_and_the_last_one_signs(database: Database) -> None:
    keys = [f"key {number}" for number in range(5)]
    for key in keys:
        signed(database, key).set(key, MARK)
    for order in [keys, keys[::-1], [*keys[2:], *keys[:2]]]:
        storage = signed(database, *order)
        assert [storage.get(key) for key in keys] == [MARK] * 5, "A key of the list does not count."
        storage.set("new", MARK)
        assert signed(database, order[-1]).get("new") == MARK, "The last key does not sign."


def test_a_value_that_cannot_be_unpickled_is_a_clear_error(database: Database) -> None:
    storage = signed(database)
    storage.set("good", MARK)
    whole = stored(storage, "good")
    for number, data in enumerate([b"", b"{}", b"no pickle", whole[:-5], b"\x80\x05h\x07."]):
        store(storage, f"bad {number}", data)
        where = f"the value of the key 'bad {number}' in the namespace 'namespace'"
        with pytest.raises(StoreException, match=rf"^Cannot unpickle {where}: \w+\.$"):
            storage.get(f"bad {number}")
    assert (storage.get("good"), storage.len()) == (MARK, 6), "One bad value harmed the others."


@pytest.mark.parametrize(
    "signing_key", ["", [], [""], ["key one", ""], 5, [5], b"key", [b"key"]], ids=repr
)
def test_a_signing_key_that_would_sign_nothing_is_refused(
    database: Database, signing_key: object
) -> None:
    database.config.STORAGE_CONFIG |= {"signing_key": signing_key}
    with pytest.raises(ValueError, match="signing_key: "):
        database.plugin()
