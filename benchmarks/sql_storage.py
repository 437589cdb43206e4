"""How fast the `sql` storage is on PostgreSQL, against bare psycopg with autocommit.

It starts a server, bakes a project, and measures the same work both ways in turn, so that whatever
else the machine does slows down both. The figures are medians of the ratios of all rounds, which
are a few milliseconds long, and it fails where one is beyond its limit. With --clear it measures
how long it takes to clear a namespace, too: minutes.
"""

import argparse
import importlib.util
import pickle
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
from cookiecutter.main import cookiecutter
from errbot.storage import StoreMixin

TEMPLATE = Path(__file__).parent.parent
sys.path.insert(0, str(TEMPLATE / "tests"))

from servers.postgresql import PostgreSQL  # noqa: E402

ROUNDS = 101
TURNS = 50
VALUE = {"name": "somebody", "numbers": list(range(20)), "text": "x" * 200}
LIMITS = {"get": 0.6, "set": 0.8}
MANY = 1_000_000
FIRST_KEY_MS = 50
GROWTH_MB = 50
CLEAR_FACTOR = 12

UPSERT = (
    "INSERT INTO bare (namespace, key, value) VALUES (%s, %s, %s)"
    " ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value"
)
SELECT = "SELECT value FROM bare WHERE namespace = %s AND key = %s"


def plugin_of(folder: Path, url: str) -> Any:
    """Bake a project, and connect as a bot does that starts."""
    answers = {"database": "sql"}
    cookiecutter(str(TEMPLATE), no_input=True, extra_context=answers, output_dir=str(folder))
    file = next(folder.glob("*/src/*/storage.py"))
    spec = importlib.util.spec_from_file_location("baked_sql_storage", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # The server works at some of this for more than the default 10 s.
    config = SimpleNamespace(STORAGE_CONFIG={"url": url, "timeout": 60.0}, BOT_DATA_DIR=".")
    return module.AcmePlugin(config)


def seconds(work: Callable[[str], object]) -> float:
    """Return how long the work takes for each of many keys."""
    keys = [f"key {turn}" for turn in range(TURNS)]
    begun = time.perf_counter()
    for key in keys:
        work(key)
    return time.perf_counter() - begun


def compare(bare: psycopg.Connection[Any], storage: Any) -> bool:
    """Measure get and set both ways, and tell whether the limits are kept."""

    def bare_set(key: str) -> None:
        bare.execute(UPSERT, (b"bench", key.encode(), pickle.dumps(VALUE, protocol=5)))

    def bare_get(key: str) -> Any:
        row = bare.execute(SELECT, (b"bench", key.encode())).fetchone()
        assert row
        return pickle.loads(row[0])

    def ours_set(key: str) -> None:
        storage.set(key, VALUE)

    works = {"set": (bare_set, ours_set), "get": (bare_get, storage.get)}
    kept = True
    for name, (theirs, ours) in works.items():
        times: tuple[list[float], list[float]] = ([], [])
        for count in range(ROUNDS + 1):
            for measured, work in zip(times, (theirs, ours), strict=True):
                took = seconds(work)
                if count:  # the first round warms up
                    measured.append(took)
        bare_time, our_time = (statistics.median(measured) / TURNS * 1e6 for measured in times)
        ratio = statistics.median(bare / ours for bare, ours in zip(*times, strict=True))
        print(
            f"{name}: psycopg {bare_time:.0f} µs, storage {our_time:.0f} µs,"
            f" {ratio:.2f} of psycopg's speed (limit {LIMITS[name]})"
        )
        kept &= ratio >= LIMITS[name]
    return kept


def fill(bare: psycopg.Connection[Any], namespace: str, count: int) -> None:
    """Make keys in a namespace, all with the same value."""
    bare.execute(
        "INSERT INTO errbot_storage SELECT convert_to(%s, 'UTF8'),"
        " convert_to('key ' || number, 'UTF8'), %s FROM generate_series(1, %s) AS number",
        (namespace, pickle.dumps(None), count),
    )


def iterate(bare: psycopg.Connection[Any], plugin: Any) -> bool:
    """Iterate over many keys, and tell whether time and memory are within the limits."""
    fill(bare, "many", MANY)
    storage = plugin.open("many")
    firsts = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        next(iter(storage.keys()))
        firsts.append((time.perf_counter() - begun) * 1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    count = sum(1 for _ in storage.keys())  # noqa: SIM118
    took = time.perf_counter() - begun
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    begun = time.perf_counter()
    assert storage.len() == count == MANY
    counted = time.perf_counter() - begun
    print(
        f"{MANY} keys: the first after {max(firsts):.1f} ms at most, median"
        f" {statistics.median(firsts):.1f} ms (limit {FIRST_KEY_MS}); all in {took:.1f} s;"
        f" memory grows by {growth:.1f} MB (limit {GROWTH_MB}); len in {counted * 1000:.0f} ms"
    )
    return max(firsts) < FIRST_KEY_MS and growth < GROWTH_MB


def clear(bare: psycopg.Connection[Any], plugin: Any) -> bool:
    """Clear two sizes as a plugin does, and tell whether the larger takes not too much longer."""
    # Not to measure the disk, which has to be waited for once for each key.
    bare.execute("ALTER SYSTEM SET synchronous_commit = off")
    bare.execute("SELECT pg_reload_conf()")
    took = {}
    for count in [10_000, 100_000]:
        fill(bare, f"clear {count}", count)
        mapping = StoreMixin()
        mapping.open_storage(plugin, f"clear {count}")
        begun = time.perf_counter()
        mapping.clear()
        took[count] = time.perf_counter() - begun
        print(f"clear() of {count} keys: {took[count]:.1f} s", flush=True)
    factor = took[100_000] / took[10_000]
    print(f"clear() of ten times as many keys takes {factor:.1f} times as long ({CLEAR_FACTOR})")
    return factor <= CLEAR_FACTOR


def main() -> None:
    """Measure, print, and fail where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clear", action="store_true", help="measure clear() as well: minutes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = PostgreSQL(folder / "server", fsync="on", shared_buffers="128MB")
        server.start()
        try:
            url = f"postgresql://admin@127.0.0.1:{server.port}/postgres"
            plugin = plugin_of(folder, url)
            with psycopg.connect(url, autocommit=True) as bare:
                bare.execute("CREATE TABLE bare (LIKE errbot_storage INCLUDING ALL)")
                kept = compare(bare, plugin.open("bench"))
                kept &= iterate(bare, plugin)
                if options.clear:
                    kept &= clear(bare, plugin)
        finally:
            server.stop()
    sys.exit(not kept)


if __name__ == "__main__":
    main()
