"""`pytest --errbot-config` touches only data that its tests have set.

Each database contains more than a hundred thousand other keys, and each storage is broken in a way
that could lead tests to them.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import redis
import sqlalchemy
from errbot.bootstrap import get_storage_plugin
from pytest_cookies.plugin import Cookies
from servers.mariadb import MariaDB
from servers.postgresql import PostgreSQL
from servers.redis import Redis

OTHERS = ["shared", "a", "key", "Notes"]
"""Namespaces in use, with names that broken storages may access."""
KEYS = ["a", "b", "key", "unstorable"]
"""Keys in use, which tests set as well. `double` makes 131,072 of these 16."""
DOUBLED = "ABCDEFGHIJKLM"
DATABASES = [
    "sqlite",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ["redis", "postgresql"]),
    *(pytest.param(name, marks=pytest.mark.nightly) for name in ["sql on SQLite", "mariadb"]),
]

MIXED_UP = {
    "the namespace is forgotten": (
        """
_open = AcmePlugin.open
AcmePlugin.open = lambda self, namespace: _open(self, "shared")
""",
        "is not empty",
    ),
    "the namespace is what follows the last blank": (
        """
_open = AcmePlugin.open
AcmePlugin.open = lambda self, namespace: _open(self, namespace.rpartition(" ")[2] or "empty")
""",
        "is not empty",
    ),
    "a folder for each namespace": (
        """
import posixpath

_open = AcmePlugin.open
AcmePlugin.open = lambda self, namespace: _open(self, posixpath.normpath(namespace))
""",
        "",
    ),
    "the namespace is in lower case": (
        """
_open = AcmePlugin.open
AcmePlugin.open = lambda self, namespace: _open(self, namespace.lower())
""",
        "",
    ),
    "a removed key is removed everywhere": (
        """
_open, _remove = AcmePlugin.open, AcmeStorage.remove


def _open_all(self, namespace):
    storage = _open(self, namespace)
    storage.all = lambda: [_open(self, name) for name in self.namespaces()]
    return storage


def _remove_everywhere(self, key):
    _remove(self, key)
    for storage in self.all():
        try:
            _remove(storage, key)
        except KeyError:
            pass


AcmePlugin.open, AcmeStorage.remove = _open_all, _remove_everywhere
""",
        "`remove` of one reaches into the other",
    ),
    "it fails now and then, and when it is closed": (
        """
import itertools

_turns, _remove = itertools.count(1), AcmeStorage.remove


def _fail(self, *_):
    raise RuntimeError("the connection is gone")


def _remove_sometimes(self, key):
    return _fail(self) if next(_turns) % 40 == 0 else _remove(self, key)


AcmeStorage.remove, _close = _remove_sometimes, AcmeStorage.close
AcmeStorage.close = lambda self: _fail(self) if next(_turns) % 40 > 30 else _close(self)
""",
        "",
    ),
    "nothing is wrong": ("", ""),
}
"""Code that breaks a storage, and the message if the run stops because of it."""

TESTS = [
    "test_mapping.py",
    "test_namespaces.py::test_a_key_is_not_removed_from_another_namespace",
    "test_namespaces.py::test_namespaces_that_look_alike_are_told_apart",
    "test_lifecycle.py::test_a_removal_is_done_when_it_returns",
]
"""Tests that use the names and keys above, and remove them. All tests would take minutes."""


Rows = dict[tuple[bytes, bytes], bytes]
"""The contents of a database: values by namespace and key."""


class SqlRows:
    """The rows of the table `errbot`."""

    def __init__(self, url: str) -> None:
        self._engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        self._key = self._engine.dialect.identifier_preparer.quote("key")

    def double(self) -> None:
        """Double the rows repeatedly, with keys that are one letter longer."""
        longer = {
            "sqlite": "iif(typeof({0}) = 'text', {0} || '{1}', CAST({0} || '{1}' AS BLOB))",
            "postgresql": "{0} || '{1}'",
            "mysql": "CONCAT({0}, '{1}')",
        }[self._engine.name]
        with self._engine.begin() as connection:
            for letter in DOUBLED:
                key = longer.format(self._key, letter)
                insert = f"INSERT INTO errbot (namespace, {self._key}, value)"
                select = f"SELECT namespace, {key}, value FROM errbot"
                connection.execute(sqlalchemy.text(f"{insert} {select}"))

    def read(self) -> Rows:
        """Return all rows."""
        with self._engine.connect() as connection:
            select = sqlalchemy.text(f"SELECT namespace, {self._key}, value FROM errbot")
            return {
                (to_bytes(name), to_bytes(key)): to_bytes(value)
                for name, key, value in connection.execute(select)
            }


class RedisRows:
    """The fields of all hashes."""

    def __init__(self, url: str) -> None:
        self._server: Any = redis.Redis.from_url(url)

    def double(self) -> None:
        """Double the fields repeatedly, with keys that are one letter longer."""
        for name in self._server.keys():  # noqa: SIM118
            fields = self._server.hgetall(name)
            for letter in DOUBLED:
                fields |= {key + letter.encode(): value for key, value in fields.items()}
            self._server.hset(name, mapping=fields)

    def read(self) -> Rows:
        """Return all fields."""
        return {
            (name, key): value
            for name in self._server.keys()  # noqa: SIM118
            for key, value in self._server.hgetall(name).items()
        }


def to_bytes(value: Any) -> bytes:
    """Return a column's value, which is text or bytes, as bytes."""
    return value.encode() if isinstance(value, str) else bytes(value)


class Place(NamedTuple):
    """A database with existing data."""

    project: Path
    """A bake, whose storage tests may break."""
    config: Path
    """The bot's configuration."""
    rows: SqlRows | RedisRows

    def run(self, *options: object, tests: list[str] = TESTS) -> tuple[int, str]:
        """Check the storage. Returns pytest's exit status and output."""
        done = subprocess.run(self.command(*options, tests=tests), **self.how())
        return done.returncode, done.stdout

    def command(self, *options: object, tests: list[str] = TESTS) -> list[str]:
        """Return the command that checks the storage."""
        plugins = [f"-pno:{name}" for name in ["cacheprovider", "cookies", "xdist"]]
        paths = [f"tests/contract/{name}" for name in tests]
        pytest_itself = [sys.executable, "-m", "pytest", "-q", "--tb=line", *plugins]
        return [*pytest_itself, f"--errbot-config={self.config}", *map(str, options), *paths]

    def how(self) -> dict[str, Any]:
        """Return the options of the process that checks the storage."""
        environment = os.environ | {"PYTHONPATH": str(self.project / "tests")}
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return {"cwd": self.project, "env": environment, **out}

    def break_storage(self, code: str) -> None:
        """Break the storage."""
        with next(self.project.glob("src/*/storage.py")).open("a", encoding="utf-8") as source:
            source.write(code)

    def left(self) -> list[Path]:
        """Return the files that list what runs have left."""
        return list(self.project.glob("contract-*.jsonl"))


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Any]]:
    """Starts each server when it is first needed, in a folder that `nobody` can access."""
    made: dict[str, Any] = {"postgresql": PostgreSQL, "mariadb": MariaDB, "redis": Redis}
    running: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="servers-", ignore_cleanup_errors=True) as folder:

        def server(name: str) -> Any:
            if name not in running:
                running[name] = made[name](Path(folder, name))
                running[name].start()
            return running[name]

        yield server
        for one in running.values():
            one.stop()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let programs that a test starts obey Ctrl-C, which those that a shell starts by `&` ignore.

    Whether it is ignored is inherited, also from a run of CI in the background.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def place(
    name: str, cookies_session: Cookies, servers: Callable[[str], Any], tmp_path: Path
) -> Place:
    """The database of that name, with more than a hundred thousand other keys."""
    bakes = {"sqlite": "sqlite", "redis": "redis"}
    baked = cookies_session.bake(extra_context={"database": bakes.get(name, "sql")})
    assert baked.exception is None, baked.exception
    project = Path(shutil.copytree(baked.project_path, tmp_path / "project"))
    file = f"sqlite:///{tmp_path / 'errbot.sqlite3'}"
    rows: SqlRows | RedisRows
    if name == "sqlite":
        settings, rows = {}, SqlRows(file)
    elif name == "redis":
        server = servers(name)
        server.cli("flushall")
        settings, rows = {"url": server.url, "prefix": ""}, RedisRows(server.url)
    else:
        url = file
        if name != "sql on SQLite":
            url = sql_url(name, servers(name))
        settings, rows = {"url": url, "table": "errbot"}, SqlRows(url)
    config = tmp_path / "config.py"
    config.write_text(
        f"STORAGE = 'Acme'\nSTORAGE_CONFIG = {settings!r}\nBOT_DATA_DIR = {str(tmp_path)!r}\n"
        f"BOT_EXTRA_STORAGE_PLUGINS_DIR = {str(project / 'src')!r}\n",
        encoding="utf-8",
    )
    bot_config = SimpleNamespace(
        STORAGE="Acme",
        STORAGE_CONFIG=settings,
        BOT_DATA_DIR=str(tmp_path),
        BOT_EXTRA_STORAGE_PLUGINS_DIR=str(project / "src"),
    )
    plugin: Any = get_storage_plugin(bot_config)
    for namespace in OTHERS:
        storage = plugin.open(namespace)
        for key in KEYS:
            storage.set(key, [namespace, key])
    rows.double()
    return Place(project, config, rows)


def sql_url(name: str, server: Any) -> str:
    """Create a database on a server, and return its URL."""
    database = f"d{random.getrandbits(40)}"
    server.sql(f"CREATE DATABASE {database}")
    driver = {"postgresql": "postgresql+psycopg", "mariadb": "mysql+pymysql"}[name]
    return f"{driver}://admin@127.0.0.1:{server.port}/{database}"


@pytest.mark.parametrize("name", DATABASES)
@pytest.mark.parametrize(
    ("code", "stops"),
    [
        pytest.param(*case, id=bug, marks=pytest.mark.slow if number % 3 else [])
        for number, (bug, case) in enumerate(MIXED_UP.items())
    ],
)
def test_no_other_key_is_touched(place: Place, code: str, stops: str) -> None:
    before = place.rows.read()
    assert len(before) >= 100_000
    place.break_storage(code)
    status, output = place.run()
    after = place.rows.read()
    assert {row: after.get(row) for row in before} == before, output
    ours = after.keys() - before.keys()
    assert ours == set(), output
    assert not place.left(), output
    assert status == (1 if stops or " failed" in output or " error" in output else 0), output
    assert (stops in output and len(output.splitlines()) < 20) if stops else " passed" in output


CANNOT_REMOVE = """
_remove = AcmeStorage.remove


def _remove_some(self, key):
    if key == "key 0":
        raise RuntimeError("the connection is gone")
    _remove(self, key)


AcmeStorage.remove = _remove_some
"""


@pytest.mark.parametrize("name", ["sqlite"])
def test_keys_that_cannot_be_removed_are_listed_and_can_be_removed_later(place: Place) -> None:
    before = place.rows.read()
    whole = next(place.project.glob("src/*/storage.py")).read_text()
    place.break_storage(CANNOT_REMOVE)
    status, output = place.run("-k", "nothing_alike or case", tests=["test_namespaces.py"])
    left = place.rows.read().keys() - before.keys()
    [notes] = place.left()
    assert status == 1, output
    assert {key for _, key in left} == {b"key 0"}, output
    for namespace, _ in left:
        assert f"{namespace.decode()!r}: 'key 0'" in output
    assert f"--remove-left={notes}" in output

    next(place.project.glob("src/*/storage.py")).write_text(whole)
    status, output = place.run(f"--remove-left={notes}")
    assert status == 0, output
    assert place.rows.read() == before, output
    assert not place.left(), output


@pytest.mark.parametrize("name", ["sqlite"])
def test_an_invalid_list_of_keys_removes_nothing(place: Place) -> None:
    before = place.rows.read()
    notes = place.project / "contract-notes.jsonl"
    for text in ['["shared", "a"]\n', "[", "7\n"]:
        notes.write_text(text)
        status, output = place.run(f"--remove-left={notes}")
        assert (status, place.rows.read()) == (4, before), output
        assert f"--remove-left: {notes} does not contain notes of the tests" in output


@pytest.mark.parametrize("name", ["sqlite"])
@pytest.mark.parametrize(
    "signals",
    [
        ["SIGTERM"],
        *(
            pytest.param(signals, marks=pytest.mark.slow)
            for signals in [["SIGINT"] * 4, ["SIGTERM", "SIGINT"]]
        ),
    ],
    ids=str,
)
@pytest.mark.usefixtures("ctrl_c")
def test_a_run_that_is_interrupted_leaves_nothing(place: Place, signals: list[str]) -> None:
    before = place.rows.read()
    place.break_storage(
        "import time\n\n_close, _remove = AcmeStorage.close, AcmeStorage.remove\n"
        "AcmeStorage.remove = lambda self, key: (time.sleep(0.0005), _remove(self, key))[1]\n"
    )
    command = place.command("-k", "thousands", tests=["test_keys.py"])
    with subprocess.Popen(command, **place.how()) as process:
        deadline = time.monotonic() + 30
        while len(place.rows.read()) < len(before) + 3_000:
            assert time.monotonic() < deadline, "The test has not begun."
        for name in signals:
            process.send_signal(getattr(signal, name))
            time.sleep(0.5)
        output, _ = process.communicate(timeout=60)
    # A second Ctrl-C, while pytest reports the first, ends pytest itself.
    assert process.returncode in (2, -signal.SIGINT), output
    assert place.rows.read() == before, output
    assert not place.left(), output


@pytest.mark.parametrize("name", ["sqlite"])
def test_an_unusable_configuration_is_reported_in_one_sentence(place: Place) -> None:
    sound = place.config.read_text()
    for line, words in {
        "STORAGE = 'Acmee'": "loading it fails before any test: PluginNotFoundException",
        "STORAGE_CONFIG = {'paht': 'x'}": "loading it fails before any test: ValueError: ",
        "import nothing_of_that_name": "fails with ModuleNotFoundError",
    }.items():
        place.config.write_text(f"{sound}{line}\n")
        status, output = place.run()
        assert status in (1, 4), output
        assert words in output
        assert len(output.splitlines()) < 20, output
        assert "Traceback" not in output
