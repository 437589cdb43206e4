"""What second_process.py does to see what a fork breaks. Each task prints what went wrong."""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Barrier, Thread
from time import monotonic, sleep
from typing import Any

from errbot.storage.base import StorageBase, StoragePluginBase

from contract.support.sample_values import MARK, large_value

BEFORE = [f"before {number}" for number in range(5)]
ENDS: dict[str, Callable[[int], object]] = {"sys.exit": sys.exit, "os._exit": os._exit}
WAIT = 20
"""Seconds after which a child counts as hanging."""
FORKS = 20
TURNS, SECONDS = 20, 0.25
"""Minimum work of parent and children at the same time: both limits apply."""


def refusal(error: Exception) -> str:
    """Return what is wrong with a child's error: nothing if it names the fork."""
    if "fork" in str(error).lower():
        return ""
    return f"a forked process fails, and the error does not name the fork: {error!r}"


def prepare(storage: StorageBase) -> None:
    """Set the data that exist before the fork, in threads, so that several connections are idle."""
    barrier = Barrier(len(BEFORE))

    def set_often(key: str) -> None:
        barrier.wait()
        with suppress(Exception):  # Another test checks whether threads can use it.
            for _ in range(20):
                storage.set(key, [MARK, key])
                storage.get(key)

    for key in BEFORE:
        storage.set(key, [MARK, key])
    threads = [Thread(target=set_often, args=[key]) for key in BEFORE]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def fork(task: Callable[[], object], end: Callable[[int], object] = os._exit) -> int:
    """Run a task in a child, which then ends in this way. Returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(2 * WAIT)  # If its parent is killed, nobody else ends it.
        task()
        sys.stdout.flush()
        end(0)
    return pid


def await_end(pid: int) -> bool:
    """Return whether a child ends without an error. If it hangs, kill it, and print that."""
    deadline = monotonic() + WAIT
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if monotonic() > deadline:
            print("a forked process hangs")
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        sleep(0.005)
    return not ended[1]


def get_and_set(storage: StorageBase, name: str) -> None:
    """Get values set before the fork, and set and get new keys, repeatedly."""
    turn, until = 0, monotonic() + SECONDS
    while turn < TURNS or monotonic() < until:
        turn += 1
        own, other = f"{name} {turn % 5}", BEFORE[turn % len(BEFORE)]
        try:
            if (got := storage.get(other)) != [MARK, other]:
                print(f"{name} asked for {other!r} and got {got}")
                return
            storage.set(own, [MARK, own, turn])
            if (got := storage.get(own)) != [MARK, own, turn]:
                print(f"{name} asked for {own!r} and got {got}")
                return
        except Exception as error:
            if problem := name == "the parent" and repr(error) or refusal(error):
                print(f"{name}: {problem}")
                return
            sleep(0.001)


def work_at_once(storage: StorageBase) -> None:
    """Work in the parent and two children at the same time."""
    prepare(storage)
    children = [fork(partial(get_and_set, storage, name)) for name in ["one child", "other child"]]
    get_and_set(storage, "the parent")
    for child in children:
        await_end(child)
    get_and_set(storage, "the parent")


def fork_while_threads_work(plugin: StoragePluginBase, namespace: str) -> None:
    """Fork in the middle of what other threads do with a storage, and use it in the child.

    Every second child uses another namespace, which it opens itself.
    """
    storage, other = plugin.open(namespace), plugin.open(f"{namespace} other")
    prepare(storage)
    other.set(BEFORE[0], [MARK, BEFORE[0]])
    other.close()
    try:
        storage.get(BEFORE[0])
    except Exception:  # Another test checks whether closing one storage leaves the others open.
        return
    working = [True]

    def work(key: str) -> None:
        with suppress(Exception):  # Another test checks whether threads can use it.
            while working:
                storage.set(key, MARK * 1_000)
                storage.get(key)

    def use(number: int) -> None:
        try:
            opened = plugin.open(f"{namespace} other") if number % 2 else storage
            opened.set("child", [MARK, number])
            if (got := opened.get(BEFORE[0])) != [MARK, BEFORE[0]]:
                print(f"a forked process asked for {BEFORE[0]!r} and got {got}")
        except Exception as error:
            if problem := refusal(error):
                print(problem)

    threads = [Thread(target=work, args=[key], daemon=True) for key in ["busy", "as well"]]
    for thread in threads:
        thread.start()
    for number in range(FORKS):
        if not await_end(fork(partial(use, number))):
            break
    children = [fork(partial(sleep, WAIT)) for _ in range(FORKS)]
    parent = Thread(target=get_and_set, args=[storage, "the parent"], daemon=True)
    parent.start()
    parent.join(WAIT / 2)
    if parent.is_alive():
        print("the parent waits for what its child has inherited, such as the lock of a file")
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    working.clear()
    for thread in threads:
        thread.join(WAIT)


def outlive_children(storage: StorageBase) -> None:
    """Continue after children that have ended in each way."""

    def use() -> None:
        try:
            storage.get(BEFORE[0])
        except Exception as error:
            if problem := refusal(error):
                print(problem)

    for use_it in [lambda: None, use]:
        for end, function in ENDS.items():
            prepare(storage)
            await_end(fork(use_it, function))
            try:
                for key in BEFORE:
                    storage.remove(key)
                    storage.set(key, [MARK, key])
                found = {key: storage.get(key) for key in BEFORE}
            except Exception as error:
                found = {"error": [repr(error)]}
            if found != {key: [MARK, key] for key in BEFORE}:
                print(f"after a child that ended with {end}, the parent gets {found}")


def forked_value(name: str, turn: int) -> list[Any]:
    """Return what this process sets in this turn: large values first, small ones later."""
    return [MARK, name, turn, large_value(len(name))[: 2_000_000 if turn < 2 else 10]]


def set_in_children(storage: StorageBase) -> None:
    """Set keys in a parent and two children at the same time, and print those that are set."""
    prepare(storage)

    def set_some(name: str) -> None:
        done = []
        for turn in range(50):
            value = forked_value(name, turn)
            try:
                storage.set(f"{name} {turn}", value)
                done.append(f"{name} {turn}")
            except Exception as error:
                # Another test checks whether large values can be stored.
                if len(value[-1]) < 1_000 and (name == "parent" or refusal(error)):
                    raise
        sys.stdout.write(f"{json.dumps(done)}\n")  # In one piece, because others write too.

    children = [fork(partial(set_some, name)) for name in ["one", "other"]]
    set_some("parent")
    for child in children:
        await_end(child)
