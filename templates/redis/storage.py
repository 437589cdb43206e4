"""{{ cookiecutter.plugin_name }}, a storage plugin for Errbot.

It keeps each namespace as one hash in Redis or Valkey: the fields of the hash are the keys.

Errbot executes this file by its path, so it cannot import other modules of the package.
"""

import hashlib
import json
import logging
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from typing import Annotated, Any
from urllib.parse import urlsplit

import redis
from errbot.storage import StoreException
from errbot.storage.base import StorageBase, StoragePluginBase
from itsdangerous import BadSignature, Signer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

log = logging.getLogger(__name__)

Secret = Annotated[SecretStr, Field(min_length=1, strict=True)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Address = Annotated[str, Field(pattern=r"^([\w.-]+|\[[\da-fA-F:.]+\])(:\d+)?$")]
SigningKey = Annotated[SecretStr, Field(min_length=16, strict=True)]

FIRST = 20  # keys to fetch at first, because Errbot's `clear` repeatedly asks for the first key
WRITES = {"HSET", "EVAL", "HDEL"}
SWAP = """if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) return 1"""


def check_url(secret: SecretStr) -> SecretStr:
    """Reject a url that redis-py would not parse correctly. The ValueError does not show it."""
    text, reason = secret.get_secret_value(), ""
    try:
        parts, options = urlsplit(text), parse_url(text)
        # An unencoded #, / or ? in a password would end the address early.
        misread = bool(parts.fragment) or "@" in parts.path + parts.query
        if misread or not re.match(r"unix://.*/.|rediss?://[^/]*/?\d*(\?|$)", text):
            raise ValueError
        options.pop("connection_class", redis.Connection)(**options)
    except Exception as error:
        reason = getattr(error, "strerror", None) or "percent-encode special characters"
    if reason:
        raise ValueError(f"It must be like redis://user:password@host:6379/0 ({reason})")
    return secret


class {{ cookiecutter.__class }}Config(BaseModel):
    """The keys of STORAGE_CONFIG. A test compares them with the table in README.md."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[Secret, AfterValidator(check_url)] = Field(
        default=SecretStr("redis://localhost:6379/0"),
        description="Address of the server: redis://, rediss:// (TLS) or unix://. It is secret "
        "because it may hold a password.",
    )
    sentinels: list[Address] = Field(
        default=[],
        description="Addresses of the Sentinels, each host or host:port (26379 by default). The "
        "host then comes from them; everything else from the url.",
    )
    service: str = Field(default="mymaster", description="The Sentinels' name for the master.")
    sentinel_username: str | None = Field(default=None, description="Account on the Sentinels.")
    sentinel_password: Secret | None = Field(default=None, description="That account's password.")
    cluster: bool = Field(default=False, strict=True, description="Whether it is a Cluster.")
    prefix: str = Field(default="errbot:", description="Prefix of names. Each bot needs its own.")
    timeout: Seconds = Field(default=10.0, description="Seconds to wait before an operation fails.")
{% include "shared/signing_key.py" %}
{% include "shared/load.py" %}

class {{ cookiecutter.__class }}Storage(StorageBase):
    """One open namespace. Any number of threads may use it at once."""

    def __init__(self, plugin: "{{ cookiecutter.__class }}Plugin", namespace: str) -> None:
        self._ask = plugin.ask
        self._namespace = namespace
        self._hash = encode(plugin.config.prefix + namespace)
        self._signing_keys = plugin.config.signing_keys

    # Bytes: what the database does.

    def read(self, key: str) -> bytes:
        """Return the bytes stored under a key. Raises KeyError if there are none."""
        data = self._ask("HGET", self._hash, encode(key))
        if data is None:
            raise KeyError(key)
        return bytes(data)

    def write(self, key: str, data: bytes) -> None:
        """Store bytes under a key atomically. On return, they are in the database."""
        self._ask("HSET", self._hash, encode(key), data)

    def swap(self, key: str, old: bytes, new: bytes) -> bool:
        """Atomically replace bytes if they still are the old ones. Returns whether it did."""
        return bool(self._ask("EVAL", SWAP, 1, self._hash, encode(key), old, new))

    def remove(self, key: str) -> None:
        """Remove a key. Raises KeyError if it is not there."""
        if not self._ask("HDEL", self._hash, encode(key)):
            raise KeyError(key)

    def len(self) -> int:
        """Return the number of keys."""
        return int(self._ask("HLEN", self._hash))

    def keys(self) -> Iterator[str]:
        """Iterate over the keys, even while keys are added and removed."""
        first = self._ask("HRANDFIELD", self._hash, FIRST)
        yield from decode(first)
        if len(first) == FIRST:
            yield from decode(set(self._ask("HKEYS", self._hash)).difference(first))

    def close(self) -> None:
        """Do nothing: nothing is buffered, and connections belong to the plugin."""

{% include "shared/values.py" %}

class {{ cookiecutter.__class }}Plugin(StoragePluginBase):
    """Opens a namespace for each of the bot's plugins, and keeps the connections to the server."""

    def __init__(self, bot_config: Any) -> None:
        """Read STORAGE_CONFIG. Raises ValueError if it is wrong. The server need not run yet."""
        self._idle: list[Any] = []
        super().__init__(bot_config)  # type: ignore[no-untyped-call]
        del bot_config  # It has secrets, and Sentry reports the local variables of each frame.
        self.config = {{ cookiecutter.__class }}Config.load(self._storage_config)
        logging.getLogger("redis.cluster").setLevel(logging.INFO)  # at DEBUG it logs values
        unix = self.config.url.get_secret_value().startswith("unix:")
        if bool(self.config.sentinels) + self.config.cluster + unix > 1:
            heading = "STORAGE_CONFIG of {{ cookiecutter.plugin_name }} is wrong:"
            raise ValueError(f"{heading}\n  sentinels, cluster, a unix:// url: use only one.")
        if not self.config.signing_keys:
            log.warning("No signing_key: anyone who can write to Redis can run code in the bot.")

    def open(self, namespace: str) -> StorageBase:
        """Open a namespace, such as "core", a plugin's name, or what --storage-get asks for."""
        return {{ cookiecutter.__class }}Storage(self, namespace)

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces that have keys. The account needs `+scan`."""
        prefix = encode(self.config.prefix)
        pattern = re.sub(rb"([*?\[\]\\])", rb"\\\1", prefix) + b"*"
        found = self._run("SCAN", lambda client: set(client.scan_iter(pattern, 1000, "hash")))
        return list(decode(name[len(prefix) :] for name in found))

    def __del__(self) -> None:
        """Close the connections. Errbot drops its storage plugin, but never closes it."""
        while self._idle:
            self._idle.pop().close()

    def ask(self, *command: str | bytes | int) -> Any:
        """Send a command, and return the answer. Raises StoreException if that fails."""
        return self._run(str(command[0]), lambda client: client.execute_command(*command))

    def _run(self, name: str, work: Callable[[Any], Any]) -> Any:
        """Do work with a client. Retry once after a broken connection, if that is safe."""
        for last in (False, True):
            try:
                return self._use(self._take(), work)
            except Exception as error:  # including KeyError, which would mean a missing key
                # An error may quote the command, and so a value.
                reason = re.split(r" with args|[ :]*\('", str(error))[0] or type(error).__name__
                broken = isinstance(error, (redis.ConnectionError, redis.TimeoutError))
                unsent = re.search("connecting to|now a slave|No master|loading|password", reason)
                unknown = broken and name in WRITES and not unsent
                again = (broken and not unknown) or isinstance(error, redis.ReadOnlyError)
            if last or not again:
                break
        reason += " (it may or may not have been done)" if unknown else ""
        raise StoreException(f"Redis at {self._place}: {name} failed: {reason}")

    def _use(self, client: Any, work: Callable[[Any], Any]) -> Any:
        """Do work with a client. Reuse the client only if that succeeds."""
        try:
            answer = work(client)
        except BaseException:  # including Ctrl-C: the answer may still be on its way
            self._idle.clear()  # The other connections may be broken, too.
            client.close()
            raise
        self._idle.append(client)
        return answer

    @property
    def _place(self) -> str:
        parts = urlsplit(self.config.url.get_secret_value())
        return ", ".join(self.config.sentinels) or parts.netloc.rpartition("@")[2] or parts.path

    def _take(self) -> Any:
        """Return an idle client, or a new one. Only a new client of a Cluster connects now."""
        with suppress(IndexError):
            return self._idle.pop()
        config, url = self.config, self.config.url.get_secret_value()
        wait = config.timeout / 2 / (1 + len(config.sentinels) + config.cluster)  # tries, servers
        options: dict[str, Any] = {"socket_timeout": wait, "socket_connect_timeout": wait}
        options |= {"retry": Retry(NoBackoff(), 0), "protocol": 2}
        if config.cluster:
            return redis.RedisCluster.from_url(url, **options)
        if not config.sentinels:
            return redis.Redis.from_url(url, **options)
        account = parse_url(url)
        tls = {name: account[name] for name in account if name.startswith("ssl_")}
        tls["ssl"] = account.pop("connection_class", None) is not None
        password = config.sentinel_password
        addresses = [urlsplit(f"//{address}") for address in config.sentinels]
        sentinel = Sentinel(
            [(at.hostname, at.port or 26379) for at in addresses],
            sentinel_kwargs={
                **options,
                **tls,
                "username": config.sentinel_username,
                "password": password.get_secret_value() if password else None,
            },
        )
        account = {name: account[name] for name in account if name not in ("host", "port")}
        return sentinel.master_for(config.service, **(options | account | tls))


def encode(name: str) -> bytes:
    """Encode a name, which may contain lone surrogates."""
    return name.encode("utf-8", "surrogatepass")


def decode(names: Iterable[bytes]) -> Iterator[str]:
    """Decode names. Skip any that are not UTF-8, because the plugin never writes such names."""
    for name in names:
        with suppress(UnicodeDecodeError):
            yield name.decode("utf-8", "surrogatepass")
