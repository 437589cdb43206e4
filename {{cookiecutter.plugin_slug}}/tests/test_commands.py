"""The commands for the bot's administrator, with this project's database."""

import json
import pickle
import re
import sqlite3
import subprocess
import sys
from contextlib import closing, nullcontext
from datetime import date, datetime, time, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from contract.support.database import Database
from contract.support.sample_values import MARK, Level, Person, Settings
from contract.support.tricky_names import ALIKE
from errbot.storage import StoreException
from errbot.storage.shelf import ShelfStoragePlugin

from {{ cookiecutter.__package }} import moving, storages, values
from {{ cookiecutter.__package }}.__main__ import main, watch

OLD = "old-signing-key-of-the-bot"
NEW = "new-signing-key-of-the-bot"
UTC = "datetime.timezone(datetime.timedelta(0, 0, 0))"
HIGH = f"{Level.__module__}.Level('high')"
if Level.HIGH.__reduce_ex__(4)[0] is getattr:  # as in Python 3.11.2
    HIGH = f"builtins.getattr({Level.__module__}.Level, 'HIGH')"
OTHER = """
import pickle
from errbot.storage.base import StorageBase, StoragePluginBase

class OtherStorage(StorageBase):
    def __init__(self, rows):
        self.rows = rows
    def get(self, key):
        return pickle.loads(self.rows[key])
    def keys(self):
        return self.rows.keys()
    def len(self):
        return len(self.rows)
    def close(self):
        pass

class OtherPlugin(StoragePluginBase):
    def open(self, namespace):
        if namespace == "repomgr":
            raise RuntimeError("a-secret")
        return OtherStorage(self._storage_config if namespace == "text_backend" else {})
"""
EXECUTED: list[str] = []


def run_code(*_: object) -> None:
    """Record that an attacker's code ran."""
    EXECUTED.append("code ran")


class Evil:
    """An attacker's value: unpickling it runs code."""

    def __reduce__(self) -> Any:
        return run_code, ()


@pytest.fixture(autouse=True)
def _nothing_runs() -> Any:
    EXECUTED.clear()
    yield
    assert EXECUTED == [], "A command ran code from a stored value."


class Bot:
    """A bot's storage and its administrator."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.keys(NEW)

    def keys(self, *keys: str) -> None:
        """Write these signing keys into config.py, or none."""
        config = self.database.config
        config.STORAGE_CONFIG = dict(config.STORAGE_CONFIG)
        config.STORAGE_CONFIG.pop("signing_key", None)
        if keys:
            config.STORAGE_CONFIG["signing_key"] = list(keys)
        lines = (f"{name} = {value!r}\n" for name, value in vars(config).items())
        self.database.config_file.write_text("".join(lines), encoding="utf-8")
        self._plugin: Any = None

    def open(self, name: str) -> Any:
        """Open a namespace with the signing keys of config.py."""
        self._plugin = self._plugin or self.database.plugin()
        return self.database.open(name, self._plugin)

    def invoke(self, *arguments: object, status: int, given: str = "") -> Result:
        """Run a command. It must exit with this status."""
        words = ["-c", str(self.database.config_file), *map(str, arguments)]
        done = CliRunner().invoke(main, words, input=given)
        assert done.exit_code == status, f"{done.output}\n{done.exception!r}"
        assert OLD not in done.output, "A command shows a signing key."
        assert NEW not in done.output, "A command shows a signing key."
        return done

    def run(self, *arguments: object, status: int = 0, given: str = "") -> str:
        """Run a command, and return all that it printed. It must exit with this status."""
        return self.invoke(*arguments, status=status, given=given).output

    def json(self, *arguments: object, status: int = 0) -> Any:
        """Run a command with --json, and return what it printed."""
        return json.loads(self.invoke("--json", *arguments, status=status).stdout)


@pytest.fixture
def bot(database: Database) -> Bot:
    """A bot's storage, whose values are signed."""
    return Bot(database)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """The config.py of a bot that uses Errbot's Shelf, in the format that this Python writes."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    plugin = ShelfStoragePlugin(SimpleNamespace(STORAGE_CONFIG={}, BOT_DATA_DIR=str(folder)))
    # `dbm.ndbm` keeps "a" in a.db, so it can only open "a.db" before.
    for namespace in ["core", "test_backend", "Inactive's ñ%", "a.db", "a"]:
        storage = plugin.open(namespace)
        for key, value in values_of(namespace).items():
            storage.set(key, value)
        storage.close()
    plugin.open("Nothing").close()
    config = tmp_path / "old" / "config.py"
    config.parent.mkdir()
    config.write_text(
        f"print('noise', flush=True)\nBOT_DATA_DIR = {str(folder)!r}\n", encoding="utf-8"
    )
    return config


@pytest.fixture
def backup(database: Database, another_database: dict[str, Any], tmp_path: Path) -> Any:
    """Another database of this plugin, as an administrator restores a backup beside the bot's."""
    config = SimpleNamespace(**vars(database.config))
    config.STORAGE_CONFIG = {**config.STORAGE_CONFIG, **another_database}
    restored = Bot(Database(config, tmp_path / "backup.py"))
    yield restored
    restored.database.close_all()


def values_of(namespace: str) -> dict[str, Any]:
    """Return what a plugin of the old bot has stored."""
    found = {"person": Person(MARK), "settings": Settings(a=1), "level": Level.HIGH, "größe": 1}
    return found | {f"key {number}": [namespace, number] for number in range(20)}


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_list_counts_keys_and_bytes(bot: Bot) -> None:
    assert "0 namespaces, 0 keys" in bot.run("list")
    bot.open("one").write("a", b"x" * 10)
    bot.open("one").write("b", b"x" * 30)
    bot.open("two\n").write("a", b"x")
    printed = bot.json("list")
    assert printed["namespaces"] == [
        {"namespace": "one", "keys": 2, "bytes": 40, "largest": 30},
        {"namespace": "two\n", "keys": 1, "bytes": 1, "largest": 1},
    ]
    assert (printed["keys"], printed["bytes"]) == (3, 41)
    assert bot.run("list").splitlines()[-1] == "2 namespaces, 3 keys, 41 bytes"
    assert "'two\\n'" in bot.run("list"), "A name can send control characters to a terminal."


def test_names_that_look_alike_are_told_apart(bot: Bot) -> None:
    names = sorted({name for alike in ALIKE.values() for name in alike})
    for name in names:
        bot.open(name).set(name, MARK)
    assert [entry["namespace"] for entry in bot.json("list")["namespaces"]] == names
    assert bot.json("check")["total"]["newest"] == len(names)
    for alike in ALIKE.values():
        if alike[0] in names:
            bot.run("delete", "--yes", "--", alike[0], alike[0])
            names.remove(alike[0])
    assert [entry["namespace"] for entry in bot.json("list")["namespaces"]] == names


def test_check_is_good_when_all_is_signed_by_the_newest_key(bot: Bot) -> None:
    bot.open("one").set("key", MARK)
    printed = bot.run("check")
    assert MARK not in printed
    assert printed.splitlines()[-1] == "1 value: all good"


def test_check_tells_what_is_bad(bot: Bot) -> None:
    bot.keys(OLD)
    bot.open("one").set("older", MARK)
    bot.open("one").set("moved", MARK)
    bot.keys(OLD, NEW)
    storage = bot.open("one")
    storage.set("newest", MARK)
    storage.write("unsigned", pickle.dumps(Evil()))
    storage.write("refused", storage.read("moved"))
    storage.remove("moved")
    storage.write("cut", pickle.dumps(MARK)[:-1])
    storage.write("signed, no pickle", storage.signer("signed, no pickle").sign(b"no pickle"))
    printed = bot.json("check", status=1)
    counts = {"newest": 1, "older": 1, "unsigned": 1, "refused": 1, "broken": 2}
    assert printed["total"] == {"keys": 6, **counts}
    assert {entry["key"]: entry["why"].split(":")[0] for entry in printed["bad"]} == {
        "unsigned": "unsigned, but STORAGE_CONFIG has a signing_key",
        "refused": "refused",
        "cut": values.BROKEN,
        "signed, no pickle": values.BROKEN,
    }
    text = bot.run("check", status=1)
    assert "one, unsigned: unsigned" in text
    assert MARK not in text


def test_the_keys_of_a_bot_that_has_stored_nothing_are_reported(bot: Bot) -> None:
    assert "signing_key 1 of 1: the newest, has signed 0 values" in bot.run("check")
    assert bot.json("resign")["signed"] == 0
    bot.keys()
    assert "STORAGE_CONFIG has no signing_key" in bot.run("check")
    assert "no signing_key to sign with" in bot.run("resign", status=2)


def test_check_says_when_an_old_key_may_go(bot: Bot) -> None:
    bot.keys(OLD)
    bot.open("one").set("key", MARK)
    bot.keys(OLD, NEW)
    assert "signing_key 1 of 2: needed for 1 value" in bot.run("check")
    bot.run("resign")
    assert "signing_key 1 of 2: not needed" in bot.run("check")
    bot.keys(NEW)
    assert bot.open("one").get("key") == MARK


def test_check_without_signing_keys(bot: Bot) -> None:
    bot.open("one").set("signed", MARK)
    bot.keys()
    bot.open("one").set("key", MARK)
    printed = bot.json("check", status=1)
    assert (printed["total"]["unsigned"], printed["total"]["refused"]) == (1, 1)
    assert [entry["key"] for entry in printed["bad"]] == ["signed"]


@pytest.mark.parametrize("keys", [(), (NEW,), (OLD, NEW)], ids=["unsigned", "signed", "two keys"])
def test_move_brings_everything_from_a_shelf(bot: Bot, shelf: Path, keys: tuple[str, ...]) -> None:
    bot.keys(*keys)
    folder = shelf.parent.parent / "shelf"
    before = contents(folder)
    assert "nothing was written" in bot.run("move", "--dry-run", shelf)
    tried = bot.json("move", "--dry-run", shelf)
    assert tried["good"] is True
    assert not [one for one in tried["namespaces"] if "good" in one], "Nothing was compared."
    assert bot.json("list")["keys"] == 0, "A dry run wrote something."
    printed = bot.run("move", shelf)
    assert printed.splitlines()[-1] == "5 namespaces, 120 keys: all equal"
    assert MARK not in printed
    for namespace in ["core", "test_backend", "Inactive's ñ%", "a", "a.db"]:
        storage = bot.open(namespace)
        assert {key: storage.get(key) for key in storage.keys()} == values_of(namespace)
    assert contents(folder) == before, "The old storage was changed."
    bot.run("check")


def test_move_can_be_run_again_and_completes_what_is_there(bot: Bot, shelf: Path) -> None:
    bot.run("move", shelf)
    storage = bot.open("core")
    for number in range(7):
        storage.remove(f"key {number}")
    for key in list(bot.open("a").keys()):
        bot.open("a").remove(key)
    assert bot.run("move", shelf).splitlines()[-1] == "5 namespaces, 120 keys: all equal"
    assert storage.get("key 3") == ["core", 3]


def test_move_refuses_to_replace_other_values(bot: Bot, shelf: Path) -> None:
    bot.open("core").set("person", "newer")
    bot.open("core").set("only here", MARK)
    printed = bot.run("move", shelf, status=1)
    assert "core: 2 keys with other values here" in printed
    assert "--replace" in printed
    assert bot.json("list")["keys"] == 2, "Something was written."
    assert "nothing was written" in bot.run("move", "--only", "core", shelf, status=1)
    bot.run("move", "--only", "a", "--only", "a.db", shelf)
    assert [one["namespace"] for one in bot.json("list")["namespaces"]] == ["a", "a.db", "core"]


def test_move_replaces_a_namespace_if_it_is_told_to(bot: Bot, shelf: Path) -> None:
    bot.open("core").set("person", "newer")
    bot.open("core").set("only here", MARK)
    bot.open("not there").set("key", MARK)
    assert bot.run("move", "--replace", shelf).splitlines()[-1].endswith(": all equal")
    storage = bot.open("core")
    assert {key: storage.get(key) for key in storage.keys()} == values_of("core")
    assert bot.open("not there").get("key") == MARK, "A namespace that was not moved is lost."


def test_move_goes_on_past_what_is_bad(bot: Bot, shelf: Path) -> None:
    config = SimpleNamespace(STORAGE_CONFIG={"basedir": str(shelf.parent.parent / "shelf")})
    storage: Any = ShelfStoragePlugin(config).open("core")
    storage.shelf.dict[b"cut"] = pickle.dumps(MARK)[:-1]
    storage.shelf.dict[b"\xff"] = pickle.dumps(MARK)
    storage.close()
    (shelf.parent.parent / "shelf" / "Torn.db").write_bytes(b"no database at all")
    berkeley_db = bytes(12) + (0x61561).to_bytes(4, "little")
    (shelf.parent.parent / "shelf" / "Berkeley.db.db").write_bytes(berkeley_db)
    loop = shelf.parent.parent / "shelf" / "Closed.db.dat"
    loop.symlink_to(loop)  # Not even root can open it.
    printed = bot.run("move", shelf, status=1)
    assert "Closed: Closed.db cannot be read: OSError" in printed
    assert f"core, cut: {values.BROKEN}" in printed
    assert "its key is not UTF-8" in printed
    assert "Torn: Torn.db cannot be read" in printed
    assert re.search("^Berkeley: Berkeley.db(: this Python has no| cannot)", printed, re.MULTILINE)
    assert "Berkeley.db:" not in printed.replace("Berkeley: Berkeley.db:", "")
    assert "NOT all equal" in printed.splitlines()[-1]
    assert bot.open("core").get("person") == Person(MARK)
    moved = bot.json("move", shelf, status=1)
    assert moved["good"] is False
    keys = {one["namespace"]: one["keys"] for one in moved["namespaces"]}
    assert keys["Torn"] == 0, "A namespace that cannot be read has no keys to count."
    assert bot.json("list")["keys"] == 120


def test_move_reads_what_a_killed_bot_had_stored_last(bot: Bot, shelf: Path) -> None:
    file = shelf.parent.parent / "shelf" / "Killed.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:  # as dbm.sqlite3
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)")
        connection.execute("INSERT INTO Dict VALUES (?, ?)", [b"key", pickle.dumps(MARK)])
        bot.run("move", "--only", "Killed", shelf)
    assert bot.open("Killed").get("key") == MARK


def test_move_signs_nothing_that_is_refused_in_a_backup(bot: Bot, backup: Bot) -> None:
    storage = backup.open("one")
    storage.set("key", MARK)
    storage.write("moved", storage.read("key"))
    storage.write("planted", pickle.dumps(Evil()))
    printed = bot.run("move", backup.database.config_file, status=1)
    assert "one, moved: refused" in printed
    assert "one, planted: unsigned" in printed
    assert list(bot.open("one").keys()) == ["key"], "A refused value was signed anew."
    assert bot.open("one").get("key") == MARK


def test_move_replaces_nothing_by_what_is_refused_in_a_backup(bot: Bot, backup: Bot) -> None:
    for key in ["a", "b"]:
        backup.open("one").set(key, MARK)
        bot.open("one").set(key, [MARK])
    backup.keys(OLD)
    bot.run("move", "--replace", backup.database.config_file, status=1)
    assert {key: bot.open("one").get(key) for key in ["a", "b"]} == {"a": [MARK], "b": [MARK]}


def test_move_compares_what_was_really_stored(
    bot: Bot, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all = moving.write_all

    def spoil(old: Any, new: Any, keys: Any, result: moving.Result) -> None:
        write_all(old, new, keys, result)
        new.write("person", new.signer("person").sign(pickle.dumps("other")))
        new.write("one more", b"")
        new.write("two more", b"")

    monkeypatch.setattr(moving, "write_all", spoil)
    printed = bot.run("move", shelf, status=1)
    assert "core, person: not equal" in printed
    assert "core: keys here that the other storage does not have: 2" in printed
    assert "NOT all equal, only 115" in printed


def test_move_reads_any_storage_plugin(bot: Bot, tmp_path: Path) -> None:
    (tmp_path / "other.plug").write_text("[Core]\nName = Other\nModule = other\n", encoding="utf-8")
    (tmp_path / "other.py").write_text(OTHER, encoding="utf-8")
    objects = [Person(MARK), {"a": (1, 2)}]
    config = tmp_path / "old.py"
    rows = {f"key {number}": pickle.dumps(value) for number, value in enumerate(objects)}
    rows["gone"] = rows["key 0"].replace(b"contract.", b"kontrakt.")
    given = {"STORAGE": "Other", "STORAGE_CONFIG": rows, "BACKEND": "Text"}
    given |= {"BOT_EXTRA_STORAGE_PLUGINS_DIR": str(tmp_path), "BOT_DATA_DIR": str(tmp_path)}
    config.write_text(
        "".join(f"{name} = {value!r}\n" for name, value in given.items()), encoding="utf-8"
    )
    printed = bot.run("move", config, status=1)
    assert "text_backend, gone: No module named 'kontrakt'" in printed
    assert "repomgr: cannot be opened: RuntimeError" in printed
    assert "a-secret" not in printed
    assert "NOT all equal, only 2" in printed
    storage = bot.open("text_backend")
    assert [storage.get(f"key {number}") for number in range(2)] == objects


def test_move_stops_if_nothing_can_be_written(
    bot: Bot, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(_new: Any, row: moving.Row) -> None:
        tried.append(row)
        raise StoreException("database is locked")

    monkeypatch.setattr(moving, "write_one", refuse)
    monkeypatch.setattr(moving, "write_many", lambda *_: False)
    monkeypatch.setattr(moving, "GIVE_UP", 2)
    assert "database is locked" in bot.run("move", shelf, status=2)
    assert len(tried) <= moving.THREADS * 2, "A move waits for each key of a locked database."


def test_a_bar_of_progress_shows_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = []

    def progressbar(items: Any, label: str, **_: Any) -> Any:
        labels.append(label)
        return nullcontext(items)

    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("click.progressbar", progressbar)
    with watch("Copying \x1b[2J", [], 0):
        pass
    assert labels == [r"'Copying \x1b[2J'"]


def test_move_names_a_namespace_that_is_not_there(bot: Bot, shelf: Path) -> None:
    printed = bot.run("move", "--only", "Notes", shelf, status=2)
    assert "The old storage has no namespace Notes. It has: " in printed


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise ValueError('a-secret')", "ValueError in line 1"),
        ("import os\nos.environ['NOT_SET_1']", "KeyError in line 2: there is no 'NOT_SET_1'"),
        ("secret = 'a-secret", "SyntaxError in line 1"),
        ("import nowhere_to_be_found", "no module named 'nowhere_to_be_found'"),
        ("raise SystemExit('a-secret')", "SystemExit in line 1"),
        ("STORAGE = 'Nobody'\nBOT_DATA_DIR = '.'", "'Nobody'"),
        ("STORAGE = 'Nobody'", "BOT_DATA_DIR, the folder for the bot's data, is not set"),
        ("raise KeyboardInterrupt('a-secret')", "Interrupted"),
        ("BOT_DATA_DIR = '/nowhere/at/all'", "BOT_DATA_DIR"),
    ],
)
def test_a_config_that_fails_is_a_clear_error(
    bot: Bot, tmp_path: Path, text: str, why: str
) -> None:
    config = tmp_path / "bad.py"
    config.write_text(text, encoding="utf-8")
    printed = bot.run("move", config, status=2)
    assert why in printed
    assert "a-secret" not in printed
    assert "Traceback" not in printed
    assert "does not appear to have been opened" not in printed


def test_an_error_in_storage_config_is_named_and_shows_no_value(bot: Bot) -> None:
    bot.database.config.STORAGE_CONFIG |= {"timeout": "a-secret"}
    bot.keys(NEW)
    printed = bot.run("list", status=2)
    assert "timeout: " in printed
    assert "a-secret" not in printed


def test_a_config_that_is_missing_is_a_clear_error(bot: Bot, tmp_path: Path) -> None:
    assert "There is no Python file" in bot.run("move", tmp_path / "nowhere.py", status=2)


SIBLING = """
from errbot.storage.base import StoragePluginBase

class SiblingPlugin(StoragePluginBase):
    def open(self, namespace):
        raise AssertionError("A command used the database of another plugin.")
    def namespaces(self):
        return ["core"]
"""


@pytest.mark.parametrize("name", ["Memory", "Sibling"])
def test_a_config_that_names_another_storage_is_a_clear_error(
    bot: Bot, tmp_path: Path, name: str
) -> None:
    plug = "[Core]\nName = Sibling\nModule = sibling\n"
    (tmp_path / "sibling.plug").write_text(plug, encoding="utf-8")
    (tmp_path / "sibling.py").write_text(SIBLING, encoding="utf-8")
    bot.database.config.BOT_EXTRA_STORAGE_PLUGINS_DIR = str(tmp_path)
    bot.database.config.STORAGE = name
    bot.keys()
    for command in ["list", "check", "resign"]:
        assert 'STORAGE = "{{ cookiecutter.plugin_name }}"' in bot.run(command, status=2)


def test_the_error_of_a_plugin_shows_no_password() -> None:
    config = {"nodes": [{"url": "acme://bot:p%40ss%2Fw0rd@host/database"}], "pin": "p@ss"}
    shown = storages.without_secrets("'p%40ss%2Fw0rd' or 'p@ss/w0rd' is wrong for bot", config)
    assert shown == "'***' or '***' is wrong for bot"


def test_options_may_follow_the_command(bot: Bot) -> None:
    words = ["list", "--json", "-c", str(bot.database.config_file)]
    done = CliRunner().invoke(main, words)
    assert json.loads(done.stdout)["keys"] == 0


def test_resign_signs_with_the_newest_key(bot: Bot) -> None:
    bot.keys(OLD)
    for number in range(30):
        bot.open("one").set(f"key {number}", [MARK, number])
    bot.keys(OLD, NEW)
    bot.open("one").set("new", MARK)
    printed = bot.json("resign")
    assert (printed["signed"], printed["already_signed"]) == (30, 1)
    bot.keys(NEW)
    assert [bot.open("one").get(f"key {number}")[1] for number in range(30)] == list(range(30))


def test_resign_and_check_leave_no_value_out(bot: Bot) -> None:
    """What is read at once may be limited by the number of values, and by their bytes."""
    bot.keys(OLD)
    storage = bot.open("one")
    for number in range(1_100):
        storage.set(f"key {number:04}", b"x" * 3_000_000 if number % 300 == 5 else number)
    bot.keys(OLD, NEW)
    assert bot.json("resign")["signed"] == 1_100
    assert bot.json("check")["total"]["newest"] == 1_100


def test_resign_accepts_what_is_unsigned_only_if_it_is_told_to(bot: Bot) -> None:
    bot.keys()
    bot.open("one").set("key", MARK)
    bot.keys(NEW)
    bot.open("one").write("cut", b"no pickle")
    moved = bot.open("one").signer("other").sign(pickle.dumps(MARK))
    bot.open("one").write("moved", moved)
    assert "one, key: unsigned" in bot.run("resign", status=1)
    printed = bot.run("resign", "--accept-unsigned", status=1)
    assert "one, cut: not an intact pickle" in printed
    assert "one, moved: refused" in printed
    assert bot.open("one").get("key") == MARK
    assert bot.open("one").read("moved") == moved, "A refused value was signed."


def test_resign_needs_a_signing_key(bot: Bot) -> None:
    bot.keys()
    bot.open("one").set("key", MARK)
    assert "no signing_key" in bot.run("resign", status=2)


def test_resign_does_not_set_back_what_a_bot_sets_meanwhile(
    bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot.keys(OLD)
    bot.open("one").set("key", "before")
    bot.keys(OLD, NEW)
    writer, sign = bot.open("one"), values.sign

    def sign_late(storage: Any, key: str, pickled: bytes) -> bytes:
        writer.set("key", "meanwhile")
        return sign(storage, key, pickled)

    monkeypatch.setattr(values, "sign", sign_late)
    bot.run("resign")
    assert writer.get("key") == "meanwhile", "A value that the bot had set was overwritten."


def test_a_key_that_is_removed_meanwhile_is_left_out(
    bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_here = storages.open_here

    def open_late(path: Path) -> Any:
        plugin = open_here(path)
        open_namespace = plugin.open

        def list_one_more(namespace: str) -> Any:
            storage = open_namespace(namespace)
            keys = storage.keys
            storage.keys = lambda: iter([*keys(), "gone"])
            return storage

        plugin.open = list_one_more
        return plugin

    monkeypatch.setattr(storages, "open_here", open_late)
    monkeypatch.setattr(values, "items", lambda storage: ((key, b"") for key in storage.keys()))
    bot.open("one").set("key", MARK)
    printed = bot.json("resign")
    assert (printed["signed"], printed["already_signed"]) == (0, 1)
    assert [value["key"] for value in bot.json("show", "one")["values"]] == ["key"]


def test_show_describes_a_value_and_makes_nothing(bot: Bot) -> None:
    storage = bot.open("one")
    storage.set("person", Person("Ann", [Person("Bob")]))
    storage.write("evil", pickle.dumps(Evil()))
    module = Person.__module__
    assert bot.run("show", "one", "person").strip() == (
        f"{module}.Person(name='Ann', friends=[{module}.Person(name='Bob', friends=[])])"
    )
    assert "run_code()" in bot.run("show", "one", "evil")
    assert "unsigned" in bot.run("show", "one", "evil")
    assert len(bot.run("show", "one").splitlines()) == 2
    assert bot.json("show", "one", "person")["values"][0]["bad"] == ""


@pytest.mark.parametrize("arguments", [("one", "nothing"), ("nothing",)], ids=["key", "namespace"])
def test_what_is_not_there_is_status_1(bot: Bot, arguments: tuple[str, ...]) -> None:
    bot.open("one").set("key", MARK)
    assert "There is no key" in bot.run("show", *arguments, status=1)
    assert "There is no key" in bot.run("delete", "--yes", *arguments, status=1)


def test_delete_asks_and_reads_nothing(bot: Bot) -> None:
    storage = bot.open("one")
    for key in ["a", "b", "c"]:
        storage.write(key, pickle.dumps(Evil()))
    assert "Delete" not in bot.run("delete", "one", "nothing", status=1)
    bot.run("delete", "one", "a", given="n\n", status=1)
    assert storage.len() == 3
    assert "Delete the key a of one?" in bot.run("delete", "one", "a", given="y\n")
    assert sorted(storage.keys()) == ["b", "c"]
    assert sorted(bot.json("delete", "--yes", "one")["deleted"]) == ["b", "c"]
    assert storage.len() == 0


def test_delete_takes_a_key_for_no_pattern(bot: Bot) -> None:
    patterns = ["*", "?", "[ab]", "%", "_", "a*", "^a", "."]
    for key in [*patterns, "a", "b"]:
        bot.open("one").set(key, MARK)
    for pattern in patterns:
        assert bot.json("delete", "--yes", "one", pattern)["deleted"] == [pattern]
    assert sorted(bot.open("one").keys()) == ["a", "b"]


def test_a_namespace_may_be_deleted_while_a_bot_uses_it(bot: Bot) -> None:
    running = bot.open("one")
    running.set("key", MARK)
    bot.run("delete", "--yes", "one")
    new = bot.database.open("two", bot.database.plugin())
    new.set("key", [MARK])
    running.set("later", MARK)
    again = [bot.database.open(name, bot.database.plugin()) for name in ["one", "two"]]
    got = [{key: storage.get(key) for key in storage.keys()} for storage in again]
    assert got == [{"later": MARK}, {"key": [MARK]}]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([1, 2.5, None, True, False, "a", b"b", (1,), (), set(), frozenset()], None),
        ({"a": {1: [(1, 2)]}}, None),
        (2**70, None),
        (Level.HIGH, HIGH),
        (Settings(a=1), f"{Settings.__module__}.Settings('a': 1)"),
        (date(2024, 1, 2), "datetime.date(2024, 1, 2)"),
        (time(1, 30, fold=1), "datetime.time(1, 30, 0, 0, fold=1)"),
        (datetime(2024, 11, 3, 1, 30), "datetime.datetime(2024, 11, 3, 1, 30, 0, 0)"),
        (
            datetime(2024, 11, 3, 1, 30, 5, 700, timezone.utc, fold=1),
            f"datetime.datetime(2024, 11, 3, 1, 30, 5, 700, {UTC}, fold=1)",
        ),
    ],
    ids=["flat", "nested", "large", "enum", "dict of a class", "date", "fold", "naive", "zone"],
)
@pytest.mark.parametrize("protocol", [4, 5])
def test_values_are_described(value: object, text: str | None, protocol: int) -> None:
    expected = repr(value).replace("set()", "set([])")
    described = values.describe(pickle.dumps(value, protocol), 1_000)
    assert described == (text or expected)


def test_names_in_a_pickle_cannot_forge_a_line() -> None:
    name = "\x1b[2J\n"
    pickled = pickle.dumps(Settings()).replace(b"Settings", name.encode() + b"a" * 3)
    assert values.describe(pickled, 1_000).endswith(r".\x1b[2J\naaa()")
    person = Person("Ann")
    vars(person)[name] = 1
    assert r"\x1b[2J\n=1" in values.describe(pickle.dumps(person), 1_000)


def test_a_bomb_does_not_go_off() -> None:
    laughs: list[Any] = [[]]
    for _ in range(60):
        laughs = [laughs, laughs]
    assert len(values.describe(pickle.dumps(laughs), 1_000)) <= 1_003
    deep = b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b"."
    assert "..." in values.describe(deep, 1_000)
    itself: list[Any] = []
    itself.append(itself)
    assert values.describe(pickle.dumps(itself), 100) == "[...]"
    for bytes_ in [b"\x80\x04r\xff\xff\xff\xff.", b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", b"."]:
        with pytest.raises(ValueError, match=values.BROKEN):
            values.describe(bytes_, 100)
    assert values.describe(b"\x80\x04Pname\n.", 100) == "persistent id('name')"
    assert values.describe(b"\x80\x02\x82\x01.", 100) == "extension(1)"


def test_only_one_whole_pickle_is_whole() -> None:
    whole = pickle.dumps([MARK, 5])
    assert values.is_whole(whole)
    for bad in [b"", b".", whole[:-1], whole + b".", whole + whole, b"no pickle", whole[1:]]:
        assert not values.is_whole(bad), bad


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.usefixtures("other_processes")
def test_what_cannot_be_printed_is_a_clear_error(bot: Bot) -> None:
    source = Path(__file__).parent.parent / "src"
    package = "{{ cookiecutter.__package }}"
    command = [sys.executable, "-m", package, "list", "-c"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, str(bot.database.config_file)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=source,
        )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr


@pytest.mark.usefixtures("other_processes")
@pytest.mark.parametrize("as_file", [False, True], ids=["python -m", "as a file"])
def test_it_runs_as_a_program(bot: Bot, as_file: bool, tmp_path: Path) -> None:
    bot.open("one").set("key", MARK)
    source = Path(__file__).parent.parent / "src"
    package = "{{ cookiecutter.__package }}"
    program = [str(source / package / "__main__.py")] if as_file else ["-m", package]
    command = [sys.executable, *program, "list", "--json", "-c", str(bot.database.config_file)]
    cwd = tmp_path if as_file else source
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["keys"] == 1
