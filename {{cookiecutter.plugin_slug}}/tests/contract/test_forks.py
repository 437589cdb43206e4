"""A plugin that uses `multiprocessing` or `os.fork` takes its storage with it into the child."""

import json
import os

import pytest

from contract.support.database import Database, run_process
from contract.support.sample_values import MARK

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")


def test_a_forked_process_gets_no_value_of_another(database: Database) -> None:
    """A forked process gets no value of its parent or of another child."""
    wrong = run_process(database, "forks", "work-in-forks")
    assert not wrong, (
        f"A parent and its forked children mix up their values: {wrong}. They share a connection:"
        " compare os.getpid() with that of the process that connected, and connect anew, or refuse"
        " with an error that says that it is because of the fork."
    )


def test_a_forked_process_that_ends_leaves_its_parent_unharmed(database: Database) -> None:
    """A forked process that ends leaves its parent's connections alone."""
    wrong = run_process(database, "forks", "outlive-forks")
    assert not wrong, (
        f"A forked process harmed its parent when it ended: {wrong}. What `__del__`, `atexit` and"
        " `weakref.finalize` close in the child is the parent's connection: compare os.getpid()."
    )


@pytest.mark.usefixtures("other_processes")
def test_what_a_forked_process_has_set_is_there(database: Database) -> None:
    """What a parent or a forked process has set is there."""
    printed = run_process(database, "forks", "set-in-forks").splitlines()
    assert len(printed) == 3, f"A forked process failed: {printed}"
    storage = database.open("forks")
    found = set(storage.keys())
    for line in printed:
        done = json.loads(line)
        lost = set(done) - found
        assert not lost, (
            f"{len(lost)} of {len(done)} values are lost that a forked process, or its parent, had"
            " set. Let a forked process write what it sets, or refuse it."
        )
        for key in done:
            name, turn = key.split()
            assert storage.get(key) == [MARK, name, int(turn)], "A fork mixed up two values."
