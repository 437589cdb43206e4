"""Rows that someone has planted in the database, and the warning about a missing signing key."""

import importlib.util
import logging
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from errbot.storage import StoreException
from pytest_cookies.plugin import Cookies
from servers.mariadb import SCHEME, MariaDB
from servers.postgresql import PostgreSQL
from servers.redis import Redis

SERVERS = ["postgresql", "mariadb", "redis"]
MARIADB = pytest.param("mariadb", marks=pytest.mark.slow)
NO_UTF8 = b"\xff\xfe"
HUGE = 5_000_000_000_000_000
"""bytes() with this number would try to use that much memory."""

Start = Callable[..., Any]
"""Starts the storage plugin on a database, with more keys of STORAGE_CONFIG."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for servers. `nobody`, who may run them, cannot access pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="servers-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def postgresql(folder: Path) -> Iterator[str]:
    """The URL of a PostgreSQL server."""
    server = PostgreSQL(folder / "postgresql")
    server.start()
    server.add_account("bot", "password", "bot")
    yield f"postgresql://bot:password@127.0.0.1:{server.port}/bot"
    server.stop()


@pytest.fixture(scope="module")
def mariadb(folder: Path) -> Iterator[str]:
    """The URL of a MariaDB or MySQL server."""
    server = MariaDB(folder / "mariadb")
    server.start()
    server.add_account("bot", "password", "bot")
    yield f"{SCHEME}://bot:password@127.0.0.1:{server.port}/bot"
    server.stop()


@pytest.fixture(scope="module", name="redis")
def redis_url(folder: Path) -> Iterator[str]:
    """The url of a Redis server."""
    server = Redis(folder / "redis")
    server.start()
    yield f"redis://127.0.0.1:{server.port}/0"
    server.stop()


@pytest.fixture
def start(cookies: Cookies, tmp_path: Path, request: pytest.FixtureRequest) -> Start:
    """Start a bake's plugin on a database: sqlite, sql, or the name of a server."""

    def start(name: str, **more: Any) -> Any:
        database = name if name in ("sqlite", "redis") else "sql"
        url = {"url": request.getfixturevalue(name)} if name in SERVERS else {}
        baked = cookies.bake(extra_context={"database": database})
        assert baked.exception is None, baked.exception
        file = next(Path(baked.project_path).glob("src/*/storage.py"))
        spec = importlib.util.spec_from_file_location("errbot.storage.storage", file)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = SimpleNamespace(STORAGE_CONFIG=url | more, BOT_DATA_DIR=str(tmp_path))
        return module.AcmePlugin(config)

    return start


def open_with_keys(plugin: Any) -> Any:
    """Open a namespace with keys that sort before and after the planted ones."""
    storage = plugin.open("namespace")
    for key in ["", "0", "key", "\U0001f600"]:
        storage.set(key, [key])
    return storage


def check_the_rest(plugin: Any, storage: Any) -> None:
    """Check that everything except the planted rows still works."""
    assert set(storage.keys()) >= {"", "0", "key", "\U0001f600"}
    for key in ["", "0", "key", "\U0001f600"]:
        assert storage.get(key) == [key]
    storage.set("new", 1)
    storage.remove("new")
    assert storage.len() >= 4
    assert plugin.namespaces() == ["namespace"]


@pytest.mark.parametrize("value", [HUGE, 5, 0.5, "text", "", b"", b"\x80"], ids=repr)
@pytest.mark.parametrize(
    ("name", "file", "table"),
    [("sqlite", "errbot.sqlite3", "errbot"), ("sql", "errbot_storage.sqlite", "errbot_storage")],
)
def test_a_value_of_another_type_is_refused(
    start: Start, tmp_path: Path, name: str, file: str, table: str, value: object
) -> None:
    plugin = start(name)
    storage = open_with_keys(plugin)
    storage.set("planted", 1)
    with closing(sqlite3.connect(tmp_path / file)) as other, other:
        changed = other.execute(
            f"UPDATE {table} SET value = ? WHERE CAST(key AS BLOB) = ?", [value, b"planted"]
        )
        assert changed.rowcount == 1
    with pytest.raises(StoreException, match="'planted' in the namespace 'namespace'"):
        storage.get("planted")
    check_the_rest(plugin, storage)
    storage.set("planted", 2)
    assert storage.get("planted") == 2


@pytest.mark.parametrize("key", [NO_UTF8, 5, "text", 0.5], ids=repr)
@pytest.mark.parametrize("of", ["key", "namespace"])
@pytest.mark.parametrize(
    ("name", "file", "table"),
    [("sqlite", "errbot.sqlite3", "errbot"), ("sql", "errbot_storage.sqlite", "errbot_storage")],
)
def test_a_name_of_another_type_is_skipped(
    start: Start, tmp_path: Path, name: str, file: str, table: str, of: str, key: object
) -> None:
    plugin = start(name)
    storage = open_with_keys(plugin)
    place = "CAST('namespace' AS BLOB), ?" if of == "key" else "?, CAST('key' AS BLOB)"
    if name == "sqlite":  # Its names are text, so plant other types.
        planted = "CAST(? AS TEXT)" if key == NO_UTF8 else "CAST(? AS BLOB)"
        planted = planted if isinstance(key, bytes | str) else "?"
        place = f"'namespace', {planted}" if of == "key" else f"{planted}, 'key'"
    with closing(sqlite3.connect(tmp_path / file)) as other, other:
        other.execute(f"INSERT INTO {table} VALUES ({place}, x'00')", [key])
    check_the_rest(plugin, storage)


@pytest.mark.parametrize("of", ["key", "namespace"])
@pytest.mark.parametrize("name", ["postgresql", MARIADB])
def test_a_name_that_is_not_utf8_is_skipped_on_a_server(
    start: Start, request: pytest.FixtureRequest, name: str, of: str
) -> None:
    table = f"planted_{of}"
    plugin = start(name, table=table)
    storage = open_with_keys(plugin)
    row = [b"namespace", NO_UTF8] if of == "key" else [NO_UTF8, b"key"]
    url = sa.make_url(request.getfixturevalue(name))
    driver = {"postgresql": "postgresql+psycopg", "mariadb": f"{SCHEME}+pymysql"}[name]
    engine = sa.create_engine(url.set(drivername=driver))
    with engine.begin() as other:
        insert = sa.text(f"INSERT INTO {table} VALUES (:namespace, :key, :value)")
        other.execute(insert, {"namespace": row[0], "key": row[1], "value": b"\0"})
    engine.dispose()
    check_the_rest(plugin, storage)


def test_other_keys_in_redis_are_skipped(start: Start, request: pytest.FixtureRequest) -> None:
    plugin = start("redis")
    storage = open_with_keys(plugin)
    with redis.Redis.from_url(request.getfixturevalue("redis")) as other:
        other.hset("errbot:namespace", NO_UTF8.decode("latin-1"), "text")
        for field in [("errbot:namespace", NO_UTF8), (b"errbot:" + NO_UTF8, "key")]:
            other.hset(*field, b"\0")
        other.set("errbot:text", "text")
        other.lpush("errbot:list", "text")
    check_the_rest(plugin, storage)
    for name in ["text", "list"]:
        foreign = plugin.open(name)
        calls: list[tuple[Any, list[Any]]] = [(foreign.get, ["key"]), (foreign.set, ["key", 1])]
        for operation, arguments in calls:
            with pytest.raises(StoreException, match="WRONGTYPE"):
                operation(*arguments)
        with pytest.raises(StoreException, match="WRONGTYPE"):
            foreign.len()
    check_the_rest(plugin, storage)


@pytest.mark.parametrize("signing_key", [None, "k" * 16, ["k" * 16, "l" * 16]], ids=repr)
@pytest.mark.parametrize("name", ["sqlite", "sql", "postgresql", MARIADB, "redis"])
def test_a_server_without_a_signing_key_is_a_warning(
    start: Start, caplog: pytest.LogCaptureFixture, name: str, signing_key: object
) -> None:
    start(name)  # creates the table, with a warning
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    start(name, **({"signing_key": signing_key} if signing_key else {}))
    warned = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    if name in SERVERS and not signing_key:
        assert len(warned) == 1, warned
        assert "signing_key" in warned[0]
        assert "run code" in warned[0]
    else:
        assert warned == []
