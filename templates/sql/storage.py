"""{{ cookiecutter.plugin_name }}, a storage plugin for Errbot.

It keeps all data in one table of PostgreSQL, MySQL, MariaDB or SQLite. Errbot executes this file by
its path, so it cannot import other modules of the package.
"""

import hashlib
import json
import logging
import os
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from multiprocessing.connection import wait
from pathlib import Path
from threading import Event
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

# Names are stored as bytes, because collations mix them up. Every server can index these lengths.
NAMESPACE_BYTES, KEY_BYTES = 1000, 1600

DRIVERS = {"mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}  # by the URL's scheme
DRIVERS |= dict.fromkeys(["postgresql", "postgres"], "postgresql+psycopg")

UNDONE = {"40001", "40P01", 1213, "database is locked"}  # deadlock or lock: safe to repeat


def read_url(text: str) -> sa.URL:
    """Parse the address of the database, and add the driver if it is missing."""
    url = sa.make_url(text)
    return url.set(drivername=DRIVERS.get(url.drivername, url.drivername))


def check_url(secret: SecretStr) -> SecretStr:
    """Reject an address that cannot be used. The ValueError does not show it."""
    text, problem = secret.get_secret_value(), "It is not the address of a server or a file"
    try:
        url = read_url(text)
        in_memory = ":memory:" in (url.database or ":memory:") or "memory" in url.query.values()
        server = url.drivername in DRIVERS.values() and text.count("@") < 2
        if server or (url.drivername == "sqlite" and not in_memory):
            create_engine(secret, timeout=1)
            return secret
    except ImportError as error:
        problem = f"Its driver cannot be imported: {error.name or type(error).__name__}"
    except Exception as error:
        problem = f"SQLAlchemy cannot read it ({type(error).__name__})"
    raise ValueError(problem)


class {{ cookiecutter.__class }}Config(BaseModel):
    """The keys of STORAGE_CONFIG. A test compares them with the table in README.md."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[Secret, AfterValidator(check_url)] | None = Field(
        default=None,
        description="Address, such as `postgresql://user:p%40ssword@host/database` (%40 is an @). "
        "Without one, the data are in an SQLite file in BOT_DATA_DIR.",
    )
    table: str = Field(
        default="errbot_storage",
        pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,62}\.)?[A-Za-z_][A-Za-z0-9_]{0,62}$",
        description="Name of the table, or schema.table. It is created if it is missing.",
    )
    pool_size: int = Field(default=20, ge=1, strict=True, description="Connection limit.")
    pool_recycle: Seconds = Field(default=300.0, description="Seconds that a connection is used.")
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
        """Store bytes under a key atomically. Raises ValueError if the key is too long."""
        self._run("write", n=self._encoded, k=encode(key, KEY_BYTES), v=data)

    def swap(self, key: str, old: bytes, new: bytes) -> bool:
        """Atomically replace bytes if they still are the old ones. Returns whether it did."""
        return self._run("swap", n=self._encoded, k=encode(key), o=old, v=new)[1] > 0

    def remove(self, key: str) -> None:
        """Remove a key. Raises KeyError if it is not there."""
        if not self._run("remove", n=self._encoded, k=encode(key))[1]:
            raise KeyError(key)

    def len(self) -> int:
        """Return the number of keys."""
        return int(self._run("len", n=self._encoded)[0][0][0])

    def keys(self) -> Iterator[str]:
        """Iterate over the keys, even while keys are added and removed."""
        # Few at first, for Errbot's `clear`. Then all at once, so that a loop that adds keys ends.
        first, _ = self._run("first keys", n=self._encoded)
        yield from decode(first)
        if len(first) == 20:
            yield from decode(self._run("other keys", n=self._encoded, k=bytes(first[-1][0]))[0])

    def close(self) -> None:
        """Do nothing: nothing is buffered, and connections belong to the plugin."""

{% include "shared/values.py" %}

class {{ cookiecutter.__class }}Plugin(StoragePluginBase):
    """Opens a namespace for each of the bot's plugins, and keeps the connections to the server."""

    def __init__(self, bot_config: Any) -> None:
        """Read STORAGE_CONFIG and connect. Raises ValueError or StoreException."""
        self._idle: list[sa.Connection] = []
        super().__init__(bot_config)  # type: ignore[no-untyped-call]
        file = str(Path(bot_config.BOT_DATA_DIR, "errbot_storage.sqlite"))
        del bot_config  # It has secrets, and Sentry reports the local variables of each frame.
        self.config = {{ cookiecutter.__class }}Config.load(self._storage_config)
        self._engine = create_engine(self.config.url, self.config.timeout, file)
        url = self._engine.url
        self._place = repr(url.set(query={"host": url.query.get("host", ())})).rstrip("?")
        self._process = os.getpid()
        self._line: list[ref[Event]] = []
        self._sql = statements(self.config.table, self._engine.dialect)
        if url.drivername == "sqlite" and "uri" not in url.query:
            with suppress(OSError):  # Only the bot may access a new file, because it has pickles.
                Path(url.database or "").touch(mode=0o600, exist_ok=False)
        self._create_if_missing()
        if not self.config.signing_keys and url.drivername != "sqlite":
            log.warning("No signing_key: any writer to the table can run code in the bot.")

    def open(self, namespace: str) -> StorageBase:
        """Open a namespace, such as "core", a plugin's name, or what --storage-get asks for."""
        return {{ cookiecutter.__class }}Storage(self, namespace)

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces that have keys."""
        return list(decode(self.run("namespaces")[0]))

    def __del__(self) -> None:
        """Close the connections. Errbot drops its storage plugin, but never closes it."""
        while self._idle and os.getpid() == self._process:
            with suppress(Exception):  # When Python exits, it may be closed already.
                self._idle.pop().close()

    def _create_if_missing(self) -> None:
        with suppress(Refused):
            self.run("read", n=b"", k=b"")
            return
        log.warning("Cannot read the table %s: creating it.", self.config.table)
        try:
            self.run("create")
        except Refused as refusal:
            with suppress(Refused):
                self.run("read", n=b"", k=b"")  # Another process was faster.
                return
            raise StoreException(
                f"{refusal} If there was a table before, restore a backup. If not, ask someone with"
                f" CREATE rights to run {self._sql['create']}; and GRANT SELECT, INSERT, UPDATE,"
                f" DELETE ON {self.config.table} TO the bot's account."
            ) from None

    def run(self, name: str, many: Any = None, **values: Any) -> tuple[list[Any], int]:
        """Run a statement in autocommit. Returns its rows, and the number of rows it changed."""
        if os.getpid() != self._process:  # The parent still uses the old connections.
            if self._engine.dialect.name == "sqlite":  # A fork inherits no locks.
                raise StoreException(f"Cannot use {self._place} in a forked process: spawn it.")
            self._idle, self._line, self._process = [], [], os.getpid()
        deadline = monotonic() + self.config.timeout
        turn = self._wait_for_turn(deadline)
        may_repeat = name not in ("remove", "swap")  # They would not see what the first try did.
        try:
            while turn:
                try:
                    return self._execute(self._take(), name, many or values)
                except Exception as error:
                    problem = getattr(error, "orig", None) or error
                    sent = getattr(error, "statement", name) is not None
                    code = getattr(problem, "sqlstate", 1)  # None: psycopg timed out
                    broken = sent and (not code or getattr(error, "connection_invalidated", True))
                if broken:
                    self._idle.clear()  # The other connections may be broken, too.
                again = (broken and may_repeat) or {code, *problem.args[:1]} & UNDONE
                if not again or monotonic() > deadline:
                    message = self._explain(problem, broken and name in ("write", "swap", "remove"))
                    raise Refused(message) if sent and not broken else StoreException(message)
                may_repeat = may_repeat and not broken
        finally:
            del turn
        raise StoreException(f"{self._place}: all {self.config.pool_size} connections are in use.")

    def _wait_for_turn(self, deadline: float) -> Event | None:
        """Wait until this thread is among the first pool_size. Returns None after the deadline."""
        turn = Event()  # It is in line only while it exists, so an interrupt cannot leave it there.
        self._line.append(mine := ref(turn))
        while monotonic() < deadline:
            for gone in [other for other in list(self._line) if not other()]:
                with suppress(ValueError):
                    self._line.remove(gone)
            if mine in self._line[: self.config.pool_size]:
                return turn
            sleep(0.002)
        return None

    def _take(self) -> sa.Connection:
        """Return an idle connection, or a new one."""
        with suppress(IndexError):
            while (idle := self._idle.pop()).info["end"] < monotonic() or wait(idle.info["io"], 0):
                idle.close()  # It is readable, so the server has closed it.
            return idle
        connection = self._engine.connect()
        connection.detach()  # SQLAlchemy forgets it. From now on it is in `_idle`, or in use.
        connection.info["end"] = monotonic() + self.config.pool_recycle
        driver: Any = connection.connection.dbapi_connection
        sock = getattr(driver, "_sock", driver)  # PyMySQL's; psycopg's connection acts as one.
        connection.info["io"] = [sock] * hasattr(sock, "fileno")
        return connection

    def _execute(self, connection: sa.Connection, name: str, values: Any) -> tuple[list[Any], int]:
        """Execute a statement. Reuse the connection only if that succeeds."""
        driver: Any = connection.connection.dbapi_connection
        try:
            result: Any = connection.exec_driver_sql(self._sql[name], values)
            answer = result.cursor.fetchall() if result.returns_rows else [], result.rowcount
        except BaseException:  # including Ctrl-C: the answer may still be on its way
            with suppress(Exception):
                driver.close()  # After Ctrl-C, SQLAlchemy would only forget it, locks and all.
            raise
        self._idle.append(connection)
        return answer

    def _explain(self, problem: BaseException, unknown: bool) -> str:
        """Return the database's place and an error's first line. Other lines may show data."""
        text = str(problem).split("\n")[0].replace(str(self._engine.url.password or "\0"), "***")
        end = " It may have been done, or not." if unknown else ""
        return f"{self._place}: {type(problem).__name__}: {text}.{end}"


class Refused(StoreException):
    """The server rejected the statement."""


def encode(name: str, limit: int = 10**9) -> bytes:
    """Encode a name, which may contain lone surrogates. Raises ValueError if it is too long."""
    encoded = name.encode("utf-8", "surrogatepass")
    if len(encoded) > limit:
        raise ValueError(f"{name[:30]!r} has {len(encoded)} bytes in UTF-8. At most {limit} fit.")
    return encoded


def decode(rows: Iterable[Any]) -> Iterator[str]:
    """Decode the names in rows. Skip any that are not UTF-8, because others wrote them."""
    for (name,) in rows:
        with suppress(UnicodeDecodeError):
            yield bytes(name).decode("utf-8", "surrogatepass")


def statements(table: str, dialect: sa.Dialect) -> dict[str, str]:
    """Return the statements by name. n: namespace, k: key, v: value, o: old value, s: limit."""
    n, k, v, o, s = map((":{}" if dialect.name == "sqlite" else "%({})s").format, "nkvos")
    quote = dialect.identifier_preparer.quote
    table, key = ".".join(map(quote, table.split("."))), quote("key")
    short = long = value = "BYTEA" if dialect.name == "postgresql" else "BLOB"
    replace = "ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value"
    if dialect.name in ("mysql", "mariadb"):
        short, long, value = f"VARBINARY({NAMESPACE_BYTES})", f"VARBINARY({KEY_BYTES})", "LONGBLOB"
        replace = "ON DUPLICATE KEY UPDATE value = VALUES(value)"
    row = f"namespace = {n} AND {key} = {k}"
    data, blobs = "value", "1 = 1"
    if dialect.name == "sqlite":  # Its columns accept values of any type.
        data, blobs = "CAST(value AS BLOB)", f"typeof(namespace) || typeof({key}) = 'blobblob'"
    of = f"FROM {table} WHERE namespace = {n} AND {blobs}"
    return {
        "create": f"CREATE TABLE {table} (namespace {short} NOT NULL, {key} {long} NOT NULL,"
        f" value {value} NOT NULL, PRIMARY KEY (namespace, {key}))",
        "read": f"SELECT {data} FROM {table} WHERE {row}",
        "write": f"INSERT INTO {table} (namespace, {key}, value) VALUES ({n}, {k}, {v}) {replace}",
        "swap": f"UPDATE {table} SET value = {v} WHERE {row} AND value = {o}",
        "remove": f"DELETE FROM {table} WHERE {row}",
        "len": f"SELECT count(*) FROM {table} WHERE namespace = {n}",
        "first keys": f"SELECT {key} {of} ORDER BY {key} LIMIT 20",
        "other keys": f"SELECT {key} {of} AND {key} > {k}",
        "items": f"SELECT {key}, {data} {of} AND {key} > {k} ORDER BY {key} LIMIT {s}",
        "namespaces": f"SELECT DISTINCT namespace FROM {table} WHERE {blobs}",
    }


def create_engine(address: SecretStr | None, timeout: float, file: str = "") -> sa.Engine:
    """Create an engine. Move secret options out of the URL, because `repr(engine)` shows it."""
    url = sa.URL.create("sqlite", database=file)
    if address:
        url = read_url(address.get_secret_value())
    secrets = {name: url.query[name] for name in url.query if "pass" in name}
    engine = sa.create_engine(
        url.difference_update_query(secrets),
        connect_args=driver_options(url, timeout) | secrets,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        hide_parameters=True,
        poolclass=sa.NullPool,
    )
    if engine.driver == "psycopg":
        import psycopg

        class Connection(psycopg.Connection[Any]):  # psycopg itself waits forever.
            def wait(self, *arguments: Any, **options: Any) -> Any:
                return super().wait(*arguments, **{"timeout": timeout + 1, **options})

        sa.event.listen(engine, "do_connect", lambda _, __, a, o: Connection.connect(*a, **o))
    elif engine.driver == "pysqlite":
        sa.event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA journal_mode = WAL"))
    return engine


def driver_options(url: sa.URL, timeout: float) -> dict[str, Any]:
    """Return options that make driver and server time out. Those in the URL take precedence."""
    whole = int(timeout + 0.999)
    options: dict[str, Any] = {"timeout": min(timeout, 0.5)}  # Ctrl-C waits for SQLite.
    if url.drivername == DRIVERS["postgresql"]:
        options = {
            "connect_timeout": whole,
            "options": f"-c statement_timeout={int(timeout * 1000) + 1} -c enable_sort=off"
            f" {url.query.get('options', '')}",
        }
    elif url.drivername != "sqlite":
        options = {
            "connect_timeout": whole,
            "read_timeout": whole + 1,
            "write_timeout": whole + 1,
            "init_command": f"SET SESSION innodb_lock_wait_timeout = {whole}",
            "binary_prefix": True,  # values are bytes, not text in the connection's charset
        }
    return {name: options[name] for name in options if name not in {*url.query} - {"options"}}
