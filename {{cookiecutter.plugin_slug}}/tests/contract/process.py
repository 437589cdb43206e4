"""A second process on the same database: python process.py CONFIG.PY NAMESPACE TASK"""

import sys
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).parent.parent))

from errbot.bootstrap import get_storage_plugin  # noqa: E402
from errbot.storage.base import StorageBase, StoragePluginBase  # noqa: E402

from contract.plugin import load_config  # noqa: E402
from contract.values import MARK, Person  # noqa: E402


def read(storage: StorageBase) -> None:
    """Print all that the namespace holds."""
    print({key: storage.get(key) for key in sorted(storage.keys())})


def write(storage: StorageBase) -> None:
    """Set three keys, remove one, and end without closing, as a process does that is killed."""
    for key in ["a", "b", "c"]:
        storage.set(key, Person(MARK))
    storage.remove("b")


def write_many(storage: StorageBase) -> None:
    """Set keys until this process is killed, printing the number of each that is done."""
    number = 0
    while True:
        storage.set(str(number), [MARK, number, "x" * (number % 50 * 200)])
        print(number, flush=True)
        number += 1


if __name__ == "__main__":
    config, namespace, task = sys.argv[1:]
    tasks = {"read": read, "write": write, "write-many": write_many}
    plugin = cast(StoragePluginBase, get_storage_plugin(load_config(Path(config))))
    tasks[task](plugin.open(namespace))
