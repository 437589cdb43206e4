"""What is logged at DEBUG goes into files and to services that see no data otherwise."""

from typing import Any

from contract.expect import expect
from contract.plugin import Database
from contract.values import MARK, Person, Unstorable


class Broken(Person):
    """What a plugin stored before its class changed: it cannot be unpickled any more."""

    def __setstate__(self, state: Any) -> None:
        raise AttributeError("no such attribute")


def test_no_value_stands_in_the_log(database: Database, log_lines: list[str]) -> None:
    storage = database.open()
    for value in [MARK, [MARK], {MARK: MARK}, MARK.encode(), MARK * 1_000]:
        storage.set("key", value)
        storage.get("key")
    with expect(Exception, "An object that cannot be pickled was taken."):
        storage.set("key", [MARK, Unstorable()])
    storage.set("key", Broken(MARK))
    with expect(Exception, "A value that cannot be read was given back."):
        storage.get("key")
    list(storage.keys())
    storage.remove("key")
    database.close(storage)
    told = [line for line in log_lines if MARK in line]
    assert not told, f"A value stands in the log. Log names, never values: {told[0]}"
