"""A plugin that uses `multiprocessing` or `os.fork` takes its storage into the child process."""

import json
import os

import pytest

from contract.support.database import Database, run_process
from contract.support.expectations import skip_if_threads_fail
from contract.support.forks import forked_value
from contract.support.outcomes import same

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")


def test_a_forked_process_gets_no_value_of_another(database: Database) -> None:
    """A forked process never gets a value meant for its parent or another child."""
    wrong = run_process(database, "forks", "work-in-forks")
    assert not wrong, (
        f"A parent and its forked children mix up their values: {wrong}. They share a connection."
        " Compare os.getpid() with the process that connected. If it differs, reconnect, or raise"
        " an error that names the fork."
    )


def test_a_fork_in_the_middle_of_other_threads_work_hangs_nobody(database: Database) -> None:
    """A process that is forked while other threads use the storage does not hang."""
    skip_if_threads_fail(database.open("probe"))
    wrong = run_process(database, "forks", "fork-while-threads-work")
    assert not wrong, (
        f"After a fork, while other threads worked, the child fails: {wrong}. A lock that another"
        " thread held is never released in the child. Compare os.getpid() before you take a lock,"
        " or create the locks again with os.register_at_fork."
    )


def test_a_forked_process_that_ends_leaves_its_parent_unharmed(database: Database) -> None:
    """When a forked process ends, its parent's connections keep working."""
    wrong = run_process(database, "forks", "outlive-forks")
    assert not wrong, (
        f"A forked process harmed its parent when it ended: {wrong}. In the child, `__del__`,"
        " `atexit` and `weakref.finalize` close the parent's connection. Compare os.getpid() first."
    )


@pytest.mark.usefixtures("other_processes")
def test_what_a_forked_process_has_set_is_there(database: Database) -> None:
    """Values that a parent or a forked process has set are stored."""
    printed = run_process(database, "forks", "set-in-forks").splitlines()
    assert len(printed) == 3, f"A forked process failed: {printed}"
    storage = database.open("forks")
    found = set(storage.keys())
    for line in printed:
        done = json.loads(line)
        lost = set(done) - found
        assert not lost, (
            f"{len(lost)} of {len(done)} values that a forked process or its parent had set are"
            " lost. Let a forked process write its values, or raise an error."
        )
        for key in done:
            name, turn = key.split()
            assert same(storage.get(key), forked_value(name, int(turn))), (
                "After a fork, a parent and its children replaced each other's values. A forked"
                " process continues its parent's random numbers. Use uuid4 or os.urandom."
            )
