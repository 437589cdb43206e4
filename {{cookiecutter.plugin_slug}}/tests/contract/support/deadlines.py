"""The tests always end, whatever the storage does, and say what hangs."""

import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from time import monotonic, sleep
from typing import Any

import pytest

AGAIN = 1
"""Seconds until a deadline fails again: Python drops an error that a finalizer raises."""
AT_ONCE = 60
"""Seconds that threads at the same time may take."""
LATER = 3
"""Seconds after which the last resort has not helped either."""
GRACE = 10
"""Seconds after which threads that outlive pytest count as never ending."""
STDERR = os.dup(2)
"""Where to print while pytest captures output."""


@contextmanager
def deadline(seconds: float, why: str, on_end: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Fail with these words in the main thread if the block takes longer. Not on Windows.

    This also interrupts an operation that waits for a lock, an answer or another process. `on_end`
    is called once then, and returns more text for the message.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    @cache
    def message() -> str:
        return f"{why} It has not ended after {round(seconds, 1):g} seconds{on_end()}."

    def ring(*_: object) -> None:
        pytest.fail(message())

    handler, began = signal.signal(signal.SIGALRM, ring), monotonic()
    left, again = signal.getitimer(signal.ITIMER_REAL)
    seconds = min(seconds, left or seconds)  # A deadline around this one ends earlier.
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - monotonic() + began), again)


@contextmanager
def last_resort(seconds: float, name: str) -> Iterator[None]:
    """End this process if the block takes longer, because no signal interrupts waiting in C.

    If an operation loops in C and lets no other thread run, faulthandler ends it a bit later, and
    shows where it is.
    """

    def give_up() -> None:
        end(f"{name} has not ended after {seconds:g} seconds, and no signal interrupts it.")

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    faulthandler.dump_traceback_later(seconds + LATER, exit=True, file=STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        timer.cancel()


def end(why: str) -> None:
    """End this process immediately, with the reason."""
    os.write(STDERR, f"\n{why} The run ends here.\n".encode())
    os._exit(1)


def end_with_threads() -> None:
    """End this process if non-daemon threads are still running after its main thread has ended."""

    def watch() -> None:
        while threading.main_thread().is_alive():
            sleep(0.1)
        sleep(GRACE)
        names = [thread.name for thread in threading.enumerate() if not thread.daemon]
        end(f"The storage has left threads that never end, so a bot could not stop: {names}.")

    threading.Thread(target=watch, daemon=True).start()


def at_once(*works: Callable[[], Any], seconds: float = AT_ONCE) -> list[Any]:
    """Run each work in its own thread, all at the same moment. Returns what they returned.

    An error in a thread is raised here. Raises TimeoutError if threads are still running.
    """
    barrier = threading.Barrier(len(works))
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def start(number: int) -> None:
        try:
            barrier.wait()
            results[number] = works[number]()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=start, args=[number], daemon=True) for number in range(len(works))
    ]
    for thread in threads:
        thread.start()
    until = monotonic() + seconds
    for thread in threads:
        thread.join(max(0, until - monotonic()))
    if errors:
        raise errors[0]
    if waiting := sum(thread.is_alive() for thread in threads):
        raise TimeoutError(f"{waiting} of {len(works)} threads have not ended after {seconds:g} s")
    return results
