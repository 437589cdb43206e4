"""Data are there as soon as they are set, and stay until they are removed."""

from pathlib import Path

import pytest

from contract.support.database import Database
from contract.support.expectations import contents, outcome, refusal, same
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
    assert contents(again) == {"a": [MARK, "a"], "c": [MARK, "c"]}, (
        "After `close` and `open` a plugin that was reloaded has lost data, or has removed ones"
        " again. Write each change at once, and nothing at `close`."
    )


@pytest.mark.parametrize(
    "names",
    [["namespace", "Other", "third one"], [names[-1] for names in ALIKE.values()]],
    ids=["plain names", "odd names"],
)
def test_a_new_plugin_instance_finds_everything(database: Database, names: list[str]) -> None:
    """A bot that is restarted finds everything in every namespace."""
    plugin = database.plugin()

    def use(name: str, number: int) -> None:
        storage = database.open(name, plugin)
        storage.set("key", f"{MARK} old")
        storage.set("key", f"{MARK} {number}")
        assert contents(storage) == {"key": f"{MARK} {number}"}
        database.close(storage)

    # Whether an odd name can be used at all is another test's matter.
    kept = {name: number for number, name in enumerate(names) if not refusal(use, name, number)}
    assert kept, "No namespace can be used."
    restarted = database.plugin()
    for name, number in reversed(kept.items()):  # It may load its plugins in another order.
        storage = database.open(name, restarted)
        assert contents(storage) == {"key": f"{MARK} {number}"}, (
            f"After a restart the bot has forgotten the data of the namespace {name!r}."
        )


def test_a_bot_started_in_another_folder_finds_everything(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bot that is started in another working directory finds everything."""
    if not Path(database.config.BOT_DATA_DIR).is_absolute():
        pytest.skip("BOT_DATA_DIR is relative, and so is elsewhere in another working directory")
    database.open_twice("probe")
    database.open("namespace", database.plugin()).set("key", MARK)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    storage = database.open("namespace", database.plugin())
    assert contents(storage) == {"key": MARK}, (
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
            outcome(storage.get, f"new {turn}")  # A miss must not be kept in memory, either.
        if turn > 1:
            del expected[f"new {turn - 2}"]
            writer.remove(f"new {turn - 2}")
        expected |= {"small": turn, "large": f"{turn} {MARK * 400}", f"new {turn}": MARK}
        for key, value in expected.items():
            writer.set(key, value)
        for storage in [one, other]:
            got = contents(storage)
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
    if outcome(other.get, "key") != MARK:
        pytest.skip("another opener does not see what is set, which is another test's matter")
    other.remove("key")
    for operation in [storage.get, storage.remove]:
        assert outcome(operation, "key") == outcome(operation, "never set"), (
            "What another has removed can still be read or removed. The storage answers from"
            " memory, or a removal is not in the database when `remove` returns."
        )
    assert (storage.len(), list(storage.keys())) == (0, []), (
        "A key still counts that another process has removed."
    )


def test_a_value_is_stored_again_after_another_opener_replaced_it(database: Database) -> None:
    """A value is stored again after another has replaced it."""
    one = database.open("namespace", database.plugin())
    other = database.open("namespace", database.plugin())
    one.set("key", MARK)
    other.set("key", [MARK])
    if outcome(one.get, "key") != [MARK]:
        pytest.skip("another opener does not see what is set, which is another test's matter")
    one.set("key", MARK)
    assert other.get("key") == MARK, (
        "`set` did nothing, since the storage had stored this value before; but another had"
        " replaced it since. Write each time."
    )


def test_closing_one_storage_leaves_the_others_open(database: Database) -> None:
    """Closing one storage leaves the others open."""
    one, other = database.open("one"), database.open("other")
    one.set("key", MARK)
    other.set("key", MARK)
    database.close(one)
    assert other.get("key") == MARK, (
        "Unloading one plugin harmed what others have open. `close` must close nothing that is"
        " shared."
    )
    other.set("key", [MARK])
    assert other.get("key") == [MARK], "Unloading one plugin broke the storage of another."


def test_a_second_opener_of_a_namespace_leaves_the_first_unharmed(database: Database) -> None:
    """A second opener of a namespace, and its `close`, leave the first one unharmed."""
    first = database.open("namespace")
    first.set("key", MARK)
    second = database.open("namespace")
    assert first.get("key") == MARK, "Opening a namespace a second time emptied it."
    second.set("key", [MARK])
    first.set("key", [MARK, "newer"])
    database.close(second)
    assert first.get("key") == [MARK, "newer"], (
        "Closing a namespace that another has open as well broke it, or wrote an old value again:"
        " `close` must close nothing that is shared, and write nothing."
    )
    first.set("key", [MARK])
    assert first.get("key") == [MARK], "After a second opener of a namespace has closed, it fails."
