"""Proof that the contract catches what it should: each broken storage fails the right tests.

Each broken storage of broken_storages.py is put into a copy of a baked project, and that project's
own tests are run. `BROKEN_STORAGES_TABLE=FILE` writes down which tests caught which;
`BROKEN_STORAGES_EVERYWHERE=1` applies all to every database, which takes hours.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import pytest
from broken_storages import BROKEN

EVERYWHERE = bool(os.environ.get("BROKEN_STORAGES_EVERYWHERE"))
DATABASES = ["dict", "sqlite", "sql", "redis"] if EVERYWHERE else ["dict", "sqlite"]
"""All is broken in the first one. In the second, only what cannot be seen in it."""
OUTLIVES_PROCESS = {"sqlite", "sql", "redis"}
"""The databases whose data are still there when the process is gone."""

# They go through everything, and so catch nearly everything: that proves nothing of the others.
GO_THROUGH_EVERYTHING = {
    "tests/contract/test_model.py",
    "tests/contract/test_bot.py",
    "tests/contract/test_command_line.py",
}
TESTS = ["tests/contract", "tests/test_config.py", "tests/test_signing.py"]
TIMEOUT = 300.0
"""Seconds that the tests of one broken storage may take."""

CASES = [
    (database, name)
    for database in DATABASES
    for name, broken in BROKEN.items()
    if not broken.outlives_process or database in OUTLIVES_PROCESS
    if database == DATABASES[0] or broken.outlives_process or EVERYWHERE
]


class Result(NamedTuple):
    """What became of a run of a baked project's tests: the functions, as `file::function`."""

    passed: set[str]
    failed: set[str]
    output: str


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist see."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "broken storages"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def projects(cookies_session: Any) -> dict[str, Path]:
    """A baked project for each database."""
    projects = {}
    for database in DATABASES:
        baked = cookies_session.bake(extra_context={"database": database})
        assert baked.exception is None, baked.exception
        projects[database] = baked.project_path
    return projects


def run_tests(project: Path, files: list[str]) -> Result:
    """Run tests of a baked project in a process of its own."""
    done = subprocess.run(
        [
            *[sys.executable, "-m", "pytest", "-q", "--tb=no", "--junit-xml=report.xml"],
            *["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist"],
            *["-p", "no:cookies", *files],
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
        file = case.get("classname", "").replace(".", "/") + ".py"
        if case.find("skipped") is None:
            bad = case.find("failure") is not None or case.find("error") is not None
            outcomes[not bad].add(f"{file}::{function}")
    return Result(outcomes[True] - outcomes[False], outcomes[False], done.stdout[-20_000:])


def files_for(project: Path, tests: frozenset[str]) -> list[str]:
    """Return the files of tests to run: the slow ones only where one of their tests is named."""
    files = [path for name in TESTS for path in sorted(project.glob(f"{name}/test_*.py"))]
    files += [project / name for name in TESTS if name.endswith(".py")]
    names = [path.relative_to(project).as_posix() for path in files]
    return [
        name
        for name, path in zip(names, files, strict=True)
        if name not in GO_THROUGH_EVERYTHING
        or any(f"def {test}(" in path.read_text(encoding="utf-8") for test in tests)
    ]


def result_of(database: str, name: str, projects: dict[str, Path], shared: Path) -> Result:
    """Run the tests of a project with a broken storage, once for all workers."""
    file = shared / f"{database} {name}.json"
    try:
        (shared / f"{database} {name}").mkdir()
    except FileExistsError:  # another worker runs it
        deadline = time.monotonic() + 2 * TIMEOUT
        while not file.exists():
            assert time.monotonic() < deadline, f"The worker that runs {name} has gone."
            time.sleep(0.1)
        passed, failed, output = json.loads(file.read_text(encoding="utf-8"))
        return Result(set(passed), set(failed), output)
    project = shared / f"{database} {name}" / "project"
    shutil.copytree(projects[database], project)
    shutil.copy(Path(__file__).with_name("broken_storages.py"), project / "tests")
    [storage] = project.glob("src/*/storage.py")
    with storage.open("a", encoding="utf-8") as source:
        source.write(f"\nfrom broken_storages import {name}\n\n{name}(AcmeStorage, AcmePlugin)\n")
    try:
        result = run_tests(project, files_for(project, BROKEN[name].caught_by))
    except BaseException as error:
        result = Result(set(), set(), f"{type(error).__name__}: {error}")
    partial = file.with_suffix(".partial")
    partial.write_text(
        json.dumps([sorted(result.passed), sorted(result.failed), result.output]), encoding="utf-8"
    )
    partial.rename(file)
    shutil.rmtree(project)
    return result


def functions(tests: set[str]) -> set[str]:
    """Return the names of test functions without their files."""
    return {test.partition("::")[2] for test in tests}


@pytest.mark.parametrize(("database", "name"), CASES)
def test_a_broken_storage_is_caught_by_the_test_of_its_promise(
    database: str, name: str, projects: dict[str, Path], shared: Path
) -> None:
    result = result_of(database, name, projects, shared)
    assert result.passed, f"Nothing could be run:\n{result.output}"
    assert result.failed, f"Nothing catches this: {BROKEN[name].break_it.__doc__}"
    missing = BROKEN[name].caught_by - functions(result.failed)
    assert not missing, (
        f"{sorted(missing)} did not fail, but {sorted(functions(result.failed))} did."
        f"\n{result.output}"
    )


def test_every_test_of_the_contract_is_needed(projects: dict[str, Path], shared: Path) -> None:
    """Each one is the only one of the contract that catches some broken storage."""
    results = {
        name: result_of(database, name, projects, shared)
        for database, name in CASES
        if database == ("sqlite" if BROKEN[name].outlives_process else DATABASES[0])
    }
    table = {
        name: sorted(functions(result.failed), key=lambda test: (test not in named, test))
        for name, result in results.items()
        for named in [BROKEN[name].caught_by]
    }
    if path := os.environ.get("BROKEN_STORAGES_TABLE"):
        write_table(Path(path), table)
    there = {
        test
        for result in results.values()
        for test in result.passed | result.failed
        if test.startswith("tests/contract/")
        and test.partition("::")[0] not in GO_THROUGH_EVERYTHING
    }
    needed = {
        test
        for result in results.values()
        if len(result.failed & there) == 1
        for test in result.failed
    }
    assert not there - needed, (
        "No broken storage is caught by these tests alone. Find one that a real author could write,"
        f" or take the test away: {sorted(functions(there - needed))}"
    )


def write_table(path: Path, table: dict[str, list[str]]) -> None:
    """Write which broken storage was caught by which tests, the expected ones first."""
    lines = ["| Broken storage | How one comes to write it | Caught by |", "| --- | --- | --- |"]
    for name, tests in table.items():
        named = [f"`{test}`" for test in tests if test in BROKEN[name].caught_by]
        others = len(tests) - len(named)
        more = f" and {others} more" if others else ""
        how = " ".join((BROKEN[name].break_it.__doc__ or "").split()).replace("|", "\\|")
        lines.append(f"| {name.replace('_', ' ')} | {how} | {', '.join(named)}{more} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
