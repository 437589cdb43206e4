"""Data are there as soon as they are set, and stay until they are removed."""

from errbot.storage import StoreMixin
from errbot.storage.base import StorageBase, StoragePluginBase

from contract.expect import expect
from contract.plugin import Database
from contract.values import MARK


def test_errbot_finds_the_storage_plugin(database: Database) -> None:
    plugin = database.plugin()
    assert isinstance(plugin, StoragePluginBase), "Errbot asks for a StoragePluginBase."
    assert isinstance(plugin.open(database.namespace("a")), StorageBase), (
        "`open` must give a StorageBase."
    )


def test_an_empty_storage_counts_as_open(database: Database) -> None:
    assert database.open(), (
        "An empty open storage is false, and Errbot takes it for closed. Define no __len__ and no"
        " __bool__."
    )
    mapping = StoreMixin()
    mapping.open_storage(database.plugin(), database.namespace("other"))
    assert mapping.is_open_storage(), "Errbot takes an empty open storage for closed."
    mapping.close_storage()


def test_opening_keeps_what_is_there(database: Database) -> None:
    database.open().set("key", MARK)
    assert database.open().get("key") == MARK, "Opening a namespace a second time emptied it."


def test_closing_keeps_what_is_there(database: Database) -> None:
    storage = database.open()
    storage.set("key", MARK)
    database.close(storage)
    assert database.open().get("key") == MARK, (
        "After `close` and `open` the data were gone: a plugin that is reloaded forgets everything."
    )


def test_a_removal_survives_closing(database: Database) -> None:
    storage = database.open()
    storage.set("key", MARK)
    storage.set("other", MARK)
    storage.remove("key")
    database.close(storage)
    assert list(database.open().keys()) == ["other"], (
        "A removed key came back after `close` and `open`."
    )


def test_a_new_plugin_instance_finds_everything(database: Database) -> None:
    storage = database.open("namespace", database.plugin())
    storage.set("key", [MARK, "old"])
    storage.set("key", MARK)
    database.close(storage)
    again = database.open("namespace", database.plugin())
    assert (again.get("key"), again.len(), list(again.keys())) == (MARK, 1, ["key"]), (
        "After a restart the bot has forgotten its data."
    )


def test_a_set_is_done_when_it_returns(database: Database) -> None:
    storage = database.open("namespace", database.plugin())
    other = database.open("namespace", database.plugin())
    for value in [MARK, [MARK], None]:
        storage.set("key", value)
        assert (other.get("key"), other.len(), list(other.keys())) == (value, 1, ["key"]), (
            "A value is not in the database when `set` returns: it would be lost in a crash, and"
            " `errbot --storage-get` does not see it. Commit at once, and cache nothing."
        )


def test_a_removal_is_done_when_it_returns(database: Database) -> None:
    storage = database.open("namespace", database.plugin())
    other = database.open("namespace", database.plugin())
    storage.set("key", MARK)
    assert other.get("key") == MARK, "A value is not in the database when `set` returns."
    storage.remove("key")
    with expect(KeyError, "A key is still in the database when `remove` has returned."):
        other.get("key")
    assert (other.len(), list(other.keys())) == (0, []), (
        "A key is still in the database when `remove` has returned."
    )


def test_an_opener_sees_what_another_removed(database: Database) -> None:
    storage = database.open("namespace", database.plugin())
    other = database.open("namespace", database.plugin())
    storage.set("key", MARK)
    other.remove("key")
    with expect(KeyError, "A storage answers from memory what another process has removed."):
        storage.get("key")
    with expect(KeyError, "A storage answers from memory what another process has removed."):
        storage.remove("key")


def test_closing_one_namespace_leaves_the_others_open(database: Database) -> None:
    one, other = database.open("one"), database.open("other")
    other.set("key", MARK)
    database.close(one)
    assert other.get("key") == MARK, "Unloading one plugin broke the storage of another."
    other.set("key", [MARK])
    assert other.get("key") == [MARK], "Unloading one plugin broke the storage of another."
    assert database.open("one").len() == 0, (
        "After one `close` the namespace cannot be opened again."
    )


def test_closing_one_opener_leaves_the_others_open(database: Database) -> None:
    one, other = database.open(), database.open()
    one.set("key", MARK)
    database.close(one)
    assert other.get("key") == MARK, "Closing a namespace broke it for whoever else has it open."
    other.set("key", [MARK])
    assert other.get("key") == [MARK], "Closing a namespace broke it for whoever else has it open."
