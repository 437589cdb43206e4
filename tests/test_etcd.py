"""examples/etcd."""

import importlib.util
from types import SimpleNamespace
from typing import Any

from conftest import TEMPLATE

EXAMPLE = TEMPLATE / "examples/etcd"


def load(**storage_config: Any) -> Any:
    """Start the storage plugin, as a bot does with this STORAGE_CONFIG."""
    file = EXAMPLE / "src/errbot_storage_etcd/storage.py"
    spec = importlib.util.spec_from_file_location("errbot.storage.storage", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EtcdPlugin(SimpleNamespace(STORAGE_CONFIG=storage_config))
