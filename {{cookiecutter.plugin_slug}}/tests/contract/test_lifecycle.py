"""Data are there as soon as they are set, and stay until they are removed."""

from pathlib import Path

import pytest

from contract.support.database import Database
from contract.support.expectations import expect, same
from contract.support.sample_values import MARK
from contract.support.tricky_names import ALIKE


def test_closing_keeps_what_is_there(database: Database) -> None:
    """Closing and opening a namespace keeps what is there."""
    storage = database.open()
    for key in ["a", "b", "c"]:
        storage.set(key, [MARK, key])
    storage.remove("b")
    database.close(storage)
    again = database.open()
    assert {key: again.get(key) for key in again.keys()} == {"a": [MARK, "a"], "c": [MARK, "c"]}, (
        "After `close` and `open` a plugin that was reloaded has lost data, or has removed ones"
        " again. Write each change at once, and nothing at `close`."
    )


def test_a_new_plugin_instance_finds_everything(database: Database) -> None:
    """A bot that is restarted finds everything in every namespace."""
    plugin = database.plugin()
    names = ["namespace", *(names[-1] for names in ALIKE.values())]
    for name in names:
        storage = database.open(name, plugin)
        storage.set("key", [MARK, "old"])
        storage.set("key", [MARK, name])
        database.close(storage)
    restarted = database.plugin()
    for name in names:
        storage = database.open(name, restarted)
        assert {key: storage.get(key) for key in storage.keys()} == {"key": [MARK, name]}, (
            f"After a restart the bot has forgotten the data of the namespace {name!r}."
        )


def test_a_bot_started_in_another_folder_finds_everything(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bot that is started in another working directory finds everything."""
    if not Path(database.config.BOT_DATA_DIR).is_absolute():
        pytest.skip("BOT_DATA_DIR is relative, and so is elsewhere in another working directory")
    database.open("namespace", database.plugin()).set("key", MARK)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    storage = database.open("namespace", database.plugin())
    assert {key: storage.get(key) for key in storage.keys()} == {"key": MARK}, (
        "A bot that is started by hand, and then as a service, has forgotten everything: its data"
        " are where it was started. Take a path as one in BOT_DATA_DIR."
    )


def test_a_set_is_done_when_it_returns(database: Database) -> None:
    """A `set` is done when it returns: another that has the namespace open sees it."""
    one = database.open("namespace", database.plugin())
    other = database.open("namespace", database.plugin())
    expected: dict[str, object] = {}
    for turn, writer in enumerate([one, other, one, other]):
        for storage in [one, other]:
            with expect(KeyError, "A key is there that was never set."):
                storage.get(f"new {turn}")
        if turn > 1:
            del expected[f"new {turn - 2}"]
            writer.remove(f"new {turn - 2}")
        expected |= {"small": turn, "large": [turn, MARK * 20_000], f"new {turn}": MARK}
        for key, value in expected.items():
            writer.set(key, value)
        for storage in [one, other]:
            got = {key: storage.get(key) for key in storage.keys()}
            assert same(got, expected), (
                f"Another that has the namespace open sees other data: {sorted(got)}. When `set`"
                " returns, the value must be in the database: it would be lost in a crash, and"
                " `errbot --storage-get` not see it. Commit at once, and cache nothing."
            )
            assert storage.len() == len(expected), "`len` misses what another stored."


def test_a_removal_is_done_when_it_returns(database: Database) -> None:
    """A `remove` is done when it returns: another that has the namespace open sees it."""
    storage = database.open("namespace", database.plugin())
    other = database.open("namespace", database.plugin())
    storage.set("key", MARK)
    assert other.get("key") == MARK, "A value is not in the database when `set` returns."
    other.remove("key")
    with expect(
        KeyError, "A storage answers from memory, or a removal is not in the database when it ends."
    ):
        storage.get("key")
    with expect(KeyError, "What another process has removed can be removed again."):
        storage.remove("key")
    assert (storage.len(), list(storage.keys())) == (0, []), (
        "A key still counts that another process has removed."
    )


def test_a_value_is_stored_again_after_another_opener_replaced_it(database: Database) -> None:
    """A value is stored again after another has replaced it."""
    one = database.open("namespace", database.plugin())
    other = database.open("namespace", database.plugin())
    one.set("key", MARK)
    other.set("key", [MARK])
    one.set("key", MARK)
    assert other.get("key") == MARK, (
        "`set` did nothing, since the storage had stored this value before; but another had"
        " replaced it since. Write each time."
    )


def test_closing_one_storage_leaves_the_others_open(database: Database) -> None:
    """Closing one storage leaves the others open."""
    one = database.open("one")
    one.set("key", [MARK, "old"])
    again, other = database.open("one"), database.open("other")
    assert again.get("key") == [MARK, "old"], "Opening a namespace a second time emptied it."
    again.set("key", MARK)
    other.set("key", MARK)
    database.close(one)
    for storage in [again, other]:
        assert storage.get("key") == MARK, (
            "Unloading one plugin harmed what others have open. `close` must close nothing that is"
            " shared, and write nothing that is not its own and new."
        )
        storage.set("key", [MARK])
        assert storage.get("key") == [MARK], "Unloading one plugin broke the storage of another."
