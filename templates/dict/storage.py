"""{{ cookiecutter.plugin_name }}, a storage plugin for Errbot.

Three classes, in the order in which one reads: Config has the keys of STORAGE_CONFIG, Storage is
one open namespace, Plugin connects and opens namespaces.

The database is a stand-in, a dict that lives as long as the process. YOUR DATABASE marks each line
that becomes a call of your database's client.

Errbot executes this file by its path, so it imports none of its neighbours, and takes the one
subclass of StoragePluginBase that it finds in it.
"""

import hashlib
import json
import logging
import pickle
import sys
from collections.abc import Iterator
from typing import Annotated, Any

from errbot.storage import StoreException
from errbot.storage.base import StorageBase, StoragePluginBase
from itsdangerous import BadSignature, Signer
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

log = logging.getLogger(__name__)

Secret = Annotated[SecretStr, Field(min_length=1, strict=True)]

# YOUR DATABASE: drop the stand-in's data (by url, namespace and key). They hang on `sys` because
# Errbot executes this file anew for every plugin instance, which a server would outlive.
DATABASES: dict[str, dict[str, dict[str, bytes]]]
DATABASES = vars(sys).setdefault("{{ cookiecutter.__package }}", {})


class {{ cookiecutter.__class }}Config(BaseModel):
    """The keys of STORAGE_CONFIG; a test compares them with the table in README.md."""

    model_config = ConfigDict(extra="forbid")

    url: Secret = Field(
        default=SecretStr("dict://localhost/errbot"),
        description="Address of the database. It is kept secret, for it may hold a password.",
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

    def __init__(self, rows: dict[str, bytes], namespace: str, signing_keys: list[str]) -> None:
        self._rows = rows
        self._namespace = namespace
        self._signing_keys = signing_keys

    def set(self, key: str, value: Any) -> None:
        """Store a value under a key, in place of the one that may be there.

        Raises TypeError where the key is no str, and what pickle raises where it cannot pickle the
        value; nothing is changed then.
        """
        data = self._dump(key, value)
        self._rows[key] = data  # YOUR DATABASE: insert or replace, as one atomic step

    def get(self, key: str) -> Any:
        """Return the value of a key.

        Raises KeyError where there is none, and StoreException where it cannot be read.
        """
        data = self._rows[key]  # YOUR DATABASE: select; KeyError(key) where there is none
        return self._load(key, data)

    def remove(self, key: str) -> None:
        """Remove a key and its value. Raises KeyError where there is none."""
        del self._rows[key]  # YOUR DATABASE: delete; KeyError(key) where there was none

    def len(self) -> int:
        """Return the number of keys."""
        return len(self._rows)  # YOUR DATABASE: count

    def keys(self) -> Iterator[str]:
        """Iterate over every key once. Keys may be added and removed meanwhile.

        Fetch them page by page, not all at the start: to clear a namespace, Errbot takes the first
        of its keys again and again (`MutableMapping.popitem`).
        """
        return iter(list(self._rows))  # YOUR DATABASE: select the keys

    def close(self) -> None:
        """Do nothing: every `set` was done when it returned, and the connection is the plugin's."""

{% include "shared/values.py" %}

class {{ cookiecutter.__class }}Plugin(StoragePluginBase):
    """Connects once, when the bot starts, and opens a namespace for each plugin of the bot."""

    def __init__(self, bot_config: Any) -> None:
        """Read STORAGE_CONFIG and connect. Raises ValueError where STORAGE_CONFIG is wrong."""
        super().__init__(bot_config)  # type: ignore[no-untyped-call]
        config = {{ cookiecutter.__class }}Config.load(self._storage_config)
        self._signing_keys = config.signing_keys
        url = config.url.get_secret_value()
        self._database = DATABASES.setdefault(url, {})  # YOUR DATABASE: connect (url, timeout)

    def open(self, namespace: str) -> StorageBase:
        """Open a namespace: "core", the name of a plugin, or what --storage-get names."""
        log.debug("Opening the namespace %r.", namespace)
        rows = self._database.setdefault(namespace, {})  # YOUR DATABASE: hand it on
        return {{ cookiecutter.__class }}Storage(rows, namespace, self._signing_keys)
