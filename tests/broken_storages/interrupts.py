"""Storages that handle only Exception, which KeyboardInterrupt is not."""

import threading
import time
from contextlib import suppress
from functools import wraps

from broken_storages.support import caught_by, lock_for_forks, lock_operations, replace

REPLACING = lock_for_forks()


@caught_by("test_after_an_interrupt_nobody_gets_a_wrong_value", alone=True)
def an_interrupt_leaves_an_answer_unread(Storage, Plugin):
    """The connection is returned in a `finally`, whether its answer was read or not."""

    @replace(Storage)
    def get(old, self, key):
        answers = self.__dict__.setdefault("connections", []) or [[]]
        answers = answers.pop()
        try:
            answers.append((key, old(self, key)))
            if len(key) < 10:
                time.sleep(0.0002)  # It is on its way.
            asked, value = answers.pop(0)
            return value
        except Exception:
            answers.clear()
            raise
        finally:
            self.connections.append(answers)


@caught_by("test_after_interrupts_the_storage_works_for_all_threads")
def an_interrupt_keeps_the_lock(Storage, Plugin):
    """The lock is released after an Exception, but not after a KeyboardInterrupt."""

    def locked(old):
        @wraps(old)
        def method(self, *arguments):
            lock = self.__dict__.setdefault("lock", threading.Lock())
            lock.acquire()
            try:
                result = old(self, *arguments)
            except Exception:
                lock.release()
                raise
            lock.release()
            return result

        return method

    for name in ["get", "set", "remove", "len"]:
        setattr(Storage, name, locked(getattr(Storage, name)))


@caught_by("test_after_interrupts_the_storage_works_for_all_threads", alone=True)
def an_interrupt_costs_a_place_in_the_pool(Storage, Plugin):
    """Each interrupted `set` takes a connection out of the pool for good."""

    @replace(Storage)
    def set(old, self, key, value):
        if len(self._dump(key, value)) > 100_000:  # Large values have a connection of their own.
            return old(self, key, value)
        pool = self.__dict__.setdefault("pool", [None] * 12)
        if not pool:
            raise RuntimeError("All connections are in use.")
        connection = pool.pop()
        try:
            old(self, key, value)
        except Exception:
            pool.append(connection)
            raise
        return pool.append(connection)


@caught_by("test_an_interrupted_set_leaves_the_old_or_the_new_value", alone=True)
def a_set_removes_first_under_a_lock(Storage, Plugin):
    """Nobody sees that the key is missing, unless `set` is interrupted at that moment."""

    remove = Storage.remove

    @replace(Storage)
    def write(old, self, key, data):
        if len(data) < 1_000_000:
            with suppress(KeyError):
                remove(self, key)
                time.sleep(0.0001)
        old(self, key, data)

    lock_operations(Storage, lambda _: REPLACING)
    keys = Storage.keys

    def keys_at_once(self):
        with REPLACING:
            return iter(list(keys(self)))

    Storage.keys = keys_at_once


@caught_by("test_an_interrupt_ends_the_operation", alone=True)
def what_was_interrupted_is_retried(Storage, Plugin):
    """`get` is retried after any error, and `except:` also catches KeyboardInterrupt."""

    @replace(Storage)
    def get(old, self, key):
        for _ in range(2):
            try:
                time.sleep(0.0002)  # It is on its way.
                return old(self, key)
            except:  # noqa: E722
                continue
        return old(self, key)


@caught_by("test_after_an_interrupted_remove_or_listing_the_next_one_works", alone=True)
def an_interrupt_keeps_the_lock_of_remove(Storage, Plugin):
    """`remove` alone needs two statements, and so a lock, which only an Exception releases."""
    removing = lock_for_forks(threading.Lock)

    @replace(Storage)
    def remove(old, self, key):
        removing.acquire()
        try:
            time.sleep(0.0001)
            old(self, key)
        except Exception:
            removing.release()
            raise
        removing.release()


@caught_by("test_after_an_interrupted_set_of_a_large_value_the_next_one_is_stored", alone=True)
def an_interrupt_leaves_a_transaction_open(Storage, Plugin):
    """Large values need a transaction, which only an Exception rolls back."""

    @replace(Storage)
    def write(old, self, key, data):
        of_thread = self.__dict__.setdefault("connection", threading.local())
        open = of_thread.__dict__.setdefault("open", [])
        if len(data) < 1_000_000:
            if not open:  # Otherwise it is part of the transaction, which nobody commits.
                old(self, key, data)
            return
        open.append(key)
        try:
            time.sleep(0.001)
            old(self, key, data)
        except Exception:
            open.clear()
            raise
        open.clear()


@caught_by("test_after_an_interrupted_remove_or_listing_the_next_one_works")
def an_interrupt_keeps_the_lock_of_keys(Storage, Plugin):
    """`keys` copies the index under a lock, which only an Exception releases."""
    listing = lock_for_forks(threading.Lock)

    @replace(Storage)
    def keys(old, self):
        listing.acquire()
        try:
            time.sleep(0.0001)
            names = list(old(self))
        except Exception:
            listing.release()
            raise
        listing.release()
        return iter(names)


@caught_by("test_an_interrupted_set_of_a_new_key_leaves_it_listed_or_missing", alone=True)
def a_new_key_is_added_to_the_list_afterwards(Storage, Plugin):
    """First the value, then the list of keys: between the two, the key is not listed."""

    @replace(Storage)
    def write(old, self, key, data):
        if "known" not in self.__dict__:
            self.__dict__["known"] = set(self.keys())
        known = self.__dict__["known"]
        old(self, key, data)
        if key not in known:
            self.__dict__["unlisted"] = key
            time.sleep(0.0002)
            self.__dict__["unlisted"] = None
            known.add(key)

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.__dict__.get("known", set()).discard(key)

    @replace(Storage)
    def keys(old, self):
        return (key for key in old(self) if key != self.__dict__.get("unlisted"))
