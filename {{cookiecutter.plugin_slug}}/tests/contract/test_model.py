"""Random operations on several namespaces, compared with plain dicts.

`pytest -m thorough` searches ten times as long, and looks for the shortest way to a failure.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from itertools import count, islice
from typing import Any

import pytest
from errbot.storage import StoreMixin
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from contract.support.amounts import many
from contract.support.database import Database
from contract.support.expectations import expect
from contract.support.outcomes import same
from contract.support.sample_values import FALSY, MARK, Person, Unstorable
from contract.support.tricky_names import ALIKE, HARD, may_be_refused

NAMES = ["a", "A", "a:b"]

# All characters but surrogates. Hypothesis takes seconds to find out that UTF-8 has the same.
characters = st.characters(exclude_categories=["Cs"])
tricky = st.sampled_from([*sum(ALIKE.values(), []), *HARD])
keys = st.one_of(st.sampled_from(["a", "b", "c"]), tricky, st.text(characters, max_size=8))
leaves = st.one_of(
    st.sampled_from(list(FALSY.values())),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=[]), max_size=20),
    st.binary(max_size=20),
    st.datetimes(),
    st.builds(Person, st.just(MARK)),
    st.just(MARK * 5_000),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(
            st.one_of(st.text(characters, max_size=3), st.integers(), st.none()), inner, max_size=3
        ),
        st.builds(
            Person, st.just(MARK), st.lists(st.builds(Person, st.text(characters)), max_size=2)
        ),
    ),
    max_leaves=4,
)
names = st.sampled_from(NAMES)


def is_plain(value: Any) -> bool:
    """Return whether every storage accepts a value."""
    return value is None or type(value) in (bool, int, float, str)


def missing(key: str) -> AbstractContextManager[None]:
    """Pass if the block raises the error for a missing key."""
    error = Exception if may_be_refused(key) else KeyError
    return expect(error, f"The key {key!r} is missing, which must be a KeyError.")


def machine(database: Database, numbers: Iterator[int]) -> type[RuleBasedStateMachine]:
    """Make a state machine. Each of its runs gets its own namespaces."""

    class Storages(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.run = next(numbers)
            self.plugin = database.plugin()
            self.open: dict[str, StoreMixin] = {}
            self.model: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
            for name in NAMES:
                self.open_namespace(name)

        def open_namespace(self, name: str) -> None:
            self.open[name] = StoreMixin()
            self.open[name].open_storage(self.plugin, database.namespace(f"{self.run} {name}"))

        @rule(name=names, key=keys, value=values)
        def set(self, name: str, key: str, value: Any) -> None:
            try:
                self.open[name][key] = value
            except Exception:  # Another test checks which values are refused.
                if is_plain(value) and not may_be_refused(key):
                    raise
            else:
                self.model[name][key] = value

        @rule(name=names, key=keys)
        def set_what_cannot_be_stored(self, name: str, key: str) -> None:
            with suppress(Exception):
                self.open[name][key] = [MARK, Unstorable()]
                del self.open[name][key]  # It was not refused, which another test checks.
                self.model[name].pop(key, None)

        @rule(name=names, key=keys)
        def get(self, name: str, key: str) -> None:
            if key in self.model[name]:
                got, value = self.open[name][key], self.model[name][key]
                assert type(got) is type(value), f"{key!r} has changed."
                assert same(repr(got), repr(value)), f"{key!r} has changed."
            else:
                with missing(key):
                    self.open[name][key]

        @rule(name=names, key=keys)
        def remove(self, name: str, key: str) -> None:
            if self.model[name].pop(key, self) is not self:
                del self.open[name][key]
            else:
                with missing(key):
                    del self.open[name][key]

        @precondition(lambda self: any(self.model.values()))
        @rule(data=st.data())
        def remove_one_that_is_there(self, data: st.DataObject) -> None:
            name = data.draw(st.sampled_from([name for name in NAMES if self.model[name]]))
            key = data.draw(st.sampled_from(sorted(self.model[name])))
            del self.open[name][key]
            del self.model[name][key]

        @rule(name=names)
        def popitem(self, name: str) -> None:
            if self.model[name]:
                key, value = self.open[name].popitem()
                expected = self.model[name].pop(key)
                assert same(repr(value), repr(expected)), f"{key!r} has changed."
            else:
                with missing("a"):
                    self.open[name].popitem()

        @rule(name=names)
        def clear(self, name: str) -> None:
            self.open[name].clear()
            self.model[name].clear()

        @rule(name=names)
        def delete_in_a_loop(self, name: str) -> None:
            for key in self.open[name]:
                del self.open[name][key]
            self.model[name].clear()

        @rule(name=names, key=st.sampled_from(["a", "b"]), value=values)
        def change_in_place(self, name: str, key: str, value: Any) -> None:
            with self.open[name].mutable(key, None) as old:
                new = [old, value]
                expected = self.model[name].get(key)
                assert same(repr(old), repr(expected)), f"{key!r} has changed."
            self.model[name].setdefault(key, None)  # `mutable` has set it.
            self.set(name, key, new[1])

        @rule(name=names)
        def close_and_open(self, name: str) -> None:
            self.open[name].close_storage()
            self.open_namespace(name)

        @rule()
        def restart(self) -> None:
            for storage in self.open.values():
                storage.close_storage()
            self.plugin = database.plugin()
            for name in NAMES:
                self.open_namespace(name)

        @invariant()
        def keys_and_len_agree(self) -> None:
            for name in NAMES:
                listed = islice(self.open[name], len(self.model[name]) + 1)
                assert sorted(listed) == sorted(self.model[name]), f"Keys of {name!r} differ."
                assert len(self.open[name]) == len(self.model[name]), (
                    f"The length of {name!r} differs."
                )

        def teardown(self) -> None:
            for name, storage in self.open.items():
                got = dict(islice(storage.items(), len(self.model[name]) + 1))
                for key in got | self.model[name]:
                    one, other = (values.get(key, "missing") for values in [got, self.model[name]])
                    assert same(repr(one), repr(other)), (
                        f"In the namespace {name!r}, the value of {key!r:.50} is {one!r:.100}, but"
                        f" was set to {other!r:.100}."
                    )
                storage.close_storage()

    return Storages


def check(database: Database, examples: int, *phases: Phase) -> None:
    """Run the state machine."""
    profile = settings(
        max_examples=examples,
        phases=[Phase.generate, *phases],
        stateful_step_count=30,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    numbers = count()
    run_state_machine_as_test(machine(database, numbers), settings=profile)


def test_random_operations_do_what_a_dict_does(database: Database) -> None:
    """Random operations give the same results as with a dict."""
    check(database, many(12, 4))


@pytest.mark.thorough
def test_many_random_operations_do_what_a_dict_does(database: Database) -> None:
    """Very many random operations give the same results as with a dict."""
    check(database, 300, Phase.shrink)
