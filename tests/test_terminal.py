"""The terminal in README.md's picture is up to date."""

import re
import sys
from html import unescape
from pathlib import Path

import pytest
from conftest import TEMPLATE, run


def lines(picture: Path) -> list[str]:
    """Return the lines in a picture."""
    found: dict[int, str] = {}
    svg = picture.read_text(encoding="utf-8")
    for x, number, text in re.findall(r' x="([\d.]+)"[^>]*-line-(\d+)\)">([^<]*)</text>', svg):
        before = found.get(int(number), "").ljust(round(float(x) / 12.2))  # a column's width
        found[int(number)] = before + unescape(text).replace("\xa0", " ")
    shown = [found[number].strip() for number in sorted(found)]
    return [line for line in shown if line]


def split(shown: list[str]) -> tuple[list[str], str]:
    """Return the lines without pytest's output, and the last line of that."""
    start = next(n for n, line in enumerate(shown) if line.startswith("$ python -m pytest"))
    end = next(n for n, line in enumerate(shown) if " passed" in line)
    return shown[:start] + shown[end + 1 :], shown[end]


@pytest.mark.slow
def test_the_picture_is_up_to_date(tmp_path: Path) -> None:
    drawn = tmp_path / "terminal.svg"
    run(sys.executable, TEMPLATE / "docs/terminal.py", "--quick", drawn, cwd=tmp_path)
    today, _ = split(lines(drawn))
    published, result = split(lines(TEMPLATE / "docs/terminal.svg"))
    assert today == published, "To redraw the picture, run .venv/bin/python docs/terminal.py."
    assert today[0] == "$ pipx run cookiecutter gh:org/errbot-storage-template"
    assert today[-1] == "Good morning: milk", "The bot has forgotten what it was told."
    assert int(result.split()[0]) > 100, "The picture shows only a few tests."
    assert "failed" not in result
