"""{{ cookiecutter.plugin_name }}, a storage plugin for Errbot.

Four classes, in the order in which one reads: Config has the keys of STORAGE_CONFIG, Connection
runs statements on the SQLite file, Storage is one open namespace, Plugin connects and opens
namespaces.

Errbot executes this file by its path, so it imports none of its neighbours, and takes the one
subclass of StoragePluginBase that it finds in it.
"""

import hashlib
import json
import logging
import os
import pickle
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal

from errbot.storage import StoreException
from errbot.storage.base import StorageBase, StoragePluginBase
from itsdangerous import BadSignature, Signer
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

log = logging.getLogger(__name__)

Secret = Annotated[SecretStr, Field(min_length=1, strict=True)]

# With its rowid, for the index of the primary key then holds no values: counting and listing keys
# reads that index alone, and takes no longer where the values are large.
CREATE = """
    CREATE TABLE IF NOT EXISTS errbot (
        namespace TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL,
        PRIMARY KEY (namespace, key)
    )
"""
SET = """
    INSERT INTO errbot (namespace, key, value) VALUES (?, ?, ?)
    ON CONFLICT (namespace, key) DO UPDATE SET value = excluded.value
"""
GET = "SELECT CAST(value AS BLOB) FROM errbot WHERE namespace = ? AND key = ?"
REMOVE = "DELETE FROM errbot WHERE namespace = ? AND key = ?"
LEN = "SELECT count(*) FROM errbot WHERE namespace = ?"
FIRST_KEY = "SELECT key FROM errbot WHERE namespace = ? ORDER BY key LIMIT 1"
PAGE = 1000
NEXT_KEYS = f"SELECT key FROM errbot WHERE namespace = ? AND key > ? ORDER BY key LIMIT {PAGE}"

# What to do about an error of SQLite, by words that stand in its message.
ADVICE = {
    "lock": "Another process or thread held it for longer than timeout in STORAGE_CONFIG allows.",
    "unable to open": "Its folder must exist, and the bot must be allowed to write into it.",
    "readonly": "The bot must be allowed to write to the file, and into its folder.",
    "not a database": "Let path in STORAGE_CONFIG name another file, or restore this one.",
    "column": "It is another program's: let path in STORAGE_CONFIG name another file.",
    "malformed": "It is damaged: stop the bot, and restore the file from a backup.",
    "full": "Make room on its disk.",
    "disk I/O": "Look after its disk: the system's log says more.",
}


class {{ cookiecutter.__class }}Config(BaseModel):
    """The keys of STORAGE_CONFIG; a test compares them with the table in README.md."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        default="errbot.sqlite3",
        pattern=r"^[^\x00]+$",
        description="The database file, in `BOT_DATA_DIR` where it is no absolute path. "
        "It is created when missing; its folder is not.",
    )
    timeout: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        strict=True,
        description="Seconds to wait, at most 3600, while others write to the file, "
        "before an operation fails.",
    )
    synchronous: Literal["normal", "full"] = Field(
        default="normal",
        description="What a power cut may take: with `normal`, the values set last; "
        "with `full`, nothing, but each `set` waits for the disk.",
    )
{% include "shared/signing_key.py" %}
{% include "shared/load.py" %}

class {{ cookiecutter.__class }}Connection:
    """One connection to the database file. Any number of threads may use it, in turns."""

    def __init__(self, path: Path, timeout: float, synchronous: str) -> None:
        self._path = path
        self._timeout = timeout
        self._synchronous = synchronous
        self._process = os.getpid()
        self._turn = Lock()
        self._connection: sqlite3.Connection | None = None

    def __del__(self) -> None:
        """Close the connection. Nobody else does: Errbot drops its storage plugin when it ends."""
        self._close()

    def run(self, statement: str, *values: str | bytes) -> tuple[list[Any], int]:
        """Run a statement, which is a transaction of its own and is committed on return.

        Returns the rows that it found and the number of rows that it changed. Raises
        StoreException where SQLite cannot run it; nothing is changed then.
        """
        if os.getpid() != self._process:
            raise StoreException(
                f"Cannot use {self._path} in a forked process, where SQLite's locks do not hold:"
                ' start the process with multiprocessing.get_context("spawn").'
            )
        if not self._turn.acquire(True, self._timeout):
            raise self._explained("database is locked")
        try:
            self._connection = self._connection or self._connect()
            cursor = self._connection.execute(statement, values)
            return cursor.fetchall(), cursor.rowcount
        except sqlite3.Error as error:
            self._close()  # The next call connects anew, to what may have been repaired by then.
            raise self._explained(str(error)) from error
        finally:
            self._turn.release()

    def _connect(self) -> sqlite3.Connection:
        """Open the file, and create it where it is missing."""
        # Values are pickles, so nobody else may write, nor read. SQLite gives the permissions of
        # the file to those beside it. Where the file cannot be created, SQLite says why below.
        with suppress(OSError):
            self._path.touch(mode=0o600, exist_ok=False)
        # No isolation level: each statement commits by itself.
        connection = sqlite3.connect(
            self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        try:
            self._switch_to_wal(connection)
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute(CREATE)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _switch_to_wal(self, connection: sqlite3.Connection) -> None:
        """Let readers and a writer work at the same time, by a log beside the file."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                # SQLite waits for no lock here, when several processes open a new file at once.
                if "lock" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def _close(self) -> None:
        """Close the connection, where there is one and it is of this process."""
        if self._connection and os.getpid() == self._process:
            self._connection.close()
            self._connection = None

    def _explained(self, problem: str) -> StoreException:
        """Make an error that names the file, and says what to do."""
        advice = [advice for words, advice in ADVICE.items() if words in problem]
        return StoreException(" ".join([f"{self._path}: {problem}.", *advice]))


class {{ cookiecutter.__class }}Storage(StorageBase):
    """One open namespace. Any number of threads may use it at the same time."""

    def __init__(
        self,
        reader: {{ cookiecutter.__class }}Connection,
        writer: {{ cookiecutter.__class }}Connection,
        namespace: str,
        signing_keys: list[str],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._namespace = namespace
        self._place = self._text(namespace)
        self._signing_keys = signing_keys

    def set(self, key: str, value: Any) -> None:
        """Store a value under a key, in place of the one that may be there.

        Raises TypeError where the key is no str, what pickle raises where it cannot pickle the
        value, and StoreException where the database fails; nothing is changed then.
        """
        data = self._dump(key, value)
        self._writer.run(SET, self._place, self._text(key), data)

    def get(self, key: str) -> Any:
        """Return the value of a key.

        Raises KeyError where there is none, and StoreException where it cannot be read.
        """
        rows, _ = self._reader.run(GET, self._place, self._text(key))
        if not rows:
            raise KeyError(key)
        return self._load(key, rows[0][0])

    def remove(self, key: str) -> None:
        """Remove a key and its value. Raises KeyError where there is none."""
        _, removed = self._writer.run(REMOVE, self._place, self._text(key))
        if not removed:
            raise KeyError(key)

    def len(self) -> int:
        """Return the number of keys."""
        rows, _ = self._reader.run(LEN, self._place)
        return int(rows[0][0])

    def keys(self) -> Iterator[str]:
        """Iterate over every key once, in their order. Keys may be added and removed meanwhile.

        The first is fetched by itself: to clear a namespace, Errbot takes the first of its keys
        again and again (`MutableMapping.popitem`). The others come page by page.
        """
        rows, _ = self._reader.run(FIRST_KEY, self._place)
        while rows:
            texts = isinstance(rows[-1][0], str)  # Then all are: SQLite sorts texts before bytes.
            for (key,) in rows:
                yield key if texts or type(key) is str else key.decode("utf-8", "surrogatepass")
            if 1 < len(rows) < PAGE:
                return  # A page that is not full is the last.
            rows, _ = self._reader.run(NEXT_KEYS, self._place, key)

    def close(self) -> None:
        """Do nothing: every `set` was done when it returned, and the connection is the plugin's."""

    @staticmethod
    def _text(text: str) -> str | bytes:
        """Return what SQLite stores for a key: bytes where it cannot be text, by a lone surrogate.

        Raises KeyError where it is no str, for then nothing was ever stored under it.
        """
        if not isinstance(text, str):
            raise KeyError(text)
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-8", "surrogatepass")
        return text

{% include "shared/values.py" %}

class {{ cookiecutter.__class }}Plugin(StoragePluginBase):
    """Connects once, when the bot starts, and opens a namespace for each plugin of the bot."""

    def __init__(self, bot_config: Any) -> None:
        """Read STORAGE_CONFIG and open the file.

        Raises ValueError where STORAGE_CONFIG is wrong, and StoreException where the file cannot
        be opened.
        """
        super().__init__(bot_config)  # type: ignore[no-untyped-call]
        config = {{ cookiecutter.__class }}Config.load(self._storage_config)
        self._signing_keys = config.signing_keys
        path = Path(bot_config.BOT_DATA_DIR, config.path)
        settings = (path, config.timeout, config.synchronous)
        # One to read and one to write: while another process writes for long, reading goes on.
        self._reader = {{ cookiecutter.__class }}Connection(*settings)
        self._writer = {{ cookiecutter.__class }}Connection(*settings)
        self._reader.run(LEN, "")  # connects, so that a file that cannot be used is told at once

    def open(self, namespace: str) -> StorageBase:
        """Open a namespace: "core", the name of a plugin, or what --storage-get names."""
        log.debug("Opening the namespace %r.", namespace)
        return {{ cookiecutter.__class }}Storage(
            self._reader,
            self._writer,
            namespace,
            self._signing_keys,
        )
