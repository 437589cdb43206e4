"""Storages that store large values in parts, or have a limit."""

import random
import re
import sqlite3
import sys
import time
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from broken_storages.support import (
    bytes_or_none,
    caught_by,
    keep_large_values_apart,
    replace,
    value_or_none,
)

MEGABYTE = 2**20
MEDIUM = 16 * MEGABYTE


@caught_by("test_large_values_follow_each_other", alone=True)
def parts_of_a_removed_value_stay(Storage, Plugin):
    """`remove` removes only the first part. Parts are read until one is missing."""
    left: dict[Any, bytes] = {}

    @replace(Storage)
    def remove(old, self, key):
        data = bytes_or_none(self, key)
        old(self, key)
        if data and len(data) > MEGABYTE:
            left[self._namespace, key] = data

    @replace(Storage)
    def get(old, self, key):
        data, rest = self.read(key), left.get((self._namespace, key), b"")
        return self._load(key, data + rest[len(data) :] if len(data) > MEGABYTE else data)


@caught_by("test_a_large_value_that_is_replaced_is_whole_for_every_reader", alone=True)
def parts_of_a_megabyte_are_replaced_one_by_one(Storage, Plugin):
    """A row for each megabyte, with the number of the part: readers see old and new ones."""

    @replace(Storage)
    def set(old, self, key, value):
        replace_part_by_part(self, old, key, value, 0.001)


@caught_by("test_a_killed_process_leaves_a_large_value_whole", outlives_process=True, alone=True)
def a_kill_comes_between_the_parts(Storage, Plugin):
    """A row for each megabyte, under a lock that readers respect, and that dies with the bot."""

    @replace(Storage)
    def set(old, self, key, value):
        # So long, and not in all threads alike, that a kill comes between the parts of some value.
        seconds = random.uniform(1, 3) if sys.argv[-1] == "replace-large" else 0.0
        replace_part_by_part(self, old, key, value, seconds)


@caught_by(
    "test_a_change_of_a_large_value_that_is_killed_is_done_or_not",
    outlives_process=True,
    alone=True,
)
def large_values_are_blanked_before_they_are_removed(Storage, Plugin):
    """`remove` replaces a large value first, so that nothing of it stays on the disk."""

    @replace(Storage)
    def remove(old, self, key):
        if len(bytes_or_none(self, key) or b"") > MEGABYTE:
            self.set(key, b"")
        old(self, key)


def replace_part_by_part(storage: Any, set: Any, key: str, value: Any, seconds: float) -> None:
    """For some time, let a value begin like the new one and end like the old one."""
    if seconds and type(value) is bytes and len(value) > MEGABYTE:
        before = value_or_none(storage, key)
        if type(before) is bytes and len(before) > MEGABYTE:
            try:
                set(storage, key, value[:MEGABYTE] + before[MEGABYTE:])
                time.sleep(seconds)
                set(storage, key, value)
            except BaseException:  # Another test checks interrupts.
                set(storage, key, before)
                raise
            return
    set(storage, key, value)


@caught_by("test_a_value_of_tens_of_megabytes_comes_back_or_is_refused", alone=True)
def values_are_cut_at_32_megabytes(Storage, Plugin):
    """The server's maximum size, with no message about what it cuts off."""

    @replace(Storage)
    def _dump(old, self, key, value):
        return old(self, key, value)[: 2 * MEDIUM]


@caught_by("test_a_value_of_tens_of_megabytes_comes_back_or_is_refused")
def what_is_refused_for_its_size_is_removed(Storage, Plugin):
    """The old parts are removed before the first new one is refused."""

    @replace(Storage)
    def set(old, self, key, value):
        if len(self._dump(key, value)) > MEDIUM:
            if bytes_or_none(self, key) is not None:
                self.remove(key)
            raise ValueError("A document has at most 16 MB.")
        old(self, key, value)


@caught_by("test_a_value_of_tens_of_megabytes_comes_back_or_is_refused")
def what_is_refused_for_its_size_leaves_a_key(Storage, Plugin):
    """The row is inserted first, and its value, which is refused, with an update."""

    @replace(Storage)
    def set(old, self, key, value):
        if len(self._dump(key, value)) > MEDIUM:
            if bytes_or_none(self, key) is None:
                old(self, key, None)
            raise ValueError("A document has at most 16 MB.")
        old(self, key, value)


@caught_by("test_a_namespace_holds_many_megabytes", alone=True)
def the_oldest_large_values_are_evicted(Storage, Plugin):
    """`maxmemory 20mb`, and `allkeys-lru`."""
    evict_above(Storage, 20)


@caught_by("test_a_namespace_holds_many_megabytes", thorough=True)
def values_above_a_hundred_megabytes_are_evicted(Storage, Plugin):
    """`maxmemory 100mb`, and `allkeys-lru`."""
    evict_above(Storage, 100)


def evict_above(Storage: Any, megabytes: int) -> None:
    """Remove the oldest large value of a storage when all together are larger than this."""
    sizes: dict[tuple[Any, str], int] = {}

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        size = len(self._dump(key, value))
        if not MEGABYTE < size < MEDIUM:
            return
        sizes[self, key] = size
        mine = [place for place in list(sizes) if place[0] is self]
        if sum(sizes[place] for place in mine) > megabytes * MEGABYTE:
            del sizes[mine[0]]
            self.remove(mine[0][1])


@caught_by("test_large_values_of_each_kind_come_back", alone=True)
def texts_have_a_column_of_their_own(Storage, Plugin):
    """Bytes are in a LONGBLOB, but texts in a VARCHAR of a million characters."""

    @replace(Storage)
    def _dump(old, self, key, value):
        return old(self, key, value[:1_000_000] if type(value) is str else value)


@caught_by("test_a_large_value_that_is_replaced_is_whole_for_every_reader")
def a_compaction_undoes_what_others_do(Storage, Plugin):
    """After each 4 MB of replaced values, live ones are copied, and replace the old data."""
    replaced = [0]

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        if len(data) < MEGABYTE:
            return
        replaced[0] += len(data)
        if replaced[0] > 4 * MEGABYTE:
            replaced[0] = 0
            live = {name: bytes_or_none(self, name) for name in list(self.keys())}
            time.sleep(0.1)
            for name, copy in live.items():
                if copy is not None and len(copy) < MEGABYTE:
                    old(self, name, copy)


@caught_by("test_large_values_of_each_kind_come_back")
def names_of_parts_are_random_numbers(Storage, Plugin):
    """`random.getrandbits`, which repeats itself if a plugin calls `random.seed`."""
    keep_large_values_apart(Storage, lambda *_: f"{random.getrandbits(64):x}")


@caught_by("test_large_values_of_each_kind_come_back")
def large_dicts_come_back_sorted(Storage, Plugin):
    """Stored item by item, and read with ORDER BY. Who came first is not known any more."""
    change_large(Storage, dict, lambda value: dict(sorted(value.items(), key=repr)))


@caught_by("test_large_values_of_each_kind_come_back")
def large_texts_lose_their_line_ends(Storage, Plugin):
    """They go through a text stream, which translates CRLF."""
    change_large(Storage, str, lambda value: value.replace("\r\n", "\n"))


@caught_by("test_large_values_of_each_kind_come_back")
def large_bytes_come_back_as_a_bytearray(Storage, Plugin):
    """Collected part by part. They are equal, but no key of a dict, and no `bytes`."""
    change_large(Storage, bytes, bytearray)


def change_large(Storage: Any, kind: type, change: Callable[[Any], object]) -> None:
    """Give large values of one type back changed."""

    @replace(Storage)
    def get(old, self, key):
        value = old(self, key)
        return change(value) if type(value) is kind and sys.getsizeof(value) > 9_000 else value


@caught_by("test_large_values_under_names_that_look_alike_are_told_apart", alone=True)
def large_values_are_files_with_safe_names(Storage, Plugin):
    """Other characters than letters and digits become "_", so "a/b" and "a b" share a file."""
    files: dict[str, bytes] = {}

    def name(self, key):
        return re.sub(r"\W", "_", f"{self._namespace}/{key}")

    @replace(Storage)
    def write(old, self, key, data):
        if 2**20 <= len(data) < 1_100_000:
            files[name(self, key)], data = data, b"file"
        old(self, key, data)

    @replace(Storage)
    def read(old, self, key):
        data = old(self, key)
        return files[name(self, key)] if data == b"file" else data


@caught_by("test_listing_reads_no_values", alone=True)
def values_are_read_to_count_them(Storage, Plugin):
    """SELECT *, although `len` needs only a number."""

    @replace(Storage)
    def len(old, self):
        rows = [(key, bytearray(bytes_or_none(self, key) or b"")) for key in [*self.keys()]]
        return sum(1 for _ in rows)


@caught_by("test_large_values_under_names_that_look_alike_are_told_apart")
def all_parts_whose_names_begin_like_the_key_are_removed(Storage, Plugin):
    """The parts of a value are named after its key, with a slash and their number."""

    @replace(Storage)
    def remove(old, self, key):
        large = len(bytes_or_none(self, key) or b"") > 1_000_000
        old(self, key)
        for other in list(self.keys()) if large else []:
            if other.startswith(f"{key}/"):
                old(self, other)


@caught_by("test_a_large_value_that_is_replaced_is_whole_for_every_reader")
def compressed_values_above_a_megabyte_are_replaced_part_by_part(Storage, Plugin):
    """What is compressed to less is written in one step."""

    @replace(Storage)
    def set(old, self, key, value):
        large = len(zlib.compress(self._dump(key, value), 1)) > MEGABYTE
        replace_part_by_part(self, old, key, value, 0.001 if large else 0.0)


@caught_by("test_a_large_value_that_is_replaced_is_whole_for_every_reader")
def a_small_value_is_removed_before_a_large_one_is_stored(Storage, Plugin):
    """They are in two tables."""

    @replace(Storage)
    def write(old, self, key, data):
        previous = bytes_or_none(self, key)
        if previous and len(previous) < MEGABYTE < len(data):
            self.remove(key)
            time.sleep(0.01)
        old(self, key, data)


@caught_by("test_a_change_of_a_large_value_that_is_killed_is_done_or_not", outlives_process=True)
def the_journal_is_in_memory(Storage, Plugin):
    """A tip for speed. But the journal repairs the file if a process is killed while it writes."""

    class Connection(sqlite3.Connection):
        def executescript(self, script):
            return super().executescript(script.replace("= WAL", "= MEMORY"))

    def connect(*arguments, **options):
        return sqlite3.connect(*arguments, factory=Connection, **options)

    names = Plugin.open.__globals__
    names["sqlite3"] = SimpleNamespace(**vars(sqlite3) | {"connect": connect})
