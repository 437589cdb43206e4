"""Ctrl-C interrupts the main thread at any moment, and then plugins save their data."""

import logging
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from time import monotonic, sleep
from typing import Any

import pytest
from errbot.storage.base import StorageBase

from contract.support.amounts import many
from contract.support.database import Database
from contract.support.expectations import set_or_skip
from contract.support.outcomes import outcome, refusal, same
from contract.support.sample_values import MARK, large_value

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "setitimer"), reason="Windows has no such timer"
)

KEYS = [f"key {number}" for number in range(5)]
THREADS = 3
INTERRUPTS, FEWER = 800, 400
SECONDS = 3
"""Maximum seconds of interrupts in a test."""
LARGE_INTERRUPTS = many(25, 8)
WAIT = 10
"""Seconds after which an operation counts as hanging."""


class Interrupts:
    """A timer that raises an error in the main thread, only while it runs an operation."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error
        self.raised = 0
        self.swallowed = 0
        """Interrupts after which the operation went on."""
        self.until = monotonic() + SECONDS
        self.longest = 0.001
        """Maximum seconds until the timer fires. Adapted to how long the operations take."""
        self._at_work = False
        self._not_before = 0.0
        self._times = 0

    def signalled(self, *_: object) -> None:
        """Handle the signal, in the middle of whatever the main thread does."""
        if self._at_work and monotonic() >= self._not_before:
            self._at_work = False
            self.raised += 1
            raise self.error

    def are_enough(self, number: int = INTERRUPTS) -> bool:
        """Return whether there were as many interrupts as a test needs, or no time is left."""
        return self.raised >= number or monotonic() > self.until

    def run(self, operation: Callable[[], object]) -> None:
        """Run an operation again and again, until it is interrupted."""
        # It fires again, because the first one may come too early.
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, self.longest), self.longest)
        self._times = 0
        try:
            self._repeat(operation)
            self.swallowed += 1
        except self.error:
            # Then about half of them come in the first operation, and at any moment of it.
            longer, shorter = min(self.longest * 1.1, 0.1), max(self.longest / 1.1, 1e-4)
            self.longest = shorter if self._times else longer
        finally:
            self._at_work = False

    def _repeat(self, operation: Callable[[], object]) -> None:
        # A function of its own: Python's `try` may not cover the end of a loop in it.
        before = self.raised
        self._at_work = True
        while self.raised == before:
            operation()
            self._times += 1

    @contextmanager
    def no_more(self) -> Iterator[None]:
        """Stop interrupting, except if the current operation hangs."""
        # An earlier signal may come late, because on a busy machine another thread receives it.
        self._not_before = monotonic() + WAIT
        signal.setitimer(signal.ITIMER_REAL, WAIT)
        try:
            self._at_work = True
            yield
        except self.error:
            pytest.fail(
                "After an interrupt, an operation hangs, and the bot cannot even stop. Release"
                " locks in a `with` or a `finally`, because KeyboardInterrupt is not an Exception."
            )
        finally:
            self._at_work = False
            self._not_before = 0.0
            signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture(params=[KeyboardInterrupt, SystemExit])
def interrupts(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Interrupts]:
    """Signals that raise what Ctrl-C raises, or what a service's handler may raise.

    Logging is off meanwhile, because an interrupt can leave the locks of `logging` itself taken.
    """
    # Python drops an interrupt in a finalizer of the database's client, and pytest's report of it
    # might be interrupted, too.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    logging.disable()
    for name in list(logging.root.manager.loggerDict):
        for level in [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR]:
            logging.getLogger(name).isEnabledFor(level)  # From here on, without its lock.
    interrupts = Interrupts(request.param)
    handler = signal.signal(signal.SIGALRM, interrupts.signalled)
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    yield interrupts
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)
    logging.disable(logging.NOTSET)


class Other:
    """A thread that sets and gets its own keys while the main thread is interrupted."""

    def __init__(self, storage: StorageBase, number: int) -> None:
        self.turns = 0
        self.errors: list[Exception] = []
        self.stop = False
        self._storage = storage
        self._number = number
        self.thread = Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.stop:
            key = f"{self._number} {self.turns % 5}"
            try:
                self._storage.set(key, [MARK, self.turns])
                self._storage.get(key)
            except Exception as error:
                self.errors.append(error)
            self.turns += 1
            sleep(0.0001)


@pytest.fixture
def others(storage: StorageBase) -> Iterator[list[Other]]:
    """Threads that work at the same time."""
    others = [Other(storage, number) for number in range(THREADS)]
    yield others
    for other in others:
        other.stop = True
    for other in others:
        other.thread.join(1)


def interrupt_often(storage: StorageBase, interrupts: Interrupts) -> list[Any]:
    """Get and set until there were enough interrupts. Returns the wrong values."""
    wrong = []
    for key in KEYS:
        storage.set(key, [MARK, key])

    def set_and_get() -> None:
        key = random.choice(KEYS)
        storage.set(key, [MARK, key])
        got = storage.get(key)
        if got != [MARK, key]:
            wrong.append((key, got))

    while not interrupts.are_enough():
        with suppress(Exception):  # Another test checks whether the storage still works.
            interrupts.run(set_and_get)
    return wrong


def test_after_an_interrupt_nobody_gets_a_wrong_value(
    storage: StorageBase, interrupts: Interrupts
) -> None:
    """After Ctrl-C, nobody gets a wrong value."""
    wrong = interrupt_often(storage, interrupts)
    assert same(wrong, []), (
        f"After an interrupt, a plugin gets an answer meant for another: {wrong[0]}. The connection"
        " was reused with an unread answer. Close it after any BaseException."
    )


def test_after_interrupts_the_storage_works_for_all_threads(
    storage: StorageBase, others: list[Other], interrupts: Interrupts
) -> None:
    """After Ctrl-C, the storage works for all threads."""
    deadline = monotonic() + WAIT
    while monotonic() < deadline and not all(other.turns for other in others):
        outcome(storage.set, "key", [MARK])
    refused = [refusal(storage.set, key, [MARK, key]) for key in KEYS * 10]
    if any(refused) or any(other.errors or not other.turns for other in others):
        pytest.skip("threads cannot use it even without an interrupt, which another test checks")
    interrupt_often(storage, interrupts)
    with interrupts.no_more():
        for turn in range(30):
            try:
                storage.set(f"after {turn}", [MARK])
                storage.get(f"after {turn}")
            except Exception as error:
                pytest.fail(f"After an interrupt, the storage fails in the main thread: {error!r}")
    turns = [other.turns for other in others]
    deadline = monotonic() + WAIT
    while monotonic() < deadline and any(
        other.turns < turn + 2 for other, turn in zip(others, turns, strict=True)
    ):
        sleep(0.01)
    for other, turn in zip(others, turns, strict=True):
        assert not other.errors, (
            f"After an interrupt of the main thread, other threads fail: {other.errors[0]!r}"
        )
        assert other.turns >= turn + 2, (
            "After an interrupt of the main thread, other threads hang. Release everything in a"
            " `finally`, because KeyboardInterrupt is not an Exception."
        )


def may_be_stored(interrupted: list[int], completed: int, late: int) -> list[int]:
    """Return the turns whose `set` may have been the last one that had an effect.

    Among them are the last `late` ones that were interrupted before the last completed one: a
    server may still do what it was told before the connection was closed.
    """
    return [completed, *interrupted[-late:], *(turn for turn in interrupted if turn > completed)]


def test_an_interrupted_set_leaves_the_old_or_the_new_value(
    database: Database, storage: StorageBase, interrupts: Interrupts
) -> None:
    """A `set` that Ctrl-C interrupts leaves the old or the new value."""
    storage.set("key", [MARK, 0])
    turn = completed = 0
    interrupted: list[int] = []

    def replace() -> None:
        nonlocal turn, completed
        turn += 1
        storage.set("key", [MARK, turn])
        completed = turn

    while not interrupts.are_enough():
        try:
            interrupts.run(replace)
        except Exception:
            return  # Another test checks whether the storage still works.
        interrupted.append(turn)
        try:
            with interrupts.no_more():
                got = storage.get("key")
        except KeyError:
            pytest.fail(
                "An interrupted `set` has lost the old value. Replace it in one step; do not remove"
                " it first."
            )
        may_be = [[MARK, each] for each in may_be_stored(interrupted, completed, 50)]
        if got not in may_be:
            with interrupts.no_more():
                stored = outcome(database.open(plugin=database.plugin()).get, "key")
            if stored in may_be:
                pytest.skip("`get` returned an answer meant for another, which another test checks")
        assert got in may_be, f"An interrupted `set` has left an incomplete value: {got}"
    assert list(storage.keys()) == ["key"]


def test_an_interrupted_set_of_a_new_key_leaves_it_listed_or_missing(
    storage: StorageBase, interrupts: Interrupts
) -> None:
    """A new key whose `set` Ctrl-C interrupts is missing, or `keys` and `len` know it."""
    turn = 0

    def set_new() -> None:
        nonlocal turn
        turn += 1
        storage.set(f"key {turn}", MARK)

    while not interrupts.are_enough(FEWER):
        try:
            interrupts.run(set_new)
            with interrupts.no_more():
                there = not refusal(storage.get, f"key {turn}")
                listed = list(storage.keys())
                length = storage.len()
                for key in listed:
                    storage.remove(key)
        except Exception:
            break  # Another test checks whether the storage still works.
        assert not there or (f"key {turn}" in listed and length), (
            "An interrupted `set` has stored a value, but `keys` or `len` do not know its key, so"
            " `clear` and `!backup` leave it out. Write a value and its entry in the list in one"
            " step, or list the values."
        )


def test_after_an_interrupted_set_of_a_large_value_the_next_one_is_stored(
    database: Database, interrupts: Interrupts
) -> None:
    """After Ctrl-C in a `set` of a large value, what is set next is stored."""
    one, other = database.open_twice()
    # Made before, because only what the storage does is to be interrupted.
    contents = [large_value(number) for number in range(3)]
    set_or_skip(one, "large", [0, contents[0]])
    began = monotonic()
    one.set("large", [0, contents[0]])
    interrupts.longest = monotonic() - began
    turn = completed = 0
    interrupted: list[int] = []

    def replace() -> None:
        nonlocal turn, completed
        turn += 1
        one.set("large", [turn, contents[turn % 3]])
        completed = turn

    while not interrupts.are_enough(LARGE_INTERRUPTS):
        try:
            interrupts.run(replace)
            with interrupts.no_more():
                for storage in [one, other]:
                    storage.set("small", [MARK, turn])
                    got = [outcome(each.get, "small") for each in [one, other]]
                    assert got == [[MARK, turn]] * 2, LOST
                number, content = other.get("large")
        except KeyError:
            pytest.fail(
                "An interrupted `set` of a large value has lost the old one. Replace it in one"
                " step; do not remove it first."
            )
        except Exception as error:
            pytest.fail(
                f"After an interrupted `set` of a large value, the next one fails: {error!r}"
            )
        interrupted.append(turn)
        assert number in may_be_stored(interrupted, completed, 10), (
            "A `set` that was completed is lost."
        )
        assert same(content, contents[number % 3]), (
            "An interrupted `set` has left an incomplete large value."
        )


LOST = (
    "After an interrupted `set` of a large value, what was set next is lost. The connection was"
    " reused within a transaction. Roll back after any BaseException."
)


def test_an_interrupt_ends_the_operation(storage: StorageBase, interrupts: Interrupts) -> None:
    """Ctrl-C ends the operation that it interrupts, which is not retried."""
    interrupt_often(storage, interrupts)
    # Python itself drops those that come in a finalizer of the client.
    assert interrupts.swallowed <= interrupts.raised / 5, (
        f"Of {interrupts.raised} interrupts, {interrupts.swallowed} were swallowed: a bot does not"
        " stop. Catch Exception, or your database's errors, and never BaseException, without"
        " raising it again."
    )


def test_after_an_interrupted_remove_or_listing_the_next_one_works(
    storage: StorageBase, interrupts: Interrupts
) -> None:
    """After Ctrl-C in `remove`, `len` or `keys`, the next ones work."""
    removed = False

    def remove_and_list() -> None:
        nonlocal removed
        with suppress(KeyError):  # It was removed before, but not yet interrupted.
            storage.remove("key")
        removed = True
        storage.len()
        list(storage.keys())

    while not interrupts.are_enough(FEWER):
        with interrupts.no_more():
            storage.set("key", MARK)
        removed = False
        try:
            interrupts.run(remove_and_list)
        except Exception as error:
            pytest.fail(f"After an interrupted `remove` or listing, another one fails: {error!r}")
        with interrupts.no_more():
            there = list(storage.keys())
            assert not (removed and there), "After an interrupted `remove`, the next does nothing."
            with suppress(KeyError):  # A server may still do what it was told.
                storage.remove("key")
    assert storage.len() == 0
