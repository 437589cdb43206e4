"""Storages whose level of bytes does not do what the commands rely on."""

import gzip
import threading
import zlib

from errbot.storage import StoreException

from broken_storages.support import bytes_or_none, caught_by, replace

LISTED: set[str] = set()
"""The index of namespaces."""


@caught_by("test_processes_that_swap_lose_nothing", outlives_process=True)
def a_swap_compares_first(Storage, Plugin):
    """Under a lock, but another process knows nothing of it."""
    lock = threading.Lock()

    @replace(Storage)
    def swap(old, self, key, before, after):
        with lock:
            if bytes_or_none(self, key) != before:
                return False
            self.write(key, after)
            return True


@caught_by("test_a_swap_that_fails_is_an_error", outlives_process=True)
def a_swap_that_fails_says_that_somebody_was_faster(Storage, Plugin):
    """It returns False, so a command tries again, for ever."""

    @replace(Storage)
    def swap(old, self, key, before, after):
        try:
            return old(self, key, before, after)
        except StoreException:
            return False


@caught_by("test_a_swap_compares_all_of_a_long_value")
def a_swap_compares_the_beginning(Storage, Plugin):
    """The database cannot compare large objects, only their first 2,000 bytes."""

    @replace(Storage)
    def swap(old, self, key, before, after):
        data = bytes_or_none(self, key) or b""
        return old(self, key, data if data[:2_000] == before[:2_000] else before, after)


@caught_by("test_a_swap_replaces_what_was_stored_long_ago")
def a_swap_compares_what_was_compressed(Storage, Plugin):
    """gzip writes the time, too, so a second later the same value is compressed to other bytes."""

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, gzip.compress(data, 1))

    @replace(Storage)
    def read(old, self, key):
        return gzip.decompress(old(self, key))

    @replace(Storage)
    def swap(old, self, key, before, after):
        return old(self, key, gzip.compress(before, 1), gzip.compress(after, 1))


@caught_by("test_a_namespace_that_was_emptied_by_another_is_listed_when_it_has_keys_again")
def a_storage_lists_its_namespace_once(Storage, Plugin):
    """An index of namespaces. If another empties this one and takes it out, nobody adds it."""

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        if not vars(self).get("listed"):
            LISTED.add(self._namespace)
            self.listed = True

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        if not self.len():
            LISTED.discard(self._namespace)
            self.listed = False

    @replace(Plugin)
    def namespaces(old, self):
        return [name for name in old(self) if name in LISTED]


@caught_by("test_a_namespace_of_the_first_release_is_listed", outlives_process=True)
def what_was_never_opened_is_not_listed(Storage, Plugin):
    """The first release kept no list of namespaces. This one adds a name when it opens it."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        self.run("CREATE TABLE IF NOT EXISTS names (name UNIQUE)")
        self.run("INSERT OR IGNORE INTO names VALUES (?)", namespace)
        return storage

    @replace(Plugin)
    def namespaces(old, self):
        known = {name for (name,) in self.run("SELECT name FROM names")[0]}
        return [name for name in old(self) if name in known]


@caught_by("test_a_swap_that_replaces_nothing_leaves_nothing_undone", outlives_process=True)
def a_swap_that_replaces_nothing_ends_no_transaction(Storage, Plugin):
    """It compares in a transaction, and returns in the middle of it if somebody was faster."""

    @replace(Storage)
    def swap(old, self, key, before, after):
        plugin = self._run.__self__
        connection = plugin._take()
        plugin._idle.append(connection)
        if not connection.in_transaction:
            connection.execute("BEGIN IMMEDIATE")
        place = self._namespace, key
        where = "WHERE namespace = ? AND key = ?"
        if connection.execute(f"SELECT value FROM errbot {where}", place).fetchall() != [(before,)]:
            return False
        connection.execute(f"UPDATE errbot SET value = ? {where}", (after, *place))
        connection.execute("COMMIT")
        return True


@caught_by("test_a_swap_replaces_what_the_first_release_has_stored", outlives_process=True)
def a_swap_compares_what_only_this_release_compresses(Storage, Plugin):
    """Since this release, long values are compressed. What an earlier one has stored is not."""

    def pack(data):
        return b"zlib" + zlib.compress(data) if len(data) > 500 else data

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, pack(data))

    @replace(Storage)
    def read(old, self, key):
        data = old(self, key)
        return zlib.decompress(data[4:]) if data.startswith(b"zlib") else data

    @replace(Storage)
    def swap(old, self, key, before, after):
        return old(self, key, pack(before), pack(after))
