"""Real signals at random moments: python stress/interrupts.py --signals 10000

The main thread gets and sets keys, and is interrupted again and again, by KeyboardInterrupt and
SystemExit in turn. Three other threads use keys of their own. The program counts values that are
wrong (another key's, or not a possible one), and dead storages, where a thread fails or hangs after
the signals.
"""

import random
import signal
import sys
import time
from threading import Thread
from typing import Any

from databases import main

KEYS = 5
THREADS = 3
WAIT = 30.0
"""Seconds after which a thread without progress counts as dead."""


class Interrupts:
    """A timer that interrupts the main thread only during an operation."""

    def __init__(self) -> None:
        self.armed = False
        self.raised = 0
        self.seconds = 0.001
        """The timer's maximum, which adapts so that half of the operations are interrupted."""
        signal.signal(signal.SIGALRM, self.interrupt)

    def interrupt(self, *_: object) -> None:
        """Raise KeyboardInterrupt, as Ctrl-C does, or SystemExit, as a SIGTERM handler may."""
        if self.armed:
            self.armed = False
            self.raised += 1
            raise (KeyboardInterrupt, SystemExit)[self.raised % 2]

    def run(self, operation: Any, *arguments: Any) -> tuple[bool, Any]:
        """Run an operation. Returns whether it was completed, and its result."""
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, self.seconds))
        try:
            self.armed = True
            answer = operation(*arguments)
            self.armed = False
        except (KeyboardInterrupt, SystemExit):
            self.seconds = min(self.seconds * 1.1, 0.1)
            return False, None
        finally:
            self.armed = False
        self.seconds = max(self.seconds / 1.1, 2e-5)
        return True, answer


class Other:
    """A thread that sets and gets its own keys."""

    def __init__(self, storage: Any, number: int) -> None:
        self.storage = storage
        self.number = number
        self.turn = self.wrong = self.failed = 0
        self.stop = False
        self.thread = Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Set and get."""
        while not self.stop:
            key = f"{self.number} {self.turn % KEYS}"
            try:
                self.storage.set(key, [key, self.turn])
                if (got := self.storage.get(key)) != [key, self.turn]:
                    self.wrong += 1
                    print("wrong in another thread:", key, self.turn, got, file=sys.stderr)
            except Exception as error:
                self.failed += 1
                print(f"another thread: {type(error).__name__}: {error}", file=sys.stderr)
            self.turn += 1

    def goes_on(self) -> bool:
        """Wait for a complete turn, and return whether it succeeded."""
        turn, failed, deadline = self.turn, self.failed, time.monotonic() + WAIT
        while self.turn < turn + 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        return self.turn >= turn + 2 and self.failed == failed


def measure(plugin: Any, signals: int) -> dict[str, Any]:
    """Interrupt again and again."""
    storage = plugin.open("namespace")
    interrupts = Interrupts()
    others = [Other(storage, number) for number in range(THREADS)]
    keys = [f"main {number}" for number in range(KEYS)]
    may_be: dict[str, list[int]] = {key: [0] for key in keys}
    for key in keys:
        storage.set(key, [key, 0])
    operations = wrong = late = failed = dead = 0
    next_check = 100
    while interrupts.raised < signals:
        operations += 1
        key = random.choice(keys)
        kind = random.choice(["set", "get", "get", "keys"])
        try:
            if kind == "set":
                whole, _ = interrupts.run(storage.set, key, [key, operations])
                may_be[key] = [operations] if whole else [*may_be[key], operations]
            elif kind == "get":
                whole, got = interrupts.run(storage.get, key)
                if whole and (got[0] != key or got[1] not in may_be[key]):
                    wrong += 1
                    print("wrong:", key, may_be[key], got, file=sys.stderr)
            else:
                whole, got = interrupts.run(lambda: [storage.len(), sorted(storage.keys())])
                if whole and not (set(keys) <= set(got[1]) and got[0] <= KEYS * (1 + THREADS)):
                    wrong += 1
                    print("wrong keys:", got, file=sys.stderr)
        except Exception as error:
            failed += 1
            print(f"main thread: {type(error).__name__}: {error}", file=sys.stderr)
        if interrupts.raised >= next_check:
            next_check += 100
            dead += sum(not other.goes_on() for other in others)
            for key in keys:
                try:
                    storage.set(key, [key, operations])
                    may_be[key] = [operations]
                    got = storage.get(key)
                    late += got[0] == key and got[1] < operations
                    wrong += got[0] != key
                except Exception as error:
                    dead += 1
                    print(f"dead: {type(error).__name__}: {error}", file=sys.stderr)
    for other in others:
        other.stop = True
        other.thread.join(WAIT)
    return {
        "signals": interrupts.raised,
        "operations interrupted or not": operations,
        "operations of other threads": 2 * sum(other.turn for other in others),
        "failed": failed + sum(other.failed for other in others),
        "older than acknowledged": late,
        "wrong": wrong + sum(other.wrong for other in others),
        "lost": 0,
        "dead": dead,
    }


if __name__ == "__main__":
    sys.exit(main("--signals", 10_000, measure))
