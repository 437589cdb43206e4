"""A bot runs for years, and its data last as long."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from time import monotonic, sleep

import pytest
from errbot.storage.base import StoragePluginBase

from contract.support.amounts import many
from contract.support.clock import YEARS, Clock
from contract.support.database import Database, run_process
from contract.support.deadlines import at_once
from contract.support.expectations import skip_if_threads_fail
from contract.support.faults import Faults
from contract.support.guest import use
from contract.support.outcomes import contents, outcome, refusal, same
from contract.support.sample_values import MARK, large_value

CHANGES = many(12_000, 300)
"""Changes after which a storage may tidy up."""
CLEANING = 0.6
"""Seconds within which a thread that cleans up looks at the clock."""
TEMPORARY = [
    *("temperature", "template", "tmp", "cache", "cached", "session", "token", "lock", "expires"),
    *("ttl", "old", "log", "history", "last", "pending", "otp", "_private", "20260101", "1"),
]
"""Keys that look like something that need not be kept."""
OUTAGE = [0, 15, 3_600, 3_615]
"""Seconds after which an operation fails while the database is away."""
MANY = 120
"""Keys of a loop: more than one short page."""
VERY_MANY = many(5_000, 500)
"""Keys that a database needs some time to list and to count."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this process, which a test can set forward."""
    return Clock(monkeypatch)


@pytest.mark.parametrize("restarted", [False, True], ids=["in a bot", "after a restart"])
def test_a_value_is_there_after_any_time(
    clock: Clock, faults_if_any: Faults, database: Database, restarted: bool
) -> None:
    """A value that was set is there after any time."""
    if restarted:
        database.open_twice("probe")
    plugin = clock.load(database)
    storage = database.open("namespace", plugin)
    storage.set("read", MARK)
    storage.set("never read", [MARK])
    for key in TEMPORARY:
        storage.set(key, [MARK, key])
    # Another test checks whether large values can be stored.
    large = [refusal(storage.set, "large", large_value(number)) for number in [1, 2, 1]]
    assert storage.get("read") == MARK
    clock.ahead = YEARS
    faults_if_any.age()
    sleep(CLEANING)
    if restarted:
        database.close(storage)
        storage = database.open("namespace", clock.load(database))
    expected: dict[str, object] = {"read": MARK, "never read": [MARK]}
    expected |= {key: [MARK, key] for key in TEMPORARY}
    if not any(large):
        expected["large"] = large_value(1)
    try:
        got = contents(storage)
        kept = {key: storage.get(key) for key in expected}
    except KeyError as error:
        pytest.fail(f"The key {error} is gone after ten years. {FOR_EVER}")
    unchanged = same(got, kept) and same(kept, expected)
    assert unchanged, f"After ten years, the values have changed. {FOR_EVER}"
    assert storage.len() == len(expected), f"After ten years, `len` has changed. {FOR_EVER}"
    storage.set("new", MARK)
    storage.set("read", [MARK])
    assert (storage.get("new"), storage.get("read")) == (MARK, [MARK]), (
        "After ten years, nothing can be stored."
    )
    storage.remove("read")
    assert outcome(storage.get, "read") is KeyError, (
        "A value that was set ten years ago is back after its key was removed."
    )


FOR_EVER = (
    "Plugins store what must never expire: set no time to live, and let the database remove"
    " nothing by its age, or to save space."
)


@pytest.mark.parametrize("where", ["here", "in another process"])
def test_a_namespace_that_nobody_opens_is_there_after_any_time(
    clock: Clock,
    faults_if_any: Faults,
    database: Database,
    where: str,
    request: pytest.FixtureRequest,
) -> None:
    """A namespace that a bot does not open is complete after any time."""
    database.open_twice("namespace")[0].set("key", MARK)
    if where == "here":
        database.open_twice("unused")[0].set("a", MARK)
    else:
        request.getfixturevalue("other_processes")
        run_process(database, "unused", "write")
        if run_process(database, "unused", "read") == str({}):
            pytest.skip("data are lost when their process ends, which another test reports")
    database.close_all()
    storage = database.open("namespace", clock.load(database))
    if outcome(storage.get, "key") != MARK:
        pytest.skip("a start removes what is there, which another test reports")
    clock.ahead = YEARS
    faults_if_any.age()
    sleep(CLEANING)
    storage.set("new", MARK)
    restarted = database.plugin()
    got = outcome(database.open("unused", restarted).get, "a")
    known = [outcome(each.get, "key") for each in [storage, database.open("namespace", restarted)]]
    if known != [MARK, MARK]:
        pytest.skip("values expire, which another test reports")
    assert got == MARK, (
        f"A plugin was not activated for years, and then `get` gives {got}. Errbot opens a"
        " namespace only if its plugin is loaded. Do not remove data because nobody opened them."
    )


def test_new_threads_can_use_a_storage_after_any_time(
    clock: Clock, faults_if_any: Faults, database: Database
) -> None:
    """New threads can use a storage after any time, although they may need new connections."""
    storage = skip_if_threads_fail(database.open("namespace", clock.load(database)))
    storage.set("key", MARK)
    clock.ahead = YEARS
    faults_if_any.age()
    if outcome(storage.get, "key") != MARK:
        pytest.skip("values expire, which another test reports")
    got = at_once(*[partial(outcome, storage.get, "key")] * 8)
    assert got == [MARK] * 8, (
        f"After ten years, eight threads get {got}. If connecting takes a token or certificate,"
        " ask for a new one in time."
    )


def test_a_long_outage_has_no_effect_afterwards(
    clock: Clock, faults: Faults, database: Database
) -> None:
    """However long the database was away, everything works as soon as it is back."""
    storage = database.open("namespace", clock.load(database))
    storage.set("key", MARK)
    with faults.away():
        for clock.ahead in OUTAGE:
            outcome(storage.set, "key", MARK)
    got = (refusal(storage.set, "key", [MARK]), outcome(storage.get, "key"))
    assert got == (None, [MARK]), (
        f"The database was away for an hour, and when it is back, `set` and `get` give {got}. Do"
        " not wait before you try it again, or only for as long as one operation."
    )


@pytest.mark.usefixtures("other_processes")
def test_other_processes_see_what_a_bot_stores_after_any_time(
    clock: Clock, database: Database
) -> None:
    """After any time, other processes still see what a bot stores, also if one has just ended."""
    storage = database.open("namespace", clock.load(database))
    until = monotonic() + CLEANING
    for _ in range(CHANGES):  # if the database is fast enough
        if monotonic() < until:
            storage.set("key", MARK)
    clock.ahead = YEARS
    sleep(CLEANING)
    assert storage.get("key") == MARK
    seen = []
    for value in ([MARK, "first"], [MARK, "second"]):
        storage.set("key", value)
        seen.append(run_process(database, "namespace", "read"))
    assert seen == [str({"key": [MARK, each]}) for each in ["first", "second"]], (
        f"A bot has run for ten years, and of what it stores, other processes see only {seen}. What"
        " is done once a day, or after some changes, must not open and close a file that is locked:"
        " this drops the locks of the process."
    )


def test_many_keys_are_listed_after_any_time(
    clock: Clock, faults_if_any: Faults, database: Database
) -> None:
    """Thousands of keys are listed and counted after any time."""
    storage = database.open("namespace", clock.load(database))
    for number in range(VERY_MANY):
        storage.set(str(number), None)
    clock.ahead = YEARS
    faults_if_any.age()
    got = (outcome(storage.len), outcome(lambda: len(list(storage.keys()))))
    assert got == (VERY_MANY, VERY_MANY), (
        f"After ten years, `len` and `keys` of {VERY_MANY} keys give {got}. If a statement has a"
        " deadline, let it begin with the statement, not with the connection."
    )


def keys_of_a_slow_loop(
    database: Database, plugin: StoragePluginBase, pause: Callable[[], None]
) -> list[str]:
    """Loop over a namespace's keys, and pause after each of the first three."""
    storage = database.open("namespace", plugin)
    for number in range(MANY):
        storage.set(str(number), MARK)
    keys, seen = iter(storage.keys()), []
    try:
        for key in islice(keys, 3):
            seen.append(key)
            pause()
            with suppress(KeyError):  # Another test checks whether the value is still there.
                storage.set(key, [storage.get(key)])
        seen += keys
    except Exception as error:
        pytest.fail(f"A plugin with a slow loop over the keys gets {error!r}. {SLOW_LOOP}")
    return seen


SLOW_LOOP = (
    "Fetch keys with statements that end before their first key is used, and keep no cursor, no"
    " transaction, no connection and no deadline between two keys."
)


def test_a_loop_over_the_keys_may_take_any_time(
    clock: Clock, faults_if_any: Faults, database: Database
) -> None:
    """A loop over the keys may take as long as its body takes."""

    def pause() -> None:
        clock.ahead += YEARS
        faults_if_any.age()

    seen = keys_of_a_slow_loop(database, clock.load(database), pause)
    assert sorted(seen) == sorted(map(str, range(MANY))), (
        f"A slow loop over the keys returns {len(seen)} of {MANY} keys. {SLOW_LOOP}"
    )


def test_a_loop_over_the_keys_goes_on_when_connections_were_dropped(
    faults: Faults, database: Database
) -> None:
    """A loop over the keys continues after its connection was dropped."""
    seen = keys_of_a_slow_loop(database, database.plugin(), faults.drop)
    assert sorted(seen) == sorted(map(str, range(MANY))), (
        f"A loop over the keys whose connection was dropped returns {len(seen)} of {MANY} keys."
        f" {SLOW_LOOP}"
    )


@pytest.mark.parametrize("operation", ["get", "set", "replace", "remove", "len", "keys", "open"])
def test_a_connection_that_was_dropped_is_replaced(
    faults: Faults, database: Database, operation: str
) -> None:
    """A connection that was dropped while it was idle is replaced without an error."""
    plugin = database.plugin()
    storage = database.open("namespace", plugin)
    use(storage)
    storage.set("key", MARK)
    operations: dict[str, Callable[[], object]] = {
        "get": lambda: storage.get("key"),
        "set": lambda: (storage.set("new", MARK), storage.get("new"))[1],
        "replace": lambda: (storage.set("key", MARK), storage.get("key"))[1],
        "remove": lambda: (storage.remove("key"), MARK)[1],
        "len": lambda: storage.len() == 1 and MARK,
        "keys": lambda: list(storage.keys()) == ["key"] and MARK,
        "open": lambda: database.open("namespace", plugin).get("key"),
    }
    faults.drop()
    try:
        right = operations[operation]() == MARK
    except Exception as error:
        pytest.fail(
            f"A bot that was idle for a night gets {error!r} from `{operation}`. Before you use a"
            " connection, check whether the server has closed it (there is something to read, or"
            " its end), and reconnect; retry operations that only read."
        )
    assert right, f"After its connection was dropped, `{operation}` gives another result."
