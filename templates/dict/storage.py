"""{{ cookiecutter.plugin_name }}, a storage plugin for Errbot.

It keeps all data in a stand-in for a database: a dict, which is lost when the process ends. Replace
each line marked YOUR DATABASE with a call to your database's client.

Errbot executes this file by its path, so it cannot import other modules of the package.
"""

import hashlib
import json
import pickle
import re
import sys
from collections.abc import Iterator
from io import BytesIO
from typing import Annotated, Any

from errbot.storage import StoreException
from errbot.storage.base import StorageBase, StoragePluginBase
from itsdangerous import BadSignature, Signer
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

Secret = Annotated[SecretStr, Field(min_length=1, strict=True)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
SigningKey = Annotated[SecretStr, Field(min_length=16, strict=True)]

# YOUR DATABASE: remove the stand-in. It keeps data by url, namespace and key on `sys`, because
# Errbot executes this file again for each plugin instance, and a server would keep its data.
DATABASES: Any = vars(sys).setdefault("{{ cookiecutter.__package }}", {})


class {{ cookiecutter.__class }}Config(BaseModel):
    """The keys of STORAGE_CONFIG. A test compares them with the table in README.md."""

    model_config = ConfigDict(extra="forbid")

    url: Secret = Field(
        default=SecretStr("dict://localhost/errbot"),
        description="Address of the database. It is secret because it may hold a password.",
    )
    timeout: Seconds = Field(default=10.0, description="Seconds to wait before an operation fails.")
{% include "shared/signing_key.py" %}
{% include "shared/load.py" %}

class {{ cookiecutter.__class }}Storage(StorageBase):
    """One open namespace. Any number of threads may use it at once."""

    def __init__(self, rows: dict[str, bytes], namespace: str, secrets: list[SecretStr]) -> None:
        self._rows = rows
        self._namespace = namespace
        self._signing_keys = secrets

    # Bytes: what your database does.

    def read(self, key: str) -> bytes:
        """Return the bytes stored under a key. Raises KeyError if there are none."""
        return self._rows[key]  # YOUR DATABASE: select, or raise KeyError(key)

    def write(self, key: str, data: bytes) -> None:
        """Store bytes under a key atomically. On return, they are in the database."""
        self._rows[key] = data  # YOUR DATABASE: insert or replace

    def swap(self, key: str, old: bytes, new: bytes) -> bool:
        """Atomically replace bytes if they still are the old ones. Returns whether it did."""
        if self._rows.get(key) != old:  # YOUR DATABASE: update the row if its value is still old,
            return False  # and return whether a row changed (the stand-in is not atomic)
        self._rows[key] = new
        return True

    def remove(self, key: str) -> None:
        """Remove a key. Raises KeyError if it is not there."""
        del self._rows[key]  # YOUR DATABASE: delete, or raise KeyError(key) if there was none

    def len(self) -> int:
        """Return the number of keys."""
        return len(self._rows)  # YOUR DATABASE: count

    def keys(self) -> Iterator[str]:
        """Iterate over the keys, even while keys are added and removed."""
        return iter(list(self._rows))  # YOUR DATABASE: select a few, then all others

    def close(self) -> None:
        """Do nothing: nothing is buffered, and the connection belongs to the plugin."""

{% include "shared/values.py" %}

class {{ cookiecutter.__class }}Plugin(StoragePluginBase):
    """Connects when the bot starts, and opens a namespace for each of the bot's plugins."""

    def __init__(self, bot_config: Any) -> None:
        """Read STORAGE_CONFIG and connect. Raises ValueError if STORAGE_CONFIG is wrong."""
        super().__init__(bot_config)  # type: ignore[no-untyped-call]
        del bot_config  # It has secrets, and Sentry reports the local variables of each frame.
        config = {{ cookiecutter.__class }}Config.load(self._storage_config)
        self._signing_keys = config.signing_keys
        # YOUR DATABASE: connect (url, timeout), and convert the client's errors to StoreException
        self._database = DATABASES.setdefault(config.url.get_secret_value(), {})

    def open(self, namespace: str) -> StorageBase:
        """Open a namespace, such as "core", a plugin's name, or what --storage-get asks for."""
        rows = self._database.setdefault(namespace, {})  # YOUR DATABASE: pass on the connection
        return {{ cookiecutter.__class }}Storage(rows, namespace, self._signing_keys)

    def namespaces(self) -> list[str]:
        """Return the names of all namespaces that have keys."""
        return [name for name, rows in list(self._database.items()) if rows]  # YOUR DATABASE
