"""How Errbot loads a storage plugin. Other processes need this, so it does without pytest."""

import importlib.util
import sys
from pathlib import Path
from typing import Any, cast

from errbot.bootstrap import get_storage_plugin
from errbot.storage.base import StoragePluginBase

from contract.support.throwaway import Notes, TrackedPlugin


def load_config(path: Path) -> Any:
    """Execute an Errbot configuration file. Raises ValueError if that fails."""
    spec = importlib.util.spec_from_file_location("errbot_config", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ValueError(f"--errbot-config: there is no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # like `errbot -c`
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        why = f"--errbot-config: {path} fails with {type(error).__name__}: {error}"
        raise ValueError(why) from None
    finally:
        del sys.path[0]
    vars(module).setdefault("STORAGE_CONFIG", {})  # as in Errbot
    return module


def load_plugin(config: Any, notes: Notes | None) -> StoragePluginBase:
    """Load the storage plugin of a configuration, as Errbot does."""
    plugin = cast(StoragePluginBase, get_storage_plugin(config))
    return cast(StoragePluginBase, TrackedPlugin(plugin, notes)) if notes else plugin
