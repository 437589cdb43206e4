"""Measure every storage in turn on this machine, and publish the figures: `make bench`.

Writes docs/benchmarks/results.json, and from it the plots next to it and docs/benchmarks.md. Fails
if a limit is missed. `--quick FOLDER` does a little of everything and writes to that folder, to
test this program. `--draw` only writes the page and the plots again.
"""

import argparse
import json
import logging
import math
import os
import platform
import re
import sqlite3
import statistics
import sys
import tempfile
from contextlib import ExitStack
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import Bench, Effort, repeat, rounded
from page import write_page
from plots import write_plots
from rich.console import Console
from rich.progress import Progress
from stores import TEMPLATE, Servers, candidates

PACKAGES = ["errbot", "cookiecutter", "SQLAlchemy", "psycopg", "PyMySQL", "redis"]
PACKAGES += ["diskcache", "sqlitedict"]
SPEED = {
    "sqlite": {"set": 0.7, "get": 0.7, "len": 0.9, "keys": 0.7},
    "sql, PostgreSQL": {"set": 0.7, "get": 0.4},
    "redis": {"set": 0.85, "get": 0.85, "len": 0.85, "keys": 0.85},
}
"""Minimum speed relative to the bare client: `keys` with 100,000 keys, the others with 10,000."""
FIRST_KEY = 50
"""Maximum milliseconds to get the first key of the largest namespace."""
MEMORY = {"sqlite": 50, "sql, PostgreSQL": 50, "sql, MariaDB": 50, "redis": 150}
"""Maximum MB of memory to iterate over all keys of the largest namespace."""
CLEAR = {"sqlite": 12, "sql, PostgreSQL": 16, "sql, MariaDB": 12, "redis": 12}
"""Maximum factor by which time grows when clearing ten times as many keys.

Until autovacuum runs, once a minute, PostgreSQL reads the index entries of removed keys, too.
"""
BAKE = 1.3
"""Maximum time of a bake relative to a template with one file."""


def main() -> None:
    """Measure and publish. Exits with an error if a limit is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", metavar="FOLDER", type=Path)
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    docs = options.quick or TEMPLATE / "docs"
    folder = docs / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    if not options.draw:
        results = measure(quick=bool(options.quick))
        file.write_text(json.dumps(results, indent=1) + "\n")
    results = json.loads(file.read_text())
    write_plots(results, folder)
    write_page(results, docs / "benchmarks.md")
    missed = [limit for limit in results["limits"] if not limit["kept"]]
    for limit in missed:
        print(f"MISSED: {limit['what']}: {limit['figure']} (limit {limit['limit']})")
    sys.exit(bool(missed))


def measure(*, quick: bool) -> dict[str, Any]:
    """Start the servers, measure everything, and return the figures."""
    logging.disable(logging.WARNING)
    os.sched_setaffinity(0, [0])  # page.md says why; the servers inherit it
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        servers = Servers.start(Path(name), stack)
        stores = candidates(Path(name), servers)
        progress = stack.enter_context(Progress(console=Console(stderr=True)))
        figures = Bench(Effort(quick), Path(name), stores, progress).run()
        results = {
            "date": date.today().isoformat(),
            "machine": machine(Path(name)),
            "versions": versions() | servers.versions(),
            "stores": {
                some.name: {"kind": some.kind, "place": some.place, "bare": some.bare}
                for some in stores
            },
            **figures,
        }
    results["ratios"] = ratios(results)
    results["exponents"] = exponents(results)
    results["limits"] = [] if quick else limits(results)
    return results


def machine(folder: Path) -> dict[str, Any]:
    """Return the kind of machine, and how long it waits for its disk."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with (folder / "sync").open("wb") as file:

        def sync(data: bytes) -> None:
            file.write(data)
            file.flush()
            os.fdatasync(file.fileno())

        waits = repeat(sync, [b"x" * 100] * 100, 1)
    return {
        "system": platform.system(),
        "processor": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory": round(memory / 2**30),
        "fsync": rounded(statistics.median(waits)),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, SQLite and the packages."""
    python = {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}
    return python | {name: version(name) for name in PACKAGES}


def ratios(results: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the speed of each storage relative to the bare client, by operation and size."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, store in results["stores"].items():
        for operation, sizes in results["operations"][name].items() if store["bare"] else []:
            bare = results["operations"][store["bare"]].get(operation, {})
            found.setdefault(name, {})[operation] = {
                size: round(bare[size]["median"] / figures["median"], 2)
                for size, figures in sizes.items()
                if size in bare
            }
    return found


def exponents(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return how time grows with the number of keys: 0 is constant, 1 is proportional."""
    found: dict[str, dict[str, float]] = {}
    for name, operations in results["operations"].items():
        for operation, sizes in operations.items():
            if len(sizes) > 1:
                times = [math.log(figures["median"]) for figures in sizes.values()]
                slope = statistics.linear_regression([math.log(int(n)) for n in sizes], times).slope
                found.setdefault(name, {})[operation] = round(slope, 2) + 0.0
    return found


def limits(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each limit with its figure, and whether it is kept. It is not if not measured."""
    found = []

    def limit(what: str, figure: float | None, sign: str, bound: float) -> None:
        kept = figure is not None and (figure >= bound if sign == "≥" else figure <= bound)
        shown = "not measured" if figure is None else rounded(figure)
        found.append({"what": what, "figure": shown, "limit": f"{sign} {bound:.3g}", "kept": kept})

    for name, bounds in SPEED.items():
        bare = results["stores"][name]["bare"]
        for operation, bound in bounds.items():
            ratio = results["ratios"][name][operation].get(
                "100000" if operation == "keys" else "10000"
            )
            limit(f"{name}: speed of `{operation}`, that of {bare} being 1", ratio, "≥", bound)
    for name, bound in MEMORY.items():
        sizes = results["operations"][name]["first"]
        largest, memory = f"{results['largest'][name]:,}", results["memory"].get(name)
        first = list(sizes.values())[-1]["median"] * 1000
        limit(f"{name}: ms until the first of {largest} keys is there", first, "≤", FIRST_KEY)
        megabytes = None if memory is None else memory / 1e6
        limit(f"{name}: MB of memory to go through all of them", megabytes, "≤", bound)
        exponent = results["exponents"][name].get("clear")
        limit(f"{name}: the exponent of `clear`", exponent, "≤", math.log10(CLEAR[name]))
    one, ours = (some["bake"]["1"]["median"] for some in results["bake"].values())
    limit("time of a bake, that of a template of one file being 1", round(ours / one, 2), "≤", BAKE)
    return found


if __name__ == "__main__":
    main()
