"""{{ cookiecutter.plugin_name }}, a storage plugin for Errbot.

It keeps everything in one table of PostgreSQL, MySQL, MariaDB or SQLite.

Errbot executes this file by its path, so it cannot import its neighbours.
"""

import hashlib
import json
import logging
import math
import os
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from itertools import count
from pathlib import Path
from time import monotonic, sleep
from typing import Annotated, Any
from weakref import ref

import sqlalchemy as sa
from errbot.storage import StoreException
from errbot.storage.base import StorageBase, StoragePluginBase
from itsdangerous import BadSignature, Signer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

log = logging.getLogger(__name__)

Secret = Annotated[SecretStr, Field(min_length=1, strict=True)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
SigningKey = Annotated[SecretStr, Field(min_length=16, strict=True)]

# Names are stored as bytes: collations take "a", "A" and "a " for one, and a text of PostgreSQL
# holds no NUL. Both together fit into an index of PostgreSQL (2704 bytes) and of InnoDB (3072).
NAMESPACE_BYTES = 1000
KEY_BYTES = 1600

# The drivers that the extras install, by what a URL begins with.
DRIVERS = {"mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
DRIVERS |= dict.fromkeys(["postgresql", "postgres"], "postgresql+psycopg")

WRITES = {"write", "swap", "remove"}
UNDONE = {"40001", "40P01", 1213}  # the server undid a statement that got in another one's way


def read_url(text: str | sa.URL) -> sa.URL:
    """Read the address of the database, and add the driver that it leaves out."""
    url = sa.make_url(text)
    return url.set(drivername=DRIVERS.get(url.drivername, url.drivername))


def check_url(secret: SecretStr) -> SecretStr:
    """Refuse an address that cannot be used. Raises ValueError that shows nothing of it."""
    text, problem = secret.get_secret_value(), ""
    try:
        url = read_url(text)
        server, memory = url.get_backend_name() in DRIVERS, ("", ":memory:", "memory")
        if server and text.count("@") > 1:
            problem = "It has more than one @"  # Errors would show what follows the first as host.
        elif not server and (url.get_backend_name() != "sqlite" or url.get_dialect().is_async):
            problem = "It must be of PostgreSQL, MySQL, MariaDB or SQLite"
        elif not server and {url.database or "", *url.query.values()} & {*memory}:
            problem = "An in-memory database is lost when the bot stops"
        create_engine(url, timeout=1)
    except ImportError as error:
        problem = f"Its driver {error.name} is not installed"
    except Exception as error:
        problem = problem or f"SQLAlchemy cannot read it ({type(error).__name__})"
    if problem:
        raise ValueError(problem)
    return secret


class {{ cookiecutter.__class }}Config(BaseModel):
    """The keys of STORAGE_CONFIG. A test compares them with the table in README.md."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[Secret, AfterValidator(check_url)] | None = Field(
        default=None,
        description="Address of the database, such as `postgresql://user:password@host/database`. "
        "In a password, write @ as %40, : as %3A, / as %2F and % as %25. "
        "Without an address, the data are in an SQLite file in BOT_DATA_DIR.",
    )
    table: str = Field(
        default="errbot_storage",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,62}$",
        description="Name of the table, or schema.table. It is created if it is missing.",
    )
    pool_size: int = Field(
        default=20,
        ge=1,
        strict=True,
        description="Number of connections at most. Threads wait in turn when all are in use.",
    )
    pool_recycle: Seconds = Field(
        default=300.0, description="Seconds after which a connection is replaced by a new one."
    )
    timeout: Seconds = Field(default=10.0, description="Seconds to wait before an operation fails.")
{% include "shared/signing_key.py" %}
{% include "shared/load.py" %}

class {{ cookiecutter.__class }}Storage(StorageBase):
    """One open namespace. Any number of threads may use it at once."""

    def __init__(self, plugin: "{{ cookiecutter.__class }}Plugin", namespace: str) -> None:
        self._run = plugin.run
        self._namespace = namespace
        self._encoded = encode(namespace, NAMESPACE_BYTES)
        self._signing_keys = plugin.config.signing_keys

    # Bytes: what the database does.

    def read(self, key: str) -> bytes:
        """Return the bytes stored under a key. Raises KeyError if there are none."""
        for (data,) in self._run("read", n=self._encoded, k=encode(key))[0]:
            return bytes(data)
        raise KeyError(key)

    def write(self, key: str, data: bytes) -> None:
        """Store bytes under a key, in one step. Raises ValueError if the key is too long."""
        self._run("write", n=self._encoded, k=encode(key, KEY_BYTES), v=data)

    def swap(self, key: str, old: bytes, new: bytes) -> bool:
        """Replace bytes only if they are still the old ones, in one step. Says if it did."""
        return self._run("swap", n=self._encoded, k=encode(key), old=old, v=new)[1] > 0

    def remove(self, key: str) -> None:
        """Remove a key. Raises KeyError if it is not there."""
        if not self._run("remove", n=self._encoded, k=encode(key))[1]:
            raise KeyError(key)

    def len(self) -> int:
        """Return the number of keys."""
        return int(self._run("len", n=self._encoded)[0][0][0])

    def keys(self) -> Iterator[str]:
        """Iterate over the keys, which may be added and removed meanwhile."""
        # The first key comes alone: Errbot's `clear` asks for the first key again and again.
        page, _ = self._run("first key", n=self._encoded)
        while page:
            yield from decode(page)
            page, _ = self._run("next keys", n=self._encoded, k=bytes(page[-1][0]))

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Iterate over keys and bytes together: for `move`, which then waits less."""
        limit = 1
        page, _ = self._run("first items", n=self._encoded, limit=limit)
        while page:
            size = sum(len(data) for _, data in page)
            yield from ((key, bytes(data)) for name, data in page for key in decode([(name,)]))
            limit = min(limit * 2, 500) if size < 1_000_000 else max(limit // 4, 1)
            last = bytes(page[-1][0])
            page, _ = self._run("next items", n=self._encoded, k=last, limit=limit)

    def write_many(self, rows: dict[str, bytes]) -> None:
        """Store bytes under several keys, as `write` does: for `move`, which then waits less."""
        names = {key: encode(key, KEY_BYTES) for key in rows}
        values = [{"n": self._encoded, "k": names[key], "v": rows[key]} for key in rows]
        self._run("write", values)

    def close(self) -> None:
        """Do nothing: every operation is done on return, and connections are the plugin's."""

{% include "shared/values.py" %}

class {{ cookiecutter.__class }}Plugin(StoragePluginBase):
    """Opens a namespace for each plugin of the bot, and has the connections to the server."""

    def __init__(self, bot_config: Any) -> None:
        """Read STORAGE_CONFIG and connect. Raises ValueError or StoreException."""
        self._idle: list[sa.Connection] = []
        super().__init__(bot_config)  # type: ignore[no-untyped-call]
        path = str(Path(bot_config.BOT_DATA_DIR, "errbot_storage.sqlite"))
        file = sa.URL.create("sqlite", database=path)
        del bot_config  # It holds secrets, and Sentry sends the locals of each frame of an error.
        self.config = {{ cookiecutter.__class }}Config.load(self._storage_config)
        address = self.config.url.get_secret_value() if self.config.url else file
        self._engine = create_engine(read_url(address), self.config.timeout)
        del address
        self._place = repr(self._engine.url)  # without the password
        self._process = os.getpid()
        self._line: dict[int, ref[Turn]] = {}
        self._numbers = count()
        self._sql = statements(self.config.table, self._engine.dialect)
        self._create_if_missing()
        if not self.config.signing_keys and self._engine.dialect.name != "sqlite":
            log.warning("Without signing_key, whoever can write to the table can run code here.")

    def open(self, namespace: str) -> StorageBase:
        """Open a namespace: "core", the name of a plugin, or what --storage-get names."""
        log.debug("Opening the namespace %r.", namespace)
        return {{ cookiecutter.__class }}Storage(self, namespace)

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces that hold a key."""
        return list(decode(self.run("namespaces")[0]))

    def __del__(self) -> None:
        """Close the connections. Errbot drops its storage plugin, but never closes it."""
        while self._idle and os.getpid() == self._process:
            self._idle.pop().close()

    def _create_if_missing(self) -> None:
        refusal = None
        try:
            self.run("look")
            return
        except Unreachable:
            raise
        except StoreException:
            log.warning("Creating the table %s, which is not there.", self.config.table)
        try:
            self.run("create")
        except StoreException as error:
            refusal = error  # Another process may have been faster.
        try:
            self.run("look")
        except StoreException as error:
            raise StoreException(
                f"{refusal or error} If the table was there before, restore a backup; if not, ask"
                f" someone with CREATE rights to run {self._sql['create']}; and GRANT SELECT,"
                f" INSERT, UPDATE, DELETE ON {self.config.table} TO the bot's account."
            ) from None

    def run(self, name: str, many: Any = None, **values: Any) -> tuple[list[Any], int]:
        """Run a statement in autocommit. Returns its rows, and the number of rows it changed.

        On a broken connection it is repeated once, but not after the timeout, and `remove` never:
        it could miss what it had removed itself. Raises StoreException, which shows no secret.
        """
        if os.getpid() != self._process:
            self._leave_to_the_parent()
        deadline = monotonic() + self.config.timeout
        turn = self._wait_for_turn(deadline)
        may_repeat = name != "remove"
        try:
            while turn:
                try:
                    return self._execute(self._take(), name, many or values)
                except sa.exc.DBAPIError as error:
                    problem, broken = error.orig or error, error.connection_invalidated
                    sent = broken and error.statement is not None
                undone = {getattr(problem, "sqlstate", None), *problem.args[:1]} & UNDONE
                if monotonic() > deadline or not (undone or (sent and may_repeat)):
                    message = self._explain(problem, unknown=sent and name in WRITES)
                    raise Unreachable(message) if broken else StoreException(message)
                if sent:
                    self._idle, may_repeat = [], False  # The other connections are no better.
        finally:
            del turn
        raise StoreException(f"{self._place}: all {self.config.pool_size} connections are in use.")

    def _wait_for_turn(self, deadline: float) -> "Turn | None":
        """Wait until fewer than pool_size threads that came before have theirs."""
        turn, number = Turn(), next(self._numbers)
        self._line[number] = ref(turn)
        while monotonic() < deadline:
            for other in [other for other, exists in list(self._line.items()) if not exists()]:
                self._line.pop(other, None)
            if number in list(self._line)[: self.config.pool_size]:
                return turn
            sleep(0.002)
        return None

    def _take(self) -> sa.Connection:
        """Return an idle connection, or a new one."""
        with suppress(IndexError):
            while (connection := self._idle.pop()).info["expires"] < monotonic():
                connection.close()
            return connection
        connection = self._engine.connect()
        connection.detach()  # SQLAlchemy forgets it: from now on it is in our list, or in use.
        connection.info["expires"] = monotonic() + self.config.pool_recycle
        return connection

    def _execute(self, connection: sa.Connection, name: str, values: Any) -> tuple[list[Any], int]:
        """Execute a statement. Only a connection that has done so well is used again."""
        try:
            result = connection.execute(self._sql[name], values)
            answer = list(result) if result.returns_rows else [], result.rowcount
        except BaseException:  # Ctrl-C, too: the answer may still be on its way.
            with suppress(Exception):
                connection.close()
            raise
        self._idle.append(connection)
        return answer

    def _leave_to_the_parent(self) -> None:
        """Start anew in a forked process: the parent goes on with the old connections."""
        if self._engine.dialect.name == "sqlite":  # A fork inherits no locks.
            raise StoreException(f"Cannot use {self._place} in a forked process: spawn it instead.")
        self._idle, self._line, self._process = [], {}, os.getpid()

    def _explain(self, problem: BaseException, unknown: bool) -> str:
        """Say what happened, and where. Below their first lines, errors on data show the data."""
        lines = str(problem).splitlines()
        if not isinstance(problem, self._engine.dialect.loaded_dbapi.OperationalError):
            del lines[1:]
        text = " ".join(line.strip() for line in lines)
        url = read_url(self.config.url.get_secret_value() if self.config.url else "sqlite://")
        for secret in [url.password, url.query.get("password"), url.query.get("sslpassword")]:
            text = text.replace(str(secret), "***") if secret else text
        end = " It may have been done, or not." if unknown else ""
        return f"{self._place}: {type(problem).__name__}: {text}.{end}"


class Turn:
    """A thread's place in the line for a connection: gone with the last use of it."""


class Unreachable(StoreException):
    """The server is not there, or the connection to it broke."""


def encode(name: str, limit: float = math.inf) -> bytes:
    """Return a name as bytes, whatever it holds. Raises ValueError if there are too many."""
    encoded = name.encode("utf-8", "surrogatepass")
    if len(encoded) > limit:
        have = f"has {len(encoded)} bytes as UTF-8, and may have {limit}"
        raise ValueError(f"The name {name[:30]!r}... {have}.")
    return encoded


def decode(rows: Iterable[Any]) -> Iterator[str]:
    """Return the names in some rows, without those that are not UTF-8: somebody planted them."""
    for (name,) in rows:
        with suppress(UnicodeDecodeError):
            yield bytes(name).decode("utf-8", "surrogatepass")


def statements(table: str, dialect: sa.Dialect) -> dict[str, sa.TextClause]:
    """Return the statements, by name: :n is a namespace, :k a key and :v a value."""
    table, key = (
        ".".join(map(dialect.identifier_preparer.quote, name.split("."))) for name in [table, "key"]
    )
    short, long, value = {"postgresql": ("BYTEA",) * 3, "sqlite": ("BLOB",) * 3}.get(
        dialect.name, (f"VARBINARY({NAMESPACE_BYTES})", f"VARBINARY({KEY_BYTES})", "LONGBLOB")
    )
    replace = "ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value"
    if dialect.name in ("mysql", "mariadb"):
        replace = "ON DUPLICATE KEY UPDATE value = VALUES(value)"
    row = f"namespace = :n AND {key} = :k"
    keys = f"SELECT {key} FROM {table} WHERE namespace = :n"
    items = f"SELECT {key}, value FROM {table} WHERE namespace = :n"
    sql = {
        "create": f"CREATE TABLE {table} (namespace {short} NOT NULL, {key} {long} NOT NULL,"
        f" value {value} NOT NULL, PRIMARY KEY (namespace, {key}))",
        "look": f"SELECT namespace, {key}, value FROM {table} WHERE 1 = 0",
        "read": f"SELECT value FROM {table} WHERE {row}",
        "write": f"INSERT INTO {table} (namespace, {key}, value) VALUES (:n, :k, :v) {replace}",
        "swap": f"UPDATE {table} SET value = :v WHERE {row} AND value = :old",
        "remove": f"DELETE FROM {table} WHERE {row}",
        "len": f"SELECT count(*) FROM {table} WHERE namespace = :n",
        "first key": f"{keys} ORDER BY {key} LIMIT 1",
        "next keys": f"{keys} AND {key} > :k ORDER BY {key} LIMIT 1000",
        "first items": f"{items} ORDER BY {key} LIMIT :limit",
        "next items": f"{items} AND {key} > :k ORDER BY {key} LIMIT :limit",
        "namespaces": f"SELECT DISTINCT namespace FROM {table}",
    }
    return {name: sa.text(statement) for name, statement in sql.items()}


def create_engine(url: sa.URL, timeout: float) -> sa.Engine:
    """Prepare to connect. Options that are secret leave the URL, which `repr(engine)` shows."""
    secrets = {name: url.query[name] for name in url.query if "pass" in name}
    engine = sa.create_engine(
        url.difference_update_query(secrets),
        connect_args=driver_options(url, timeout) | secrets,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        hide_parameters=True,
        poolclass=sa.NullPool,
        pool_reset_on_return=None,
    )
    if engine.driver == "psycopg":
        import psycopg

        class Connection(psycopg.Connection[Any]):
            """One that gives up in time. By itself, psycopg waits for ever."""

            def wait(self, *arguments: Any, **options: Any) -> Any:
                try:
                    return super().wait(*arguments, **{"timeout": timeout + 1, **options})
                except BaseException:
                    if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                        self.pgconn.finish()  # Then it counts as broken.
                    raise

        @sa.event.listens_for(engine, "do_connect")
        def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
            return Connection.connect(*arguments, **options)

    elif engine.driver == "pysqlite":
        sa.event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA journal_mode = WAL"))
    return engine


def driver_options(url: sa.URL, timeout: float) -> dict[str, Any]:
    """Return what makes a driver give up in time. What the URL says goes first.

    A server gives up a second before the driver, and so can say why, and has undone it.
    """
    whole, hosts = math.ceil(timeout), url.query.get("host", "")
    options: dict[str, dict[str, Any]] = {
        "psycopg": {
            "connect_timeout": math.ceil(timeout / (len(hosts) if type(hosts) is tuple else 1)),
            "tcp_user_timeout": whole * 1000,
            # On a new table, PostgreSQL would sort all keys for each page, and not use the index.
            "options": f"-c statement_timeout={math.ceil(timeout * 1000)} -c enable_sort=off"
            f" {url.query.get('options', '')}",
        },
        "pymysql": {
            "connect_timeout": whole,
            "read_timeout": whole + 1,
            "write_timeout": whole + 1,
            "init_command": f"SET SESSION innodb_lock_wait_timeout = {whole}",
            "binary_prefix": True,  # values are not in the charset of the connection
        },
        "pysqlite": {"timeout": timeout},
    }
    given = options.get(url.get_dialect().driver, {})
    return {name: given[name] for name in given if name not in url.query or name == "options"}
