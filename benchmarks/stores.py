"""What is measured: Errbot's storages, every bake, the bare clients, and two packages from PyPI.

All of them do the same work through the same methods. A bare client is code without a storage: it
uses the same table or hash and the same pickles, but its own way to look for a key and to clear. No
storage on top of it can be faster.
"""

import dbm
import importlib
import importlib.util
import pickle
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import diskcache
import psycopg
import pymysql
import redis
import sqlitedict
from cookiecutter.main import cookiecutter
from errbot.storage import StoreMixin
from errbot.storage.base import StoragePluginBase
from errbot.storage.memory import MemoryStoragePlugin
from errbot.storage.shelf import ShelfStoragePlugin

TEMPLATE = Path(__file__).parent.parent
sys.path.append(str(TEMPLATE / "tests"))

from servers.mariadb import MariaDB  # noqa: E402
from servers.postgresql import PostgreSQL  # noqa: E402
from servers.redis import Redis  # noqa: E402

PASSWORD = "figures-only"  # not a word of an error, in which the contract looks for it
PAGE = 10_000  # keys that are added at once


def key(number: int) -> str:
    """Return the key with this number."""
    return f"key {number}"


class Store(Protocol):
    """One open namespace."""

    def get(self, key: str) -> Any: ...
    def set(self, key: str, value: Any) -> None: ...
    def remove(self, key: str) -> None: ...
    def contains(self, key: str) -> bool: ...
    def len(self) -> int: ...
    def first(self) -> str: ...
    def keys(self) -> Iterable[str]: ...
    def clear(self) -> None: ...
    def close(self) -> None: ...


Fill = Callable[[Any, str, int, int, Any], None]
"""Adds keys with a range of numbers to an open namespace of that name, all with the same value."""


@dataclass
class Candidate:
    """Something to measure."""

    name: str
    kind: str
    """`errbot`, `bake`, `bare` or `peer`."""
    place: str
    """Where the data are: in memory, in a file, or the name of the server."""
    open: Callable[[str], Store]
    fill: Fill
    bare: str = ""
    """The bare client of the same database."""
    per_thread: bool = False
    """Whether each thread needs its own connection."""
    start: dict[str, Any] | None = None
    """The settings in config.py to start a bot on it."""
    project: Path | None = None
    """The baked project."""
    url: str = ""
    """The server for the project's tests."""


def fill_by_set(store: Store, _namespace: str, start: int, stop: int, value: Any) -> None:
    """Add keys one by one."""
    for number in range(start, stop):
        store.set(key(number), value)


class ErrbotStore:
    """A storage as Errbot uses it, with `in` and `clear` from `StoreMixin`."""

    def __init__(self, plugin: StoragePluginBase, namespace: str) -> None:
        self.storage: Any = plugin.open(namespace)
        self.mapping: Any = StoreMixin()
        self.mapping.open_storage(SimpleNamespace(open=lambda _name: self.storage), namespace)
        self.get, self.set = self.storage.get, self.storage.set
        self.remove, self.len, self.keys = self.storage.remove, self.storage.len, self.storage.keys
        self.contains, self.clear = self.mapping.__contains__, self.mapping.clear
        self.close = self.storage.close

    def first(self) -> str:
        """Return the first key, as `popitem` does."""
        return str(next(iter(self.storage.keys())))


def shelf(folder: Path, module: str) -> Candidate:
    """Errbot's Shelf with one of the dbm modules."""
    (folder / module).mkdir()
    plugin = ShelfStoragePlugin(SimpleNamespace(STORAGE_CONFIG={}, BOT_DATA_DIR=folder / module))

    def open_shelf(namespace: str) -> Store:
        chosen = importlib.import_module(module)
        dbm._defaultmod = dbm._modules[module] = chosen  # type: ignore[attr-defined]
        return ErrbotStore(plugin, namespace)

    start = {"STORAGE": "Shelf"} if module == dbm_modules()[0] else None
    return Candidate(f"Shelf, {module}", "errbot", "file", open_shelf, fill_shelf, start=start)


def fill_shelf(store: Any, namespace: str, start: int, stop: int, value: Any) -> None:
    """Add keys one by one, but in one transaction if the Shelf is an SQLite file."""
    connection = getattr(store.storage.shelf.dict, "_cx", None)
    if connection:
        connection.execute("BEGIN")
    fill_by_set(store, namespace, start, stop, value)
    if connection:
        connection.execute("COMMIT")


def dbm_modules() -> list[str]:
    """Return the dbm modules that this Python has. Python uses the first for new files."""
    found = []
    for name in dbm._names:  # type: ignore[attr-defined]
        with suppress(ImportError):
            found.append(importlib.import_module(name).__name__)
    return found


def memory() -> Candidate:
    """Errbot's Memory."""
    plugin = MemoryStoragePlugin(SimpleNamespace(STORAGE_CONFIG={}))

    def open_memory(namespace: str) -> Store:
        return ErrbotStore(plugin, namespace)

    start = {"STORAGE": "Memory"}
    return Candidate("Memory", "errbot", "memory", open_memory, fill_by_set, start=start)


class Projects:
    """Bakes each database once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.baked: dict[str, Path] = {}

    def bake(self, database: str) -> Path:
        """Return the project of a database."""
        if database not in self.baked:
            answers, where = {"database": database}, self.folder / database
            project = cookiecutter(
                str(TEMPLATE), None, True, answers, output_dir=str(where), accept_hooks=False
            )
            self.baked[database] = Path(project)
        return self.baked[database]

    def candidate(
        self, name: str, database: str, place: str, fill: Fill, bare: str = "", **config: Any
    ) -> Candidate:
        """Start the plugin of a bake."""
        project = self.bake(database)
        file = next(project.glob("src/*/storage.py"))
        spec = importlib.util.spec_from_file_location("errbot.storage.storage", file)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config["timeout"] = 60.0
        settings = {"STORAGE_CONFIG": config, "BOT_DATA_DIR": str(self.folder)}
        plugin = module.AcmePlugin(SimpleNamespace(**settings))

        def open_ours(namespace: str) -> Store:
            return ErrbotStore(plugin, namespace)

        start: dict[str, Any] = {
            "STORAGE": "Acme",
            "BOT_EXTRA_STORAGE_PLUGINS_DIR": str(file.parent.parent),
        }
        start |= {"STORAGE_CONFIG": config}
        url = "" if place == "file" else config.get("url", "")
        return Candidate(
            name, "bake", place, open_ours, fill, bare, start=start, project=project, url=url
        )


def stored(store: Any, value: Any) -> bytes:
    """Return the bytes that a storage stores for a value."""
    store.set("sample", value)
    data: bytes = store.storage.read("sample")
    store.remove("sample")
    return data


def fill_bytes(store: Any, _namespace: str, start: int, stop: int, value: Any) -> None:
    """Add keys by writing bytes."""
    data = stored(store, value)
    for number in range(start, stop):
        store.storage.write(key(number), data)


def fill_sqlite(file: Path, table: str, *, encoded: bool) -> Fill:
    """Add keys in one transaction."""

    def fill(_store: Any, namespace: str, start: int, stop: int, value: Any) -> None:
        data = pickle.dumps(value, protocol=5)
        name: Any = namespace.encode() if encoded else namespace
        names = (key(number) for number in range(start, stop))
        rows = ((name, text.encode() if encoded else text, data) for text in names)
        with sqlite3.connect(file) as connection:
            connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", rows)
        connection.close()

    return fill


def fill_postgresql(url: str, table: str) -> Fill:
    """Let the server generate the keys."""

    def fill(_store: Any, namespace: str, start: int, stop: int, value: Any) -> None:
        insert = f"""INSERT INTO {table} SELECT %b, convert_to('key ' || n, 'UTF8'), %b
            FROM generate_series({start}::int, {stop - 1}) AS n"""
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(insert, (namespace.encode(), pickle.dumps(value, protocol=5)))
            connection.execute(f"ANALYZE {table}")  # as the server itself does within a minute

    return fill


def fill_mariadb(server: MariaDB, table: str) -> Fill:
    """Let the server generate the keys."""

    def fill(_store: Any, namespace: str, start: int, stop: int, value: Any) -> None:
        server.sql(
            f"USE bot; INSERT INTO {table} SELECT '{namespace}', CONCAT('key ', seq),"
            f" UNHEX('{pickle.dumps(value, protocol=5).hex()}') FROM seq_{start}_to_{stop - 1}"
        )

    return fill


def fill_redis(url: str, prefix: str) -> Fill:
    """Add many keys with each command."""

    def fill(_store: Any, namespace: str, start: int, stop: int, value: Any) -> None:
        data = pickle.dumps(value, protocol=5)
        with redis.Redis.from_url(url) as client:
            for first in range(start, stop, PAGE):
                page = range(first, min(first + PAGE, stop))
                client.hset(prefix + namespace, mapping=dict.fromkeys(map(key, page), data))

    return fill


class BareSQL:
    """Bare sqlite3, psycopg or PyMySQL: one connection in autocommit mode, and one table."""

    def __init__(self, connection: Any, namespace: str, *, mark: str, upsert: str) -> None:
        self.connection = connection
        # Names are text in sqlite3 and bytes on the servers, as in the bakes.
        self.encode: Callable[[str], Any] = str if mark == "?" else str.encode
        self.namespace = self.encode(namespace)
        self.upsert = f"INSERT INTO bare VALUES ({mark}, {mark}, {mark}) {upsert}"
        self.where = f"FROM bare WHERE namespace = {mark}"
        self.here = f"{self.where} AND name = {mark}"

    def run(self, statement: str, *values: Any) -> Any:
        """Run a statement."""
        cursor = self.connection.cursor()
        cursor.execute(statement, (self.namespace, *values))
        return cursor

    def get(self, key: str) -> Any:
        """Select a row."""
        row = self.run(f"SELECT value {self.here}", self.encode(key)).fetchone()
        return pickle.loads(row[0])

    def set(self, key: str, value: Any) -> None:
        """Insert or replace a row."""
        self.run(self.upsert, self.encode(key), pickle.dumps(value, protocol=5))

    def remove(self, key: str) -> None:
        """Delete a row."""
        self.run(f"DELETE {self.here}", self.encode(key))

    def contains(self, key: str) -> bool:
        """Return whether a row exists."""
        return self.run(f"SELECT 1 {self.here}", self.encode(key)).fetchone() is not None

    def len(self) -> int:
        """Count the rows."""
        return int(self.run(f"SELECT count(*) {self.where}").fetchone()[0])

    def first(self) -> str:
        """Select one key."""
        return str(self.run(f"SELECT name {self.where} LIMIT 1").fetchone()[0])

    def keys(self) -> Iterator[str]:
        """Select all keys."""
        for (name,) in self.run(f"SELECT name {self.where}"):
            yield name if isinstance(name, str) else name.decode()

    def clear(self) -> None:
        """Delete all rows of the namespace."""
        self.run(f"DELETE {self.where}")

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


class BareRedis:
    """Bare redis-py: one client and one hash."""

    def __init__(self, url: str, namespace: str) -> None:
        self.client: Any = redis.Redis.from_url(url, protocol=2)
        self.name = f"bare:{namespace}"

    def get(self, key: str) -> Any:
        """Get a field."""
        return pickle.loads(self.client.hget(self.name, key))

    def set(self, key: str, value: Any) -> None:
        """Set a field."""
        self.client.hset(self.name, key, pickle.dumps(value, protocol=5))

    def remove(self, key: str) -> None:
        """Delete a field."""
        self.client.hdel(self.name, key)

    def contains(self, key: str) -> bool:
        """Return whether a field exists."""
        return bool(self.client.hexists(self.name, key))

    def len(self) -> int:
        """Count the fields."""
        return int(self.client.hlen(self.name))

    def first(self) -> str:
        """Take one field."""
        return str(self.client.hrandfield(self.name))

    def keys(self) -> Iterator[str]:
        """Scan all fields."""
        for field, _value in self.client.hscan_iter(self.name, count=1000):
            yield field.decode()

    def clear(self) -> None:
        """Delete the hash."""
        self.client.delete(self.name)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()


class Peer:
    """A mapping from another package, which keeps pickles in an SQLite file."""

    def __init__(self, mapping: Any) -> None:
        self.mapping = mapping
        self.get, self.set = mapping.__getitem__, mapping.__setitem__
        self.remove, self.contains = mapping.__delitem__, mapping.__contains__
        self.len, self.clear, self.close = mapping.__len__, mapping.clear, mapping.close

    def keys(self) -> Iterator[str]:
        """Iterate over all keys."""
        return iter(self.mapping)

    def first(self) -> str:
        """Return the first key."""
        return str(next(iter(self.mapping)))


def peers(folder: Path) -> list[Candidate]:
    """Return diskcache, which never evicts here, and sqlitedict, which commits each change."""

    def open_diskcache(namespace: str) -> Store:
        return Peer(diskcache.Cache(str(folder / f"cache {namespace}"), eviction_policy="none"))

    def fill_diskcache(store: Any, namespace: str, start: int, stop: int, value: Any) -> None:
        with store.mapping.transact():
            fill_by_set(store, namespace, start, stop, value)

    def open_sqlitedict(namespace: str) -> Store:
        file = folder / f"{namespace}.sqlitedict"
        return Peer(sqlitedict.SqliteDict(str(file), autocommit=True, journal_mode="WAL"))

    def fill_sqlitedict(store: Any, _namespace: str, start: int, stop: int, value: Any) -> None:
        store.mapping.update((key(number), value) for number in range(start, stop))

    return [
        Candidate("diskcache", "peer", "file", open_diskcache, fill_diskcache),
        Candidate("sqlitedict", "peer", "file", open_sqlitedict, fill_sqlitedict),
    ]


BARE = """CREATE TABLE IF NOT EXISTS bare (
    namespace {} NOT NULL, name {} NOT NULL, value {} NOT NULL, PRIMARY KEY (namespace, name)
)"""
ON_CONFLICT = "ON CONFLICT (namespace, name) DO UPDATE SET value = excluded.value"
ON_DUPLICATE = "ON DUPLICATE KEY UPDATE value = VALUES(value)"


def bare_sqlite(file: Path) -> Candidate:
    """Bare sqlite3, with the settings of the bake."""

    def open_bare(namespace: str) -> Store:
        connection = sqlite3.connect(file, isolation_level=None, timeout=60)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(BARE.format("TEXT", "TEXT", "BLOB"))
        return BareSQL(connection, namespace, mark="?", upsert=ON_CONFLICT)

    return Candidate(
        "bare sqlite3",
        "bare",
        "file",
        open_bare,
        fill_sqlite(file, "bare", encoded=False),
        per_thread=True,
    )


def bare_psycopg(url: str) -> Candidate:
    """Bare psycopg."""
    with psycopg.connect(url) as connection:
        connection.execute(BARE.format("BYTEA", "BYTEA", "BYTEA"))

    def open_bare(namespace: str) -> Store:
        connection = psycopg.connect(url, autocommit=True)
        return BareSQL(connection, namespace, mark="%s", upsert=ON_CONFLICT)

    fill = fill_postgresql(url, "bare")
    return Candidate("bare psycopg", "bare", "PostgreSQL", open_bare, fill, per_thread=True)


def bare_pymysql(server: MariaDB) -> Candidate:
    """Bare PyMySQL."""
    server.sql(f"USE bot; {BARE.format('VARBINARY(1000)', 'VARBINARY(1600)', 'LONGBLOB')}")

    def open_bare(namespace: str) -> Store:
        connection = pymysql.connect(
            host=server.host,
            port=server.port,
            user="bot",
            password=PASSWORD,
            database="bot",
            autocommit=True,
        )
        return BareSQL(connection, namespace, mark="%s", upsert=ON_DUPLICATE)

    fill = fill_mariadb(server, "bare")
    return Candidate("bare PyMySQL", "bare", "MariaDB", open_bare, fill, per_thread=True)


def bare_redis(url: str) -> Candidate:
    """Bare redis-py."""

    def open_bare(namespace: str) -> Store:
        return BareRedis(url, namespace)

    return Candidate("bare redis-py", "bare", "Redis", open_bare, fill_redis(url, "bare:"))


@dataclass
class Servers:
    """The three servers. They do not wait for the disk."""

    postgresql: PostgreSQL
    mariadb: MariaDB
    redis: Redis

    @classmethod
    def start(cls, folder: Path, stack: ExitStack) -> "Servers":
        """Start them on this machine, and stop them when the stack closes."""
        postgresql = PostgreSQL(
            folder / "postgresql",
            fsync="on",
            synchronous_commit="off",
            shared_buffers="128MB",
            max_wal_size="4GB",
        )
        settings = {"innodb-flush-log-at-trx-commit": "2", "innodb-buffer-pool-size": "128M"}
        mariadb = MariaDB(folder / "mariadb", None, **settings)
        servers = cls(postgresql, mariadb, Redis(folder / "redis", "appendonly no"))
        for server in (postgresql, mariadb, servers.redis):
            stack.callback(server.stop)
        with ThreadPoolExecutor() as pool:
            starts = [pool.submit(server.start) for server in (postgresql, mariadb, servers.redis)]
        for start in starts:
            start.result()
        mariadb.add_account("bot", PASSWORD, "bot")
        return servers

    def versions(self) -> dict[str, str]:
        """Return the servers' versions."""
        info: Any = redis.Redis.from_url(self.redis.url).info()
        return {
            "PostgreSQL": self.postgresql.sql("SHOW server_version").split()[0],
            "MariaDB": self.mariadb.sql("SELECT version()").split("-")[0],
            "Redis": info["redis_version"],
        }


def candidates(folder: Path, servers: Servers) -> list[Candidate]:
    """Return everything to measure, grouped by database."""
    postgresql, mariadb, redis_url = servers.postgresql, servers.mariadb, servers.redis.url
    postgresql_url = f"postgresql://admin@{postgresql.host}:{postgresql.port}/postgres"
    mariadb_url = f"mariadb://bot:{PASSWORD}@{mariadb.host}:{mariadb.port}/bot"
    file, signed, sql_file = (folder / f"{name}.sqlite" for name in ("errbot", "signed", "sql"))
    key_and_path = {"signing_key": "a key for figures only", "path": str(signed)}
    sqlite_url = f"sqlite:///{sql_file}"
    table, ours = "errbot_storage", Projects(folder).candidate
    fill = fill_sqlite(file, "errbot", encoded=False)
    fill_sql = fill_sqlite(sql_file, table, encoded=True)
    fill_large = fill_postgresql(postgresql_url, table), fill_mariadb(mariadb, table)
    return [
        memory(),
        ours("dict", "dict", "memory", fill_bytes),
        *(shelf(folder, module) for module in dbm_modules()),
        ours("sqlite", "sqlite", "file", fill, "bare sqlite3", path=str(file)),
        ours("sqlite, signed", "sqlite", "file", fill_by_set, "bare sqlite3", **key_and_path),
        ours("sql, SQLite", "sql", "file", fill_sql, "bare sqlite3", url=sqlite_url),
        bare_sqlite(folder / "bare.sqlite"),
        *peers(folder),
        ours(
            "sql, PostgreSQL",
            "sql",
            "PostgreSQL",
            fill_large[0],
            "bare psycopg",
            url=postgresql_url,
        ),
        bare_psycopg(postgresql_url),
        ours("sql, MariaDB", "sql", "MariaDB", fill_large[1], "bare PyMySQL", url=mariadb_url),
        bare_pymysql(mariadb),
        ours(
            "redis",
            "redis",
            "Redis",
            fill_redis(redis_url, "errbot:"),
            "bare redis-py",
            url=redis_url,
        ),
        bare_redis(redis_url),
    ]
