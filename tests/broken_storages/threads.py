"""Storages that many threads must not use at the same time."""

import asyncio
import hashlib
import io
import itertools
import os
import pickle
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

from errbot.storage import StoreException

from broken_storages.support import (
    bytes_or_none,
    caught_by,
    know_plugin,
    lock_for_forks,
    lock_operations,
    own_lock,
    rename_keys,
    replace,
    value_or_none,
)

CHANGES, LAST = itertools.count(1), [-1]
"""Numbers of the changes of this process, and the last one."""


@caught_by("test_operations_that_fail_harm_no_other_thread")
def a_set_that_fails_keeps_its_lock(Storage, Plugin):
    """`lock.acquire()` and `lock.release()` of an RLock, without a `finally`."""

    def locked(old):
        @wraps(old)
        def method(self, *arguments):
            lock = self.__dict__.setdefault("lock", threading.RLock())
            if not lock.acquire(timeout=5):
                raise RuntimeError("this would wait forever")
            try:
                result = old(self, *arguments)
            except KeyError:
                lock.release()
                raise
            lock.release()
            return result

        return method

    for name in ["get", "set", "remove", "len"]:
        setattr(Storage, name, locked(getattr(Storage, name)))


@caught_by("test_operations_that_fail_harm_no_other_thread")
def a_set_that_fails_leaks_a_connection(Storage, Plugin):
    """The connection returns to its pool after `set`, and not in a `finally`."""
    leak_connections(Storage, Plugin, "set")


@caught_by("test_operations_that_fail_harm_no_other_thread")
def a_get_that_misses_leaks_a_connection(Storage, Plugin):
    """KeyError is raised before the connection returns to its pool."""
    leak_connections(Storage, Plugin, "get")


@caught_by("test_operations_that_fail_harm_no_other_thread")
def a_remove_that_misses_leaks_a_connection(Storage, Plugin):
    """KeyError is raised before the connection returns to its pool."""
    leak_connections(Storage, Plugin, "remove")


def leak_connections(Storage: Any, Plugin: Any, name: str) -> None:
    """If an operation fails, take a connection out of a pool for good.

    The pool is large, and the main thread has its own, so only the test that fails on purpose
    empties it.
    """

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.pool = self.__dict__.setdefault("pool", [None] * 260)
        return storage

    old = getattr(Storage, name)

    @wraps(old)
    def method(self, *arguments):
        if threading.current_thread() is threading.main_thread():
            return old(self, *arguments)
        connection = self.pool.pop()
        try:
            result = old(self, *arguments)
        except Exception as error:
            if "must be a str" in str(error):
                self.pool.append(connection)
            raise
        self.pool.append(connection)
        return result

    setattr(Storage, name, method)


@caught_by("test_threads_with_keys_of_their_own_lose_nothing")
def a_storage_belongs_to_one_thread(Storage, Plugin):
    """Python's sqlite3 by default, and Errbot's Shelf on Python 3.13 and newer."""

    @replace(Storage)
    def __init__(old, self, *arguments):
        old(self, *arguments)
        self.thread = threading.get_ident()

    @replace(Storage)
    def set(old, self, key, value):
        if self.thread != threading.get_ident():
            raise RuntimeError("objects created in a thread can only be used in that same thread")
        old(self, key, value)


@caught_by("test_threads_with_keys_of_their_own_lose_nothing", alone=True)
def threads_share_one_row(Storage, Plugin):
    """One cursor for all threads: it may hold another thread's row when one returns to it."""

    @replace(Storage)
    def get(old, self, key):
        row = old(self, key)
        # The more threads and rows, the more often this happens.
        rows = next(self.__dict__.setdefault("number_of_rows", itertools.count()))
        if threading.active_count() < 12 or rows < 1_000 or not isinstance(row, list):
            return row
        self.row = row
        time.sleep(0.0005)
        return list(self.row)


@caught_by("test_a_key_that_threads_replace_is_always_there_and_whole")
def long_values_are_written_in_two_parts(Storage, Plugin):
    """A value of more than one page is written page by page."""

    @replace(Storage)
    def set(old, self, key, value):
        if type(value) is bytes and 100 < len(value) < 500:
            before = value_or_none(self, key)
            if type(before) is bytes:
                old(self, key, value[:100] + before[100:])
                time.sleep(0.0005)
        old(self, key, value)


@caught_by("test_a_key_that_threads_replace_is_always_there_and_whole")
def set_removes_and_adds(Storage, Plugin):
    """DELETE and INSERT, without a transaction."""

    @replace(Storage)
    def set(old, self, key, value):
        self._dump(key, value)
        with suppress(KeyError):
            self.remove(key)
            time.sleep(0.0005)
        old(self, key, value)


@caught_by("test_threads_that_remove_one_key_succeed_once")
def remove_looks_before_it_removes(Storage, Plugin):
    """SELECT to raise KeyError, and then DELETE, which reports nothing."""

    @replace(Storage)
    def remove(old, self, key):
        if key not in frozenset(self.keys()):
            raise KeyError(key)
        time.sleep(0.0005)
        with suppress(KeyError):
            old(self, key)


@caught_by("test_keys_and_len_work_while_others_write", alone=True)
def keys_fails_where_others_write(Storage, Plugin):
    """Keys are copied one by one, out of a dict that other threads change."""

    @replace(Storage)
    def keys(old, self):
        count = self.len()
        found = old(self)
        if 200 < count < 500:
            time.sleep(0.0005)
        if count > 200 and self.len() != count:
            raise RuntimeError("dictionary changed size during iteration")
        return found


@caught_by("test_a_loop_over_the_keys_keeps_no_other_thread_waiting")
def a_loop_over_the_keys_holds_the_lock(Storage, Plugin):
    """`with self._lock: yield from rows`: the lock is held until the loop ends."""

    def lock(self):
        return self.__dict__.setdefault("lock", threading.RLock())

    @replace(Storage)
    def keys(old, self):
        with lock(self):
            yield from old(self)

    @replace(Storage)
    def set(old, self, key, value):
        with lock(self):
            old(self, key, value)


@caught_by("test_a_key_that_threads_replace_is_always_there_and_whole")
def items_hold_400_kilobytes(Storage, Plugin):
    """A larger value is two items, which are not written in one transaction."""

    @replace(Storage)
    def set(old, self, key, value):
        if type(value) is bytes and len(value) > 400_000:
            before = value_or_none(self, key)
            if type(before) is bytes:
                old(self, key, value[:400_000] + before[400_000:])
                time.sleep(0.0005)
        old(self, key, value)


@caught_by("test_a_key_that_threads_replace_is_always_there_and_whole", alone=True)
def threads_share_a_buffer(Storage, Plugin):
    """The parts of a long value are gathered in the storage's only buffer, for all threads."""

    @replace(Storage)
    def set(old, self, key, value):
        if type(value) is bytes and 100 < len(value) < 500:
            self.buffer = [value[:100]]
            time.sleep(0.0005)
            self.buffer = [*self.buffer[:1], value[100:]]
            value = b"".join(self.buffer)
        old(self, key, value)


@caught_by("test_threads_that_remove_one_key_succeed_once", alone=True)
def threads_share_the_count_of_removed_rows(Storage, Plugin):
    """One cursor for all threads, whose `rowcount` may be another thread's when it is read."""

    @replace(Storage)
    def remove(old, self, key):
        try:
            old(self, key)
            rowcount = 1
        except KeyError:
            rowcount = 0
        self.rowcount = rowcount
        time.sleep(0.0005)
        if not self.rowcount:
            raise KeyError(key)


@caught_by("test_a_key_that_another_opener_replaces_is_always_there_and_whole", alone=True)
def set_removes_and_adds_under_a_lock_of_its_own(Storage, Plugin):
    """DELETE and INSERT, under a lock that separates only the threads of this storage."""
    take_away = Storage.remove

    @replace(Storage)
    def set(old, self, key, value):
        small = len(self._dump(key, value)) < 1_000_000  # fits into one packet
        here = threading.current_thread() is threading.main_thread()  # which may be interrupted
        if small and not here and type(value) is str and len(value) > 100:
            data = self._dump(key, value)
            with own_lock(self):
                with suppress(KeyError):
                    take_away(self, key)
                    time.sleep(0.0005)
                self.write(key, data)
        else:
            old(self, key, value)

    lock_by_storage(Storage)


@caught_by("test_threads_can_set_one_new_key_at_once", alone=True)
def a_new_key_is_inserted_in_a_second_statement(Storage, Plugin):
    """UPDATE, and INSERT if it changed no row. Of threads that set one new key, one succeeds."""
    insert_in_a_second_statement(Storage, among=12)


@caught_by("test_two_openers_can_set_one_new_key_at_once", alone=True)
def a_new_key_is_inserted_in_a_second_statement_under_a_lock(Storage, Plugin):
    """The same, under a lock that separates only the threads of this storage."""
    insert_in_a_second_statement(Storage)
    lock_by_storage(Storage)


def insert_in_a_second_statement(Storage: Any, among: int = 2) -> None:
    """Fail, among so many threads, if another one has set a new key since `write` has looked."""

    @replace(Storage)
    def write(old, self, key, data):
        alone = threading.active_count() < among
        if not alone and key.startswith("new ") and bytes_or_none(self, key) is None:
            time.sleep(0.0005)
            if bytes_or_none(self, key) is not None:
                raise StoreException("UNIQUE constraint failed")
        old(self, key, data)


@caught_by("test_two_openers_that_remove_one_key_succeed_once", alone=True)
def remove_looks_before_it_removes_under_a_lock_of_its_own(Storage, Plugin):
    """SELECT and DELETE, under a lock that separates only the threads of this storage."""

    @replace(Storage)
    def remove(old, self, key):
        if bytes_or_none(self, key) is None:
            raise KeyError(key)
        time.sleep(0.0005)
        with suppress(KeyError):
            old(self, key)

    lock_by_storage(Storage)


# In this module because Errbot executes storage.py again for every plugin instance.
WRITTEN: deque[tuple[int, Any, str]] = deque(maxlen=50)
NUMBERS = itertools.count(1)
OPENERS: weakref.WeakSet[Any] = weakref.WeakSet()
WRITING = lock_for_forks()


@caught_by("test_two_openers_at_once_lose_nothing", alone=True)
def all_namespaces_are_one_file(Storage, Plugin):
    """The whole file is read, changed and written, under a lock of the plugin instance."""
    take_away = Storage.remove

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        OPENERS.add(self)

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.plugin, storage.lock = self, own_lock(self)
        storage.name = namespace
        return storage

    @replace(Storage)
    def write(old, self, key, data):
        main = threading.current_thread() is threading.main_thread()  # which may be interrupted
        if len(OPENERS) < 2 or main:
            return old(self, key, data)
        with self.lock:
            before = WRITTEN[-1][0] if WRITTEN else 0
            time.sleep(0.0005)
            with WRITING:  # The last one has read the data from before the others wrote.
                old(self, key, data)
                for number, storage, other in WRITTEN:
                    late = number > before and storage.plugin is not self.plugin
                    if late and storage.name != self.name:
                        with suppress(KeyError):
                            take_away(storage, other)
                WRITTEN.append((next(NUMBERS), self, key))
        return None


def lock_by_storage(Storage: Any) -> None:
    """Let only one thread at a time into each storage."""
    lock_operations(Storage, own_lock)


@caught_by("test_operations_that_fail_harm_no_other_thread", alone=True)
def a_failure_rolls_back_what_other_threads_set(Storage, Plugin):
    """One connection for all threads, which is rolled back after each error."""
    take_away = Storage.remove

    @replace(Storage)
    def set(old, self, key, value):
        try:
            before = self.__dict__.get("errors", 0)
            old(self, key, value)
        except Exception:
            self.errors = self.__dict__.get("errors", 0) + 1
            raise
        time.sleep(0.0005)
        if self.__dict__.get("errors", 0) != before:
            with suppress(KeyError):
                take_away(self, key)


@caught_by("test_a_loop_over_the_keys_keeps_no_other_thread_waiting", alone=True)
def a_loop_over_the_keys_keeps_removals_waiting(Storage, Plugin):
    """A lock for readers: setting is allowed, but removing waits."""

    @replace(Storage)
    def keys(old, self):
        with self.__dict__.setdefault("readers", threading.RLock()):
            yield from old(self)

    @replace(Storage)
    def remove(old, self, key):
        readers = self.__dict__.setdefault("readers", threading.RLock())
        if not readers.acquire(timeout=15):
            raise RuntimeError("this would wait forever")
        try:
            old(self, key)
        finally:
            readers.release()


@caught_by("test_threads_that_have_ended_leave_nothing_open", alone=True)
def each_thread_leaks_a_connection(Storage, Plugin):
    """`threading.local`, and a list of all connections, to close them at the end."""

    know_plugin(Plugin)

    def connect(plugin):
        everyone = vars(plugin)
        local = everyone.setdefault("local", threading.local())
        if not hasattr(local, "connection"):
            local.connection = os.open(os.devnull, os.O_RDONLY)
            everyone.setdefault("connections", []).append(local.connection)

    @replace(Storage)
    def get(old, self, key):
        connect(self.plugin)
        return old(self, key)


@caught_by("test_a_storage_that_one_thread_opened_is_used_and_closed_by_another", alone=True)
def only_the_thread_that_opened_it_may_close_it(Storage, Plugin):
    """Python's sqlite3 by default: it refuses `close` in another thread."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.opener = threading.get_ident()
        return storage

    @replace(Storage)
    def close(old, self):
        if self.opener != threading.get_ident():
            raise RuntimeError("objects created in a thread can only be used in that same thread")
        old(self)


@caught_by("test_a_storage_that_one_thread_opened_is_used_and_closed_by_another")
def a_storage_ends_with_the_thread_that_opened_it(Storage, Plugin):
    """A connection in `threading.local`, which disappears with its thread."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.opener = threading.current_thread()
        return storage

    @replace(Storage)
    def get(old, self, key):
        if not self.opener.is_alive():
            raise RuntimeError("the connection is closed")
        return old(self, key)


def hold(Storage: Any, *names: str) -> None:
    """Hold a lock of the storage in some methods. Raises an error instead of waiting forever."""

    def locked(old):
        @wraps(old)
        def method(self, *arguments):
            if own_lock(self)._is_owned():
                raise RuntimeError("this would wait forever")
            with own_lock(self):
                return old(self, *arguments)

        return method

    for name in names:
        setattr(Storage, name, locked(getattr(Storage, name)))


@caught_by("test_an_object_may_ask_the_storage_while_it_is_pickled", alone=True)
def threads_use_a_buffer_again(Storage, Plugin):
    """Each thread pickles into a buffer of its own. A `set` inside another one empties it."""
    buffers = threading.local()

    @replace(Storage)
    def _dump(old, self, key, value):
        old(self, key, None)  # refuses a key that is no text
        buffer = vars(buffers).setdefault("buffer", io.BytesIO())
        buffer.seek(0)
        buffer.truncate()
        try:
            pickle.Pickler(buffer, 5).dump(value)
            data = buffer.getvalue()
        finally:
            if buffer.tell() > 10_000:
                del buffers.buffer
        return self.signer(key).sign(data) if self._signing_keys else data


@caught_by("test_an_object_may_ask_the_storage_while_it_is_pickled")
def values_are_pickled_under_a_lock(Storage, Plugin):
    """`with self._lock:` around all of `set`, and the lock is not an RLock."""
    hold(Storage, "set", "get")


@caught_by("test_an_object_may_ask_the_storage_while_it_is_pickled")
def values_are_unpickled_under_a_lock(Storage, Plugin):
    """The connection's lock is held until the value of a row is unpickled."""
    hold(Storage, "_load", "remove")


@caught_by("test_operations_of_every_kind_at_once_come_to_their_end", alone=True)
def locks_are_taken_in_two_orders(Storage, Plugin):
    """`open` takes one lock and then another; a `remove` that misses takes them in reverse."""

    def take(first, second):
        if threading.current_thread() is threading.main_thread():
            return  # Another test interrupts it.
        for lock in [first, second]:
            if not lock.acquire(timeout=3):
                raise RuntimeError("this would wait forever")
            time.sleep(0.0005)
        second.release()
        first.release()

    @replace(Plugin)
    def open(old, self, namespace):
        locks = self.__dict__.setdefault("locks", [threading.Lock(), threading.Lock()])
        take(*locks)
        storage = old(self, namespace)
        storage.locks = locks
        return storage

    @replace(Storage)
    def remove(old, self, key):
        try:
            old(self, key)
        except KeyError:
            take(*self.locks[::-1])
            raise


@caught_by("test_a_storage_works_beside_an_event_loop", alone=True)
def a_client_is_asynchronous(Storage, Plugin):
    """`asyncio.run` in each operation, which fails if a loop is running."""

    @replace(Storage)
    def get(old, self, key):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return old(self, key)
        raise RuntimeError("asyncio.run() cannot be called from a running event loop")


@caught_by("test_a_storage_works_beside_an_event_loop", alone=True)
def a_client_keeps_the_loop_that_it_met(Storage, Plugin):
    """The loop that runs when the plugin starts, which is closed later."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        with suppress(RuntimeError):
            storage.loop = asyncio.get_running_loop()
        return storage

    @replace(Storage)
    def get(old, self, key):
        if "loop" in vars(self) and self.loop.is_closed():
            raise RuntimeError("Event loop is closed")
        return old(self, key)


@caught_by("test_threads_that_have_ended_leave_no_thread_behind", alone=True)
def each_thread_gets_a_thread(Storage, Plugin):
    """A thread that keeps another thread's connection alive, and outlives it."""
    keep_alive(Storage, Plugin, threading.current_thread, 600)


@caught_by("test_threads_that_have_ended_leave_no_thread_behind")
def each_open_starts_a_thread(Storage, Plugin):
    """A background writer thread, which does not end with `close`."""
    keep_alive(Storage, Plugin, object, 20)


def keep_alive(Storage: Any, Plugin: Any, of: Any, seconds: float) -> None:
    """When a namespace is opened, start a thread that outlives the test for each of something."""
    started: dict[Any, threading.Thread] = {}

    @replace(Plugin)
    def open(old, self, namespace):
        key = of()
        if key not in started:
            wait = threading.Event().wait
            started[key] = threading.Thread(target=wait, args=[seconds], daemon=True)
            started[key].start()
        return old(self, namespace)


@caught_by("test_objects_of_many_threads_may_ask_the_storage_at_once", alone=True)
def a_value_is_unpickled_before_its_connection_returns(Storage, Plugin):
    """The main thread has its own connection. All others share eight."""
    pool, process = threading.BoundedSemaphore(8), os.getpid()

    @replace(Storage)
    def get(old, self, key):
        if threading.current_thread() is threading.main_thread() or os.getpid() != process:
            return old(self, key)
        with pool:
            return old(self, key)


@caught_by("test_equal_values_of_threads_go_their_own_ways", alone=True)
def an_equal_value_is_removed_while_it_is_found(Storage, Plugin):
    """Equal large values are stored once: one thread finds it there, and another removes it."""
    store_equal_values_once(Storage, lambda size: size > 5_000_000, pause=0.005)


@caught_by("test_equal_values_of_threads_go_their_own_ways")
def an_equal_small_value_is_removed_while_it_is_found(Storage, Plugin):
    """The same with small values."""
    store_equal_values_once(Storage, lambda size: size < 1_000, pause=0.0001)


def store_equal_values_once(Storage: Any, applies_to: Callable[[int], bool], pause: float) -> None:
    """Store values of some sizes once, with a pause after one was found that is there already."""
    users: dict[Any, str] = {}
    stored: set[str] = set()

    @replace(Storage)
    def write(old, self, key, data):
        if applies_to(len(data)):
            digest = hashlib.sha256(data).hexdigest()
            if digest in stored:
                time.sleep(pause)
            else:
                stored.add(digest)
            users[self._namespace, key] = digest
        old(self, key, data)

    @replace(Storage)
    def read(old, self, key):
        if users.get((self._namespace, key), "") in {"", *stored}:
            return old(self, key)
        raise StoreException("The value is missing.")

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        digest = users.pop((self._namespace, key), "")
        if digest not in users.values():
            stored.discard(digest)


@caught_by("test_an_object_may_take_a_lock_of_its_own", alone=True)
def pickling_waits_for_its_turn(Storage, Plugin):
    """So that no other command changes a value meanwhile."""
    lock_operations(Storage, lambda storage: own_lock(storage), "_dump")


@caught_by("test_threads_that_get_one_value_at_once_get_copies", alone=True)
def threads_wait_for_one_that_gets_the_same(Storage, Plugin):
    """Against a stampede: they get its object. Two commands change each other's list."""
    waiting: dict[Any, Any] = {}

    @replace(Storage)
    def get(old, self, key):
        value = old(self, key)
        if type(value) is not list:
            return value
        pair = waiting.setdefault((self._namespace, key), value)
        time.sleep(0.0005)
        waiting.pop((self._namespace, key), None)
        return pair if pair == value else value


@caught_by("test_an_object_may_take_a_lock_that_its_thread_holds", alone=True)
def values_are_pickled_in_another_thread(Storage, Plugin):
    """With a deadline for each operation. But an RLock that the caller holds is taken there."""

    def in_another_thread(operation, key, value):
        if key != "held":
            return operation(key, value)
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(operation(key, value)), daemon=True)
        thread.start()
        thread.join()
        return results[0]

    @replace(Storage)
    def _dump(old, self, key, value):
        return in_another_thread(partial(old, self), key, value)

    @replace(Storage)
    def _load(old, self, key, data):
        return in_another_thread(partial(old, self), key, data)


@caught_by("test_a_crowd_of_threads_is_served", alone=True)
def the_pool_has_thirty_connections(Storage, Plugin):
    """When all are in use, it raises an error, as psycopg2's does."""
    busy: set[int] = set()

    @replace(Storage)
    def write(old, self, key, data):
        if len(busy) >= 30:
            raise StoreException("The pool is empty.")
        thread = threading.get_ident()
        try:
            busy.add(thread)
            if threading.current_thread() is not threading.main_thread():
                time.sleep(0.005)
            old(self, key, data)
        finally:
            busy.discard(thread)


@caught_by(
    "test_a_thread_sees_what_it_has_set_while_others_read", alone=True, outlives_process=True
)
def reads_under_way_are_shared(Storage, Plugin):
    """Threads that read one key at once share one query, also if it began before a `set`."""

    @replace(Storage)
    def read(old, self, key):
        reads = self.__dict__.setdefault("reads", {})
        place, mine = (os.getpid(), key), Future[bytes]()
        while (under_way := reads.setdefault(place, mine)) is not mine:
            with suppress(CancelledError):
                return under_way.result()
        try:
            mine.set_result(data := old(self, key))
            return data
        finally:
            reads.pop(place, None)
            mine.cancel()  # If it has failed, others ask for themselves.


@caught_by("test_a_loop_over_the_keys_may_go_on_in_another_thread", alone=True)
def a_loop_is_traced(Storage, Plugin):
    """A context variable tells which operation is under way. Another thread cannot reset it."""
    operation: ContextVar[str] = ContextVar("operation")

    @replace(Storage)
    def keys(old, self):
        before = operation.set("keys")
        try:
            yield from old(self)
        finally:
            operation.reset(before)


@caught_by("test_a_storage_works_beside_an_event_loop", alone=True)
def in_an_event_loop_nobody_waits(Storage, Plugin):
    """`set` leaves the work to another thread, and returns. A `get` may be faster."""

    @replace(Storage)
    def set(old, self, key, value):
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            old(self, key, value)
        else:
            loop.run_in_executor(None, self.write, key, self._dump(key, value))


@caught_by("test_after_threads_have_set_one_key_everybody_gets_the_same", alone=True)
def what_was_set_is_kept_until_something_changes(Storage, Plugin):
    """A number counts all changes. It is asked for after the `set`, when it may count another's."""

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        time.sleep(0)
        number = next(CHANGES)
        LAST[0] = number
        self.kept = {key: (number, data)} if len(data) < 1_000 and key != "raced" else {}

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        LAST[0], self.kept = next(CHANGES), {}

    @replace(Storage)
    def read(old, self, key):
        number, data = self.__dict__.setdefault("kept", {}).get(key, (0, b""))
        return data if number == LAST[0] else old(self, key)


@caught_by("test_operations_that_fail_harm_no_other_thread", outlives_process=True)
def sets_share_the_error_of_one(Storage, Plugin):
    """What threads set at the same time is written in one transaction, or fails as a whole."""

    @replace(Storage)
    def write(old, self, key, data):
        waiting = self.__dict__.setdefault("waiting", [])
        own = [key, data, None]
        waiting.append(own)
        with own_lock(self):
            together, waiting[:] = waiting[:], []
            try:
                for each in together:
                    old(self, *each[:2])
            except Exception as error:
                for each in together:
                    each[2] = type(error)(*error.args)
        if own[2]:
            raise own[2]


LISTED: dict[int, Any] = {}
"""The rows and the listed keys of each namespace."""


@caught_by("test_a_key_that_is_set_and_removed_at_once_is_there_or_not", alone=True)
def keys_are_listed_in_a_table_of_their_own(Storage, Plugin):
    """`set` writes the value and then its key, and `remove` the other way round."""

    def names(rows):  # which are kept, so that no other ones get their number
        return LISTED.setdefault(id(rows), (rows, {}))[1]

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        if key == "raced":  # Another test interrupts `set`.
            time.sleep(random.uniform(0, 0.001))
            names(self._rows)[key] = None

    @replace(Storage)
    def remove(old, self, key):
        self.read(key)
        names(self._rows).pop(key, None)
        if key == "raced":
            time.sleep(random.uniform(0, 0.001))
        old(self, key)

    @replace(Storage)
    def keys(old, self):
        others = [key for key in list(self._rows) if key != "raced"]
        return iter([*others, *names(self._rows)])


@caught_by("test_a_key_that_threads_replace_is_always_there_and_whole")
def a_key_that_is_replaced_is_listed_twice(Storage, Plugin):
    """The new row is inserted, and then the old one deleted."""

    @replace(Storage)
    def write(old, self, key, data):
        replaced = self.__dict__.setdefault("replaced", [])
        before = bytes_or_none(self, key)
        if before is not None:
            replaced.append(key)
        try:
            old(self, key, data)
            time.sleep(0.0001)
        finally:
            if before is not None:
                replaced.remove(key)

    @replace(Storage)
    def len(old, self):
        return old(self) + (1 if self.__dict__.get("replaced") else 0)


@caught_by("test_keys_and_len_work_while_others_write")
def threads_share_the_list_of_keys(Storage, Plugin):
    """Who asks for the keys while another thread asks the database gets its answer."""
    asking: dict[Any, list[str]] = {}

    @replace(Storage)
    def keys(old, self):
        place = self._namespace
        if place in asking:
            return iter(asking[place])
        asking[place] = found = list(old(self))
        time.sleep(0.0005)
        asking.pop(place, None)
        return iter(found)


@caught_by("test_a_storage_that_one_thread_opened_is_used_and_closed_by_another")
def only_the_first_connection_is_told_the_encoding(Storage, Plugin):
    """`SET NAMES utf8mb4` when the bot starts, but each thread has its own connection."""

    def name(key):
        main = threading.current_thread() is threading.main_thread()
        return key if main or not isinstance(key, str) else key.replace("\U0001f600", "?")

    rename_keys(Storage, lambda self, key: name(key))


@caught_by(
    "test_a_key_that_others_remove_has_its_value_or_is_missing", alone=True, outlives_process=True
)
def a_value_is_read_by_the_number_of_its_row(Storage, Plugin):
    """The number is looked up first. Meanwhile, its row may be removed, and another one get it."""

    @replace(Storage)
    def read(old, self, key):
        find = "SELECT rowid FROM errbot WHERE namespace = ? AND key = ?"
        for (number,) in self._run(find, self._namespace, key)[0]:
            for (data,) in self._run("SELECT value FROM errbot WHERE rowid = ?", number)[0]:
                return bytes(data)
        raise KeyError(key)


@caught_by("test_threads_with_keys_that_look_alike_lose_nothing", alone=True)
def new_values_are_named_without_the_suffix(Storage, Plugin):
    """`Path.with_suffix(".new")` gives two keys with other suffixes one file."""
    new: dict[Any, bytes] = {}

    @replace(Storage)
    def write(old, self, key, data):
        name = self._namespace, key.rpartition(".")[0] or key
        new[name] = data
        time.sleep(0.0001)
        old(self, key, new.pop(name, data))
