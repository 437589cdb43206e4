"""Opens the storages that config.py files name, and reads their values as bytes."""

import dbm
import importlib.util
import os
import pickle
import re
import shutil
import sqlite3
import sys
import traceback
from collections.abc import Iterator
from configparser import Error as ConfigParserError
from contextlib import ExitStack, closing, contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

import click
from errbot.bootstrap import CORE_STORAGE, get_storage_plugin
from errbot.plugin_info import PluginInfo

from {{ cookiecutter.__package }} import values

SECRET = re.compile("pass|secret|key|token|url|uri|dsn|auth|cred", re.IGNORECASE)


class CannotRun(click.ClickException):
    """The command could not run. The message contains no secrets."""

    exit_code = 2


class Unreadable(Exception):
    """A value or a namespace cannot be moved. The message contains no values."""


def load_config(path: Path) -> Any:
    """Execute a config.py as Errbot does, and return it. What it prints goes to stderr."""
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if not path.is_file() or spec is None or spec.loader is None:
        raise CannotRun(f"There is no Python file {path}. Name the bot's config.py with -c.")
    config = importlib.util.module_from_spec(spec)
    before, paths = dict(sys.modules), list(sys.path)
    sys.modules[name] = config
    sys.path[:0] = [str(path.resolve().parent), os.getcwd()]
    try:
        with redirect_stdout(sys.stderr):
            spec.loader.exec_module(config)
    except (Exception, SystemExit) as error:
        raise CannotRun(f"{path} cannot be executed: {reason_of(error, path)}") from None
    finally:
        sys.path[:] = paths
        forget_imports(before, path.resolve().parent)
    return config


def forget_imports(before: dict[str, Any], folder: Path) -> None:
    """Forget what a config.py imported from its folder. Another one may use the same names."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if module is not before.get(name) and file and folder == Path(file).parent:
            del sys.modules[name]
    sys.modules.update(before)


def reason_of(error: BaseException, path: Path) -> str:
    """Return why a config.py cannot be executed, without anything that may be secret."""
    kind = type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{kind} in line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path.resolve())]
    where = f"{kind} in line {lines[-1]}" if lines else kind
    if isinstance(error, KeyError):
        return f"{where}: there is no {error}. If it is an environment variable, set it."
    if isinstance(error, ImportError):
        return f"{where}: no module named {error.name!r}"
    return where


def load_plugin(config: Any, path: Path) -> Any:
    """Start the storage plugin that a config.py names, as Errbot does."""
    name = getattr(config, "STORAGE", "Shelf")
    try:
        return get_storage_plugin(config)
    except Exception as error:
        given = getattr(config, "STORAGE_CONFIG", None)
        text = without_secrets(f"{type(error).__name__}: {error}", given)
        if not isinstance(getattr(config, "BOT_DATA_DIR", None), str | Path):
            text = "BOT_DATA_DIR, the folder for the bot's data, is not set"
        raise CannotRun(f"The storage {name!r} in {path} does not start: {text}") from None


def without_secrets(text: str, storage_config: object, secret: bool = False) -> str:
    """Return a text without the secrets of a STORAGE_CONFIG."""
    if isinstance(storage_config, dict):
        for key, value in storage_config.items():
            text = without_secrets(text, value, secret or bool(SECRET.search(str(key))))
    elif isinstance(storage_config, list | tuple):
        for value in storage_config:
            text = without_secrets(text, value, secret)
    elif isinstance(storage_config, str) and storage_config:
        with suppress(ValueError):
            if password := urlsplit(storage_config).password:
                for form in (password, unquote(password)):
                    text = text.replace(form, "***")
        text = text.replace(storage_config, "***") if secret else text
    return text


def open_here(path: Path) -> Any:
    """Start the storage plugin of the bot's config.py, which must be this one."""
    config = load_config(path)
    plugin = load_plugin(config, path)
    name = getattr(config, "STORAGE", "Shelf")
    if name != "{{ cookiecutter.plugin_name }}":
        raise CannotRun(
            f"{path} uses the storage {name!r}. Copy its data here with `move`, and then set"
            ' STORAGE = "{{ cookiecutter.plugin_name }}".'
        )
    return plugin


def open_source(path: Path) -> "Shelf | Sibling | Other":
    """Open the storage of an old config.py for reading."""
    config = load_config(path)
    if getattr(config, "STORAGE", "Shelf") == "Shelf":
        return Shelf(config, path)
    plugin = load_plugin(config, path)
    return Sibling(plugin) if hasattr(plugin, "namespaces") else Other(plugin, config)


class Sibling:
    """A plugin made with the same template: its bytes are read, and their signatures checked."""

    def __init__(self, plugin: Any) -> None:
        self._plugin = plugin

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces that hold a key."""
        return list(self._plugin.namespaces())

    @contextmanager
    def open(self, namespace: str) -> Iterator["SiblingNamespace"]:
        """Open a namespace for reading."""
        with closing(self._plugin.open(namespace)) as storage:
            yield SiblingNamespace(storage)


class SiblingNamespace:
    """A namespace of a storage plugin made with the same template."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self.keys = storage.keys
        self.len = storage.len

    def read(self, key: str) -> bytes:
        """Return a value without its signature. Raises Unreadable, or KeyError if there is none."""
        data: bytes = self._storage.read(key)
        if values.signed_by(self._storage, key, data):
            return data[: data.rindex(b".")]
        if self._storage._signing_keys or values.SIGNATURE.search(data):
            value = values.examine(self._storage, key, data)
            raise Unreadable(values.explain(self._storage, value))
        return data


class Other:
    """Any other storage plugin. It unpickles each value, and does not list its namespaces.

    So they are guessed: Errbot's own, and the names of all plugins that the bot may load.
    """

    def __init__(self, plugin: Any, config: Any) -> None:
        self._plugin = plugin
        self._config = config

    def namespaces(self) -> list[str]:
        """Return the names that the bot's namespaces may have."""
        backend = str(getattr(self._config, "BACKEND", "")).lower()
        names = {"core", "repomgr", f"{backend}_backend"}
        extra = getattr(self._config, "BOT_EXTRA_PLUGIN_DIR", None) or []
        extra = [extra] if isinstance(extra, str | Path) else extra
        own = Path(CORE_STORAGE).with_name("core_plugins")
        for folder in [own, Path(self._config.BOT_DATA_DIR, "plugins"), *map(Path, extra)]:
            for file in folder.rglob("*.plug"):
                with suppress(OSError, ValueError, ConfigParserError):
                    names.add(PluginInfo.load(file).name)
        return sorted(names)

    @contextmanager
    def open(self, namespace: str) -> Iterator["OtherNamespace"]:
        """Open a namespace for reading."""
        with ExitStack() as stack:
            try:
                storage = stack.enter_context(closing(self._plugin.open(namespace)))
                opened = OtherNamespace(storage)
            except Exception as error:  # The message may contain a secret.
                raise Unreadable(f"cannot be opened: {type(error).__name__}") from None
            yield opened


class OtherNamespace:
    """A namespace of any other storage plugin."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self._keys = list(storage.keys())

    def len(self) -> int:
        """Return the number of keys."""
        return len(self._keys)

    def keys(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._keys)

    def read(self, key: str) -> bytes:
        """Return a value, pickled again. Raises Unreadable, or KeyError if there is none."""
        try:
            return pickle.dumps(self._storage.get(key), protocol=5)
        except KeyError:
            raise
        except Exception as error:  # The message may contain a value.
            found = re.search(r"(No module \w+|(Can't get|has no) attribute) '[\w.]+'", str(error))
            raise Unreadable(found[0] if found else type(error).__name__) from None


class Shelf:
    """Errbot's default storage: one to three files for each namespace."""

    def __init__(self, config: Any, path: Path) -> None:
        given = getattr(config, "STORAGE_CONFIG", None) or {}
        folder = given.get("basedir") or getattr(config, "BOT_DATA_DIR", None)
        if not folder or not Path(folder).is_dir():
            raise CannotRun(f"The BOT_DATA_DIR in {path} is not a folder: {str(folder)!r}.")
        self._folder = Path(folder)

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces, from the names of their files."""
        names = set()
        for file in self._folder.iterdir():
            for ending in [r"\.db", r"\.db\.(?:dat|dir|pag|db)"]:
                if found := re.fullmatch(rf"(.*){ending}", file.name, re.DOTALL):
                    names.add(found[1])
        return sorted(filter(self._is_there, names))

    def _is_there(self, namespace: str) -> bool:
        """Return whether a namespace exists. If it cannot be read, it does: `move` reports it."""
        try:
            return self._format(namespace) is not None
        except OSError:
            return True

    def _format(self, namespace: str) -> str | None:
        """Return the module that wrote a file, "" if it is unknown, None if there is no file.

        Raises OSError if the file cannot be read, which `whichdb` would ignore.
        """
        file = self._folder / f"{namespace}.db"
        starts = {}
        for ending in ["", ".db", ".dat", ".dir", ".pag"]:
            part = Path(f"{file}{ending}")
            with suppress(FileNotFoundError, IsADirectoryError), part.open("rb") as opened:
                starts[ending] = opened.read(16)
        start = starts.get("")
        if is_berkeley_db(starts.get(".db", b"")):  # dbm.ndbm on Debian and macOS adds .db
            return "dbm.ndbm"
        if start and namespace.endswith(".db") and is_berkeley_db(start):
            return None  # It belongs to the namespace without .db.
        if start in (b"", b"SQLite format 3\0"):
            return "dbm.sqlite3"
        return dbm.whichdb(str(file))  # Python 3.10 takes no Path

    @contextmanager
    def open(self, namespace: str) -> Iterator["ShelfNamespace"]:
        """Open a namespace for reading. Raises Unreadable."""
        file, kind = self._folder / f"{namespace}.db", None
        with ExitStack() as stack:
            try:
                kind = self._format(namespace)
                keys, get = stack.enter_context(open_dbm(file, kind))
                opened = ShelfNamespace(keys(), get)
            except ImportError:
                raise Unreadable(
                    f"{file.name}: this Python has no {kind}; use one that has it"
                ) from None
            except Exception as error:  # any kind, because Python's dbm checks little
                reason = f"{type(error).__name__}: {error}"
                raise Unreadable(f"{file.name} cannot be read: {reason}") from None
            yield opened


def is_berkeley_db(start: bytes) -> bool:
    """Return whether a file with this start is one of Berkeley DB, old or new."""
    return bool({start[:4], start[12:16]} & {b"\x61\x15\x06\x00", b"\x00\x06\x15\x61"})


@contextmanager
def open_dbm(file: Path, kind: str | None) -> Iterator[tuple[Any, Any]]:
    """Open a file of a Shelf for reading, without changing it.

    Yields a function that returns all keys, and one that returns the value of a key.
    """
    if not kind:
        raise ValueError("this Python does not know its format; use the Python that wrote it")
    if kind != "dbm.sqlite3":
        with closing(importlib.import_module(kind).open(os.fspath(file), "r")) as database:
            yield database.keys, database.__getitem__
        return
    # This is the format of Python 3.13 and newer. Even to read it, SQLite may write files next to
    # it, and such a file may have the newest data. So read a copy.
    with TemporaryDirectory() as folder:
        for ending in ["", "-wal", "-journal"]:
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{file}{ending}", Path(folder, f"copy{ending}"))
        with closing(sqlite3.connect(Path(folder, "copy"))) as connection:
            yield partial(sqlite_keys, connection), partial(sqlite_value, connection)


def sqlite_keys(connection: sqlite3.Connection) -> list[bytes]:
    """Return all keys of an SQLite file of `dbm`, or none if it is not one."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'Dict'").fetchall():
        return []
    return [key for (key,) in connection.execute("SELECT CAST(key AS BLOB) FROM Dict")]


def sqlite_value(connection: sqlite3.Connection, key: bytes) -> bytes:
    """Return a value of an SQLite file of `dbm`. Raises KeyError if there is none."""
    query = "SELECT CAST(value AS BLOB) FROM Dict WHERE key = CAST(? AS BLOB)"
    for (value,) in connection.execute(query, [key]):
        return bytes(value)
    raise KeyError(key)


class ShelfNamespace:
    """A namespace of a Shelf."""

    def __init__(self, keys: list[bytes], get: Any) -> None:
        self._keys = [bytes(key).decode("utf-8", "surrogateescape") for key in keys]
        self._get = get

    def len(self) -> int:
        """Return the number of keys."""
        return len(self._keys)

    def keys(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._keys)

    def read(self, key: str) -> bytes:
        """Return a stored value. Raises Unreadable, or KeyError if there is none."""
        if re.search("[\udc80-\udcff]", key):
            raise Unreadable("its key is not UTF-8")
        try:
            return bytes(self._get(key.encode()))
        except (OSError, sqlite3.Error) as error:
            raise Unreadable(f"{type(error).__name__}: {error}") from None
