"""Storages in which plugins disturb each other."""

import os
import socket
import threading
import time
from contextlib import suppress
from io import FileIO
from typing import Any

from errbot.storage import StoreException

from broken_storages.support import caught_by, know_place, know_plugin, replace

USED: set[str] = set()
"""Namespaces in which something was set in this process."""


@caught_by("test_what_another_plugin_does_changes_nothing_here", alone=True)
def a_set_that_fails_rolls_back_another_plugin(Storage, Plugin):
    """One transaction for all namespaces, which the next `set` of any plugin commits."""
    know_plugin(Plugin)
    take_away = Storage.remove

    @replace(Storage)
    def set(old, self, key, value):
        last = self.plugin.__dict__.pop("last", None)
        try:
            old(self, key, value)
        except Exception:
            if last and last[0] is not self:
                with suppress(KeyError):
                    take_away(*last)
            raise
        self.plugin.last = self, key


@caught_by("test_plugins_that_work_at_once_do_not_see_each_other")
def get_selects_its_namespace_before(Storage, Plugin):
    """Redis's SELECT or MySQL's USE, then the query. Another thread may come between them."""
    know_plugin(Plugin)

    @replace(Storage)
    def get(old, self, key):
        self.plugin.current = self
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.0005)
        return old(self.plugin.current, key)


@caught_by("test_plugins_that_work_at_once_do_not_see_each_other", alone=True)
def two_threads_create_one_table(Storage, Plugin):
    """The first `open` checks whether the table for all namespaces exists, then creates it."""

    @replace(Plugin)
    def open(old, self, namespace):
        if not hasattr(self, "created"):
            time.sleep(0.01)
            if hasattr(self, "created"):
                raise RuntimeError("table namespaces already exists")
            self.created = True
        return old(self, namespace)


@caught_by("test_looking_into_an_unknown_namespace_changes_nothing", alone=True)
def a_new_bot_sets_up_the_database(Storage, Plugin):
    """The first namespace that a bot opens is empty, so the database seems new and is set up."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        here = threading.current_thread() is threading.main_thread()
        if here and not self.__dict__.setdefault("begun", False) and not storage.len():
            for name in self.namespaces():
                other = old(self, name)
                for key in list(other.keys()):
                    other.remove(key)
        self.begun = True
        return storage


# By folder of the bot's data and namespace: how often it was dropped.
DROPPED: dict[Any, int] = {}


@caught_by("test_an_emptied_namespace_goes_on_for_all_who_have_it_open", alone=True)
def close_drops_a_table_that_it_has_emptied(Storage, Plugin):
    """DROP TABLE, so that no empty one is left, but others have prepared statements for it."""
    know_place(Plugin)

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.table = DROPPED.get(storage.place, 0)
        return storage

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.removed = True

    @replace(Storage)
    def set(old, self, key, value):
        if self.table != DROPPED.get(self.place, 0):
            raise RuntimeError("no such table")
        old(self, key, value)

    @replace(Storage)
    def close(old, self):
        if self.__dict__.get("removed") and not self.len():
            DROPPED[self.place] = DROPPED.get(self.place, 0) + 1
        old(self)


@caught_by("test_a_name_that_is_refused_harms_no_other", alone=True)
def a_key_that_is_refused_keeps_the_transaction_open(Storage, Plugin):
    """The database refuses the key, and the shared transaction waits for a rollback."""
    know_plugin(Plugin)

    @replace(Storage)
    def set(old, self, key, value):
        if self.plugin.__dict__.get("aborted", self) is not self:
            raise RuntimeError("current transaction is aborted")
        self.plugin.__dict__.pop("aborted", None)
        if isinstance(key, str) and any("\ud800" <= letter <= "\udfff" for letter in key):
            self.plugin.aborted = self
            raise ValueError("invalid byte sequence")
        old(self, key, value)


@caught_by("test_names_that_a_database_uses_itself_are_namespaces_like_any_other", alone=True)
def the_list_of_namespaces_is_a_namespace(Storage, Plugin):
    """The list of namespaces is kept in one of them."""

    @replace(Plugin)
    def open(old, self, namespace):
        if namespace != "namespaces":
            old(self, "namespaces").set(namespace, None)
        return old(self, namespace)


@caught_by("test_what_others_store_hides_no_key", alone=True)
def an_empty_page_ends_the_list_of_keys(Storage, Plugin):
    """Two servers examine 1,000 rows each for a page, and leave out those of other namespaces."""
    know_plugin(Plugin)

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.beyond = self.__dict__.setdefault("beyond", {}).setdefault(namespace, set())
        return storage

    def others_fill_a_page(self):
        return sum(len(rows) > 1_000 for rows in list(self.plugin._database.values())) > 1

    @replace(Storage)
    def write(old, self, key, data):
        if others_fill_a_page(self):
            self.beyond.add(key)
        old(self, key, data)

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.beyond.discard(key)

    @replace(Storage)
    def keys(old, self):
        hidden = self.beyond if others_fill_a_page(self) else ()
        return (key for key in old(self) if key not in hidden)


@caught_by("test_what_others_store_costs_a_namespace_nothing", alone=True)
def keys_goes_through_all_namespaces(Storage, Plugin):
    """SELECT without WHERE, and an `if` in Python."""
    know_plugin(Plugin)

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        self.__dict__.setdefault("opened", []).insert(0, storage)
        return storage

    @replace(Storage)
    def close(old, self):
        self.plugin.opened.remove(self)
        old(self)

    @replace(Storage)
    def keys(old, self):
        for storage in list(self.plugin.opened):
            for key in old(storage):
                if storage is self:
                    yield key


@caught_by("test_open_namespaces_share_their_connections", alone=True)
def each_open_namespace_holds_a_connection(Storage, Plugin):
    """`open` connects, and `close` disconnects."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.connection = socket.socket()
        return storage

    @replace(Storage)
    def close(old, self):
        self.connection.close()
        old(self)


@caught_by("test_threads_open_no_file_for_each_namespace", alone=True)
def each_thread_keeps_each_namespace_open(Storage, Plugin):
    """So no thread waits for another. What a thread has opened is closed when it ends."""

    @replace(Storage)
    def write(old, self, key, data):
        opened = self.__dict__.setdefault("opened", threading.local())
        if not hasattr(opened, "file"):
            opened.file = FileIO(os.devnull)
        old(self, key, data)


@caught_by("test_an_emptied_namespace_goes_on_for_all_who_have_it_open")
def each_start_drops_the_tables_that_are_empty(Storage, Plugin):
    """Others have them open, and what they set later goes where nobody looks."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if hasattr(self, "_database"):
            for name in [name for name in list(USED) if not self._database.get(name)]:
                self._database.pop(name, None)

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        USED.add(self._namespace)


@caught_by("test_a_loop_goes_on_while_many_namespaces_are_used", alone=True)
def twenty_tables_are_open_at_once(Storage, Plugin):
    """The one that was not used for longest is closed, and with it the cursor of its loop."""
    know_plugin(Plugin)

    def use(self):
        tables = self.plugin.__dict__.setdefault("tables", {})
        tables.pop(self._namespace, None)
        tables[self._namespace] = None
        while len(tables) > 20:
            tables.pop(next(iter(list(tables)), None), None)

    @replace(Storage)
    def write(old, self, key, data):
        use(self)
        old(self, key, data)

    @replace(Storage)
    def keys(old, self):
        use(self)
        for number, key in enumerate(old(self)):
            if number == 1_000 and self._namespace not in self.plugin.tables:
                raise StoreException("The cursor was closed.")
            yield key
