"""What all other tests rely on: the storage is found, keys can be removed, and nothing hangs."""

from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from threading import Thread

import pytest
from errbot.storage import StoreMixin
from errbot.storage.base import StorageBase, StoragePluginBase

from contract.support.database import Database
from contract.support.outcomes import outcome
from contract.support.sample_values import MARK, Unreadable, Unstorable


def test_errbot_finds_the_storage_plugin(database: Database) -> None:
    """Errbot finds the plugin by its name, and can open it."""
    plugin = database.plugin()
    assert isinstance(plugin, StoragePluginBase), "Errbot expects a StoragePluginBase."
    assert isinstance(plugin.open(database.namespace("a")), StorageBase), (
        "`open` must return a StorageBase."
    )


def test_an_empty_storage_counts_as_open(database: Database) -> None:
    """An open storage counts as open, even if it is empty, or an operation has failed."""
    storage = database.open()
    unreadable = Unreadable(AttributeError("no such attribute"))
    steps: list[Callable[[], object]] = [
        lambda: None,
        lambda: storage.get("missing"),
        lambda: storage.set("key", Unstorable()),
        lambda: storage.set("key", unreadable),
        lambda: storage.get("key"),
        lambda: storage.remove("key"),
    ]
    for step in steps:
        outcome(step)
        assert bool(storage), (
            "An open storage is falsy, so Errbot treats it as closed: `!backup`, for example,"
            " leaves its data out. Define neither __len__ nor __bool__."
        )
    mapping = StoreMixin()
    mapping.open_storage(database.plugin(), database.namespace("other"))
    assert mapping.is_open_storage(), "Errbot treats an empty open storage as closed."
    mapping.close_storage()


def test_a_removed_key_is_gone_and_can_be_set_again(storage: StorageBase) -> None:
    """A removed key is gone, and can be set again."""
    storage.set("key", "old")
    storage.remove("key")
    storage.set("key", MARK)
    assert (storage.get("key"), list(storage.keys())) == (MARK, ["key"]), (
        "A key that was removed and set again does not return the new value."
    )
    storage.remove("key")
    for operation in [storage.get, storage.remove]:
        assert outcome(operation, "key") == outcome(operation, "never set"), (
            "A removed key can still be read or removed, unlike a key that was never set."
        )
    assert (storage.len(), list(storage.keys())) == (0, []), "A removed key is still counted."


@pytest.mark.parametrize("keys", [[], [""], [" "], ["a"], ["", "a"]], ids=repr)
def test_a_loop_over_the_keys_ends(
    storage: StorageBase, keys: list[str], request: pytest.FixtureRequest
) -> None:
    """A loop over the keys ends."""
    for key in keys:
        storage.set(key, MARK)
    got = list(islice(storage.keys(), 10))
    if len(got) == 10:
        request.session.shouldfail = "`keys` never ends, and so nothing that lists keys would end"
        pytest.fail(
            f"A loop over the keys {keys} never ends. Distinguish the first page from the page"
            ' after the key "".'
        )
    assert sorted(got) == keys, f"A loop over the keys {keys} returned {got}."


def test_no_operation_waits_for_ever(database: Database, request: pytest.FixtureRequest) -> None:
    """No operation hangs, neither after one that failed nor in a loop over the keys."""
    storage = database.plugin().open(database.namespace("namespace"))
    begun = ["`open`"]

    def do(name: str, operation: Callable[[], object]) -> None:
        begun.append(name)
        with suppress(Exception):  # another test checks this
            operation()

    def do_all(where: str = "") -> None:
        do(f"`set`{where}", lambda: storage.set("key", MARK))
        do(f"`set` of what cannot be stored{where}", lambda: storage.set("key", Unstorable()))
        do(f"`get`{where}", lambda: storage.get("key"))
        do(f"`get` of a missing key{where}", lambda: storage.get("missing"))
        do(f"`remove` of a missing key{where}", lambda: storage.remove("missing"))
        do(f"`len`{where}", storage.len)
        do(f"`keys`{where}", lambda: list(islice(storage.keys(), 9)))
        do(f"`remove`{where}", lambda: storage.remove("key"))
        do(f"`set` of a removed key{where}", lambda: storage.set("key", MARK))

    def loop() -> None:
        for _key in islice(storage.keys(), 2):
            do_all(" in a loop over the keys")

    def work() -> None:
        do_all()
        do("`keys`", loop)
        do("`close`", storage.close)

    thread = Thread(target=work, daemon=True)
    thread.start()
    thread.join(request.config.getoption("--time-limit") / 6)
    if thread.is_alive():
        request.session.shouldfail = "the storage hangs, and so would all other tests"
        pytest.fail(
            f"A command of the bot never ends: {begun[-1]} hangs, after {begun[-2]}. Release every"
            " lock when an operation ends, even if it fails, and between two keys of a loop."
        )
