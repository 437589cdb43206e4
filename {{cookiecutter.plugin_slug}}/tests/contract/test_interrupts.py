"""Ctrl-C interrupts the main thread at any moment, and then plugins save their data."""

import logging
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from time import monotonic, sleep
from typing import Any

import pytest
from errbot.storage.base import StorageBase

from contract.support.expectations import same
from contract.support.sample_values import MARK

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no such timer"),
    # An interrupt in a finalizer of the database's client is lost, and Python says so.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KEYS = [f"key {number}" for number in range(5)]
THREADS = 3
INTERRUPTS = 300
SECONDS = 5
"""How long a test interrupts at most."""
WAIT = 10
"""Seconds after which an operation counts as one that waits for ever."""


class Interrupts:
    """A timer that raises an error in the main thread while it is at work, and only then."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error
        self.raised = 0
        self.until = monotonic() + SECONDS
        self.longest = 0.001
        """Seconds after which the timer goes off at the latest: in half of all operations."""
        self._at_work = False
        self._not_before = 0.0

    def signalled(self, *_: object) -> None:
        """Handle the signal: in the middle of anything that the main thread does."""
        if self._at_work and monotonic() >= self._not_before:
            self._at_work = False
            self.raised += 1
            raise self.error

    def are_enough(self) -> bool:
        """Say whether there were as many interrupts as a test needs, or too little time."""
        return self.raised >= INTERRUPTS or monotonic() > self.until

    def run(self, operation: Callable[..., Any], *arguments: object) -> tuple[bool, Any]:
        """Run an operation. Returns whether it came to its end, and its result."""
        # It goes off again, for the first time may be too early, and the operation wait for ever.
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, self.longest), 0.2)
        try:
            self._at_work = True
            result = operation(*arguments)
            self._at_work = False
        except self.error:
            self.longest = min(self.longest * 1.1, 0.1)
            return False, None
        finally:
            self._at_work = False
        self.longest = max(self.longest / 1.1, 1e-5)
        return True, result

    @contextmanager
    def no_more(self) -> Iterator[None]:
        """Interrupt no longer, unless what is done now waits for ever."""
        # A signal from before may be late: another thread of a busy machine takes it up.
        self._not_before = monotonic() + WAIT
        signal.setitimer(signal.ITIMER_REAL, WAIT)
        try:
            self._at_work = True
            yield
        except self.error:
            pytest.fail(
                "After an interrupt, an operation waits for ever, and the bot cannot even stop."
                " Release locks in a `with` or a `finally`: KeyboardInterrupt is no Exception."
            )
        finally:
            self._at_work = False
            self._not_before = 0.0
            signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture(params=[KeyboardInterrupt, SystemExit])
def interrupts(request: pytest.FixtureRequest) -> Iterator[Interrupts]:
    """Signals that raise what Ctrl-C raises, or what a service's handler may raise.

    Nothing is logged meanwhile: an interrupt can leave the locks of `logging` itself taken.
    """
    logging.disable()
    for name in list(logging.root.manager.loggerDict):
        for level in [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR]:
            logging.getLogger(name).isEnabledFor(level)  # From now on, without the lock for that.
    interrupts = Interrupts(request.param)
    handler = signal.signal(signal.SIGALRM, interrupts.signalled)
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    yield interrupts
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)
    logging.disable(logging.NOTSET)


class Other:
    """A thread that sets and gets keys of its own while the main thread is interrupted."""

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
    """Threads that work meanwhile."""
    others = [Other(storage, number) for number in range(THREADS)]
    yield others
    for other in others:
        other.stop = True
    for other in others:
        other.thread.join(1)


def interrupt_often(storage: StorageBase, interrupts: Interrupts) -> list[Any]:
    """Get and set until there were enough interrupts. Returns the values that were wrong."""
    wrong = []
    for key in KEYS:
        storage.set(key, [MARK, key])
    while not interrupts.are_enough():
        key = random.choice(KEYS)
        try:
            interrupts.run(storage.set, key, [MARK, key])
            whole, got = interrupts.run(storage.get, key)
        except Exception:
            continue  # Whether the storage still works is another test's matter.
        if whole and got != [MARK, key]:
            wrong.append((key, got))
    return wrong


def test_after_an_interrupt_nobody_gets_a_wrong_value(
    storage: StorageBase, interrupts: Interrupts
) -> None:
    """After Ctrl-C nobody gets a wrong value."""
    wrong = interrupt_often(storage, interrupts)
    assert same(wrong, []), (
        f"After an interrupt, a plugin gets what another asked for: {wrong[0]}. The connection went"
        " back with an answer that was never read: after any BaseException, close it."
    )


def test_after_interrupts_the_storage_works_for_all_threads(
    storage: StorageBase, others: list[Other], interrupts: Interrupts
) -> None:
    """After Ctrl-C the storage works for all threads."""
    deadline = monotonic() + WAIT
    while monotonic() < deadline and not all(other.turns for other in others):
        sleep(0.001)
    if any(other.errors or not other.turns for other in others):
        pytest.skip("threads cannot use it without an interrupt, either: another test's matter")
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
            "After an interrupt of the main thread, other threads wait for ever. Give back what an"
            " operation took in a `finally`: KeyboardInterrupt is no Exception."
        )


def test_an_interrupted_set_leaves_the_old_or_the_new_value(
    storage: StorageBase, interrupts: Interrupts
) -> None:
    """A `set` that Ctrl-C interrupts leaves the old or the new value."""
    storage.set("key", [MARK, 0])
    may_be, turn = [0], 0
    while not interrupts.are_enough():
        turn += 1
        try:
            whole, _ = interrupts.run(storage.set, "key", [MARK, turn])
        except Exception:
            break  # Whether the storage still works is another test's matter.
        # A server may still do what it was told before the connection broke.
        may_be = [value for value in may_be if not whole or value != turn - 1][-50:] + [turn]
        try:
            with interrupts.no_more():
                got = storage.get("key")
        except KeyError:
            pytest.fail(
                "A `set` that was interrupted has lost the value that was there. Replace it in one"
                " step, and do not remove it first."
            )
        assert got in [[MARK, value] for value in may_be], (
            f"A `set` that was interrupted has left half a value: {got}"
        )
    assert list(storage.keys()) == ["key"]
