"""Storages that are not found, do not remove, or never return."""

import heapq
import threading

from broken_storages.support import caught_by, lock_for_forks, replace, value_or_none


@caught_by("test_errbot_finds_the_storage_plugin", alone=True)
def open_gives_a_proxy(Storage, Plugin):
    """A wrapper that retries after errors, and is not a StorageBase."""

    class Retrying:
        def __init__(self, storage):
            self.__dict__["storage"] = storage

        def __getattr__(self, name):
            return getattr(self.storage, name)

        def __setattr__(self, name, value):
            setattr(self.storage, name, value)

        def __delattr__(self, name):
            delattr(self.storage, name)

    @replace(Plugin)
    def open(old, self, namespace):
        return Retrying(old(self, namespace))


@caught_by("test_an_empty_storage_counts_as_open", alone=True)
def the_storage_defines_len(Storage, Plugin):
    """It looks Pythonic, but makes an empty storage false."""
    Storage.__len__ = lambda self: self.len()


@caught_by("test_an_empty_storage_counts_as_open")
def the_storage_is_true_once_it_was_used(Storage, Plugin):
    """`__bool__` says whether there is a connection, which the first operation makes."""

    @replace(Storage)
    def set(old, self, key, value):
        self.connected = True
        old(self, key, value)

    Storage.__bool__ = lambda self: getattr(self, "connected", False)


@caught_by("test_no_operation_waits_for_ever", alone=True)
def a_loop_over_the_keys_locks_itself_out(Storage, Plugin):
    """`with self._lock: yield from rows`, with a lock that is not reentrant."""
    lock = lock_for_forks(threading.Lock)

    @replace(Storage)
    def keys(old, self):
        with lock:
            yield from old(self)

    @replace(Storage)
    def get(old, self, key):
        with lock:
            return old(self, key)


@caught_by("test_no_operation_waits_for_ever")
def a_get_that_misses_keeps_its_lock(Storage, Plugin):
    """`acquire` and `release`, but an error between them skips the release."""
    lock = threading.Lock()

    @replace(Storage)
    def get(old, self, key):
        lock.acquire()
        value = old(self, key)
        lock.release()
        return value


@caught_by("test_a_removed_key_is_gone_and_can_be_set_again", alone=True)
def a_removed_value_comes_back(Storage, Plugin):
    """ON CONFLICT DO UPDATE SET deleted = FALSE, without the new value."""

    @replace(Storage)
    def remove(old, self, key):
        value = value_or_none(self, key)
        old(self, key)
        if type(value) is str:  # in a column of their own
            self.__dict__.setdefault("removed", {})[key] = value

    @replace(Storage)
    def set(old, self, key, value):
        removed = self.__dict__.get("removed", {}).pop(key, value)
        old(self, key, removed if type(value) is str else value)


@caught_by("test_a_loop_over_the_keys_ends", alone=True)
def keys_start_again_after_the_empty_key(Storage, Plugin):
    """`if last:` distinguishes the first page from later ones, but the last key may be empty."""

    @replace(Storage)
    def keys(old, self):
        last = ""
        while page := heapq.nsmallest(500, (key for key in old(self) if not last or key > last)):
            yield from page
            last = page[-1]


@caught_by("test_an_empty_storage_counts_as_open")
def the_storage_is_true_while_it_works(Storage, Plugin):
    """`__bool__` says whether the last `get` has worked."""

    @replace(Storage)
    def get(old, self, key):
        self.works = False
        value = old(self, key)
        self.works = True
        return value

    Storage.__bool__ = lambda self: getattr(self, "works", True)
