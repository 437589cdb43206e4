"""Storages that answer from memory, or write what they were not asked to."""

import os
import sqlite3
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from itertools import islice
from typing import Any

from broken_storages.support import (
    bytes_or_none,
    caught_by,
    keep_what_is_read_often,
    know_place,
    know_plugin,
    replace,
)


@caught_by("test_a_key_that_was_read_often_is_asked_for_again", alone=True)
def what_is_read_often_is_kept(Storage, Plugin):
    """The plugin instance caches what is read often, until it is set through the same instance."""
    know_plugin(Plugin)
    keep_what_is_read_often(
        Storage,
        lambda self: self.plugin.__dict__.setdefault("kept", {}).setdefault(self._namespace, {}),
        often=300,  # other tests read less often
    )


# By folder of the bot's data, namespace and key: how often it was set.
TIMES_SET: dict[Any, int] = {}


@caught_by("test_a_key_that_was_read_often_is_asked_for_again")
def a_key_begins_anew_with_version_one(Storage, Plugin):
    """A value is cached until the version of its row changes, but a new row has version 1."""
    know_place(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        place = self.place, key
        TIMES_SET[place] = TIMES_SET.get(place, 0) + 1

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        TIMES_SET.pop((self.place, key), None)

    keep_by_version(Storage, lambda self, key: TIMES_SET.get((self.place, key), 0))


def keep_by_version(Storage: Any, version_of: Callable[[Any, str], int]) -> None:
    """Keep each value until its version changes."""

    @replace(Storage)
    def get(old, self, key):
        data, version = self.read(key), version_of(self, key)
        kept = self.__dict__.setdefault("kept", {}).setdefault(key, {})
        return self._load(key, kept.setdefault(version, data))


# For each thread, by folder of the bot's data and namespace.
LOCAL = threading.local()


@caught_by("test_what_another_thread_has_set_is_seen_by_one_that_read_often", alone=True)
def each_thread_has_a_transaction_that_goes_on(Storage, Plugin):
    """REPEATABLE READ: what a thread has read stays the same until it writes the key itself."""
    know_place(Plugin)
    keep_what_is_read_often(
        Storage, lambda self: vars(LOCAL).setdefault("read", {}).setdefault(self.place, {})
    )


@caught_by("test_reading_a_value_writes_nothing", alone=True)
def get_writes_when_it_was_used_last(Storage, Plugin):
    """Each `get` rewrites the row with the current time."""

    @replace(Storage)
    def get(old, self, key):
        data = self.read(key)
        value = self._load(key, data)
        self.write(key, data)
        return value


@caught_by("test_reading_a_value_writes_nothing")
def get_counts_how_often_it_was_used(Storage, Plugin):
    """The row is read with its counter, and written with a higher one, before it is unpickled."""

    @replace(Storage)
    def get(old, self, key):
        data = self.read(key)
        time.sleep(0.0003)
        self.write(key, data)
        return self._load(key, data)


@caught_by("test_a_set_after_changes_of_others_is_not_dropped", alone=True)
def a_set_is_dropped_if_another_was_faster(Storage, Plugin):
    """UPDATE … WHERE version = ?, with the last known version, but nobody checks the row count."""

    @replace(Storage)
    def keys(old, self):
        for key in old(self):
            self.__dict__.setdefault("seen", {})[key] = zlib.crc32(bytes_or_none(self, key) or b"")
            yield key

    @replace(Storage)
    def set(old, self, key, value):
        seen = self.__dict__.setdefault("seen", {}).pop(key, None)
        now = bytes_or_none(self, key)
        versioned = type(value) is list and all(type(item) is str for item in value)
        if not versioned or seen is None or now is None or zlib.crc32(now) == seen:
            old(self, key, value)


@caught_by("test_a_set_after_changes_of_others_is_not_dropped")
def a_dict_is_merged_with_what_others_have_set(Storage, Plugin):
    """What others have added since it was read stays, as in git. But nobody wants a merge."""

    @replace(Storage)
    def get(old, self, key):
        value = old(self, key)
        if type(value) is dict:
            self.__dict__.setdefault("read_before", {})[key] = list(value)
        return value

    @replace(Storage)
    def set(old, self, key, value):
        before = self.__dict__.setdefault("read_before", {}).pop(key, None)
        if type(value) is dict and before is not None and (data := bytes_or_none(self, key)):
            now = self._load(key, data)
            if type(now) is dict:
                value = value | {new: now[new] for new in now if new not in before}
        old(self, key, value)


@caught_by("test_a_set_after_changes_of_others_is_not_dropped")
def a_row_that_was_inserted_is_updated(Storage, Plugin):
    """INSERT for a key that this storage has never set, UPDATE for the others."""

    @replace(Storage)
    def set(old, self, key, value):
        known = self.__dict__.setdefault("known", {})
        self._dump(key, value)
        if key not in known or bytes_or_none(self, key) is not None:
            old(self, key, value)
        known[key] = True

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.__dict__.setdefault("known", {}).pop(key, None)


# By folder of the bot's data, namespace and key, for the whole process: when it was set last.
STAMPS: dict[Any, Any] = {}


def let_the_latest_win(Storage: Any, Plugin: Any, clock: Callable[[], Any]) -> None:
    """Let a `set` count only if this clock shows more than at the one before."""
    know_place(Plugin)

    @replace(Storage)
    def set(old, self, key, value):
        self._dump(key, value)
        now = clock()
        if len(key) > 100:  # Another test checks that removed keys take no memory.
            old(self, key, value)
        elif now > STAMPS.get((*self.place, key), type(now)()):
            STAMPS[(*self.place, key)] = now
            old(self, key, value)


@caught_by("test_the_clock_going_back_changes_nothing", alone=True)
def the_latest_time_wins(Storage, Plugin):
    """As in Cassandra: a change counts only if its time is later than that of the one before."""
    let_the_latest_win(Storage, Plugin, lambda: time.time_ns())


@caught_by("test_the_clock_going_back_changes_nothing")
def the_latest_time_of_a_value_wins(Storage, Plugin):
    """The time is kept with the value, so a removed key has none."""
    let_the_latest_win(Storage, Plugin, lambda: time.time_ns())

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        STAMPS.pop((*self.place, key), None)


@caught_by("test_the_end_of_summer_time_changes_nothing", alone=True)
def the_latest_local_time_wins(Storage, Plugin):
    """Local time without its zone: at the end of summer time, an hour comes twice."""
    let_the_latest_win(Storage, Plugin, lambda: datetime.now().isoformat())


@caught_by("test_a_restart_of_the_machine_changes_nothing", alone=True)
def the_latest_time_since_the_machine_started_wins(Storage, Plugin):
    """All processes of a machine share `time.monotonic_ns`, and it never goes back. It does."""
    let_the_latest_win(Storage, Plugin, lambda: time.monotonic_ns())


@caught_by("test_a_key_that_is_listed_has_its_value", alone=True)
def a_key_is_there_before_its_value(Storage, Plugin):
    """INSERT of the key, to get the number of its row, and then UPDATE with the value."""

    @replace(Storage)
    def set(old, self, key, value):
        large = len(self._dump(key, value)) > 1_000  # A small one fits into the row of the key.
        here = threading.current_thread() is threading.main_thread()  # which may be interrupted
        if large and not here and bytes_or_none(self, key) is None:
            old(self, key, None)
            time.sleep(0.001)
        old(self, key, value)


@caught_by("test_a_value_got_in_a_loop_over_the_keys_is_fresh", alone=True)
def a_loop_over_the_keys_fetches_the_values_too(Storage, Plugin):
    """One query returns a page of keys with their values, and `get` takes them from there."""

    @replace(Storage)
    def keys(old, self):
        rows, fetched = old(self), self.__dict__.setdefault("fetched", {})
        try:
            while page := list(islice(rows, 50)):
                fetched.update({key: bytes_or_none(self, key) for key in page})
                yield from page
        finally:
            fetched.clear()

    @replace(Storage)
    def read(old, self, key):
        return self.__dict__.get("fetched", {}).pop(key, None) or old(self, key)

    def forgetting(old):
        @wraps(old)
        def method(self, key, *value):
            old(self, key, *value)
            self.__dict__.get("fetched", {}).pop(key, None)

        return method

    Storage.set, Storage.remove = forgetting(Storage.set), forgetting(Storage.remove)


@caught_by("test_many_keys_are_counted_each_time", alone=True)
def large_counts_are_kept(Storage, Plugin):
    """A count of more than 500 is kept until this opener sets or removes something."""

    @replace(Storage)
    def len(old, self):
        if not self.__dict__.get("counted"):
            number = old(self)
            self.counted = number if number > 500 else 0
            return number
        return self.counted

    def counting(old):
        @wraps(old)
        def method(self, *arguments):
            old(self, *arguments)
            self.counted = 0

        return method

    Storage.set, Storage.remove = counting(Storage.set), counting(Storage.remove)


@caught_by("test_a_key_that_was_read_often_is_asked_for_again", outlives_process=True)
def what_was_read_a_hundred_times_is_a_constant(Storage, Plugin):
    """A setting that plugins read for each message stays in memory until this bot changes it."""
    keep_what_is_read_often(
        Storage, lambda self: self.__dict__.setdefault("constants", {}), often=100
    )


@caught_by("test_a_key_that_was_read_often_is_asked_for_again")
def what_is_read_thousands_of_times_is_kept(Storage, Plugin):
    """The same, but only for what is read all the time."""
    know_plugin(Plugin)
    keep_what_is_read_often(
        Storage,
        lambda self: self.plugin.__dict__.setdefault("kept", {}).setdefault(self._namespace, {}),
        often=5_000,
    )


@caught_by("test_a_key_that_was_read_often_is_asked_for_again")
def what_errbot_stores_is_kept(Storage, Plugin):
    """Only the bot itself writes in the namespace core, but an administrator does, too."""
    know_plugin(Plugin)
    keep_what_is_read_often(
        Storage,
        lambda self: (
            self.plugin.__dict__.setdefault("kept", {}) if self._namespace == "core" else {}
        ),
        often=1,
    )


# By folder of the bot's data and namespace: how often a key was set or removed.
VERSIONS: dict[Any, int] = {}


@caught_by("test_a_key_that_was_read_often_is_asked_for_again")
def an_emptied_namespace_begins_anew_with_version_one(Storage, Plugin):
    """A cache checks the version of its namespace, whose row is removed with the last key."""
    know_place(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        VERSIONS[self.place] = VERSIONS.get(self.place, 0) + 1

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        VERSIONS[self.place] = VERSIONS.get(self.place, 0) + 1
        if not self.len():
            del VERSIONS[self.place]

    keep_by_version(Storage, lambda self, _: VERSIONS.get(self.place, 0))


@caught_by("test_the_clock_going_back_changes_nothing")
def the_latest_version_of_a_large_value_counts(Storage, Plugin):
    """Its parts have the time of the `set` in their names."""
    versions: dict[Any, int] = {}

    @replace(Storage)
    def write(old, self, key, data):
        place, now = (self._namespace, key), time.time_ns()
        if len(data) < 1_000_000 or versions.get(place, 0) <= now:
            old(self, key, data)
            versions[place] = now


@caught_by(
    "test_threads_that_read_at_once_get_what_another_opener_has_set",
    alone=True,
    outlives_process=True,
)
def all_connections_share_what_one_has_read(Storage, Plugin):
    """A number is fresh if `data_version` is the same. That is one of its own connection's."""

    @replace(Storage)
    def read(old, self, key):
        plugin = self._run.__self__
        if os.getpid() != plugin._process:
            return old(self, key)
        try:
            connection = plugin._take()
            [[version]] = connection.execute("PRAGMA data_version").fetchall()
        except sqlite3.Error:
            return old(self, key)
        known = plugin.__dict__.setdefault("known", {})
        kept, data = known.get((self._namespace, key), (0, b""))
        try:
            if kept != version:
                changes = plugin.__dict__.get("changes", 0)
                data = old(self, key)
                if changes == plugin.__dict__.get("changes", 0) and len(data) < 20:
                    known.clear()
                    known[self._namespace, key] = version, data
        finally:
            plugin._idle.append(connection)
        return data

    def forgetting(old):
        @wraps(old)
        def method(self, *arguments):
            plugin = self._run.__self__
            try:
                return old(self, *arguments)
            finally:
                plugin.changes = plugin.__dict__.get("changes", 0) + 1
                plugin.__dict__.setdefault("known", {}).clear()

        return method

    for name in ["write", "remove", "swap"]:
        setattr(Storage, name, forgetting(getattr(Storage, name)))


CHANGED: Counter[str] = Counter()
"""How often each database was changed, as a database may tell."""


@caught_by("test_what_others_change_is_seen_after_own_operations", alone=True)
def own_changes_hide_those_of_others(Storage, Plugin):
    """Values are kept while the database has one version, which is looked up after own changes."""
    know_place(Plugin)

    @replace(Storage)
    def read(old, self, key):
        version, known = CHANGED[self.place[0]], vars(self).setdefault("known", {})
        if vars(self).get("version") != version:
            known.clear()
            self.version = version
        if key not in known:
            data = old(self, key)
            known.clear()
            if len(data) < 1_000:
                known[key] = data
            return data
        return known[key]

    def changing(old):
        @wraps(old)
        def method(self, key, *data):
            try:
                return old(self, key, *data)
            finally:
                vars(self).get("known", {}).pop(key, None)
                CHANGED[self.place[0]] += 1
                self.version = CHANGED[self.place[0]]

        return method

    for name in ["write", "remove", "swap"]:
        setattr(Storage, name, changing(getattr(Storage, name)))
