"""A storage returns what the database contains at that moment, whoever has set it."""

import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from queue import Queue
from threading import Thread
from typing import Any

import pytest
from errbot.storage.base import StorageBase

from contract.support.amounts import many
from contract.support.database import Database
from contract.support.deadlines import at_once
from contract.support.expectations import set_or_skip, skip_if_threads_fail
from contract.support.outcomes import refusal, same
from contract.support.sample_values import MARK, Unstorable, large_value

OFTEN = 30
"""How many reads of a key count as often."""
VERY_OFTEN, HALF_A_SECOND = many(20_000, 0), 0.5
"""How many reads are still more, and in how much time at most."""
TURNS, READERS = many(200, 30), 4
"""How often a key is set, and how many threads read it at once."""
HOUR = 3_600
COUNTED = many(11_000, 800)
"""Keys that some storages may no longer count each time."""
LOOPED = 250
"""Keys of a loop: more than one short page."""


def get_or(storage: StorageBase, key: str) -> Any:
    """Return the value of a key, or "missing"."""
    try:
        return storage.get(key)
    except KeyError:
        return "missing"


def seen_by(storage: StorageBase) -> tuple[Any, Any, list[str], int]:
    """Return what a storage says about these keys, some of which are missing."""
    return (
        get_or(storage, "key"),
        get_or(storage, "new"),
        sorted(storage.keys()),
        storage.len(),
    )


def read_very_often(storage: StorageBase) -> None:
    """Read a key as a plugin does that looks every few seconds for days."""
    until = time.monotonic() + HALF_A_SECOND
    for _ in range(VERY_OFTEN):
        storage.get("key")
        if time.monotonic() > until:
            break


@pytest.mark.parametrize(
    ("name", "size"),
    [("namespace", 1), ("core", 1), ("namespace", 40_000)],
    ids=["small", "in Errbot's own namespace", "large"],
)
def test_a_key_that_was_read_often_is_asked_for_again(
    database: Database, name: str, size: int
) -> None:
    """A key that was read often is read again, so changes by another opener are seen."""
    one, other = database.open_twice(name)
    one.set("key", [MARK * size, 0])
    for turn in range(1, 4):
        expected = seen_by(one)
        for _ in range(OFTEN):
            assert same(seen_by(one), expected)
        if (turn, size) == (1, 1):
            read_very_often(one)
        other.set("key", [MARK * size, turn])
        if turn % 2:
            other.set("new", [MARK * size, turn])
        else:
            other.remove("new")
        new = [MARK * size, turn] if turn % 2 else "missing"
        keys = ["key", "new"] if turn % 2 else ["key"]
        assert same(seen_by(one), ([MARK * size, turn], new, keys, len(keys))), (
            f"After {OFTEN} reads, the storage answers from a cache, and misses what another opener"
            " has set or removed. Ask the database each time."
        )
    other.remove("key")
    assert seen_by(one)[0] == "missing", (
        "A value that was read often is still there after its removal."
    )
    other.remove("new")
    # Set and removed as often as before, with a value as long, in a namespace that was emptied.
    for turn in range(4):
        other.set("key", [MARK * size, turn])
        for _ in range(OFTEN):
            assert same(seen_by(one)[0], [MARK * size, turn]), (
                "Another opener removed a key and set it again, but the storage answers from a"
                " cache. Counting how often a key was set does not tell whether it has changed."
            )
        other.remove("key")


@pytest.mark.parametrize("change", ["set", "replaced", "removed"])
def test_what_others_change_is_seen_after_own_operations(database: Database, change: str) -> None:
    """What another opener changes is seen, whatever one has done oneself in between."""
    one, other = database.open_twice()
    neighbour = database.open("neighbour")
    operations: dict[str, Callable[[], object]] = {
        "`set`": lambda: one.set("own", [MARK, turn]),
        "`set` of a new key": lambda: one.set(f"new {turn}", MARK),
        "`get`": lambda: one.get("own"),
        "`get` of a missing key": lambda: get_or(one, "missing"),
        "`remove`": lambda: one.remove("own"),
        "`remove` of a missing key": lambda: refusal(one.remove, "missing"),
        "`set` that is refused": lambda: refusal(one.set, "own", Unstorable()),
        "`set` in another namespace": lambda: neighbour.set("own", [MARK, turn]),
        "`len`": one.len,
        "`keys`": lambda: list(one.keys()),
    }
    for turn, (name, operation) in enumerate(operations.items()):
        one.set("own", MARK)
        one.set("key", [MARK, turn])
        if change == "set":
            one.remove("key")
        for _ in range(OFTEN):
            get_or(one, "key")
        if change == "removed":
            other.remove("key")
        else:
            other.set("key", [MARK, turn, "newer"])
        operation()
        expected = "missing" if change == "removed" else [MARK, turn, "newer"]
        got = get_or(one, "key")
        assert got == expected, (
            f"Another opener has {change} a key, then came a {name}, and then `get` gives {got}: a"
            " cache takes the other's change for its own. Ask the database each time."
        )


def test_what_another_thread_has_set_is_seen_by_one_that_read_often(storage: StorageBase) -> None:
    """A thread that has read a key often sees immediately what another thread sets."""
    skip_if_threads_fail(storage).remove("key")
    asked: Queue[bool] = Queue()
    answers: Queue[Any] = Queue()

    def read() -> None:
        while asked.get():
            try:
                seen = [seen_by(storage) for _ in range(OFTEN)]
                answers.put(seen[0] if all(same(one, seen[0]) for one in seen) else seen)
            except Exception as error:
                answers.put(error)

    reader = Thread(target=read, daemon=True)
    reader.start()
    for turn in range(4):
        storage.set("key", [MARK, turn])
        if turn % 2:
            storage.set("new", [MARK, turn])
        elif turn:
            storage.remove("new")
        expected = seen_by(storage)
        asked.put(True)
        assert same(answers.get(timeout=30), expected), (
            "A thread that has read before does not see what another thread has set since. It has a"
            " cache or a transaction of its own. End each transaction when its operation ends."
        )
    asked.put(False)
    before = [seen_by(storage) for _ in range(OFTEN)][-1]
    at_once(lambda: storage.set("key", [MARK, "by another"]))
    assert same(seen_by(storage), ([MARK, "by another"], *before[1:])), (
        "A thread that has read before does not see what another thread has set since. It has a"
        " cache or a transaction of its own. End each transaction when its operation ends."
    )


class Interrupted:
    """A value that runs other code while it is read."""

    def __init__(self) -> None:
        self.name = MARK

    def __getstate__(self) -> dict[str, Any]:  # Some serializers call both or none.
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if meanwhile:
            thread = meanwhile.pop()
            thread.start()
            thread.join(5)


meanwhile: list[Thread] = []
"""What happens while the next value is read."""


@pytest.mark.usefixtures("switch_often")
def test_threads_that_read_at_once_get_what_another_opener_has_set(database: Database) -> None:
    """If several threads read a key again and again, each gets what another opener has set."""
    storage, other = database.open_twice()
    skip_if_threads_fail(storage)

    def read() -> list[int]:
        return [storage.get("key") for _ in range(3)]

    for turn in range(TURNS):
        if not turn % 20:  # Connections of a bot that has just started have seen nothing yet.
            storage = database.open("namespace", database.plugin())
        other.set("key", turn)
        got = {each for one in at_once(*[read] * READERS) for each in one}
        assert got == {turn}, (
            f"Another opener has set {turn}, and {READERS} threads get {got}. SQLite's"
            " `data_version`, and such numbers, tell only their own connection what is new. Do not"
            " cache."
        )


def test_reading_a_value_writes_nothing(database: Database) -> None:
    """`get` writes nothing: changes made while it reads are kept."""
    one, other = database.open_twice()
    skip_if_threads_fail(other).remove("key")

    def get_while(change: Callable[[], object]) -> None:
        set_or_skip(one, "key", Interrupted())
        thread = Thread(target=change, daemon=True)
        meanwhile.append(thread)
        one.get("key")
        if meanwhile:
            meanwhile.clear()
            pytest.skip("a value comes back without its `__setstate__`")
        thread.join(5)  # Another test checks whether it had to wait for the `get`.

    get_while(lambda: other.set("key", MARK))
    assert (get_or(other, "key"), get_or(one, "key")) == (MARK, MARK), (
        "`get` has written: a value that was set while it read is gone. Write nothing in `get`."
    )
    get_while(lambda: other.remove("key"))
    assert (other.len(), list(one.keys()), get_or(one, "key")) == (0, [], "missing"), (
        "`get` has written: a value that was removed while it read is back. Write nothing in `get`."
    )

    other.set("key", [MARK, "first"])
    writing = [True]

    def write() -> None:
        try:
            for turn in range(25):
                other.set("key", [MARK, turn])
                time.sleep(0.001)  # Every read that began before has ended.
                assert get_or(other, "key") == [MARK, turn], (
                    "While others read, a writer got an older value than it had set: a reader has"
                    " written it back. Write nothing in `get`."
                )
        finally:
            writing.clear()

    def read() -> None:
        while writing:
            get_or(one, "key")

    at_once(write, read, read, read)


def test_many_keys_are_counted_each_time(database: Database) -> None:
    """`len` counts what another opener adds to thousands of keys, and removes from them."""
    one, other = database.open_twice()
    for number in range(COUNTED):
        one.set(str(number), None)
    counts = [one.len()]
    other.set("new", MARK)
    counts.append(one.len())
    for key in ["new", "0", "1"]:
        other.remove(key)
    counts.append(one.len())
    assert counts == [COUNTED, COUNTED + 1, COUNTED - 2], (
        f"Of {COUNTED} keys, one was added and three were removed, and `len` returned {counts}. Let"
        " the database count each time."
    )


def test_a_value_got_in_a_loop_over_the_keys_is_fresh(database: Database) -> None:
    """A loop over the keys gets the values as they are now, not as they were when it began."""
    one, other = database.open_twice()
    for number in range(LOOPED):
        one.set(str(number), [MARK, 0])
    last = str(LOOPED - 1)
    for turn, key in enumerate(one.keys(), 1):
        for storage in [other, one]:
            for changed in [key, last, "0"]:
                storage.set(changed, [MARK, turn, storage is one])
                assert one.get(changed) == [MARK, turn, storage is one], (
                    "In a loop over the keys, a plugin gets a value that has been replaced since"
                    " the loop began, and may store it again. Read each value when it is asked for."
                )


@pytest.mark.parametrize(
    "value", [lambda who: [MARK, who], lambda who: {MARK: who, who: MARK}], ids=["list", "dict"]
)
def test_a_set_after_changes_of_others_is_not_dropped(
    database: Database, value: Callable[[str], object]
) -> None:
    """A `set` is never dropped or merged with what others have set, replaced or removed before."""
    one, other = database.open_twice()
    before: dict[str, Callable[[], object]] = {
        "had set it": lambda: one.set("key", value("before")),
        "had read it": lambda: (other.set("key", value("before")), one.get("key")),
        "had missed it": lambda: (get_or(one, "key"), one.len()),
        "had removed it": lambda: (one.set("key", value("before")), one.remove("key")),
        "had listed it": lambda: (other.set("key", value("before")), list(one.keys()), one.len()),
    }
    changes: dict[str, Callable[[], object]] = {
        "has set it": lambda: other.set("key", value("other")),
        "has set it twice": lambda: (other.set("key", [MARK]), other.set("key", value("other"))),
        "has removed it": lambda: (other.set("key", [MARK]), other.remove("key")),
        "has removed and set it": lambda: (
            other.set("key", [MARK]),
            other.remove("key"),
            other.set("key", value("other")),
        ),
    }
    for had, first in before.items():
        for has, second in changes.items():
            first()
            second()
            one.set("key", value("mine"))
            seen = [get_or(storage, "key") for storage in [one, other]]
            assert seen == [value("mine")] * 2, (
                f"A storage {had}, another {has}, and then the first one's `set` was dropped"
                f" or changed: {seen}. The last `set` counts, whatever the storage remembers."
            )
            other.set("key", [MARK])
            one.remove("key")
            assert [seen_by(storage)[0] for storage in [one, other]] == ["missing"] * 2, (
                "A `remove` after changes by others was dropped."
            )


@pytest.mark.parametrize(
    "hours", [[0, 0, 0], [0, -1, -1], [0, -9_000, 1], [0, 9_000, 0]], ids=lambda hours: str(hours)
)
def test_the_clock_going_back_changes_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, hours: list[int]
) -> None:
    """The last `set` counts, even if the clock stands still, goes back or jumps ahead."""
    began, shift = time.time(), 0.0

    class Moved(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.fromtimestamp(began + shift, tz)

    monkeypatch.setattr(time, "time", lambda: began + shift)
    monkeypatch.setattr(time, "time_ns", lambda: int((began + shift) * 1e9))
    monkeypatch.setattr("datetime.datetime", Moved)
    one, other = database.open_twice()
    for turn, (storage, hour) in enumerate(zip([one, other, one], hours, strict=True)):
        shift = hour * HOUR
        for step in range(2):
            storage.set("key", [MARK, turn, step])
            storage.set("kept", [MARK, turn, step])  # which a later turn replaces
            storage.set(f"new {turn} {step}", MARK)
            seen = [get_or(each, key) for each in [one, other] for key in ["key", "kept"]]
            assert seen == [[MARK, turn, step]] * 4, (
                f"The clock stood still or went back, and then a `set` was dropped: {seen}. The"
                " last `set` counts, not the latest time."
            )
        refused = refusal(storage.set, "large", large_value(turn))  # which another test checks
        assert refused or same(get_or(one, "large"), large_value(turn)), (
            "After the clock went back, a `set` of a large value has no effect. Give each version a"
            " uuid4, not a time."
        )
        storage.remove("key")
        assert get_or(one, "key") == "missing", (
            "After the clock went back, a removed key is still there."
        )
        keys = 2 * turn + 3 + (not refused)
        assert (one.len(), len(list(other.keys()))) == (keys, keys), (
            "After the clock went back, keys are missing or doubled."
        )


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="Windows cannot change its time zone")
def test_the_end_of_summer_time_changes_nothing(database: Database) -> None:
    """The last `set` counts, even if the local time goes back an hour."""
    one, other = database.open_twice()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for zone in ["CEST-2", "CET-1"]:
                patch.setenv("TZ", zone)
                time.tzset()
                one.set("key", [MARK, zone])
                assert [get_or(each, "key") for each in [one, other]] == [[MARK, zone]] * 2, (
                    "When summer time ended, a `set` was dropped. The last `set` counts, not the"
                    " latest time, and local time goes back."
                )
    finally:
        time.tzset()


def test_a_restart_of_the_machine_changes_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart of the machine, when its time since the start is small, `set` still works."""
    database.open_twice("probe")
    before = database.open("namespace", database.plugin())
    before.set("key", MARK)
    before.set("removed", MARK)
    database.close(before)
    for name in ["monotonic", "perf_counter"]:
        clock, began = getattr(time, name), getattr(time, name)()
        monkeypatch.setattr(time, name, partial(since, clock, began, 1))
        clock = getattr(time, f"{name}_ns")
        monkeypatch.setattr(time, f"{name}_ns", partial(since, clock, clock(), 10**9))
    storage = database.open("namespace", database.plugin())
    storage.set("key", [MARK])
    storage.remove("removed")
    storage.set("new", MARK)
    seen = {key: storage.get(key) for key in storage.keys()}
    assert seen == {"key": [MARK], "new": MARK}, (
        f"After a restart of the machine, changes are dropped: {seen}. `time.monotonic` begins"
        " again then. The last `set` counts, not the latest time."
    )


def since(clock: Callable[[], Any], began: Any, unit: int) -> Any:
    """Return what a clock shows if the machine had started only a second before."""
    return clock() - began + unit


def test_a_key_that_is_listed_has_its_value(database: Database) -> None:
    """A key that `keys` returns has its value, while others set new keys."""
    one, other = database.open_twice()
    skip_if_threads_fail(one).remove("key")
    writing = [True]

    def write() -> None:
        try:
            for turn in range(100):
                one.set(f"key {turn}", [MARK * (turn % 10 * 1_000), turn])
        finally:
            writing.clear()

    def read() -> None:
        while writing:
            for storage in [one, other]:
                for key in list(storage.keys())[-3:]:
                    number = int(key.split()[1])
                    assert same(get_or(storage, key), [MARK * (number % 10 * 1_000), number]), (
                        "`keys` returned a key whose value did not exist yet, or was incomplete."
                        " Write a value and its entry in the list in one step, or the value first."
                    )

    at_once(write, read, read)
    assert (one.len(), other.len()) == (100, 100)
