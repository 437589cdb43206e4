"""Storages that are each broken in one way, as real authors come to break them.

Each function breaks the Storage and the Plugin of a baked project, by nothing but what every
storage.py has, so that it can be applied to every database. `caught_by` names the tests of the
baked project that must fail for it. test_broken_storages.py runs them.
"""
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=True
# mypy: disallow-untyped-calls=False, disallow-untyped-decorators=False

import atexit
import copy
import dataclasses
import fnmatch
import heapq
import inspect
import io
import itertools
import json
import logging
import os
import pickle
import re
import sys
import threading
import time
import unicodedata
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import wraps
from typing import Any, NamedTuple

from errbot.storage import StoreException

log = logging.getLogger("errbot.storage.storage")


class Broken(NamedTuple):
    """A broken storage, and the tests that must catch it."""

    break_it: Callable[[Any, Any], None]
    caught_by: frozenset[str]
    alone: bool
    """Whether no other test of the contract may catch it: so that this one is needed."""
    outlives_process: bool
    """Whether it can only be seen where the data outlive the process."""


BROKEN: dict[str, Broken] = {}


def caught_by(*tests: str, alone: bool = False, outlives_process: bool = False) -> Any:
    """Add a broken storage to the collection, with the names of the tests that must catch it."""

    def add(function: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        BROKEN[function.__name__] = Broken(function, frozenset(tests), alone, outlives_process)
        return function

    return add


def replace(owner: Any) -> Any:
    """Replace the method of a class by the function of its name, which gets the old one first."""

    def put(function: Any) -> Any:
        old = getattr(owner, function.__name__)

        @wraps(old)
        def method(self, *arguments):
            return function(old, self, *arguments)

        setattr(owner, function.__name__, method)
        return function

    return put


def rename_keys(Storage: Any, rename: Callable[..., Any], *methods: str) -> None:
    """Let what takes a key take another one instead: `rename(storage, key)`."""

    def renamed(old):
        @wraps(old)
        def method(self, key, *value):
            return old(self, rename(self, key), *value)

        return method

    for name in methods or ["get", "set", "remove"]:
        setattr(Storage, name, renamed(getattr(Storage, name)))


def change_keys(Storage: Any, change: Callable[[str], Any]) -> None:
    """Store everything under a changed key."""
    rename_keys(Storage, lambda _, key: change(key))


def rename_namespaces(Plugin: Any, rename: Callable[[str], str]) -> None:
    """Open another namespace instead of each."""

    @replace(Plugin)
    def open(old, self, namespace):
        return old(self, rename(namespace))


def keep_all_in_one_namespace(
    Storage: Any, Plugin: Any, separator: str, belongs: Callable[[str, str], bool]
) -> None:
    """Glue the namespace to the key, and tell by the glued key what belongs to a namespace."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, "everything")
        storage.prefix = namespace + separator
        return storage

    rename_keys(Storage, lambda storage, key: storage.prefix + key)

    @replace(Storage)
    def keys(old, self):
        return (key[len(self.prefix) :] for key in old(self) if belongs(key, self.prefix))

    Storage.len = lambda self: len(list(self.keys()))


def change_values(Storage: Any, change: Callable[[Any], Any]) -> None:
    """Give each value back changed."""

    @replace(Storage)
    def _load(old, self, key, data):
        return change(old(self, key, data))


def everywhere(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change a value, and all that stands in its lists, tuples and dicts."""
    if type(value) is list:
        value = [everywhere(item, change) for item in value]
    elif type(value) is tuple:
        value = tuple(everywhere(item, change) for item in value)
    elif type(value) is dict:
        value = {key: everywhere(item, change) for key, item in value.items()}
    return change(value)


def config_class(Plugin: Any) -> Any:
    """Return the class of the plugin's STORAGE_CONFIG."""
    names = inspect.unwrap(Plugin.__init__).__globals__.values()
    return next(
        value
        for value in names
        if inspect.isclass(value) and value.__name__.endswith("Config") and hasattr(value, "load")
    )


# Missing keys


@caught_by("test_removing_a_missing_key_raises_key_error", "test_no_key_is_found_under_another")
def remove_of_a_missing_key_says_nothing(Storage, Plugin):
    """DELETE says nothing where no row matches, and nobody asks for the row count."""

    @replace(Storage)
    def remove(old, self, key):
        with suppress(KeyError):
            old(self, key)


@caught_by("test_getting_a_missing_key_raises_key_error")
def get_of_a_missing_key_gives_none(Storage, Plugin):
    """The client's own `get` gives None, and it is handed on."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except KeyError:
            return None


@caught_by("test_getting_a_missing_key_raises_key_error")
def get_of_a_missing_key_raises_the_error_of_the_client(Storage, Plugin):
    """The client has an error of its own for a missing key, which Errbot does not know."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except KeyError:
            raise LookupError(f"no row {key}") from None


@caught_by("test_removing_a_missing_key_raises_key_error")
def remove_of_a_missing_key_raises_the_error_of_the_client(Storage, Plugin):
    """`list.remove` says ValueError where nothing is found, and it is handed on."""

    @replace(Storage)
    def remove(old, self, key):
        try:
            old(self, key)
        except KeyError:
            raise ValueError(f"{key} is not there") from None


@caught_by("test_getting_a_missing_key_raises_key_error", alone=True)
def a_get_that_misses_rolls_back_the_set_before(Storage, Plugin):
    """Every error rolls back, and the `set` before it was in the same transaction."""
    forget_the_last_set_when(Storage, "get")


@caught_by("test_removing_a_missing_key_raises_key_error", alone=True)
def a_remove_that_misses_rolls_back_the_set_before(Storage, Plugin):
    """Every error rolls back, and the `set` before it was in the same transaction."""
    forget_the_last_set_when(Storage, "remove")


def forget_the_last_set_when(Storage: Any, missing: str) -> None:
    """Undo a thread's `set` when the operation that it does next misses its key."""
    take_away, transaction = Storage.remove, threading.local()

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        transaction.key = key

    def followed(name):
        old = getattr(Storage, name)

        @wraps(old)
        def method(self, *arguments):
            before = vars(transaction).pop("key", None)
            try:
                return old(self, *arguments)
            except KeyError:
                if name == missing and before is not None:
                    with suppress(KeyError):
                        take_away(self, before)
                raise

        return method

    for name in ["get", "remove", "len", "keys", "close"]:
        setattr(Storage, name, followed(name))


@caught_by("test_no_key_is_found_under_another", alone=True)
def get_finds_the_next_key(Storage, Plugin):
    """A cursor of an ordered database is set to the first key that is not smaller."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except KeyError:
            following = sorted(other for other in self.keys() if other.startswith(key))
            if not following:
                raise
            return old(self, following[0])


@caught_by("test_a_removed_key_is_gone_and_can_be_set_again", alone=True)
def a_removed_value_comes_back(Storage, Plugin):
    """ON CONFLICT DO UPDATE SET deleted = FALSE, and the new value is forgotten."""

    @replace(Storage)
    def remove(old, self, key):
        value = value_or_none(self, key)
        old(self, key)
        self.__dict__.setdefault("removed", {})[key] = value

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, self.__dict__.get("removed", {}).pop(key, value))


@caught_by("test_a_storage_serves_as_a_mapping", alone=True)
def the_last_miss_is_remembered(Storage, Plugin):
    """`in` is a whole `get`, and another one follows: the last miss is kept until then."""
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
            if self.__dict__.get(last) not in arguments:
                self.__dict__.pop(last, None)
            return old(self, *arguments)

        return method

    for name in ["set", "remove", "len", "keys"]:
        setattr(Storage, name, forgetting(getattr(Storage, name)))


@caught_by("test_operations_that_fail_harm_no_other_thread")
def a_set_that_fails_keeps_its_lock(Storage, Plugin):
    """`lock.acquire()` and `lock.release()`, without a `finally`; the lock is an RLock."""

    def locked(old):
        @wraps(old)
        def method(self, *arguments):
            lock = self.__dict__.setdefault("lock", threading.RLock())
            if not lock.acquire(timeout=5):
                raise RuntimeError("this would wait for ever")
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
    """The connection goes back to its pool behind the `set`, and not in a `finally`."""
    leak_connections(Storage, Plugin, "set")


@caught_by("test_operations_that_fail_harm_no_other_thread", alone=True)
def a_get_that_misses_leaks_a_connection(Storage, Plugin):
    """KeyError is raised before the connection goes back to its pool."""
    leak_connections(Storage, Plugin, "get")


@caught_by("test_operations_that_fail_harm_no_other_thread")
def a_remove_that_misses_leaks_a_connection(Storage, Plugin):
    """KeyError is raised before the connection goes back to its pool."""
    leak_connections(Storage, Plugin, "remove")


def leak_connections(Storage: Any, Plugin: Any, name: str) -> None:
    """Take a connection out of a pool for good where an operation fails.

    The pool is large, so that it is empty for none but the test that fails on purpose.
    """

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.pool = self.__dict__.setdefault("pool", [None] * 260)
        return storage

    old = getattr(Storage, name)

    @wraps(old)
    def method(self, *arguments):
        connection = self.pool.pop()
        try:
            result = old(self, *arguments)
        except Exception as error:
            if "storage is a str" in str(error):
                self.pool.append(connection)
            raise
        self.pool.append(connection)
        return result

    setattr(Storage, name, method)


# Counting and listing


@caught_by("test_len_and_keys_agree_at_every_moment", alone=True)
def len_is_cached_until_the_next_set(Storage, Plugin):
    """Counting is slow, so the count is kept in a row until a `set`; `remove` was forgotten."""
    know_place(Plugin)

    @replace(Storage)
    def len(old, self):
        if self.place not in COUNTED:
            COUNTED[self.place] = old(self)
        return COUNTED[self.place]

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        COUNTED.pop(self.place, None)


@caught_by("test_set_replaces_the_value", "test_len_and_keys_agree_at_every_moment")
def len_counts_each_set(Storage, Plugin):
    """A counter goes up with each `set`, also with one that replaces."""
    counters: dict[str, int] = {}

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        counters[self._namespace] = counters.get(self._namespace, 0) + 1

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        counters[self._namespace] = counters.get(self._namespace, 0) - 1

    Storage.len = lambda self: counters.get(self._namespace, 0)


@caught_by("test_keys_gives_thousands_of_keys_once_each")
def keys_gives_the_first_thousand(Storage, Plugin):
    """The API of the database gives at most 1,000 rows, and says so in a footnote."""

    @replace(Storage)
    def keys(old, self):
        return itertools.islice(old(self), 1_002)


@caught_by("test_keys_gives_thousands_of_keys_once_each")
def the_oldest_keys_are_evicted(Storage, Plugin):
    """`maxmemory-policy allkeys-lru`: the database was meant to be a cache."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        if self.len() > 2_500:
            self.remove(next(iter(self.keys())))


@caught_by("test_keys_gives_thousands_of_keys_once_each")
def pages_of_keys_overlap(Storage, Plugin):
    """The next page starts with the last key of the page before."""

    @replace(Storage)
    def keys(old, self):
        rows = list(old(self))
        for start in range(0, len(rows), 1_000):
            yield from rows[max(start - 1, 0) : start + 1_000]


@caught_by("test_keys_gives_thousands_of_keys_once_each")
def len_is_an_estimate(Storage, Plugin):
    """The database's quick count is an estimate where a table is large."""

    @replace(Storage)
    def len(old, self):
        return old(self) if old(self) < 1_500 else round(old(self) * 1.01)


@caught_by("test_keys_gives_str")
def keys_are_bytes(Storage, Plugin):
    """The client gives bytes, and nobody decodes them."""

    @replace(Storage)
    def keys(old, self):
        return (key.encode("utf-8", "surrogatepass") for key in old(self))


@caught_by("test_keys_gives_str", alone=True)
def keys_are_a_kind_of_str(Storage, Plugin):
    """The client gives strings of a class of its own, with quoting."""

    class Quoted(str):
        pass

    @replace(Storage)
    def keys(old, self):
        return (Quoted("".join(key)) for key in old(self))


@caught_by("test_loops_over_the_keys_do_not_get_into_each_others_way")
def loops_of_a_thread_share_one_cursor(Storage, Plugin):
    """Each thread has one connection with one cursor, and a second loop goes on with the first."""

    class Cursor:
        def __init__(self, storage, old):
            self.storage, self.old = storage, old

        def __iter__(self):
            local = self.storage.__dict__.setdefault("local", threading.local())
            while True:
                if getattr(local, "rows", None) is None:
                    local.rows = self.old(self.storage)
                key = next(local.rows, None)
                if key is None:
                    local.rows = None
                    return
                yield key

    @replace(Storage)
    def keys(old, self):
        return Cursor(self, old)


@caught_by("test_starting_keys_does_not_fetch_them_all")
def keys_fetches_all_rows(Storage, Plugin):
    """`fetchall()`, where `fetchmany()` would do."""

    @replace(Storage)
    def keys(old, self):
        return iter([f"{key} "[:-1] for key in old(self)])


@caught_by("test_starting_keys_does_not_fetch_them_all", alone=True)
def keys_sorts_all_rows(Storage, Plugin):
    """ORDER BY without an index, so that listings look tidy."""

    @replace(Storage)
    def keys(old, self):
        yield from [key for _, key in sorted((f"{key} ".lower(), key) for key in old(self))]


@caught_by("test_keys_can_be_removed_while_iterating", "test_keys_can_be_added_while_iterating")
def keys_are_a_live_view(Storage, Plugin):
    """The iterator of the client stops when the data change under it, as that of a dict does."""

    @replace(Storage)
    def keys(old, self):
        count = self.len()
        for key in old(self):
            if self.len() != count:
                raise RuntimeError("dictionary changed size during iteration")
            yield key


@caught_by("test_keys_can_be_added_while_iterating")
def keys_pages_by_position_from_the_newest(Storage, Plugin):
    """LIMIT and OFFSET, newest first: what is added pushes keys into the next page."""

    @replace(Storage)
    def keys(old, self):
        start = 0
        while page := list(old(self))[::-1][start : start + 300]:
            yield from page
            start = start + 300 if len(page) == 300 else start + len(page)


@caught_by("test_a_loop_over_the_keys_can_be_left", alone=True)
def leaving_a_loop_rolls_back(Storage, Plugin):
    """`keys` yields inside of a transaction, which an early end of the loop rolls back."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        if getattr(self, "transaction", None) is not None:
            self.transaction.append(key)

    @replace(Storage)
    def keys(old, self):
        self.transaction = []
        try:
            yield from old(self)
        except GeneratorExit:
            for key in self.transaction:
                self.remove(key)
            raise
        finally:
            self.transaction = None


@caught_by("test_clear_empties_the_namespace", alone=True)
def a_loop_that_is_left_keeps_its_cursor(Storage, Plugin):
    """A cursor is closed at the end of its rows only, and the server allows 300 of them."""

    @replace(Storage)
    def keys(old, self):
        cursors = self.__dict__.setdefault("cursors", [])
        if len(cursors) >= 300:
            raise RuntimeError("maximum open cursors exceeded")
        cursors.append(None)
        yield from old(self)
        cursors.pop()


@caught_by("test_keys_can_be_removed_while_iterating", alone=True)
def keys_pages_by_position_of_a_thousand(Storage, Plugin):
    """LIMIT 1000 OFFSET: where a page has been removed, the next one is skipped."""

    @replace(Storage)
    def keys(old, self):
        start = 0
        while page := list(old(self))[start : start + 1000]:
            yield from page
            start += 1000


@caught_by("test_keys_can_be_added_while_iterating", alone=True)
def keys_counts_its_pages_of_a_thousand_at_the_start(Storage, Plugin):
    """The number of pages is known before the first one is read."""

    @replace(Storage)
    def keys(old, self):
        last = None
        for _ in range(-(-self.len() // 1000)):
            page = sorted(key for key in old(self) if last is None or key > last)[:1000]
            yield from page
            last = page[-1] if page else last


@caught_by("test_keys_can_be_removed_while_iterating")
def a_page_starts_at_a_key_that_is_looked_up(Storage, Plugin):
    """The next page is what comes behind the last key, which has been removed meanwhile."""

    @replace(Storage)
    def keys(old, self):
        page = sorted(old(self))[:1000]
        while page:
            yield from page
            rows = sorted(old(self)) if len(page) == 1000 else []
            start = rows.index(page[-1]) + 1 if page[-1] in rows else len(rows)
            page = rows[start : start + 1000]


@caught_by("test_values_can_be_replaced_while_iterating", alone=True)
def pages_follow_the_time_of_the_last_change(Storage, Plugin):
    """ORDER BY changed, in pages of a thousand: what is replaced in the loop comes again."""
    clock, times = itertools.count(1), {}

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        times[self._namespace, key] = next(clock)

    @replace(Storage)
    def keys(old, self):
        last = -1

        def changed(key):
            return times.get((self._namespace, key), 0)

        while True:
            page = sorted((key for key in old(self) if changed(key) > last), key=changed)[:1000]
            last = changed(page[-1]) if page else last
            yield from page
            if len(page) < 1000:
                return


@caught_by("test_keys_gives_thousands_of_keys_once_each")
def pages_follow_a_collation(Storage, Plugin):
    """ORDER BY key and key > ?, in a collation that ignores case: only `=` compares bytes."""

    @replace(Storage)
    def keys(old, self):
        last = None
        while True:
            rest = (key for key in old(self) if last is None or key.casefold() > last)
            page = heapq.nsmallest(1000, rest, key=str.casefold)
            yield from page
            if len(page) < 1000:
                return
            last = page[-1].casefold()


@caught_by("test_keys_gives_thousands_of_keys_once_each", alone=True)
def keys_gives_the_first_ten_thousand(Storage, Plugin):
    """Elasticsearch gives no more than index.max_result_window."""

    @replace(Storage)
    def keys(old, self):
        return itertools.islice(old(self), 10_000)


@caught_by("test_keys_gives_thousands_of_keys_once_each")
def keys_gives_the_first_megabyte(Storage, Plugin):
    """A page of DynamoDB ends at 1 MB, and nobody looks at LastEvaluatedKey."""

    @replace(Storage)
    def keys(old, self):
        size = 0
        for key in old(self):
            size += len(key.encode("utf-8", "surrogatepass"))
            if size > 1024 * 1024:
                return
            yield key


@caught_by("test_a_loop_over_the_keys_ends", alone=True)
def keys_start_again_after_the_empty_key(Storage, Plugin):
    """`if last:` tells the first page from the next ones, and the last key may be the empty one."""

    @replace(Storage)
    def keys(old, self):
        last = ""
        while page := heapq.nsmallest(500, (key for key in old(self) if not last or key > last)):
            yield from page
            last = page[-1]


@caught_by("test_no_page_of_keys_shows_those_of_another_namespace", alone=True)
def the_second_page_forgets_the_namespace(Storage, Plugin):
    """WHERE namespace = ? is in the first query, and not in those of the next pages."""
    opened: weakref.WeakSet[Any] = weakref.WeakSet()

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        opened.add(storage)
        return storage

    @replace(Storage)
    def keys(old, self):
        page = sorted(old(self))[:1000]
        while page:
            yield from page
            if len(page) < 1000:
                return
            rows = {key for storage in list(opened) for key in old(storage)}
            page = sorted(key for key in rows if key > page[-1])[:1000]


@caught_by("test_loops_over_the_keys_do_not_get_into_each_others_way", alone=True)
def loops_share_the_place_of_their_next_page(Storage, Plugin):
    """The last key seen is a field of the storage."""

    @replace(Storage)
    def keys(old, self):
        page = sorted(old(self))[:1000]
        while page:
            self._last = page[-1]
            yield from page
            if len(page) < 1000:
                return
            page = sorted(key for key in old(self) if key > self._last)[:1000]


@caught_by("test_loops_over_the_keys_do_not_get_into_each_others_way")
def each_loop_holds_a_connection(Storage, Plugin):
    """`with engine.connect()` around a `yield`; a pool has 5 connections, and 10 for a rush."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.loops = self.__dict__.setdefault("loops", [])
        return storage

    @replace(Storage)
    def keys(old, self):
        if len(self.loops) >= 15:
            raise RuntimeError("QueuePool limit of size 5 overflow 10 reached")
        self.loops.append(self)
        try:
            yield from old(self)
        finally:
            self.loops.pop()


# Telling keys apart


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_ignore_case(Storage, Plugin):
    """The default collation of MySQL, and the file names of macOS and Windows."""
    change_keys(Storage, str.lower)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_ignore_the_case_of_latin_letters(Storage, Plugin):
    """SQLite's NOCASE."""
    change_keys(Storage, lambda key: re.sub("[A-Z]", lambda letter: letter[0].lower(), key))


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_stripped(Storage, Plugin):
    """Somebody wanted to be nice to users."""
    change_keys(Storage, str.strip)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_lose_spaces_at_their_end(Storage, Plugin):
    """CHAR columns are padded, and compared without the padding."""
    change_keys(Storage, lambda key: key.rstrip(" "))


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_composed(Storage, Plugin):
    """Unicode's NFC, as good manners have it, and as Apple's file system did."""
    change_keys(Storage, lambda key: unicodedata.normalize("NFC", key))


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_lose_their_accents(Storage, Plugin):
    """A collation whose name ends in `_ai_ci`, seen from its `_ai`."""

    def bare(key):
        letters = unicodedata.normalize("NFD", key)
        return "".join(letter for letter in letters if not unicodedata.combining(letter))

    change_keys(Storage, bare)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_of_digits_become_numbers(Storage, Plugin):
    """A key that looks like a number is made one, by YAML or by a column's affinity."""
    change_keys(Storage, lambda key: str(int(key)) if key.isdecimal() else key)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_utf8_of_three_bytes(Storage, Plugin):
    """MySQL's `utf8` writes a question mark for each emoji."""
    change_keys(Storage, lambda key: re.sub("[\U00010000-\U0010ffff]", "?", key))


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_latin_1(Storage, Plugin):
    """The connection's encoding is Latin-1, with `errors="replace"`."""
    change_keys(Storage, lambda key: key.encode("latin-1", "replace").decode("latin-1"))


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_drop_what_cannot_be_printed(Storage, Plugin):
    """A clean-up against log injection."""
    change_keys(Storage, lambda key: "".join(c for c in key if c.isprintable()))


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_have_their_line_breaks_translated(Storage, Plugin):
    """A file that is opened as text turns CR LF into LF."""
    change_keys(Storage, lambda key: key.replace("\r\n", "\n").replace("\r", "\n"))


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_paths(Storage, Plugin):
    """Each key is a file, and the path is normalised."""
    change_keys(Storage, lambda key: os.path.normpath(key) if key else key)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_unquoted(Storage, Plugin):
    """A key goes into a URL unescaped, and the server unescapes it."""
    from urllib.parse import unquote

    change_keys(Storage, unquote)


@caught_by("test_keys_that_look_alike_are_told_apart")
def the_empty_key_is_none(Storage, Plugin):
    """Oracle takes the empty string for NULL, and the client says 'None'."""
    change_keys(Storage, lambda key: key or "None")


@caught_by("test_keys_that_look_alike_are_told_apart", alone=True)
def remove_takes_its_key_for_a_pattern(Storage, Plugin):
    """DELETE ... WHERE key LIKE ?, with a key that holds % or _."""

    @replace(Storage)
    def remove(old, self, key):
        pattern = re.escape(key).replace("%", ".*").replace("_", ".")
        old(self, key)
        for other in list(self.keys()):
            if re.fullmatch(pattern, other, re.DOTALL):
                with suppress(KeyError):
                    old(self, other)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_come_in_a_csv_line(Storage, Plugin):
    """An index row lists the keys with commas between them."""

    @replace(Storage)
    def keys(old, self):
        return iter([part for key in old(self) for part in key.split(",")])


@caught_by("test_a_key_is_held_to_the_letter_or_refused", alone=True)
def keys_are_listed_by_their_first_255_characters(Storage, Plugin):
    """Rows are found by a hash of the key; the key itself is in a VARCHAR(255) beside it."""

    @replace(Storage)
    def keys(old, self):
        return (key[:255] for key in old(self))


@caught_by("test_a_key_is_held_to_the_letter_or_refused")
def keys_are_cut_at_191_characters(Storage, Plugin):
    """VARCHAR(191), as MySQL's old limit for utf8mb4 made everybody write, and no strict mode."""
    change_keys(Storage, lambda key: key[:191])


@caught_by("test_a_key_is_held_to_the_letter_or_refused")
def keys_are_cut_at_255_characters(Storage, Plugin):
    """VARCHAR(255), and no strict mode."""
    change_keys(Storage, lambda key: key[:255])


@caught_by("test_a_key_is_held_to_the_letter_or_refused")
def keys_end_at_nul(Storage, Plugin):
    """A library in C takes the key for a string that ends with NUL."""
    change_keys(Storage, lambda key: key.partition("\0")[0])


@caught_by("test_a_key_is_held_to_the_letter_or_refused")
def surrogates_become_question_marks(Storage, Plugin):
    """`encode(errors="replace")`, so that nothing can fail."""
    change_keys(Storage, lambda key: key.encode("utf-8", "replace").decode())


@caught_by("test_a_key_is_held_to_the_letter_or_refused")
def a_refused_key_is_stored_cut(Storage, Plugin):
    """The error is raised from a warning of the database that comes after the insertion."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key[:1_000], value)
        if len(key) > 1_000:
            raise ValueError("The key is longer than 1,000 characters.")


@caught_by("test_hard_keys_are_told_apart_or_refused", alone=True)
def long_keys_are_told_apart_by_their_beginning(Storage, Plugin):
    """A unique index on the first 1,000 characters."""
    full: dict[Any, str] = {}

    def known(self, key):
        return full.get((self._namespace, key[:1_000]), key) if len(key) > 1_000 else key

    rename_keys(Storage, known, "get", "remove")

    @replace(Storage)
    def set(old, self, key, value):
        if len(key) > 1_000:
            full.setdefault((self._namespace, key[:1_000]), key)
        old(self, known(self, key), value)


@caught_by("test_a_key_that_is_no_str_is_refused")
def keys_are_made_str(Storage, Plugin):
    """`str(key)`, to be tolerant: 1 goes in, and "1" comes out."""
    change_keys(Storage, str)


@caught_by("test_a_key_that_is_no_str_is_refused", alone=True)
def bytes_are_decoded(Storage, Plugin):
    """A key of bytes is decoded, to be tolerant."""
    change_keys(Storage, lambda key: key.decode() if isinstance(key, bytes) else key)


@caught_by(
    "test_a_key_is_held_to_the_letter_or_refused", "test_hard_keys_are_told_apart_or_refused"
)
def keys_are_cut_at_65535_characters(Storage, Plugin):
    """TEXT of MySQL, where it is not strict."""
    change_keys(Storage, lambda key: key[:65_535])


@caught_by("test_a_key_that_is_no_str_is_refused")
def numbers_find_texts(Storage, Plugin):
    """A column converts what it is compared with: 1 finds "1"."""
    rename_keys(
        Storage, lambda _, key: str(key) if isinstance(key, (int, float)) else key, "get", "remove"
    )


@caught_by("test_a_key_of_a_kind_of_str_is_its_text", alone=True)
def keys_are_made_text_by_str(Storage, Plugin):
    """`str(key)`: of a member of an enumeration it is "Name.LOW"."""
    change_keys(Storage, lambda key: str(key) if isinstance(key, str) else key)


@caught_by("test_a_key_of_a_kind_of_str_is_its_text")
def only_plain_texts_are_keys(Storage, Plugin):
    """`if type(key) is not str`."""

    @replace(Storage)
    def set(old, self, key, value):
        if type(key) is not str:
            raise TypeError("a key of the storage is a str")
        old(self, key, value)


# Namespaces


@caught_by("test_a_namespace_and_its_key_are_not_glued_together")
def namespace_and_key_are_glued_with_a_colon(Storage, Plugin):
    """`f"{namespace}:{key}"`, as the manuals of Redis show it."""
    keep_all_in_one_namespace(Storage, Plugin, ":", str.startswith)


@caught_by("test_a_namespace_and_its_key_are_not_glued_together")
def namespace_and_key_are_glued_with_an_underscore(Storage, Plugin):
    """`f"{namespace}_{key}"`."""
    keep_all_in_one_namespace(Storage, Plugin, "_", str.startswith)


@caught_by("test_a_namespace_and_its_key_are_not_glued_together")
def namespace_and_key_are_glued_with_an_odd_character(Storage, Plugin):
    """ASCII has a character for it, the unit separator, which nobody ever types."""
    keep_all_in_one_namespace(Storage, Plugin, "\x1f", str.startswith)


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def keys_asks_for_a_pattern_with_an_unescaped_namespace(Storage, Plugin):
    """`KEYS namespace:*` of Redis, where [, ? and * of the namespace are part of the pattern."""
    keep_all_in_one_namespace(
        Storage, Plugin, ":", lambda key, prefix: fnmatch.fnmatchcase(key, prefix + "*")
    )


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def keys_asks_for_like_with_an_unescaped_namespace(Storage, Plugin):
    """`LIKE 'namespace/%'`, where _ and % of the namespace are part of the pattern."""

    def like(key, prefix):
        pattern = re.escape(prefix).replace("%", ".*").replace("_", ".") + ".*"
        return re.fullmatch(pattern, key, re.DOTALL | re.IGNORECASE) is not None

    keep_all_in_one_namespace(Storage, Plugin, "/", like)


@caught_by("test_namespaces_that_look_alike_are_told_apart", alone=True)
def namespaces_ignore_case(Storage, Plugin):
    """Names of tables are folded to lower case."""
    rename_namespaces(Plugin, str.lower)


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def namespaces_are_made_identifiers(Storage, Plugin):
    """Whatever cannot stand in the name of a table becomes an underscore."""
    rename_namespaces(Plugin, lambda namespace: re.sub(r"\W", "_", namespace))


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def namespaces_are_ascii(Storage, Plugin):
    """Only names beyond ASCII are changed: the others were tested."""
    rename_namespaces(Plugin, lambda name: name.encode("ascii", "ignore").decode() or name)


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def namespaces_are_cut_at_63_characters(Storage, Plugin):
    """PostgreSQL cuts the names of tables, with a notice that nobody reads."""
    rename_namespaces(Plugin, lambda namespace: namespace[:63])


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def all_namespaces_are_one(Storage, Plugin):
    """The namespace was to be added later."""
    rename_namespaces(Plugin, lambda _: "everything")


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def len_counts_the_keys_of_all_namespaces(Storage, Plugin):
    """SELECT COUNT(*) without WHERE."""
    opened: dict[str, Any] = {}

    @replace(Plugin)
    def open(old, self, namespace):
        opened[namespace] = old(self, namespace)
        return opened[namespace]

    @replace(Storage)
    def len(old, self):
        return sum(old(storage) for storage in opened.values())


@caught_by("test_a_key_is_not_removed_from_another_namespace", alone=True)
def a_key_that_is_missing_here_is_removed_elsewhere(Storage, Plugin):
    """DELETE ... WHERE key = ? was written before there were namespaces."""
    opened: dict[str, Any] = {}

    @replace(Plugin)
    def open(old, self, namespace):
        opened[namespace] = old(self, namespace)
        return opened[namespace]

    @replace(Storage)
    def remove(old, self, key):
        for storage in [self, *opened.values()]:
            with suppress(KeyError):
                return old(storage, key)
        raise KeyError(key)


@caught_by("test_any_name_can_be_a_namespace", alone=True)
def namespaces_are_quoted_only_where_they_look_odd(Storage, Plugin):
    """A name of letters needs no quotes in SQL, except where it is a word of SQL."""

    @replace(Plugin)
    def open(old, self, namespace):
        if namespace in {"select", "table", "group", "order", "user"}:
            raise RuntimeError(f'syntax error near "{namespace}"')
        return old(self, namespace)


@caught_by("test_any_name_can_be_a_namespace")
def the_namespace_is_a_row_among_its_keys(Storage, Plugin):
    """A row with the name of the namespace says that there is one, and is left out of listings."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.row = namespace
        return storage

    @replace(Storage)
    def keys(old, self):
        return (key for key in old(self) if key != self.row)

    @replace(Storage)
    def len(old, self):
        return old(self) - sum(key == self.row for key in itertools.islice(self.keys(), 3))


@caught_by("test_hundreds_of_namespaces_leak_nothing", alone=True)
def each_namespace_leaks_a_connection(Storage, Plugin):
    """`open` connects, and `close` leaves it to the garbage collector, which never comes."""
    connections = []

    @replace(Plugin)
    def open(old, self, namespace):
        connections.append(os.open(os.devnull, os.O_RDONLY))
        return old(self, namespace)


@caught_by("test_hundreds_of_namespaces_can_be_open_at_once", alone=True)
def only_some_namespaces_can_be_open(Storage, Plugin):
    """Each open namespace holds a connection of a pool of 100."""
    count = itertools.count()

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        if getattr(self, "connections", 0) >= 100:
            raise RuntimeError("QueuePool limit of size 100 reached")
        self.connections = getattr(self, "connections", 0) + 1
        storage.plugin, storage.number = self, next(count)
        return storage

    @replace(Storage)
    def close(old, self):
        self.plugin.connections -= 1
        old(self)


@caught_by("test_a_namespace_and_its_key_are_not_glued_together", alone=True)
def namespace_and_key_are_glued_with_an_equals_sign(Storage, Plugin):
    """ "namespace=key", as in a query string."""
    keep_all_in_one_namespace(Storage, Plugin, "=", str.startswith)


@caught_by("test_a_namespace_and_its_key_are_not_glued_together")
def namespace_and_key_are_glued_with_nul(Storage, Plugin):
    """A character that no key holds, it is thought."""
    keep_all_in_one_namespace(Storage, Plugin, "\0", str.startswith)


@caught_by("test_hard_names_of_namespaces_are_told_apart_or_refused")
def namespaces_are_cut_at_255_characters(Storage, Plugin):
    """VARCHAR(255), where the server cuts without a word."""
    rename_namespaces(Plugin, lambda namespace: namespace[:255])


@caught_by("test_hard_names_of_namespaces_are_told_apart_or_refused", alone=True)
def namespaces_lose_what_is_no_text(Storage, Plugin):
    """`namespace.encode("utf-8", "replace")`, and no NUL in a name."""
    rename_namespaces(Plugin, lambda name: re.sub("[\0\ud800-\udfff]", "?", name))


@caught_by("test_a_new_plugin_instance_finds_everything", alone=True)
def odd_namespaces_are_numbered_as_they_are_opened(Storage, Plugin):
    """A table for each namespace; which number an odd name has, only this process knows."""

    @replace(Plugin)
    def open(old, self, namespace):
        if not (namespace.isascii() and namespace.isprintable() and namespace.strip() == namespace):
            namespace += f" {id(self)}"
        return old(self, namespace)


@caught_by("test_hundreds_of_namespaces_leak_nothing")
def each_namespace_leaks_a_thread(Storage, Plugin):
    """A heartbeat for each open namespace, which `close` forgets."""
    end = threading.Event()

    @replace(Plugin)
    def open(old, self, namespace):
        threading.Thread(target=end.wait, daemon=True).start()
        return old(self, namespace)


# Values


@caught_by("test_a_falsy_value_comes_back", "test_a_falsy_value_counts_as_there")
def a_falsy_value_counts_as_missing(Storage, Plugin):
    """`if not value: raise KeyError(key)`."""

    @replace(Storage)
    def get(old, self, key):
        if not (value := old(self, key)):
            raise KeyError(key)
        return value


@caught_by("test_a_falsy_value_comes_back", "test_a_falsy_value_counts_as_there")
def none_counts_as_missing(Storage, Plugin):
    """The client gives None for a missing key, and the plugin may have stored one."""

    @replace(Storage)
    def get(old, self, key):
        if (value := old(self, key)) is None:
            raise KeyError(key)
        return value


@caught_by("test_a_falsy_value_comes_back", alone=True)
def an_empty_dict_is_a_plain_one(Storage, Plugin):
    """`return value or {}`, for whoever wants to go on with it."""
    change_values(Storage, lambda value: value or {} if isinstance(value, dict) else value)


@caught_by("test_a_falsy_value_counts_as_there", alone=True)
def empty_texts_are_not_counted(Storage, Plugin):
    """COUNT(value) does not count NULL, for which Oracle takes an empty text."""

    @replace(Storage)
    def len(old, self):
        return old(self) - sum(value_or_none(self, key) == "" for key in list(self.keys())[:3])


def value_or_none(storage: Any, key: str) -> Any:
    """Return the value of a key, or None where it is gone by now."""
    try:
        return storage.get(key)
    except Exception:
        return None


@caught_by("test_a_falsy_value_comes_back", "test_a_plain_value_comes_back")
def bools_are_numbers(Storage, Plugin):
    """MySQL has no BOOLEAN, but TINYINT(1)."""
    change_values(Storage, lambda value: int(value) if type(value) is bool else value)


@caught_by("test_a_plain_value_comes_back")
def a_text_ends_at_nul(Storage, Plugin):
    """PostgreSQL's TEXT holds no NUL, so somebody cuts it there."""
    change_values(Storage, lambda v: v.partition("\0")[0] if type(v) is str else v)


@caught_by("test_a_plain_value_comes_back")
def a_text_of_digits_becomes_a_number(Storage, Plugin):
    """A column without a type, and what SQLite's affinity makes of it."""
    change_values(Storage, lambda v: int(v) if type(v) is str and v.isdecimal() else v)


@caught_by("test_a_plain_value_comes_back", alone=True)
def large_numbers_are_floats(Storage, Plugin):
    """JavaScript has 53 bits for a whole number."""
    change_values(Storage, lambda v: int(float(v)) if type(v) is int and abs(v) > 2**53 else v)


@caught_by("test_a_plain_value_comes_back")
def bytes_become_text(Storage, Plugin):
    """A driver that decodes whatever it gets."""
    change_values(Storage, lambda v: v.decode("latin-1") if type(v) is bytes and v else v)


@caught_by("test_a_container_comes_back_with_its_types")
def values_are_json(Storage, Plugin):
    """JSON where it can be: tuples become lists, and the keys of dicts become texts."""

    def through_json(value):
        try:
            return json.loads(json.dumps(value))
        except (TypeError, ValueError, RecursionError):
            return value

    change_values(Storage, through_json)


@caught_by("test_a_container_comes_back_with_its_types")
def tuples_inside_become_lists(Storage, Plugin):
    """msgpack, and a special case for a value that is a tuple itself."""

    def inside(value):
        return everywhere(value, lambda v: list(v) if type(v) is tuple else v)

    def change(value):
        return tuple(map(inside, value)) if type(value) is tuple else inside(value)

    change_values(Storage, change)


@caught_by("test_a_container_comes_back_with_its_types", alone=True)
def named_tuples_become_tuples(Storage, Plugin):
    """What is not a list is a tuple, so `tuple(value)`."""
    change_values(Storage, lambda value: tuple(value) if isinstance(value, tuple) else value)


@caught_by("test_a_container_comes_back_with_its_types")
def keys_of_dicts_become_texts(Storage, Plugin):
    """A document database has names of fields, and those are texts."""

    def change(value):
        return {str(key): item for key, item in value.items()} if type(value) is dict else value

    change_values(Storage, lambda value: everywhere(value, change))


@caught_by("test_a_container_comes_back_with_its_types")
def dicts_are_sorted(Storage, Plugin):
    """JSONB of PostgreSQL keeps the keys of an object in an order of its own."""

    def change(value):
        return dict(sorted(value.items(), key=str)) if type(value) is dict else value

    change_values(Storage, lambda value: everywhere(value, change))


@caught_by("test_an_object_comes_back")
def moments_lose_their_fractions(Storage, Plugin):
    """MySQL's DATETIME has no fractions of a second unless one asks for them."""
    from datetime import datetime

    change_values(Storage, lambda v: v.replace(microsecond=0) if type(v) is datetime else v)


@caught_by("test_an_object_comes_back")
def moments_lose_their_zone(Storage, Plugin):
    """DATETIME without a zone: everything is UTC."""
    from datetime import datetime, timezone

    change_values(
        Storage,
        lambda v: v.astimezone(timezone.utc) if type(v) is datetime and v.tzinfo else v,
    )


@caught_by("test_an_object_comes_back")
def only_some_classes_are_unpickled(Storage, Plugin):
    """A list of what is harmless, which knows no class of any plugin."""

    @replace(Storage)
    def _load(old, self, key, data):
        value = old(self, key, data)
        if type(value).__module__.startswith("contract") and not isinstance(value, dict):
            raise pickle.UnpicklingError(f"global {type(value).__qualname__} is forbidden")
        return value


@caught_by("test_an_object_comes_back")
def objects_lose_their_own_state(Storage, Plugin):
    """jsonpickle, told to make no use of what a class says itself of its state."""

    def change(value):
        if type(value).__name__ == "Counted":
            value.__dict__ = {"count": 0}
        return value

    change_values(Storage, change)


@caught_by("test_a_deeply_nested_value_comes_back", alone=True)
def deep_values_are_refused(Storage, Plugin):
    """A document database has a limit for levels."""

    def depth(value):
        items = value.values() if isinstance(value, dict) else value
        if not isinstance(value, (dict, list)):
            return 0
        return 1 + max(map(depth, items), default=0)

    @replace(Storage)
    def set(old, self, key, value):
        if depth(value) > 64:
            raise ValueError("nested too deep")
        old(self, key, value)


@caught_by("test_a_value_that_holds_itself_comes_back", alone=True)
def objects_are_stored_attribute_by_attribute(Storage, Plugin):
    """Each attribute has its column, with a pickle of its own."""

    def change(value):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts = {name: pickle.dumps(part) for name, part in vars(value).items()}
            value = copy.copy(value)
            vars(value).update({name: pickle.loads(part) for name, part in parts.items()})
        return value

    change_values(Storage, change)


@caught_by("test_an_object_held_twice_comes_back_as_one", alone=True)
def dicts_are_stored_entry_by_entry(Storage, Plugin):
    """HSET of Redis: each entry of a dict is a field, with a pickle of its own."""

    def change(value):
        if type(value) is dict:
            return {key: pickle.loads(pickle.dumps(item)) for key, item in value.items()}
        return value

    change_values(Storage, change)


@caught_by("test_a_value_of_any_size_comes_back")
def values_are_cut_at_32768_characters(Storage, Plugin):
    """Azure Table Storage, and the storage plugin that was published for it."""

    @replace(Storage)
    def _dump(old, self, key, value):
        return old(self, key, value)[:32_768]


@caught_by("test_a_value_of_any_size_comes_back")
def values_are_cut_at_65535_bytes(Storage, Plugin):
    """BLOB of MySQL without strict mode."""

    @replace(Storage)
    def _dump(old, self, key, value):
        return old(self, key, value)[:65_535]


@caught_by("test_a_value_of_any_size_comes_back", alone=True)
def large_values_are_refused(Storage, Plugin):
    """max_allowed_packet of MySQL was 4 MB for long."""

    @replace(Storage)
    def _dump(old, self, key, value):
        data = old(self, key, value)
        if len(data) > 4 * 1024 * 1024:
            raise ValueError("Packet too large.")
        return data


@caught_by("test_set_replaces_the_value", alone=True)
def dicts_are_merged(Storage, Plugin):
    """The update of a document database keeps the fields that it is not given."""

    @replace(Storage)
    def set(old, self, key, value):
        if type(value) is dict:
            before = value_or_none(self, key)
            if type(before) is dict:
                value = before | value
        old(self, key, value)


@caught_by("test_set_replaces_the_value")
def only_the_first_set_counts(Storage, Plugin):
    """INSERT ... ON CONFLICT DO NOTHING."""

    @replace(Storage)
    def set(old, self, key, value):
        self._dump(key, value)
        if key not in set_of_keys(self):
            old(self, key, value)


def set_of_keys(storage: Any) -> Any:
    """Return the keys of a storage, for quick lookups."""
    return frozenset(storage.keys())


@caught_by("test_changing_an_object_after_set_changes_nothing_stored", alone=True)
def what_was_just_pickled_is_not_unpickled(Storage, Plugin):
    """Unpickling is saved by keeping the objects of which the pickles were made."""

    @replace(Storage)
    def _dump(old, self, key, value):
        data = old(self, key, value)
        self.__dict__.setdefault("pickled", {})[data] = value
        return data

    @replace(Storage)
    def _load(old, self, key, data):
        known = self.__dict__.setdefault("pickled", {})
        try:
            return copy.deepcopy(known[data])
        except KeyError:
            return old(self, key, data)


@caught_by("test_changing_an_object_got_changes_nothing_stored")
def what_was_unpickled_once_is_given_again(Storage, Plugin):
    """`lru_cache` around `pickle.loads`."""

    @replace(Storage)
    def _load(old, self, key, data):
        known = self.__dict__.setdefault("unpickled", {})
        if (key, data) not in known:
            known[key, data] = old(self, key, data)
        return known[key, data]


@caught_by("test_changing_an_object_got_changes_nothing_stored", alone=True)
def an_object_that_is_in_use_is_given_again(Storage, Plugin):
    """A WeakValueDictionary, the identity map of an ORM."""

    @replace(Storage)
    def _load(old, self, key, data):
        known = self.__dict__.setdefault("in_use", weakref.WeakValueDictionary())
        value = known.get((key, data))
        if value is None:
            value = old(self, key, data)
            with suppress(TypeError):
                known[key, data] = value
        return value


@caught_by("test_a_failed_set_leaves_the_old_value", alone=True)
def a_failed_set_cleans_up(Storage, Plugin):
    """After an error the key is removed, so that nothing half-written stays."""

    @replace(Storage)
    def set(old, self, key, value):
        try:
            old(self, key, value)
        except Exception:
            with suppress(Exception):
                self.remove(key)
            raise


@caught_by("test_a_failed_set_adds_no_key", alone=True)
def the_key_is_stored_before_the_value(Storage, Plugin):
    """The row is made first, to have its number, and the value is pickled after that."""

    @replace(Storage)
    def set(old, self, key, value):
        if isinstance(key, str) and key not in set_of_keys_if_few(self):
            old(self, key, None)
        old(self, key, value)


def set_of_keys_if_few(storage: Any) -> Any:
    """Return the keys of a small storage, for the tests that fill one need not be slow."""
    return frozenset(storage.keys()) if storage.len() < 5 else frozenset()


@caught_by("test_a_failed_set_adds_no_key", "test_a_failed_set_leaves_the_old_value")
def what_cannot_be_pickled_is_stored_as_text(Storage, Plugin):
    """`default=str`, as with JSON."""

    @replace(Storage)
    def _dump(old, self, key, value):
        try:
            return old(self, key, value)
        except Exception:
            if not isinstance(key, str):
                raise
            return old(self, key, "?")


@caught_by("test_a_failed_set_leaves_the_old_value", "test_a_failed_set_adds_no_key")
def a_set_that_fails_is_only_logged(Storage, Plugin):
    """A bot must not stop because of its storage, so errors are logged and swallowed."""

    @replace(Storage)
    def set(old, self, key, value):
        try:
            old(self, key, value)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            if not isinstance(key, str):
                raise
            log.error("Cannot store %r: %s", key, type(error).__name__)


@caught_by("test_mutable_saves_what_was_changed", alone=True)
def an_object_that_was_got_is_not_written_again(Storage, Plugin):
    """`set` saves the work where it is given the very object that `get` gave last."""

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


@caught_by("test_a_failed_set_leaves_the_old_value", "test_a_failed_set_adds_no_key")
def a_failed_set_breaks_the_connection(Storage, Plugin):
    """The transaction of the failed `set` is never rolled back, and everything after it fails."""

    @replace(Storage)
    def set(old, self, key, value):
        if getattr(self, "aborted", False):
            raise RuntimeError("current transaction is aborted")
        try:
            old(self, key, value)
        except (AttributeError, pickle.PicklingError, TypeError):
            self.aborted = isinstance(key, str)
            raise

    @replace(Storage)
    def get(old, self, key):
        if getattr(self, "aborted", False):
            raise RuntimeError("current transaction is aborted")
        return old(self, key)


@caught_by("test_a_plain_value_comes_back")
def bytes_that_are_a_pickle_are_unpickled(Storage, Plugin):
    """An old version pickled twice, and its values are still to be read."""

    def unpickle(value):
        if type(value) is bytes and value[:1] == b"\x80":
            with suppress(Exception):
                return pickle.loads(value)
        return value

    change_values(Storage, unpickle)


@caught_by("test_a_plain_value_comes_back")
def texts_that_are_json_are_parsed(Storage, Plugin):
    """The driver parses a JSON column by itself."""

    def parse(value):
        if type(value) is str and value[:1] in ("{", "["):
            with suppress(ValueError):
                return json.loads(value)
        return value

    change_values(Storage, parse)


@caught_by("test_a_plain_value_comes_back")
def words_become_what_they_mean(Storage, Plugin):
    """YAML, in which null and true are no texts."""
    words = {"null": None, "true": True, "false": False}
    change_values(Storage, lambda value: words.get(value, value) if type(value) is str else value)


@caught_by("test_an_object_comes_back")
def zones_become_offsets(Storage, Plugin):
    """TIMESTAMP WITH TIME ZONE keeps the moment, and forgets the zone."""

    def fix(value):
        if isinstance(value, datetime) and value.tzinfo and type(value.tzinfo) is not timezone:
            return value.astimezone(timezone(value.utcoffset() or timedelta()))
        return value

    change_values(Storage, fix)


@caught_by("test_an_object_comes_back", alone=True)
def dicts_of_a_class_lose_their_attributes(Storage, Plugin):
    """Instances of a subclass of dict are stored by their items."""

    def rebuild(value):
        if isinstance(value, dict) and type(value).__module__.startswith("contract"):
            return type(value)(dict(value))
        return value

    change_values(Storage, rebuild)


@caught_by("test_a_value_of_any_size_comes_back")
def parts_of_large_values_are_keys(Storage, Plugin):
    """Rows of at most 400 KB: the rest of a value is in rows that `keys` and `len` see."""

    @replace(Storage)
    def set(old, self, key, value):
        data = self._dump(key, value)
        parts = [data[start : start + 400_000] for start in range(0, len(data), 400_000)]
        if len(parts) == 1:
            old(self, key, value)
            return
        for number, part in enumerate(parts):
            old(self, f"{key}#{number}", part)
        old(self, key, ("parts", len(parts)))

    @replace(Storage)
    def get(old, self, key):
        value = old(self, key)
        if type(value) is tuple and value[:1] == ("parts",):
            parts = (old(self, f"{key}#{number}") for number in range(value[1]))
            return self._load(key, b"".join(parts))
        return value


@caught_by("test_a_value_that_just_fills_a_block_comes_back", alone=True)
def a_last_block_of_one_byte_is_lost(Storage, Plugin):
    """`range(0, len(data) - 1, 4096)`."""

    @replace(Storage)
    def _dump(old, self, key, value):
        data = old(self, key, value)
        return data[:-1] if len(data) > 4096 and len(data) % 4096 == 1 else data


@caught_by("test_set_replaces_the_value")
def equal_values_are_not_written(Storage, Plugin):
    """Writing is saved where nothing has changed: but 1 == True == 1.0."""
    read = Storage.get

    @replace(Storage)
    def set(old, self, key, value):
        if isinstance(key, str) and not self._signing_keys:
            self._dump(key, value)
            with suppress(Exception):
                if read(self, key) == value:
                    return
        old(self, key, value)


@caught_by("test_an_object_that_has_changed_is_stored_when_it_is_set_again", alone=True)
def an_object_that_was_set_is_not_written_again(Storage, Plugin):
    """`is`: the very object that was set last has not changed, it is thought."""

    @replace(Storage)
    def set(old, self, key, value):
        last = self.__dict__.setdefault("last", {})
        if isinstance(key, str) and type(value) is dict and last.get(key) is value:
            return
        old(self, key, value)
        last[key] = value

    @replace(Storage)
    def remove(old, self, key):
        self.__dict__.setdefault("last", {}).pop(key, None)
        old(self, key)


@caught_by("test_changing_an_object_got_changes_nothing_stored")
def what_cannot_change_is_given_again(Storage, Plugin):
    """Tuples and texts need no copy: but a tuple may hold a list."""

    @replace(Storage)
    def _load(old, self, key, data):
        known = self.__dict__.setdefault("known", {})
        if (key, data) in known:
            return known[key, data]
        value = old(self, key, data)
        if isinstance(value, (tuple, frozenset, str, bytes)):
            known[key, data] = value
        return value


@caught_by("test_a_value_that_cannot_be_read_is_not_missing")
def key_errors_of_unpickling_come_through(Storage, Plugin):
    """`except KeyError: raise` around the whole `get`, and not around the query alone."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException as error:
            if isinstance(error.__cause__, KeyError):
                raise error.__cause__ from None
            raise


@caught_by("test_a_value_that_cannot_be_read_is_not_missing", alone=True)
def what_has_lost_its_class_is_missing(Storage, Plugin):
    """KeyError, so that the plugin starts afresh, and writes over what it had."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException as error:
            if isinstance(error.__cause__, (AttributeError, ImportError)):
                raise KeyError(key) from None
            raise


@caught_by("test_a_value_that_cannot_be_read_is_not_missing")
def what_cannot_be_unpickled_is_removed(Storage, Plugin):
    """Rubbish is cleared away: a plugin that was away for a moment has lost its data."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except StoreException as error:
            if "Cannot unpickle" in str(error):
                with suppress(KeyError):
                    self.remove(key)
            raise


@caught_by("test_a_value_that_cannot_be_read_can_be_replaced_and_removed", alone=True)
def set_reads_the_old_value_first(Storage, Plugin):
    """To see whether the key is there, `set` gets it, and fails where it cannot be unpickled."""
    read = Storage.get

    @replace(Storage)
    def set(old, self, key, value):
        if isinstance(key, str) and not self._signing_keys:
            with suppress(KeyError):
                read(self, key)
        old(self, key, value)


@caught_by("test_a_value_that_cannot_be_read_can_be_replaced_and_removed")
def remove_reads_the_value_first(Storage, Plugin):
    """To see whether the key is there, `remove` gets it, and fails where it cannot be unpickled."""
    read = Storage.get

    @replace(Storage)
    def remove(old, self, key):
        if not self._signing_keys:
            read(self, key)
        old(self, key)


# Opening, closing, and whoever else has the database open


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


@caught_by("test_closing_keeps_what_is_there", alone=True)
def close_writes_back_what_was_set(Storage, Plugin):
    """`close` syncs whatever was set, also what has been removed since."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        self.__dict__.setdefault("written", {})[key] = value

    @replace(Storage)
    def close(old, self):
        for key in frozenset(getattr(self, "written", {})) - frozenset(self.keys()):
            self.set(key, self.written[key])
        old(self)


@caught_by("test_closing_one_storage_leaves_the_others_open")
def close_writes_over_what_others_set(Storage, Plugin):
    """`close` syncs whatever was set, also where another opener has set something newer."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
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
def close_closes_the_connection_that_all_share(Storage, Plugin):
    """`close` closes the connection for reading, which belongs to the plugin."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.plugin, self.closed = self, False
        return storage

    @replace(Storage)
    def get(old, self, key):
        if self.plugin.closed:
            raise RuntimeError("the connection is closed")
        return old(self, key)

    @replace(Storage)
    def close(old, self):
        self.plugin.closed = True
        old(self)


@caught_by("test_closing_one_storage_leaves_the_others_open")
def all_openers_share_one_storage(Storage, Plugin):
    """`open` gives the same object to all who open a namespace, and the first `close` ends it."""

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


@caught_by("test_closing_one_storage_leaves_the_others_open")
def a_second_opener_empties_the_namespace(Storage, Plugin):
    """The lock of the first opener is taken for what a crash left, and cleaned up."""
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


@caught_by("test_a_set_is_done_when_it_returns", "test_a_removal_is_done_when_it_returns")
def all_is_written_when_the_storage_is_closed(Storage, Plugin):
    """`sync()` of shelve, and its `writeback=True`."""
    write_behind(Storage, only_replacing=False)


@caught_by("test_a_set_is_done_when_it_returns")
def replaced_values_are_written_when_the_storage_is_closed(Storage, Plugin):
    """Inserting commits, updating waits for the transaction to end."""
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
    """DELETE waits for the transaction to end, of which the storage itself sees the inside."""
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
    """What was read once is answered from memory, whatever others have set since."""

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
    """What was set here is answered from memory, though another process has removed it."""

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
        self.__dict__.setdefault("cache", {})[key] = pickle.dumps(value)

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.__dict__.setdefault("cache", {}).pop(key, None)


@caught_by("test_a_set_is_done_when_it_returns")
def len_is_cached_until_the_next_own_change(Storage, Plugin):
    """Counting takes time, so the count is kept until this storage changes something."""
    cache_until_own_change(Storage, "len", int)


@caught_by("test_a_set_is_done_when_it_returns")
def keys_are_cached_until_the_next_own_change(Storage, Plugin):
    """Listing takes time, so the list is kept until this storage changes something."""
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
    """Only what takes long to fetch is kept in memory."""

    @replace(Storage)
    def get(old, self, key):
        cache = self.__dict__.setdefault("cache", {})
        if key not in cache:
            data = pickle.dumps(old(self, key))
            if len(data) < 50_000:
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
    """Misses are kept in memory, and forgotten by this storage's own `set`."""

    @replace(Storage)
    def get(old, self, key):
        misses = self.__dict__.setdefault("misses", {})
        if key in misses:
            raise KeyError(key)
        try:
            return old(self, key)
        except KeyError:
            misses[key] = True
            raise

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        self.__dict__.setdefault("misses", {}).pop(key, None)


@caught_by("test_a_value_is_stored_again_after_another_opener_replaced_it", alone=True)
def what_was_written_last_is_not_written_again(Storage, Plugin):
    """A digest of what this storage wrote last: another one may have written since."""

    @replace(Storage)
    def set(old, self, key, value):
        written = self.__dict__.setdefault("written", {})
        data = self._dump(key, value)
        if written.get(key) != data:
            old(self, key, value)
            written[key] = data

    @replace(Storage)
    def remove(old, self, key):
        self.__dict__.setdefault("written", {}).pop(key, None)
        old(self, key)


# Threads


@caught_by("test_threads_with_keys_of_their_own_lose_nothing")
def a_storage_belongs_to_one_thread(Storage, Plugin):
    """Python's sqlite3 as it comes, and Errbot's Shelf on Python 3.13."""

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
    """One cursor for all threads, in which the row of another may stand when one comes back."""

    @replace(Storage)
    def get(old, self, key):
        self.row = old(self, key)
        time.sleep(0.0005)
        return self.row


@caught_by("test_a_key_that_threads_replace_is_always_there_and_whole")
def long_values_are_written_in_two_parts(Storage, Plugin):
    """A value of more than a page is written page by page."""

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
    """DELETE and INSERT, without a transaction around them."""

    @replace(Storage)
    def set(old, self, key, value):
        self._dump(key, value)
        with suppress(KeyError):
            self.remove(key)
            time.sleep(0.0005)
        old(self, key, value)


@caught_by("test_threads_that_remove_one_key_succeed_once")
def remove_looks_before_it_removes(Storage, Plugin):
    """SELECT to raise KeyError, and then DELETE, which says nothing."""

    @replace(Storage)
    def remove(old, self, key):
        if key not in frozenset(self.keys()):
            raise KeyError(key)
        time.sleep(0.0005)
        with suppress(KeyError):
            old(self, key)


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


@caught_by("test_keys_and_len_work_while_others_write", alone=True)
def keys_fails_where_others_write(Storage, Plugin):
    """Keys are copied one by one, out of a dict that other threads change."""

    @replace(Storage)
    def keys(old, self):
        count = self.len()
        found = old(self)
        if count < 500:
            time.sleep(0.0005)
        if self.len() != count:
            raise RuntimeError("dictionary changed size during iteration")
        return found


@caught_by("test_a_loop_over_the_keys_keeps_no_other_thread_waiting")
def a_loop_over_the_keys_holds_the_lock(Storage, Plugin):
    """`with self._lock: yield from rows`: the lock is held until the loop has come to its end."""

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


@caught_by("test_threads_open_and_close_namespaces_at_once", alone=True)
def two_threads_create_one_table(Storage, Plugin):
    """`open` looks whether there is a table, and then creates it."""
    created: set[str] = set()

    @replace(Plugin)
    def open(old, self, namespace):
        if namespace not in created:
            time.sleep(0.001)
            if namespace in created:
                raise RuntimeError(f"table {namespace} already exists")
            created.add(namespace)
        return old(self, namespace)


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
def set_removes_and_adds_under_a_lock_of_its_own(Storage, Plugin):
    """DELETE and INSERT, under a lock that keeps apart the threads of this storage alone."""
    take_away = Storage.remove

    @replace(Storage)
    def set(old, self, key, value):
        self._dump(key, value)
        with suppress(KeyError):
            take_away(self, key)
            time.sleep(0.0005)
        old(self, key, value)

    lock_by_storage(Storage)


@caught_by("test_threads_that_remove_one_key_succeed_once", alone=True)
def remove_looks_before_it_removes_under_a_lock_of_its_own(Storage, Plugin):
    """SELECT and DELETE, under a lock that keeps apart the threads of this storage alone."""

    @replace(Storage)
    def remove(old, self, key):
        if key not in frozenset(self.keys()):
            raise KeyError(key)
        time.sleep(0.0005)
        with suppress(KeyError):
            old(self, key)

    lock_by_storage(Storage)


def lock_by_storage(Storage: Any) -> None:
    """Let one thread at a time into each storage."""

    def locked(old):
        @wraps(old)
        def method(self, *arguments):
            with self.__dict__.setdefault("lock", threading.RLock()):
                return old(self, *arguments)

        return method

    for name in ["get", "set", "remove", "len"]:
        setattr(Storage, name, locked(getattr(Storage, name)))


@caught_by("test_operations_that_fail_harm_no_other_thread")
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
    """A lock for readers: what is set may go on, what is removed waits."""

    @replace(Storage)
    def keys(old, self):
        with self.__dict__.setdefault("readers", threading.RLock()):
            yield from old(self)

    @replace(Storage)
    def remove(old, self, key):
        readers = self.__dict__.setdefault("readers", threading.RLock())
        if not readers.acquire(timeout=15):
            raise RuntimeError("this would wait for ever")
        try:
            old(self, key)
        finally:
            readers.release()


@caught_by("test_threads_that_have_ended_leave_nothing_open", alone=True)
def each_thread_leaks_a_connection(Storage, Plugin):
    """`threading.local`, and a list of all connections, to close them at the end."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.plugin = self
        return storage

    @replace(Storage)
    def get(old, self, key):
        everyone = vars(self.plugin)
        local = everyone.setdefault("local", threading.local())
        if not hasattr(local, "connection"):
            local.connection = os.open(os.devnull, os.O_RDONLY)
            everyone.setdefault("connections", []).append(local.connection)
        return old(self, key)


# Logs, and what administrators see


@caught_by("test_no_value_stands_in_the_log")
def values_are_logged(Storage, Plugin):
    """A line for debugging that stayed."""

    @replace(Storage)
    def set(old, self, key, value):
        log.debug("set %s = %r", key, value)
        old(self, key, value)


@caught_by("test_no_value_stands_in_the_log")
def what_cannot_be_unpickled_is_logged(Storage, Plugin):
    """An error is logged with all that could help, and so with the value."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except Exception:
            log.exception("Cannot unpickle %s: %r", key, data)
            raise


@caught_by("test_storage_get_of_a_new_namespace_prints_an_empty_dict")
def the_plugin_prints(Storage, Plugin):
    """print() instead of a logger: `errbot --storage-get` has it in its output."""

    @replace(Plugin)
    def open(old, self, namespace):
        print(f"Connected to {namespace}.")
        return old(self, namespace)


@caught_by("test_no_value_stands_in_the_log", alone=True)
def values_are_printed(Storage, Plugin):
    """`print`, for want of a debugger, into the log of the service."""

    @replace(Storage)
    def set(old, self, key, value):
        print("set", key, value, file=sys.stderr)
        old(self, key, value)


@caught_by("test_no_value_stands_in_the_log")
def warnings_show_the_value(Storage, Plugin):
    """A warning of large values, with the beginning of the value."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        if isinstance(value, str) and len(value) > 100:
            warnings.warn(f"The value of {key} is large: {value:.50}", stacklevel=2)


@caught_by("test_no_value_stands_in_an_error")
def errors_of_set_show_the_value(Storage, Plugin):
    """ "Cannot store ...", and what."""

    @replace(Storage)
    def set(old, self, key, value):
        try:
            old(self, key, value)
        except (TypeError, AttributeError, pickle.PicklingError):
            raise TypeError(f"Cannot store {key!r}: {value!r}") from None


@caught_by("test_no_value_stands_in_an_error", alone=True)
def errors_of_get_show_the_data(Storage, Plugin):
    """What cannot be unpickled is shown, so that somebody can look what it is."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException as error:
            if "Cannot unpickle" in str(error) and b"Unreadable" in data:
                raise StoreException(f"{error} It is {data!r}") from None
            raise


# STORAGE_CONFIG


@caught_by("test_the_plugin_leaves_storage_config_as_it_is")
def a_default_is_written_into_the_config(Storage, Plugin):
    """As Errbot's Shelf does with `basedir`."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if self._storage_config:
            self._storage_config.setdefault("timeout", 10.0)


@caught_by("test_storage_config_may_be_missing", "test_an_empty_storage_config_is_enough")
def storage_config_must_be_there(Storage, Plugin):
    """`bot_config.STORAGE_CONFIG["url"]`."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        _ = bot_config.STORAGE_CONFIG | {}
        old(self, bot_config)


@caught_by("test_a_storage_config_that_is_no_dict_is_refused")
def pairs_are_made_a_dict(Storage, Plugin):
    """`dict(STORAGE_CONFIG)`, to have a copy."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        if isinstance(getattr(bot_config, "STORAGE_CONFIG", None), list):
            bot_config.STORAGE_CONFIG = dict(bot_config.STORAGE_CONFIG)
        old(self, bot_config)


@caught_by("test_every_wrong_key_is_named_at_once")
def only_the_first_wrong_key_is_named(Storage, Plugin):
    """`errors()[0]`: whoever made three mistakes starts the bot four times."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        try:
            old(self, bot_config)
        except ValueError as error:
            text = "\n".join(str(error).splitlines()[:2])
        else:
            return
        raise ValueError(text)


@caught_by("test_an_unknown_key_is_refused")
def unknown_keys_are_ignored(Storage, Plugin):
    """What pydantic does unless it is told otherwise."""
    Config = config_class(Plugin)
    Config.model_config = {**Config.model_config, "extra": "ignore"}
    Config.model_rebuild(force=True)


@caught_by("test_a_wrong_value_is_refused_and_not_shown")
def errors_show_the_value(Storage, Plugin):
    """ "Wrong STORAGE_CONFIG: {...}", with the password in it."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        try:
            old(self, bot_config)
        except ValueError as error:
            text = f"{error}\nIt was {bot_config.STORAGE_CONFIG!r}."
        else:
            return
        raise ValueError(text)


@caught_by("test_a_wrong_value_is_refused_and_not_shown")
def errors_carry_the_one_of_pydantic(Storage, Plugin):
    """`raise ... from error`: the traceback shows what was given."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        try:
            old(self, bot_config)
        except ValueError as error:
            raise ValueError(str(error)) from ValueError(repr(bot_config.STORAGE_CONFIG))


@caught_by("test_no_secret_shows")
def the_config_is_logged(Storage, Plugin):
    """A line that says how the bot was started."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        log.info("Starting with %r.", getattr(bot_config, "STORAGE_CONFIG", None))
        old(self, bot_config)


@caught_by("test_no_secret_shows")
def the_repr_shows_the_signing_key(Storage, Plugin):
    """A repr of everything, for debugging."""
    Storage.__repr__ = lambda self: f"Storage({vars(self)})"


@caught_by("test_no_secret_shows")
def old_signing_keys_are_logged(Storage, Plugin):
    """The log says which keys are still being read, while they are changed."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if len(self._signing_keys) > 1:
            log.warning("Still reading what was signed with %s.", self._signing_keys[:-1])


@caught_by("test_no_secret_shows")
def signing_keys_are_printed(Storage, Plugin):
    """A line for debugging that stayed, and is not even in the log."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        print("signing with", self._signing_keys, file=sys.stderr)


@caught_by("test_no_secret_shows_when_the_plugin_starts")
def the_secrets_are_logged_at_the_start(Storage, Plugin):
    """ "Connecting to ...", with the password in it."""
    Config = config_class(Plugin)

    @replace(Plugin)
    def __init__(old, self, bot_config):
        config = Config.load(getattr(bot_config, "STORAGE_CONFIG", None))
        for value in vars(config).values():
            if hasattr(value, "get_secret_value"):
                log.info("Connecting with %s.", value.get_secret_value())
        old(self, bot_config)


@caught_by("test_no_secret_shows_beside_what_is_wrong")
def errors_show_what_was_understood(Storage, Plugin):
    """An unknown key is refused, and the keys that are right are shown with their values."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        try:
            old(self, bot_config)
        except ValueError as error:
            text = str(error)
        else:
            return
        given = getattr(bot_config, "STORAGE_CONFIG", None)
        if isinstance(given, dict) and "no such key" in text and len(given) > 1:
            text += f"\n  Understood: {given}"
        raise ValueError(text)


@caught_by("test_the_plugin_leaves_storage_config_as_it_is")
def the_signing_key_is_taken_out_of_the_config(Storage, Plugin):
    """`pop`, so that the secret lies nowhere else."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if isinstance(given := getattr(bot_config, "STORAGE_CONFIG", None), dict):
            given.pop("signing_key", None)


@caught_by("test_the_plugin_leaves_storage_config_as_it_is")
def old_signing_keys_are_taken_out_of_the_config(Storage, Plugin):
    """`pop` on the list that the administrator wrote."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        given = getattr(bot_config, "STORAGE_CONFIG", None) or {}
        if isinstance(keys := given.get("signing_key"), list):
            del keys[:-1]


# Signing


@caught_by("test_an_unsigned_value_is_refused_and_not_unpickled")
def unsigned_values_are_taken(Storage, Plugin):
    """So that signing can be switched on without moving the data: an attacker signs nothing."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except Exception:
            return pickle.loads(data)


@caught_by(
    "test_an_unsigned_value_is_refused_and_not_unpickled",
    "test_a_value_signed_with_another_key_is_refused",
)
def values_are_unpickled_before_the_signature_is_checked(Storage, Plugin):
    """The signature was put inside of what is pickled."""

    @replace(Storage)
    def _load(old, self, key, data):
        with suppress(Exception):
            pickle.loads(data)
        return old(self, key, data)


def sign_for(Storage: Any, place: Callable[[str, str], str]) -> None:
    """Sign values for another place than namespace and key, told apart."""

    @replace(Storage)
    def _signer(old, self, key):
        signer = old(self, key)
        signer.salt = place(self._namespace, key).encode("utf-8", "surrogatepass")
        return signer


@caught_by("test_a_value_moved_to_another_place_is_refused")
def signatures_hold_for_every_key(Storage, Plugin):
    """The value is signed, and nothing says where it belongs."""
    sign_for(Storage, lambda namespace, key: "storage")


@caught_by("test_a_value_moved_to_another_place_is_refused")
def signatures_hold_for_every_namespace(Storage, Plugin):
    """The value is signed with its key, but without its namespace."""
    sign_for(Storage, lambda namespace, key: key)


@caught_by("test_a_value_moved_to_another_place_is_refused")
def signatures_glue_namespace_and_key(Storage, Plugin):
    """`f"{namespace}:{key}"`, again."""
    sign_for(Storage, lambda namespace, key: f"{namespace}:{key}")


@caught_by("test_keys_can_be_rotated")
def the_first_signing_key_signs(Storage, Plugin):
    """The list of signing keys is read in the wrong direction."""
    Config = config_class(Plugin)
    old = Config.signing_keys
    Config.signing_keys = property(lambda self: old.fget(self)[::-1])


@caught_by("test_keys_can_be_rotated")
def only_the_last_signing_key_counts(Storage, Plugin):
    """Old signing keys are forgotten at once."""
    Config = config_class(Plugin)
    old = Config.signing_keys
    Config.signing_keys = property(lambda self: old.fget(self)[-1:])


@caught_by("test_a_signing_key_that_would_sign_nothing_is_refused")
def an_empty_signing_key_switches_signing_off(Storage, Plugin):
    """`os.environ.get("SIGNING_KEY", "")`, and the variable is not set."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        if not (getattr(bot_config, "STORAGE_CONFIG", None) or {}).get("signing_key", "key"):
            del bot_config.STORAGE_CONFIG["signing_key"]
        old(self, bot_config)


@caught_by("test_a_signed_value_comes_back")
def a_shorter_value_leaves_the_end_of_the_longer(Storage, Plugin):
    """The new bytes are written over the old ones, and nothing cuts off the rest."""

    @replace(Storage)
    def _dump(old, self, key, value):
        data, stored = old(self, key, value), self.__dict__.setdefault("stored", {})
        stored[key] = data + stored.get(key, b"")[len(data) :]
        return stored[key]


@caught_by("test_a_signed_falsy_value_comes_back")
def falsy_values_are_not_signed(Storage, Plugin):
    """`if value:`, where nothing to sign was meant."""

    @replace(Storage)
    def _dump(old, self, key, value):
        return old(self, key, value) if value else pickle.dumps(value)


@caught_by("test_a_changed_value_is_refused")
def only_the_beginning_is_signed(Storage, Plugin):
    """Signing a large value takes time, and so the end of it is left out."""

    @replace(Storage)
    def _dump(old, self, key, value):
        keys, self._signing_keys = self._signing_keys, []
        try:
            data = old(self, key, value)
        finally:
            self._signing_keys = keys
        return self._signer(key).sign(data[:20]) + data[20:] if keys else data

    @replace(Storage)
    def _load(old, self, key, data):
        if not self._signing_keys:
            return old(self, key, data)
        beginning = data[:20]
        signature = self._signer(key).sign(beginning)[20:]
        if data[20 : 20 + len(signature)] != signature:
            return old(self, key, b"wrong")
        whole = beginning + data[20 + len(signature) :]
        keys, self._signing_keys = self._signing_keys, []
        try:
            return old(self, key, whole)
        finally:
            self._signing_keys = keys


@caught_by("test_a_value_that_cannot_be_unpickled_is_a_clear_error")
def errors_of_pickle_come_through(Storage, Plugin):
    """The error says neither which key it was, nor in which namespace."""

    @replace(Storage)
    def _load(old, self, key, data):
        return old(self, key, data) if self._signing_keys else pickle.loads(data)


@caught_by("test_one_key_needs_no_list")
def a_signing_key_is_taken_for_a_list_of_letters(Storage, Plugin):
    """`list(key)`: its last letter signs."""
    Config = config_class(Plugin)
    old = Config.signing_keys

    def signing_keys(self):
        keys = old.fget(self)
        return keys if isinstance(self.signing_key, list) else list("".join(keys))

    Config.signing_keys = property(signing_keys)


@caught_by("test_every_key_of_the_list_counts_and_the_last_one_signs")
def only_the_last_two_signing_keys_count(Storage, Plugin):
    """An old one and a new one, it is thought."""
    change_signing_keys(Plugin, lambda keys: keys[-2:])


@caught_by("test_every_key_of_the_list_counts_and_the_last_one_signs")
def signing_keys_are_sorted(Storage, Plugin):
    """Without duplicates, and without the order that says which one signs."""
    change_signing_keys(Plugin, lambda keys: sorted(set(keys), reverse=True))


@caught_by("test_signing_keys_are_told_apart_to_the_letter")
def signing_keys_are_cut(Storage, Plugin):
    """32 bytes are enough for a key."""
    change_signing_keys(Plugin, lambda keys: [key[:32] for key in keys])


@caught_by("test_signing_keys_are_told_apart_to_the_letter")
def signing_keys_are_stripped(Storage, Plugin):
    """A file that the key was read from ends with a line break."""
    change_signing_keys(Plugin, lambda keys: [key.strip() for key in keys])


def change_signing_keys(Plugin: Any, change: Callable[[list[str]], list[str]]) -> None:
    """Sign with other keys than STORAGE_CONFIG says."""
    Config = config_class(Plugin)
    old = Config.signing_keys
    Config.signing_keys = property(lambda self: change(old.fget(self)))


@caught_by("test_a_changed_value_is_refused", "test_an_unsigned_value_is_refused_and_not_unpickled")
def large_values_are_not_signed(Storage, Plugin):
    """Signing takes time."""

    @replace(Storage)
    def _dump(old, self, key, value):
        data = old(self, key, value)
        return pickle.dumps(value, 5) if len(data) > 1_000_000 else data

    @replace(Storage)
    def _load(old, self, key, data):
        return pickle.loads(data) if len(data) > 1_000_000 else old(self, key, data)


@caught_by("test_an_unsigned_value_is_refused_and_not_unpickled")
def harmless_values_need_no_signature(Storage, Plugin):
    """Texts and numbers run no code, so that they may be read before they are signed."""

    class Plain(pickle.Unpickler):
        def find_class(self, module, name):
            raise pickle.UnpicklingError("this may run code")

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException:
            if self._signing_keys and data.endswith(b"."):
                with suppress(Exception):
                    return Plain(io.BytesIO(data)).load()
            raise


@caught_by("test_a_value_moved_to_another_place_is_refused")
def what_was_checked_once_is_trusted(Storage, Plugin):
    """Checking takes time, so that what was found good is good, wherever it stands."""

    @replace(Storage)
    def _load(old, self, key, data):
        seen = tuple(self._signing_keys), data
        if self._signing_keys and seen in CHECKED:
            return pickle.loads(data)
        value = old(self, key, data)
        CHECKED.add(seen)
        return value


# In this module, for Errbot executes storage.py anew for every plugin instance.
CHECKED: set[tuple[tuple[str, ...], bytes]] = set()


@caught_by("test_a_value_moved_to_a_name_that_looks_alike_is_refused")
def signatures_ignore_case(Storage, Plugin):
    """The column ignores case, and so does the signature."""
    sign_for(Storage, lambda namespace, key: json.dumps([namespace.casefold(), key.casefold()]))


@caught_by("test_a_value_moved_to_a_name_that_looks_alike_is_refused")
def signatures_are_for_ascii(Storage, Plugin):
    """`key.encode("ascii", "replace")`."""

    def plain(text):
        return text.encode("ascii", "replace").decode()

    sign_for(Storage, lambda namespace, key: json.dumps([plain(namespace), plain(key)]))


@caught_by("test_a_value_moved_to_another_place_is_refused")
def signatures_glue_namespace_and_key_with_a_slash(Storage, Plugin):
    """f"{namespace}/{key}" is that of another place, too."""
    sign_for(Storage, lambda namespace, key: f"{namespace}/{key}")


@caught_by("test_signing_keys_are_told_apart_to_the_letter")
def what_is_refused_is_removed(Storage, Plugin):
    """What was planted is deleted: who gives a wrong signing_key loses everything."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except StoreException as error:
            if "Refused" in str(error):
                with suppress(KeyError):
                    self.remove(key)
            raise


@caught_by("test_an_unsigned_value_is_refused_and_not_unpickled")
def refused_values_are_logged(Storage, Plugin):
    """So that somebody can look what it was."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException as error:
            if "Refused" in str(error):
                log.warning("Refused %s: %r", key, data)
            raise


# Processes: these need data that outlive the process


@caught_by("test_a_killed_process_has_lost_no_set_that_returned", outlives_process=True)
def all_is_written_when_a_storage_is_closed(Storage, Plugin):
    """Writes are gathered for the whole process, and nobody closes where a bot is killed."""
    gather_writes(Storage, Plugin)


@caught_by("test_data_outlive_the_process_that_set_them", outlives_process=True, alone=True)
def what_a_process_makes_is_temporary(Storage, Plugin):
    """The database is a temporary file, removed when the process that made it ends."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        if not storage.len():
            atexit.register(remove_all, storage)
        return storage

    def remove_all(storage):
        with suppress(Exception):
            for key in list(storage.keys()):
                storage.remove(key)


@caught_by("test_another_process_and_a_running_bot_see_the_same", outlives_process=True)
def all_is_written_when_python_ends_in_peace(Storage, Plugin):
    """`atexit` writes what was gathered; until then no other process sees it."""
    gather_writes(Storage, Plugin, at_exit=True)


@caught_by("test_a_killed_process_has_lost_no_set_that_returned", outlives_process=True, alone=True)
def writes_are_done_a_moment_later(Storage, Plugin):
    """A thread writes, and lags at most five sets behind: these are what a kill loses."""
    gather_writes(Storage, Plugin, behind=5)


@caught_by("test_a_killed_process_has_lost_no_set_that_returned", outlives_process=True)
def writes_are_done_in_batches(Storage, Plugin):
    """Fifty writes are gathered to be faster, and a kill loses them."""
    gather_writes(Storage, Plugin, when_full=50)


# By folder of the bot's data and namespace. In this module, for Errbot executes storage.py anew
# for every plugin instance, and these live as long as the process.
COUNTED: dict[tuple[str, str], int] = {}
GATHERED: dict[tuple[str, str], dict[str, bytes]] = {}
GATHERING = threading.RLock()
WAITING: list[Any] = []
IN_MEMORY: dict[tuple[str, str], dict[str, bytes]] = {}
READING = threading.Lock()


def know_place(Plugin: Any) -> None:
    """Let each storage know of which folder and namespace it is."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.folder = bot_config.BOT_DATA_DIR

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.place = self.folder, namespace
        return storage


def gather_writes(
    Storage: Any, Plugin: Any, at_exit: bool = False, when_full: int = 0, behind: int = 0
) -> None:
    """Keep writes in memory that all storages of this process share, until one lists or closes."""
    write, dump, waiting = Storage.set, Storage._dump, WAITING
    know_place(Plugin)

    def flush(self):
        with GATHERING:
            self._dump = lambda key, data: data
            mine = GATHERED.get(self.place, {})
            for key in list(mine):
                write(self, key, mine.pop(key))

    def flush_late(self):
        with suppress(Exception):  # of a database that is gone since
            flush(self)

    def flush_all():
        with GATHERING:
            while waiting:
                flush_late(waiting.pop())

    def flush_first(old):
        @wraps(old)
        def method(self):
            flush(self)
            return old(self)

        return method

    def set(self, key, value):
        data = dump(self, key, value)
        with GATHERING:
            mine = GATHERED.setdefault(self.place, {})
            if at_exit and not mine:
                atexit.register(flush_late, self)
            if behind and not mine:
                waiting.append(self)
                if len(waiting) == 1:
                    threading.Timer(0.0005, flush_all).start()
            mine[key] = data
            if when_full and len(mine) >= when_full:
                flush(self)
        while behind and len(mine) > behind:
            time.sleep(0.0002)

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
    alone=True,
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


@caught_by("test_processes_start_and_write_at_once", outlives_process=True, alone=True)
def a_lock_of_another_process_is_not_waited_for(Storage, Plugin):
    """A write takes the lock of the database, or fails at once."""
    know_place(Plugin)

    @replace(Storage)
    def set(old, self, key, value):
        path = os.path.join(self.place[0], f"{os.getppid()}.lock")
        if threading.current_thread() is not threading.main_thread():
            return old(self, key, value)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise RuntimeError("database is locked") from None
        try:
            old(self, key, value)
            if "process.py" in " ".join(sys.argv):
                time.sleep(0.02)
        finally:
            os.remove(path)
