"""`make bench` works in its short form, and the published page shows the published figures."""

import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import TEMPLATE, run

sys.path.append(str(TEMPLATE / "benchmarks"))

from page import page  # noqa: E402

DOCS = TEMPLATE / "docs"
OPERATIONS = {"set", "overwrite", "get", "in", "len", "first", "keys", "remove", "clear"}
SECTIONS = ["operations", "largest", "values", "threads", "open"]


@pytest.fixture(scope="session")
def figures() -> dict[str, Any]:
    """The published figures."""
    return dict(json.loads((DOCS / "benchmarks/results.json").read_text()))


@pytest.mark.slow
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


def test_the_published_page_shows_the_published_figures(figures: dict[str, Any]) -> None:
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == page(figures), (
        "Run benchmarks/bench.py --draw."
    )


def test_the_published_figures_are_from_a_full_run(figures: dict[str, Any]) -> None:
    """`make bench` and the page say whether the run kept its limits."""
    assert "1000000" in figures["operations"]["sqlite"]["get"]
    limits = figures["limits"]
    assert limits
    assert [limit["what"] for limit in limits if limit["figure"] == "not measured"] == []
    assert not re.search(r"/(tmp|home|root|work)\b|localhost|127\.0\.0\.1", json.dumps(figures))


@pytest.mark.parametrize("picture", [*DOCS.rglob("*.svg")], ids=lambda path: path.stem)
def test_pictures_load_nothing_and_suit_both_backgrounds(picture: Path) -> None:
    svg = picture.read_text(encoding="utf-8")
    names = ("http://www.w3.org/", "http://purl.org/", "http://creativecommons.org/")
    urls = [url for url in re.findall(r"https?://[^\s\"')<]+", svg) if not url.startswith(names)]
    shown = "".join(ElementTree.fromstring(svg).itertext())
    assert not [url for url in urls if url not in shown], "A picture loads something."
    assert "@font-face" not in svg
    assert "@import" not in svg
    assert "prefers-color-scheme: dark" in svg or "terminal" in picture.stem
