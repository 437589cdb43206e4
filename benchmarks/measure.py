"""Measures everything in turn, so that other work on the machine slows down all alike."""

import gc
import json
import os
import pickle
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.progress import Progress
from stores import TEMPLATE, Candidate, Store, key


class Effort:
    """How much to measure: everything, or a little to test this program."""

    def __init__(self, quick: bool) -> None:
        self.sizes = [100, 1_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
        self.value_sizes = [100, 10_000, 1_000_000]
        self.rounds = 2 if quick else 5
        self.opens = 3 if quick else 50
        self.starts = 1 if quick else 3
        self.bots = self.contracts = 1 if quick else None
        self.bakes = 1 if quick else 11
        self.tests = "test_basics.py" if quick else "."
        # Seconds. The last two are maximums: anything that would take longer is left out.
        self.slice = 0.002 if quick else 0.05
        self.threads = 0.01 if quick else 0.4
        self.fill = 10.0
        self.clear = 1.0 if quick else 60.0


MOST = 2_000
"""Maximum repetitions of an operation per round."""

Samples = dict[tuple[str, str, int], list[float]]
"""Seconds by store, operation and size."""


class Bench:
    """One run. Each section adds its figures to `results`."""

    def __init__(
        self, effort: Effort, folder: Path, stores: list[Candidate], progress: Progress
    ) -> None:
        self.effort, self.folder, self.all, self.progress = effort, folder, stores, progress
        self.value = value_of(100)
        self.results: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Measure everything."""
        start = time.monotonic()
        gc.disable()  # It would look at a million keys in the middle of another measurement.
        for section in [self.operations, self.clearing, self.sizes_of_values, self.opening]:
            section()
            gc.collect()
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        for section in [self.threads, self.starting, self.baking, self.contract]:
            section()
        gc.enable()
        self.results["minutes"] = round((time.monotonic() - start) / 60)
        return self.results

    def track(self, title: str, items: Iterable[Any]) -> Iterator[Any]:
        """Iterate over some items, and show the progress."""
        return iter(self.progress.track(list(items), description=title))

    def operations(self) -> None:
        """Fill a namespace of each store to each size, and measure all operations there."""
        samples: Samples = defaultdict(list)
        stores = {some.name: some.open("growing") for some in self.all}
        filled = dict.fromkeys(stores, 0)
        pace: dict[str, float] = {}
        for size in self.effort.sizes:
            for some in self.track(f"fill {size:,}", self.all):
                start, have = time.perf_counter(), filled[some.name]
                if pace.get(some.name, 0) * (size - have) < self.effort.fill:
                    some.fill(stores[some.name], "growing", have, size, self.value)
                    took = time.perf_counter() - start
                    pace[some.name] = took / (size - have) if took > 0.5 else 0
                    filled[some.name] = size
            names = [name for name, have in filled.items() if have == size]
            rounds = self.effort.rounds if size < 1_000_000 else 2
            for turn in self.track(f"operations, {size:,}", range(rounds)):
                for name in names:
                    for operation, times in self.one_round(stores[name], size, turn).items():
                        samples[name, operation, size] += times
        self.results["operations"] = summaries(samples)
        self.results["largest"] = filled
        self.results["memory"] = {name: memory_of_keys(stores[name]) for name in names}
        for store in stores.values():
            store.close()

    def one_round(self, store: Store, size: int, turn: int) -> dict[str, list[float]]:
        """Do each operation for a moment. Afterwards, the store has the same keys as before."""
        keys = [key(n) for n in random.Random(turn).choices(range(size), k=MOST)]
        seconds, times = self.effort.slice, {}
        set_one = setter(store, self.value)
        set_one("new")
        removal = repeat(store.remove, ["new"], 0)[0]
        # Only as many new keys as there is time to remove.
        new = [f"new {n}" for n in range(max(1, min(MOST, int(seconds / removal))))]
        times["set"] = repeat(set_one, new, seconds)
        new = new[: len(times["set"])]
        assert store.len() == size + len(new), f"{store} has lost keys."
        times["overwrite"] = repeat(set_one, keys, seconds)
        times["get"] = repeat(store.get, keys, seconds)
        times["in"] = repeat(store.contains, keys, seconds)
        times["len"] = repeat(lambda _: store.len(), keys, seconds)
        times["first"] = repeat(lambda _: store.first(), keys, seconds)
        times["keys"] = repeat(lambda _: count_keys(store), range(20), seconds)
        times["remove"] = repeat(store.remove, new, 60)
        assert store.len() == size, f"{store} has not removed all keys."
        return times

    def clearing(self) -> None:
        """Clear namespaces of growing sizes, as long as it is likely to end in time."""
        samples: Samples = defaultdict(list)
        for some in self.track("clear", self.all):
            known = self.results["operations"][some.name]
            last, growth = 0.0, 10.0
            for size in known["get"]:
                # Errbot does this for each key. Bare clients and other packages do not.
                each = sum(known[step][size]["median"] for step in ("first", "get", "remove"))
                mapping = some.kind in ("errbot", "bake")
                expected = max(last * growth, int(size) * each if mapping else 0)
                if expected > self.effort.clear and last:
                    break
                times: list[float] = []
                while len(times) < 3 and sum(times) < 1:
                    namespace = f"clear {size} {len(times)}"
                    store = some.open(namespace)
                    some.fill(store, namespace, 0, int(size), self.value)
                    times += repeat(lambda _: store.clear(), [None], 0)  # noqa: B023
                    assert store.len() == 0, f"{some.name} has not cleared all keys."
                    store.close()
                samples[some.name, "clear", int(size)] = times
                last, growth = times[0], max(10.0, times[0] / last if last else 0)
        for name, clear in summaries(samples).items():
            self.results["operations"][name] |= clear

    def sizes_of_values(self) -> None:
        """Set and get values of each size."""
        samples: Samples = defaultdict(list)
        stores = {some.name: some.open("values") for some in self.all}
        keys = [key(n) for n in range(10)] * (MOST // 10)
        for size in self.effort.value_sizes:
            value = value_of(size)
            for _turn in self.track(f"values of {size:,} bytes", range(self.effort.rounds)):
                for name, store in stores.items():
                    for one in keys[:10]:
                        store.set(one, value)
                    assert store.get(keys[0]) == value
                    set_one = setter(store, value)
                    samples[name, "set", size] += repeat(set_one, keys, self.effort.slice)
                    samples[name, "get", size] += repeat(store.get, keys, self.effort.slice)
        self.results["values"] = summaries(samples)
        for store in stores.values():
            store.close()

    def threads(self) -> None:
        """Get and set in one thread and in eight, or note with which error that fails."""
        results: dict[str, Any] = {some.name: {} for some in self.all}
        for some in self.track("threads", self.all):
            store = some.open("threads")
            some.fill(store, "threads", 0, 1_000, self.value)
            for operation in ("get", "set"):
                results[some.name][operation] = {
                    str(count): together(some, store, operation, count, self.effort.threads)
                    for count in (1, 8)
                }
        self.results["threads"] = results

    def opening(self) -> None:
        """Open a namespace that holds one key."""
        samples: Samples = defaultdict(list)
        for some in self.track("open", self.all):
            for number in range(self.effort.opens):
                store = some.open(f"open {number}")
                store.set("key", self.value)
                store.close()
                opened: list[Store] = []
                samples[some.name, "open", 1] += repeat(
                    lambda name: opened.append(some.open(name)),  # noqa: B023
                    [f"open {number}"],
                    0,
                )
                opened[0].close()
        self.results["open"] = summaries(samples)

    def starting(self) -> None:
        """Start a bot on each storage, and measure until it is ready."""
        samples: Samples = defaultdict(list)
        failed: dict[str, str] = {}
        bots = [some for some in self.all if some.start][: self.effort.bots]
        for some in self.track("start of a bot", bots * self.effort.starts):
            with tempfile.TemporaryDirectory() as folder:
                config = some.start | {"BOT_DATA_DIR": folder, "BOT_LOG_FILE": f"{folder}/log"}
                script = Path(__file__).with_name("start_bot.py")
                command = [sys.executable, str(script), json.dumps(config)]
                if some.name not in failed:
                    try:
                        took = repeat(run, [command], 0)
                        samples[some.name, "start", 1] += took
                    except AssertionError as error:
                        if some.kind == "bake":
                            raise
                        failed[some.name] = str(error).splitlines()[-1]
        self.results["start"] = summaries(samples) | failed

    def baking(self) -> None:
        """Bake a template with one file and no hooks, and this one, as whole processes.

        This is as in a new environment, where Python first compiles Cookiecutter. Later, both take
        about half as long, and the difference is the same.
        """
        samples: Samples = defaultdict(list)
        one = self.folder / "one file"
        (one / "{{cookiecutter.slug}}").mkdir(parents=True)
        (one / "{{cookiecutter.slug}}" / "README.md").write_text("# {{ cookiecutter.slug }}\n")
        (one / "cookiecutter.json").write_text(json.dumps({"slug": "project"}))
        program = str(Path(sys.executable).with_name("cookiecutter"))
        for turn in self.track("bake", range(self.effort.bakes)):
            for name, template in {"one file": one, "this template": TEMPLATE}.items():
                output = str(self.folder / f"bake {name} {turn}")
                options = ["--no-input", "--default-config", "--output-dir", output]
                new = ["env", f"PYTHONPYCACHEPREFIX={output}", program, str(template), *options]
                samples[name, "bake", 1] += repeat(run, [new], 0)
        self.results["bake"] = summaries(samples)

    def contract(self) -> None:
        """Run the contract of each bake, as a developer does."""
        results = {}
        baked = [some for some in self.all if some.project and "signed" not in some.name]
        for some in self.track("contract", baked[: self.effort.contracts]):
            tests = f"tests/contract/{self.effort.tests}"
            environment = os.environ | ({"STORAGE_TEST_URL": some.url} if some.url else {})
            start = time.perf_counter()
            printed = run(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests],
                cwd=some.project,
                env=environment,
            )
            seconds = round(time.perf_counter() - start, 1)
            passed = re.search(r"(\d+) passed", printed)
            assert passed, printed
            results[some.name] = {"seconds": seconds, "tests": int(passed[1])}
        self.results["contract"] = results


def value_of(size: int) -> dict[str, Any]:
    """Return a value whose pickle has this size. Its text cannot be compressed."""
    value = {"since": 1_700_000_000, "tags": ["a", "b"], "note": ""}
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"
    while (missing := size - len(pickle.dumps(value, protocol=5))) > 0:
        value["note"] = f"{value['note']}{''.join(random.Random(size).choices(letters, k=missing))}"
    return value


def repeat(call: Callable[[Any], object], arguments: Iterable[Any], seconds: float) -> list[float]:
    """Time a call with each argument in turn until the time is up, at least once."""
    clock = time.perf_counter
    samples, end = [], clock() + seconds
    for argument in arguments:
        start = clock()
        call(argument)
        stop = clock()
        samples.append(stop - start)
        if stop > end:
            break
    return samples


def rounded(figure: float) -> float:
    """Round to four digits."""
    return float(f"{figure:.4g}")


def summaries(samples: Samples) -> dict[str, dict[str, dict[str, Any]]]:
    """Summarize: median, p99, and the interquartile range in percent of the median."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for (store, operation, size), times in samples.items():
        ordered, count = sorted(times), len(times)
        median = statistics.median(ordered)
        half = ordered[count * 3 // 4] - ordered[count // 4]
        results.setdefault(store, {}).setdefault(operation, {})[str(size)] = {
            "median": rounded(median),
            "p99": rounded(ordered[count * 99 // 100]),
            "spread": round(half / median * 100),
            "count": count,
        }
    return results


def setter(store: Store, value: dict[str, Any]) -> Callable[[str], None]:
    """Return a function that sets a key to a different value each time.

    SQLite writes nothing if a value does not change.
    """
    value = dict(value)

    def set_one(name: str) -> None:
        value["since"] += 1
        store.set(name, value)

    return set_one


def count_keys(store: Store) -> int:
    """Iterate over all keys, and count them."""
    return sum(1 for _key in iter(store.keys()))


def resident_bytes() -> int:
    """Return how much memory this process uses."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_of_keys(store: Store) -> int:
    """Return by how many bytes this process grows while it iterates over all keys."""
    gc.collect()
    before = most = resident_bytes()
    for count, _key in enumerate(store.keys()):
        if count % 5_000 == 0:
            most = max(most, resident_bytes())
    return most - before


def run(command: list[str], **options: Any) -> str:
    """Run a program, and return its output. If the program fails, fail with the output."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}"
    return str(done.stdout)


def together(
    some: Candidate, store: Store, operation: str, count: int, seconds: float
) -> float | str:
    """Return the operations per second of some threads, or the error of one of them."""
    barrier, done, errors = threading.Barrier(count), [0] * count, []
    value = value_of(100)

    def work(number: int) -> None:
        mine = some.open("threads") if some.per_thread else store
        call = mine.get if operation == "get" else setter(mine, value)
        keys = [key(n) for n in range(number, 1_000, count)][:20]
        try:
            barrier.wait(60)
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                for name in keys:
                    call(name)
                done[number] += len(keys)
        except Exception as error:
            errors.append(f"{error}"[:80])
        finally:
            if some.per_thread:
                mine.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors[0] if errors else rounded(sum(done) / (time.perf_counter() - start))
