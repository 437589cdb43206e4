"""What the benchmarks of the databases share: the work, the clock, and the limits of the report.

A storage and the bare client of its database do the same in turn, so that whatever else the machine
does slows down both. A speed is that of the storage over that of the other: the median of the
ratios of all rounds, which are a few milliseconds long. Memory is read from /proc, so that
benchmarks run on Linux.
"""

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cookiecutter.main import cookiecutter
from errbot.storage import StoreMixin
from errbot.storage.base import StorageBase, StoragePluginBase

TEMPLATE = Path(__file__).parent.parent.parent
ROUNDS = 101
KEYS = [f"key {number}" for number in range(1000)]
VALUE = {"name": "somebody", "since": 1_700_000_000, "tags": ["a", "b", "c"], "note": "x" * 200}
MANY = 1_000_000
FIRST_KEY_LIMIT = 0.050
"""Seconds until the first of so many keys is there."""
MEMORY_LIMIT = 50_000_000
"""Bytes by which memory may grow while all of them are gone through."""
CLEAR_LIMIT = 12
"""How many times as long it may take to clear ten times as many keys."""

Fill = Callable[[str, int], None]
"""Puts so many keys into a namespace, faster than the storage could."""


def load_plugin(database: str, folder: Path) -> Callable[..., StoragePluginBase]:
    """Bake a project into a folder, and return the class of its plugin."""
    answers = {"database": database}
    template, where = str(TEMPLATE), str(folder)
    project = cookiecutter(template, None, True, answers, output_dir=where, accept_hooks=False)
    file = next(Path(project).glob("src/*/storage.py"))
    spec = importlib.util.spec_from_file_location("errbot.storage.storage", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plugin: Callable[..., StoragePluginBase] = module.AcmePlugin
    return plugin


def set_some(storage: Any) -> None:
    """Set some keys."""
    for key in KEYS[:200]:
        storage.set(key, VALUE)


def get_some(storage: Any) -> None:
    """Get some keys."""
    for key in KEYS[:200]:
        storage.get(key)


def count_often(storage: Any) -> None:
    """Count the keys."""
    for _ in range(100):
        storage.len()


def list_often(storage: Any) -> None:
    """List the keys."""
    for _ in range(5):
        list(storage.keys())


WORK = {"set": set_some, "get": get_some, "len": count_often, "keys": list_often}


def seconds(work: Callable[[Any], None], storage: Any) -> float:
    """Return the seconds that some work takes."""
    start = time.perf_counter()
    work(storage)
    return time.perf_counter() - start


def speed(work: Callable[[Any], None], ours: Any, other: Any, rounds: int) -> float:
    """Return the speed of one storage over that of another."""
    ratios = []
    for turn in range(rounds):
        if turn % 2:
            took, other_took = seconds(work, ours), seconds(work, other)
        else:
            other_took, took = seconds(work, other), seconds(work, ours)
        ratios.append(other_took / took)
    return statistics.median(ratios)


def resident_bytes() -> int:
    """Return how much memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Report:
    """Prints figures, and notes whether all of them kept their limits."""

    def __init__(self) -> None:
        self.kept = True

    def tell(self, text: str, kept: bool) -> None:
        """Print a figure, and mark it where it misses its limit."""
        self.kept = self.kept and kept
        print(text if kept else f"{text}  <- MISSED", flush=True)

    def speeds(self, name: str, ours: Any, bare: Any, limits: Mapping[str, float]) -> None:
        """Compare the operations that have limits, on the same keys in both storages."""
        print(f"speed over that of {name}, {len(KEYS):,} keys, {ROUNDS} rounds:", flush=True)
        for key in KEYS:
            ours.set(key, VALUE)
            bare.set(key, VALUE)
        for operation, limit in limits.items():
            ratio = speed(WORK[operation], ours, bare, ROUNDS)
            self.tell(f"  {operation:5} {ratio:.2f} (limit {limit})", ratio >= limit)

    def iterating(self, plugin: StoragePluginBase, fill: Fill) -> None:
        """Go through the keys of a large namespace."""
        fill("many", MANY)
        storage: StorageBase = plugin.open("many")
        before = most = resident_bytes()
        start = time.perf_counter()
        keys = iter(storage.keys())
        next(keys)
        first = time.perf_counter() - start
        count = 1
        for count, _key in enumerate(keys, 2):
            if count % 5000 == 0:
                most = max(most, resident_bytes())
        assert count == storage.len() == MANY
        self.tell(
            f"{count:,} keys: the first after {first * 1000:.2f} ms"
            f" (limit {FIRST_KEY_LIMIT * 1000:.0f})",
            first <= FIRST_KEY_LIMIT,
        )
        self.tell(
            f"{count:,} keys: going through all grows memory by {(most - before) / 1e6:.1f} MB"
            f" (limit {MEMORY_LIMIT / 1e6:.0f})",
            most - before <= MEMORY_LIMIT,
        )

    def clearing(self, plugin: StoragePluginBase, fill: Fill) -> None:
        """Clear two sizes of namespaces, as a plugin of the bot does."""

        def clear(count: int, turn: int) -> float:
            mapping, namespace = StoreMixin(), f"clear {count} {turn}"
            fill(namespace, count)
            mapping.open_storage(plugin, namespace)
            return seconds(StoreMixin.clear, mapping)

        small = statistics.median(clear(10_000, turn) for turn in range(3))
        large = clear(100_000, 0)
        self.tell(
            f"clear: 100,000 keys in {large:.1f} s, 10,000 in {small:.2f} s,"
            f" ratio {large / small:.1f} (limit {CLEAR_LIMIT})",
            large / small <= CLEAR_LIMIT,
        )
