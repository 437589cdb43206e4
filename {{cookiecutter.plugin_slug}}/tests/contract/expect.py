"""How a test says which error it expects, and what a bot suffers without it."""

from collections.abc import Iterator
from contextlib import contextmanager

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
