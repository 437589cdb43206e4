"""The storage is tried before the first test, so that such a fault is reported once.

In a database that is in use, it is tried again before each test: what an earlier test has broken
there is not the fault of the next.
"""

import gc
from threading import Thread
from uuid import uuid4

from errbot.storage.base import StoragePluginBase

from contract.support.database import Database
from contract.support.sample_values import MARK
from contract.support.throwaway import check_isolation

SECONDS = 60
"""Seconds that the first use of a storage may take, including the timeout of an absent server."""


def try_again(database: Database) -> str:
    """Use the storage between two tests. Returns why that fails, or ""."""
    begun: list[str] = []
    try:
        use(database, begun)
    except Exception as error:
        gc.collect()  # A storage that was not closed may be freed now, with its locks.
        return f"After other tests, {begun[-1]} fails: {shown(error)}"
    return ""


def use(database: Database, begun: list[str]) -> StoragePluginBase:
    """Use the storage as all tests do, and note what is begun."""
    begun.append("loading it")
    plugin = database.plugin()
    begun.append("`open`")
    storage = plugin.open(database.namespace("first try"))
    key = f"probe {uuid4().hex}"
    begun.append("`set`")
    storage.set(key, MARK)
    begun.append("`get`")
    storage.get(key)
    begun.append("`remove`")
    storage.remove(key)
    begun.append("`close`")
    storage.close()
    return plugin


def shown(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.500}"


def try_once(database: Database) -> str:
    """Use the storage as all tests do. Returns why it cannot be tested, in one sentence, or ""."""
    begun: list[str] = []
    why = ["it has not come back after a minute"]

    def try_it() -> None:
        plugin = use(database, begun)
        if database.notes:
            begun.append("using two namespaces")
            reaching = check_isolation(plugin, *map(database.namespace, ["first", "second"]))
            assert not reaching, f"{reaching} of one reaches into the other, and into others' data"

    def note_error() -> None:
        try:
            try_it()
        except (Exception, SystemExit) as error:
            why[0] = shown(error)
        else:
            why[0] = ""

    thread = Thread(target=note_error, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if database.notes and database.notes.stopped:
        return database.notes.stopped
    return why[0] and f"The storage cannot be tested: {begun[-1]} fails before any test: {why[0]}"
