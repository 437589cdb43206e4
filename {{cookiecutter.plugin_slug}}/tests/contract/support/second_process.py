"""A second process on the same database: python second_process.py CONFIG.PY NOTES NAMESPACE TASK"""

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from errbot.storage.base import StorageBase  # noqa: E402

from contract.support import forks, guest  # noqa: E402
from contract.support.database import load_config, load_plugin  # noqa: E402
from contract.support.sample_values import MARK, REPLACED, Person, replacement  # noqa: E402
from contract.support.throwaway import Notes  # noqa: E402

Open = Callable[[], StorageBase]
"""Connects, as a bot does that starts, and opens the namespace."""


def read(open_storage: Open) -> None:
    """Print all that the namespace holds."""
    storage = open_storage()
    print({key: storage.get(key) for key in sorted(storage.keys())})


def write(open_storage: Open) -> None:
    """Set three keys, remove one, and end without closing, as a process does that is killed."""
    storage = open_storage()
    for key in ["a", "b", "c"]:
        storage.set(key, Person(MARK))
    storage.remove("b")


def write_at_once(open_storage: Open) -> None:
    """Wait for a word, connect and set keys, as others do at the same moment, and wait again."""
    print("ready", flush=True)
    number, turns = input().split()
    storage = open_storage()
    for turn in range(int(turns)):
        storage.set(f"{number} {turn}", [MARK, f"{number} {turn}"])
        storage.set("shared", [MARK, number])
    print("done", flush=True)
    sys.stdin.read()


def write_many(open_storage: Open) -> None:
    """Set keys until this process is killed, printing the number of each that is done."""
    storage = open_storage()
    number = 0
    while True:
        storage.set(str(number), [MARK, number, "x" * (number % 50 * 200)])
        print(number, flush=True)
        number += 1


def replace_many(open_storage: Open) -> None:
    """Replace values by longer and shorter ones until this process is killed."""
    storage = open_storage()
    number = 0
    while True:
        storage.set(f"key {number % REPLACED}", replacement(number))
        print(number, flush=True)
        number += 1


if __name__ == "__main__":
    file, path, namespace, task = sys.argv[1:]
    config, notes = load_config(Path(file)), Notes(Path(path)) if path else None
    tasks: dict[str, Callable[[Open], None]] = {
        "read": read,
        "write": write,
        "write-at-once": write_at_once,
        "write-many": write_many,
        "replace-many": replace_many,
        "visit": guest.visit,
        "work-in-forks": lambda open_storage: forks.work_at_once(open_storage()),
        "outlive-forks": lambda open_storage: forks.outlive_children(open_storage()),
        "set-in-forks": lambda open_storage: forks.set_in_children(open_storage()),
    }
    tasks[task](lambda: load_plugin(config, notes).open(namespace))
