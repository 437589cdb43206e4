"""Each plugin has its own namespace, and no other plugin can access it."""

import sys
import threading
from typing import Any
from urllib.parse import urlsplit

import pytest

from contract.support.amounts import many
from contract.support.database import Database, open_files
from contract.support.expectations import taken
from contract.support.outcomes import contents, outcome, refusal, same
from contract.support.sample_values import MARK
from contract.support.server import free_ports
from contract.support.tricky_names import ALIKE, HARD, SEPARATORS

MANY = many(300, 40)
"""More namespaces than any pool has connections."""


def test_a_key_is_not_removed_from_another_namespace(database: Database) -> None:
    """`remove` removes nothing from another namespace."""
    one, other = database.open("one"), database.open("other")
    other.set("key", MARK)
    outcome(one.remove, "key")  # Another test checks whether it raises KeyError.
    assert contents(other) == {"key": MARK}, "`remove` removed another plugin's key."


def test_databases_on_one_server_are_told_apart(
    database: Database, another_database: dict[str, Any]
) -> None:
    """Bots that each have a database on one server, such as a staging bot, share no data."""
    mine = database.open("namespace")
    mine.set("key", MARK)
    database.config.STORAGE_CONFIG |= another_database
    other = database.open("namespace", database.plugin())
    assert contents(other) == {}, (
        "A database that was empty shows another's data. If connections or clients are kept for"
        " all plugin instances, find them by everything that STORAGE_CONFIG says."
    )
    other.set("key", [MARK])
    assert (mine.get("key"), other.get("key")) == (MARK, [MARK]), (
        "A bot changed another bot's database on the same server."
    )


def test_servers_on_one_host_are_told_apart(database: Database) -> None:
    """A bot whose configuration names another port does not see the data of this server."""
    config = database.config.STORAGE_CONFIG
    elsewhere = {key: on_another_port(key, value) for key, value in (config or {}).items()}
    if database.notes or elsewhere == config:
        pytest.skip("the configuration names no port, or that of a bot in use")
    database.open("namespace", database.plugin()).set("key", MARK)
    database.config.STORAGE_CONFIG = elsewhere
    # Nothing answers there, except for a stand-in: either an error or no data is right.
    got = outcome(lambda: contents(database.open("namespace", database.plugin())))
    assert got != {"key": MARK}, (
        "A bot that connects to another port sees the data of this server. `move` from one server"
        " to another on the same host would copy the old data onto themselves. If connections or"
        " clients are kept for all plugin instances, find them by everything that STORAGE_CONFIG"
        " says."
    )


def on_another_port(key: str, value: object) -> object:
    """Return a value of STORAGE_CONFIG with another port, if it has one. Nothing listens there."""
    port = free_ports(1)[0]
    if key == "port":
        return port
    address = urlsplit(value) if isinstance(value, str) else None
    if not address or not address.hostname or "," in address.netloc:
        return value
    host = address.netloc.removesuffix(f":{address.port}")
    return address._replace(netloc=f"{host}:{port}").geturl()


@pytest.mark.parametrize("separator", [*SEPARATORS, "\0"], ids=repr)
def test_a_namespace_and_its_key_are_not_glued_together(database: Database, separator: str) -> None:
    """A namespace and its key are kept apart, with any separator."""
    name = f"a{separator}b"
    rest = database.namespace(name).removeprefix(database.namespace("a") + separator)
    try:
        first, second = database.open("a"), database.open(name)
        first.set(f"{rest}{separator}c", f"{MARK} first")
        second.set("c", f"{MARK} second")
    except Exception:
        pytest.skip(f"a name that contains {separator!r} is refused, which another test checks")
    if not [*second.keys()] and outcome(second.get, "c") == f"{MARK} second":
        pytest.skip("`keys` does not find what is there, which another test checks")
    assert contents(first) == {f"{rest}{separator}c": f"{MARK} first"}, (
        f"The namespace 'a' with the key 'b{separator}c' is confused with 'a{separator}b' and 'c'."
        " Keep namespace and key in separate fields."
    )
    assert contents(second) == {"c": f"{MARK} second"}, (
        f"The namespace 'a{separator}b' with the key 'c' is confused with 'a' and 'b{separator}c'."
        " Keep namespace and key in separate fields."
    )


@pytest.mark.parametrize(
    "names", [["one", "other"], *ALIKE.values()], ids=["nothing alike", *ALIKE]
)
def test_namespaces_that_look_alike_are_told_apart(database: Database, names: list[str]) -> None:
    """Namespaces that look alike are distinguished exactly."""
    storages = {}
    for name in names:
        with taken(name):
            storages[name] = database.open(name)
    assert not any(storage.len() for storage in storages.values()), "A new namespace is not empty."
    for number, (name, storage) in enumerate(storages.items()):
        with taken(name):
            storage.set("key", f"{MARK} {number}")
        storage.set(f"key {number}", MARK)
    for number, (name, storage) in enumerate(storages.items()):
        assert contents(storage) == {"key": f"{MARK} {number}", f"key {number}": MARK}, (
            f"The namespace {name!r:.60} is confused with another of {names!s:.200}. Compare names"
            " as bytes, and escape them wherever they are part of a pattern, a path or a statement."
        )
        assert storage.len() == 2, f"The namespace {name!r} counts another namespace's keys."
    for number, (name, storage) in enumerate(storages.items()):
        assert storage.get("key") == f"{MARK} {number}", (
            f"Emptying another namespace emptied {name!r}."
        )
        for key in list(storage.keys()):
            storage.remove(key)


@pytest.mark.parametrize(
    "name", ["core", "repomgr", "text_backend", "select", "table", "group", "x" * 250]
)
def test_any_name_can_be_a_namespace(database: Database, name: str) -> None:
    """Any name can be a namespace, with any key in it."""
    storage = database.open(name)
    keys = [name, "\U0001f600" * 250]
    for key in keys:
        with taken(key):
            storage.set(key, MARK)
    assert (contents(storage), storage.len()) == (dict.fromkeys(keys, MARK), len(keys)), (
        f"{name!r} cannot be the name of a namespace, or of a key in it."
    )


def test_hard_names_of_namespaces_are_told_apart_or_refused(database: Database) -> None:
    """Long and unusual names of namespaces are distinguished or refused."""
    held = {}
    for number, name in enumerate(HARD):
        try:
            storage = database.open(name)
            storage.set("key", f"{MARK} {number}")
        except Exception:
            continue
        held[name] = storage, f"{MARK} {number}"
    for name, (storage, value) in held.items():
        assert same(contents(storage), {"key": value}), (
            f"The namespace {name[:20]!r}, {len(name)} characters long, is confused with another."
            " Raise ValueError for a name that the database cannot store."
        )


def test_a_name_of_a_namespace_is_refused_with_a_value_error(database: Database) -> None:
    """If the database cannot store a namespace's name, it is refused with a `ValueError`."""

    def use(name: str) -> None:
        database.open(name).set("key", MARK)

    for name in HARD:
        refused = refusal(use, name)
        assert not refused or issubclass(refused, ValueError), (
            f"A name of {len(name)} characters, {name[:5]!r} ..., was refused with"
            f" {refused.__name__}. Raise ValueError, and name the limit. Administrators see the"
            " message when a plugin with that name cannot be activated."
        )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not list a process's open files")
def test_hundreds_of_namespaces_leak_nothing(database: Database) -> None:
    """Opening and closing hundreds of namespaces leaves nothing open."""
    plugin = database.plugin()
    for number in range(10):
        database.close(database.open(f"namespace {number}", plugin))
    before, threads = open_files(), threading.active_count()
    for number in range(MANY):
        storage = database.open(f"namespace {number % 50}", plugin)
        storage.set("key", MARK)
        storage.get("key")
        database.close(storage)
    left = open_files() - before
    assert left <= 10, (
        f"Opening and closing {MANY} namespaces left {left} files or connections open. Share one"
        " connection or pool between all namespaces of a plugin instance."
    )
    started = threading.active_count() - threads
    assert started <= 10, f"Opening and closing {MANY} namespaces left {started} threads running."


def test_hundreds_of_namespaces_can_be_open_at_once(database: Database) -> None:
    """Hundreds of namespaces can be open at once."""
    storages = [database.open(f"namespace {number}") for number in range(MANY)]
    for number, storage in enumerate(storages):
        storage.set("key", f"{MARK} {number}")
    values = [storage.get("key") for storage in storages]
    assert same(values, [f"{MARK} {number}" for number in range(MANY)]), (
        "A bot with many plugins confuses their namespaces."
    )
