"""Every bake passes its own checks."""

import ast

import pytest
import yaml
from conftest import DATABASES, TEMPLATE, UV, Bake, run

NAMES = ["Acme", "X", "Company Database of the Whole Wide World 2"[:40]]


@pytest.mark.parametrize("database", DATABASES)
@pytest.mark.parametrize("name", NAMES)
def test_ruff_finds_nothing_in_a_bake(bake: Bake, database: str, name: str) -> None:
    project = bake(plugin_name=name, database=database)
    run(UV.with_name("ruff"), "format", "--check", cwd=project)
    run(UV.with_name("ruff"), "check", cwd=project)


@pytest.fixture(scope="session")
def mypy(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The command that checks types. All bakes share its cache."""
    return [UV.with_name("mypy"), "--strict", f"--cache-dir={tmp_path_factory.mktemp('mypy')}"]


@pytest.mark.slow
def test_mypy_finds_mistakes_but_none_in_a_bake(bake: Bake, mypy: list[object]) -> None:
    for database in DATABASES:  # one after the other, because they share the cache
        run(*mypy, cwd=bake(database=database))
    project = bake()
    storage = next(project.glob("src/*/storage.py"))
    storage.write_text(storage.read_text().replace("-> int:", "-> str:"))
    with pytest.raises(AssertionError, match="Incompatible return value"):
        run(*mypy, cwd=project)


LINES = {"dict": 185, "sqlite": 260, "sql": 430, "redis": 310}
"""Maximum lines of a rendered storage.py. docs/design.md shows what each guarantee costs."""


@pytest.mark.parametrize("database", DATABASES)
def test_storage_py_stays_short(bake: Bake, database: str) -> None:
    source = next(bake(database=database).glob("src/*/storage.py")).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LINES[database]
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert [name for name in lengths if lengths[name] > 30] == []


def test_ruff_finds_mistakes(bake: Bake) -> None:
    project = bake()
    storage = next(project.glob("src/*/storage.py"))
    storage.write_text(storage.read_text().replace("import sys\n", "import os,sys\n"))
    for command in [("ruff", "format", "--check"), ("ruff", "check")]:
        with pytest.raises(AssertionError, match=r"storage\.py"):
            run(UV.with_name(command[0]), *command[1:], cwd=project)


def test_the_longest_name_is_tested() -> None:
    assert max(map(len, NAMES)) == 40


def test_ci_runs_what_the_readme_says() -> None:
    workflow = yaml.safe_load((TEMPLATE / ".github/workflows/test.yml").read_text())
    steps = [step.get("run") for step in workflow["jobs"]["test"]["steps"]]
    assert {"make demo", '.ci/run "$TARGET"'} <= set(steps)
    targets = workflow["jobs"]["test"]["strategy"]["matrix"]["target"]
    makefile = (TEMPLATE / "Makefile").read_text()
    for name in ["test", "test-slow", "test-nightly"]:
        assert f'"{name}"' in targets
        assert f"\n{name}:" in makefile
    script = (TEMPLATE / ".ci/run").read_text()
    assert "set -- test test-slow\n" in script
    assert 'make "$target"\n' in script
