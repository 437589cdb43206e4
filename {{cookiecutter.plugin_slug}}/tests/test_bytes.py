"""The level of bytes, which the commands use: `read`, `write`, `swap` and `namespaces`."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from contract.support.clock import YEARS, Clock
from contract.support.database import (
    Database,
    let_work,
    process_command,
    running_process,
)
from contract.support.faults import Faults
from contract.support.outcomes import refusal
from contract.support.sample_values import FIRST_KEYS, MARK
from contract.support.tricky_names import ALIKE, HARD

SWAPS = 500
"""How often each process tries to swap."""
ODD = [b"", b"\0", b"\0" * 99, bytes(range(256)), b"\xff\xfe", "größe 😀".encode(), b"%s ' \\ \n"]
LONG = b"long" * 25_000
LARGE = LONG * 90
"""More than clients send in one part, and than the 5 MB that every storage holds."""


@pytest.fixture
def stored(database: Database) -> Any:
    """An open and empty namespace."""
    return database.open()


def listed(database: Database) -> list[str]:
    """Return the namespaces that the plugin lists."""
    plugin: Any = database.plugin()
    return sorted(plugin.namespaces())


@pytest.mark.parametrize("data", [*ODD, b"x" * 1_000_000], ids=lambda data: repr(data[:8]))
def test_bytes_come_back_as_they_were(stored: Any, data: bytes) -> None:
    stored.write("key", b"before")
    stored.write("key", data)
    assert stored.read("key") == data
    assert type(stored.read("key")) is bytes


def test_bytes_of_a_missing_key_are_a_key_error(stored: Any) -> None:
    with pytest.raises(KeyError):
        stored.read("key")
    assert stored.len() == 0


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reading_a_value_of_any_protocol_leaves_its_bytes(stored: Any, protocol: int) -> None:
    """`move` keeps the bytes of another storage. Rewriting them could undo another's change."""
    data = pickle.dumps([MARK], protocol)
    stored.write("key", data)
    assert stored.get("key") == [MARK]
    assert stored.read("key") == data


@pytest.mark.parametrize("names", ALIKE.values(), ids=ALIKE)
def test_bytes_are_kept_under_their_key_and_no_other(stored: Any, names: list[str]) -> None:
    for name in names:
        stored.write(name, name.encode())
    assert sorted(stored.keys()) == sorted(names)
    assert [stored.read(name) for name in names] == [name.encode() for name in names]


@pytest.mark.parametrize("names", ALIKE.values(), ids=ALIKE)
def test_every_namespace_that_holds_a_key_is_listed_once(
    database: Database, names: list[str]
) -> None:
    for name in names:
        storage: Any = database.open(name)
        storage.write("", b"")
    assert listed(database) == sorted(names)


def test_a_hard_name_of_a_namespace_is_listed_or_was_refused(database: Database) -> None:
    held = []
    for name in HARD:
        try:
            database.open(name).set("key", 1)
        except ValueError:
            continue
        held.append(name)
    assert listed(database) == sorted(held)


@pytest.mark.usefixtures("first_release")
def test_a_namespace_of_the_first_release_is_listed(database: Database) -> None:
    first = {namespace for namespace, _ in FIRST_KEYS}
    assert listed(database) == sorted(first), "`move` leaves out what nobody has opened."
    database.open("another").set("key", 1)
    assert listed(database) == sorted(first | {"another"})


def test_a_namespace_without_keys_is_not_listed(database: Database) -> None:
    database.open("only open")
    database.open("emptied").set("key", 1)
    assert listed(database) == ["emptied"]
    database.open("emptied").remove("key")
    assert listed(database) == [], "A namespace without keys is still listed."


def test_a_namespace_that_was_emptied_by_another_is_listed_when_it_has_keys_again(
    database: Database,
) -> None:
    running = database.open("namespace", database.plugin())
    running.set("key", 1)
    database.open("namespace").remove("key")
    assert listed(database) == []
    running.set("key", 1)
    assert listed(database) == ["namespace"]


def test_what_is_stored_is_seen_by_a_plugin_that_has_been_there(database: Database) -> None:
    plugin: Any = database.plugin()
    assert list(plugin.namespaces()) == []
    database.open("late").set("key", 1)
    assert list(plugin.namespaces()) == ["late"]


@pytest.mark.parametrize("data", ODD, ids=repr)
def test_a_swap_replaces_what_it_expects(stored: Any, data: bytes) -> None:
    stored.write("key", data)
    assert stored.swap("key", data, b"new" + data) is True
    assert stored.read("key") == b"new" + data
    assert stored.swap("key", b"new" + data, data) is True
    assert stored.read("key") == data


def test_a_swap_of_a_large_value_is_done_or_an_error(stored: Any) -> None:
    if refusal(stored.write, "key", LARGE):  # No storage needs to hold as much.
        assert stored.len() == 0
        return
    try:
        done = stored.swap("key", LARGE, b"new")
    except Exception:
        assert stored.read("key") == LARGE
    else:
        assert done is True, "`resign` would try again for ever."
        assert stored.read("key") == b"new"


@pytest.mark.parametrize("other", [b"", b"Old", b"old ", b"old\0", b"ol", b"new"], ids=repr)
def test_a_swap_leaves_what_it_does_not_expect(stored: Any, other: bytes) -> None:
    stored.write("key", b"old")
    assert stored.swap("key", other, b"new") is False
    assert stored.read("key") == b"old"


@pytest.mark.parametrize("at", [0, 2_000, 70_000, -1])
def test_a_swap_compares_all_of_a_long_value(stored: Any, at: int) -> None:
    other = bytearray(LONG)
    other[at] += 1
    stored.write("key", LONG)
    assert stored.swap("key", bytes(other), b"new") is False
    assert stored.swap("key", LONG[:-1], b"new") is False
    assert stored.swap("key", LONG + b"\0", b"new") is False
    assert stored.swap("key", LONG, b"new") is True


def test_a_swap_replaces_what_was_stored_long_ago(
    stored: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored.write("key", LONG)
    Clock(monkeypatch).ahead = YEARS
    assert stored.swap("key", LONG, b"new") is True


@pytest.mark.usefixtures("first_release")
def test_a_swap_replaces_what_the_first_release_has_stored(database: Database) -> None:
    stored: Any = database.open("first")
    assert stored.swap("key", stored.read("key"), b"new") is True, (
        "After an upgrade, `resign` would try again for ever: the database compares the bytes that"
        " an earlier release has stored with those that this one would store."
    )


def test_a_swap_that_replaces_nothing_leaves_nothing_undone(database: Database) -> None:
    """As `resign` does when the bot has stored something else meanwhile."""
    one: Any = database.open("namespace", database.plugin())
    other = database.open("namespace", database.plugin())
    one.set("key", MARK)
    for key in ["key", "missing"] * 4:
        assert one.swap(key, b"old", b"new") is False
        one.set("one", [MARK, key])
        other.set("other", [MARK, key])
        assert (one.get("other"), other.get("one")) == ([MARK, key], [MARK, key]), (
            "After a `swap` that replaced nothing, a `set` had no effect for others. End the"
            " transaction then, too."
        )


def test_a_swap_of_a_missing_key_stores_nothing(stored: Any) -> None:
    stored.write("other", b"old")
    for old in [b"", b"old"]:
        assert stored.swap("key", old, b"new") is False
    assert list(stored.keys()) == ["other"]


@pytest.mark.parametrize("names", ALIKE.values(), ids=ALIKE)
def test_a_swap_changes_its_own_key_alone(stored: Any, names: list[str]) -> None:
    for name in names:
        stored.write(name, b"old")
    assert stored.swap(names[0], b"old", b"new") is True
    assert [stored.read(name) for name in names] == [b"new", *[b"old"] * (len(names) - 1)]


def test_a_swap_that_fails_is_an_error(faults: Faults, stored: Any) -> None:
    stored.write("key", b"before")
    faults.stop()
    try:
        error = refusal(stored.swap, "key", b"before", b"after")
    finally:
        faults.start()
    assert error, "`swap` cannot work, and raises nothing: a command would try again for ever."
    assert stored.read("key") == b"before"


def test_threads_that_swap_lose_nothing(stored: Any) -> None:
    stored.write("key", b"0")

    def count(_: int) -> None:
        done = False
        while not done:
            old = stored.read("key")
            done = stored.swap("key", old, b"%d" % (int(old) + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(200)))
    assert stored.read("key") == b"200", "A swap is not atomic: `resign` would undo other changes."


@pytest.mark.usefixtures("other_processes")
def test_processes_that_swap_lose_nothing(database: Database) -> None:
    before: Any = database.open("namespace", database.plugin())
    before.write("key", b"0")
    command = process_command(database, "namespace", "swap-at-once")
    with ExitStack() as stack:
        processes = [stack.enter_context(running_process(command)) for _ in range(3)]
        done = sum(map(int, let_work(processes, SWAPS)))
    after: Any = database.open("namespace", database.plugin())
    assert int(after.read("key")) == done, (
        "A swap is not atomic for other processes: `resign` would undo what a running bot sets."
        " Let one statement of the database compare and replace."
    )
