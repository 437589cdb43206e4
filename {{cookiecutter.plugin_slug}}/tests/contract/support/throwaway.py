"""With --errbot-config, the tests record what they set, remove it by name, and touch nothing else.

A database in use contains others' data, which the storage under test may confuse with those of the
tests. So each namespace of the tests must be empty when it is first opened, each key is recorded in
a file before it is set, and only recorded keys are removed.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, cast
from uuid import uuid4

from errbot.storage.base import StorageBase, StoragePluginBase

from contract.support.outcomes import outcome

PREFIX = "contract "
"""The beginning of the name of each of the tests' namespaces."""
PATIENCE = 30
"""Seconds without any progress after which the clean-up gives up."""


class NotEmptyError(Exception):
    """A namespace of the tests contains what they have not set. The run stops."""


class Notes:
    """The keys that the tests have set and not yet removed, by namespace, in a file of JSON lines.

    Other processes of the tests append to the same file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stopped = ""
        """Why the run must stop, if it must. Then nothing more is removed."""
        self.admission = threading.Lock()
        """Held while a namespace is checked for the first time, so no other thread sets keys."""
        self.sets = 0
        """How often the tests have set a key in this process."""
        self._keys: dict[str, set[str]] = {}
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)

    def add(self, namespace: str, *keys: object) -> None:
        """Record that a namespace is opened, and which keys will be set in it."""
        known = self._keys.setdefault(namespace, set())
        new = {text for key in keys for text in texts(key)} - known
        # Escaped, an emoji and its two lone surrogates would look the same.
        line = f"{json.dumps([namespace, *new], ensure_ascii=False)}\n"
        os.write(self._file, line.encode("utf-8", "surrogatepass"))
        known |= new

    def forget(self, namespace: str, key: object) -> None:
        """Keep a removed key only in the file, so that it takes no memory."""
        self._keys.get(namespace, set()).difference_update(texts(key))

    def knows(self, namespace: str) -> bool:
        """Return whether this process has recorded a namespace."""
        return namespace in self._keys

    def holds(self, namespace: str, key: object) -> bool:
        """Return whether this process has recorded a key."""
        return texts(key) <= self._keys.get(namespace, set())

    def read(self) -> dict[str, set[str]]:
        """Return what all processes have recorded. Raises ValueError if the file is invalid."""
        noted: dict[str, set[str]] = {}
        text = self.path.read_text("utf-8", "surrogatepass")
        for line in filter(None, text.split("\n")):
            namespace, *keys = json.loads(line)
            if not namespace.startswith(PREFIX):
                raise ValueError(f"{namespace!r} is not a namespace of the tests.")
            noted.setdefault(namespace, set()).update(keys)
        return noted

    def replace(self, left: dict[str, set[str]]) -> None:
        """Replace all notes by what is left."""
        self._keys = {}
        os.truncate(self.path, 0)
        for namespace, keys in left.items():
            self.add(namespace, *keys)

    def close(self) -> None:
        """Stop recording, and remove the file if it is empty."""
        os.close(self._file)
        if not self.path.stat().st_size:
            self.path.unlink()


def texts(key: object) -> set[str]:
    """Return the names under which a storage may store a given key."""
    if isinstance(key, str):
        return {str.__str__(key)}  # has its own class, which may have a different `__str__`
    return {str(key), key.decode()} if isinstance(key, bytes) else {str(key)}


class Wrapper:
    """Behaves like the storage or plugin that it wraps."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def __bool__(self) -> bool:
        return bool(self._wrapped)

    @property
    def __class__(self) -> Any:
        return type(self._wrapped)

    @__class__.setter
    def __class__(self, _value: object) -> None:
        raise AttributeError("__class__")


class TrackedStorage(Wrapper):
    """A storage that records keys before it sets them."""

    def __init__(self, storage: StorageBase, namespace: str, notes: Notes) -> None:
        super().__init__(storage)
        self._namespace = namespace
        self._notes = notes

    def set(self, key: str, value: object) -> None:
        """Record the key, and set it."""
        if not self._notes.holds(self._namespace, key):
            self._notes.add(self._namespace, key)
        self._notes.sets += 1
        self._wrapped.set(key, value)

    def remove(self, key: str) -> None:
        """Remove the key, and forget it."""
        self._wrapped.remove(key)
        self._notes.forget(self._namespace, key)


class TrackedPlugin(Wrapper):
    """A storage plugin that opens only empty namespaces, and records what is set in them."""

    def __init__(self, plugin: StoragePluginBase, notes: Notes) -> None:
        super().__init__(plugin)
        self._notes = notes

    def open(self, namespace: str) -> StorageBase:
        """Open a namespace. Raises NotEmptyError if it contains what the tests have not set."""
        storage = self._wrapped.open(namespace)
        with self._notes.admission:
            if not self._notes.knows(namespace):
                self._admit(storage, namespace)
        return cast(StorageBase, TrackedStorage(storage, namespace, self._notes))

    def _admit(self, storage: StorageBase, namespace: str) -> None:
        """Record a namespace if it is empty or another process of the tests has recorded it."""

        def is_noted_or_ours() -> bool:
            noted = self._notes.read()
            return namespace in noted or is_ours(self._wrapped, storage, noted)

        # Again, because another process may have recorded it and set a key meanwhile.
        if not is_noted_or_ours() and not is_noted_or_ours():
            storage.close()
            self._notes.stopped = (
                f"The new namespace {namespace!r} is not empty: the storage mixes up namespaces,"
                " and to go on could harm the data of others. Nothing was removed."
            )
            raise NotEmptyError(self._notes.stopped)
        self._notes.add(namespace)


def is_ours(plugin: StoragePluginBase, storage: StorageBase, noted: dict[str, set[str]]) -> bool:
    """Return whether a namespace that was never opened is empty, or an alias of one of ours.

    It is an alias if it shows what is set in one of ours now. That namespace was empty when it was
    first opened, so everything in it is ours.
    """
    ours = set().union(*noted.values())
    shown = set(islice(storage.keys(), len(ours) + 1))
    if storage.len() > len(ours) or not shown <= ours:
        return False
    if not shown:
        return True
    for namespace in [namespace for namespace, keys in noted.items() if keys & shown]:
        other, key = plugin.open(namespace), f"probe {uuid4().hex}"
        try:
            other.set(key, None)
            if key in islice(storage.keys(), len(ours) + 2):
                return True
        finally:
            with suppress(Exception):
                other.remove(key)
            other.close()
    return False


@contextmanager
def shielded() -> Iterator[list[int]]:
    """Delay Ctrl-C and SIGTERM until the block has ended. Yields the signals received."""
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _frame: came.append(number))
        for number in [signal.SIGINT, signal.SIGTERM]
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def clean(notes: Notes, load: Callable[[], StoragePluginBase], attempts: int = 1) -> None:
    """Remove the recorded keys one by one, despite errors. Records what is left.

    It works in a thread, because a storage may hang.
    """
    left = notes.read()
    progress = [monotonic()]

    def remove_all() -> None:
        plugin = load()
        for namespace in list(left):
            with suppress(Exception):
                storage = plugin.open(namespace)
                if remove_keys(storage, left[namespace], progress):
                    del left[namespace]
                storage.close()

    def try_again() -> None:
        for _ in range(attempts):
            with suppress(Exception):
                remove_all()

    thread = threading.Thread(target=try_again, daemon=True)
    thread.start()
    while thread.is_alive() and monotonic() < progress[0] + PATIENCE:
        thread.join(1)
    notes.replace({namespace: set(keys) for namespace, keys in dict(left).items()})


def remove_keys(storage: StorageBase, keys: set[str], progress: list[float]) -> bool:
    """Remove keys from a storage and from the set. Returns whether the storage is then empty."""
    for key in list(keys):
        with suppress(Exception):
            with suppress(KeyError):  # It is already gone.
                storage.remove(key)
            keys.discard(key)
            progress[0] = monotonic()
    # If the storage refuses the key in `remove`, as it did in `set`, the key does not exist.
    return not list(islice(storage.keys(), 1)) and not (keys and storage.len())


def check_isolation(plugin: StoragePluginBase, first: str, second: str) -> str:
    """Return the operation that reaches from one new namespace into another, or ""."""
    one, other = plugin.open(first), plugin.open(second)
    key = f"probe {uuid4().hex}"
    one.set(key, "one")
    found = {"`keys`": key in islice(other.keys(), 9), "`len`": other.len() > 0}
    with suppress(KeyError):
        found["`get`"] = other.get(key) == "one"
    with suppress(KeyError):
        other.remove(key)
    if outcome(one.get, key) == "one":
        other.set(key, "other")
        found["`set`"] = one.get(key) == "other"
        other.remove(key)  # It may look for the key in its own namespace first.
    found["`remove`"] = outcome(one.get, key) not in ["one", "other"]
    for storage in [one, other]:
        with suppress(KeyError):
            storage.remove(key)
        storage.close()
    return " and ".join(operation for operation, reaches in found.items() if reaches)


def describe(left: dict[str, set[str]], notes: Notes) -> Iterator[str]:
    """Return lines that list the keys that could not be removed, and how to remove them."""
    count = sum(map(len, left.values()))
    yield f"{count} keys in {len(left)} namespaces of the tests were not removed:"
    for namespace, keys in islice(left.items(), 20):
        names = ", ".join(repr(key[:50]) for key in islice(sorted(keys), 10))
        names += f" and {len(keys) - 10} more" * (len(keys) > 10)
        yield f"  {namespace!r}: {names or 'it shows keys under names that no test has set'}"
    if len(left) > 20:
        yield f"  and {len(left) - 20} more namespaces"
    yield (
        f"{notes.path} lists all of them. To remove them later, give --remove-left={notes.path}"
        " beside --errbot-config."
    )


def read_notes(path: Path) -> Notes:
    """Return the notes of an earlier run. Raises ValueError if they are invalid."""
    why = "there is no such file"
    if path.is_file():
        notes = Notes(path)
        try:
            notes.read()
        except (ValueError, TypeError, AttributeError) as error:
            why = str(error)
        else:
            return notes
    raise ValueError(f"--remove-left: {path} does not contain notes of the tests: {why}")
