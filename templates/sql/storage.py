"""{{ cookiecutter.plugin_name }}, a storage plugin for Errbot.

It keeps everything in one table of PostgreSQL, MySQL, MariaDB, SQLite or another SQL server. Four
classes, in the order in which one reads: Config has the keys of STORAGE_CONFIG, Storage is one open
namespace, Plugin connects and opens namespaces, Table speaks with the server.

Errbot executes this file by its path, so it imports none of its neighbours, and takes the one
subclass of StoragePluginBase that it finds in it.
"""

import hashlib
import json
import logging
import math
import pickle
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import sqlalchemy as sa
from errbot.storage import StoreException
from errbot.storage.base import StorageBase, StoragePluginBase
from itsdangerous import BadSignature, Signer
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.schema import CreateTable

log = logging.getLogger(__name__)

Secret = Annotated[SecretStr, Field(min_length=1, strict=True)]

# Names are stored as bytes: collations take "a", "A" and "a " for one, and a text of PostgreSQL
# holds no NUL. Both together fit into an index of PostgreSQL (2704 bytes) and of InnoDB (3072).
NAMESPACE_BYTES = 1000
KEY_BYTES = 1600

# How many keys to fetch at a time: few at first, since Errbot often asks for the first one alone.
PAGES = [10, 100, 1000]

# What an address without a driver means: the drivers that the extras install.
DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
PACKAGES = {"psycopg": "psycopg[binary]", "pymysql": "PyMySQL[rsa]"}
PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}

# By SQLSTATE (PostgreSQL) or number (MySQL): the server has undone a statement that got in the way
# of another one; the server takes no writes, for it is a standby now.
UNDONE = {"40001", "40P01", 1213}
READ_ONLY = {"25006", 1290}


class {{ cookiecutter.__class }}Config(BaseModel):
    """The keys of STORAGE_CONFIG; a test compares them with the table in README.md."""

    model_config = ConfigDict(extra="forbid")

    url: Secret | None = Field(
        default=None,
        description="Address of the database, such as `postgresql://user:password@host/database`. "
        "In a password, @ is written %40, : %3A, / %2F and % %25. "
        "Without an address, the data are in an SQLite file in BOT_DATA_DIR.",
    )
    table: str = Field(
        default="errbot_storage",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,62}$",
        description="Name of the table, or schema.table. It is created where it is missing.",
    )
    pool_size: int = Field(
        default=10,
        ge=1,
        strict=True,
        description="Number of connections at most. A thread that finds none free waits for one.",
    )
    pool_recycle: float = Field(
        default=300.0,
        gt=0,
        allow_inf_nan=False,
        strict=True,
        description="Seconds after which a connection is replaced by a new one: "
        "fewer than the server and firewalls allow.",
    )
    timeout: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        strict=True,
        description="Seconds to wait for the database before an operation fails.",
    )
{% include "shared/signing_key.py" %}
{% include "shared/load.py" %}

class {{ cookiecutter.__class }}Storage(StorageBase):
    """One open namespace. Any number of threads may use it at the same time."""

    def __init__(self, table: "Table", namespace: str, signing_keys: list[str]) -> None:
        self._table = table
        self._namespace = namespace
        self._encoded = encode(namespace)
        self._signing_keys = signing_keys
        self._removed = b""

    def set(self, key: str, value: Any) -> None:
        """Store a value under a key, in place of the one that may be there.

        Raises TypeError where the key is no str, ValueError where it is longer than the table
        holds, and what pickle raises where it cannot pickle the value; nothing is changed then.
        Raises StoreException where the database fails, and says if the value may be stored or not.
        """
        data = self._dump(key, value)
        self._table.put(self._encoded, encode(key, "key", KEY_BYTES), data)

    def get(self, key: str) -> Any:
        """Return the value of a key.

        Raises KeyError where there is none, and StoreException where it cannot be read.
        """
        data = self._table.value(self._encoded, encode(key))
        if data is None:
            raise KeyError(key)
        return self._load(key, data)

    def remove(self, key: str) -> None:
        """Remove a key and its value.

        Raises KeyError where there is none, and StoreException where the database fails. Where the
        connection broke meanwhile, the key may be removed or not: trying again by itself, this
        could miss what it had removed, and two commands that take one job would both think that
        the other has it.
        """
        encoded = encode(key)
        if not self._table.delete(self._encoded, encoded):
            raise KeyError(key)
        self._removed = encoded

    def len(self) -> int:
        """Return the number of keys. Raises StoreException where the database fails."""
        return self._table.count(self._encoded)

    def keys(self) -> Iterator[str]:
        """Iterate over every key once. Keys may be added and removed meanwhile.

        It begins after the last key removed, and goes round. To clear a namespace, Errbot takes the
        first key again and again (`MutableMapping.popitem`), and before the first one are the
        remains of all that were removed, which a server clears away later.

        Raises StoreException where the database fails.
        """
        removed = self._removed  # b"", the lowest of keys, where nothing was
        for key in self._table.keys(self._encoded, removed):
            yield decode(key)
        if removed:
            for key in self._table.keys(self._encoded, b""):
                if key >= removed:
                    return
                yield decode(key)

    def close(self) -> None:
        """Do nothing: every `set` was done when it returned, and the pool is the plugin's."""

{% include "shared/values.py" %}

class {{ cookiecutter.__class }}Plugin(StoragePluginBase):
    """Connects once, when the bot starts, and opens a namespace for each plugin of the bot."""

    def __init__(self, bot_config: Any) -> None:
        """Read STORAGE_CONFIG, connect, and create the table where it is missing.

        Raises ValueError where STORAGE_CONFIG is wrong, and StoreException where the server is not
        there or refuses.
        """
        super().__init__(bot_config)  # type: ignore[no-untyped-call]
        config = {{ cookiecutter.__class }}Config.load(self._storage_config)
        self._signing_keys = config.signing_keys
        file = Path(bot_config.BOT_DATA_DIR) / "errbot_storage.sqlite"
        self._table = Table(make_engine(config, file), config)

    def open(self, namespace: str) -> StorageBase:
        """Open a namespace: "core", the name of a plugin, or what --storage-get names.

        Raises ValueError where the name is longer than the table holds.
        """
        log.debug("Opening the namespace %r.", namespace)
        encode(namespace, "namespace", NAMESPACE_BYTES)
        return {{ cookiecutter.__class }}Storage(self._table, namespace, self._signing_keys)


class Unreachable(StoreException):
    """There is no connection to the server."""


class Lost(StoreException):
    """The connection broke while a statement was under way."""


class Undone(StoreException):
    """The server has undone a statement, to let another one through."""


class Duplicate(StoreException):
    """There is a row with this namespace and key already."""


class Table:
    """The table of all namespaces, and the pool of connections to its server.

    Its methods raise StoreException, which names the server, but no password and no value.
    """

    def __init__(self, engine: sa.Engine, config: {{ cookiecutter.__class }}Config) -> None:
        """Connect, and create the table where it is missing."""
        self._engine = engine
        self._dialect: Any = engine.dialect
        self._dbapi: Any = engine.dialect.loaded_dbapi
        self._timeout = config.timeout
        self._place = place_of(engine.url)
        self._secrets = secrets_of(engine.url)
        weakref.finalize(self, engine.dispose)
        table = define_table(config.table)
        self._create(table)

        # Compiled once, and run by the driver itself, each takes half of the time that it takes
        # SQLAlchemy to execute it.
        columns = table.c
        in_namespace = columns.namespace == sa.bindparam("namespace")
        is_row = in_namespace & (columns.key == sa.bindparam("key"))
        is_next = in_namespace & (columns.key >= sa.bindparam("start"))
        upsert = UPSERTS.get(self._dialect.name)
        self._upsert = self._compile(upsert(table)) if upsert else None
        self._insert = self._compile(sa.insert(table))
        self._update = self._compile(
            sa.update(table).where(is_row).values(value=sa.bindparam("value"))
        )
        self._select = self._compile(sa.select(columns.value).where(is_row))
        self._delete = self._compile(sa.delete(table).where(is_row))
        self._count = self._compile(
            sa.select(sa.func.count()).select_from(table).where(in_namespace)
        )
        # The limit is no parameter: servers plan for a tenth of all rows where they do not see it.
        page = sa.select(columns.key).where(is_next).order_by(columns.key)
        self._pages = {
            size: self._compile(page.limit(sa.literal_column(str(size)))) for size in PAGES
        }

    def put(self, namespace: bytes, key: bytes, value: bytes) -> None:
        """Insert a row, or replace the value of the one that is there."""
        row = {"namespace": namespace, "key": key, "value": value}
        if self._upsert is not None:
            self._run(self._upsert, row)
            return
        for _ in range(100):  # others may insert and delete the row again and again
            _, updated = self._run(self._update, row)
            if updated > 0:
                return
            with suppress(Duplicate):
                self._run(self._insert, row)
                return
        raise StoreException(f"Cannot insert nor update a row at {self._place}.")

    def value(self, namespace: bytes, key: bytes) -> bytes | None:
        """Return the value of a row, None where there is no such row."""
        rows, _ = self._run(self._select, {"namespace": namespace, "key": key})
        return bytes(rows[0][0]) if rows else None

    def delete(self, namespace: bytes, key: bytes) -> bool:
        """Delete a row, and tell whether there was one."""
        row = {"namespace": namespace, "key": key}
        _, deleted = self._run(self._delete, row, may_repeat=False)
        return deleted != 0

    def count(self, namespace: bytes) -> int:
        """Count the rows of a namespace."""
        rows, _ = self._run(self._count, {"namespace": namespace})
        return int(rows[0][0])

    def keys(self, namespace: bytes, start: bytes) -> Iterator[bytes]:
        """Iterate over the keys from `start` on, in the order of their bytes, page by page."""
        for size in chain(PAGES, repeat(PAGES[-1])):
            rows, _ = self._run(self._pages[size], {"namespace": namespace, "start": start})
            for (key,) in rows:
                yield bytes(key)
            if len(rows) < size:
                return
            start = bytes(rows[-1][0]) + b"\0"  # the smallest key that comes after this one

    def _create(self, table: sa.Table) -> None:
        """Create the table, if it is not there: an account that may read it may create none."""
        look = self._compile(sa.select(table).where(sa.false()))
        statement = " ".join(str(CreateTable(table).compile(dialect=self._dialect)).split())
        try:
            self._run(look)
        except (Unreachable, Lost):
            raise
        except StoreException:
            log.info("Creating the table %s at %s.", table.fullname, self._place)
        else:
            return
        refusal = None
        try:
            self._run(self._compile(sa.text(statement)))
        except StoreException as error:
            refusal = error  # or else another process was faster
        try:
            self._run(look)
        except StoreException as error:
            raise StoreException(
                f"{refusal or error} Let somebody who may create tables run {statement}; and"
                f" GRANT SELECT, INSERT, UPDATE, DELETE ON {table.fullname} TO the bot's account."
            ) from None

    def _compile(self, statement: Any) -> Any:
        """Write a statement in the dialect of the server."""
        return statement.compile(dialect=self._dialect)

    def _run(
        self, statement: Any, values: dict[str, bytes] | None = None, may_repeat: bool = True
    ) -> tuple[list[Any], int]:
        """Run a statement in autocommit; return the rows that it gave, and how many it changed.

        What the server has undone is done again until the timeout; what met a broken connection
        is repeated once, if that is safe.
        """
        parameters = statement.construct_params(values or {})
        if statement.positional:
            parameters = [parameters[name] for name in statement.positiontup]
        deadline = monotonic() + self._timeout
        while True:
            try:
                return self._attempt(statement.string, parameters, statement.statement.is_select)
            except Undone:
                if monotonic() > deadline:
                    raise
            except Lost as error:
                if not may_repeat or monotonic() > deadline:
                    writes = statement.isinsert or statement.isupdate or statement.isdelete
                    unknown = " It may have been done, or not." if writes else ""
                    raise StoreException(f"{error}{unknown}") from None
                may_repeat = False
                log.warning("Lost the connection to %s, trying once more.", self._place)

    def _attempt(self, statement: str, parameters: Any, fetch: bool) -> tuple[list[Any], int]:
        """Run a statement once, on a connection of the pool."""
        pool, connection, lost = self._engine.pool, None, False
        try:
            connection = pool.connect()
            cursor = connection.cursor()
            self._dialect.do_execute(cursor, statement, parameters)
            result = list(cursor.fetchall()) if fetch else [], cursor.rowcount
            cursor.close()
            connection.close()
            return result
        except BaseException as error:
            problem = getattr(error, "orig", None) or error
            if connection is not None:
                lost = self._is_lost(problem, connection)
                connection.invalidate()  # nobody knows what is still under way on it
            if not isinstance(problem, Exception):
                raise
        # Not inside the except clause: a chained error of the driver may show parameters.
        if connection is None:
            raise Unreachable(self._message("Cannot connect to", problem))
        if lost:
            if self._engine.pool is pool:
                self._engine.dispose()  # the other connections are no better
            raise Lost(self._message("Lost the connection to", problem))
        message = self._message("The operation failed at", problem)
        if codes_of(problem) & UNDONE:
            raise Undone(message)
        if isinstance(problem, self._dbapi.IntegrityError):
            raise Duplicate(message)
        raise StoreException(message)

    def _is_lost(self, problem: BaseException, connection: Any) -> bool:
        """Tell whether an error means that this connection is of no more use."""
        if not isinstance(problem, self._dbapi.Error):
            return False
        lost = self._dialect.is_disconnect(problem, connection.dbapi_connection, None)
        return bool(lost or codes_of(problem) & READ_ONLY)

    def _message(self, what: str, problem: Exception) -> str:
        """Say what happened, and where. Below their first lines, errors on data show the data."""
        lines = str(problem).splitlines()
        if not isinstance(problem, self._dbapi.OperationalError):
            del lines[1:]
        text = " ".join(line.strip() for line in lines)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return f"{what} the database at {self._place}: {type(problem).__name__}: {text}."


def encode(name: str, what: str = "name", limit: float = math.inf) -> bytes:
    """Return a name as bytes, whatever it holds. Raises ValueError where they are too many."""
    encoded = name.encode("utf-8", "surrogatepass")
    if len(encoded) > limit:
        raise ValueError(
            f"The {what} {name[:30]!r}... has {len(encoded)} bytes as UTF-8, and may have {limit}."
        )
    return encoded


def decode(name: bytes) -> str:
    """Return the name that `encode` was given."""
    return name.decode("utf-8", "surrogatepass")


def codes_of(problem: BaseException) -> set[object]:
    """Return the SQLSTATE and the number that a driver's error has."""
    return {getattr(problem, "sqlstate", None), getattr(problem, "pgcode", None), *problem.args[:1]}


def define_table(name: str) -> sa.Table:
    """Describe the table. Its name may begin with that of a schema."""
    schema, _, name = name.rpartition(".")
    unlimited = sa.LargeBinary(), "postgresql", "cockroachdb", "sqlite"
    long = mysql.LONGBLOB(), "mysql", "mariadb"
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("namespace", sa.VARBINARY(NAMESPACE_BYTES).with_variant(*unlimited)),
        sa.Column("key", sa.VARBINARY(KEY_BYTES).with_variant(*unlimited)),
        sa.Column("value", sa.LargeBinary().with_variant(*long), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "key"),
        schema=schema or None,
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )


def upsert_postgresql(table: sa.Table) -> Any:
    """Insert or replace, as PostgreSQL says it."""
    row = postgresql.insert(table)
    return row.on_conflict_do_update(
        index_elements=["namespace", "key"], set_={"value": row.excluded.value}
    )


def upsert_sqlite(table: sa.Table) -> Any:
    """Insert or replace, as SQLite says it."""
    row = sqlite.insert(table)
    return row.on_conflict_do_update(
        index_elements=["namespace", "key"], set_={"value": row.excluded.value}
    )


def upsert_mysql(table: sa.Table) -> Any:
    """Insert or replace, as MySQL and MariaDB say it."""
    row = mysql.insert(table)
    return row.on_duplicate_key_update(value=row.inserted.value)


# By SQLAlchemy's name of the dialect. For others `put` updates, and inserts where there is no row.
UPSERTS: dict[str, Callable[[sa.Table], Any]] = {
    "cockroachdb": upsert_postgresql,
    "mariadb": upsert_mysql,
    "mysql": upsert_mysql,
    "postgresql": upsert_postgresql,
    "sqlite": upsert_sqlite,
}


class WrongURL(Exception):
    """The address of the database is of no use; this says why, and shows nothing of it."""


def read_url(text: str) -> sa.URL:
    """Read the address of the database. Raises WrongURL, or what SQLAlchemy raises."""
    url = sa.make_url(text)
    url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:") or "memory" in url.query.values():
            raise WrongURL("an SQLite database in memory ends with the bot")
    elif text.count("@") > 1:
        # With the password cut in two, errors would show its end as the name of the host.
        raise WrongURL("it has more than one @")
    if url.get_dialect().is_async:
        raise WrongURL("its driver is for asyncio, and Errbot uses threads")
    return url


def make_engine(config: {{ cookiecutter.__class }}Config, file: Path) -> sa.Engine:
    """Make the pool of connections, but open none. The file is for SQLite, where there is no URL.

    Raises ValueError where the URL is of no use. It does not show what SQLAlchemy says of it: where
    the parts of an address are mixed up, the password may be any of them.
    """
    try:
        given = config.url.get_secret_value() if config.url else None
        url = read_url(given) if given else sa.URL.create("sqlite", database=str(file))
        return create_engine(url, config)
    except WrongURL as error:
        problem = str(error)
    except ImportError as error:
        problem = f"its driver {error.name} is not installed"
        if error.name in PACKAGES:
            problem += f" (python -m pip install '{PACKAGES[error.name]}')"
    except Exception as error:
        problem = f"SQLAlchemy cannot read it ({type(error).__name__})"
    raise ValueError(
        "STORAGE_CONFIG of {{ cookiecutter.plugin_name }} is wrong:\n"
        f"  url: {problem}. {type(config).model_fields['url'].description}"
    )


def create_engine(url: sa.URL, config: {{ cookiecutter.__class }}Config) -> sa.Engine:
    """Make the pool of connections."""
    # At DEBUG, a pool logs two lines for each operation.
    logging.getLogger(f"sqlalchemy.pool.impl.QueuePool.{__name__}").setLevel(logging.WARNING)
    engine = sa.create_engine(
        url,
        connect_args=driver_options(url, config.timeout),
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        pool_size=config.pool_size,
        max_overflow=0,
        pool_recycle=config.pool_recycle,
        pool_timeout=config.timeout,
        pool_use_lifo=True,
        pool_reset_on_return=None,  # a ROLLBACK, without a transaction
        pool_logging_name=__name__,
    )

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        if engine.driver == "psycopg":
            bound_waiting(connection, config.timeout + 1)
        elif engine.driver == "pysqlite":
            connection.execute("PRAGMA journal_mode = WAL")

    return engine


def driver_options(url: sa.URL, timeout: float) -> dict[str, Any]:
    """Return what makes a driver and its server give up in time. What the URL says goes first.

    A server gives up a second before the driver, and so can say why, and has undone it.
    """
    whole = math.ceil(timeout)
    options: dict[str, Any] = {}
    driver = url.get_dialect().driver
    if driver in ("psycopg", "psycopg2"):
        options = {
            "connect_timeout": math.ceil(timeout / max(1, len(hosts_of(url)))),
            "tcp_user_timeout": math.ceil(timeout * 1000),
            "keepalives_idle": 60,
            # Until it has looked what is in a new table, PostgreSQL would rather read and sort all
            # keys for each page of them than take them in order from the index.
            "options": f"-c statement_timeout={math.ceil(timeout * 1000)} -c enable_sort=off",
        }
    elif driver in ("pymysql", "mysqldb"):
        options = {
            "connect_timeout": whole,
            "read_timeout": whole + 1,
            "write_timeout": whole + 1,
            "init_command": f"SET SESSION innodb_lock_wait_timeout = {whole}",
            "binary_prefix": True,  # values are not in the charset of the connection
        }
    elif driver == "pysqlite":
        options = {"timeout": timeout}
    if "options" in options and "options" in url.query:
        return options | {"options": f"{options['options']} {url.query['options']}"}
    return {name: value for name, value in options.items() if name not in url.query}


def bound_waiting(connection: Any, seconds: float) -> None:
    """Let a connection of psycopg, which by itself would wait for ever, give up in time."""
    wait = connection.wait

    def bounded(waiting: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        deadline = monotonic() + seconds
        try:
            ready = yield next(waiting)
            while True:
                if not ready and monotonic() > deadline:
                    connection.pgconn.finish()
                    raise TimeoutError("the server does not answer")
                ready = yield waiting.send(ready)
        except StopIteration as end:
            return end.value

    connection.wait = lambda waiting, *rest, **more: wait(bounded(waiting), *rest, **more)


def hosts_of(url: sa.URL) -> list[str]:
    """Return the servers that a URL names, each with its port."""
    named = url.query.get("host", ())
    hosts = [url.host] if url.host else [named] if isinstance(named, str) else list(named)
    port = url.port or PORTS.get(url.get_backend_name())
    return [host if ":" in host or not port else f"{host}:{port}" for host in hosts]


def place_of(url: sa.URL) -> str:
    """Say where a database is: the servers, or the file."""
    return " or ".join(hosts_of(url)) or str(url.database)


def secrets_of(url: sa.URL) -> list[str]:
    """Return what in a URL must not be shown."""
    secrets = [url.password] if url.password else []
    for name, value in url.query.items():
        if "pass" in name or "key" in name:
            secrets += [value] if isinstance(value, str) else value
    return sorted(map(str, secrets), key=len, reverse=True)
