"""Storages that forget data when they are closed, reopened, or shared."""

import getpass
import os
import pickle
import re
import sys
import threading
import time
import weakref
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import errbot.version
from errbot.storage import StoreException

from broken_storages.support import (
    caught_by,
    know_place,
    lock_for_forks,
    name_namespaces_after,
    rename_keys,
    replace,
)


@caught_by("test_a_new_plugin_instance_finds_everything", alone=True)
def odd_namespaces_are_numbered_as_they_are_opened(Storage, Plugin):
    """A table for each namespace. Only this process knows the number of an odd name."""

    @replace(Plugin)
    def open(old, self, namespace):
        if not (namespace.isascii() and namespace.isprintable() and namespace.strip() == namespace):
            namespace += f" {id(self)}"
        return old(self, namespace)


@caught_by("test_closing_keeps_what_is_there", alone=True)
def close_writes_back_what_was_set(Storage, Plugin):
    """`close` writes all small values that were set, even those removed since."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        small = len(key) < 100 and len(pickle.dumps(value)) < 999
        if small and threading.current_thread() is threading.main_thread():
            self.__dict__.setdefault("written", {})[key] = value

    @replace(Storage)
    def close(old, self):
        if not self.len():
            self.written = {}
        for key in frozenset(getattr(self, "written", {})) - frozenset(self.keys()):
            self.set(key, self.written[key])
        old(self)


@caught_by("test_a_second_opener_of_a_namespace_leaves_the_first_unharmed", alone=True)
def close_writes_over_what_others_set(Storage, Plugin):
    """`close` writes all values that were set, even if another opener has set newer ones."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        if type(value) is list and all(type(item) is str for item in value):
            self.__dict__.setdefault("written", {})[key] = value

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.__dict__.setdefault("written", {}).pop(key, None)

    @replace(Storage)
    def close(old, self):
        for key, value in getattr(self, "written", {}).items():
            self.set(key, value)
        old(self)


@caught_by("test_closing_one_storage_leaves_the_others_open", alone=True)
def the_last_opener_of_a_namespace_closes_the_connection(Storage, Plugin):
    """`close` counts the openers of its namespace, but the connection belongs to the plugin."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.plugin, storage.name, self.closed = self, namespace, False
        self.__dict__.setdefault("openers", Counter())[namespace] += 1
        return storage

    @replace(Storage)
    def get(old, self, key):
        if self.plugin.closed:
            raise RuntimeError("the connection is closed")
        return old(self, key)

    @replace(Storage)
    def close(old, self):
        self.plugin.openers[self.name] -= 1
        if not self.plugin.openers[self.name] and self.len():
            self.plugin.closed = True
        old(self)


@caught_by("test_a_second_opener_of_a_namespace_leaves_the_first_unharmed")
def all_openers_share_one_storage(Storage, Plugin):
    """`open` returns one object to all openers of a namespace, and the first `close` ends it."""

    @replace(Plugin)
    def open(old, self, namespace):
        opened = self.__dict__.setdefault("opened", {})
        if namespace not in opened or opened[namespace].closed:
            opened[namespace] = old(self, namespace)
            opened[namespace].closed = False
        return opened[namespace]

    @replace(Storage)
    def close(old, self):
        self.closed = True
        old(self)

    @replace(Storage)
    def get(old, self, key):
        if self.closed:
            raise RuntimeError("the storage is closed")
        return old(self, key)


@caught_by("test_a_second_opener_of_a_namespace_leaves_the_first_unharmed")
def a_second_opener_empties_the_namespace(Storage, Plugin):
    """The first opener's lock is mistaken for what a crash left, and cleaned up."""
    opened: set[Any] = set()

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        place = id(self), namespace, threading.get_ident()
        if place in opened:
            for key in list(storage.keys()):
                with suppress(KeyError):
                    storage.remove(key)
        opened.add(place)
        storage.place = place
        return storage

    @replace(Storage)
    def close(old, self):
        opened.discard(self.place)
        old(self)


@caught_by("test_a_new_plugin_instance_finds_everything")
def connecting_drops_the_tables(Storage, Plugin):
    """`drop_all()` before `create_all()`, left over from development."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        seen = self.__dict__.setdefault("created", set())
        if namespace not in seen:
            seen.add(namespace)
            for key in list(storage.keys()):
                storage.remove(key)
        return storage


@caught_by("test_a_set_is_done_when_it_returns")
def all_is_written_when_the_storage_is_closed(Storage, Plugin):
    """shelve's `sync()` and `writeback=True`."""
    write_behind(Storage, only_replacing=False)


@caught_by("test_a_set_is_done_when_it_returns")
def replaced_values_are_written_when_the_storage_is_closed(Storage, Plugin):
    """INSERT commits, but UPDATE waits for the end of the transaction."""
    write_behind(Storage, only_replacing=True)


def write_behind(Storage: Any, only_replacing: bool) -> None:
    """Keep what is set in memory until `close`, or until the key is removed."""
    read, write, take = Storage.get, Storage.set, Storage.remove
    names, count, end = Storage.keys, Storage.len, Storage.close

    def waiting(self):
        return self.__dict__.setdefault("waiting", {})

    def there(self, key):
        try:
            read(self, key)
        except KeyError:
            return False
        return True

    def set(self, key, value):
        data = self._dump(key, value)
        if only_replacing and not there(self, key):
            write(self, key, value)
        else:
            waiting(self)[key] = data

    def get(self, key):
        if key in waiting(self):
            return self._load(key, waiting(self)[key])
        return read(self, key)

    def remove(self, key):
        if key in waiting(self):
            del waiting(self)[key]
            with suppress(KeyError):
                take(self, key)
        else:
            take(self, key)

    def keys(self):
        if only_replacing or not waiting(self):
            return names(self)
        stored = list(names(self))
        return iter([*stored, *(frozenset(waiting(self)) - frozenset(stored))])

    def flush(self):
        for key, data in list(waiting(self).items()):
            write(self, key, self._load(key, data))
        waiting(self).clear()

    def close(self):
        flush(self)
        end(self)

    Storage.set, Storage.get, Storage.remove, Storage.close = set, get, remove, close
    Storage.keys = keys
    Storage.len = lambda self: count(self) if only_replacing else len(list(keys(self)))


@caught_by("test_a_removal_is_done_when_it_returns")
def removals_are_done_when_the_storage_is_closed(Storage, Plugin):
    """DELETE waits for the end of the transaction, which only the storage itself can look into."""
    read, take = Storage.get, Storage.remove

    @replace(Storage)
    def remove(old, self, key):
        removed = self.__dict__.setdefault("removed", {})
        if key in removed:
            raise KeyError(key)
        read(self, key)
        removed[key] = True

    @replace(Storage)
    def get(old, self, key):
        if key in self.__dict__.get("removed", {}):
            raise KeyError(key)
        return old(self, key)

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        self.__dict__.get("removed", {}).pop(key, None)

    @replace(Storage)
    def keys(old, self):
        return (key for key in old(self) if key not in self.__dict__.get("removed", {}))

    @replace(Storage)
    def close(old, self):
        for key in self.__dict__.get("removed", {}):
            take(self, key)
        old(self)

    Storage.len = lambda self: sum(1 for _ in self.keys())


@caught_by("test_a_set_is_done_when_it_returns")
def reads_are_cached(Storage, Plugin):
    """What was read once is answered from memory, no matter what others have set since."""

    @replace(Storage)
    def get(old, self, key):
        cache = self.__dict__.setdefault("cache", {})
        if key not in cache:
            cache[key] = pickle.dumps(old(self, key))
        return pickle.loads(cache[key])

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        self.__dict__.setdefault("cache", {}).pop(key, None)

    @replace(Storage)
    def remove(old, self, key):
        self.__dict__.setdefault("cache", {}).pop(key, None)
        old(self, key)


@caught_by("test_a_removal_is_done_when_it_returns", alone=True)
def writes_are_cached(Storage, Plugin):
    """A text that was set here is answered from memory, even if someone else has removed it."""

    @replace(Storage)
    def get(old, self, key):
        cache = self.__dict__.setdefault("cache", {})
        try:
            return old(self, key)
        except KeyError:
            if key in cache:
                return pickle.loads(cache[key])
            raise

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        self.__dict__.setdefault("cache", {}).pop(key, None)
        if type(value) is str:
            self.cache[key] = pickle.dumps(value)

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.__dict__.setdefault("cache", {}).pop(key, None)


@caught_by("test_a_set_is_done_when_it_returns")
def len_is_cached_until_the_next_own_change(Storage, Plugin):
    """Counting takes time, so the count is cached until this storage changes something."""
    cache_until_own_change(Storage, "len", int)


@caught_by("test_a_set_is_done_when_it_returns")
def keys_are_cached_until_the_next_own_change(Storage, Plugin):
    """Listing takes time, so the list is cached until this storage changes something."""
    cache_until_own_change(Storage, "keys", list)


def cache_until_own_change(Storage: Any, name: str, keep: Callable[[Any], Any]) -> None:
    """Answer from memory until this storage sets or removes a key."""

    def forgetting(old):
        @wraps(old)
        def method(self, *arguments):
            try:
                return old(self, *arguments)
            finally:
                self.__dict__.pop("kept", None)

        return method

    Storage.set = forgetting(Storage.set)
    Storage.remove = forgetting(Storage.remove)
    old = getattr(Storage, name)

    def answer(self):
        if (kept := self.__dict__.get("kept")) is None:
            kept = self.kept = keep(old(self))
        return kept if name == "len" else iter(list(kept))

    setattr(Storage, name, answer)


@caught_by("test_a_set_is_done_when_it_returns")
def large_values_are_cached(Storage, Plugin):
    """Only values that take long to fetch are cached."""

    @replace(Storage)
    def get(old, self, key):
        cache = self.__dict__.setdefault("cache", {})
        if key not in cache:
            data = pickle.dumps(old(self, key))
            if len(data) < 5_000:
                return pickle.loads(data)
            cache[key] = data
        return pickle.loads(cache[key])

    def forgetting(old):
        @wraps(old)
        def method(self, key, *value):
            old(self, key, *value)
            self.__dict__.setdefault("cache", {}).pop(key, None)

        return method

    Storage.set = forgetting(Storage.set)
    Storage.remove = forgetting(Storage.remove)


@caught_by("test_a_set_is_done_when_it_returns", alone=True)
def what_was_missed_is_missing_until_it_is_set_here(Storage, Plugin):
    """Misses of longer names are cached, and forgotten only by this storage's own `set`."""

    @replace(Storage)
    def get(old, self, key):
        misses = self.__dict__.setdefault("misses", {})
        if key in misses:
            raise KeyError(key)
        try:
            return old(self, key)
        except KeyError:
            if 4 < len(key) < 100:
                misses[key] = True
            raise

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        self.__dict__.setdefault("misses", {}).pop(key, None)


@caught_by("test_a_value_is_stored_again_after_another_opener_replaced_it", alone=True)
def what_was_written_last_is_not_written_again(Storage, Plugin):
    """The text that this storage wrote last is cached, but others may have written since."""

    @replace(Storage)
    def set(old, self, key, value):
        written = self.__dict__.setdefault("written", {})
        if type(value) is not str or written.get(key) != value:
            old(self, key, value)
            written[key] = value if type(value) is str else None

    @replace(Storage)
    def remove(old, self, key):
        self.__dict__.setdefault("written", {}).pop(key, None)
        old(self, key)


@caught_by("test_a_bot_started_in_another_folder_finds_everything", alone=True)
def the_file_is_where_the_bot_was_started(Storage, Plugin):
    """`sqlite3.connect("errbot.db")`: a path relative to the working directory."""
    name_namespaces_after(Plugin, lambda _: os.getcwd())


@caught_by("test_a_new_plugin_instance_finds_everything")
def a_start_removes_temporary_keys(Storage, Plugin):
    """What an earlier version left as `tmp_...` is removed, and so are keys of plugins."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        for key in list(storage.keys()):
            if key.startswith("tmp_"):
                storage.remove(key)
        return storage


@caught_by("test_closing_waits_for_no_loop", alone=True)
def close_waits_for_loops_over_the_keys(Storage, Plugin):
    """Whoever loops has a cursor open, which `close` must not take away."""

    @replace(Storage)
    def keys(old, self):
        loops = self.__dict__.setdefault("loops", [])
        loops.append(loop := object())
        try:
            yield from old(self)
        finally:
            loops.remove(loop)

    @replace(Storage)
    def close(old, self):
        until = time.monotonic() + 6
        while self.__dict__.get("loops") and time.monotonic() < until:
            time.sleep(0.01)
        old(self)


@caught_by("test_a_bot_starts_as_a_user_without_a_name", alone=True)
def connections_are_named_after_the_user(Storage, Plugin):
    """So that a database's administrator sees who it is. But a user may be only a number."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.client = f"errbot as {getpass.getuser()}"


@caught_by("test_another_working_directory_changes_nothing", alone=True, outlives_process=True)
def the_path_is_relative_to_the_folder_of_the_start(Storage, Plugin):
    """The path is shortened when the plugin starts, but connections are opened later, too."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self._path = Path(os.path.relpath(self._path))


@caught_by("test_another_working_directory_changes_nothing", outlives_process=True)
def a_relative_folder_leads_elsewhere_later(Storage, Plugin):
    """BOT_DATA_DIR is relative, and each new connection begins at the current folder."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self._path = Path(bot_config.BOT_DATA_DIR, self.config.path)


@caught_by("test_another_working_directory_changes_nothing", alone=True, outlives_process=True)
def the_path_is_resolved_when_a_namespace_is_opened(Storage, Plugin):
    """BOT_DATA_DIR is relative, and a plugin that is reloaded later gets another file."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.named = Path(bot_config.BOT_DATA_DIR, self.config.path)

    @replace(Plugin)
    def open(old, self, namespace):
        if self.named.absolute() != self._path:
            self._path = self.named.absolute()
            self._idle.clear()
        return old(self, namespace)


def rename_table(Plugin: Any) -> None:
    """Let SQLite's statements use another table than the first release, which is "errbot"."""

    def rename(statement: str) -> str:
        return re.sub(r'\b(?<!")errbot\b(?![".])', "errbot_2", statement)

    names = Plugin.open.__globals__
    for name, value in list(names.items()):
        if name.isupper() and isinstance(value, str):
            names[name] = rename(value)

    @replace(Plugin)
    def run(old, self, statement, *values):
        return old(self, rename(statement), *values)


@caught_by("test_what_the_first_release_has_stored_is_there", outlives_process=True)
def a_new_release_has_a_new_table(Storage, Plugin):
    """Nothing copies the rows of the old one."""
    rename_table(Plugin)


@caught_by("test_what_the_first_release_has_stored_is_there", outlives_process=True)
def the_table_of_the_first_release_is_copied_at_each_start(Storage, Plugin):
    """Nothing notes that it has been done, so old values and removed keys come back."""
    create = Plugin.open.__globals__["CREATE"]
    rename_table(Plugin)

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.run(create.replace("errbot", '"errbot"'))
        self.run('INSERT OR REPLACE INTO errbot_2 SELECT * FROM "errbot"')


@caught_by("test_an_upgrade_that_was_killed_is_completed", alone=True, outlives_process=True)
def an_upgrade_is_done_when_there_is_a_new_table(Storage, Plugin):
    """It is created before the rows of the old one are copied to it."""
    copy_to_a_new_table(Plugin, lambda connection, steps: [*map(connection.execute, steps)])


@caught_by("test_an_upgrade_that_was_killed_is_completed", outlives_process=True)
def an_upgrade_is_one_script(Storage, Plugin):
    """The same in one call, which commits each statement by itself."""
    copy_to_a_new_table(Plugin, lambda connection, steps: connection.executescript(";".join(steps)))


def copy_to_a_new_table(Plugin, execute):
    """Let a new release copy all rows to a new table, if there is none."""
    names = Plugin.open.__globals__
    old_rows = names["CREATE"]
    rename_table(Plugin)
    new_rows, names["CREATE"] = names["CREATE"], old_rows

    @replace(Plugin)
    def _connect(old, self):
        connection = old(self)
        tables = "SELECT 1 FROM sqlite_master WHERE name = 'errbot_2'"
        if not connection.execute(tables).fetchone():
            execute(connection, [new_rows, "INSERT OR IGNORE INTO errbot_2 SELECT * FROM errbot"])
        return connection


@caught_by("test_what_the_first_release_has_stored_is_there", outlives_process=True)
def a_new_release_escapes_names(Storage, Plugin):
    """So that any name can be stored. It looks for old ones in their new form."""
    rename_keys(Storage, lambda _, key: quote(key, safe="", errors="surrogatepass"))

    @replace(Storage)
    def keys(old, self):
        return (unquote(key, errors="surrogatepass") for key in old(self))


@caught_by(
    "test_an_old_value_is_not_back_after_it_was_read_and_changed_at_once",
    alone=True,
    outlives_process=True,
)
def an_old_value_is_converted_when_it_is_read(Storage, Plugin):
    """Values are compressed since this release. What is not is replaced by what was read."""

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, b"zlib" + zlib.compress(data, 1))

    @replace(Storage)
    def swap(old, self, key, before, after):
        before, after = (b"zlib" + zlib.compress(data, 1) for data in (before, after))
        return old(self, key, before, after)

    @replace(Storage)
    def read(old, self, key):
        data = old(self, key)
        if data.startswith(b"zlib"):
            return zlib.decompress(data[4:])
        self.write(key, data)
        return data


@caught_by("test_what_the_first_release_has_stored_is_there", alone=True, outlives_process=True)
def a_new_release_counts_only_what_is_new(Storage, Plugin):
    """Triggers keep the number of keys, because `count(*)` is slow. Nobody counted the old ones."""
    here = "WHERE namespace = "

    @replace(Plugin)
    def _connect(old, self):
        connection = old(self)
        connection.executescript(
            f"""CREATE TABLE IF NOT EXISTS counts (namespace PRIMARY KEY, keys);
            CREATE TRIGGER IF NOT EXISTS more AFTER INSERT ON errbot BEGIN
                INSERT OR IGNORE INTO counts VALUES (new.namespace, 0);
                UPDATE counts SET keys = keys + 1 {here} new.namespace; END;
            CREATE TRIGGER IF NOT EXISTS fewer AFTER DELETE ON errbot BEGIN
                UPDATE counts SET keys = keys - 1 {here} old.namespace; END;"""
        )
        return connection

    @replace(Storage)
    def len(old, self):
        rows, _ = self._run(f"SELECT keys FROM counts {here} ?", self._namespace)
        return rows[0][0] if rows else 0


@caught_by("test_a_database_is_the_same_for_a_bot_with_another_folder", alone=True)
def the_bots_folder_holds_a_key(Storage, Plugin):
    """Values are encrypted, and each bot makes a key. XOR with one byte stands in for a cipher."""

    know_place(Plugin)

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        path = Path(self.folder, "errbot.key")
        if not path.exists():
            path.touch(mode=0o600)
            path.write_bytes(bytes([1 + zlib.crc32(str(path).encode()) % 255]))
        storage.cipher = path.read_bytes()[0]
        return storage

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, bytes(byte ^ self.cipher for byte in data[:100]) + data[100:])

    @replace(Storage)
    def read(old, self, key):
        data = old(self, key)
        return bytes(byte ^ self.cipher for byte in data[:100]) + data[100:]


@caught_by("test_a_storage_may_be_freed_at_any_time", alone=True)
def a_storage_takes_a_lock_when_it_is_freed(Storage, Plugin):
    """The lock of all operations. If Python frees it in the middle of one, the bot hangs."""
    lock_when_freed(Storage, Plugin)


@caught_by("test_a_storage_may_be_freed_at_any_time")
def a_storage_is_closed_under_a_lock_when_it_is_freed(Storage, Plugin):
    """The same only if nobody has closed it."""
    lock_when_freed(Storage, Plugin)

    @replace(Storage)
    def close(old, self):
        old(self)
        self.lock = nullcontext()


def lock_when_freed(Storage, Plugin):
    """Let `len` and `__del__` take a lock that is not reentrant."""
    locks = weakref.WeakKeyDictionary[Any, Any]()

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.lock = locks.setdefault(self, lock_for_forks(threading.Lock))
        return storage

    @replace(Storage)
    def len(old, self):
        with self.lock:
            return old(self)

    def __del__(self):
        with self.lock:
            self.ended = True

    Storage.__del__ = __del__


ANOTHER_FOLDER = "test_a_database_is_the_same_for_a_bot_with_another_folder"


@caught_by(ANOTHER_FOLDER, connects=True)
def a_copy_in_the_bots_folder_is_read_first(Storage, Plugin):
    """Files are faster than a server. But another bot has other files."""
    know_place(Plugin)

    def path(storage, key):
        return Path(storage.place[0], f"{zlib.crc32(key.encode())}.copy")

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        path(self, key).write_bytes(data)

    @replace(Storage)
    def read(old, self, key):
        return path(self, key).read_bytes() if path(self, key).exists() else old(self, key)


@caught_by(ANOTHER_FOLDER, connects=True)
def large_values_are_in_the_bots_folder(Storage, Plugin):
    """The server gets only their names."""
    know_place(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        if len(data) > 1_000_000:
            path = Path(self.place[0], f"{zlib.crc32(data)}.large")
            path.write_bytes(data)
            data = f"see {path.name}".encode()
        old(self, key, data)

    @replace(Storage)
    def read(old, self, key):
        data = old(self, key)
        if not data.startswith(b"see "):
            return data
        try:
            return Path(self.place[0], data[4:].decode()).read_bytes()
        except FileNotFoundError as error:
            raise StoreException("the value is not here") from error


@caught_by("test_a_change_of_a_storage_that_is_closed_is_done_or_an_error", alone=True)
def a_closed_storage_ignores_changes(Storage, Plugin):
    """After `close`, its plugin is not activated any more, so an error would only be noise."""

    @replace(Storage)
    def close(old, self):
        self.closed = True
        old(self)

    def ignoring(old):
        @wraps(old)
        def method(self, key, *data):
            if not hasattr(self, "closed"):
                old(self, key, *data)

        return method

    Storage.write, Storage.remove = ignoring(Storage.write), ignoring(Storage.remove)


@caught_by("test_data_are_there_when_another_setting_has_changed")
def a_namespace_is_named_after_the_configuration(Storage, Plugin):
    """So that two bots can share a database: each one has its own STORAGE_CONFIG."""
    name_namespaces_after(Plugin, lambda bot_config: digest(bot_config, "STORAGE_CONFIG"))


def digest(bot_config: Any, setting: str) -> int:
    """Return a short number that stands for a setting."""
    return zlib.crc32(repr(getattr(bot_config, setting, "")).encode())


PARTS: dict[object, bytes] = {}
"""Parts that no key points to yet, in all plugin instances of this process."""


@caught_by("test_a_plugin_that_starts_harms_nothing_that_is_being_set", alone=True)
def a_start_removes_what_is_being_written(Storage, Plugin):
    """Parts that no key points to are what a killed bot has left, or what is just being written."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        PARTS.clear()

    @replace(Storage)
    def write(old, self, key, data):
        if len(data) > 4_000_000:
            part = object()
            PARTS[part] = data
            time.sleep(0.02)
            if PARTS.pop(part, None) is None:
                raise StoreException("A part of the value is missing.")
        old(self, key, data)


@caught_by("test_data_are_there_when_another_setting_has_changed")
def a_namespace_is_named_after_the_bot(Storage, Plugin):
    """So that two bots can share a database: each one has its own BOT_IDENTITY."""
    name_namespaces_after(Plugin, lambda bot_config: digest(bot_config, "BOT_IDENTITY"))


@caught_by("test_data_are_there_when_another_setting_has_changed")
def each_chat_network_has_its_own_namespaces(Storage, Plugin):
    """Because users have other names there. A bot that moves to another network loses all."""
    name_namespaces_after(Plugin, lambda bot_config: getattr(bot_config, "BACKEND", "Text"))


@caught_by("test_data_are_there_when_another_setting_has_changed")
def namespaces_are_named_after_the_file_of_the_configuration(Storage, Plugin):
    """So that several bots can share a folder, until somebody renames config.py."""

    def stem(config):
        return Path(getattr(config, "__file__", None) or "config.py").stem

    name_namespaces_after(Plugin, stem)


@caught_by("test_data_are_there_when_another_setting_has_changed", alone=True)
def data_belong_to_the_name_in_chat_rooms(Storage, Plugin):
    """So that two bots can share a database. But a bot may get another name."""
    name_namespaces_after(Plugin, lambda config: getattr(config, "CHATROOM_FN", ""))


WRITTEN_BY: dict[int, str] = {}
"""The version of Errbot that wrote last, by the `id` of a namespace's rows."""


@caught_by("test_data_are_there_when_errbot_was_upgraded", alone=True)
def a_new_errbot_replaces_the_row_of_a_namespace(Storage, Plugin):
    """The row records who wrote last; to replace it deletes all that refers to it."""

    @replace(Storage)
    def write(old, self, key, data):
        newest = errbot.version.VERSION
        if WRITTEN_BY.get(id(self._rows), newest) != newest:
            for other in list(self.keys()):
                self.remove(other)
        WRITTEN_BY[id(self._rows)] = newest
        old(self, key, data)


@caught_by("test_a_change_while_an_error_is_handled_is_stored", alone=True)
def a_change_in_an_except_is_rolled_back(Storage, Plugin):
    """`if sys.exc_info()[0]: rollback()`, which also sees the error that a caller handles."""

    def handled():
        return sys.exc_info()[0] not in (None, KeyError)

    @replace(Storage)
    def write(old, self, key, data):
        if not handled():
            old(self, key, data)

    @replace(Storage)
    def remove(old, self, key):
        if handled():
            self.read(key)
        else:
            old(self, key)


@caught_by("test_what_a_plugin_puts_into_the_environment_changes_nothing", alone=True)
def the_proxy_is_read_with_each_request(Storage, Plugin):
    """As libraries for HTTP do. But a plugin may set it for its own requests."""

    @replace(Storage)
    def write(old, self, key, data):
        if "HTTP_PROXY" in os.environ:
            raise StoreException("The proxy does not answer.")
        old(self, key, data)


@caught_by("test_a_loop_does_not_just_end_when_its_storage_is_closed", alone=True)
def loops_end_at_close(Storage, Plugin):
    """So that old code does not go on for minutes after `!plugin reload`."""

    @replace(Storage)
    def keys(old, self):
        for key in old(self):
            if "closed" in vars(self):
                return
            yield key

    @replace(Storage)
    def close(old, self):
        old(self)
        self.closed = True
