"""Plugins use their storage as a mapping: `self["key"]`, through Errbot's StoreMixin."""

import pytest
from errbot.storage import StoreMixin

from contract.support.amounts import many
from contract.support.database import Database
from contract.support.deadlines import deadline
from contract.support.sample_values import MARK


@pytest.fixture
def mapping(database: Database) -> StoreMixin:
    """A namespace as a plugin sees it, with two keys."""
    mapping = database.mapping()
    mapping["a"] = [MARK, 1]
    mapping["b"] = [MARK, 2]
    return mapping


def test_a_storage_serves_as_a_mapping(mapping: StoreMixin) -> None:
    """A plugin can use its storage as a mapping."""
    assert ("a" in mapping, "c" in mapping) == (True, False), "`key in self` does not work."
    assert (mapping.get("c"), mapping.get("c", MARK)) == (None, MARK), (
        "self.get(key, default) does not work for a missing key."
    )
    assert (mapping.setdefault("c", []), mapping.setdefault("c", [MARK])) == ([], []), (
        "self.setdefault(key, value) does not store and return the value of a new key."
    )
    with mapping.mutable("d", {}) as value:
        value[MARK] = 1
    assert mapping.get("d") == {MARK: 1}, (
        "with self.mutable(key, default) did not store a new key. Errbot's list of installed"
        " repositories and `errbot --storage-merge` rely on it."
    )
    mapping.update({"b": MARK, "e": MARK})
    assert (mapping.pop("c"), mapping.pop("c", MARK), mapping.popitem()[0] in "abde") == (
        [],
        MARK,
        True,
    ), "self.pop(key, default) or self.popitem() does not work."
    assert len(mapping) == len(dict(mapping)) == len(list(mapping.items())) == 3, (
        "len(self), dict(self) and self.items() differ. Errbot's !backup relies on them."
    )


def test_clear_empties_the_namespace(mapping: StoreMixin) -> None:
    """`clear` empties the namespace."""
    mapping.update({f"{number}": None for number in range(many(1_000, 100))})
    with deadline(100, "self.clear() never ends: `keys` returns a key that `remove` has removed."):
        mapping.clear()
    assert (len(mapping), list(mapping), "a" in mapping) == (0, [], False), (
        "self.clear() leaves keys, so `errbot --storage-set` would mix old and new data."
    )


def test_mutable_saves_what_was_changed(mapping: StoreMixin) -> None:
    """`mutable` saves what was changed."""
    with mapping.mutable("a") as value:
        value.append("more")
    assert mapping["a"] == [MARK, 1, "more"], "with self.mutable(key) did not save the change."


def test_a_backup_that_errbot_executes_is_restored(mapping: StoreMixin) -> None:
    """Code that belongs to no module, as `errbot --restore` executes it, can store values."""
    exec("bot['a'] = mark; del bot['b']; bot['c'] = bot['a']", {"bot": mapping, "mark": MARK})
    assert dict(mapping) == {"a": MARK, "c": MARK}, (
        "Values that `errbot --restore` stores are lost. It executes backup.py, which has no"
        " `__name__` and no `__file__`."
    )
