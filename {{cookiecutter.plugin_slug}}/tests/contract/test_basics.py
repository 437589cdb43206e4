"""What all other tests need: a storage that is found and open, and never waits for itself."""

from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from threading import Thread

import pytest
from errbot.storage import StoreMixin
from errbot.storage.base import StorageBase, StoragePluginBase

from contract.support.database import Database
from contract.support.sample_values import MARK, Unstorable


def test_errbot_finds_the_storage_plugin(database: Database) -> None:
    plugin = database.plugin()
    assert isinstance(plugin, StoragePluginBase), "Errbot asks for a StoragePluginBase."
    assert isinstance(plugin.open(database.namespace("a")), StorageBase), (
        "`open` must give a StorageBase."
    )


def test_an_empty_storage_counts_as_open(database: Database) -> None:
    assert bool(database.open()), (
        "An empty open storage is false, and Errbot takes it for closed. Define no __len__ and no"
        " __bool__."
    )
    mapping = StoreMixin()
    mapping.open_storage(database.plugin(), database.namespace("other"))
    assert mapping.is_open_storage(), "Errbot takes an empty open storage for closed."
    mapping.close_storage()


def test_no_operation_waits_for_ever(database: Database, request: pytest.FixtureRequest) -> None:
    storage = database.plugin().open(database.namespace("namespace"))
    begun = ["`open`"]

    def do(name: str, operation: Callable[[], object]) -> None:
        begun.append(name)
        with suppress(Exception):  # is another test's matter
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
    thread.join(20)
    if thread.is_alive():
        request.session.shouldfail = "the storage waits for ever, and so would all other tests"
        pytest.fail(
            f"A command of the bot never ends: {begun[-1]} waits for ever, after {begun[-2]}. Let"
            " go of each lock when an operation ends, by an error too, and between two keys."
        )
