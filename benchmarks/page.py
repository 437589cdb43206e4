"""Writes docs/benchmarks.md from the figures and the text in page.md."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from plots import amount, duration


def write_page(results: dict[str, Any], file: Path) -> None:
    """Write the page."""
    file.write_text(page(results), encoding="utf-8")


def page(results: dict[str, Any]) -> str:
    """Return the text of the page."""
    jinja = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"amount": amount, "duration": duration}
    text = Path(__file__).with_name("page.md").read_text(encoding="utf-8")
    sizes = list(results["operations"]["sqlite"]["get"])
    shown = "100000" if "100000" in sizes else sizes[-1]
    rendered = jinja.from_string(text).render(
        results,
        sizes=sizes,
        shown=shown,
        few=sizes[0],
        most=sizes[-1],
    )
    return rendered.rstrip() + "\n"
