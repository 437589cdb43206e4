"""Data exist as soon as they are set, and until they are removed."""

import os
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from errbot.storage import StoreException
from errbot.storage.base import StorageBase

from contract.support.amounts import many
from contract.support.database import Database, run_process
from contract.support.deadlines import at_once, deadline
from contract.support.expectations import set_or_skip, skip_if_threads_fail
from contract.support.outcomes import contents, outcome, refusal, same
from contract.support.sample_values import FIRST_KEYS, FIRST_VALUE, MARK, Asking, large_value
from contract.support.server import free_ports
from contract.support.tricky_names import ALIKE

OTHER_SETTINGS: dict[str, Any] = {
    "STORAGE_CONFIG": {"timeout": 7.5},
    "BOT_IDENTITY": {"token": "new"},
    "BACKEND": "SlackV3",
    "CHATROOM_FN": "Another Bot",
    "BOT_PREFIX": "?",
    "BOT_ADMINS": ("@new",),
    "BOT_LOG_FILE": "/var/log/errbot.log",
    "__file__": "/etc/errbot/production.py",
    "__name__": "production",
}
"""By setting that is not about the place of data: what changes in it."""
STARTS = many(12, 6)
LISTED = many(2_500, 300)
CLOSING = 5
"""Seconds that `close` may take."""
FREED = 100
"""Storages that are freed in operations of another one."""
READERS = 4
"""Threads that read a value while it is changed, because one alone may be too early or too late."""


def test_closing_keeps_what_is_there(database: Database) -> None:
    """Closing a namespace and opening it again keeps its data."""
    storage = database.open()
    for key in ["a", "b", "c"]:
        storage.set(key, [MARK, key])
    storage.remove("b")
    database.close(storage)
    again = database.open()
    assert contents(again) == {"a": [MARK, "a"], "c": [MARK, "c"]}, (
        "After `close` and `open`, a plugin that was reloaded has lost data, or removed data are"
        " back. Write each change immediately, and nothing in `close`."
    )


KEPT = ["tmp_1", "temp:1", "_private", "__dunder__", "lock", "cache:1", "old", ".hidden"]
"""Keys of a plugin that look like something temporary, or like the storage's own."""


def stored_at_first(namespace: str) -> dict[str, str]:
    """Return what the first release of the plugin has stored in a namespace."""
    return {key: FIRST_VALUE for name, key in sorted(FIRST_KEYS) if name == namespace}


@pytest.mark.usefixtures("first_release")
def test_what_the_first_release_has_stored_is_there(database: Database) -> None:
    """After every upgrade of the plugin, what its first release has stored is there, once."""

    def start(namespace: str = "first") -> StorageBase:
        return database.open(namespace, database.plugin())

    for namespace in dict(FIRST_KEYS):
        got = outcome(lambda name: contents(start(name)), namespace)
        assert same(got, stored_at_first(namespace)), (
            f"After an upgrade, a bot finds {str(got)[:200]} in the namespace {namespace!r} instead"
            " of its data. Convert what is there, names included, or read old and new data, and"
            " never create a table anew."
        )
    expected = stored_at_first("first")
    count = start().len()
    assert count == len(expected), (
        f"After an upgrade, `len` returns {count} for {len(expected)} keys. Count what was there"
        " before, too."
    )
    for key in expected:
        start().set(key, MARK)
    assert contents(start()) == dict.fromkeys(expected, MARK), (
        "What was set after an upgrade is lost at the next start. Convert old data only once."
    )
    for key in expected:
        start().remove(key)
    assert contents(start()) == {}, (
        "What was removed after an upgrade is back at the next start. Convert old data only once."
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.usefixtures("first_release", "other_processes")
def test_an_upgrade_that_was_killed_is_completed(database: Database) -> None:
    """If processes are killed at any moment of an upgrade, the next one completes it."""
    printed = run_process(database, "first", "start-and-be-killed")
    assert same(printed, str(stored_at_first("first"))), (
        "After bots were killed in the middle of an upgrade, the next one finds"
        f" {printed[:200]} instead of its data. Convert everything in one transaction, or go on"
        " with what is still old."
    )


@pytest.mark.usefixtures("first_release", "switch_often")
def test_an_old_value_is_not_back_after_it_was_read_and_changed_at_once(database: Database) -> None:
    """A value of the first release that is changed while it is read stays changed."""
    storage = database.open("rows")
    keys = sorted(stored_at_first("rows"))
    if storage.len() < len(keys):
        pytest.skip("what the first release has stored is not there, which another test reports")
    removed = keys[::2]
    start = Barrier(READERS + 1)

    def read() -> None:
        for key in keys:
            start.wait()
            outcome(storage.get, key)

    def change() -> None:
        for key in keys:
            start.wait()
            storage.remove(key) if key in removed else storage.set(key, MARK)

    at_once(change, *[read] * READERS)
    got = contents(database.open("rows", database.plugin()))
    back = [key for key in keys if got.get(key) == FIRST_VALUE]
    assert same(got, dict.fromkeys(keys[1::2], MARK)), (
        f"Of {len(keys)} values of an earlier release, {len(back)} are back although they were"
        " replaced or removed while they were read. If `get` converts what it has read, let the"
        " database replace it only if nobody else has changed it."
    )


@pytest.mark.parametrize(
    "names",
    [["namespace", "Other", "third one"], [names[-1] for names in ALIKE.values()]],
    ids=["plain names", "odd names"],
)
def test_a_new_plugin_instance_finds_everything(database: Database, names: list[str]) -> None:
    """A bot that restarts finds all data in every namespace."""
    plugin = database.plugin()
    kept: dict[str, dict[str, object]] = {}

    def use(name: str, number: int) -> None:
        storage = database.open(name, plugin)
        storage.set("key", f"{MARK} old")
        storage.set("key", f"{MARK} {number}")
        held = [key for key in KEPT if not refusal(storage.set, key, f"{MARK} {number}")]
        expected: dict[str, object] = dict.fromkeys(["key", *held], f"{MARK} {number}")
        assert contents(storage) == expected
        database.close(storage)
        kept[name] = expected

    for number, name in enumerate(names):
        refusal(use, name, number)  # Another test checks whether an unusual name can be used.
    assert kept, "No namespace can be used."
    restarted = database.plugin()
    for name, expected in reversed(kept.items()):  # It may load its plugins in a different order.
        storage = database.open(name, restarted)
        assert contents(storage) == expected, (
            f"After a restart, the bot has lost data of the namespace {name!r}."
        )


def test_a_bot_started_in_another_folder_finds_everything(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bot that starts in another working directory finds all data."""
    if not Path(database.config.BOT_DATA_DIR).is_absolute():
        pytest.skip("BOT_DATA_DIR is relative, so it changes with the working directory")
    database.open_twice("probe")
    database.open("namespace", database.plugin()).set("key", MARK)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    storage = database.open("namespace", database.plugin())
    assert contents(storage) == {"key": MARK}, (
        "A bot that is first started by hand and later as a service has lost everything: its data"
        " are in the directory where it was started. Resolve relative paths against BOT_DATA_DIR."
    )


def test_a_bot_starts_as_a_user_without_a_name(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bot starts as a user whom the system does not know, as in many containers."""
    users = pytest.importorskip("pwd", reason="Windows knows each user")
    for variable in ["LOGNAME", "USER", "LNAME", "USERNAME"]:
        monkeypatch.delenv(variable, raising=False)

    def unknown(*_: object) -> None:
        raise KeyError("uid not found")

    def no_terminal() -> None:
        raise OSError("no such device or address")

    monkeypatch.setattr(users, "getpwuid", unknown)
    monkeypatch.setattr(os, "getlogin", no_terminal)
    failed = refusal(lambda: database.open("namespace", database.plugin()).set("key", MARK))
    assert not failed, (
        f"As a user without a name, a bot does not start: {failed}. In containers, a user is often"
        " only a number. Do without `getpass.getuser`, or replace its error."
    )


def test_a_database_is_the_same_for_a_bot_with_another_folder(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bot with another BOT_DATA_DIR, such as a new container, reads what the database holds."""
    database.open_twice("probe")
    storage = database.open("namespace")
    expected: dict[str, object] = {"key": MARK}
    storage.set("key", MARK)
    # Another test checks whether a large value can be stored.
    if not refusal(storage.set, "large", large_value(1)):
        expected["large"] = large_value(1)
    monkeypatch.setattr(database.config, "BOT_DATA_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    other = database.open("namespace", database.plugin())
    got = outcome(lambda: contents(other))
    if got == {}:
        return  # The database is in BOT_DATA_DIR.
    assert same(got, expected), (
        "A bot that moves to another machine, or a second bot on the same database, cannot read"
        " it. Keep nothing in BOT_DATA_DIR that the data need, such as a key or large values."
    )
    for one, two in [(other, storage), (storage, other)]:
        one.set("key", [MARK])
        one.remove("key")
        one.set("key", MARK * 2)
        assert outcome(two.get, "key") == MARK * 2, (
            "A second bot on the same database does not see what the first one stores. Keep no"
            " copy of the data in BOT_DATA_DIR."
        )


@pytest.mark.parametrize("setting", OTHER_SETTINGS)
def test_data_are_there_when_another_setting_has_changed(
    database: Database, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """Data do not depend on settings of the bot that are not about their place."""
    database.open_twice("probe")
    storage = database.open("namespace", database.plugin())
    storage.set("key", MARK)
    database.close(storage)
    changed = OTHER_SETTINGS[setting]
    if isinstance(changed, dict):
        changed = {**getattr(database.config, setting, {}), **changed}
    monkeypatch.setattr(database.config, setting, changed, raising=False)
    try:
        restarted = database.open("namespace", database.plugin())
    except Exception:
        pytest.skip("STORAGE_CONFIG has no timeout")
    assert contents(restarted) == {"key": MARK}, (
        f"After {setting} was changed, all data are gone. Do not derive names from it."
    )


def test_data_are_there_when_errbot_was_upgraded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data do not depend on the version of Errbot, also if the new one has changed some."""
    database.open_twice("probe")
    storage = database.open("namespace", database.plugin())
    for key in ["replaced", "kept"]:
        storage.set(key, MARK)
    database.close(storage)
    monkeypatch.setattr("errbot.version.VERSION", "99.0.0")
    upgraded = database.open("namespace", database.plugin())
    upgraded.set("replaced", [MARK])
    assert contents(upgraded) == {"replaced": [MARK], "kept": MARK}, (
        "After Errbot was upgraded, or at the first change afterwards, other data are lost."
    )


@pytest.mark.parametrize("error", [ValueError, KeyError, StoreException])
def test_a_change_while_an_error_is_handled_is_stored(
    storage: StorageBase, error: type[Exception]
) -> None:
    """What a plugin sets and removes in an `except` or a `finally` is done."""
    removed = ["removed in except", "removed in finally"]
    for key in removed:
        storage.set(key, MARK)
    with suppress(Exception):
        try:
            raise error
        except Exception:
            storage.set("set in except", MARK)
            storage.remove(removed[0])
            raise
        finally:
            storage.set("set in finally", MARK)
            storage.remove(removed[1])
    assert contents(storage) == {"set in except": MARK, "set in finally": MARK}, (
        f"What a plugin changes while it handles a {error.__name__} is lost, as in"
        " `except requests.Timeout: self['failed'] = True`. Only the storage's own errors matter"
        " for a commit, and `sys.exc_info()` shows those of its callers, too."
    )


@pytest.mark.parametrize("folder", ["absolute", "relative"])
def test_another_working_directory_changes_nothing(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """If a plugin changes the working directory, a storage goes on with the same data."""
    if folder == "relative":
        if database.notes:
            pytest.skip("the configuration of a bot that is in use is not changed")
        monkeypatch.chdir(database.config.BOT_DATA_DIR)
        database.config.BOT_DATA_DIR = "."
    elif not Path(database.config.BOT_DATA_DIR).is_absolute():
        pytest.skip("BOT_DATA_DIR is relative, so it changes with the working directory")
    here = Path.cwd()
    database.open_twice("probe")
    expected = dict.fromkeys(map(str, range(32)), MARK * 2_000)

    def set_at_once(storage: StorageBase) -> None:
        at_once(*[partial(storage.set, key, value) for key, value in expected.items()])

    probe = database.open("probe", database.plugin())
    if refusal(set_at_once, probe) or outcome(contents, probe) != expected:
        pytest.skip("threads that set keys at the same time fail, which another test reports")
    storage = database.open("namespace")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    set_at_once(storage)
    found, reloaded = contents(storage), contents(database.open("namespace"))
    monkeypatch.chdir(here)
    restarted = contents(database.open("namespace", database.plugin()))
    assert (found, reloaded, restarted) == (expected,) * 3, (
        "After a plugin has called os.chdir, data are lost. Resolve the path at the start: what is"
        " opened later must lead to the same place."
    )


def test_what_a_plugin_puts_into_the_environment_changes_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a plugin sets environment variables for its own work, a storage goes on as before."""
    database.open_twice("probe")
    storage = database.open("namespace")
    storage.set("key", MARK)
    proxy = f"http://127.0.0.1:{free_ports(1)[0]}"  # Nothing listens there.
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]:
        monkeypatch.setenv(name, proxy)
        monkeypatch.setenv(name.lower(), proxy)
    for name in ["HOME", "USER", "LOGNAME", "HOSTNAME", "TMPDIR"]:
        monkeypatch.setenv(name, "/nowhere")
    refusal(storage.set, "new", large_value(1))  # Another test checks whether it can be stored.
    failed = refusal(storage.set, "new", [MARK])
    found = outcome(lambda: (contents(storage).keys(), contents(database.open("namespace")).keys()))
    assert (failed, found) == (None, ({"key", "new"},) * 2), (
        "After a plugin has set environment variables such as HTTP_PROXY, the storage fails, or its"
        f" data are elsewhere: {failed or found}. Read the environment once, when the bot starts."
    )


def test_a_set_is_done_when_it_returns(database: Database) -> None:
    """A `set` takes effect before it returns: another opener of the namespace sees it."""
    one = database.open("namespace", database.plugin())
    other = database.open("namespace", database.plugin())
    expected: dict[str, object] = {}
    for turn, writer in enumerate([one, other, one, other]):
        for storage in [one, other]:
            outcome(storage.get, f"new {turn}")  # A missing key must not be cached, either.
        if turn > 1:
            del expected[f"new {turn - 2}"]
            writer.remove(f"new {turn - 2}")
        expected |= {"small": turn, "large": f"{turn} {MARK * 400}", f"new {turn}": MARK}
        for key, value in expected.items():
            writer.set(key, value)
        for storage in [one, other]:
            got = contents(storage)
            assert same(got, expected), (
                f"Another opener of the namespace sees different data: {sorted(got)}. When `set`"
                " returns, the value must be in the database: otherwise it is lost in a crash, and"
                " `errbot --storage-get` does not see it. Commit immediately, and cache nothing."
            )
            assert storage.len() == len(expected), (
                "`len` does not count what another opener has stored."
            )


def test_a_removal_is_done_when_it_returns(database: Database) -> None:
    """A `remove` takes effect before it returns: another opener of the namespace sees it."""
    storage = database.open("namespace", database.plugin())
    other = database.open("namespace", database.plugin())
    storage.set("key", MARK)
    if outcome(other.get, "key") != MARK:
        pytest.skip("another opener does not see what is set, which another test checks")
    other.remove("key")
    for operation in [storage.get, storage.remove]:
        assert outcome(operation, "key") == outcome(operation, "never set"), (
            "A key that another opener has removed can still be read or removed. The storage"
            " answers from a cache, or the removal is not in the database when `remove` returns."
        )
    assert (storage.len(), list(storage.keys())) == (0, []), (
        "A key that another opener has removed is still counted."
    )


def test_a_value_is_stored_again_after_another_opener_replaced_it(database: Database) -> None:
    """A value that another opener has replaced can be stored again."""
    one = database.open("namespace", database.plugin())
    other = database.open("namespace", database.plugin())
    one.set("key", MARK)
    other.set("key", [MARK])
    if outcome(one.get, "key") != [MARK]:
        pytest.skip("another opener does not see what is set, which another test checks")
    one.set("key", MARK)
    assert other.get("key") == MARK, (
        "`set` did nothing because the storage had stored this value before, but another opener had"
        " replaced it. Write every time."
    )


def test_closing_one_storage_leaves_the_others_open(database: Database) -> None:
    """Closing one storage leaves the others open."""
    one, other = database.open("one"), database.open("other")
    one.set("key", MARK)
    other.set("key", MARK)
    database.close(one)
    assert other.get("key") == MARK, (
        "Unloading one plugin affected what others have open. `close` must not close anything"
        " shared."
    )
    other.set("key", [MARK])
    assert other.get("key") == [MARK], "Unloading one plugin broke another plugin's storage."


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "not closed"])
def test_a_storage_may_be_freed_at_any_time(database: Database, closed: bool) -> None:
    """Python may free a storage in the middle of another one's operation."""
    plugin = database.plugin()
    storage = skip_if_threads_fail(database.open("namespace", plugin))
    unused = [plugin.open(database.namespace("unused")) for _ in range(FREED)]
    for number in range(FREED if closed else 0):
        unused[number].close()

    def free(*_: object) -> None:
        if unused:
            unused.pop()

    def work() -> None:
        sys.setprofile(free)  # at each call of a function
        try:
            storage.set("key", [MARK])
            storage.get("key")
            storage.len()
            list(storage.keys())
            storage.remove("key")
        finally:
            sys.setprofile(None)

    try:
        at_once(work, seconds=CLOSING)
    except TimeoutError:
        pytest.fail(
            "Python freed a storage in the middle of another one's operation, and the bot hangs. It"
            " frees objects at any time, so `__del__` must take no lock: use an RLock."
        )


@pytest.mark.parametrize("name", ["set during close", "set", "remove"])
def test_a_change_of_a_storage_that_is_closed_is_done_or_an_error(
    database: Database, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A `set` or `remove` that returns is done, even if another thread has closed the storage."""
    storage = database.open()
    storage.set("key", MARK)
    if name == "set during close":
        closing = Thread(target=outcome, args=[database.close, storage], daemon=True)

        def close() -> None:
            if not closing.ident:
                closing.start()
            closing.join(1)

        monkeypatch.setattr(Asking, "ask", [close])
        expected: object = Asking()
        refused = refusal(storage.set, "key", expected)
        monkeypatch.setattr(Asking, "ask", [lambda: None])
        if not closing.ident:
            pytest.skip("`set` does not pickle")
    else:
        database.close(storage)
        expected = [MARK] if name == "set" else KeyError
        refused = refusal(lambda: getattr(storage, name)("key", *[[MARK]][: name == "set"]))
    got = outcome(database.open().get, "key")
    assert refused or got == expected, (
        f"`!plugin reload` closed a storage while a command changed something: {name} raised"
        f" nothing, but the plugin then gets {got}. Let it take effect, or raise an error."
    )


def test_closing_waits_for_no_loop(database: Database) -> None:
    """A storage closes even if a loop over its keys has not ended."""
    storage = database.open()
    for key in ["a", "b"]:
        storage.set(key, MARK)
    loop = iter(storage.keys())
    next(loop)
    with deadline(CLOSING, "`close` hangs while a loop over the keys has not ended."):
        database.close(storage)
    assert database.open().get("a") == MARK, "After `close` during a loop, data are gone."


def test_a_loop_does_not_just_end_when_its_storage_is_closed(database: Database) -> None:
    """After `close`, a loop over the keys goes on, or fails. It does not just end."""
    storage = database.open()
    keys = {f"key {number}" for number in range(LISTED)}
    for key in keys:
        storage.set(key, None)
    loop = iter(storage.keys())
    first = next(loop)
    database.close(storage)
    rest = outcome(lambda: {first, *loop})
    ended = isinstance(rest, set) and len(keys - rest)
    assert not ended, (
        f"A storage was closed while a command went through its keys, as `!plugin reload` does, and"
        f" the loop ended without an error: {ended} of {LISTED} keys are missing, so the command"
        " takes the first part for everything. Return the other keys, too, or raise an error."
    )


def test_a_second_opener_of_a_namespace_leaves_the_first_unharmed(database: Database) -> None:
    """A second opener of a namespace, and its `close`, do not affect the first one."""
    first = database.open("namespace")
    first.set("key", MARK)
    second = database.open("namespace")
    assert first.get("key") == MARK, "Opening a namespace a second time emptied it."
    second.set("key", [MARK])
    first.set("key", [MARK, "newer"])
    database.close(second)
    assert first.get("key") == [MARK, "newer"], (
        "Closing a namespace that another opener uses broke it, or wrote an old value again."
        " `close` must not close anything shared, and must write nothing."
    )
    first.set("key", [MARK])
    assert first.get("key") == [MARK], (
        "After a second opener of a namespace has closed it, the first one fails."
    )


def test_a_plugin_that_starts_harms_nothing_that_is_being_set(database: Database) -> None:
    """A plugin that starts while another one sets large values removes nothing of these."""
    storage = skip_if_threads_fail(database.open("namespace", database.plugin()))
    set_or_skip(storage, "key 0", large_value(0))
    database.open_twice("probe")
    writing = [True]

    def write() -> None:
        try:
            for turn in range(STARTS):
                storage.set(f"key {turn % 3}", large_value(turn))
                assert same(storage.get(f"key {turn % 3}"), large_value(turn)), LOST_AT_A_START
        except Exception as error:
            raise AssertionError(f"{LOST_AT_A_START} {error!r}") from error
        finally:
            writing.clear()

    def start() -> None:
        while writing:
            started = database.open("namespace", database.plugin())
            started.len()
            database.close(started)

    at_once(write, start)


LOST_AT_A_START = (
    "A large value was lost while another plugin started, as `errbot --storage-get` does every"
    " time. What is being written must not look like what a killed bot has left."
)
