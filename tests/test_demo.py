"""`make demo`, as a new user runs it."""

import shutil
import sys
from pathlib import Path

from conftest import TEMPLATE, run
from test_tree import tracked


def test_the_demo_talks_to_a_bot_that_remembers(tmp_path: Path) -> None:
    for name in tracked():
        if (TEMPLATE / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TEMPLATE / name, tmp_path / name)
    printed = run(sys.executable, tmp_path / "demo.py", cwd=tmp_path)
    assert "bot: Good morning: milk, bread" in printed
    assert "StoreException: Refused the value of the key 'notes'" in printed
    assert "2 namespaces, " in printed
    assert "Notes, notes: refused" in printed
    assert str(tmp_path) not in printed.replace(f"{tmp_path}/.", ""), "The demo shows full paths."
    assert (tmp_path / "demo/errbot-storage-acme/README.md").is_file()
