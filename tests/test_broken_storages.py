"""The contract catches what it should: each broken storage fails the right tests.

For each broken storage in broken_storages/, the tests of a baked project run in a process that
breaks the project's storage in this way. The end of pytest's output says which tests caught it.
For each test of the contract, `make test` or `make test-slow` runs one that only this test catches,
so each is shown to fail: `make test` those of the dict, and `make test-slow` those of SQLite and
Redis. `make test-nightly` runs all others, and the whole contract against those that only one test
may catch.
`BROKEN_STORAGES_EVERYWHERE=1` breaks every database.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from broken_storages import BROKEN, Broken
from conftest import CONTRACT, contract_tests
from forking_pytest import Forking
from pytest_cookies.plugin import Cookies
from servers.base import needs

# Bugs are applied to the first one, those that need other processes to the second one, and those of
# connections to the third one.
DATABASES = ["dict", "sqlite", "redis"]
EVERYWHERE = bool(os.environ.get("BROKEN_STORAGES_EVERYWHERE"))
if EVERYWHERE:
    DATABASES += ["sql"]

# SQL tables have no keys of more than 1,600 bytes, so none can be cut.
NOT_BROKEN = {("sql", "keys_are_cut_at_65535_characters")}
# These use every operation, so they catch nearly every bug. The other tests must catch them, too.
GO_THROUGH_EVERYTHING = {"test_model.py", "test_bot.py", "test_command_line.py"}
AIMED = contract_tests(
    *(file for file in CONTRACT.glob("test_*.py") if file.name not in GO_THROUGH_EVERYTHING)
)
BASICS = contract_tests(CONTRACT / "test_basics.py")


def database_of(broken: Broken) -> str:
    """Return the first database on which a broken storage can be seen."""
    return DATABASES[2 if broken.connects else broken.outlives_process]


def level_of(database: str, broken: Broken) -> list[pytest.MarkDecorator]:
    """Return the marks that say which target runs a case."""
    if broken not in FIRST.values():
        return [pytest.mark.nightly]
    return [pytest.mark.slow] * (database != "dict")


FIRST = {broken.caught_by: broken for broken in reversed(BROKEN.values()) if broken.alone}
"""By tests: the first of the broken storages that only these catch."""
CASES = [
    pytest.param(database, name, marks=level_of(database, broken))
    for database in DATABASES
    for name, broken in BROKEN.items()
    if database == database_of(broken)
    or (EVERYWHERE and not broken.connects and (database != "dict" or not broken.outlives_process))
    if (database, name) not in NOT_BROKEN
]

BREAK = """

import os

import broken_storages


def break_it() -> None:
    getattr(broken_storages, os.environ["BROKEN_STORAGE"])(AcmeStorage, AcmePlugin)


if "BROKEN_STORAGE" in os.environ:
    break_it()
else:  # Imported before the fork that runs the tests.
    os.register_at_fork(after_in_child=break_it)
"""


@pytest.fixture(scope="session")
def tests_of(
    cookies_session: Cookies, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Forking]]:
    """Bakes a project for a database, whose storage can be broken, and collects its tests."""
    with ExitStack() as stack:

        @cache
        def tests_of(database: str) -> Forking:
            if database == "redis":
                needs("redis-server", package="redis-server")
            baked = cookies_session.bake(extra_context={"database": database})
            assert baked.exception is None, baked.exception
            project = Path(baked.project_path)
            shutil.copytree(
                Path(__file__).with_name("broken_storages"), project / "tests" / "broken_storages"
            )
            with next(project.glob("src/*/storage.py")).open("a", encoding="utf-8") as source:
                source.write(BREAK)
            forking = Forking(project, tmp_path_factory.mktemp(f"tests-of-{database}-"))
            stack.callback(forking.end)
            return forking

        yield tests_of


@pytest.mark.parametrize(("database", "name"), CASES)
def test_a_broken_storage_is_caught_by_the_test_of_its_promise(
    database: str,
    name: str,
    tests_of: Callable[[str], Forking],
    record_property: Callable[[str, object], None],
) -> None:
    broken = BROKEN[name]
    tests = broken.caught_by | BASICS
    # Some hang. On the dict, no test that passes takes as long.
    limit = 7 if database == "dict" else 12
    result = tests_of(database).run(tests, broken.thorough, limit, BROKEN_STORAGE=name)

    failed = result.failed
    others = len(failed - broken.caught_by)
    named = ", ".join(sorted(failed & broken.caught_by)) or "none that should"
    record_property(f"{name} ({database})", named + f", and {others} others" * bool(others))
    assert result.passed, f"No test passed:\n{result.output}"
    assert failed, f"No test catches this: {broken.break_it.__doc__}"
    missing = broken.caught_by - failed
    assert not missing, (
        f"{sorted(missing)} did not fail, but {sorted(failed)} did.\n{result.output}"
    )


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in BROKEN if BROKEN[name].alone])
def test_a_broken_storage_is_caught_by_one_test_alone(
    name: str, tests_of: Callable[[str], Forking]
) -> None:
    broken = BROKEN[name]
    forking = tests_of(database_of(broken))
    result = forking.run(AIMED, broken.thorough, 40, BROKEN_STORAGE=name)
    assert result.failed == broken.caught_by & AIMED, result.output
    assert len(result.failed) == 1


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_storage_is_in_the_file_named_after_its_tests(name: str) -> None:
    """For example, keys.py has the storages that test_keys.py must catch."""
    aspect = BROKEN[name].break_it.__module__.rpartition(".")[2]
    tests = contract_tests(*CONTRACT.parent.glob(f"**/test_{aspect}.py"))
    assert BROKEN[name].caught_by & tests, f"{name} is not caught by test_{aspect}.py."


def test_every_test_of_the_contract_is_needed() -> None:
    """Each one is the only test that catches some broken storage."""
    alone = {test for broken in BROKEN.values() if broken.alone for test in broken.caught_by}
    idle = AIMED - alone
    assert not idle, (
        "No broken storage is caught only by these tests. Add one with a bug that a real author"
        f" could make, or remove the tests: {sorted(idle)}"
    )
