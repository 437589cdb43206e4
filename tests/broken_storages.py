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
import inspect
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
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, NamedTuple

log = logging.getLogger("errbot.storage.storage")


class Broken(NamedTuple):
    """A broken storage, and the tests that must catch it."""

    break_it: Callable[[Any, Any], None]
    caught_by: frozenset[str]
    outlives_process: bool
    """Whether it can only be seen where the data outlive the process."""


BROKEN: dict[str, Broken] = {}


def caught_by(*tests: str, outlives_process: bool = False) -> Any:
    """Add a broken storage to the collection, with the names of the tests that must catch it."""

    def add(function: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        BROKEN[function.__name__] = Broken(function, frozenset(tests), outlives_process)
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


@caught_by("test_getting_a_missing_key_raises_key_error")
def a_get_that_misses_rolls_back_the_set_before(Storage, Plugin):
    """Every error rolls back, and the `set` before it was in the same transaction."""
    forget_the_last_set_when(Storage, "get")


@caught_by("test_removing_a_missing_key_raises_key_error")
def a_remove_that_misses_rolls_back_the_set_before(Storage, Plugin):
    """Every error rolls back, and the `set` before it was in the same transaction."""
    forget_the_last_set_when(Storage, "remove")


def forget_the_last_set_when(Storage: Any, missing: str) -> None:
    """Undo a `set` when the operation that comes next misses its key."""
    take_away, last = Storage.remove, "_key_of_the_last_set"

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        setattr(self, last, key)

    def followed(name):
        old = getattr(Storage, name)

        @wraps(old)
        def method(self, *arguments):
            before = self.__dict__.pop(last, None)
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


@caught_by("test_no_key_is_found_under_another")
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


@caught_by("test_a_removed_key_is_gone_and_can_be_set_again")
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


@caught_by("test_a_storage_serves_as_a_mapping")
def misses_are_cached(Storage, Plugin):
    """What was not there once is taken for missing for good."""

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


# Counting and listing


@caught_by("test_len_and_keys_agree_at_every_moment")
def len_is_cached_until_the_next_set(Storage, Plugin):
    """Counting is slow, so the count is kept until a `set`; `remove` was forgotten."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        self.__dict__.pop("count", None)

    @replace(Storage)
    def len(old, self):
        if "count" not in self.__dict__:
            self.count = old(self)
        return self.count


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


@caught_by("test_keys_gives_str")
def keys_are_a_kind_of_str(Storage, Plugin):
    """The client gives strings of a class of its own, with quoting."""

    class Quoted(str):
        pass

    @replace(Storage)
    def keys(old, self):
        return (Quoted(key) for key in old(self))


@caught_by("test_keys_starts_anew_at_each_call")
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


@caught_by("test_starting_keys_does_not_fetch_them_all")
def keys_sorts_all_rows(Storage, Plugin):
    """ORDER BY without an index, so that listings look tidy."""

    @replace(Storage)
    def keys(old, self):
        yield from [key for _, key in sorted((f"{key} ".lower(), key) for key in old(self))]


@caught_by("test_keys_can_be_removed_while_iterating")
def keys_pages_by_position(Storage, Plugin):
    """LIMIT and OFFSET: where a page has been removed, the next one is skipped."""

    @replace(Storage)
    def keys(old, self):
        start = 0
        while page := list(old(self))[start : start + 300]:
            yield from page
            start += 300


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
def keys_counts_its_pages_at_the_start(Storage, Plugin):
    """The pages are right, and as many are fetched as there were when the loop began."""

    @replace(Storage)
    def keys(old, self):
        last = None
        for _ in range(-(-self.len() // 300)):
            page = sorted(key for key in old(self) if last is None or key > last)[:300]
            yield from page
            last = page[-1] if page else last


@caught_by("test_keys_can_be_added_while_iterating")
def keys_pages_by_position_from_the_newest(Storage, Plugin):
    """LIMIT and OFFSET, newest first: what is added pushes keys into the next page."""

    @replace(Storage)
    def keys(old, self):
        start = 0
        while page := list(old(self))[::-1][start : start + 300]:
            yield from page
            start = start + 300 if len(page) == 300 else start + len(page)


@caught_by("test_values_can_be_replaced_while_iterating")
def keys_pages_by_the_time_of_the_last_change(Storage, Plugin):
    """A key that is set in a loop over the keys comes again at its end, and again."""
    clock = itertools.count(1)
    times: dict[Any, int] = {}

    @replace(Storage)
    def set(old, self, key, value):
        if (self._namespace, key) in times or self.len() < 3_000:
            times[self._namespace, key] = next(clock)
        old(self, key, value)

    @replace(Storage)
    def keys(old, self):
        def changed(key):
            return times.get((self._namespace, key), 0)

        last, given = -1, 0
        limit = 250  # more than other tests have while they change keys in threads
        while True:
            page = sorted(
                (key for key in old(self) if changed(key) > last or given == 0), key=changed
            )[: limit + 50]
            if not page:
                return
            last, given = changed(page[-1]), given + 1
            yield from page


@caught_by("test_a_loop_over_the_keys_can_be_left")
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


@caught_by("test_clear_empties_the_namespace")
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


@caught_by("test_keys_that_look_alike_are_told_apart")
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


@caught_by("test_a_key_is_held_to_the_letter_or_refused")
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


@caught_by("test_hard_keys_are_told_apart_or_refused")
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


@caught_by("test_a_key_that_is_no_str_is_refused")
def bytes_are_decoded(Storage, Plugin):
    """A key of bytes is decoded, to be tolerant."""
    change_keys(Storage, lambda key: key.decode() if isinstance(key, bytes) else key)


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


@caught_by("test_namespaces_that_look_alike_are_told_apart")
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


@caught_by("test_a_key_is_not_removed_from_another_namespace")
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


@caught_by("test_any_name_can_be_a_namespace")
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


@caught_by("test_hundreds_of_namespaces_leak_nothing")
def each_namespace_leaks_a_connection(Storage, Plugin):
    """`open` connects, and `close` leaves it to the garbage collector, which never comes."""
    connections = []

    @replace(Plugin)
    def open(old, self, namespace):
        connections.append(os.open(os.devnull, os.O_RDONLY))
        return old(self, namespace)


@caught_by("test_hundreds_of_namespaces_can_be_open_at_once")
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


@caught_by("test_a_falsy_value_comes_back")
def an_empty_dict_is_a_plain_one(Storage, Plugin):
    """`return value or {}`, for whoever wants to go on with it."""
    change_values(Storage, lambda value: value or {} if isinstance(value, dict) else value)


@caught_by("test_a_falsy_value_counts_as_there")
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


@caught_by("test_a_plain_value_comes_back")
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


@caught_by("test_a_container_comes_back_with_its_types")
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


@caught_by("test_a_deeply_nested_value_comes_back")
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


@caught_by("test_a_value_that_holds_itself_comes_back")
def objects_are_stored_attribute_by_attribute(Storage, Plugin):
    """Each attribute has its column, with a pickle of its own."""

    def change(value):
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts = {name: pickle.dumps(part) for name, part in vars(value).items()}
            value = copy.copy(value)
            vars(value).update({name: pickle.loads(part) for name, part in parts.items()})
        return value

    change_values(Storage, change)


@caught_by("test_an_object_held_twice_comes_back_as_one")
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


@caught_by("test_a_value_of_any_size_comes_back")
def large_values_are_refused(Storage, Plugin):
    """max_allowed_packet of MySQL was 4 MB for long."""

    @replace(Storage)
    def _dump(old, self, key, value):
        data = old(self, key, value)
        if len(data) > 4 * 1024 * 1024:
            raise ValueError("Packet too large.")
        return data


@caught_by("test_set_replaces_the_value")
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


@caught_by("test_changing_an_object_after_set_changes_nothing_stored")
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


@caught_by("test_changing_an_object_got_changes_nothing_stored")
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


@caught_by("test_a_failed_set_leaves_the_old_value")
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


@caught_by("test_a_failed_set_adds_no_key")
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


@caught_by("test_mutable_saves_what_was_changed")
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


# Opening, closing, and whoever else has the database open


@caught_by("test_errbot_finds_the_storage_plugin")
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


@caught_by("test_an_empty_storage_counts_as_open")
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


@caught_by("test_closing_keeps_what_is_there")
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


@caught_by("test_closing_one_storage_leaves_the_others_open")
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


@caught_by("test_a_removal_is_done_when_it_returns")
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


@caught_by("test_threads_with_keys_of_their_own_lose_nothing")
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
        if type(value) is list and 100 < len(value) < 500:
            before = value_or_none(self, key)
            if type(before) is list:
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


@caught_by("test_keys_and_len_work_while_others_write")
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


@caught_by("test_threads_open_and_close_namespaces_at_once")
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


# Processes: these need data that outlive the process


@caught_by("test_a_killed_process_has_lost_no_set_that_returned", outlives_process=True)
def all_is_written_when_a_storage_is_closed(Storage, Plugin):
    """Writes are gathered for the whole process, and nobody closes where a bot is killed."""
    gather_writes(Storage, Plugin)


@caught_by("test_data_outlive_the_process_that_set_them", outlives_process=True)
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


@caught_by("test_a_killed_process_has_lost_no_set_that_returned", outlives_process=True)
def writes_are_done_a_moment_later(Storage, Plugin):
    """A thread writes what was set in the last tenth of a second, and a kill loses it."""
    gather_writes(Storage, Plugin, after=0.1)


@caught_by("test_a_killed_process_has_lost_no_set_that_returned", outlives_process=True)
def writes_are_done_in_batches(Storage, Plugin):
    """Fifty writes are gathered to be faster, and a kill loses them."""
    gather_writes(Storage, Plugin, when_full=50)


# By folder of the bot's data and namespace. In this module, for Errbot executes storage.py anew
# for every plugin instance, and these live as long as the process.
GATHERED: dict[tuple[str, str], dict[str, bytes]] = {}
GATHERING = threading.RLock()
IN_MEMORY: dict[tuple[str, str], dict[str, bytes]] = {}


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
    Storage: Any, Plugin: Any, at_exit: bool = False, when_full: int = 0, after: float = 0
) -> None:
    """Keep writes in memory that all storages of this process share, until one lists or closes."""
    write, dump = Storage.set, Storage._dump
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
            if after and not mine:
                threading.Timer(after, flush_late, [self]).start()
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


@caught_by("test_two_processes_write_at_once", outlives_process=True)
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
                time.sleep(0.3)
        finally:
            os.remove(path)
