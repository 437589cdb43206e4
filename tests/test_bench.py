"""make bench, in its short form; and the page of published figures is what the figures say."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

from conftest import TEMPLATE, run

sys.path.append(str(TEMPLATE / "benchmarks"))

from page import page  # noqa: E402

OPERATIONS = {"set", "overwrite", "get", "in", "len", "first", "keys", "remove", "clear"}
SECTIONS = ["operations", "largest", "values", "threads", "open"]


def test_the_short_form_measures_and_draws_everything(tmp_path: Path) -> None:
    run(sys.executable, TEMPLATE / "benchmarks/bench.py", "--quick", tmp_path, cwd=tmp_path)
    results = json.loads((tmp_path / "benchmarks/results.json").read_text())
    stores = results["stores"]
    bakes = {name for name, store in stores.items() if store["kind"] == "bake"}
    bare = {"bare sqlite3", "bare psycopg", "bare PyMySQL", "bare redis-py"}
    assert bare | {"Memory", "Shelf, dbm.dumb", "diskcache", "sqlitedict"} <= set(stores)
    assert {"dict", "sqlite", "sql, PostgreSQL", "sql, MariaDB", "redis"} <= bakes
    for section in SECTIONS:
        assert set(results[section]) == set(stores), f"{section} leaves out a storage."
    for name in stores:
        assert set(results["operations"][name]) == OPERATIONS, name
        assert results["largest"][name] == 1_000, name
        assert set(results["values"][name]["get"]) == {"100", "10000", "1000000"}
    assert results["contract"]["dict"]["tests"] > 0
    assert results["start"]["Memory"]["start"]["1"]["median"] > 0
    assert set(results["ratios"]) == {name for name in bakes if name != "dict"}
    assert (tmp_path / "benchmarks.md").read_text() == page(results)
    for plot in ["throughput", "growth", "values"]:
        drawn = tmp_path / f"benchmarks/{plot}.svg"
        assert "sqlite" in "".join(ElementTree.parse(drawn).getroot().itertext())
