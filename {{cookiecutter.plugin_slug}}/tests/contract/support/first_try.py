"""The storage is tried once before the first test, so that such a fault is reported once."""

from threading import Thread
from uuid import uuid4

from contract.support.database import Database
from contract.support.sample_values import MARK
from contract.support.throwaway import check_isolation

SECONDS = 60
"""Seconds that the first use of a storage may take, including the timeout of an absent server."""


def try_once(database: Database) -> str:
    """Use the storage as all tests do. Returns why it cannot be tested, in one sentence, or ""."""
    begun, why = ["loading it"], ["it has not come back after a minute"]

    def use() -> None:
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
        if database.notes:
            begun.append("using two namespaces")
            reaching = check_isolation(plugin, *map(database.namespace, ["first", "second"]))
            assert not reaching, f"{reaching} of one reaches into the other, and into others' data"

    def note_error() -> None:
        try:
            use()
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split())
            why[0] = f"{type(error).__name__}: {text:.500}"
        else:
            why[0] = ""

    thread = Thread(target=note_error, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if database.notes and database.notes.stopped:
        return database.notes.stopped
    return why[0] and f"The storage cannot be tested: {begun[-1]} fails before any test: {why[0]}"
