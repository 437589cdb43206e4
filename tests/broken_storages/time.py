"""Storages that forget old data, or fail after being idle."""

import datetime
import math
import socket
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from errbot.storage import StoreException

from broken_storages.support import (
    bytes_or_none,
    caught_by,
    keep_large_values_apart,
    know_plugin,
    replace,
)

ANY_TIME = "test_a_value_is_there_after_any_time"
ANY_LOOP = "test_a_loop_over_the_keys_may_take_any_time"
SET: dict[Any, float] = {}
"""When a key was set, by namespace and key, in all plugin instances of this process."""


def expire_after_a_day(Storage: Any, expires: Callable[[str], bool]) -> None:
    """Let the values of these keys expire."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        if expires(key):
            SET[self._namespace, key] = time.time()

    @replace(Storage)
    def get(old, self, key):
        if SET.get((self._namespace, key), float("inf")) + 86_400 < time.time():
            raise KeyError(key)
        return old(self, key)


@caught_by(ANY_TIME, alone=True)
def values_expire(Storage, Plugin):
    """A time to live, as in caches: one day for every value."""
    # Another test checks that removed keys, which are long, take no memory.
    expire_after_a_day(Storage, lambda key: len(key) < 100)


@caught_by(ANY_TIME)
def what_looks_temporary_expires(Storage, Plugin):
    """Plugins forget to remove what they cache. But `temperature` is no such key."""
    expire_after_a_day(Storage, lambda key: key.startswith(("tmp", "temp", "cache")))


@caught_by(ANY_TIME)
def values_expire_by_date(Storage, Plugin):
    """Values set more than a year ago are no longer returned."""
    from datetime import datetime

    days: dict[Any, Any] = {}

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        days[self._namespace, key] = datetime.now()

    @replace(Storage)
    def get(old, self, key):
        since = days.get((self._namespace, key), datetime.now())
        if (datetime.now() - since).days > 365:
            raise KeyError(key)
        return old(self, key)


@caught_by(ANY_TIME, alone=True)
def values_expire_by_the_time_of_the_module(Storage, Plugin):
    """The same, with `datetime.datetime.now()` of the module imported as a whole."""
    names = Plugin.open.__globals__
    names["datetime"] = datetime

    def now():
        return names["datetime"].datetime.now(datetime.timezone.utc)

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        if len(key) < 100:
            SET[self._namespace, key, ""] = now().timestamp()

    @replace(Storage)
    def get(old, self, key):
        if SET.get((self._namespace, key, ""), float("inf")) + 86_400 < now().timestamp():
            raise KeyError(key)
        return old(self, key)


@caught_by(ANY_TIME, alone=True)
def what_is_old_is_removed_at_the_start(Storage, Plugin):
    """`DELETE ... WHERE changed < ...` when a namespace is opened, to save space."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        if len(key) < 100:  # Another test checks that removed keys take no memory.
            SET[self._namespace, key] = time.time()

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        for key in list(storage.keys()):
            if SET.get((namespace, key), time.time()) < time.time() - 10_000_000:
                storage.remove(key)
        return storage


@caught_by(ANY_LOOP)
def a_deadline_is_inherited_by_the_body_of_a_loop(Storage, Plugin):
    """`keys` sets a deadline in a context variable; a generator has no context of its own."""
    until: ContextVar[float] = ContextVar("until", default=math.inf)

    def in_time():
        if time.monotonic() > until.get():
            raise StoreException("The deadline has passed.")

    @replace(Storage)
    def get(old, self, key):
        in_time()
        return old(self, key)

    @replace(Storage)
    def keys(old, self):
        until.set(time.monotonic() + 10)
        yield from old(self)
        until.set(math.inf)


@caught_by(ANY_LOOP, alone=True)
def a_loop_over_the_keys_has_a_deadline(Storage, Plugin):
    """The timeout of an operation applies to a whole loop."""

    @replace(Storage)
    def keys(old, self):
        until = time.monotonic() + 600
        for key in old(self):
            if time.monotonic() > until:
                raise RuntimeError("timeout")
            yield key


@caught_by(ANY_LOOP, alone=True)
def the_cursor_of_a_loop_expires(Storage, Plugin):
    """The server forgets an idle cursor, and the client takes that for the end."""

    @replace(Storage)
    def keys(old, self):
        last = time.time()
        for key in old(self):
            if time.time() > last + 1_800:
                return
            last = time.time()
            yield key


class Line:
    """A connection to a Redis server, which is replaced only after it has failed once."""

    def __init__(self, plugin: Any) -> None:
        self._parts = urlsplit(plugin.config.url.get_secret_value())
        self._lock = threading.RLock()
        self._socket: Any = None

    def use(self) -> None:
        """Send something, and read the answer. Raises RuntimeError if the connection has ended."""
        with self._lock:
            if self._socket is None:
                self._socket = socket.create_connection((self._parts.hostname, self._parts.port))
            try:
                self._socket.sendall(b"PING\r\n")
                heard = self._socket.recv(100)
            except OSError:
                heard = b""
            if not heard:
                self._socket.close()
                self._socket = None
                raise RuntimeError("the server has closed the connection")


def with_a_line(Plugin: Any) -> None:
    """Give each storage its own connection."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.line = Line(self)
        return storage


@caught_by("test_a_connection_that_was_dropped_is_replaced", connects=True)
def the_first_set_after_a_night_fails(Storage, Plugin):
    """A connection that the server closed is replaced only after it has failed."""
    with_a_line(Plugin)

    @replace(Storage)
    def set(old, self, key, value):
        self.line.use()
        old(self, key, value)


@caught_by("test_a_connection_that_was_dropped_is_replaced", alone=True, connects=True)
def the_first_removal_after_a_night_fails(Storage, Plugin):
    """On a dropped connection, only reads are retried."""
    with_a_line(Plugin)

    @replace(Storage)
    def remove(old, self, key):
        self.line.use()
        old(self, key)


@caught_by(
    "test_a_loop_over_the_keys_goes_on_when_connections_were_dropped", alone=True, connects=True
)
def a_loop_over_the_keys_holds_a_connection(Storage, Plugin):
    """A cursor of the server, which ends with its connection."""

    know_plugin(Plugin)

    @replace(Storage)
    def keys(old, self):
        line = None
        for number, key in enumerate(old(self)):
            if number % 2:
                line = line or Line(self.plugin)
                line.use()
            yield key


@caught_by(ANY_TIME)
def old_parts_are_removed_a_minute_later(Storage, Plugin):
    """Large values are kept under their digest, and removed a minute after they were replaced."""
    late: list[tuple[float, str]] = []

    def name_of(storage, key, data):
        name = str(zlib.crc32(data))
        before = storage.__dict__.setdefault("names", {}).get(key, name)
        if before != name:
            late.append((time.monotonic() + 60, f"part {before}"))
        storage.names[key] = name
        return name

    keep_large_values_apart(Storage, name_of)

    @replace(Storage)
    def read(old, self, key):
        while late and late[0][0] < time.monotonic():
            with suppress(KeyError):
                self.remove(late.pop(0)[1])
        return old(self, key)


@caught_by(ANY_TIME)
def an_older_year_is_kept(Storage, Plugin):
    """A partition for each year, and the newest one is read. `remove` removes only from this."""
    older: dict[Any, Any] = {}
    year: dict[Any, Any] = {}

    @replace(Storage)
    def write(old, self, key, data):
        place, now = (self._namespace, key), time.gmtime().tm_year
        if year.get(place, now) != now:
            older[place] = bytes_or_none(self, key)
        year[place] = now
        old(self, key, data)

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        if data := older.pop((self._namespace, key), None):
            self.write(key, data)


@caught_by("test_new_threads_can_use_a_storage_after_any_time", alone=True)
def a_token_for_connections_expires(Storage, Plugin):
    """Asked for once, at the start. Later a second thread, which needs a connection, fails."""
    know_plugin(Plugin)

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.began, self.threads = time.monotonic(), [threading.get_ident()]

    @replace(Storage)
    def read(old, self, key):
        if threading.get_ident() not in self.plugin.threads:
            if time.monotonic() - self.plugin.began > 900:
                raise StoreException("The token has expired.")
            self.plugin.threads.append(threading.get_ident())
        return old(self, key)


@caught_by(ANY_TIME, alone=True, outlives_process=True)
def what_is_old_by_the_databases_clock_is_removed(Storage, Plugin):
    """Each start removes what nobody has changed for a year, to protect personal data."""
    remove_what_is_old(Plugin, "CURRENT_TIMESTAMP", "datetime('now', '-1 year')")


@caught_by(ANY_TIME, outlives_process=True)
def what_is_old_by_a_julian_day_is_removed(Storage, Plugin):
    """The same, with SQLite's `julianday`, which makes it easy to subtract days."""
    remove_what_is_old(Plugin, "julianday('now')", "julianday('now') - 365")


@caught_by(ANY_TIME, outlives_process=True)
def what_is_old_by_its_seconds_is_removed(Storage, Plugin):
    """The same, with seconds since 1970."""
    now = "CAST(strftime('%s', 'now') AS INTEGER)"
    remove_what_is_old(Plugin, now, f"{now} - 365 * 24 * 3600")


def remove_what_is_old(Plugin: Any, now: str, old_before: str) -> None:
    """Let triggers note when each row was changed, and remove what is old at each start."""
    key = "namespace, key"

    @replace(Plugin)
    def _connect(old, self):
        connection = old(self)
        connection.executescript(
            f"CREATE TABLE IF NOT EXISTS changed ({key}, at, PRIMARY KEY ({key}))"
        )
        for what in ["INSERT", "UPDATE"]:
            connection.executescript(
                f"""CREATE TRIGGER IF NOT EXISTS after_{what} AFTER {what} ON errbot BEGIN
                INSERT INTO changed VALUES (new.namespace, new.key, {now})
                ON CONFLICT ({key}) DO UPDATE SET at = excluded.at; END;"""
            )
        connection.execute(
            """CREATE TRIGGER IF NOT EXISTS after_DELETE AFTER DELETE ON errbot BEGIN
            DELETE FROM changed WHERE namespace = old.namespace AND key = old.key; END;"""
        )
        return connection

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        year = f"SELECT {key} FROM changed WHERE at < {old_before}"
        if self.run(f"{year} LIMIT 1")[0]:
            self.run(f"DELETE FROM errbot WHERE ({key}) IN ({year})")


@caught_by("test_many_keys_are_listed_after_any_time", alone=True, outlives_process=True)
def the_time_for_a_statement_begins_with_the_connection(Storage, Plugin):
    """Later, SQLite interrupts each statement that needs more than a moment."""

    @replace(Plugin)
    def _connect(old, self):
        connection = old(self)
        end = time.monotonic() + 3_600
        connection.set_progress_handler(lambda: time.monotonic() > end, 10_000)
        return connection


NOBODY = "test_a_namespace_that_nobody_opens_is_there_after_any_time"


def remove_what_nobody_opens(Plugin: Any, when: Callable[[Any], None]) -> None:
    """Let a plugin instance know what to remove, and decide when."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.opened = set()
        self.began = time.monotonic()
        when(self)

    @replace(Plugin)
    def open(old, self, namespace):
        self.opened.add(namespace)
        return old(self, namespace)


def tidy_up(plugin: Any) -> None:
    """Remove all namespaces that a plugin instance has not opened."""
    for namespace in set(plugin._database) - plugin.opened:
        plugin._database.pop(namespace, None)


@caught_by(NOBODY, alone=True)
def what_nobody_opens_in_a_day_is_removed(Storage, Plugin):
    """It belongs to plugins that were uninstalled."""
    know_plugin(Plugin)
    remove_what_nobody_opens(Plugin, lambda plugin: None)

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        if time.monotonic() - self.plugin.began > 86_400:
            tidy_up(self.plugin)


@caught_by(NOBODY)
def a_thread_removes_what_nobody_opens(Storage, Plugin):
    """It waits for a minute, until all plugins are activated."""

    def start(plugin):
        threading.Thread(target=work, args=[plugin], daemon=True).start()

    def work(plugin):
        threading.Event().wait(60)
        tidy_up(plugin)

    remove_what_nobody_opens(Plugin, start)


@caught_by("test_a_long_outage_has_no_effect_afterwards", alone=True, outlives_process=True)
def after_ten_seconds_the_database_gets_a_rest(Storage, Plugin):
    """A circuit breaker: commands need not wait for the timeout for two minutes."""

    @replace(Storage)
    def write(old, self, key, data):
        if time.monotonic() < self.__dict__.setdefault("rests_until", 0.0):
            raise StoreException("The circuit breaker is open.")
        try:
            old(self, key, data)
        except StoreException as error:
            if "locked" in str(error):
                now = time.monotonic()
                if now - self.__dict__.setdefault("fails_since", now) > 10:
                    self.rests_until = now + 120
                    del self.fails_since
            raise
        self.__dict__.pop("fails_since", None)


@caught_by(
    "test_other_processes_see_what_a_bot_stores_after_any_time", alone=True, outlives_process=True
)
def the_file_is_copied_each_day(Storage, Plugin):
    """Closing it drops the locks that SQLite has on it, so another process removes the WAL."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.copied = time.time()

    @replace(Plugin)
    def run(old, self, statement, *values):
        if time.time() > self.__dict__.get("copied", math.inf) + 24 * 3_600:
            self.copied = time.time()
            self._path.read_bytes()
        return old(self, statement, *values)


@caught_by("test_other_processes_see_what_a_bot_stores_after_any_time", outlives_process=True)
def the_file_is_copied_after_ten_thousand_changes(Storage, Plugin):
    """As before, but a bot that stores little needs fewer copies."""

    @replace(Plugin)
    def run(old, self, statement, *values):
        result = old(self, statement, *values)
        if result[1] > 0:
            self.changes = self.__dict__.get("changes", 0) + 1
            if self.changes % 10_000 == 0:
                self._path.read_bytes()
        return result
