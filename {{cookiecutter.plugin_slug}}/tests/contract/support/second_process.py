"""A second process on the same database: python second_process.py CONFIG.PY NOTES NAMESPACE TASK"""

import os
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from threading import Thread

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from errbot.storage.base import StorageBase  # noqa: E402

from contract.support import forks, guest  # noqa: E402
from contract.support.database import load_config, load_plugin  # noqa: E402
from contract.support.sample_values import (  # noqa: E402
    MARK,
    REPLACED,
    REPLACERS,
    SAMPLES,
    large_value,
    replacement,
)
from contract.support.throwaway import Notes  # noqa: E402

Open = Callable[[], StorageBase]
"""Connects like a bot that starts, and opens the namespace."""


def read(open_storage: Open) -> None:
    """Print the contents of the namespace."""
    storage = open_storage()
    print({key: storage.get(key) for key in sorted(storage.keys())})


def write(open_storage: Open) -> None:
    """Set three keys, remove one, and end without closing, like a process that is killed."""
    storage = open_storage()
    for key in ["a", "b", "c"]:
        storage.set(key, MARK)
    storage.remove("b")


def write_and_close(open_storage: Open) -> None:
    """Set a key, and end normally."""
    storage = open_storage()
    storage.set("key", MARK)
    storage.close()


def write_at_once(open_storage: Open) -> None:
    """Wait for a line of input, then connect and set keys at that moment, and wait again."""
    print("ready", flush=True)
    number, turns = input().split()
    storage = open_storage()
    for turn in range(int(turns)):
        storage.set(f"{number} {turn}", [MARK, f"{number} {turn}"])
        storage.set("shared", [MARK, number])
    print("done", flush=True)
    sys.stdin.read()


def write_many(open_storage: Open) -> None:
    """Set keys until this process is killed, and print the number of each one that is done."""
    storage = open_storage()
    number = 0
    while True:
        storage.set(str(number), [MARK, number, "x" * (number % 50 * 200)])
        print(number, flush=True)
        number += 1


def replace_many(open_storage: Open) -> None:
    """Replace values with longer and shorter ones until this process is killed."""
    storage = open_storage()
    number = 0
    while True:
        storage.set(f"key {number % REPLACED}", replacement(number))
        print(number, flush=True)
        number += 1


def replace_large(open_storage: Open) -> None:
    """Replace large values, each in its own thread, until this process is killed."""
    storage = open_storage()

    def replace(key: str) -> None:
        try:
            for number in count():
                storage.set(key, large_value(number))
                os.write(1, f"{key} {number}\n".encode())  # in one piece
        finally:
            os._exit(1)  # The test notices that it ended too early.

    for number in range(REPLACERS):
        Thread(target=replace, args=[f"key{number}"]).start()


def remove_many(open_storage: Open) -> None:
    """Set and remove keys until this process is killed, and print the numbers of removed ones."""
    storage = open_storage()
    number = 0
    while True:
        storage.set(f"kept {number}", [MARK, number])
        storage.set(f"gone {number}", [MARK, number])
        storage.remove(f"gone {number}")
        print(number, flush=True)
        number += 1


def write_values(open_storage: Open) -> None:
    """Set a value of each kind, and print what was set and what came back."""
    storage = open_storage()
    for name, value in SAMPLES.items():
        try:
            storage.set(name, value)
            got = storage.get(name)
        except Exception:
            continue  # Another test checks whether it can be stored at all.
        if " at 0x" not in repr(got):  # an address, which differs in each process
            print(ascii([name, f"{type(got)} {got!r}"]))


if __name__ == "__main__":
    file, path, namespace, task = sys.argv[1:]
    config, notes = load_config(Path(file)), Notes(Path(path)) if path else None
    tasks: dict[str, Callable[[Open], None]] = {
        "read": read,
        "write": write,
        "write-and-close": write_and_close,
        "write-at-once": write_at_once,
        "write-many": write_many,
        "replace-many": replace_many,
        "replace-large": replace_large,
        "remove-many": remove_many,
        "write-values": write_values,
        "visit": guest.visit,
        "work-in-forks": lambda open_storage: forks.work_at_once(open_storage()),
        "outlive-forks": lambda open_storage: forks.outlive_children(open_storage()),
        "set-in-forks": lambda open_storage: forks.set_in_children(open_storage()),
    }
    tasks[task](lambda: load_plugin(config, notes).open(namespace))
