"""Draws the figures as SVG, for docs/benchmarks.md and README.md, on light and dark backgrounds."""

import io
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, SOFT, GRID, CARD = "#1f2328", "#59636e", "#d8dee4", "#fffffe"
DARK = {INK: "#e6edf3", SOFT: "#9198a1", GRID: "#30363d", CARD: "#0d1117"}
"""The colours that change on a dark background. Those of the data suit both."""
KINDS = {
    "bake": ("#2f81f7", "baked by this template"),
    "bare": ("#8b949e", "bare client: the limit"),
    "errbot": ("#e5534b", "Errbot's own"),
    "peer": ("#c69026", "other packages"),
}
LINES: dict[str, tuple[str, Any]] = {
    "Shelf, dbm.sqlite3": ("#e5534b", "--"),
    "Shelf, dbm.gnu": ("#e5534b", "--"),
    "Shelf, dbm.ndbm": ("#e5534b", "-."),
    "Shelf, dbm.dumb": ("#e5534b", ":"),
    "dict": ("#8b949e", "-"),
    "sqlite": ("#2f81f7", "-"),
    "sql, PostgreSQL": ("#3fa34d", "-"),
    "sql, MariaDB": ("#c69026", "-"),
    "redis": ("#a371f7", "-"),
}
FONT = "-apple-system, 'Segoe UI', 'Liberation Sans', Helvetica, Arial, sans-serif"
STYLE: Any = {
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "figure.facecolor": CARD,
    "axes.facecolor": "none",
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "errbot-storage-template",
    "text.color": INK,
    "xtick.color": GRID,
    "xtick.labelcolor": SOFT,
    "ytick.color": GRID,
    "ytick.labelcolor": INK,
}


def write_plots(results: dict[str, Any], folder: Path) -> None:
    """Draw all plots into a folder."""
    plots = {"throughput": throughput, "growth": growth, "values": values}
    with mpl.rc_context(STYLE):
        for name, plot in plots.items():
            (folder / f"{name}.svg").write_text(as_svg(plot(results)), encoding="utf-8")


def as_svg(figure: Figure) -> str:
    """Return a figure as SVG, with real text, and colours for light and dark backgrounds."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    rules = "".join(
        f'[style*="{part}: {light}"]{{{part}:{dark} !important}}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    svg = re.sub(r"<metadata>.*?</metadata>", style, text.getvalue(), flags=re.DOTALL)
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", FONT, svg)
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)


def amount(number: float, _position: object = None) -> str:
    """Format a number: 1,200 becomes 1.2k."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return (
                f"{number / unit:.3g}{letter}"
                if number < 1e2 * unit
                else f"{number / unit:.0f}{letter}"
            )
    return f"{number:.3g}"


def duration(seconds: float, _position: object = None) -> str:
    """Format seconds: 0.0012 becomes 1.2 ms."""
    for unit, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= unit * 0.9999:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds * 1e9:.3g} ns"


def log_axis(axis: Any, formatter: Any) -> None:
    """Give an axis a logarithmic scale with a tick for each power of ten."""
    axis.set_major_locator(LogLocator(numticks=20))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(formatter))


def throughput(results: dict[str, Any]) -> Figure:
    """Compare the operations per second of everything that was measured at one size."""
    size = "100000" if "100000" in results["operations"]["sqlite"]["get"] else "1000"
    names = [n for n in results["stores"] if size in results["operations"][n]["get"]][::-1]
    places = [results["stores"][name]["place"] for name in names]
    # Half a row between different places of data.
    rows = [n + sum(a != b for a, b in pairwise(places[: n + 1])) / 2 for n in range(len(names))]
    figure = Figure(figsize=(9, 0.28 * rows[-1] + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, operation in ((left, "get"), (right, "set")):
        axes.set_title(f"{operation}, {int(size):,} keys")
        axes.set_xscale("log")
        log_axis(axes.xaxis, amount)
        axes.grid(axis="x")
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        speeds = [1 / results["operations"][n][operation][size]["median"] for n in names]
        for row, name, speed in zip(rows, names, speeds, strict=True):
            colour = KINDS[results["stores"][name]["kind"]][0]
            axes.plot([min(speeds) / 4, speed], [row, row], color=colour, alpha=0.35, linewidth=2)
            axes.plot(speed, row, "o", color=colour, markersize=6.5)
            axes.annotate(
                amount(speed),
                (speed, row),
                (7, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
        axes.set_xlim(min(speeds) / 4, max(speeds) * 6)
        axes.set_yticks(rows, names)
        axes.set_xlabel("operations per second of one thread (log scale)")
    marks = [
        Line2D([], [], color=colour, marker="o", linewidth=2, label=label)
        for colour, label in KINDS.values()
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=4, frameon=False)
    return figure


def lines(axes: Axes, results: dict[str, Any], section: str, operation: str) -> None:
    """Plot the median time of an operation against the size, for each store in LINES."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    log_axis(axes.yaxis, duration)
    axes.grid()
    axes.tick_params(length=0)
    axes.tick_params("y", labelcolor=SOFT)
    every: list[float] = []
    for name, (colour, dashes) in LINES.items():
        sizes = results[section].get(name, {}).get(operation, {})
        times = [figures["median"] for figures in sizes.values()]
        every += times
        line = Line2D(
            [int(size) for size in sizes], times, linewidth=1.8, marker="o", markersize=3.5
        )
        line.set(color=colour, linestyle=dashes)
        axes.add_line(line)
    axes.autoscale_view()
    low, high = math.log10(min(every)), math.log10(max(every))
    axes.set_ylim(10 ** math.floor(low), 10 ** math.ceil(high))  # whole decades have two ticks


def with_legend(figure: Figure, results: dict[str, Any]) -> Figure:
    """Add a legend above the panels."""
    marks = [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=1.8, label=name)
        for name, (colour, dashes) in LINES.items()
        if name in results["stores"]
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=4, frameon=False)
    return figure


def growth(results: dict[str, Any]) -> Figure:
    """Show how the time of an operation grows with the number of keys."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    titles = {
        "get": "get one value",
        "first": "first key",
        "len": "len",
        "clear": "clear everything",
    }
    for axes, (operation, title) in zip(figure.subplots(2, 2).flat, titles.items(), strict=True):
        lines(axes, results, "operations", operation)
        axes.set_title(title)
        log_axis(axes.xaxis, amount)
        axes.set_xlabel("keys in the namespace")
        axes.set_ylabel("median time")
    return with_legend(figure, results)


def values(results: dict[str, Any]) -> Figure:
    """Show how the time grows with the size of a value."""
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    for axes, operation in zip(figure.subplots(1, 2, sharey=True), ("get", "set"), strict=True):
        lines(axes, results, "values", operation)
        axes.set_title(operation)
        axes.set_xticks([100, 10_000, 1_000_000], ["100 B", "10 KB", "1 MB"])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("size of the value")
        axes.set_ylabel("median time")
        axes.tick_params(labelleft=True)
    return with_legend(figure, results)
