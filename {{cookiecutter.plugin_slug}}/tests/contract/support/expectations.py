"""How a test says what it expects, and what a bot would suffer otherwise."""

from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

import pytest
from errbot.storage.base import StorageBase

from contract.support.deadlines import at_once
from contract.support.outcomes import refusal
from contract.support.sample_values import MARK


@contextmanager
def expect(error: type[Exception], why: str) -> Iterator[None]:
    """Pass if the block raises the error. Otherwise fail with the reason."""
    try:
        yield
    except error:
        return
    except Exception as other:
        pytest.fail(f"{why} It raised {type(other).__name__}: {other}")
    pytest.fail(f"{why} It raised nothing.")


@contextmanager
def taken(name: str) -> Iterator[None]:
    """Fail if the block refuses a key or namespace that every storage must accept."""
    try:
        yield
    except Exception as error:
        pytest.fail(
            f"The name {name!r:.60}, of {len(name)} characters, is refused, so a plugin that uses"
            f" it fails with {type(error).__name__}: {error!s:.200}. A storage accepts up to 250"
            " characters of any kind except NUL and surrogates. If the database does not, store a"
            " digest as the name, and keep the name beside the value."
        )


def set_or_skip(storage: StorageBase, key: str, value: object) -> None:
    """Set a value, or skip the test if the storage refuses it, which another test checks."""
    if refused := refusal(storage.set, key, value):
        pytest.skip(f"the storage refuses this test's value, with a {refused.__name__}")


def skip_if_threads_fail(storage: StorageBase) -> StorageBase:
    """Skip a test if other threads cannot use the storage, which another test reports.

    It sets "key".
    """
    if refusal(lambda: at_once(lambda: storage.set("key", MARK))):
        pytest.skip("only the thread that opened the storage can use it")

    def use(key: str) -> None:
        for turn in range(30):
            storage.set(key, [MARK, key, turn])  # Equal values are for another test.
            storage.get(key)
        storage.remove(key)

    if refusal(lambda: at_once(*(partial(use, f"thread {number}") for number in range(4)))):
        pytest.skip("threads that use the storage at the same time fail")
    return storage


def skip_if_misses_pass(storage: StorageBase) -> None:
    """Skip a test that needs `remove` to say whether the key existed, which another test checks."""
    if not refusal(storage.remove, "missing"):
        pytest.skip("`remove` of a missing key raises nothing")


def shows(text: str, secret: str) -> bool:
    """Return whether a text shows a secret, or nearly all of it in hexadecimal or base64."""
    texts = f"{text}\n{text.lower()}"
    return any(form in texts for form in forms_of(secret))


@cache
def forms_of(secret: str) -> list[str]:
    """Return how a text may show a secret. Other forms of a short one may appear by chance."""
    data = secret.encode()
    if len(data) < 12:
        return [secret]
    # In base64, three bytes are four characters, so it depends on where the secret begins.
    encoded = [b64encode(data[start:][: len(data) // 3 * 3 - 3]).decode() for start in range(3)]
    return [secret, data.hex(), *encoded]
