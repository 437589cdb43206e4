"""A parent and two forked children use one storage at once: python stress/forks.py --seconds 60

The parent's threads never stop. Every two seconds it forks three children: one that works and ends
with os._exit, one that works and ends with sys.exit, and one that calls sys.exit at once. The
program counts values that are wrong (another key's, or older than acknowledged), and values that
are lost at the end.
"""

import json
import os
import random
import sys
import time
from threading import Thread
from typing import Any

from databases import main

KEYS = 5
THREADS = 4
ROUND = 2.0
"""Seconds for which the two children work."""
WAIT = 30.0
"""Seconds that a child may take to end."""


class Work:
    """Threads of one process that set and get their own keys, and get others' keys."""

    def __init__(self, storage: Any, name: str) -> None:
        self.storage = storage
        self.name = name
        self.deadline = float("inf")
        self.counts = dict.fromkeys(["gets", "sets", "refused", "wrong", "lost"], 0)
        self.done: dict[str, int] = {}
        self.errors: set[str] = set()
        self.threads = [Thread(target=self.run, args=[n], daemon=True) for n in range(THREADS)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self.threads:
            thread.start()

    def join(self) -> None:
        """Wait until the threads have ended."""
        for thread in self.threads:
            thread.join(WAIT)
            self.counts["lost"] += thread.is_alive()  # It hangs.

    def run(self, number: int) -> None:
        """Set and get until the deadline."""
        turn = 0
        while time.monotonic() < self.deadline:
            turn += 1
            time.sleep(random.choice([0, 0.002]))  # so that some connections are idle
            key = f"{self.name} {number} {turn % KEYS}"
            try:
                self.storage.set(key, [key, turn])
                self.done[key] = turn
                self.counts["sets"] += 1
                for _ in range(3):
                    self.check(random.choice(list(self.done)), number)
                self.check(f"before {random.randrange(KEYS)}", number)
            except Exception as error:
                self.counts["refused"] += 1
                self.errors.add(f"{type(error).__name__}: {error}"[:300])
                time.sleep(0.01)

    def check(self, key: str, number: int) -> None:
        """Get a key. This thread's own keys must have the values that were set last."""
        own = key.startswith(f"{self.name} {number} ")
        expected = self.done.get(key, 0) if own else None
        got = self.storage.get(key)
        self.counts["gets"] += 1
        if got[0] != key or (own and got[1] != expected):
            self.counts["wrong"] += 1
            self.errors.add(f"wrong: {key} {expected} gave {got}"[:300])


def child(storage: Any, name: str, result: int) -> None:
    """Work for a while in a child, and report the results."""
    work = Work(storage, name)
    work.deadline = time.monotonic() + ROUND
    work.start()
    work.join()
    report = {"counts": work.counts, "done": work.done, "errors": sorted(work.errors)}
    with os.fdopen(result, "w") as file:
        json.dump(report, file)


def fork(storage: Any, name: str, ends: str) -> tuple[int, int]:
    """Start a child. Returns its process id, and the pipe with its report."""
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        return pid, reading
    os.close(reading)
    if ends != "at once":
        child(storage, name, writing)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if ends == "os._exit":
        os._exit(0)
    sys.exit(0)


def await_end(pid: int) -> bool:
    """Wait until a child has ended, and return whether it succeeded. Kills it after WAIT."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False


def measure(plugin: Any, seconds: int) -> dict[str, Any]:
    """Fork again and again."""
    storage = plugin.open("namespace")
    for number in range(KEYS):
        storage.set(f"before {number}", [f"before {number}", number])
    parent = Work(storage, "parent")
    parent.start()
    deadline = time.monotonic() + seconds
    total = {"forks:": 0, "gets:": 0, "sets:": 0, "refused in children:": 0}
    wrong = lost = dead = 0
    done: dict[str, int] = {}
    errors: set[str] = set()
    while time.monotonic() < deadline:
        count = total["forks:"]
        children = [
            fork(storage, f"child {count + number}", ends)
            for number, ends in enumerate(["os._exit", "sys.exit", "at once"])
        ]
        total["forks:"] += len(children)
        for pid, reading in children:
            with os.fdopen(reading) as file:
                text = file.read()
            dead += not await_end(pid)
            if text:
                report = json.loads(text)
                for what in ["gets", "sets"]:
                    total[f"{what}:"] += report["counts"][what]
                total["refused in children:"] += report["counts"]["refused"]
                wrong += report["counts"]["wrong"]
                lost += report["counts"]["lost"]
                done |= report["done"]
                errors |= set(report["errors"])
    parent.deadline = 0
    parent.join()
    for key, turn in (done | parent.done).items():
        try:
            lost += storage.get(key) != [key, turn]
        except KeyError:
            lost += 1
    for what in ["gets", "sets"]:
        total[f"{what}:"] += parent.counts[what]
    for error in sorted(errors | {f"parent: {error}" for error in parent.errors})[:20]:
        print(error, file=sys.stderr)
    return {
        **{what.rstrip(":"): count for what, count in total.items()},
        "refused in the parent": parent.counts["refused"],
        "wrong": wrong + parent.counts["wrong"],
        "lost": lost + parent.counts["lost"],
        "dead": dead,
    }


if __name__ == "__main__":
    sys.exit(main("--seconds", 60, measure))
