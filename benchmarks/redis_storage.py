"""The baked Redis storage against bare redis-py, and the bounds that it must keep.

Bare redis-py is what one would write without a storage: one client, one hash, the same pickle, and
a scan in pages of a thousand. Both are on one server that writes nothing to the disk. It fails
if a limit is missed. support/speed_and_memory.py says how it is measured.
"""

import pickle
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import redis
from support.speed_and_memory import TEMPLATE, Report, list_often, load_plugin, speed

sys.path.append(str(TEMPLATE / "tests"))

from servers.redis import Redis  # noqa: E402

LIMITS = {"set": 0.85, "get": 0.85, "len": 0.85, "keys": 0.85}


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


def measure(folder: Path, server: Redis) -> bool:
    """Measure, print, and tell whether all limits are kept."""
    version = redis.Redis.from_url(server.url).info()["redis_version"]
    print(f"Python {sys.version.split()[0]}, redis-py {redis.__version__}, Redis {version}")
    config = SimpleNamespace(STORAGE_CONFIG={"url": server.url})
    plugin = load_plugin("redis", folder)(config)
    report = Report()

    def fill(namespace: str, count: int) -> None:
        value = pickle.dumps(1_700_000_000, protocol=5)
        with redis.Redis.from_url(server.url) as client:
            for start in range(0, count, 10_000):
                page = range(start, min(start + 10_000, count))
                client.hset(f"errbot:{namespace}", mapping={f"key {n}": value for n in page})

    report.iterating(plugin, fill)
    report.speeds("bare redis-py", plugin.open("namespace"), Bare(server.url), LIMITS)
    fill("large", 100_000)
    ratio = speed(list_often, plugin.open("large"), Bare(server.url, "errbot:large"), 5)
    report.tell(
        f"  keys  {ratio:.2f} (limit {LIMITS['keys']}) of 100,000 keys", ratio >= LIMITS["keys"]
    )
    report.clearing(plugin, fill)
    return report.kept


def main() -> None:
    """Measure on a server of our own, and fail where a limit is missed."""
    with tempfile.TemporaryDirectory() as name:
        server = Redis(Path(name) / "redis", "appendonly no")
        server.start()
        try:
            kept = measure(Path(name), server)
        finally:
            server.stop()
    sys.exit(not kept)


if __name__ == "__main__":
    main()
