"""Many plugins use the database at the same time, and none affects another."""

import random
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
from errbot.storage.base import StorageBase

from contract.support.amounts import many
from contract.support.database import Database, open_files
from contract.support.deadlines import at_once
from contract.support.expectations import skip_if_threads_fail, taken
from contract.support.measure import connections, memory, steps
from contract.support.outcomes import contents, outcome, same
from contract.support.sample_values import MARK, Unstorable
from contract.support.tricky_names import HARD, OWN

PLUGINS = 8
TURNS = 60
PAGES = many(3_000, 600)
"""Keys that fill several pages, if a database returns them page by page."""
OPEN = 60
"""Namespaces of a bot with many plugins."""
WORKERS = 10
"""Threads in which Errbot executes commands. They never end."""
SOME = 20
"""Namespaces that each of them uses."""


def test_what_another_plugin_does_changes_nothing_here(database: Database) -> None:
    """Nothing that another plugin does in its namespace changes anything in this one."""
    mine = database.open("mine")
    expected: dict[str, object] = {}
    others: list[StorageBase] = []

    def clear() -> None:
        for key in list(others[-1].keys()):
            others[-1].remove(key)

    actions: dict[str, Callable[[], object]] = {
        "`open`": lambda: others.append(database.open("another")),
        "`set`": lambda: others[-1].set("key", [MARK, "another's"]),
        "`set` of a value that cannot be stored": lambda: others[-1].set("key", Unstorable()),
        "`get`": lambda: others[-1].get("key"),
        "`get` of a missing key": lambda: others[-1].get("missing"),
        "`keys`": lambda: next(iter(others[-1].keys())),
        "`len`": lambda: others[-1].len(),
        "`remove`": lambda: others[-1].remove("key"),
        "`remove` of a missing key": lambda: others[-1].remove("missing"),
        "to empty its namespace": clear,
        "`close`": lambda: database.close(others.pop()),
    }
    for turn, (name, action) in enumerate([*actions.items(), *actions.items()]):
        mine.set("key", [MARK, turn])
        mine.set(f"key {turn}", MARK)
        expected |= {"key": [MARK, turn], f"key {turn}": MARK}
        loop, seen = iter(mine.keys()), []
        seen.append(next(loop))
        with suppress(Exception):  # Another test checks whether it works.
            action()
        seen.extend(loop)
        got = (contents(mine), mine.len(), sorted(seen))
        assert same(got, (expected, len(expected), sorted(expected))), (
            f"{name} of another plugin, in its own namespace, changed what this one sees. Share"
            " nothing that belongs to one namespace: no current namespace, no transaction, no"
            " position."
        )


def test_plugins_that_work_at_once_do_not_see_each_other(database: Database) -> None:
    """Plugins that work at the same time, each in its namespace, do not see each other."""
    skip_if_threads_fail(database.open("probe"))
    plugin = database.plugin()
    names = [database.namespace(f"plugin {number}") for number in range(PLUGINS)]
    new_names = [[f"{name} {turn}" for turn in range(TURNS)] for name in names]

    def work(number: int) -> None:
        choice, model = random.Random(number), dict[str, object]()
        storage = plugin.open(names[number])
        for turn in range(TURNS):
            key, value = choice.choice("abc"), [MARK, number, turn]
            if choice.random() < 0.3 and key in model:
                storage.remove(key)
                del model[key]
            else:
                storage.set(key, value)
                model[key] = value
            if choice.random() < 0.1:
                storage.close()
                plugin.open(new_names[number].pop()).close()
                storage = plugin.open(names[number])
            got = (contents(storage), storage.len())
            assert same(got, (model, len(model))), (
                f"While other plugins worked in their namespaces, one found {got[0]} in its own."
                " Name the namespace in each statement; keep no current namespace."
            )
        for key in list(storage.keys()):
            storage.remove(key)
        storage.close()

    try:
        at_once(*(partial(work, number) for number in range(PLUGINS)))
    except TimeoutError as error:
        pytest.fail(f"Plugins that work at the same time hang: {error}.")


def test_looking_into_an_unknown_namespace_changes_nothing(database: Database) -> None:
    """Looking into an unknown namespace, as `errbot --storage-get` does, changes nothing."""
    database.open_twice("probe")
    storage, empty = database.open("namespace"), database.open("empty")
    storage.set("key", MARK)
    empty.set("key", MARK)
    empty.remove("key")
    for name in ["unknown", "another unknown", "empty", "namespace"]:
        looking = database.open(name, database.plugin())
        seen = (looking.len(), list(looking.keys()))
        with suppress(KeyError):
            looking.get("missing")
        database.close(looking)
        there = ["key"] if name == "namespace" else []
        assert seen == (len(there), there), f"The namespace {name!r} contains {seen} keys."
        for one in [storage, database.open("namespace", database.plugin())]:
            assert (contents(one), one.len()) == ({"key": MARK}, 1), (
                f"Looking into the namespace {name!r} changed another one. `open` must neither set"
                " up nor clean up anything that others may be using."
            )
        empty.set("key", MARK)
        empty.remove("key")


def test_an_emptied_namespace_goes_on_for_all_who_have_it_open(database: Database) -> None:
    """If a namespace is emptied and closed, others who have it open can still use it."""
    database.open_twice("probe")
    plugin = database.plugin()
    storages = [database.open("namespace", plugin), database.open("namespace", database.plugin())]
    for turn in range(3):
        leaving = database.open("namespace", plugin if turn % 2 else database.plugin())
        leaving.set("key", [MARK, turn])
        leaving.remove("key")
        database.close(leaving)
        for number, storage in enumerate(storages):
            seen = (storage.len(), list(storage.keys()))
            storage.set("key", [MARK, turn, number])
            newcomer = database.open("namespace", database.plugin())
            seen_then = [contents(other) for other in [*storages, newcomer]]
            database.close(newcomer)
            storage.remove("key")
            assert (seen, seen_then) == ((0, []), [{"key": [MARK, turn, number]}] * 3), (
                "After a namespace was emptied and closed, others who have it open lose what they"
                " set. Do not drop the table, file, folder or number of an empty namespace."
            )


def test_a_name_that_is_refused_harms_no_other(database: Database) -> None:
    """A refused key or namespace affects no other."""
    storage, other = database.open("namespace"), database.open("other")
    storage.set("key", [MARK, "old"])
    other.set("key", [MARK, "old"])
    for turn, name in enumerate(["a", *HARD]):
        with suppress(Exception):
            storage.set(name, [MARK, name])
        with suppress(Exception):
            storage.get(name)
        with suppress(Exception):
            database.open(name).set("key", MARK)
        for one in [other, storage, database.open(f"namespace {turn}")]:
            try:
                one.set("key", [MARK, turn])
                got = (one.get("key"), "key" in one.keys())
            except Exception as error:
                got = (error, False)
            assert same(got, ([MARK, turn], True)), (
                f"After a key or namespace, {name[:20]!r}, was refused, others fail: {got[0]!r}."
                " Refuse it before you ask the database, or end the transaction."
            )


def test_names_that_a_database_uses_itself_are_namespaces_like_any_other(
    database: Database,
) -> None:
    """Names that a storage or database may use itself are ordinary namespaces and keys."""
    database.open_twice("probe")
    storages = {}
    for name in OWN:
        with taken(name):
            storages[name] = database.open(name)
    full = [name for name, storage in storages.items() if storage.len() or [*storage.keys()]]
    assert not full, (
        f"The new namespaces {full} are not empty. Keep the storage's own data in a place that no"
        " namespace's name can reach."
    )
    keys = {name: [name, "key"] for name in OWN} | {"errbot": OWN}
    for name, storage in storages.items():
        for key in keys[name]:
            with taken(key):
                storage.set(key, [MARK, name, key])
    restarted = database.plugin()
    for name in OWN:
        storage = database.open(name, restarted)
        expected = {key: [MARK, name, key] for key in keys[name]}
        assert same((contents(storage), storage.len()), (expected, len(expected))), (
            f"The namespace {name!r} lacks what was set in it, or contains something else."
        )
        for key in expected:
            storage.remove(key)
        assert (storage.len(), [*storage.keys()]) == (0, []), f"{name!r} cannot be emptied."


def test_what_others_store_costs_a_namespace_nothing(database: Database) -> None:
    """Data in other namespaces make no operation in this one slower, not even `len` and `keys`."""
    storage, other = database.open("namespace"), database.open("other")
    for key in "abc":
        storage.set(key, MARK)
    uses: dict[str, Callable[[], object]] = {
        "`len`": storage.len,
        "`keys`": lambda: list(storage.keys()),
        "`get`": lambda: storage.get("a"),
        "`set`": lambda: storage.set("a", MARK),
        "`remove`": lambda: (storage.set("d", MARK), storage.remove("d")),
        "`open` and `close`": lambda: database.close(database.open("third")),
    }

    def costs() -> dict[str, tuple[int, int]]:
        for use in uses.values():
            use()  # It may connect.
        return {name: (steps(use), memory(use)) for name, use in uses.items()}

    before = costs()
    for number in range(PAGES):
        other.set(f"{number} {'k' * 100}", None)
    after = costs()
    dearer = [
        f"{name} took {before[name][0]} steps of Python and {before[name][1]} bytes, and takes"
        f" {after[name][0]} steps and {after[name][1]} bytes"
        for name in uses
        if after[name][0] > 2 * before[name][0] + 100
        or after[name][1] > 2 * before[name][1] + PAGES * 30
    ]
    assert not dearer, (
        f"Since another namespace holds {PAGES} keys: {'; '.join(dearer)}. Let the database find a"
        " namespace's keys by an index, instead of going through all keys."
    )


def test_what_others_store_hides_no_key(database: Database) -> None:
    """However much is stored in other namespaces, `keys` and `len` know every key of this one."""
    others = [database.open("another"), database.open("other")]  # They sort before and after it.
    storage = database.open("namespace")
    storage.set("first", MARK)
    for number in range(PAGES // len(others)):
        for other in others:
            other.set(f"key {number}", "x" * 500)
    storage.set("last", MARK)
    listed, length = sorted(storage.keys()), storage.len()
    assert (listed, length) == (["first", "last"], 2), (
        f"Since other namespaces hold {PAGES} keys, `keys` shows {listed}, and `len` is {length},"
        " of the keys 'first' and 'last'. If the database filters pages after it has read them, a"
        " page may be empty although more pages follow: go on until there is no next page."
    )


def test_a_loop_goes_on_while_many_namespaces_are_used(database: Database) -> None:
    """A loop over the keys goes on although dozens of other namespaces are used meanwhile."""
    storage = database.open("namespace")
    expected = [f"key {number}" for number in range(PAGES)]
    for key in expected:
        storage.set(key, None)
    loop = iter(storage.keys())
    seen = [next(loop)]
    for number in range(OPEN):
        other = database.open(f"other {number}")
        other.set("key", MARK)
        assert other.get("key") == MARK
    rest = outcome(lambda: list(loop))
    assert isinstance(rest, list), (
        f"While {OPEN} other namespaces were used, a loop over the keys of this one failed: {rest}."
        " If only a few tables or files are open at once, a loop must open its own again."
    )
    assert same(sorted(seen + rest), sorted(expected)), (
        f"While {OPEN} other namespaces were used, a loop over the keys of this one has shown"
        f" {len(seen + rest)} of {PAGES} keys."
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not list a process's connections")
def test_open_namespaces_share_their_connections(database: Database) -> None:
    """Sixty open namespaces share their connections to a server."""
    database.open("first").set("key", MARK)
    before = connections()
    storages = [database.open(f"namespace {number}") for number in range(OPEN)]
    loops = []
    for storage in storages:
        storage.set("key", MARK)
        storage.get("key")
        loops.append(iter(storage.keys()))
        next(loops[-1])
    held = connections() - before
    assert held <= OPEN // 3, (
        f"{OPEN} open namespaces hold {held} connections. A bot with many plugins that restarts"
        " reaches the server's limit. Share connections between all namespaces of a plugin"
        " instance."
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not list a process's open files")
def test_threads_open_no_file_for_each_namespace(database: Database) -> None:
    """Each of a bot's threads uses many namespaces, and this opens few files and connections."""
    storages = [database.open(f"namespace {number}") for number in range(SOME)]
    counted = []
    before = open_files()
    ready = threading.Barrier(WORKERS, action=lambda: counted.append(open_files() - before))

    def work() -> None:
        for storage in storages:
            outcome(storage.set, "key", MARK)
            outcome(storage.get, "key")
        ready.wait()

    at_once(*[work] * WORKERS)
    assert counted[0] < SOME * WORKERS, (
        f"After {WORKERS} threads have used {SOME} namespaces, {counted[0]} files and connections"
        " are open. Errbot's threads never end, so a bot with many plugins fails with `Too many"
        " open files`. Keep no connection for each thread in each namespace."
    )
