"""Proof that the contract catches what it should: each broken storage fails the right tests.

Each broken storage of broken_storages/ is put into a copy of a baked project, and that project's
own tests are run. The end of pytest's output says which tests caught which.
`BROKEN_STORAGES_EVERYWHERE=1` applies all to every database, which takes half an hour.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from broken_storages import BROKEN, Broken
from conftest import CONTRACT, contract_tests
from pytest_cookies.plugin import Cookies

# In the first one all are broken, in the second one those that cannot be seen in the first.
DATABASES = ["dict", "sqlite"]
if os.environ.get("BROKEN_STORAGES_EVERYWHERE"):
    DATABASES += ["sql", "redis"]

# No key of more than 1,600 bytes is in an SQL table: it is refused, and so cannot be cut.
NOT_BROKEN = {("sql", "keys_are_cut_at_65535_characters")}
# They go through everything, and so catch nearly everything: that proves nothing of the others.
GO_THROUGH_EVERYTHING = {"test_model.py", "test_bot.py", "test_command_line.py"}
AIMED = [file for file in CONTRACT.glob("test_*.py") if file.name not in GO_THROUGH_EVERYTHING]
TIMEOUT = 300.0
"""Seconds that the tests of one broken storage may take."""

CASES = [
    (database, name)
    for database in DATABASES
    for name, broken in BROKEN.items()
    if not broken.outlives_process or database != "dict"
    if database == "dict" or broken.outlives_process or "redis" in DATABASES
    if (database, name) not in NOT_BROKEN
]


class Result(NamedTuple):
    """What became of a run of a baked project's tests: the names of their functions."""

    passed: set[str]
    failed: set[str]
    output: str


@pytest.fixture(scope="session")
def project_of(cookies_session: Cookies) -> Callable[[str], Path]:
    """Bakes a project for a database, once."""
    projects: dict[str, Path] = {}

    def project_of(database: str) -> Path:
        if database not in projects:
            baked = cookies_session.bake(extra_context={"database": database})
            assert baked.exception is None, baked.exception
            projects[database] = Path(baked.project_path)
        return projects[database]

    return project_of


def run_tests(project: Path, files: list[Path]) -> Result:
    """Run tests of a baked project in a process of its own."""
    done = subprocess.run(
        [
            *[sys.executable, "-m", "pytest", "-q", "--tb=no", "--junit-xml=report.xml"],
            *["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist"],
            *["-p", "no:cookies", *map(str, files)],
        ],
        cwd=project,
        env={
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPATH": str(project / "tests"),
            "CI": "true",  # where pytest shows differences in full, which must not take minutes
        },
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
    )
    assert done.returncode in (0, 1), f"pytest itself failed:\n{done.stdout}\n{done.stderr}"
    outcomes: dict[bool, set[str]] = {True: set(), False: set()}
    for case in ElementTree.parse(project / "report.xml").iter("testcase"):
        function = re.sub(r"\[.*", "", case.get("name", ""), flags=re.DOTALL)
        if case.find("skipped") is None:
            bad = case.find("failure") is not None or case.find("error") is not None
            outcomes[not bad].add(function)
    return Result(outcomes[True] - outcomes[False], outcomes[False], done.stdout[-20_000:])


def files_for(project: Path, broken: Broken, alone: bool) -> list[Path]:
    """Return the files of tests to run: those that hold the tests which must fail.

    Where one of them must be alone, all others that do not go through everything, too. Else one
    file more, to see that the storage works at all.
    """

    def is_to_be_run(file: Path) -> bool:
        text = file.read_text(encoding="utf-8")
        if any(f"def {test}(" in text for test in broken.caught_by):
            return True
        if alone:
            return file.parent.name == "contract" and file.name not in GO_THROUGH_EVERYTHING
        return file.name == "test_basics.py"

    return [file for file in sorted(project.glob("tests/**/test_*.py")) if is_to_be_run(file)]


@pytest.mark.parametrize(("database", "name"), CASES)
def test_a_broken_storage_is_caught_by_the_test_of_its_promise(
    database: str,
    name: str,
    project_of: Callable[[str], Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    broken = BROKEN[name]
    project = Path(shutil.copytree(project_of(database), tmp_path / "project"))
    shutil.copytree(
        Path(__file__).with_name("broken_storages"),
        project / "tests" / "broken_storages",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    [storage] = project.glob("src/*/storage.py")
    with storage.open("a", encoding="utf-8") as source:
        source.write(f"\nfrom broken_storages import {name}\n\n{name}(AcmeStorage, AcmePlugin)\n")
    alone = broken.alone and database == DATABASES[broken.outlives_process]
    result = run_tests(project, files_for(project, broken, alone))
    shutil.rmtree(project)

    failed = result.failed
    others = len(failed - broken.caught_by)
    named = ", ".join(sorted(failed & broken.caught_by)) or "none that should"
    record_property(f"{name} ({database})", named + f", and {others} others" * bool(others))
    assert result.passed, f"Nothing could be run:\n{result.output}"
    assert failed, f"Nothing catches this: {broken.break_it.__doc__}"
    missing = broken.caught_by - failed
    assert not missing, (
        f"{sorted(missing)} did not fail, but {sorted(failed)} did.\n{result.output}"
    )
    if alone:
        by = failed & contract_tests(*AIMED)
        assert len(by) == 1, f"It is not caught by one test alone, but by {sorted(by)}."


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_storage_stands_where_one_looks_for_it(name: str) -> None:
    """In the file that is called like a file of the tests that must catch it."""
    aspect = BROKEN[name].break_it.__module__.rpartition(".")[2]
    tests = contract_tests(*CONTRACT.parent.glob(f"**/test_{aspect}.py"))
    assert BROKEN[name].caught_by & tests, f"{name} is not caught by test_{aspect}.py."


def test_every_test_of_the_contract_is_needed() -> None:
    """Each one is the only one of the contract that catches some broken storage."""
    alone = {test for broken in BROKEN.values() if broken.alone for test in broken.caught_by}
    idle = contract_tests(*AIMED) - alone
    assert not idle, (
        "No broken storage is caught by these tests alone. Find one that a real author could write,"
        f" or take the test away: {sorted(idle)}"
    )
