"""The baked Redis storage against bare redis-py, and the bounds that it must keep.

Bare redis-py is what one would write without a storage: one client, one hash, the same pickle, and
a scan in pages of a thousand. Both do the same in turn, on one server that writes nothing to the
disk, so that whatever else the machine does slows down both. Each figure is the speed of the
storage over that of redis-py: the median of the ratios of all rounds. It fails where a limit is
missed. Memory is read from /proc, so it runs on Linux.
"""

import importlib.util
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import redis
from cookiecutter.main import cookiecutter
from errbot.storage import StoreMixin
from errbot.storage.base import StorageBase, StoragePluginBase

TEMPLATE = Path(__file__).parent.parent
sys.path.append(str(TEMPLATE / "tests"))

from servers.redis import Redis  # noqa: E402

ROUNDS = 101
KEYS = [f"key {number}" for number in range(1000)]
VALUE = {"name": "somebody", "since": 1_700_000_000, "tags": ["a", "b", "c"], "note": "x" * 200}
SPEED_LIMIT = 0.9
CLEAR_LIMIT = 12
FIRST_KEY_LIMIT = 0.050
MEMORY_LIMIT = 50_000_000


class Bare:
    """The same work in bare redis-py."""

    def __init__(self, url: str, name: str = "bare") -> None:
        self._client: Any = redis.Redis.from_url(url, protocol=2)
        self._name = name

    def set(self, key: str, value: Any) -> None:
        """Set a field."""
        self._client.hset(self._name, key, pickle.dumps(value, protocol=5))

    def get(self, key: str) -> Any:
        """Get a field."""
        return pickle.loads(self._client.hget(self._name, key))

    def len(self) -> int:
        """Count the fields."""
        return int(self._client.hlen(self._name))

    def keys(self) -> Iterator[str]:
        """Scan all fields."""
        for field, _value in self._client.hscan_iter(self._name, count=1000):
            yield field.decode()


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
    for _ in range(200):
        storage.len()


def list_often(storage: Any) -> None:
    """List the keys."""
    for _ in range(5):
        list(storage.keys())


WORK = {"set": set_some, "get": get_some, "len": count_often, "keys": list_often}


def bake(folder: Path) -> Callable[..., StoragePluginBase]:
    """Bake the storage, and return its plugin class."""
    answers = {"database": "redis"}
    project = Path(cookiecutter(str(TEMPLATE), None, True, answers, output_dir=str(folder)))
    file = next(project.glob("src/*/storage.py"))
    spec = importlib.util.spec_from_file_location("errbot.storage.storage", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plugin: Callable[..., StoragePluginBase] = module.AcmePlugin
    return plugin


def seconds(work: Callable[[Any], None], storage: Any) -> float:
    """Return the seconds that some work takes."""
    start = time.perf_counter()
    work(storage)
    return time.perf_counter() - start


def speed(work: Callable[[Any], None], ours: Any, other: Any, rounds: int) -> float:
    """Return the speed of one storage over that of another, as the median of all rounds."""
    ratios = []
    for turn in range(rounds):
        if turn % 2:
            took, other_took = seconds(work, ours), seconds(work, other)
        else:
            other_took, took = seconds(work, other), seconds(work, ours)
        ratios.append(other_took / took)
    return statistics.median(ratios)


def fill(url: str, namespace: str, count: int) -> None:
    """Put so many keys into a namespace."""
    value = pickle.dumps(VALUE["since"], protocol=5)
    with redis.Redis.from_url(url) as client:
        for start in range(0, count, 10_000):
            page = range(start, min(start + 10_000, count))
            client.hset(f"errbot:{namespace}", mapping={f"key {n}": value for n in page})


def clear_seconds(plugin: StoragePluginBase, url: str, count: int) -> float:
    """Return the seconds that it takes to clear a namespace of so many keys."""
    fill(url, "many", count)
    mapping = StoreMixin()
    mapping.open_storage(plugin, "many")
    start = time.perf_counter()
    mapping.clear()
    return time.perf_counter() - start


def resident_bytes() -> int:
    """Return how much memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def iterate(storage: StorageBase) -> tuple[float, int, int]:
    """Return the seconds to the first key, the number of keys, and the growth of memory."""
    before = most = resident_bytes()
    start = time.perf_counter()
    keys = iter(storage.keys())
    next(keys)
    first = time.perf_counter() - start
    count = 1
    for count, _key in enumerate(keys, 2):
        if count % 5000 == 0:
            most = max(most, resident_bytes())
    return first, count, most - before


def main() -> None:
    """Measure, print, and fail where a limit is missed."""
    failed = False

    def tell(text: str, good: bool) -> None:
        nonlocal failed
        failed = failed or not good
        print(f"{text}  {'' if good else '<- MISSED'}".rstrip(), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start_plugin = bake(folder)
        server = Redis(folder / "redis", "appendonly no")
        server.start()
        try:
            plugin = start_plugin(SimpleNamespace(STORAGE_CONFIG={"url": server.url}))
            version = redis.Redis.from_url(server.url).info()["redis_version"]
            print(f"Python {sys.version.split()[0]}, redis-py {redis.__version__}, Redis {version}")

            fill(server.url, "million", 1_000_000)
            first, count, memory = iterate(plugin.open("million"))
            print(f"one namespace of {count:,} keys:")
            tell(
                f"  first key after {first * 1000:.2f} ms (limit {FIRST_KEY_LIMIT * 1000:.0f})",
                first <= FIRST_KEY_LIMIT,
            )
            tell(
                f"  iterating over all grows memory by {memory / 1e6:.1f} MB"
                f" (limit {MEMORY_LIMIT / 1e6:.0f})",
                memory <= MEMORY_LIMIT,
            )

            print(f"speed over that of bare redis-py, {len(KEYS)} keys, {ROUNDS} rounds:")
            ours, bare = plugin.open("namespace"), Bare(server.url)
            for key in KEYS:
                ours.set(key, VALUE)
                bare.set(key, VALUE)
            for operation, work in WORK.items():
                ratio = speed(work, ours, bare, ROUNDS)
                tell(f"  {operation:5} {ratio:6.2f} (limit {SPEED_LIMIT})", ratio >= SPEED_LIMIT)

            fill(server.url, "large", 100_000)
            large_ratio = speed(
                list_often, plugin.open("large"), Bare(server.url, "errbot:large"), 5
            )
            tell(
                f"  keys of 100,000 keys {large_ratio:.2f} (limit {SPEED_LIMIT})",
                large_ratio >= SPEED_LIMIT,
            )

            small = statistics.median(clear_seconds(plugin, server.url, 10_000) for _ in range(3))
            large = clear_seconds(plugin, server.url, 100_000)
            tell(
                f"clear: 100,000 keys in {large:.1f} s, 10,000 in {small:.2f} s,"
                f" ratio {large / small:.1f} (limit {CLEAR_LIMIT})",
                large / small <= CLEAR_LIMIT,
            )
        finally:
            server.stop()
    sys.exit(failed)


if __name__ == "__main__":
    main()
