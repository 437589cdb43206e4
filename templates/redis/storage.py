"""{{ cookiecutter.plugin_name }}, a storage plugin for Errbot.

In the order in which one reads: Config has the keys of STORAGE_CONFIG, Server sends commands to
Redis, Storage is one open namespace, Plugin connects and opens namespaces.

A namespace is one hash: its key is the prefix and the name, its fields are the keys. So nothing
ever looks through the other keys of the server.

Errbot executes this file by its path, so it imports none of its neighbours, and takes the one
subclass of StoragePluginBase that it finds in it.
"""

import hashlib
import json
import logging
import pickle
import re
import sys
from array import array
from collections.abc import Iterable, Iterator
from typing import Annotated, Any
from urllib.parse import urlsplit

import redis
from errbot.storage import StoreException
from errbot.storage.base import StorageBase, StoragePluginBase
from itsdangerous import BadSignature, Signer
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

log = logging.getLogger(__name__)

Secret = Annotated[SecretStr, Field(min_length=1, strict=True)]

# After these, the same command may have an answer on a new connection.
BROKEN = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError)

# How many keys `keys` fetches at first, how many it fetches at once, and how often it begins again.
FIRST = 20
AT_ONCE = 10_000
SCANS = 10


def encode(name: str) -> bytes:
    """Write a name as Redis gets it. There is no str that has no bytes, or those of another."""
    return name.encode("utf-8", "surrogatepass")


def digest(field: bytes) -> int:
    """Return 64 bits that tell a field from others."""
    return int.from_bytes(hashlib.blake2b(field, digest_size=8).digest(), "big", signed=True)


mark = hash if sys.hash_info.width == 64 else digest  # the same, and faster


def check_url(url: SecretStr) -> SecretStr:
    """Refuse a url that redis-py cannot use, or would read otherwise than it is meant.

    Raises ValueError that shows nothing of it.
    """
    text = url.get_secret_value()
    if not re.match("(redis|rediss|unix)://", text):
        raise ValueError("It must begin with redis://, rediss:// or unix://")
    try:
        options = parse_url(text)
        parts = urlsplit(text)
        readable = not parts.fragment
        if parts.scheme == "unix":
            readable &= "path" in options
        else:
            # The rest of a password with a slash in it, whose beginning would pass for the port.
            readable &= "@" not in parts.path + parts.query
            readable &= re.fullmatch(r"/?\d*", parts.path) is not None
        connection_class = options.pop("connection_class", redis.Connection)
        connection_class(**options)
    except Exception:
        readable = False
    if not readable:
        raise ValueError(
            "It is no url of the form redis://user:password@host:port/number?option=value"
            " (in user and password, write / as %2F, @ as %40, # as %23, ? as %3F, % as %25)"
        )
    return url


def check_address(address: str) -> str:
    """Refuse what is no address of a Sentinel. Raises ValueError that shows nothing of it."""
    try:
        parts = urlsplit(f"//{address}")
        usable = parts.netloc == address and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in address:
        raise ValueError("Each must be a host, or host:port")
    return address


class {{ cookiecutter.__class }}Config(BaseModel):
    """The keys of STORAGE_CONFIG; a test compares them with the table in README.md."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[Secret, AfterValidator(check_url)] = Field(
        default=SecretStr("redis://localhost:6379/0"),
        description="Address of the server: redis://, rediss:// (TLS) or unix://. It is kept "
        "secret, for it may hold a password.",
    )
    sentinels: list[Annotated[str, AfterValidator(check_address)]] = Field(
        default=[],
        description="Addresses of the Sentinels, each host or host:port (26379 by default). They "
        "name the host then, and the url says the rest.",
    )
    service: str = Field(
        default="mymaster",
        min_length=1,
        description="The name that the Sentinels have for the master.",
    )
    sentinel_username: str | None = Field(
        default=None,
        min_length=1,
        description="The account on the Sentinels themselves, where they ask for one.",
    )
    sentinel_password: Secret | None = Field(
        default=None,
        description="The password on the Sentinels themselves, where they ask for one.",
    )
    cluster: bool = Field(
        default=False,
        strict=True,
        description="Whether the url is that of a node of a Redis Cluster.",
    )
    prefix: str = Field(
        default="errbot:",
        description="Begins the name of each key on the server. Bots that share a server have "
        "different ones.",
    )
    timeout: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        strict=True,
        description="Seconds to wait for the server before an operation fails; after half of them "
        "it is tried again.",
    )
{% include "shared/signing_key.py" %}
    @field_validator("sentinels", "cluster")
    @classmethod
    def _fits(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse Sentinels or a Cluster where the keys before say otherwise."""
        url = info.data.get("url", SecretStr(""))
        if value and url.get_secret_value().startswith("unix:"):
            raise ValueError("It cannot be used with a unix:// url")
        if value and info.data.get("sentinels"):
            raise ValueError("It cannot be used together with sentinels")
        return value

{% include "shared/load.py" %}

class Server:
    """The server, the master that Sentinels name, or the Cluster.

    It has one pool of connections for all namespaces. A thread holds a connection only while it
    waits for an answer, so there are never more of them than the bot has threads.
    """

    def __init__(self, config: {{ cookiecutter.__class }}Config) -> None:
        self.config = config
        self._options = parse_url(config.url.get_secret_value())
        self._sentinels = [
            (parts.hostname or "", parts.port or 26379)
            for parts in (urlsplit(f"//{address}") for address in config.sentinels)
        ]
        self._client: Any = None
        self.connections = Connections()
        self.can_leave_out_values = True
        host, port = self._options.get("host", "localhost"), self._options.get("port", 6379)
        self.where = f"Redis at {self._options.get('path', f'{host}:{port}')}"
        if self._sentinels:
            addresses = ", ".join(f"{host}:{port}" for host, port in self._sentinels)
            self.where = f"Redis master {config.service!r} of the Sentinels {addresses}"

    def ask(self, *command: str | bytes | int, repeat: bool = True, **options: Any) -> Any:
        """Send a command, and return the answer.

        It is sent once more on a broken connection, unless it must not be repeated. Raises
        StoreException.
        """
        try:
            try:
                return self._connected().execute_command(*command, **options)
            except BROKEN:
                if not repeat:
                    raise
                return self._connected().execute_command(*command, **options)
        except Exception as error:  # also KeyError, which would say that there is no such key
            # An error may quote the command, and with it a value.
            reason = re.split(r" with args|[ :]*\('", str(error))[0] or type(error).__name__
            unknown = isinstance(error, BROKEN) and not repeat
        raise StoreException(
            f"{self.where} did not do {command[0]!s}: {reason}"
            + (" (it may or may not have been done, and was not repeated)" if unknown else "")
        )

    def warn_of_losses(self) -> None:
        """Log a warning where the server would lose or evict data, if it may be asked."""
        try:
            info = self._connected().info()
        except Exception as error:
            log.debug("%s does not tell how it keeps data: %s.", self.where, type(error).__name__)
            return
        if info.get("aof_enabled") == 0:
            log.warning(
                "%s has `appendonly no`: when it crashes, it loses all that was set since its last"
                " snapshot, or all that it has.",
                self.where,
            )
        if str(info.get("maxmemory_policy")).startswith("allkeys"):
            log.warning(
                "%s has `maxmemory-policy %s`: when its memory is full, it drops whole namespaces."
                " Set `noeviction`.",
                self.where,
                info["maxmemory_policy"],
            )

    def _connected(self) -> Any:
        """Return the client. It connects when it is first used, and again whenever it must."""
        if self._client is None:
            # Two threads may both come here at the start. Then one client is dropped again.
            self._client = self._connect()
        return self._client

    def _connect(self) -> Any:
        """Make the client. Only that of a Cluster asks the server then."""
        config = self.config
        # An operation is tried twice, and each time waits for this many servers at most.
        waits = 2 * (1 + len(self._sentinels) + config.cluster)
        timeouts: dict[str, Any] = {
            "socket_timeout": config.timeout / waits,
            "socket_connect_timeout": config.timeout / waits,
            # `ask` repeats, for it knows what may be repeated. What redis-py does by default
            # changes from version to version.
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        options = {
            **timeouts,
            "max_connections": 2**31,
            "redis_connect_func": self.connections.made,
        }
        url = config.url.get_secret_value()
        if config.cluster:
            # At DEBUG it logs commands, and with them values.
            logging.getLogger("redis.cluster").setLevel(logging.INFO)
            return redis.RedisCluster.from_url(url, **options)
        # On a former master the connection is closed, and the next one finds the new master.
        options["retry_on_error"] = [redis.ReadOnlyError]
        if not self._sentinels:
            return redis.Redis.from_pool(redis.ConnectionPool.from_url(url, **options))
        account = {key: self._options[key] for key in self._options if key not in ("host", "port")}
        tls = {key: account[key] for key in account if key.startswith("ssl_")}
        tls["ssl"] = account.pop("connection_class", None) is not None
        password = config.sentinel_password
        sentinel = Sentinel(
            self._sentinels,
            sentinel_kwargs={
                **timeouts,
                **tls,
                "username": config.sentinel_username,
                "password": password.get_secret_value() if password else None,
            },
        )
        return sentinel.master_for(config.service, **{**options, **account, **tls})


class Connections:
    """Counts the connections that are made, to notice that a server may be another one."""

    def __init__(self) -> None:
        self.count = 0

    def made(self, connection: Any) -> None:
        """Sign in on a new connection, as redis-py does by default, and count it."""
        connection.on_connect()
        self.count += 1


class {{ cookiecutter.__class }}Storage(StorageBase):
    """One open namespace. Any number of threads may use it at the same time."""

    def __init__(self, server: Server, namespace: str) -> None:
        self._server = server
        self._hash = encode(server.config.prefix + namespace)
        self._namespace = namespace
        self._signing_keys = server.config.signing_keys

    def set(self, key: str, value: Any) -> None:
        """Store a value under a key, in place of the one that may be there.

        Raises TypeError where the key is no str, what pickle raises where it cannot pickle the
        value, and StoreException where the server does not do it.
        """
        data = self._dump(key, value)
        self._server.ask("HSET", self._hash, encode(key), data)

    def get(self, key: str) -> Any:
        """Return the value of a key.

        Raises KeyError where there is none, and StoreException where it cannot be read.
        """
        data = self._server.ask("HGET", self._hash, encode(key))
        if data is None:
            raise KeyError(key)
        return self._load(key, data)

    def remove(self, key: str) -> None:
        """Remove a key and its value.

        Raises KeyError where there is none, and StoreException where the server does not do it.
        When the connection breaks meanwhile, nobody knows whether it was done: a second try would
        find no key in either case.
        """
        if not self._server.ask("HDEL", self._hash, encode(key), repeat=False):
            raise KeyError(key)

    def len(self) -> int:
        """Return the number of keys. Raises StoreException where the server does not tell."""
        return int(self._server.ask("HLEN", self._hash))

    def keys(self) -> Iterator[str]:
        """Iterate over every key once. Keys may be added and removed meanwhile.

        Raises StoreException where the server does not tell them.
        """
        for page in self._pages():
            yield from self._decode(page)

    def _decode(self, fields: Iterable[bytes]) -> list[str]:
        """Return the keys that some fields are, without those that somebody else has put there."""
        keys = []
        for field in fields:
            try:
                keys.append(field.decode("utf-8", "surrogatepass"))
            except UnicodeDecodeError:
                log.warning("Skipped %r in the namespace %r: no key.", field, self._namespace)
        return keys

    def _pages(self) -> Iterator[Iterable[bytes]]:
        """Fetch the fields of the hash, each once: of a large one page by page."""
        # To clear a namespace, Errbot asks again and again for its first key, so that one is cheap
        # (`MutableMapping.popitem`). A scan would look each time through all the places from which
        # keys were removed before.
        some = self._server.ask("HRANDFIELD", self._hash, FIRST) or []
        yield some
        if len(some) < FIRST:
            return
        if self.len() <= AT_ONCE:
            yield set(self._server.ask("HKEYS", self._hash)).difference(some)
            return
        # A scan gives fields twice where the server shrinks the hash meanwhile, or where it begins
        # again. To remember a million fields takes 100 MB, their hashes 8 MB. They are compared
        # many at once, for each comparison looks at all of them.
        marks = array("q", map(mark, some))
        fetched: list[bytes] = []
        for page in self._scan():
            fetched += page
            if page and len(fetched) < min(len(marks) // 2, AT_ONCE * 5):
                continue
            new = {mark(field): field for field in fetched}
            for seen in new.keys() & marks:
                del new[seen]
            yield new.values()
            marks.extend(new)
            fetched.clear()

    def _scan(self) -> Iterator[list[bytes]]:
        """Scan the hash. Some fields may come twice; the page after the last one is empty."""
        # A scan goes on where it stopped, also when fields come and go, but not on another server,
        # nor on this one after a restart: it would miss fields. So it begins again then.
        for _ in range(SCANS):
            connections = self._server.connections.count
            cursor, count = 0, 500
            while self._server.connections.count == connections:
                cursor, page, size = self._scan_page(cursor, count)
                yield page
                if not cursor and self._server.connections.count == connections:
                    yield []
                    return
                # Servers before Redis 7.4 and Valkey 8 send the values, too.
                count = min(count * 2, 2_000) if size < 500_000 else max(count // 2, 10)
        raise StoreException(
            f"{self._server.where} could not list the keys of the namespace {self._namespace!r}:"
            f" new connections had to be made in each of {SCANS} attempts"
        )

    def _scan_page(self, cursor: int, count: int) -> tuple[int, list[bytes], int]:
        """Fetch about so many fields. Return where to go on, and the bytes of the values."""
        command = ("HSCAN", self._hash, cursor, "COUNT", count)
        if self._server.can_leave_out_values:
            try:
                cursor, page = self._server.ask(*command, "NOVALUES", no_values=True)
                return cursor, page, 0
            except StoreException as error:
                if "syntax error" not in str(error):
                    raise
                self._server.can_leave_out_values = False
        cursor, pairs = self._server.ask(*command, no_values=True)  # as a list, and not as a dict
        return cursor, pairs[::2], sum(map(len, pairs[1::2]))

    def close(self) -> None:
        """Do nothing: every `set` was done when it returned, and connections are the plugin's."""

{% include "shared/values.py" %}

class {{ cookiecutter.__class }}Plugin(StoragePluginBase):
    """Has the connections, and opens a namespace for each plugin of the bot."""

    def __init__(self, bot_config: Any) -> None:
        """Read STORAGE_CONFIG, and warn where the server may lose data.

        Raises ValueError where STORAGE_CONFIG is wrong. Where the server is not there, the first
        operation says so, and the first one after it has come back succeeds.
        """
        super().__init__(bot_config)  # type: ignore[no-untyped-call]
        self._server = Server({{ cookiecutter.__class }}Config.load(self._storage_config))
        self._server.warn_of_losses()

    def open(self, namespace: str) -> StorageBase:
        """Open a namespace: "core", the name of a plugin, or what --storage-get names."""
        log.debug("Opening the namespace %r.", namespace)
        return {{ cookiecutter.__class }}Storage(self._server, namespace)
