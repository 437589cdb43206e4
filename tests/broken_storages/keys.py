"""Storages that lose, repeat, mix up or invent keys."""

import hashlib
import heapq
import itertools
import os
import re
import threading
import unicodedata
import weakref
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from itertools import islice
from typing import Any

from broken_storages.support import bytes_or_none, caught_by, know_place, rename_keys, replace


def change_keys(Storage: Any, change: Callable[[str], Any]) -> None:
    """Store everything under a changed key."""
    rename_keys(Storage, lambda _, key: change(key))


def encode_keys(Storage: Any, encoding: str, errors: str) -> None:
    """Store everything under the key after encoding and decoding."""
    change_keys(
        Storage,
        lambda key: (
            key.encode(encoding, errors).decode(encoding, errors) if isinstance(key, str) else key
        ),
    )


@caught_by("test_removing_a_missing_key_raises_key_error")
def remove_of_a_missing_key_says_nothing(Storage, Plugin):
    """DELETE reports nothing if no row matches, and nobody checks the row count."""

    @replace(Storage)
    def remove(old, self, key):
        with suppress(KeyError):
            old(self, key)


@caught_by("test_getting_a_missing_key_raises_key_error")
def get_of_a_missing_key_gives_none(Storage, Plugin):
    """The client's own `get` returns None, which is passed on."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except KeyError:
            return None


@caught_by("test_getting_a_missing_key_raises_key_error")
def get_of_a_missing_key_raises_the_error_of_the_client(Storage, Plugin):
    """The client has its own error for a missing key, which Errbot does not know."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except KeyError:
            raise LookupError(f"no row {key}") from None


@caught_by("test_removing_a_missing_key_raises_key_error")
def remove_of_a_missing_key_raises_the_error_of_the_client(Storage, Plugin):
    """`list.remove` raises ValueError if nothing is found, which is passed on."""

    @replace(Storage)
    def remove(old, self, key):
        try:
            old(self, key)
        except KeyError:
            raise ValueError(f"{key} is not there") from None


@caught_by("test_getting_a_missing_key_raises_key_error", alone=True)
def a_get_that_misses_rolls_back_the_set_before(Storage, Plugin):
    """Every error rolls back, and the previous `set` was in the same transaction."""
    forget_the_last_set_when(Storage, "get")


@caught_by("test_removing_a_missing_key_raises_key_error", alone=True)
def a_remove_that_misses_rolls_back_the_set_before(Storage, Plugin):
    """Every error rolls back, and the previous `set` was in the same transaction."""
    forget_the_last_set_when(Storage, "remove")


def forget_the_last_set_when(Storage: Any, missing: str) -> None:
    """Undo a thread's `set` if its next operation misses its key."""
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
                main = threading.current_thread() is threading.main_thread()
                if name == missing and before is not None and main:
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
            listed = self.keys() if self.len() < 50 else []  # Another test counts steps.
            following = sorted(other for other in listed if other.startswith(key))
            if not following:
                raise
            return old(self, following[0])


@caught_by("test_len_and_keys_agree_at_every_moment", alone=True)
def len_is_cached_until_the_next_set(Storage, Plugin):
    """Counting is slow, so the count is cached until a `set`. `remove` was forgotten.

    It is cached only if there are some keys, but not so many that they change all the time.
    """
    know_place(Plugin)

    @replace(Storage)
    def len(old, self):
        if self.place in COUNTED:
            return COUNTED[self.place]
        count = old(self)
        if 8 < count < 21:
            COUNTED[self.place] = count
        return count

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        COUNTED.pop(self.place, None)


@caught_by("test_keys_gives_thousands_of_keys_once_each")
def keys_gives_the_first_thousand(Storage, Plugin):
    """The database's API returns at most 1,000 rows, as a footnote says."""

    @replace(Storage)
    def keys(old, self):
        return itertools.islice(old(self), 1_002)


@caught_by("test_keys_gives_thousands_of_keys_once_each")
def the_oldest_keys_are_evicted(Storage, Plugin):
    """`maxmemory-policy allkeys-lru`: the database was intended as a cache."""

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
    """The database's quick count is only an estimate for large tables."""

    @replace(Storage)
    def len(old, self):
        return old(self) if old(self) < 1_500 else round(old(self) * 1.01)


@caught_by("test_keys_gives_str")
def keys_are_bytes(Storage, Plugin):
    """The client returns bytes, and nobody decodes them."""

    @replace(Storage)
    def keys(old, self):
        return (key.encode("utf-8", "surrogatepass") for key in old(self))


@caught_by("test_keys_gives_str", alone=True)
def keys_are_a_kind_of_str(Storage, Plugin):
    """The client returns strings of its own class, with quoting."""

    class Quoted(str):
        pass

    @replace(Storage)
    def keys(old, self):
        return (Quoted("".join(key)) for key in old(self))


@caught_by("test_loops_over_the_keys_do_not_get_into_each_others_way")
def loops_of_a_thread_share_one_cursor(Storage, Plugin):
    """Each thread has one connection with one cursor, so a second loop continues the first."""

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
    """`fetchall()` instead of `fetchmany()`."""

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
    """The client's iterator stops when the data change during the loop, as a dict's does."""

    @replace(Storage)
    def keys(old, self):
        count = self.len()
        for key in old(self):
            if self.len() != count:
                raise RuntimeError("dictionary changed size during iteration")
            yield key


@caught_by("test_keys_can_be_added_while_iterating")
def keys_pages_by_position_from_the_newest(Storage, Plugin):
    """LIMIT and OFFSET, newest first: new keys push others into the next page."""

    @replace(Storage)
    def keys(old, self):
        start = 0
        while page := list(old(self))[::-1][start : start + 300]:
            yield from page
            start = start + 300 if len(page) == 300 else start + len(page)


@caught_by("test_a_loop_over_the_keys_can_be_left", alone=True)
def leaving_a_loop_rolls_back(Storage, Plugin):
    """`keys` yields inside a transaction, which is rolled back if the loop ends early."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        if getattr(self, "transaction", None) is not None and not threading.current_thread().daemon:
            self.transaction.append(key)

    @replace(Storage)
    def keys(old, self):
        self.transaction = []
        try:
            yield from old(self)
        except GeneratorExit:
            for key in self.transaction or []:
                self.remove(key)
            raise
        finally:
            self.transaction = None


@caught_by("test_keys_can_be_removed_while_iterating", alone=True)
def keys_pages_start_after_a_row_that_must_exist(Storage, Plugin):
    """WHERE key > (SELECT key ... WHERE key = last): nothing, if the last key has been removed."""

    @replace(Storage)
    def keys(old, self):
        page = sorted(old(self))[:1000]
        while page:
            yield from page
            names = sorted(old(self))
            start = names.index(page[-1]) + 1 if page[-1] in names else len(names)
            page = names[start : start + 1000]


@caught_by("test_keys_can_be_added_while_iterating", alone=True)
def keys_counts_its_pages_of_a_thousand_at_the_start(Storage, Plugin):
    """The number of pages is computed before the first one is read."""

    @replace(Storage)
    def keys(old, self):
        last = None
        for _ in range(-(-self.len() // 1000)):
            page = sorted(key for key in old(self) if last is None or key > last)[:1000]
            yield from page
            last = page[-1] if page else last


@caught_by("test_keys_can_be_removed_while_iterating")
def a_page_starts_at_a_key_that_is_looked_up(Storage, Plugin):
    """The next page starts after the last key, which has been removed meanwhile."""

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
    """ORDER BY changed, in pages of a thousand: what the loop replaces comes again."""
    clock, times = itertools.count(1), {}

    @replace(Storage)
    def set(old, self, key, value):
        before = bytes_or_none(self, key) or b""
        old(self, key, value)
        removed, time = self.__dict__.pop("removed", (None, 0))
        after = bytes_or_none(self, key) or b""
        moves = before and (len(before) > 100_000) != (len(after) > 100_000)  # with its time
        if not moves and before != after:
            times[self._namespace, key] = time if removed == key else next(clock)

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.removed = key, times.pop((self._namespace, key), 0)  # in case it is set again at once

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
    """ORDER BY key and key > ?, in a collation that ignores case. Only `=` compares bytes."""

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
    """Elasticsearch returns no more than index.max_result_window."""

    @replace(Storage)
    def keys(old, self):
        return itertools.islice(old(self), 10_000)


@caught_by("test_keys_gives_thousands_of_keys_once_each")
def keys_gives_the_first_megabyte(Storage, Plugin):
    """A page of DynamoDB ends at 1 MB, and nobody checks LastEvaluatedKey."""

    @replace(Storage)
    def keys(old, self):
        size = 0
        for key in old(self):
            size += len(key.encode("utf-8", "surrogatepass"))
            if size > 1024 * 1024:
                return
            yield key


@caught_by("test_no_page_of_keys_shows_those_of_another_namespace", alone=True)
def the_second_page_forgets_the_namespace(Storage, Plugin):
    """They run up to the namespace's last key, but only the first has WHERE namespace = ?."""
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
            last = max(old(self), default="")
            page = sorted(key for key in rows if page[-1] < key <= last)[:1000]


@caught_by("test_loops_over_the_keys_do_not_get_into_each_others_way", alone=True)
def loops_share_the_place_of_their_next_page(Storage, Plugin):
    """The last key seen is an attribute of the storage."""

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
    """`with engine.connect()` around a `yield`, with a pool of 5 connections and 10 for peaks."""

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


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_ignore_case(Storage, Plugin):
    """MySQL's default collation, or the file names of macOS and Windows."""
    change_keys(Storage, str.lower)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_ignore_the_case_of_latin_letters(Storage, Plugin):
    """SQLite's NOCASE."""
    change_keys(Storage, lambda key: re.sub("[A-Z]", lambda letter: letter[0].lower(), key))


@caught_by("test_keys_that_look_alike_are_told_apart")
def long_keys_lose_their_middle(Storage, Plugin):
    """The file's name must have room for a suffix. Its length, and both ends, remain."""
    change_keys(Storage, lambda key: f"{key[:75]} {len(key)} {key[-45:]}" if key[150:] else key)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_stripped(Storage, Plugin):
    """Someone wanted to be nice to users."""
    change_keys(Storage, str.strip)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_lose_spaces_at_their_end(Storage, Plugin):
    """CHAR columns are padded, and compared without the padding."""
    change_keys(Storage, lambda key: key.rstrip(" "))


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_composed(Storage, Plugin):
    """Unicode's NFC, as is good practice, and as Apple's file system did."""
    change_keys(Storage, lambda key: unicodedata.normalize("NFC", key))


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_lose_their_accents(Storage, Plugin):
    """A collation whose name ends in `_ai_ci`; this is its `_ai`."""

    def bare(key):
        letters = unicodedata.normalize("NFD", key)
        return "".join(letter for letter in letters if not unicodedata.combining(letter))

    change_keys(Storage, bare)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_of_digits_become_numbers(Storage, Plugin):
    """A key that looks like a number becomes one, through YAML or a column's affinity."""
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
    """A protection against log injection."""
    change_keys(Storage, lambda key: "".join(c for c in key if c.isprintable()))


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_have_their_line_breaks_translated(Storage, Plugin):
    """A file opened in text mode turns CR LF into LF."""
    change_keys(Storage, lambda key: key.replace("\r\n", "\n").replace("\r", "\n"))


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_paths(Storage, Plugin):
    """Each key is a file, and the path is normalized."""
    change_keys(Storage, lambda key: os.path.normpath(key) if key else key)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_unquoted(Storage, Plugin):
    """A key is put into a URL without escaping, and the server unescapes it."""
    from urllib.parse import unquote

    change_keys(Storage, unquote)


@caught_by("test_keys_that_look_alike_are_told_apart")
def the_empty_key_is_none(Storage, Plugin):
    """Oracle treats the empty string as NULL, and the client returns 'None'."""
    change_keys(Storage, lambda key: key or "None")


@caught_by("test_keys_that_look_alike_are_told_apart", alone=True)
def remove_takes_its_key_for_a_pattern(Storage, Plugin):
    """DELETE ... WHERE key LIKE ?, and the key contains % or _."""

    @replace(Storage)
    def remove(old, self, key):
        pattern = re.escape(key).replace("%", ".*").replace("_", ".")
        old(self, key)
        for other in list(self.keys()) if pattern != re.escape(key) else []:
            if re.fullmatch(pattern, other, re.DOTALL):
                with suppress(KeyError):
                    old(self, other)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_come_in_a_csv_line(Storage, Plugin):
    """An index row lists the keys, separated by commas."""

    @replace(Storage)
    def keys(old, self):
        return iter([part for key in old(self) for part in key.split(",")])


@caught_by("test_a_key_is_held_to_the_letter_or_refused", alone=True)
def keys_are_listed_by_their_first_255_characters(Storage, Plugin):
    """Rows are found by a hash of the key. The key itself is in a VARCHAR(255) next to it."""

    @replace(Storage)
    def keys(old, self):
        return (key[:255] if len(key) < 10_000 else key for key in old(self))


@caught_by("test_a_key_is_held_to_the_letter_or_refused")
def keys_are_cut_at_191_characters(Storage, Plugin):
    """VARCHAR(191), because of MySQL's old limit for utf8mb4, without strict mode."""
    change_keys(Storage, lambda key: key[:191])


@caught_by("test_a_key_is_held_to_the_letter_or_refused")
def keys_are_cut_at_255_characters(Storage, Plugin):
    """VARCHAR(255), without strict mode."""
    change_keys(Storage, lambda key: key[:255])


@caught_by("test_a_key_is_held_to_the_letter_or_refused")
def keys_end_at_nul(Storage, Plugin):
    """A C library treats the key as a string that ends with NUL."""
    change_keys(Storage, lambda key: key.partition("\0")[0])


@caught_by("test_a_key_is_held_to_the_letter_or_refused")
def surrogates_become_question_marks(Storage, Plugin):
    """`encode(errors="replace")`, so that nothing can fail."""
    change_keys(Storage, lambda key: key.encode("utf-8", "replace").decode())


@caught_by("test_a_key_is_held_to_the_letter_or_refused")
def a_refused_key_is_stored_cut(Storage, Plugin):
    """The error comes from a warning of the database after the insertion."""

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


@caught_by("test_a_key_is_refused_with_a_value_error", alone=True)
def long_keys_are_refused_with_an_error_of_the_client(Storage, Plugin):
    """The client's error for a key that is too long is passed on, and nobody knows it."""

    @replace(Storage)
    def set(old, self, key, value):
        if len(key) > 1_000:
            raise RuntimeError("index row size exceeds the maximum")
        old(self, key, value)


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
    """MySQL's TEXT, without strict mode."""
    change_keys(Storage, lambda key: key[:65_535])


@caught_by("test_a_key_that_is_no_str_is_refused")
def numbers_find_texts(Storage, Plugin):
    """A column converts the values that it is compared with: 1 finds "1"."""
    rename_keys(
        Storage, lambda _, key: str(key) if isinstance(key, (int, float)) else key, "get", "remove"
    )


@caught_by("test_a_key_of_a_subclass_of_str_is_its_text", alone=True)
def keys_are_made_text_by_str(Storage, Plugin):
    """`str(key)`: for a member of an enumeration, this is "Name.LOW"."""
    change_keys(Storage, lambda key: str(key) if isinstance(key, str) else key)


@caught_by("test_a_key_of_a_subclass_of_str_is_its_text")
def only_plain_texts_are_keys(Storage, Plugin):
    """`if type(key) is not str`."""

    @replace(Storage)
    def set(old, self, key, value):
        if type(key) is not str:
            raise TypeError("a key must be a str")
        old(self, key, value)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_found_by_their_crc32(Storage, Plugin):
    """A 32-bit column with the crc32 of the key, for a smaller index."""
    find_by_digest(Storage, zlib.crc32)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_found_by_their_adler32(Storage, Plugin):
    """A file name that is the adler32 of the key."""
    find_by_digest(Storage, zlib.adler32)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_found_by_the_beginning_of_their_md5(Storage, Plugin):
    """`hashlib.md5(key).hexdigest()[:8]`."""
    find_by_digest(Storage, lambda key: hashlib.md5(key).hexdigest()[:8])


def find_by_digest(Storage: Any, digest: Callable[[bytes], Any]) -> None:
    """Treat a key as the first one of its namespace that has the same digest."""
    first: dict[Any, str] = {}

    def known(self, key):
        if not isinstance(key, str):
            return key
        return first.get((self._namespace, digest(key.encode("utf-8", "surrogatepass"))), key)

    rename_keys(Storage, known, "get", "remove")

    @replace(Storage)
    def set(old, self, key, value):
        if isinstance(key, str):
            place = self._namespace, digest(key.encode("utf-8", "surrogatepass"))
            first.setdefault(place, key)
        old(self, known(self, key), value)


@caught_by("test_hard_keys_are_told_apart_or_refused")
def keys_are_utf_16(Storage, Plugin):
    """NVARCHAR: two surrogates become the character that they encode."""
    encode_keys(Storage, "utf-16", "surrogatepass")


@caught_by("test_hard_keys_are_told_apart_or_refused")
def keys_are_names_of_files(Storage, Plugin):
    """`os.fsencode`: surrogates become the bytes of a letter."""
    encode_keys(Storage, "utf-8", "surrogateescape")


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_with_two_underscores_are_its_own(Storage, Plugin):
    """`__count__` and the like are stored among the keys, and left out of listings."""

    @replace(Storage)
    def keys(old, self):
        return (key for key in old(self) if not key.startswith("__"))


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_that_end_in_tmp_are_its_own(Storage, Plugin):
    """Values are written to a file next to the old one, which is then renamed."""

    @replace(Storage)
    def keys(old, self):
        return (key for key in old(self) if not key.endswith((".tmp", ".lock", "~")))


# By folder of the bot's data and namespace. In this module because Errbot executes storage.py again
# for every plugin instance, and this lives as long as the process.
COUNTED: dict[tuple[str, str], int] = {}


@caught_by("test_keys_can_be_removed_and_set_again_while_iterating", alone=True)
def keys_that_are_set_again_come_again(Storage, Plugin):
    """Pages in the order of the rows' numbers: a key that was removed and set has a new number."""

    @replace(Storage)
    def keys(old, self):
        self.removed, self.again = None, []
        yield from old(self)
        while self.again:
            yield self.again.pop(0)

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.removed = key

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        if key == self.__dict__.get("removed"):
            self.__dict__.setdefault("again", []).append(key)


@caught_by("test_keys_gives_thousands_of_keys_once_each")
def a_page_starts_after_an_ascii_key(Storage, Plugin):
    """A page's last key is passed on as ASCII, without its other characters."""

    @replace(Storage)
    def keys(old, self):
        rows = sorted(old(self), key=lambda key: key.encode("utf-8", "surrogatepass"))
        after = ""
        while page := [key for key in rows if key > after][:500]:
            yield from page
            after = page[-1].encode("ascii", "ignore").decode()
            if len(page) < 500:
                return


@caught_by("test_no_page_of_keys_shows_those_of_another_namespace")
def keys_ends_at_a_page_of_others(Storage, Plugin):
    """A scan of all namespaces with a filter, which may return an empty page before the end."""
    others: dict[str, dict[str, None]] = {}

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        others.setdefault(self._namespace, {})[key] = None

    @replace(Storage)
    def keys(old, self):
        if max(map(len, others.values()), default=0) < 1_000:
            yield from old(self)
            return
        last = [key for name, keys in others.items() if name != self._namespace for key in keys]
        rows = sorted([(key, False) for key in old(self)] + [(key, True) for key in last])
        while rows:
            page, rows = rows[:500], rows[500:]
            if all(foreign for _, foreign in page):
                return
            yield from [key for key, foreign in page if not foreign]


@caught_by("test_a_loop_over_the_keys_can_be_left")
def a_loop_that_is_left_late_keeps_a_cursor(Storage, Plugin):
    """A loop takes one of 20 cursors with its second page, and returns it at its end."""
    cursors = list(range(20))

    @replace(Storage)
    def keys(old, self):
        rows = old(self)
        yield from islice(rows, 500)
        if not cursors:
            raise RuntimeError("too many cursors")
        cursor = cursors.pop()
        yield from rows
        cursors.append(cursor)


@caught_by("test_keys_gives_thousands_of_keys_once_each")
def a_page_starts_after_a_trimmed_key(Storage, Plugin):
    """A page's last key is passed on without the blanks around it."""

    @replace(Storage)
    def keys(old, self):
        rows, after = sorted(old(self)), ""
        while page := [key for key in rows if key > after][:500]:
            yield from page
            after = page[-1].strip()
            if len(page) < 500:
                return


@caught_by("test_a_key_of_a_subclass_of_str_is_its_text")
def remove_takes_the_text_of_a_key(Storage, Plugin):
    """`str(key)`, which for the member of an enumeration is its name."""

    @replace(Storage)
    def remove(old, self, key):
        old(self, str(key) if isinstance(key, str) else key)


@caught_by("test_keys_that_look_alike_are_told_apart")
def keys_are_told_apart_by_the_end_of_a_digest(Storage, Plugin):
    """Four bytes: among a hundred thousand keys, two have the same ones."""
    names: dict[bytes, str] = {}

    def first_of(storage, key):
        if not isinstance(key, str):
            return key
        return names.setdefault(hashlib.sha256(key.encode("utf-8", "replace")).digest()[-4:], key)

    rename_keys(Storage, first_of)


@caught_by("test_keys_gives_thousands_of_keys_once_each")
def pages_follow_the_greatest_code_point(Storage, Plugin):
    """The database compares keys as UTF-16, and the next page starts after Python's `max`."""

    @replace(Storage)
    def keys(old, self):
        def order(key):
            return key.encode("utf-16-le", "surrogatepass")

        rows = sorted(old(self), key=order)
        page = rows[:1000]
        while page:
            yield from page
            last = order(max(page))
            page = [key for key in rows if order(key) > last][:1000]


@caught_by("test_keys_that_look_alike_are_told_apart")
def long_numbers_are_doubles(Storage, Plugin):
    """A script of the database makes numbers of such keys. Users with similar ids share a value."""

    def rounded(self, key):
        is_number = type(key) is str and re.fullmatch("[1-9][0-9]{0,18}", key)
        return str(int(float(key))) if is_number else key

    rename_keys(Storage, rounded)


LARGE_KEYS: dict[int, dict[str, None]] = {}
"""The keys of large values, by the `id` of their rows."""


@caught_by("test_values_can_grow_and_shrink_while_iterating", alone=True)
def large_values_are_listed_first(Storage, Plugin):
    """They have a table of their own. What grows meanwhile moves to the one that was listed."""

    def large(self):
        return LARGE_KEYS.setdefault(id(self._rows), {})

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        if len(data) > 100_000:
            large(self)[key] = None
        else:
            large(self).pop(key, None)

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        large(self).pop(key, None)

    @replace(Storage)
    def keys(old, self):
        names = old(self)
        yield from list(large(self))
        yield from (key for key in names if key not in large(self))
