"""Plugins use their storage as a mapping: `self["key"]`, by Errbot's StoreMixin."""

import pytest
from errbot.storage import StoreMixin

from contract.expect import expect
from contract.plugin import Database
from contract.values import MARK


@pytest.fixture
def mapping(database: Database) -> StoreMixin:
    """A namespace as a plugin sees it, with two keys."""
    mapping = database.mapping()
    mapping["a"] = [MARK, 1]
    mapping["b"] = [MARK, 2]
    return mapping


def test_getting_setting_and_deleting_items(mapping: StoreMixin) -> None:
    mapping["c"] = MARK
    del mapping["a"]
    assert (mapping["c"], dict(mapping)) == (MARK, {"b": [MARK, 2], "c": MARK}), (
        "self[key], self[key] = value or del self[key] does not work."
    )


def test_a_missing_item_raises_key_error(mapping: StoreMixin) -> None:
    with expect(KeyError, "self[key] of a missing key must raise KeyError."):
        mapping["missing"]
    with expect(KeyError, "del self[key] of a missing key must raise KeyError."):
        del mapping["missing"]
    with expect(KeyError, "self.pop(key) of a missing key must raise KeyError."):
        mapping.pop("missing")


def test_in_tells_what_is_there(mapping: StoreMixin) -> None:
    assert "a" in mapping, "`key in self` does not see a key."
    assert "missing" not in mapping, "`key in self` sees a key that is not there."


def test_get_and_pop_with_a_default(mapping: StoreMixin) -> None:
    assert (mapping.get("a"), mapping.get("missing"), mapping.get("missing", MARK)) == (
        [MARK, 1],
        None,
        MARK,
    ), "self.get(key, default) does not work."
    assert (mapping.pop("a"), mapping.pop("a", MARK), "a" in mapping) == ([MARK, 1], MARK, False), (
        "self.pop(key, default) does not work."
    )


def test_setdefault_keeps_what_is_there(mapping: StoreMixin) -> None:
    assert (mapping.setdefault("a", []), mapping["a"]) == ([MARK, 1], [MARK, 1]), (
        "self.setdefault(key, value) replaced a value."
    )
    assert (mapping.setdefault("c", [MARK]), mapping["c"]) == ([MARK], [MARK]), (
        "self.setdefault(key, value) did not store the value of a new key."
    )


def test_update_sets_everything(mapping: StoreMixin) -> None:
    mapping.update({"b": MARK, "c": MARK}, d=MARK)
    assert dict(mapping) == {"a": [MARK, 1], "b": MARK, "c": MARK, "d": MARK}, (
        "self.update(...) does not set each key: `errbot --storage-set` rests on it."
    )


def test_popitem_takes_one_item_away(mapping: StoreMixin) -> None:
    taken = dict([mapping.popitem(), mapping.popitem()])
    assert (taken, len(mapping)) == ({"a": [MARK, 1], "b": [MARK, 2]}, 0), (
        "self.popitem() does not take away one item after the other."
    )
    with expect(KeyError, "self.popitem() of an empty storage must raise KeyError."):
        mapping.popitem()


def test_clear_empties_the_namespace(mapping: StoreMixin) -> None:
    mapping.update({f"{number}": None for number in range(1_000)})
    mapping.clear()
    assert (len(mapping), list(mapping), "a" in mapping) == (0, [], False), (
        "self.clear() leaves keys: `errbot --storage-set` would mix old and new."
    )
    mapping["a"] = MARK
    assert dict(mapping) == {"a": MARK}, "After self.clear() nothing can be set."


def test_keys_values_items_and_len(mapping: StoreMixin) -> None:
    assert sorted(mapping.keys()) == ["a", "b"], "self.keys() does not give the keys."
    assert sorted(mapping) == ["a", "b"], "`for key in self` does not give the keys."
    assert sorted(mapping.values()) == [[MARK, 1], [MARK, 2]], (
        "self.values() does not give the values."
    )
    assert sorted(mapping.items()) == [("a", [MARK, 1]), ("b", [MARK, 2])], (
        "self.items() does not give the items: Errbot's !backup rests on it."
    )
    assert len(mapping) == 2, "len(self) does not count the keys."


def test_items_can_be_deleted_in_a_loop(mapping: StoreMixin) -> None:
    for key in mapping:
        del mapping[key]
    assert len(mapping) == 0, "`for key in self: del self[key]` left keys."


def test_mutable_saves_what_was_changed(mapping: StoreMixin) -> None:
    with mapping.mutable("a") as value:
        value.append("more")
    assert mapping["a"] == [MARK, 1, "more"], "with self.mutable(key) did not save the change."


def test_mutable_stores_a_default(mapping: StoreMixin) -> None:
    with mapping.mutable("new", {}) as value:
        value[MARK] = 1
    assert mapping["new"] == {MARK: 1}, (
        "with self.mutable(key, default) did not store a new key: Errbot's list of installed"
        " repositories and `errbot --storage-merge` rest on it."
    )


def test_mutable_saves_nothing_when_it_fails(mapping: StoreMixin) -> None:
    why = "An error in a `with self.mutable(key)` block was swallowed."
    with expect(ZeroDivisionError, why), mapping.mutable("a") as value:
        value.append("more")
        raise ZeroDivisionError
    assert mapping["a"] == [MARK, 1], "A block of self.mutable that failed changed what is stored."


def test_with_closes_the_storage(database: Database) -> None:
    plugin = database.plugin()
    with StoreMixin() as mapping:
        mapping.open_storage(plugin, database.namespace("namespace"))
        mapping["key"] = MARK
    assert not mapping.is_open_storage(), "A storage is still open after its `with` block."
    mapping.open_storage(plugin, database.namespace("namespace"))
    assert dict(mapping) == {"key": MARK}, "What was set in a `with` block is gone after it."
    mapping.close_storage()
