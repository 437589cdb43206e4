"""What operations return and raise. Other processes need this, so it does without pytest."""

from collections.abc import Callable
from typing import Any

from errbot.storage.base import StorageBase


def outcome(operation: Callable[..., object], *arguments: object) -> object:
    """Return the result of an operation, or the type of its error."""
    try:
        return operation(*arguments)
    except Exception as error:
        return type(error)


def refusal(operation: Callable[..., object], *arguments: object) -> type[Exception] | None:
    """Return the type of the error that an operation raises, or None."""
    try:
        operation(*arguments)
    except Exception as error:
        return type(error)
    return None


def contents(storage: StorageBase) -> dict[str, object]:
    """Return the contents of a namespace."""
    return {key: storage.get(key) for key in storage.keys()}


def same(got: Any, expected: Any) -> bool:
    """Return whether two values are equal.

    For long values: if an `assert` contains `==`, pytest shows the differences (under CI, line by
    line), and takes minutes to find those of thousands of lines.
    """
    return bool(got == expected)
