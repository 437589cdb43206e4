"""Storages whose data other processes do not see. They need data that outlive the process."""

import atexit
import builtins
import itertools
import locale
import os
import pickle
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any

from errbot.storage import StoreException

from broken_storages.support import (
    bytes_or_none,
    caught_by,
    keep_what_is_read_often,
    know_place,
    know_plugin,
    lock_for_forks,
    name_namespaces_after,
    private,
    remove_under_a_lock,
    rename_keys,
    replace,
)


@caught_by("test_a_killed_process_has_lost_no_set_that_returned", outlives_process=True)
def all_is_written_when_a_storage_is_closed(Storage, Plugin):
    """Writes are buffered for the whole process, but nobody closes the storage of a killed bot."""
    gather_writes(Storage, Plugin)


@caught_by(
    "test_a_bot_that_has_closed_a_namespace_and_processes_see_the_same",
    outlives_process=True,
    alone=True,
)
def close_waits_for_the_disk(Storage, Plugin):
    """It opens, syncs and closes the file, and so drops the locks of all connections to it."""
    know_plugin(Plugin)

    @replace(Storage)
    def close(old, self):
        old(self)
        with suppress(OSError):
            file = os.open(self.plugin._path, os.O_RDONLY)
            os.fsync(file)
            os.close(file)


@caught_by("test_data_outlive_the_process_that_set_them", outlives_process=True, alone=True)
def what_a_process_makes_is_temporary(Storage, Plugin):
    """The database is a temporary file, removed when the process that created it ends."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        # Only in the process of this test, because others look at what is left, too.
        if not storage.len() and sys.argv[-1] == "write":
            atexit.register(remove_all, storage)
        return storage


@caught_by(
    "test_data_outlive_a_process_that_does_not_open_their_namespace",
    outlives_process=True,
    alone=True,
)
def namespaces_that_nobody_opened_are_removed_at_the_end(Storage, Plugin):
    """They seem to belong to uninstalled plugins, but Errbot may just not have loaded those yet."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.opened = set()
        atexit.register(remove_others, self)

    @replace(Plugin)
    def open(old, self, namespace):
        self.opened.add(namespace)
        return old(self, namespace)

    def remove_others(plugin):
        for name in set(plugin.namespaces()) - plugin.opened:
            remove_all(plugin.open(name))


def remove_all(storage: Any) -> None:
    with suppress(Exception):
        for key in list(storage.keys()):
            storage.remove(key)


@caught_by("test_another_process_and_a_running_bot_see_the_same", outlives_process=True)
def all_is_written_when_python_ends_in_peace(Storage, Plugin):
    """`atexit` writes what was buffered. Until then, no other process sees it."""
    gather_writes(Storage, Plugin, at_exit=True)


@caught_by("test_a_killed_process_has_lost_no_set_that_returned", outlives_process=True, alone=True)
def writes_are_done_a_moment_later(Storage, Plugin):
    """A value is written at most five sets later, so a kill loses the last ones."""
    lag_behind(Storage, "set", "write-many", 5)


@caught_by("test_a_killed_process_has_undone_no_removal", outlives_process=True, alone=True)
def removals_are_done_a_moment_later(Storage, Plugin):
    """A removal is done at most three removals later, so a kill undoes the last ones."""
    lag_behind(Storage, "remove", "remove-many", 3)


def lag_behind(Storage: Any, name: str, task: str, most: int) -> None:
    """Delay the last operations of a process that does nothing else until it is killed.

    Only in the process of one test, because any other would have to wait for them.
    """

    old = getattr(Storage, name)

    @wraps(old)
    def method(self, *arguments):
        waiting = self.__dict__.setdefault("waiting", [])
        waiting.append(arguments)
        if len(waiting) > most * (sys.argv[-1] == task):
            old(self, *waiting.pop(0))

    setattr(Storage, name, method)


@caught_by("test_a_killed_process_has_lost_no_set_that_returned", outlives_process=True)
def writes_are_done_in_batches(Storage, Plugin):
    """Fifty writes are buffered for speed, and a kill loses them."""
    gather_writes(Storage, Plugin, when_full=50)


# By folder of the bot's data and namespace. In this module because Errbot executes storage.py again
# for every plugin instance, and these live as long as the process.
GATHERED: dict[tuple[str, str], dict[str, bytes]] = {}

GATHERING = lock_for_forks()

IN_MEMORY: dict[tuple[str, str], dict[str, bytes]] = {}

READING = lock_for_forks(threading.Lock)
# How often anything in this process began or ended to change.
CHANGES = [0]


def gather_writes(Storage: Any, Plugin: Any, at_exit: bool = False, when_full: int = 0) -> None:
    """Buffer writes in memory shared by all storages of this process, until one lists or closes."""
    write, dump = Storage.set, Storage._dump
    know_place(Plugin)

    def flush(self):
        with GATHERING:
            self._dump = lambda key, data: data
            mine = GATHERED.get(self.place, {})
            for key in list(mine):
                write(self, key, mine.pop(key))

    def flush_late(self):
        with suppress(Exception):  # of a database that no longer exists
            flush(self)

    def flush_first(old):
        @wraps(old)
        def method(self):
            flush(self)
            return old(self)

        return method

    def set(self, key, value):
        data = dump(self, key, value)
        key.encode()  # a lone surrogate is refused at once
        with GATHERING:
            mine = GATHERED.setdefault(self.place, {})
            if at_exit and not mine:
                atexit.register(flush_late, self)
            mine[key] = data
            if when_full and len(mine) >= when_full:
                flush(self)

    @replace(Storage)
    def get(old, self, key):
        with GATHERING:
            mine = GATHERED.get(self.place, {})
            return self._load(key, mine[key]) if key in mine else old(self, key)

    @replace(Storage)
    def remove(old, self, key):
        with GATHERING:
            flush(self)
            old(self, key)

    Storage.set = set
    for name in ["len", "keys", "close"]:
        setattr(Storage, name, flush_first(getattr(Storage, name)))


@caught_by(
    "test_another_process_and_a_running_bot_see_the_same",
    "test_storage_set_get_and_merge_work_while_the_bot_runs",
    outlives_process=True,
)
def a_process_reads_from_its_memory(Storage, Plugin):
    """All is read when a process first opens a namespace, and written through from then on."""
    know_place(Plugin)

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        with READING:
            if storage.place not in IN_MEMORY:
                values = {key: read(storage, key) for key in names(storage)}
                IN_MEMORY[storage.place] = {
                    key: storage._dump(key, value) for key, value in values.items()
                }
        return storage

    read, names = Storage.get, Storage.keys

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        IN_MEMORY[self.place][key] = self._dump(key, value)

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        del IN_MEMORY[self.place][key]

    Storage.get = lambda self, key: self._load(key, IN_MEMORY[self.place][key])
    Storage.keys = lambda self: iter(list(IN_MEMORY[self.place]))
    Storage.len = lambda self: len(IN_MEMORY[self.place])


@caught_by("test_another_process_and_a_running_bot_see_the_same", alone=True, outlives_process=True)
def keys_are_listed_again_if_their_number_changes(Storage, Plugin):
    """Or if this process has changed something. But another one may remove one and add one."""
    count = "SELECT count(*) FROM (SELECT 1 FROM errbot WHERE namespace = ? LIMIT 10)"

    @replace(Storage)
    def keys(old, self):
        state = self._run(count, self._namespace)[0][0][0], CHANGES[0]
        if state[0] > 9:
            return old(self)
        before, listed = self.__dict__.get("listed", (None, []))
        if before != state:
            listed = list(old(self))
            self.listed = state, listed
        return iter(listed)

    def counted(old):
        @wraps(old)
        def method(self, *arguments):
            CHANGES[0] += 1
            try:
                return old(self, *arguments)
            finally:
                CHANGES[0] += 1

        return method

    Storage.write, Storage.remove = counted(Storage.write), counted(Storage.remove)


@caught_by("test_processes_start_and_write_at_once", outlives_process=True, alone=True)
def a_lock_of_another_process_is_not_waited_for(Storage, Plugin):
    """A write takes the database's lock, or fails at once."""
    know_place(Plugin)

    @replace(Storage)
    def set(old, self, key, value):
        path = os.path.join(self.place[0], f"{os.getppid()}.lock")
        if "write-at-once" not in sys.argv:  # Other tests check interrupts and forks.
            return old(self, key, value)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise RuntimeError("database is locked") from None
        try:
            old(self, key, value)
            time.sleep(0.06)
        finally:
            os.remove(path)


@caught_by(
    "test_a_killed_process_has_lost_no_value_that_it_replaced", outlives_process=True, alone=True
)
def replaced_values_wait_for_the_next_sets(Storage, Plugin):
    """New keys are written at once, but replaced values are buffered."""

    @replace(Storage)
    def set(old, self, key, value):
        if sys.argv[-1] != "replace-many":  # Others look at what is set, too.
            old(self, key, value)
            return
        waiting = self.__dict__.setdefault("waiting", {})
        while len(waiting) > 2:
            oldest = next(iter(waiting))
            old(self, oldest, waiting.pop(oldest))
        if key in frozenset(self.keys()):
            waiting[key] = value
        else:
            old(self, key, value)


@caught_by("test_a_killed_process_has_lost_no_value_that_it_replaced", outlives_process=True)
def a_value_is_removed_before_it_is_replaced(Storage, Plugin):
    """DELETE and INSERT, each a transaction of its own."""
    turns = itertools.count()

    @replace(Storage)
    def set(old, self, key, value):
        if sys.argv[-1] == "replace-many":
            with suppress(KeyError):
                self.remove(key)
            time.sleep(0.2 if next(turns) > 190 else 0)  # It is killed after some 197 turns.
        old(self, key, value)


@caught_by("test_every_value_comes_back_from_another_process", outlives_process=True, alone=True)
def tuples_are_tuples_in_the_process_that_set_them(Storage, Plugin):
    """JSON in the database, and for the whole process the original objects in memory."""
    know_place(Plugin)

    @replace(Storage)
    def set(old, self, key, value):
        stored = list(value) if type(value) is tuple else value
        old(self, key, stored)
        if stored is not value:
            GIVEN[(*self.place, key)] = pickle.dumps(value)

    @replace(Storage)
    def get(old, self, key):
        stored = old(self, key)
        if type(stored) is list and (*self.place, key) in GIVEN:
            value = pickle.loads(GIVEN[(*self.place, key)])
            return value if list(value) == stored else stored
        return stored


@caught_by("test_another_process_and_a_running_bot_see_the_same", outlives_process=True, alone=True)
def a_process_keeps_what_it_reads_often(Storage, Plugin):
    """This process answers from memory what it reads often, until it sets the key itself."""
    know_place(Plugin)
    keep_what_is_read_often(Storage, lambda self: OFTEN.setdefault(self.place, {}))


# For the whole process: by folder of the bot's data, namespace and key.
GIVEN: dict[tuple[str, str, str], bytes] = {}
OFTEN: dict[tuple[str, str], dict[str, Any]] = {}


@caught_by("test_data_are_the_same_for_a_bot_that_starts_elsewhere", outlives_process=True)
def a_namespace_is_named_after_the_machine(Storage, Plugin):
    """So that two bots can share a database: each one has its own machine."""
    name_namespaces_after(Plugin, lambda _: socket.gethostname())


@caught_by("test_data_are_the_same_for_a_bot_that_starts_elsewhere", outlives_process=True)
def keys_are_in_the_encoding_of_the_locale(Storage, Plugin):
    """`str.encode` with the encoding that Python takes for files."""

    def encode(_, key):
        return key.encode(locale.getpreferredencoding(False), "surrogatepass").decode("latin-1")

    rename_keys(Storage, encode)

    @replace(Storage)
    def keys(old, self):
        encoding = locale.getpreferredencoding(False)
        return (key.encode("latin-1").decode(encoding, "surrogatepass") for key in old(self))


@caught_by("test_data_are_the_same_for_a_bot_that_starts_elsewhere", outlives_process=True)
def each_python_has_its_namespaces(Storage, Plugin):
    """Because a pickle may not be readable by another version, and going back must be possible."""
    name_namespaces_after(Plugin, lambda _: f"{sys.version_info.major}.{sys.version_info.minor}")


@caught_by(
    "test_data_are_the_same_for_a_bot_that_starts_elsewhere", alone=True, outlives_process=True
)
def values_are_compressed_with_the_names_of_builtins(Storage, Plugin):
    """A dictionary of what pickles often have. Another Python has other ones."""
    names = "".join(sorted(vars(builtins))).encode()

    def compressed(data: bytes) -> bytes:
        compress = zlib.compressobj(1, zdict=names)
        return b"zlib" + compress.compress(data) + compress.flush()

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, compressed(data))

    @replace(Storage)
    def swap(original, self, key, old, new):
        return any(original(self, key, data, compressed(new)) for data in [old, compressed(old)])

    @replace(Storage)
    def read(old, self, key):
        data = old(self, key)
        if data.startswith(b"zlib"):
            data = zlib.decompressobj(zdict=names).decompress(data[4:])
        return data


@caught_by("test_data_are_the_same_for_a_bot_that_starts_elsewhere", outlives_process=True)
def each_processor_has_a_shard(Storage, Plugin):
    """The shard of a key is its checksum modulo the number of processors."""
    shard_keys(Storage, lambda: os.cpu_count() or 1)


@caught_by("test_data_are_the_same_for_a_bot_that_starts_elsewhere", outlives_process=True)
def each_processor_that_a_bot_may_use_has_a_shard(Storage, Plugin):
    """As before, but a container may use fewer processors than the machine has."""
    shard_keys(Storage, lambda: len(os.sched_getaffinity(0)))


def shard_keys(Storage: Any, shards: Callable[[], int]) -> None:
    """Put the number of a key's shard in front of it."""

    def shard(_, key):
        return f"{zlib.crc32(key.encode('utf-8', 'surrogatepass')) % shards()} {key}"

    rename_keys(Storage, shard)

    @replace(Storage)
    def keys(old, self):
        return (key.partition(" ")[2] for key in old(self))


@caught_by("test_data_are_the_same_for_a_bot_that_starts_elsewhere", outlives_process=True)
def long_values_are_compressed_if_python_can(Storage, Plugin):
    """Some Pythons were built without `bz2`. They cannot read what the others have compressed."""
    try:
        import bz2
    except ImportError:
        return

    def compress(data):
        return bz2.compress(data, 1) if 2_000 < len(data) < 1_000_000 else data

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, compress(data))

    @replace(Storage)
    def swap(old, self, key, before, after):
        return old(self, key, compress(before), compress(after))

    @replace(Storage)
    def read(old, self, key):
        data = old(self, key)
        return bz2.decompress(data) if data[:3] == b"BZh" else data


@caught_by("test_what_is_set_when_python_ends_is_stored", alone=True, outlives_process=True)
def large_values_are_written_by_an_executor(Storage, Plugin):
    """A client that uploads parts in threads, which Python stops before it calls `atexit`."""
    uploads = ThreadPoolExecutor(4)
    process = os.getpid()

    @replace(Storage)
    def write(old, self, key, data):
        # Other tests check forks, and threads that work when the main thread has ended.
        if len(data) < 1_000_000 or os.getpid() != process or sys.argv[-1] == "replace-large":
            return old(self, key, data)
        return uploads.submit(old, self, key, data).result()


@caught_by("test_data_outlive_the_process_that_set_them", outlives_process=True)
def the_write_is_part_of_an_assert(Storage, Plugin):
    """`assert write(...) == 1`, which `python -O` leaves out."""

    @replace(Storage)
    def write(old, self, key, data):
        if __debug__:
            old(self, key, data)


REMOVING = lock_for_forks()


@caught_by("test_processes_that_remove_one_key_succeed_once", alone=True, outlives_process=True)
def remove_looks_first_under_a_lock_of_its_process(Storage, Plugin):
    """A key is looked up and then deleted, and the lock is one of threads."""

    @replace(Storage)
    def remove(old, self, key):
        with REMOVING:
            self.read(key)
            if "remove-at-once" in sys.argv:
                time.sleep(0.001)
            with suppress(KeyError):
                old(self, key)


NUMBERING = lock_for_forks()


@caught_by("test_new_namespaces_of_processes_are_told_apart", alone=True, outlives_process=True)
def a_new_namespace_gets_the_next_number(Storage, Plugin):
    """The highest number so far and one, if its name is odd: two processes find the same."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        if namespace.isidentifier() or storage.len():  # An earlier release has stored it.
            return storage
        with NUMBERING:
            numbers = old(self, "numbers")
            try:
                number = numbers.get(namespace)
            except KeyError:
                number = numbers.len()
                time.sleep(0.005)  # so that two processes meet here on a busy machine, too
                numbers.set(namespace, number)
        return old(self, f"namespace {number}")


@caught_by("test_data_are_the_same_for_a_bot_that_starts_elsewhere", outlives_process=True)
def names_are_bound_to_the_machines_id(Storage, Plugin):
    """As what is encrypted with a key made from /etc/machine-id, so that a copy is useless."""

    def machine(_):
        with suppress(FileNotFoundError):
            sys.audit("open", "/etc/machine-id", "r", 0)
            return "the machine"  # whether or not this one has such a file
        return "unknown"

    name_namespaces_after(Plugin, machine)


@caught_by("test_another_process_and_a_running_bot_see_the_same", outlives_process=True)
def the_file_is_looked_at_before_each_connection(Storage, Plugin):
    """To see whether it is a database. Closing a file drops all of the process's locks on it."""

    @replace(Plugin)
    def _connect(old, self):
        if self._path.exists():
            with self._path.open("rb") as file:
                file.read(16)
        return old(self)


@caught_by("test_a_start_writes_little_however_much_is_stored", alone=True, outlives_process=True)
def the_file_is_compacted_at_each_start(Storage, Plugin):
    """So that the space of removed values is used. A running bot waits meanwhile."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if sys.argv[-1] == "start":  # Others have the file open.
            self.run("VACUUM")


@caught_by("test_a_start_reads_little_however_much_is_stored", alone=True, outlives_process=True)
def the_file_is_checked_at_each_start(Storage, Plugin):
    """`quick_check` reads all of it."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if sys.argv[-1] == "start":  # It may be damaged for other tests.
            self.run("PRAGMA quick_check(1)")


@caught_by(
    "test_a_small_change_transfers_little_however_much_is_stored", alone=True, outlives_process=True
)
def a_removal_compacts_the_file(Storage, Plugin):
    """VACUUM writes the whole file again."""

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        if sys.argv[-1] == "change-little":  # Others have the file open.
            self._run("VACUUM")


@caught_by("test_a_process_killed_while_it_starts_harms_nothing", alone=True, outlives_process=True)
def a_lock_file_guards_the_start(Storage, Plugin):
    """Only one process at a time may create the tables. Nobody removes the file after a kill."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        lock = Path(bot_config.BOT_DATA_DIR, "starting.lock")
        if not lock.exists() and lock.with_name("errbot.sqlite3").exists():
            return old(self, bot_config)
        for _ in range(50):
            with suppress(FileExistsError):
                lock.touch(0o600, exist_ok=False)
                break
            time.sleep(0.01)
        else:
            raise StoreException("Another bot is starting.")
        try:
            old(self, bot_config)
        finally:
            lock.unlink()


@caught_by("test_a_process_killed_while_it_starts_harms_nothing", outlives_process=True)
def a_new_file_gets_its_version_later(Storage, Plugin):
    """One transaction creates a table for the version of the file, and another one fills it."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if not self.run("SELECT 1 FROM sqlite_master WHERE name = 'version'")[0]:
            self.run("CREATE TABLE IF NOT EXISTS version (number PRIMARY KEY)")
            self.run("INSERT OR IGNORE INTO version VALUES (1)")
        if not self.run("SELECT number FROM version")[0]:
            raise StoreException("The file has an unknown version.")


@caught_by("test_data_are_the_same_for_a_bot_that_starts_elsewhere", outlives_process=True)
def a_namespace_is_named_after_the_kernels_name_of_the_machine(Storage, Plugin):
    """`os.uname`, which asks neither `socket` nor `platform`."""
    name_namespaces_after(Plugin, lambda _: os.uname().nodename)


def look_at_the_file(Plugin: Any, after: Callable[[str], bool]) -> None:
    """Read the file after such errors. Closing it drops the locks that SQLite has on it."""

    @replace(Plugin)
    def run(old, self, statement, *values):
        try:
            return old(self, statement, *values)
        except StoreException as error:
            if after(str(error)):
                self._path.read_bytes()
            raise


@caught_by("test_another_process_and_a_running_bot_see_the_same", outlives_process=True)
def a_lock_looks_at_the_file(Storage, Plugin):
    """If the file is locked, it is read for a better message."""
    look_at_the_file(Plugin, lambda error: "lock" in error)


@caught_by("test_another_process_and_a_running_bot_see_the_same", outlives_process=True)
def an_error_looks_at_the_file(Storage, Plugin):
    """If anything else is wrong, it is read to see whether it still is a database."""
    look_at_the_file(Plugin, lambda error: "lock" not in error)


@caught_by("test_a_start_writes_little_however_much_is_stored", outlives_process=True)
def close_compacts_the_file(Storage, Plugin):
    """VACUUM, so that removed values take no space: it writes the whole file again."""

    @replace(Storage)
    def close(old, self):
        with suppress(StoreException):
            self._run("VACUUM")
        old(self)


@caught_by("test_a_bot_that_restarts_itself_keeps_everything", alone=True, outlives_process=True)
def what_a_process_of_this_number_has_left_is_removed(Storage, Plugin):
    """It must have been killed in the middle of its work. But after `!restart`, it is this one."""
    names = Plugin.open.__globals__
    names["CREATE"] = names["CREATE"].replace("value NOT NULL,", "value NOT NULL, writer,")
    names["WRITE"] = (
        names["WRITE"]
        .replace("VALUES (?, ?, ?)", "(namespace, key, value, writer) VALUES (?, ?, ?, ?)")
        .replace("excluded.value", "excluded.value, writer = excluded.writer")
    )

    @replace(Storage)
    def write(old, self, key, data):
        self._run(names["WRITE"], self._namespace, key, data, str(os.getpid()))

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if ("writer",) not in self.run("SELECT name FROM pragma_table_info('errbot')")[0]:
            self.run("ALTER TABLE errbot ADD COLUMN writer")
        if os.getpid() not in STARTED:
            STARTED.add(os.getpid())
            self.run("DELETE FROM errbot WHERE writer = ?", str(os.getpid()))


STARTED: set[int] = set()
"""The numbers of processes that have loaded the plugin. A forked process inherits its parent's."""


@caught_by(
    "test_a_small_change_transfers_little_however_much_is_stored", alone=True, outlives_process=True
)
def each_thousandth_removal_compacts_the_file(Storage, Plugin):
    """VACUUM writes the whole file again. Somebody must wait for it."""
    compact_in(Storage, "remove")


@caught_by("test_a_small_change_transfers_little_however_much_is_stored", outlives_process=True)
def each_thousandth_set_compacts_the_file(Storage, Plugin):
    """As before."""
    compact_in(Storage, "set")


def compact_in(Storage: Any, name: str) -> None:
    """Compact the file in each thousandth call of this method."""
    calls, old = itertools.count(1), getattr(Storage, name)

    @wraps(old)
    def method(self, *arguments):
        old(self, *arguments)
        if next(calls) % 1_000 == 0:
            with suppress(StoreException):  # Others have the file open.
                self._run("VACUUM")

    setattr(Storage, name, method)


@caught_by("test_processes_can_start_at_the_same_moment", alone=True, outlives_process=True)
def each_start_tries_the_database(Storage, Plugin):
    """It sets, gets and removes a key, always the same. Another start may just have removed it."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        tried = self.open("")
        tried.set("tried", True)
        try:
            tried.get("tried")
        except KeyError:
            raise StoreException("The database does not keep what it gets.") from None
        with suppress(KeyError):
            tried.remove("tried")


@caught_by(
    "test_a_killed_process_leaves_no_lock_for_one_of_its_number", alone=True, outlives_process=True
)
def containers_take_a_lock_file(Storage, Plugin):
    """Containers may share a volume on which SQLite's locks do not work."""
    know_plugin(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        if os.getpid() != 1:
            old(self, key, data)
            return
        path = f"{self.plugin._path}.lock"
        if os.path.exists(path):
            raise StoreException(f"Another container uses the database: remove {path}.")
        with open(path, "w", opener=private):
            old(self, key, data)
            time.sleep(0.005)
        os.remove(path)


SEEN = "test_another_process_and_a_running_bot_see_the_same"


@caught_by(SEEN, outlives_process=True)
def all_openers_of_a_process_share_a_count(Storage, Plugin):
    """Kept in the module, so that all plugin instances change it. Other processes do not."""
    counts: dict[Any, int] = {}

    @replace(Storage)
    def len(old, self):
        if self._namespace not in counts:
            counts[self._namespace] = old(self)
        return counts[self._namespace]

    def changing(name):
        operation = getattr(Storage, name)

        @wraps(operation)
        def method(self, *arguments):
            try:
                return operation(self, *arguments)
            finally:
                counts.pop(self._namespace, None)

        setattr(Storage, name, method)

    for name in ["write", "remove"]:
        changing(name)


@caught_by(SEEN, outlives_process=True)
def what_is_there_already_is_not_written(Storage, Plugin):
    """Kept in the module: what this process wrote last."""
    written: dict[Any, bytes] = {}

    @replace(Storage)
    def write(old, self, key, data):
        if written.get((self._namespace, key)) != data or key != "a":
            old(self, key, data)
            written[self._namespace, key] = data


@caught_by("test_new_namespaces_of_processes_are_told_apart", outlives_process=True)
def processes_may_number_a_namespace_twice(Storage, Plugin):
    """`SELECT`, and `INSERT` if there is none, without a unique constraint."""
    numbers: dict[str, str] = {}

    @replace(Plugin)
    def open(old, self, namespace):
        if "shared" not in namespace:
            return old(self, namespace)
        storage = old(self, "numbers")
        if namespace not in numbers:
            found = bytes_or_none(storage, namespace)
            time.sleep(0.002)
            numbers[namespace] = (found or str(os.getpid()).encode()).decode()
            storage.write(namespace, numbers[namespace].encode())
        return old(self, f"{namespace} {numbers[namespace]}")


@caught_by("test_another_process_and_a_running_bot_see_the_same", outlives_process=True)
def a_process_that_has_changed_much_replaces_the_file(Storage, Plugin):
    """By a compact one. A bot that runs goes on with the old one, which has no name any more."""
    know_plugin(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        changed = self.plugin.__dict__["changed"] = self.plugin.__dict__.get("changed", 0) + 1
        if changed == 80 and "second_process" in sys.argv[0]:
            path = self.plugin._path
            self.plugin.run("VACUUM INTO ?", f"{path}.new")
            os.replace(f"{path}.new", path)
            for ending in ["-wal", "-shm"]:
                Path(f"{path}{ending}").unlink(missing_ok=True)
            self.plugin._idle.clear()


@caught_by("test_processes_that_remove_one_key_succeed_once", outlives_process=True)
def a_lock_is_in_the_folder_for_temporary_files(Storage, Plugin):
    """It binds only processes with the same folder, and a service often has its own."""
    remove_under_a_lock(Storage, make_folder=True)
