"""Tests of a bake tell its author what is left to do after connecting a database."""

import re
import sys
from pathlib import Path

import pytest
from conftest import Bake, run

STORAGE = "src/errbot_storage_acme/storage.py"


def check(project: Path, test: str) -> str:
    """Run one test of tests/test_installation.py in a bake."""
    node = f"tests/test_installation.py::{test}"
    return run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", node, cwd=project)


def edit(project: Path, path: str, old: str, new: str) -> None:
    """Replace a text in a file, which must contain it."""
    text = (project / path).read_text(encoding="utf-8")
    assert old in text
    (project / path).write_text(text.replace(old, new), encoding="utf-8")


def test_lines_that_mention_a_removed_stand_in_are_found(bake: Bake) -> None:
    project = bake()
    check(project, "test_nothing_speaks_of_a_stand_in_that_is_gone")
    edit(project, STORAGE, "# YOUR DATABASE", "#")
    with pytest.raises(AssertionError) as caught:
        check(project, "test_nothing_speaks_of_a_stand_in_that_is_gone")
    for name, text in [
        ("storage.py", "YOUR DATABASE"),
        ("README.md", "stand-in"),
        ("operation.md", "stand-in"),
    ]:
        assert re.search(rf"{name}, line \d+: .*{text}", str(caught.value))


def test_an_import_that_is_not_declared_is_found(bake: Bake) -> None:
    project = bake()
    edit(project, STORAGE, "\nimport sys\n", "\nimport sys\nfrom yaml import dump  # noqa\n")
    with pytest.raises(
        AssertionError, match=r"imports \{'PyYAML'\}, which pyproject\.toml does not"
    ):
        check(project, "test_what_storage_py_imports_is_declared")
    edit(
        project,
        "pyproject.toml",
        '"itsdangerous>=2.1",\n',
        '"itsdangerous>=2.1",\n    "pyyaml>=6",\n',
    )
    with pytest.raises(AssertionError, match=r"README\.md does not say .* needs \{'PyYAML'\}"):
        check(project, "test_what_storage_py_imports_is_declared")
    edit(project, "README.md", "itsdangerous pydantic`", "itsdangerous pydantic pyyaml`")
    check(project, "test_what_storage_py_imports_is_declared")
