"""How a test says what it expects, and what a bot suffers without it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


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
    except ValueError as error:
        pytest.fail(
            f"The name {name!r} was refused, and a plugin that uses it fails: {error} A storage"
            " holds up to 250 characters of any kind but NUL and surrogates. Where the database"
            " takes fewer, let a digest stand for a long name, and keep the name beside the value."
        )


def same(got: Any, expected: Any) -> bool:
    """Say whether they are equal.

    For what is long: of an `==` in an `assert` pytest shows the differences, line by line under CI,
    and takes minutes to find those of thousands of lines.
    """
    return bool(got == expected)
