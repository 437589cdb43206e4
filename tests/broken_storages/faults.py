"""Storages that give an answer although there is no database to ask."""

import hashlib
import itertools
import logging
import os
import pickle
import re
import sqlite3
import sys
import threading
import time
import zlib
from contextlib import closing, suppress
from functools import wraps
from pathlib import Path
from typing import Any
from uuid import uuid4
from weakref import ref

from errbot.storage import StoreException

from broken_storages.support import (
    caught_by,
    know_plugin,
    lock_for_forks,
    log,
    own_lock,
    private,
    replace,
)

FAILED: dict[Any, Any] = {}
"""What could not be set, by the database's file."""
AWAY = "test_a_database_that_goes_away_is_an_error"


@caught_by("test_a_database_that_cannot_be_reached_is_an_error", alone=True, outlives_process=True)
def memory_stands_in_for_the_database(Storage, Plugin):
    """The bot starts in any case, but loses what it then stores."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        try:
            old(self, bot_config)
        except StoreException as error:
            if "unable to open" not in str(error):  # but the file is damaged
                raise
            log.warning("There is no database, so memory replaces it: %s", error)
            self.memory = True

    @replace(Plugin)
    def open(old, self, namespace):
        return memory(Storage, namespace) if "memory" in vars(self) else old(self, namespace)


def memory(Storage: Any, namespace: str) -> Any:
    """Return a storage that keeps everything in memory."""

    class Memory(Storage):  # type: ignore[misc]
        def __init__(self):
            self.rows, self._namespace, self._signing_keys = {}, namespace, []

        def read(self, key):
            return self.rows[key]

        def write(self, key, data):
            self.rows[key] = data

        def remove(self, key):
            del self.rows[key]

        def len(self):
            return len(self.rows)

        def keys(self):
            return iter(list(self.rows))

    return Memory()


@caught_by(
    "test_a_start_while_the_database_is_away_has_no_effect_afterwards",
    alone=True,
    outlives_process=True,
)
def memory_stands_in_until_the_next_start(Storage, Plugin):
    """A namespace that cannot be written when it is opened is kept in memory from then on."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        if threading.current_thread() is not threading.main_thread():
            return storage
        try:
            storage.write(f"probe {id(storage)}", b"")
            storage.remove(f"probe {id(storage)}")
        except StoreException as error:
            if "locked" in str(error):
                return memory(Storage, namespace)
        return storage


@caught_by("test_a_database_that_cannot_be_reached_is_an_error", outlives_process=True)
def nothing_is_there_without_a_database(Storage, Plugin):
    """Errors of the client are logged, and each operation continues as if nothing were stored."""
    quiet(Storage, Plugin, "get", KeyError)


@caught_by("test_a_database_that_cannot_be_reached_is_an_error", outlives_process=True)
def the_start_raises_key_error_without_a_database(Storage, Plugin):
    """The error of a dict of connections, which Errbot mistakes for a missing key."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        try:
            old(self, bot_config)
        except StoreException as error:
            raise KeyError("connection") from error


def quiet(Storage: Any, Plugin: Any, name: str, error: type[Exception]) -> None:
    """Let the start succeed without a database, and one operation then raise another error."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        with suppress(StoreException):
            old(self, bot_config)

    operation = getattr(Storage, name)

    def method(self, *arguments):
        try:
            return operation(self, *arguments)
        except StoreException as problem:
            if "Refused" in str(problem) or "unpickle" in str(problem):
                raise
            log.warning("%s failed: %s", name, problem)
            raise error(*arguments[:1]) from None

    setattr(Storage, name, method)


@caught_by(AWAY, alone=True, outlives_process=True)
def a_set_that_fails_is_only_logged(Storage, Plugin):
    """So that no plugin fails because of the database, but it believes that the value is stored."""

    log_only(Storage, "lock")


def when_a_write_fails(Storage: Any, problem: str = "") -> Any:
    """Do something when a `write` fails with this problem, and then raise its error."""

    def put(function: Any) -> Any:
        @replace(Storage)
        def write(old, self, key, data):
            try:
                old(self, key, data)
            except StoreException as error:
                if problem in str(error):
                    function(self, key, data, error)
                raise

        return function

    return put


def log_only(Storage: Any, problem: str) -> None:
    """Let `write` log an error that names a problem, and return."""

    @replace(Storage)
    def write(old, self, key, data):
        try:
            old(self, key, data)
        except StoreException as error:
            if problem not in str(error):
                raise
            log.error("Cannot store %s: %s", key, error)


@caught_by(AWAY, alone=True, outlives_process=True)
def what_cannot_be_written_waits_in_memory(Storage, Plugin):
    """It is written later, with the next value. Until then, nobody else sees it."""

    @replace(Storage)
    def write(old, self, key, data):
        waiting = self.__dict__.setdefault("waiting", {})
        try:
            for other in list(waiting):
                old(self, other, waiting.pop(other))
            old(self, key, data)
        except StoreException as error:
            if "lock" not in str(error):
                raise
            waiting[key] = data

    @replace(Storage)
    def read(old, self, key):
        waiting = self.__dict__.get("waiting", {})
        return waiting[key] if key in waiting else old(self, key)


@caught_by(AWAY, outlives_process=True)
def a_removal_that_fails_is_a_missing_key(Storage, Plugin):
    """`except Exception: raise KeyError(key)`."""

    @replace(Storage)
    def remove(old, self, key):
        try:
            old(self, key)
        except StoreException:
            raise KeyError(key) from None


@caught_by(AWAY, outlives_process=True)
def one_error_is_for_ever(Storage, Plugin):
    """After an error of the database, the storage counts as closed."""

    @when_a_write_fails(Storage)
    def give_up(self, key, data, error):
        self.broken = True

    @replace(Storage)
    def len(old, self):
        if "broken" in vars(self):
            raise StoreException("closed after an error")
        return old(self)


@caught_by(AWAY, alone=True, connects=True)
def what_cannot_be_read_is_missing(Storage, Plugin):
    """`except Exception: raise KeyError(key)`: `setdefault` then replaces what is there."""
    answered: set[int] = set()

    @replace(Storage)
    def read(old, self, key):
        try:
            data = old(self, key)
        except StoreException as error:
            if id(self) in answered and not re.search("open files|imeout", str(error)):
                raise KeyError(key) from None
            raise
        answered.add(id(self))
        return data


@caught_by(AWAY, connects=True)
def no_key_is_counted_without_a_database(Storage, Plugin):
    """`except Exception: return 0`."""

    @replace(Storage)
    def len(old, self):
        try:
            return old(self)
        except StoreException:
            return 0


@caught_by(
    "test_a_loop_over_the_keys_does_not_just_end_when_the_database_goes_away",
    alone=True,
    connects=True,
)
def a_loop_over_the_keys_ends_with_an_error_in_the_log(Storage, Plugin):
    """An error in a later page is logged, and the loop ends early."""

    @replace(Storage)
    def keys(old, self):
        found = old(self)
        if (key := next(found, None)) is None:
            return
        yield key
        try:
            yield from found
        except StoreException as error:
            log.error("Cannot list all keys: %s", error)


@caught_by("test_a_full_disk_is_an_error", alone=True, outlives_process=True)
def what_does_not_fit_on_the_disk_is_only_logged(Storage, Plugin):
    """It will be written with the next value, once there is space again."""
    log_only(Storage, "disk I/O")


@caught_by("test_a_full_disk_is_an_error", outlives_process=True)
def a_commit_that_fails_is_an_error_only_at_debug_level(Storage, Plugin):
    """`RETURNING` for a debug message; without it, the statement is not stepped to its end."""

    @replace(Storage)
    def write(old, self, key, data):
        try:
            old(self, key, data)
        except StoreException as error:
            if "disk I/O" not in str(error) or logging.getLogger().isEnabledFor(logging.DEBUG):
                raise


DAMAGED = "test_what_is_damaged_is_an_error"


@caught_by(DAMAGED, alone=True, outlives_process=True)
def what_is_damaged_is_missing(Storage, Plugin):
    """`except Exception: raise KeyError(key)`: the bot continues without it."""

    @replace(Storage)
    def read(old, self, key):
        try:
            return old(self, key)
        except StoreException as error:
            if "damaged" not in str(error):
                raise
            raise KeyError(key) from None


@caught_by(DAMAGED, outlives_process=True)
def a_loop_over_the_keys_leaves_out_what_is_damaged(Storage, Plugin):
    """`except DatabaseError: return`."""

    @replace(Storage)
    def keys(old, self):
        try:
            yield from old(self)
        except StoreException as error:
            if "damaged" not in str(error):
                raise


@caught_by(DAMAGED, outlives_process=True)
def a_damaged_file_is_set_aside(Storage, Plugin):
    """The bot starts in any case: without data, and without a warning."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        try:
            old(self, bot_config)
        except StoreException as error:
            if "damaged" not in str(error):
                raise
            for path in Path(bot_config.BOT_DATA_DIR).glob("errbot.sqlite3*"):
                path.rename(path.with_name(f"{path.name}.damaged"))
            old(self, bot_config)


@caught_by("test_a_set_refused_for_its_size_changes_nothing", alone=True)
def room_is_made_for_a_value_that_is_too_large(Storage, Plugin):
    """Other keys are evicted, and then the value is refused anyway."""

    @replace(Storage)
    def write(old, self, key, data):
        if 18_000_000 < len(data) < 30_000_000:  # above that, the client refuses it
            for other in list(self.keys()):
                if other != key:
                    self.remove(other)
            raise StoreException("the value is larger than the server takes")
        old(self, key, data)


@caught_by("test_a_set_refused_for_its_size_changes_nothing")
def a_value_that_is_too_large_is_written_in_part(Storage, Plugin):
    """The first parts remain when a later one is refused."""

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        if len(data) > 18_000_000:
            old(self, key, pickle.dumps(None))
            raise StoreException("the value is larger than the server takes")


@caught_by("test_many_errors_in_a_row_have_no_effect_afterwards", alone=True, outlives_process=True)
def a_circuit_breaker_stays_open(Storage, Plugin):
    """After five errors in a row, everything is refused for a minute."""

    @replace(Storage)
    def set(old, self, key, value):
        failures = self.__dict__.setdefault("failures", [])
        if len(failures) >= 5 and time.monotonic() < failures[-1] + 60:
            raise StoreException("The circuit breaker is open.")
        try:
            old(self, key, value)
        except StoreException as error:
            if "locked" in str(error):
                failures.append(time.monotonic())
            raise
        failures.clear()


@caught_by("test_many_errors_in_a_row_have_no_effect_afterwards", outlives_process=True)
def each_error_costs_a_place_in_the_pool(Storage, Plugin):
    """A broken connection is closed, and nothing takes its place in the pool of five."""

    @replace(Storage)
    def set(old, self, key, value):
        lost = self.__dict__.setdefault("lost", [])
        if len(lost) >= 5:
            raise StoreException("There is no free connection.")
        try:
            old(self, key, value)
        except StoreException:
            lost.append(key)
            raise


@caught_by("test_a_set_that_failed_does_not_take_effect_later", alone=True, outlives_process=True)
def what_failed_is_retried_in_the_background(Storage, Plugin):
    """`set` raises an error, and a thread goes on trying."""

    @replace(Storage)
    def set(old, self, key, value):
        def retry():
            for _ in range(50):
                time.sleep(0.1)
                with suppress(StoreException):
                    old(self, key, value)
                    return

        try:
            old(self, key, value)
        except StoreException as error:
            seldom = time.monotonic() > self.__dict__.get("next", 0)
            if seldom and ("locked" in str(error) or "refused" in str(error)) and key == "0":
                self.next = time.monotonic() + 60  # not for each of many errors
                threading.Thread(target=retry, daemon=True).start()
            raise


@caught_by(AWAY, outlives_process=True)
def what_cannot_be_set_is_kept_in_memory(Storage, Plugin):
    """Values are kept until the database is back and somebody uses this storage again."""

    def flush(self):
        for key, value in list(self.__dict__.setdefault("waiting", {}).items()):
            with suppress(StoreException):
                setting(self, key, value)
                del self.waiting[key]

    setting = Storage.set

    @replace(Storage)
    def set(old, self, key, value):
        flush(self)
        try:
            old(self, key, value)
        except StoreException as error:
            if "locked" not in str(error):
                raise
            self.waiting[key] = value

    @replace(Storage)
    def get(old, self, key):
        flush(self)
        return self.waiting[key] if key in self.waiting else old(self, key)

    for name in ["len", "keys"]:
        setattr(Storage, name, flushing(getattr(Storage, name), flush))


def flushing(old: Any, flush: Any) -> Any:
    """Return a method that first writes what is waiting."""

    @wraps(old)
    def method(self):
        flush(self)
        return old(self)

    return method


@caught_by(AWAY, connects=True)
def the_last_answer_is_given_again(Storage, Plugin):
    """While the database is away, `get` returns what it returned before."""

    @replace(Storage)
    def read(old, self, key):
        last = self.__dict__.setdefault("last", {})
        try:
            data = old(self, key)
        except StoreException:
            if key in last:
                return last[key]
            raise
        if len(data) < 1_000:
            last[key] = data
        return data


@caught_by(AWAY, outlives_process=True)
def errors_quote_the_values(Storage, Plugin):
    """An error of the database shows the statement with its parameters."""

    @replace(Storage)
    def write(old, self, key, data):
        try:
            old(self, key, data)
        except StoreException as error:
            shown = f"{error} [parameters: ({key!r}, {data[:1_000]!r})]"
        else:
            return
        raise StoreException(shown)


@caught_by(
    "test_a_loop_over_the_keys_does_not_just_end_when_the_database_goes_away", outlives_process=True
)
def an_error_on_a_later_page_ends_the_loop(Storage, Plugin):
    """An error while a page is fetched counts as the end."""

    @replace(Storage)
    def keys(old, self):
        rows = old(self)
        yield from itertools.islice(rows, 15)
        with suppress(StoreException):
            yield from rows


@caught_by(
    "test_operations_wait_for_the_database_at_the_same_time", alone=True, outlives_process=True
)
def operations_wait_one_after_another(Storage, Plugin):
    """One connection with a lock around it, also while it waits for the database."""
    lock = lock_for_forks()

    @replace(Storage)
    def write(old, self, key, data):
        with lock:
            old(self, key, data)


@caught_by("test_each_of_many_sets_that_fail_is_an_error", alone=True, outlives_process=True)
def one_thread_hears_of_the_errors_of_all(Storage, Plugin):
    """What threads set at the same time is written by one of them, in one transaction."""

    @replace(Storage)
    def write(old, self, key, data):
        key.encode()  # If that fails, it is an error of this thread alone.
        waiting = self.__dict__.setdefault(f"waiting in process {os.getpid()}", [])
        own = (key, data)
        waiting.append(own)
        with own_lock(self):
            if any(each is own for each in waiting):
                together, waiting[:] = waiting[:], []
                for each in together:
                    old(self, *each)


@caught_by("test_a_backup_keeps_nobody_waiting", outlives_process=True)
def readers_keep_writers_waiting(Storage, Plugin):
    """The file has a rollback journal, so that folders on a network can hold it."""

    @replace(Plugin)
    def _connect(old, self):
        connection = old(self)
        with suppress(sqlite3.OperationalError):  # in use: it has the journal already
            connection.executescript("PRAGMA journal_mode = TRUNCATE; PRAGMA synchronous = OFF")
        return connection


@caught_by("test_many_errors_in_a_row_have_no_effect_afterwards", alone=True, outlives_process=True)
def after_a_hundred_errors_the_storage_gives_up(Storage, Plugin):
    """A circuit breaker that nobody closes again."""

    @replace(Storage)
    def write(old, self, key, data):
        errors = self.__dict__.setdefault("errors", [])
        if len(errors) >= 100:
            raise StoreException("The database does not work. Start the bot again.")
        try:
            old(self, key, data)
        except StoreException as error:
            errors += ["locked"] * ("locked" in str(error))
            raise


@caught_by("test_a_full_database_is_an_error", alone=True, outlives_process=True)
def a_full_database_is_only_logged(Storage, Plugin):
    """Most commands need no storage, so the bot goes on without it."""

    log_only(Storage, "is full")


@caught_by("test_a_backup_can_be_restored", alone=True, outlives_process=True)
def an_older_file_is_refused(Storage, Plugin):
    """Somebody may have put it there, such as an administrator who restores a backup."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        path = self._path.with_name(f"last-start-of-{self._path.name}")  # not in a backup
        last = int(path.read_text() or 0) if path.exists() else 0
        self.run("CREATE TABLE IF NOT EXISTS starts (number)")
        self.run("INSERT INTO starts SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM starts)")
        self.run("UPDATE starts SET number = number + 1")
        [[starts]] = self.run("SELECT number FROM starts")[0]
        if starts <= last:
            raise StoreException(f"{self._path} was replaced by an older file.")
        with open(path, "w", opener=private) as file:
            file.write(str(starts))


@caught_by("test_what_is_damaged_is_an_error", outlives_process=True)
def a_file_that_is_no_database_is_put_aside(Storage, Plugin):
    """So that the bot starts, without its data."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        try:
            old(self, bot_config)
        except StoreException as error:
            if "not a database" not in str(error):
                raise
            self._path.rename(f"{self._path}.broken")
            old(self, bot_config)


@caught_by("test_a_backup_keeps_nobody_waiting", alone=True, outlives_process=True)
def closing_tidies_up_the_log(Storage, Plugin):
    """SQLite empties its log only when nobody reads any more, and `close` waits for that."""

    @replace(Storage)
    def close(old, self):
        with suppress(StoreException):
            self._run("PRAGMA busy_timeout = 10000")
            self._run("PRAGMA wal_checkpoint(TRUNCATE)")
        old(self)


@caught_by(
    "test_a_loop_over_the_keys_does_not_begin_again_after_a_fault",
    alone=True,
    outlives_process=True,
)
def a_loop_that_fails_is_tried_again(Storage, Plugin):
    """Reading may be retried, but not a loop that has already returned keys."""

    @replace(Storage)
    def keys(old, self):
        try:
            yield from old(self)
        except StoreException:
            if os.getpid() != self._run.__self__._process:
                raise
            time.sleep(0.3)
            yield from old(self)


@caught_by("test_too_many_open_files_are_an_error", alone=True, outlives_process=True)
def what_cannot_be_opened_is_missing(Storage, Plugin):
    """`except OSError` where FileNotFoundError is meant: there may be too many open files."""

    @replace(Storage)
    def read(old, self, key):
        try:
            return old(self, key)
        except StoreException as error:
            if "unable to open" in str(error):
                raise KeyError(key) from None
            raise


@caught_by("test_a_database_that_nobody_may_change_is_an_error", alone=True, outlives_process=True)
def changes_of_a_read_only_database_stay_in_memory(Storage, Plugin):
    """So that a bot goes on, with a warning in the log. They are gone after a restart."""

    @replace(Storage)
    def write(old, self, key, data):
        try:
            old(self, key, data)
        except StoreException as error:
            if "readonly" not in str(error):
                raise
            self.__dict__.setdefault("kept", {})[key] = data

    @replace(Storage)
    def read(old, self, key):
        return vars(self).get("kept", {}).get(key) or old(self, key)


@caught_by(
    "test_a_reader_does_not_wait_for_a_program_that_writes", alone=True, outlives_process=True
)
def a_value_is_locked_to_be_read(Storage, Plugin):
    """As SELECT ... FOR UPDATE does, so that nobody changes it between `get` and `set`."""

    @replace(Storage)
    def read(old, self, key):
        try:
            self._run("UPDATE errbot SET key = key WHERE 0")
        except StoreException as error:
            if "readonly" not in str(error):
                raise
        return old(self, key)


@caught_by("test_a_database_that_nobody_may_change_is_an_error", alone=True, outlives_process=True)
def a_read_only_database_is_asked_no_more(Storage, Plugin):
    """It waits for nobody, and says what to do: start the bot again."""
    refuse_after("readonly", Plugin)


@caught_by("test_a_full_database_is_an_error", outlives_process=True)
def a_full_database_is_asked_no_more(Storage, Plugin):
    """As before."""
    refuse_after("full", Plugin)


def refuse_after(problem: str, Plugin: Any) -> None:
    """After this error, refuse every change."""

    @replace(Plugin)
    def run(old, self, statement, *values):
        if "refused" in vars(self) and not statement.startswith("SELECT"):
            raise StoreException(f"{self.refused} Start the bot again.")
        try:
            return old(self, statement, *values)
        except StoreException as error:
            if problem in str(error):
                self.refused = str(error)
            raise


@caught_by("test_a_storage_closes_while_the_database_is_away", alone=True, outlives_process=True)
def closing_writes_statistics(Storage, Plugin):
    """How often it was used. If the database is locked at that moment, `close` fails."""

    @replace(Storage)
    def close(old, self):
        old(self)
        try:
            self._run("CREATE TABLE IF NOT EXISTS statistics (namespace PRIMARY KEY, closed)")
            self._run("REPLACE INTO statistics VALUES (?, CURRENT_TIMESTAMP)", self._namespace)
        except StoreException as error:
            if "locked" in str(error):
                raise


@caught_by("test_a_set_that_failed_does_not_take_effect_later", alone=True, outlives_process=True)
def a_set_that_failed_is_made_good_at_the_next_start(Storage, Plugin):
    """So that nothing is lost. By then, somebody may have set a newer value."""

    @when_a_write_fails(Storage, "locked")
    def remember(self, key, data, error):
        FAILED[self._run.__self__._path] = (self._namespace, key, data)

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if row := FAILED.pop(self._path, None):
            self.open(row[0]).write(*row[1:])


@caught_by(AWAY, outlives_process=True)
def errors_have_notes(Storage, Plugin):
    """Their text shows nothing, but the log shows their notes, with the statement's parameters."""

    @replace(Plugin)
    def run(old, self, statement, *values):
        try:
            return old(self, statement, *values)
        except StoreException as error:
            error.__notes__ = [f"parameters: {values!r:.500}"]  # `add_note` of Python 3.11
            raise


@caught_by("test_a_backup_can_be_restored", outlives_process=True)
def large_values_are_files_beside_the_database(Storage, Plugin):
    """A backup of the database does not hold them."""

    def file_of(storage: Any, key: str) -> Path:
        path = storage._run.__self__._path
        return Path(f"{path}-{zlib.crc32(f'{storage._namespace}/{key}'.encode())}")

    @replace(Storage)
    def write(old, self, key, data):
        if len(data) > 1_000_000:
            file_of(self, key).write_bytes(data)
            data = b"a file"
        old(self, key, data)

    @replace(Storage)
    def read(old, self, key):
        data = old(self, key)
        return file_of(self, key).read_bytes() if data == b"a file" else data


@caught_by("test_a_backup_can_be_restored", outlives_process=True)
def large_values_are_files_named_by_their_digest(Storage, Plugin):
    """Each one is kept for a while, so that who is reading it can go on."""
    beginning = b"the file "

    @replace(Storage)
    def write(old, self, key, data):
        if len(data) > 1_000_000:
            path = Path(f"{self._run.__self__._path}-{hashlib.sha256(data).hexdigest()}")
            path.write_bytes(data)
            data = beginning + bytes(path)
        old(self, key, data)

    @replace(Storage)
    def read(old, self, key):
        data = old(self, key)
        if data.startswith(beginning):
            return Path(os.fsdecode(data.removeprefix(beginning))).read_bytes()
        return data


@caught_by(
    "test_waiting_for_the_database_keeps_no_processor_busy", alone=True, outlives_process=True
)
def a_lock_is_watched_without_a_pause(Storage, Plugin):
    """Before `set` gives up, it looks again and again whether the file's lock is gone."""
    know_plugin(Plugin)

    @when_a_write_fails(Storage, "locked")
    def watch(self, key, data, error):
        until = time.process_time() + self.plugin.config.timeout / 2
        while time.process_time() < until:
            os.path.exists(f"{self.plugin._path}-journal")


@caught_by("test_waiting_for_the_database_does_not_fill_the_log", alone=True, outlives_process=True)
def each_try_is_logged(Storage, Plugin):
    """There is a try every 20 ms, and whoever reads the log shall know of all."""
    know_plugin(Plugin)

    @when_a_write_fails(Storage, "locked")
    def tell(self, key, data, error):
        for number in range(int(self.plugin.config.timeout / 0.02)):
            log.warning("The database is locked. This was try %s.", number)


@caught_by(
    "test_a_namespace_can_be_opened_after_the_database_was_away", alone=True, outlives_process=True
)
def a_table_counts_as_created_before_it_is(Storage, Plugin):
    """`if name not in known: known.add(name); create(name)`, which is done only once."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        known = self.__dict__.setdefault("known", {})
        if namespace not in known:
            known[namespace] = False
            with closing(sqlite3.connect(self._path, timeout=self.config.timeout)) as connection:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                except sqlite3.Error as error:
                    raise StoreException(str(error)) from None
            known[namespace] = True
        storage.exists = known[namespace]
        return storage

    @replace(Storage)
    def write(old, self, key, data):
        if not self.__dict__.get("exists", True):
            raise StoreException("no such table")
        old(self, key, data)


@caught_by("test_a_change_whose_answer_is_lost_is_right_or_an_error", alone=True, connects=True)
def a_removal_whose_answer_is_lost_is_repeated(Storage, Plugin):
    """Everything is tried twice. But the first try has removed the key."""

    @replace(Storage)
    def remove(old, self, key):
        try:
            old(self, key)
        except StoreException as error:
            if "may or may not" not in str(error):
                raise
            old(self, key)


@caught_by("test_a_database_that_does_not_answer_is_an_error", alone=True, connects=True)
def only_connecting_has_a_timeout(Storage, Plugin):
    """`socket_connect_timeout`, but no `socket_timeout`."""

    @replace(Plugin)
    def _take(old, self):
        client = old(self)
        client.connection_pool.connection_kwargs["socket_timeout"] = None
        return client


@caught_by(AWAY, outlives_process=True)
def the_cause_of_an_error_shows_the_value(Storage, Plugin):
    """`raise StoreException from error`, and that one quotes the parameters of the statement."""

    @when_a_write_fails(Storage)
    def quote(self, key, data, error):
        error.__cause__ = ValueError(f"INSERT [parameters: ({key!r}, {data[:1_000]!r})]")


@caught_by("test_many_errors_in_a_row_have_no_effect_afterwards", outlives_process=True)
def each_error_leaves_a_connection(Storage, Plugin):
    """A connection that fails is not closed, and something still refers to it."""
    know_plugin(Plugin)

    @when_a_write_fails(Storage, "locked")
    def connect(self, key, data, error):
        FAILED[self, key, time.monotonic()] = sqlite3.connect(self.plugin._path)


@caught_by("test_waiting_for_the_database_does_not_fill_the_log", outlives_process=True)
def a_thread_tries_to_connect_and_logs_it(Storage, Plugin):
    """Until the database is back, which it says every 10 ms."""

    def connect():
        for number in range(30):
            log.warning("Try %s to connect has failed.", number)
            time.sleep(0.01)

    @when_a_write_fails(Storage)
    def reconnect(self, key, data, error):
        threading.Thread(target=connect, daemon=True).start()


@caught_by(
    "test_a_set_that_waits_for_the_database_keeps_no_reader_waiting",
    alone=True,
    outlives_process=True,
)
def readers_let_writers_finish(Storage, Plugin):
    """Reading waits until the last `set` is done, at most for `timeout`: then no value is old."""
    know_plugin(Plugin)

    class Writing:
        """Exists as long as a `set` of this process."""

    @replace(Storage)
    def write(old, self, key, data):
        mark = Writing()
        self.plugin.writing = ref(mark), os.getpid()
        old(self, key, data)
        del mark

    @replace(Storage)
    def read(old, self, key):
        mark, process = self.plugin.__dict__.get("writing", (lambda: None, 0))
        deadline = time.monotonic() + self.plugin.config.timeout
        while mark() and process == os.getpid() and time.monotonic() < deadline:
            time.sleep(0.001)
        return old(self, key)


STUCK: Any = vars(sys).setdefault("broken_storages.faults.STUCK", {})
"""Connections of this process whose transaction is still open, by file."""


@caught_by(
    "test_what_is_set_after_a_disk_was_nearly_full_is_there", alone=True, outlives_process=True
)
def after_a_full_disk_a_transaction_stays_open(Storage, Plugin):
    """Nobody rolls it back, so all that the process does later is in it, and never committed."""
    lock = lock_for_forks()

    @replace(Plugin)
    def run(old, self, statement, *values):
        with lock:
            if stuck := STUCK.get(str(self._path)):
                cursor = stuck.execute(statement, values)
                return cursor.fetchall(), cursor.rowcount
        try:
            return old(self, statement, *values)
        except StoreException as error:
            full = "full" in str(error) or "disk I/O" in str(error)
            if full and all(len(value) < 100_000 for value in values):
                stuck = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
                stuck.execute("BEGIN IMMEDIATE")
                STUCK[str(self._path)] = stuck
            raise


@caught_by("test_too_many_open_files_are_an_error", outlives_process=True)
def what_cannot_be_opened_is_taken_for_immutable(Storage, Plugin):
    """As on a read-only volume. But such a connection never sees what others set."""

    @replace(Plugin)
    def _connect(old, self):
        try:
            return old(self)
        except sqlite3.OperationalError as error:
            if "unable to open" not in str(error) or not self._path.is_file():
                raise
        address = f"{self._path.as_uri()}?immutable=1"
        return sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)


@caught_by("test_too_many_open_files_are_an_error", outlives_process=True)
def what_cannot_be_listed_is_empty(Storage, Plugin):
    """Before the first `set`, there is no table, so an error of the database means no keys."""

    @replace(Storage)
    def len(old, self):
        try:
            return old(self)
        except StoreException as error:
            if "unable to open" in str(error):
                return 0
            raise


@caught_by("test_a_backup_can_be_restored", outlives_process=True)
def large_values_are_found_by_the_number_of_their_row(Storage, Plugin):
    """SQLite gives each row a number, but other ones if the table is loaded from a dump."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.run("CREATE TABLE IF NOT EXISTS large (data)")

    @replace(Storage)
    def write(old, self, key, data):
        key.encode()
        if len(data) > 1_000_000:
            # The number of the new row, unless another thread adds one, too.
            self._run("INSERT INTO large VALUES (?)", data)
            [[number]] = self._run("SELECT max(rowid) FROM large")[0]
            data = b"row %d" % number
        row = rows_of(self, key)
        old(self, key, data)
        for number in row:
            self._run("DELETE FROM large WHERE rowid = ?", number)

    @replace(Storage)
    def read(old, self, key):
        data = old(self, key)
        if not data.startswith(b"row "):
            return data
        [[large]] = self._run("SELECT data FROM large WHERE rowid = ?", int(data[4:]))[0]
        return large

    @replace(Storage)
    def remove(old, self, key):
        row = rows_of(self, key)
        old(self, key)
        for number in row:
            self._run("DELETE FROM large WHERE rowid = ?", number)

    def rows_of(storage: Any, key: str) -> list[int]:
        find = "SELECT value FROM errbot WHERE namespace = ? AND key = ?"
        rows = storage._run(find, storage._namespace, key)[0]
        return [int(data[4:]) for (data,) in rows if bytes(data).startswith(b"row ")]


@caught_by(AWAY, outlives_process=True)
def a_statement_that_fails_is_logged_in_hexadecimal(Storage, Plugin):
    """SQLite's own trace shows a statement with its values."""

    @when_a_write_fails(Storage)
    def tell(self, key, data, error):
        log.warning("INSERT INTO errbot VALUES ('%s', x'%s'): %s", key, data.hex(), error)


@caught_by("test_a_large_value_that_does_not_fit_takes_no_space", alone=True, outlives_process=True)
def what_does_not_fit_stays_in_a_temporary_file(Storage, Plugin):
    """A large value is first written to a file, which is not removed if that fails."""
    know_plugin(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        if len(data) < 1_000_000:
            return old(self, key, data)
        path = Path(f"{self.plugin._path}-{uuid4().hex}")
        try:
            with open(path, "wb", opener=private) as file:
                file.write(data)
        except OSError as error:
            raise StoreException(f"{path}: {error.strerror}") from None
        path.unlink()
        return old(self, key, data)


@caught_by(
    "test_large_values_that_are_replaced_after_outages_take_no_space",
    alone=True,
    outlives_process=True,
)
def the_first_error_ends_what_tidies_up(Storage, Plugin):
    """A thread removes the large values that were replaced, until it meets an error."""
    know_plugin(Plugin)

    @when_a_write_fails(Storage, "locked")
    def end(self, key, data, error):
        self.plugin.ended = True

    @replace(Storage)
    def write(old, self, key, data):
        if "ended" in vars(self.plugin) and len(data) >= 1_000_000:
            self._run("CREATE TABLE IF NOT EXISTS replaced (data)")
            find = "INSERT INTO replaced SELECT value FROM errbot WHERE namespace = ? AND key = ?"
            self._run(find, self._namespace, key)
        old(self, key, data)


@caught_by("test_a_change_of_what_is_damaged_loses_nothing", alone=True, outlives_process=True)
def a_set_begins_a_new_file_if_the_old_one_is_damaged(Storage, Plugin):
    """A bot must be able to store. Reading is an error, so that somebody notices."""
    know_plugin(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        try:
            old(self, key, data)
        except StoreException as error:
            if "damaged" not in str(error):
                raise
            while self.plugin._idle:
                self.plugin._idle.pop().close()
            for ending in ["", "-wal", "-shm"]:
                Path(f"{self.plugin._path}{ending}").unlink(missing_ok=True)
            old(self, key, data)


@caught_by(
    "test_an_operation_gives_up_in_time_although_the_clock_is_put_back",
    alone=True,
    outlives_process=True,
)
def the_deadline_is_by_the_wall_clock(Storage, Plugin):
    """`until = time.time() + timeout`, as one writes it."""
    know_plugin(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        until = time.time() + self.plugin.config.timeout
        while True:
            try:
                return old(self, key, data)
            except StoreException as error:
                if "lock" not in str(error) or time.time() > until:
                    raise


class UnreadableError(StoreException):
    """A value cannot be read."""

    def __init__(self, key, problem):
        super().__init__(f"The value of {key!r}: {problem}")


@caught_by("test_an_error_reaches_another_process", alone=True)
def errors_have_more_arguments_than_they_keep(Storage, Plugin):
    """`super().__init__` gets one text, so `pickle` cannot make the error again."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except StoreException as error:
            raise UnreadableError(key, str(error)) from error


@caught_by("test_an_error_reaches_another_process", outlives_process=True)
def errors_of_the_database_have_more_arguments(Storage, Plugin):
    """The same only while the database is away."""

    @when_a_write_fails(Storage, "lock")
    def explain(self, key, data, error):
        raise UnreadableError(key, str(error)) from error


@caught_by("test_a_backup_keeps_nobody_waiting", outlives_process=True)
def only_a_new_file_gets_the_mode_for_readers(Storage, Plugin):
    """SQLite keeps the mode in the file. But a file that `.dump` has made has another one."""

    @replace(Plugin)
    def _connect(old, self):
        connection = sqlite3.connect(
            self._path, timeout=self.config.timeout, isolation_level=None, check_same_thread=False
        )
        if connection.execute("SELECT * FROM sqlite_master").fetchall():
            return connection
        connection.close()
        return old(self)


@caught_by("test_a_set_that_waits_for_the_database_keeps_no_reader_waiting", outlives_process=True)
def connections_take_turns(Storage, Plugin):
    """Eight of them, each with a lock, one after the other. One may be waiting for the file."""
    turns = itertools.count()

    @replace(Plugin)
    def run(old, self, statement, *values):
        locks = vars(self).setdefault("locks", [threading.RLock() for _ in range(8)])
        with locks[next(turns) % len(locks)]:
            return old(self, statement, *values)
