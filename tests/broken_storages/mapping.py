"""Storages that do not work as the mapping that plugins use."""

import sys
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


@caught_by("test_a_backup_that_errbot_executes_is_restored", alone=True)
def the_module_that_sets_is_recorded(Storage, Plugin):
    """For the audit, as `warnings` finds it: but code that Errbot executes has no `__name__`."""

    @replace(Storage)
    def set(old, self, key, value):
        frame = sys._getframe(2)
        while frame.f_globals.get("__name__") == "errbot.storage" and frame.f_back:
            frame = frame.f_back
        self.changed_by = frame.f_globals["__name__"]
        old(self, key, value)
