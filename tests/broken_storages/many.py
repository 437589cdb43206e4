"""Storages that get slower or larger with everything that was ever done in them."""

import hashlib
import itertools
import os
import queue
import sqlite3
import threading
import time
from collections import Counter, deque
from contextlib import closing
from pathlib import Path
from typing import Any

from errbot.storage import StoreException

from broken_storages.support import (
    bytes_or_none,
    caught_by,
    change_statement,
    know_place,
    know_plugin,
    private,
    replace,
)


@caught_by("test_an_error_that_was_handled_keeps_nothing_in_memory", alone=True)
def the_last_errors_are_kept(Storage, Plugin):
    """For a page that shows how the storage does. They lead to all that their callers held."""
    errors: Any = deque(maxlen=20)

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except StoreException as error:
            errors.append(error)
            raise


@caught_by("test_the_way_to_the_next_key_does_not_get_longer", alone=True)
def each_page_is_a_generator_inside_of_the_one_before(Storage, Plugin):
    """A page is yielded, and then, by recursion, those that follow it."""

    def page(rows, start):
        yield from rows[start : start + 200]
        if start + 200 < len(rows):
            yield from page(rows, start + 200)

    @replace(Storage)
    def keys(old, self):
        return page(list(old(self)), 0)


@caught_by("test_the_first_key_is_cheap_whatever_was_removed_before", alone=True)
def removed_keys_are_gone_through(Storage, Plugin):
    """A removed row is only marked, and each listing steps over all marked rows."""

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.__dict__.setdefault("marked", []).append(None)

    @replace(Storage)
    def keys(old, self):
        for _ in self.__dict__.get("marked", []):
            pass
        yield from old(self)


@caught_by("test_a_hundred_thousand_keys_are_all_there", thorough=True, alone=True)
def keys_gives_the_first_fifty_thousand(Storage, Plugin):
    """A limit of rows that supposedly nobody reaches."""

    @replace(Storage)
    def keys(old, self):
        return itertools.islice(old(self), 50_000)


@caught_by("test_a_key_can_be_set_any_number_of_times", alone=True)
def get_goes_through_all_that_was_set(Storage, Plugin):
    """A log of the changes of each key, from which `get` computes the current state."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        changes = self.__dict__.setdefault("changes", {})
        changes[key] = changes.get(key, 0) + 1

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.__dict__.get("changes", {}).pop(key, None)

    @replace(Storage)
    def get(old, self, key):
        for _ in range(self.__dict__.get("changes", {}).get(key, 0)):
            pass
        return old(self, key)


@caught_by("test_a_key_can_be_set_any_number_of_times")
def a_loop_ends_when_its_revision_is_compacted(Storage, Plugin):
    """A loop reads the revision at which it began, which the server keeps for 25,000 changes."""
    revisions = itertools.count()
    newest = [0]

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        newest[0] = next(revisions)

    @replace(Storage)
    def keys(old, self):
        began = newest[0]
        for number, key in enumerate(old(self)):
            if number > 1_000 and newest[0] - began > 25_000:
                raise StoreException("The required revision has been compacted.")
            yield key


@caught_by("test_a_key_can_be_set_any_number_of_times")
def numbers_of_rows_run_out(Storage, Plugin):
    """`INSERT … ON DUPLICATE KEY` takes a number also for an update, and there are 65,535."""
    numbers = itertools.count(1)
    last: dict[str, str] = {}

    @replace(Storage)
    def write(old, self, key, data):
        if next(numbers) > 65_535 and bytes_or_none(self, key) is None:
            key = last.setdefault(self._namespace, key)
        old(self, key, data)


@caught_by("test_a_key_can_be_set_any_number_of_times")
def versions_have_sixteen_bits(Storage, Plugin):
    """Each value has a version, in a column for small integers."""

    @replace(Storage)
    def set(old, self, key, value):
        versions = self.__dict__.setdefault("versions", {})
        versions[key] = versions.get(key, 0) + 1
        if versions[key] > 65_535:
            raise RuntimeError("smallint out of range")
        old(self, key, value)


@caught_by("test_what_is_replaced_removed_or_missed_takes_no_memory", alone=True)
def all_that_was_set_is_kept_in_memory(Storage, Plugin):
    """A history for undo."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        if len(data := self._dump(key, value)) < 1_000_000:
            self.__dict__.setdefault("history", []).append(data)


@caught_by("test_what_is_replaced_removed_or_missed_takes_no_memory")
def all_that_was_missed_is_kept_in_memory(Storage, Plugin):
    """Each key that someone asked for is remembered, to see which ones are requested in vain."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except KeyError:
            self.__dict__.setdefault("asked", []).append(f"{key} ")
            raise


@caught_by("test_what_is_replaced_or_removed_takes_no_space_on_the_disk", outlives_process=True)
def keys_after_the_first_page_are_streamed(Storage, Plugin):
    """By a transaction, so they are consistent. Until the loop goes on, the log grows."""

    @replace(Storage)
    def keys(old, self):
        loop = old(self)
        yield from itertools.islice(loop, 1_000)
        with closing(self._run.__self__._connect()) as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM errbot").fetchone()
            yield from loop


@caught_by("test_what_is_replaced_or_removed_takes_no_space_on_the_disk", alone=True)
def a_journal_is_never_cut(Storage, Plugin):
    """Each change is appended to a file that is never shortened."""
    know_place(Plugin)

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        path = os.path.join(self.place[0], "journal")
        with open(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab") as journal:
            journal.write(self._dump(key, value))


@caught_by("test_what_is_replaced_or_removed_takes_no_space_on_the_disk")
def each_key_leaves_an_empty_file(Storage, Plugin):
    """Its lock: who removes it may remove one that another process has just taken."""
    know_place(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        digest = hashlib.sha256(f"{self.place[1]}/{key}".encode(errors="replace")).hexdigest()
        path = os.path.join(self.place[0], f"{digest}.lock")
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


@caught_by("test_a_hundred_thousand_keys_are_all_there", thorough=True)
def removed_keys_stop_the_listing(Storage, Plugin):
    """A query that meets 100,000 removed rows is stopped, as in Cassandra."""

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.removed = self.__dict__.get("removed", 0) + 1

    @replace(Storage)
    def keys(old, self):
        if self.__dict__.get("removed", 0) > 100_000:
            raise RuntimeError("Scanned over 100,001 tombstones.")
        return old(self)


@caught_by("test_what_is_replaced_removed_or_missed_takes_no_memory")
def every_key_has_a_lock_for_ever(Storage, Plugin):
    """A lock for each key, which `remove` keeps."""

    @replace(Storage)
    def set(old, self, key, value):
        with self.__dict__.setdefault("locks", {}).setdefault(key, threading.RLock()):
            old(self, key, value)


@caught_by("test_what_is_replaced_removed_or_missed_takes_no_memory")
def each_thread_has_a_buffer(Storage, Plugin):
    """A dict by thread, from which nobody removes those that have ended."""
    numbers = itertools.count()

    @replace(Storage)
    def write(old, self, key, data):
        buffers = self.__dict__.setdefault("buffers", {})
        thread: Any = threading.current_thread()
        if not hasattr(thread, "number"):
            thread.number = next(numbers)
        buffers[thread.number] = bytes(data)
        old(self, key, data)


@caught_by("test_what_is_replaced_or_removed_takes_no_space_on_the_disk")
def every_change_is_noted_for_ever(Storage, Plugin):
    """An audit log: who changed what. Nobody shortens it."""
    know_place(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        with open(Path(self.place[0], "changes.log"), "a", opener=private) as file:
            file.write(f"{len(key)} {ascii(key)} {time.time()}\n")


@caught_by("test_what_is_replaced_or_removed_takes_no_space_on_the_disk")
def removed_keys_are_only_marked(Storage, Plugin):
    """So that they can be restored. Nobody removes the marks."""
    know_place(Plugin)

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        with open(Path(self.place[0], "removed.txt"), "a", opener=private) as file:
            file.write(f"{ascii(key)}\n")


@caught_by("test_large_values_that_are_replaced_leave_memory_at_once", alone=True)
def a_retry_calls_itself(Storage, Plugin):
    """A function within `write` calls itself by its name: a cycle, which holds the data."""

    @replace(Storage)
    def write(old, self, key, data):
        def attempt(left):
            try:
                old(self, key, data)
            except OSError:
                if not left:
                    raise
                attempt(left - 1)

        attempt(3)


@caught_by("test_large_values_that_are_replaced_leave_memory_at_once")
def what_was_replaced_is_kept_by_a_library(Storage, Plugin):
    """A history in a database in memory, where Python does not count the bytes."""

    @replace(Storage)
    def write(old, self, key, data):
        if len(data) > 1_000_000:
            if "history" not in self.__dict__:
                self.history = sqlite3.connect(":memory:", check_same_thread=False)
                self.history.execute("CREATE TABLE history (data)")
            with self.history:
                self.history.execute("INSERT INTO history VALUES (?)", [bytes(data)])
        old(self, key, data)


@caught_by("test_what_is_replaced_removed_or_missed_takes_no_memory")
def each_error_is_kept_for_a_report(Storage, Plugin):
    """Its traceback keeps the value that could not be set."""
    errors: list[Exception] = []

    @replace(Storage)
    def _dump(old, self, key, value):
        try:
            return old(self, key, value)
        except Exception:
            errors.append(RuntimeError(key, value))
            raise


@caught_by("test_loops_that_were_left_leave_nothing_behind", alone=True)
def loops_are_remembered(Storage, Plugin):
    """So that `close` can end all that still run."""

    @replace(Storage)
    def keys(old, self):
        loop = old(self)
        self.__dict__.setdefault("loops", []).append(loop)
        return loop

    @replace(Storage)
    def close(old, self):
        vars(self).pop("loops", None)
        old(self)


@caught_by("test_loops_that_were_left_leave_nothing_behind", alone=True)
def a_thread_reads_ahead_for_each_long_loop(Storage, Plugin):
    """It waits until somebody takes the next page, also if the loop was left."""

    @replace(Storage)
    def keys(old, self):
        names = list(old(self))
        yield from names[:500]
        pages: queue.Queue[list[str]] = queue.Queue(maxsize=1)

        def read_ahead():
            for start in range(500, len(names), 500):
                pages.put(names[start : start + 500])
            pages.put([])

        if len(names) > 1_500:
            threading.Thread(target=read_ahead, daemon=True).start()
            while page := pages.get():
                yield from page
        else:
            yield from names[500:]


@caught_by("test_loops_that_were_left_leave_nothing_behind", outlives_process=True)
def a_long_loop_has_a_connection_of_its_own(Storage, Plugin):
    """After the first page, which `close` closes if the loop was left."""
    know_plugin(Plugin)

    @replace(Storage)
    def keys(old, self):
        for number, key in enumerate(old(self)):
            if number == 1_500:
                self.__dict__.setdefault("connections", []).append(self.plugin._connect())
            yield key


@caught_by("test_any_number_of_operations_may_fail", alone=True)
def unreadable_values_open_the_circuit(Storage, Plugin):
    """After 40 errors, it waits a minute, but no database has failed."""

    @replace(Storage)
    def get(old, self, key):
        if self.__dict__.get("errors", 0) > 40:
            raise StoreException("There were too many errors.")
        try:
            return old(self, key)
        except StoreException:
            self.errors = self.__dict__.get("errors", 0) + 1
            raise


@caught_by("test_any_number_of_operations_may_fail")
def a_wrong_key_takes_a_permit(Storage, Plugin):
    """The pool lends 64 permits, and the key is encoded outside of the `try`."""

    @replace(Storage)
    def get(old, self, key):
        permits = self.__dict__.setdefault("permits", threading.BoundedSemaphore(64))
        if not permits.acquire(timeout=5):
            raise StoreException("The pool is empty.")
        key.encode()
        try:
            return old(self, key)
        finally:
            permits.release()


@caught_by("test_what_is_replaced_removed_or_missed_takes_no_memory")
def errors_of_unreadable_values_are_kept(Storage, Plugin):
    """For a report. But an error keeps its frames, with the value."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException:
            self.__dict__.setdefault("reports", []).append(data)
            raise


@caught_by("test_other_keys_cost_an_operation_nothing", alone=True)
def a_key_is_looked_for_among_all_others(Storage, Plugin):
    """The column has no index, or the namespace is one document."""

    @replace(Storage)
    def read(old, self, key):
        if key not in frozenset(self.keys()):
            raise KeyError(key)
        return old(self, key)


@caught_by("test_what_is_replaced_removed_or_missed_takes_no_memory", alone=True)
def the_time_of_each_operation_is_kept(Storage, Plugin):
    """For statistics: a few bytes each, for ever."""
    took = []

    @replace(Storage)
    def read(old, self, key):
        start = time.perf_counter()
        try:
            return old(self, key)
        finally:
            took.append(time.perf_counter() - start)


@caught_by("test_what_was_read_leaves_memory", alone=True, outlives_process=True)
def pages_that_were_read_stay_in_memory(Storage, Plugin):
    """The client's cache may hold some GB."""

    @replace(Plugin)
    def _connect(old, self):
        connection = old(self)
        connection.execute("PRAGMA cache_size = -4000000")
        return connection


@caught_by(
    "test_what_is_replaced_or_removed_takes_no_space_on_the_disk", alone=True, outlives_process=True
)
def each_change_is_recorded(Storage, Plugin):
    """When a key was changed, in a table that nobody empties. It holds no keys and no values."""

    @replace(Plugin)
    def _connect(old, self):
        connection = old(self)
        connection.executescript("CREATE TABLE IF NOT EXISTS changes (at, what)")
        for what in ["INSERT", "UPDATE", "DELETE"]:
            connection.executescript(
                f"""CREATE TRIGGER IF NOT EXISTS after_{what} AFTER {what} ON errbot BEGIN
                INSERT INTO changes VALUES (CURRENT_TIMESTAMP, '{what}'); END;"""
            )
        return connection


@caught_by(
    "test_what_is_replaced_or_removed_takes_no_space_on_the_disk", alone=True, outlives_process=True
)
def a_cursor_of_the_start_is_kept(Storage, Plugin):
    """It has not read all rows, so SQLite keeps everything that was written since."""
    finish = Plugin.__del__

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.connection = self._connect()
        self.cursor = self.connection.execute("SELECT namespace, key FROM errbot")
        self.cursor.fetchone()

    def __del__(self):
        finish(self)
        if (connection := vars(self).pop("connection", None)) and os.getpid() == self._process:
            connection.close()

    Plugin.__del__ = __del__


MEMORY = "test_what_is_replaced_removed_or_missed_takes_no_memory"


@caught_by(MEMORY)
def a_free_place_is_used_again_only_for_the_same_size(Storage, Plugin):
    """Free places are neither divided nor joined, so a value that grows leaves one of each size."""

    @replace(Storage)
    def write(old, self, key, data):
        previous = bytes_or_none(self, key)
        free = self.__dict__.setdefault("free", {})
        if places := free.get(len(data)):
            places.pop()
        old(self, key, data)
        if previous:
            free.setdefault(len(previous), []).append(bytearray(previous))


@caught_by(MEMORY)
def a_value_that_is_set_again_is_counted_again(Storage, Plugin):
    """Equal values are stored once, until nobody refers to them."""
    counts: dict[bytes, int] = {}

    @replace(Storage)
    def write(old, self, key, data):
        previous = bytes_or_none(self, key)
        old(self, key, data)
        counts[data] = counts.get(data, 0) + 1
        if previous is not None and previous != data and previous in counts:
            counts[previous] -= 1
            if not counts[previous]:
                del counts[previous]


@caught_by("test_any_number_of_operations_may_fail")
def a_missed_removal_keeps_its_place_in_the_queue(Storage, Plugin):
    """At most a thousand threads remove at the same time, but a KeyError leaves the queue full."""

    @replace(Storage)
    def remove(old, self, key):
        left = self.__dict__.setdefault("left", [None] * 1_000)
        place = left.pop() if left else None
        old(self, key)
        left.append(place)

    @replace(Storage)
    def write(old, self, key, data):
        if not self.__dict__.get("left", [None]):
            raise StoreException("The queue is full.")
        old(self, key, data)


@caught_by("test_many_keys_make_the_database_do_no_more", alone=True, outlives_process=True)
def the_index_begins_with_the_key(Storage, Plugin):
    """The most selective column first: `len` and `keys` then go through the keys of everybody."""
    change_statement(Plugin, "CREATE", "KEY (namespace, key)", "KEY (key, namespace)")


@caught_by("test_many_keys_make_the_database_do_no_more", outlives_process=True)
def no_index_is_used_for_a_text_that_is_put_together(Storage, Plugin):
    """A condition on an expression, so each `get` goes through all keys of its namespace."""
    change_statement(Plugin, "READ", "key = ?", "key || '' = ?")


@caught_by("test_what_is_replaced_removed_or_missed_takes_no_memory")
def operations_are_counted_by_thread(Storage, Plugin):
    """To see who makes the bot slow. But each webhook that comes in has a thread of its own."""
    numbers: Counter[tuple[str, str]] = Counter()

    @replace(Storage)
    def write(old, self, key, data):
        numbers[threading.current_thread().name, "write"] += 1
        old(self, key, data)

    @replace(Storage)
    def read(old, self, key):
        numbers[threading.current_thread().name, "read"] += 1
        return old(self, key)
