"""Etcd, a storage plugin for Errbot.

It keeps all data in etcd, under a prefix. It sends JSON with Python's own HTTP client.

Errbot executes this file by its path, so it cannot import other modules of the package.
"""

import hashlib
import json
import os
import pickle
import re
import ssl
from base64 import b64decode, b64encode
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from io import BytesIO
from multiprocessing.connection import wait
from time import time
from typing import Annotated, Any
from urllib.parse import quote, unquote
from uuid import uuid4

from errbot.storage import StoreException
from errbot.storage.base import StorageBase, StoragePluginBase
from itsdangerous import BadSignature, Signer
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
SigningKey = Annotated[SecretStr, Field(min_length=16, strict=True)]


class EtcdConfig(BaseModel):
    """The keys of STORAGE_CONFIG. A test compares them with the table in README.md."""

    model_config = ConfigDict(extra="forbid")

    host: str = Field(default="localhost", description="Host of etcd.")
    port: int = Field(default=2379, strict=True, description="Port for clients.")
    ca_cert: str | None = Field(default=None, description="File of the CA. It turns TLS on.")
    cert: str | None = Field(default=None, description="File of the bot's certificate and key.")
    prefix: str = Field(default="errbot/", description="Prefix of names. Each bot needs its own.")
    timeout: Seconds = Field(default=10.0, description="Seconds to wait before an operation fails.")
    signing_key: SigningKey | Annotated[list[SigningKey], Field(min_length=1)] = Field(
        default=[], description="Signs every value. To change it, give a list, the new key last."
    )

    @property
    def signing_keys(self) -> list[SecretStr]:
        """The signing keys, the newest last; none if values are not signed."""
        return self.signing_key if isinstance(self.signing_key, list) else [self.signing_key]

    @classmethod
    def load(cls, storage_config: object) -> "EtcdConfig":
        """Read STORAGE_CONFIG. Raises ValueError, which names each wrong key but shows no value."""
        try:
            return cls.model_validate({} if storage_config is None else storage_config)
        except ValidationError as error:
            problems = error.errors(include_input=False, include_context=False)
        del storage_config  # Sentry reports the local variables of each frame.
        known, lines = ", ".join(cls.model_fields), dict[str | int, str]()
        for problem in sorted(problems, key=lambda p: -len(p["loc"])):  # the precise ones first
            key, *_ = problem["loc"] or [""]
            line = f"{key}: no such key. The keys are {known}."
            if field := cls.model_fields.get(str(key)):
                line = f"{key}: {problem['msg']}. {field.description}"
            lines.setdefault(key, line if problem["loc"] else f"It must be a dict with {known}.")
        heading = "STORAGE_CONFIG of Etcd is wrong:"
        raise ValueError("\n  ".join([heading, *lines.values()]))


class EtcdStorage(StorageBase):
    """One open namespace. Any number of threads may use it at once."""

    def __init__(self, database: Any, namespace: str, secrets: list[SecretStr]) -> None:
        self._database = database
        self._namespace = namespace
        self._signing_keys = secrets
        quoted = quote(namespace, safe="", errors="surrogatepass")
        self._heads, self._parts = f"heads/{quoted}/", f"parts/{quoted}/"
        self.collect()

    # Bytes: the same for every database that limits values. From here on, edit only PART.
    # Each key has a head, which holds a small value or points to the parts of a large one. Parts
    # are stored under a new id and never change. Then the head is replaced atomically, and the old
    # parts are deleted. A killed bot may leave parts without a head, which `collect` deletes.
    #
    # The database needs six methods. A place and a name together identify the stored bytes:
    #   get(place, name)               returns the bytes, or None
    #   put(place, name, data)         stores bytes
    #   switch(place, name, new, old)  atomically stores new, or removes the name if new is None,
    #                                  but only if old is None or equals the stored bytes; returns
    #                                  what was stored before
    #   delete(place, beginning)       removes all names with this beginning
    #   names(place, start, limit)     returns at most limit names, in order, from start on
    #   count(place)                   returns the number of names

    PART = 500_000  # maximum bytes in a part or a head; `switch` may send two heads
    HOUR = 3_600  # seconds after which parts without a head are deleted

    def read(self, key: str) -> bytes:
        """Return the bytes stored under a key. Raises KeyError if there are none."""
        before = None
        while (head := self._database.get(self._heads, key)) != before:
            if head is not None and (data := self._join(head)) is not None:
                return data
            before = head  # Its parts are gone, so there should be a newer head.
        if head is None:
            raise KeyError(key)
        raise StoreException(f"A part of the value of the key {key!r} is missing.")

    def write(self, key: str, data: bytes) -> None:
        """Store bytes under a key atomically. On return, they are in the database."""
        head = self._store(key, data)
        self._discard(self._database.switch(self._heads, key, head, None))

    def swap(self, key: str, old: bytes, new: bytes) -> bool:
        """Atomically replace bytes if they still are the old ones. Returns whether it did."""
        head = self._database.get(self._heads, key)
        if head is None or self._join(head) != old:
            return False
        other = self._store(key, new)
        done = bool(self._database.switch(self._heads, key, other, head) == head)
        self._discard(head if done else other)
        return done

    def remove(self, key: str) -> None:
        """Remove a key. Raises KeyError if it is not there."""
        head = self._database.switch(self._heads, key, None, None)
        if head is None:
            raise KeyError(key)
        self._discard(head)

    def len(self) -> int:
        """Return the number of keys."""
        return int(self._database.count(self._heads))

    def keys(self) -> Iterator[str]:
        """Iterate over the keys, even while keys are added and removed."""
        # Few at first, for Errbot's `clear`. Then all at once, so that a loop that adds keys ends.
        first = self._database.names(self._heads, "", 20)
        yield from first
        if len(first) == 20:
            yield from list(self._names(self._heads, first[-1] + "\0"))

    def close(self) -> None:
        """Do nothing: nothing is buffered, and the connection belongs to the plugin."""

    def collect(self) -> None:
        """Delete parts that had no head for an hour: a bot was killed during `set`."""
        for id in {name.split("/")[0] for name in self._names(self._parts)}:
            if time() - int(id.split("-")[0]) > self.HOUR:
                key = self._database.get(self._parts, f"{id}/key") or b""
                head = self._database.get(self._heads, key.decode("utf-8", "surrogatepass")) or b""
                if not head.startswith(id.encode()):
                    self._database.delete(self._parts, f"{id}/")

    def _names(self, place: str, start: str = "") -> Iterator[str]:
        while page := self._database.names(place, start, 100):
            yield from page
            start = page[-1] + "\0"

    def _store(self, key: str, data: bytes) -> bytes:
        """Store the parts of a value if it is large, and return its head."""
        if len(data) <= self.PART:
            return b"=" + data
        id, cuts = f"{int(time())}-{uuid4().hex}", range(0, len(data), self.PART)
        self._database.put(self._parts, f"{id}/key", key.encode("utf-8", "surrogatepass"))
        for number, cut in enumerate(cuts):
            self._database.put(self._parts, f"{id}/{number}", data[cut : cut + self.PART])
        if time() - int(id.split("-")[0]) > self.HOUR / 2:  # `collect` could delete the parts.
            raise StoreException(f"Storing {len(data)} bytes under the key {key!r} took too long.")
        return f"{id} {len(cuts)}".encode()

    def _join(self, head: bytes) -> bytes | None:
        """Return the value of a head, or None if its parts have been deleted."""
        if head.startswith(b"="):
            return head[1:]
        id, count = head.decode().split()
        found = [self._database.get(self._parts, f"{id}/{number}") for number in range(int(count))]
        return None if None in found else b"".join(found)

    def _discard(self, head: bytes | None) -> None:
        """Delete the parts of a head that has been replaced or removed."""
        if head and not head.startswith(b"="):
            self._database.delete(self._parts, head.split()[0].decode() + "/")

    # Values: the same for every database. Do not edit the rest of this class.

    def get(self, key: str) -> Any:
        """Return a value. Raises KeyError if there is none, StoreException if it is unreadable."""
        return self._load(key, self.read(key))

    def set(self, key: str, value: Any) -> None:
        """Store a value. If it cannot be pickled, nothing changes."""
        self.write(key, self._dump(key, value))

    def signer(self, key: str) -> Signer:
        """Return a signer for this namespace and key. A value moved elsewhere does not verify."""
        place = [self._namespace, key]  # json.dumps writes an emoji and its surrogates alike
        salt = json.dumps(place) if json.loads(json.dumps(place)) == place else ascii(place)
        keys = [secret.get_secret_value() for secret in self._signing_keys]
        return Signer(keys, salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)

    def _dump(self, key: str, value: Any) -> bytes:
        """Pickle a value, and sign it if there is a signing key."""
        if not isinstance(key, str):
            raise TypeError(f"A key must be a str, not a {type(key).__name__}.")
        data = pickle.dumps(value, protocol=5)
        return self.signer(key).sign(data) if self._signing_keys else data

    def _load(self, key: str, data: bytes) -> Any:
        """Check the signature before unpickling, because unpickling runs code."""
        where = f"the value of the key {key!r} in the namespace {self._namespace!r}"
        why = "is signed, but STORAGE_CONFIG has no signing_key"
        if self._signing_keys:
            why = "was changed, moved here, or not signed with a signing_key in STORAGE_CONFIG"
        try:
            stream = BytesIO(self.signer(key).unsign(data) if self._signing_keys else data)
            value = pickle.load(stream)
            if stream.read(1):
                raise BadSignature("data after the pickle")
            return value
        except BadSignature:
            raise StoreException(f"Refused {where}: it {why}.") from None
        except Exception as error:
            found = re.search(r"(No module \w+|(Can't get|has no) attribute) '[\w.]+'", str(error))
            reason = found[0] if found else type(error).__name__
            raise StoreException(f"Cannot unpickle {where}: {reason}.") from error
        finally:
            data, value = b"", None  # Sentry reports the local variables of each frame.

    __reduce__ = None  # type: ignore[assignment]  # Not to be pickled: it has keys.


class EtcdPlugin(StoragePluginBase):
    """Connects when the bot starts, and opens a namespace for each of the bot's plugins."""

    def __init__(self, bot_config: Any) -> None:
        """Read STORAGE_CONFIG and connect. Raises ValueError if STORAGE_CONFIG is wrong."""
        super().__init__(bot_config)  # type: ignore[no-untyped-call]
        del bot_config  # It has secrets, and Sentry reports the local variables of each frame.
        self._config = EtcdConfig.load(self._storage_config)
        # By process, because a forked child would read its parent's answers.
        self._idle: dict[int, list[HTTPConnection]] = defaultdict(list)

    def _take(self) -> HTTPConnection:
        """Return an idle connection, or a new one."""
        with suppress(IndexError):
            while wait([(connection := self._idle[os.getpid()].pop()).sock], timeout=0):
                connection.close()  # It is readable, so etcd has closed it.
            return connection
        config = self._config
        if config.ca_cert is None:
            return HTTPConnection(config.host, config.port, timeout=config.timeout)
        context = ssl.create_default_context(cafile=config.ca_cert)
        if config.cert:
            context.load_cert_chain(config.cert)
        return HTTPSConnection(config.host, config.port, timeout=config.timeout, context=context)

    def _ask(self, task: str, **what: Any) -> Any:
        """Send a request to etcd, and return the answer. Raises StoreException if it fails."""
        text = json.dumps(what, default=lambda data: b64encode(data).decode())
        try:
            connection = self._take()
            connection.request("POST", f"/v3/kv/{task}", text)
            answer = json.load(response := connection.getresponse())
            if response.status != 200:
                raise ValueError(answer.get("error"))
        except (OSError, HTTPException, ValueError) as error:
            raise StoreException(f"etcd at {self._config.host}: {task} failed: {error}") from None
        self._idle[os.getpid()].append(connection)  # But not after Ctrl-C: an answer may arrive.
        return answer

    def _key(self, place: str, name: str) -> bytes:
        return (self._config.prefix + place + name).encode("utf-8", "surrogatepass")

    def _range(self, place: str, start: str = "") -> dict[str, bytes]:
        return {"key": self._key(place, start), "range_end": self._key(place[:-1], "0")}

    def get(self, place: str, name: str) -> bytes | None:
        """Return the bytes under a name, or None."""
        return value(self._ask("range", key=self._key(place, name)))

    def put(self, place: str, name: str, data: bytes) -> None:
        """Store bytes under a name."""
        self._ask("put", key=self._key(place, name), value=data)

    def switch(self, place: str, name: str, new: bytes | None, old: bytes | None) -> bytes | None:
        """Replace or remove a value, if old is None or still there. Returns what was there."""
        key = self._key(place, name)
        find = {"request_range": {"key": key}}
        change: Any = {"request_put": {"key": key, "value": new}}
        if new is None:
            change = {"request_delete_range": {"key": key}}
        compare = [] if old is None else [{"target": "VALUE", "key": key, "value": old}]
        answer = self._ask("txn", compare=compare, success=[find, change], failure=[find])
        return value(answer["responses"][0]["response_range"])

    def delete(self, place: str, beginning: str) -> None:
        """Remove the names with this beginning, which ends with a slash."""
        self._ask("deleterange", **self._range(place + beginning))

    def names(self, place: str, start: str, limit: int) -> list[str]:
        """Return at most `limit` names in order, from `start` on."""
        what = self._range(place, start)
        found = self._ask("range", **what, keys_only=True, limit=limit).get("kvs", [])
        names = [b64decode(pair["key"]).decode("utf-8", "surrogatepass") for pair in found]
        return [name.removeprefix(self._config.prefix + place) for name in names]

    def count(self, place: str) -> int:
        """Return the number of names."""
        return int(self._ask("range", **self._range(place), count_only=True).get("count", 0))

    def open(self, namespace: str) -> StorageBase:
        """Open a namespace, such as "core", a plugin's name, or what --storage-get asks for."""
        return EtcdStorage(self, namespace, self._config.signing_keys)

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces that have keys."""
        found, start = [], ""
        while page := self.names("heads/", start, 1):
            namespace = page[0].split("/")[0]
            found.append(unquote(namespace, errors="surrogatepass"))
            start = namespace + "0"
        return found


def value(found: Any) -> bytes | None:
    """Return the value in a range that etcd returned, or None if the range is empty."""
    return b64decode(found["kvs"][0].get("value", "")) if "kvs" in found else None
