"""Storages that Errbot does not find or cannot open, and those that wait for ever."""

import threading

from broken_storages.support import caught_by, replace


@caught_by("test_errbot_finds_the_storage_plugin", alone=True)
def open_gives_a_proxy(Storage, Plugin):
    """A wrapper that tries again after errors, and is no StorageBase."""

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
    """It looks Pythonic, and makes an empty storage false."""
    Storage.__len__ = lambda self: self.len()


@caught_by("test_an_empty_storage_counts_as_open")
def the_storage_is_true_once_it_was_used(Storage, Plugin):
    """`__bool__` says whether there is a connection, which is made by the first operation."""

    @replace(Storage)
    def set(old, self, key, value):
        self.connected = True
        old(self, key, value)

    Storage.__bool__ = lambda self: getattr(self, "connected", False)


@caught_by("test_no_operation_waits_for_ever", alone=True)
def a_loop_over_the_keys_locks_itself_out(Storage, Plugin):
    """`with self._lock: yield from rows`, with a lock that one thread cannot take twice."""
    lock = threading.Lock()

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
    """`acquire` and `release`, and nothing that releases when an error comes between them."""
    lock = threading.Lock()

    @replace(Storage)
    def get(old, self, key):
        lock.acquire()
        value = old(self, key)
        lock.release()
        return value
