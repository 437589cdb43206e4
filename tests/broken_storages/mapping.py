"""Storages that do not work as the mapping that plugins use."""

import threading
from functools import wraps

from broken_storages.support import caught_by, replace


@caught_by("test_a_storage_serves_as_a_mapping", alone=True)
def the_last_miss_is_remembered(Storage, Plugin):
    """`in` is a complete `get`, followed by another one, so the last miss is cached until then."""
    last = "_key_of_the_last_miss"

    @replace(Storage)
    def get(old, self, key):
        if self.__dict__.pop(last, None) == key:
            raise KeyError(key)
        try:
            return old(self, key)
        except KeyError:
            setattr(self, last, key)
            raise

    def forgetting(old):
        @wraps(old)
        def method(self, *arguments):
            if self.__dict__.get(last) not in arguments[:1]:
                self.__dict__.pop(last, None)
            return old(self, *arguments)

        return method

    for name in ["set", "remove", "len", "keys"]:
        setattr(Storage, name, forgetting(getattr(Storage, name)))


@caught_by("test_clear_empties_the_namespace", alone=True)
def a_loop_that_is_left_keeps_its_cursor(Storage, Plugin):
    """A cursor is closed only at the end of its rows, and the server allows 900 of them."""

    @replace(Storage)
    def keys(old, self):
        if threading.current_thread() is not threading.main_thread():  # which has a pool
            yield from old(self)
            return
        cursors = self.__dict__.setdefault("cursors", [])
        if len(cursors) >= 900:
            raise RuntimeError("maximum open cursors exceeded")
        cursors.append(None)
        yield from old(self)
        cursors.pop()


@caught_by("test_mutable_saves_what_was_changed", alone=True)
def an_object_that_was_got_is_not_written_again(Storage, Plugin):
    """`set` skips the work if it gets the same object that `get` returned last."""

    @replace(Storage)
    def get(old, self, key):
        value = old(self, key)
        if isinstance(value, list):
            self.last = value
        return value

    @replace(Storage)
    def set(old, self, key, value):
        if not (isinstance(value, list) and getattr(self, "last", None) is value):
            old(self, key, value)
