"""{{ cookiecutter.plugin_name }}, a storage plugin for Errbot.

It keeps all data in one table of an SQLite file. Errbot executes this file by its path, so it
cannot import other modules of the package.
"""

import hashlib
import json
import os
import pickle
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

from errbot.storage import StoreException
from errbot.storage.base import StorageBase, StoragePluginBase
from itsdangerous import BadSignature, Signer
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

Seconds = Annotated[float, Field(gt=0, le=3600, strict=True)]
SigningKey = Annotated[SecretStr, Field(min_length=16, strict=True)]

# The table keeps its rowid: then the primary key's index has no values, and `len` and `keys` read
# only this index. The columns have no types, because a TEXT column finds "1" for the number 1.
CREATE = """CREATE TABLE IF NOT EXISTS errbot
    (namespace NOT NULL, key NOT NULL, value NOT NULL, PRIMARY KEY (namespace, key))"""
READ = "SELECT CAST(value AS BLOB) FROM errbot WHERE namespace = ? AND key = ?"
WRITE = """INSERT INTO errbot VALUES (?, ?, ?)
    ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value"""
SWAP = "UPDATE errbot SET value = ? WHERE namespace = ? AND key = ? AND value = ?"
REMOVE = "DELETE FROM errbot WHERE namespace = ? AND key = ?"
LEN = "SELECT count(*) FROM errbot WHERE namespace = ?"
KEYS = "SELECT CAST(key AS BLOB) FROM errbot WHERE namespace = ? AND typeof(key) = 'text'"
NEXT_KEYS = f"{KEYS} AND key > CAST(? AS TEXT) AND rowid <= ? ORDER BY key LIMIT 1000"
NAMESPACES = "SELECT DISTINCT CAST(namespace AS BLOB) FROM errbot WHERE typeof(namespace) = 'text'"

ADVICE = {  # what to do about an SQLite error, by words in its message
    "lock": "Another process or thread held it for longer than timeout in STORAGE_CONFIG allows.",
    "unable to open|readonly": "The bot must be allowed to write to it and its folder must exist.",
    "not a database|column": "It belongs to another program: change path in STORAGE_CONFIG.",
    "malformed": "It is damaged: stop the bot, and restore the file from a backup.",
}


class {{ cookiecutter.__class }}Config(BaseModel):
    """The keys of STORAGE_CONFIG. A test compares them with the table in README.md."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        default="errbot.sqlite3",
        pattern=r"^[^\x00]+$",
        description="The database file, in `BOT_DATA_DIR` unless the path is absolute.",
    )
    timeout: Seconds = Field(default=10.0, description="Seconds to wait, at most 3600.")
    synchronous: Literal["normal", "full"] = Field(
        default="normal",
        description="With `full`, a power failure loses nothing, but `set` waits for the disk.",
    )
{% include "shared/signing_key.py" %}
{% include "shared/load.py" %}

class {{ cookiecutter.__class }}Storage(StorageBase):
    """One open namespace. Any number of threads may use it at once."""

    def __init__(self, plugin: "{{ cookiecutter.__class }}Plugin", namespace: str) -> None:
        namespace.encode()  # Raises ValueError for a lone surrogate, which SQLite cannot store.
        self._run = plugin.run
        self._namespace = namespace
        self._signing_keys = plugin.config.signing_keys

    # Bytes: what the database does.

    def read(self, key: str) -> bytes:
        """Return the bytes stored under a key. Raises KeyError if there are none."""
        for (data,) in self._run(READ, self._namespace, key)[0]:
            return bytes(data)
        raise KeyError(key)

    def write(self, key: str, data: bytes) -> None:
        """Store bytes under a key atomically. On return, they are in the database."""
        self._run(WRITE, self._namespace, key, data)

    def swap(self, key: str, old: bytes, new: bytes) -> bool:
        """Atomically replace bytes if they still are the old ones. Returns whether it did."""
        return self._run(SWAP, new, self._namespace, key, old)[1] > 0

    def remove(self, key: str) -> None:
        """Remove a key. Raises KeyError if it is not there."""
        if not self._run(REMOVE, self._namespace, key)[1]:
            raise KeyError(key)

    def len(self) -> int:
        """Return the number of keys."""
        return int(self._run(LEN, self._namespace)[0][0][0])

    def keys(self) -> Iterator[str]:
        """Iterate over the keys, even while keys are added and removed."""
        # Few at first, for Errbot's `clear`. No newer rows, so that a loop that adds keys ends.
        [[newest]], _ = self._run("SELECT max(rowid) FROM errbot")
        page, _ = self._run(f"{KEYS} ORDER BY key LIMIT 20", self._namespace)
        while page:
            yield from decode(page)
            page = page[19:] and self._run(NEXT_KEYS, self._namespace, page[-1][0], newest)[0]

    def close(self) -> None:
        """Do nothing: nothing is buffered, and connections belong to the plugin."""

{% include "shared/values.py" %}

class {{ cookiecutter.__class }}Plugin(StoragePluginBase):
    """Opens a namespace for each of the bot's plugins, and keeps the connections to the file."""

    def __init__(self, bot_config: Any) -> None:
        """Read STORAGE_CONFIG and open the file. Raises ValueError or StoreException."""
        self._idle: list[sqlite3.Connection] = []
        super().__init__(bot_config)  # type: ignore[no-untyped-call]
        folder = bot_config.BOT_DATA_DIR
        del bot_config  # It has secrets, and Sentry reports the local variables of each frame.
        self.config = {{ cookiecutter.__class }}Config.load(self._storage_config)
        self._path = Path(folder, self.config.path).absolute()  # a plugin may call os.chdir
        self._process = os.getpid()
        self.run(LEN, "")  # reports an unusable file at once

    def open(self, namespace: str) -> StorageBase:
        """Open a namespace, such as "core", a plugin's name, or what --storage-get asks for."""
        return {{ cookiecutter.__class }}Storage(self, namespace)

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces that have keys."""
        return list(decode(self.run(NAMESPACES)[0]))

    def __del__(self) -> None:
        """Close the connections. Errbot drops its storage plugin, but never closes it."""
        while self._idle and os.getpid() == self._process:
            self._idle.pop().close()

    def run(self, statement: str, *values: str | bytes | int) -> tuple[list[Any], int]:
        """Run a statement and commit it. Returns its rows, and the number of rows it changed."""
        if os.getpid() != self._process:  # A fork inherits no locks, and could damage the file.
            raise StoreException(f"Cannot use {self._path} in a forked process: spawn it instead.")
        deadline = time.monotonic() + self.config.timeout
        while True:
            connection = None
            try:
                connection = self._take()
                cursor = connection.execute(statement, values)
                result = cursor.fetchall(), cursor.rowcount
                used, connection = connection, None  # Reuse it only if it worked.
                self._idle.append(used)
                return result
            except sqlite3.Error as error:
                problem = str(error)
            finally:
                if connection:
                    connection.close()
            if "lock" not in problem or time.monotonic() > deadline:
                advice = [ADVICE[words] for words in ADVICE if re.search(words, problem)]
                raise StoreException(" ".join([f"{self._path}: {problem}.", *advice]))
            time.sleep(0.01)  # SQLite itself waits only 0.1 s, because it defers Ctrl-C meanwhile.

    def _take(self) -> sqlite3.Connection:
        """Return an idle connection, or a new one."""
        with suppress(IndexError):
            return self._idle.pop()
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        """Open the file. Only the bot's account can access a new one: it has pickles."""
        with suppress(OSError):  # SQLite reports below why it cannot be created.
            self._path.touch(mode=0o600, exist_ok=False)
        connection = sqlite3.connect(
            self._path, timeout=0.1, isolation_level=None, check_same_thread=False
        )
        settings = f"PRAGMA journal_mode = WAL; PRAGMA synchronous = {self.config.synchronous};"
        connection.executescript(settings + CREATE)
        return connection


def decode(rows: Iterable[tuple[bytes]]) -> Iterator[str]:
    """Decode the names in rows. Skip any that are not UTF-8, because others wrote them."""
    for (name,) in rows:
        with suppress(UnicodeDecodeError):
            yield name.decode()
