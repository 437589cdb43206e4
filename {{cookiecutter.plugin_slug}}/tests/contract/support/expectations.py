"""How a test says what it expects, and what a bot suffers without it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from errbot.storage.base import StorageBase

from contract.support.deadlines import at_once
from contract.support.sample_values import MARK


@contextmanager
def expect(error: type[Exception], why: str) -> Iterator[None]:
    """Pass when the block raises the error; fail with the reason when it raises none or another."""
    try:
        yield
    except error:
        return
    except Exception as other:
        pytest.fail(f"{why} It raised {type(other).__name__}: {other}")
    pytest.fail(f"{why} It raised nothing.")


@contextmanager
def taken(name: str) -> Iterator[None]:
    """Fail when the block refuses a key, or a name of a namespace, that every storage must hold."""
    try:
        yield
    except Exception as error:
        pytest.fail(
            f"The name {name!r:.60}, of {len(name)} characters, is refused, and a plugin that uses"
            f" it fails with {type(error).__name__}: {error!s:.200}. A storage holds up to 250"
            " characters of any kind but NUL and surrogates. Where the database does not, let a"
            " digest stand for the name, and keep the name beside the value."
        )


def outcome(operation: Callable[..., object], *arguments: object) -> object:
    """Return what an operation gives, or of which kind the error is that it raises."""
    try:
        return operation(*arguments)
    except Exception as error:
        return type(error)


def refusal(operation: Callable[..., object], *arguments: object) -> type[Exception] | None:
    """Return of which kind the error is that an operation raises, or None."""
    try:
        operation(*arguments)
    except Exception as error:
        return type(error)
    return None


def contents(storage: StorageBase) -> dict[str, object]:
    """Return all that a namespace holds."""
    return {key: storage.get(key) for key in storage.keys()}


def set_or_skip(storage: StorageBase, key: str, value: object) -> None:
    """Set a value, or skip the test if the storage refuses it: that is another test's matter."""
    if refused := refusal(storage.set, key, value):
        pytest.skip(f"the storage refuses the value that this takes, with a {refused.__name__}")


def skip_if_bound_to_its_thread(storage: StorageBase) -> StorageBase:
    """Skip a test if no other thread can use the storage, which one test tells for all.

    It sets "key".
    """
    if refusal(lambda: at_once(lambda: storage.set("key", MARK))):
        pytest.skip("only the thread that opened the storage can use it")
    return storage


def same(got: Any, expected: Any) -> bool:
    """Say whether they are equal.

    For what is long: of an `==` in an `assert` pytest shows the differences, line by line under CI,
    and takes minutes to find those of thousands of lines.
    """
    return bool(got == expected)
