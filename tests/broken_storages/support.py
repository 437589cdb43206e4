"""How storages are broken: what the files next to this one share."""

import fcntl
import inspect
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from traceback import clear_frames
from typing import Any, NamedTuple

log = logging.getLogger("errbot.storage.storage")


class Broken(NamedTuple):
    """A broken storage, and the tests that must catch it."""

    break_it: Callable[[Any, Any], None]
    caught_by: frozenset[str]
    alone: bool
    """Whether only this test of the contract may catch it, which shows that the test is needed."""
    outlives_process: bool
    """Whether it is visible only if the data outlive the process."""
    thorough: bool
    """Whether it is visible only with `-m thorough`."""
    connects: bool
    """Whether it is visible only if the plugin connects to a server. It is for Redis then."""


BROKEN: dict[str, Broken] = {}


def caught_by(
    *tests: str,
    alone: bool = False,
    outlives_process: bool = False,
    thorough: bool = False,
    connects: bool = False,
) -> Any:
    """Add a broken storage to the collection, with the names of the tests that must catch it."""

    def add(function: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        assert function.__name__ not in BROKEN, (
            f"Two broken storages are named {function.__name__}."
        )
        BROKEN[function.__name__] = Broken(
            function, frozenset(tests), alone, outlives_process, thorough, connects
        )
        return function

    return add


def replace(owner: Any) -> Any:
    """Replace the method of the same name. The new function gets the old method as first argument.

    If it raises, its frames are cleared: what a broken storage leaves there is not its fault.
    """

    def put(function: Any) -> Any:
        old = getattr(owner, function.__name__)

        @wraps(old)
        def method(self, *arguments):
            try:
                return function(old, self, *arguments)
            except Exception as error:
                clear_frames(error.__traceback__)
                del arguments
                raise

        setattr(owner, function.__name__, method)
        return function

    return put


def rename_keys(Storage: Any, rename: Callable[..., Any], *methods: str) -> None:
    """Make methods that take a key use another one instead: `rename(storage, key)`."""

    def renamed(old):
        @wraps(old)
        def method(self, key, *value):
            return old(self, rename(self, key), *value)

        return method

    for name in methods or ["get", "set", "remove"]:
        setattr(Storage, name, renamed(getattr(Storage, name)))


def config_class(Plugin: Any) -> Any:
    """Return the class of the plugin's STORAGE_CONFIG."""
    names = inspect.unwrap(Plugin.__init__).__globals__.values()
    return next(
        value
        for value in names
        if inspect.isclass(value) and value.__name__.endswith("Config") and hasattr(value, "load")
    )


def change_statement(Plugin: Any, name: str, old: str, new: str) -> None:
    """Change a constant of the plugin's module: a statement of SQL."""
    constants = inspect.unwrap(Plugin.__init__).__globals__
    assert old in constants[name], f"{name} does not contain {old}."
    constants[name] = constants[name].replace(old, new)


def value_or_none(storage: Any, key: str) -> Any:
    """Return the value of a key, or None if it no longer exists."""
    try:
        return storage.get(key)
    except Exception:
        return None


def bytes_or_none(storage: Any, key: str) -> bytes | None:
    """Return the stored bytes of a key, or None if it no longer exists."""
    try:
        return bytes(storage.read(key))
    except KeyError:
        return None


def keep_what_is_read_often(
    Storage: Any, kept: Callable[[Any], dict[str, Any]], often: int = 20
) -> None:
    """Answer from memory after so many reads of a key, until it is changed in `kept(storage)`."""

    @replace(Storage)
    def get(old, self, key):
        reads = kept(self).get(key, (0, b""))[0]
        if reads < often:
            data = self.read(key)
            kept(self)[key] = reads + 1, data if reads + 1 == often else b""
            del data
        # Another thread may just have changed the key. No local variable holds the value.
        return self._load(key, kept(self).get(key, (0, b""))[1] or self.read(key))

    def forgetting(old):
        @wraps(old)
        def method(self, key, *value):
            try:
                old(self, key, *value)
            finally:
                kept(self).pop(key, None)

        return method

    Storage.set, Storage.remove = forgetting(Storage.set), forgetting(Storage.remove)


def know_plugin(Plugin: Any) -> None:
    """Let each storage know its plugin instance."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.plugin = self
        return storage


def know_place(Plugin: Any) -> None:
    """Let each storage know its folder and namespace."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.folder = bot_config.BOT_DATA_DIR

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.place = self.folder, namespace
        return storage


def name_namespaces_after(Plugin: Any, name: Callable[[Any], object]) -> None:
    """Put what `name` finds in a bot's configuration, if anything, before each namespace."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.prefix = f"{name(bot_config)} ".lstrip()

    @replace(Plugin)
    def open(old, self, namespace):
        return old(self, f"{self.prefix}{namespace}")


def private(path: str, flags: int) -> int:
    """Open a file that only this account can access: an `opener` for `open`."""
    return os.open(path, flags, 0o600)


def remove_under_a_lock(Storage: Any, make_folder: bool) -> None:
    """Look for a key, and then remove it, both under a lock in the folder for temporary files."""

    @replace(Storage)
    def remove(old, self, key):
        folder = Path(tempfile.gettempdir())
        if make_folder:
            folder.mkdir(exist_ok=True)
        with open(folder / "errbot.lock", "w", opener=private) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.read(key)  # raises KeyError if it is not there
            with suppress(KeyError):
                old(self, key)


def lock_for_forks(kind: Callable[[], Any] = threading.RLock) -> Any:
    """Return a lock that is free in a forked process, whoever held it."""
    lock = kind()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)
    return lock


def own_lock(owner: Any) -> Any:
    """Return the lock of a storage or plugin, which is free in a forked process."""
    if "lock" not in vars(owner):
        vars(owner).setdefault("lock", lock_for_forks())
    return owner.lock


def lock_operations(Storage: Any, lock_of: Callable[[Any], Any], *names: str) -> None:
    """Run these operations under a lock: by default those of bytes, but not `keys`."""

    def locked(old):
        @wraps(old)
        def method(self, *arguments):
            with lock_of(self):
                return old(self, *arguments)

        return method

    for name in names or ["read", "write", "remove", "len"]:
        setattr(Storage, name, locked(getattr(Storage, name)))


def keep_large_values_apart(Storage: Any, name_of: Callable[[Any, str, bytes], str]) -> None:
    """Keep the bytes of large values under names of their own: `name_of(storage, key, data)`."""

    @replace(Storage)
    def write(old, self, key, data):
        if len(data) > 1_000_000:
            name = f"part {name_of(self, key, data)}"
            old(self, name, data)
            data = f"see {name}".encode()
        old(self, key, data)

    @replace(Storage)
    def read(old, self, key):
        data = bytes(old(self, key))
        return bytes(old(self, data[4:].decode())) if data.startswith(b"see part ") else data

    @replace(Storage)
    def keys(old, self):
        return (key for key in old(self) if not key.startswith("part "))
