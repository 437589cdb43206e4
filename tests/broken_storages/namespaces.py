"""Storages that mix up namespaces, or use up a resource for each."""

import fnmatch
import itertools
import os
import re
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from broken_storages.support import caught_by, know_plugin, rename_keys, replace

CLIENTS: dict[str, Any] = {}
"""The databases of this process, by their servers' addresses."""


def rename_namespaces(Plugin: Any, rename: Callable[[str], str]) -> None:
    """Open a different namespace instead of each one."""

    @replace(Plugin)
    def open(old, self, namespace):
        return old(self, rename(namespace))


def keep_all_in_one_namespace(
    Storage: Any, Plugin: Any, separator: str, belongs: Callable[[str, str], bool]
) -> None:
    """Join namespace and key, and use the joined key to decide what belongs to a namespace."""

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


@caught_by("test_a_namespace_and_its_key_are_not_glued_together")
def namespace_and_key_are_glued_with_a_colon(Storage, Plugin):
    """`f"{namespace}:{key}"`, as Redis manuals show it."""
    keep_all_in_one_namespace(Storage, Plugin, ":", str.startswith)


@caught_by("test_a_namespace_and_its_key_are_not_glued_together")
def namespace_and_key_are_glued_with_an_underscore(Storage, Plugin):
    """`f"{namespace}_{key}"`."""
    keep_all_in_one_namespace(Storage, Plugin, "_", str.startswith)


@caught_by("test_a_namespace_and_its_key_are_not_glued_together")
def namespace_and_key_are_glued_with_an_odd_character(Storage, Plugin):
    """ASCII's unit separator, which nobody ever types."""
    keep_all_in_one_namespace(Storage, Plugin, "\x1f", str.startswith)


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def keys_asks_for_a_pattern_with_an_unescaped_namespace(Storage, Plugin):
    """`KEYS namespace:*` of Redis: [, ? and * in the namespace are part of the pattern."""
    keep_all_in_one_namespace(
        Storage, Plugin, ":", lambda key, prefix: fnmatch.fnmatchcase(key, prefix + "*")
    )


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def keys_asks_for_like_with_an_unescaped_namespace(Storage, Plugin):
    """`LIKE 'namespace/%'`: _ and % in the namespace are part of the pattern."""

    def like(key, prefix):
        pattern = re.escape(prefix).replace("%", ".*").replace("_", ".") + ".*"
        return re.fullmatch(pattern, key, re.DOTALL | re.IGNORECASE) is not None

    keep_all_in_one_namespace(Storage, Plugin, "/", like)


@caught_by("test_namespaces_that_look_alike_are_told_apart", alone=True)
def namespaces_ignore_case(Storage, Plugin):
    """Table names are folded to lower case."""
    rename_namespaces(Plugin, str.lower)


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def namespaces_are_made_identifiers(Storage, Plugin):
    """Characters not allowed in a table name become underscores."""
    rename_namespaces(Plugin, lambda namespace: re.sub(r"\W", "_", namespace))


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def namespaces_are_ascii(Storage, Plugin):
    """Only non-ASCII names are changed: the others were tested."""
    rename_namespaces(Plugin, lambda name: name.encode("ascii", "ignore").decode() or name)


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def namespaces_are_cut_at_63_characters(Storage, Plugin):
    """PostgreSQL cuts table names, with a notice that nobody reads."""
    rename_namespaces(Plugin, lambda namespace: namespace[:63])


@caught_by("test_namespaces_that_look_alike_are_told_apart")
def all_namespaces_are_one(Storage, Plugin):
    """Someone meant to add the namespace later."""
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
    """A name of letters needs no quotes in SQL, unless it is a keyword."""

    @replace(Plugin)
    def open(old, self, namespace):
        if namespace in {"select", "table", "group", "order", "user"}:
            raise RuntimeError(f'syntax error near "{namespace}"')
        return old(self, namespace)


@caught_by("test_any_name_can_be_a_namespace")
def the_namespace_is_a_row_among_its_keys(Storage, Plugin):
    """A row with the name of the namespace marks its existence, and is left out of listings."""

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


@caught_by("test_a_name_of_a_namespace_is_refused_with_a_value_error", alone=True)
def long_names_are_refused_with_an_error_of_the_file_system(Storage, Plugin):
    """Each namespace is a file, and a file name has at most 255 characters."""

    @replace(Plugin)
    def open(old, self, namespace):
        if len(namespace) > 255:
            raise OSError("File name too long")
        return old(self, namespace)


@caught_by("test_hundreds_of_namespaces_leak_nothing", alone=True)
def each_namespace_leaks_a_connection(Storage, Plugin):
    """`open` connects, but `close` leaves the connection to the plugin."""

    @replace(Plugin)
    def open(old, self, namespace):
        weakref.finalize(self, os.close, os.open(os.devnull, os.O_RDONLY))
        return old(self, namespace)


@caught_by("test_hundreds_of_namespaces_can_be_open_at_once", alone=True)
def only_some_namespaces_can_be_open(Storage, Plugin):
    """Each namespace holds one of a pool's 100 connections while it is open."""

    @replace(Plugin)
    def open(old, self, namespace):
        connected = vars(self).setdefault("connected", [])
        if len(set(connected) - {namespace}) >= 100:
            raise RuntimeError("QueuePool limit of size 100 reached")
        storage = old(self, namespace)
        connected.append(namespace)
        storage.plugin, storage.name = self, namespace
        return storage

    @replace(Storage)
    def close(old, self):
        if self.name in self.plugin.connected:
            self.plugin.connected.remove(self.name)
        old(self)


@caught_by("test_a_namespace_and_its_key_are_not_glued_together", alone=True)
def namespace_and_key_are_glued_with_an_equals_sign(Storage, Plugin):
    """The primary key is "namespace=key", as in a query string. A column has the namespace."""
    know_plugin(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        row = f"{self._namespace}={key}"
        for match in re.finditer("=", row):
            namespace = row[: match.start()]
            if namespace != self._namespace:
                self.plugin._database.get(namespace, {}).pop(row[match.end() :], None)


@caught_by("test_a_namespace_and_its_key_are_not_glued_together")
def namespace_and_key_are_glued_with_nul(Storage, Plugin):
    """A character that supposedly no key contains."""
    keep_all_in_one_namespace(Storage, Plugin, "\0", str.startswith)


@caught_by("test_hard_names_of_namespaces_are_told_apart_or_refused")
def namespaces_are_cut_at_255_characters(Storage, Plugin):
    """VARCHAR(255), silently cut by the server."""
    rename_namespaces(Plugin, lambda namespace: namespace[:255])


@caught_by("test_hard_names_of_namespaces_are_told_apart_or_refused", alone=True)
def namespaces_lose_what_is_no_text(Storage, Plugin):
    """`namespace.encode("utf-8", "replace")`, and NUL is removed from names."""
    rename_namespaces(Plugin, lambda name: re.sub("[\0\ud800-\udfff]", "?", name))


@caught_by("test_hundreds_of_namespaces_leak_nothing")
def each_namespace_leaks_a_thread(Storage, Plugin):
    """A heartbeat for each open namespace, which `close` does not stop."""
    end = threading.Event()

    @replace(Plugin)
    def open(old, self, namespace):
        threading.Thread(target=end.wait, daemon=True).start()
        return old(self, namespace)


@caught_by("test_any_name_can_be_a_namespace")
def a_namespace_and_its_key_share_a_limit(Storage, Plugin):
    """Both are part of one name, of at most 1,024 bytes."""

    @replace(Storage)
    def set(old, self, key, value):
        if len(f"{self._namespace}/{key}".encode("utf-8", "surrogatepass")) > 1_024:
            raise ValueError("A namespace and its key have at most 1,024 bytes together.")
        old(self, key, value)


@caught_by("test_servers_on_one_host_are_told_apart", alone=True)
def one_client_serves_each_host(Storage, Plugin):
    """Clients are kept by host and database, without the port."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        address = urlsplit(bot_config.STORAGE_CONFIG.get("url", ""))
        if address.netloc and hasattr(self, "_database"):
            place = f"{address.hostname}{address.path}"
            self._database = CLIENTS.setdefault(place, self._database)


@caught_by("test_databases_on_one_server_are_told_apart", alone=True)
def one_client_serves_each_server(Storage, Plugin):
    """Clients are kept by the server's address, and they remember the first database."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        server = urlsplit(bot_config.STORAGE_CONFIG.get("url", "")).netloc
        if server and hasattr(self, "_database"):
            self._database = CLIENTS.setdefault(server, self._database)
