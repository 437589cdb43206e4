"""Files of a storage hold what plugins keep: tokens, and what people said."""

import os
import sys
from pathlib import Path

import pytest

from contract.support.database import Database
from contract.support.sample_values import MARK


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_files_are_for_the_account_of_the_bot_alone(database: Database) -> None:
    """Files below `BOT_DATA_DIR` are for the account of the bot alone."""
    folder = Path(database.config.BOT_DATA_DIR)
    before = set(folder.rglob("*"))
    umask = os.umask(0)
    try:
        storage = database.open()
        storage.set("key", MARK)
        storage.get("key")
        made = {path for path in folder.rglob("*") if path.is_file()} - before
        modes = {path.name: path.stat().st_mode & 0o777 for path in made}
    finally:
        os.umask(umask)
    open_to_others = {name: oct(mode) for name, mode in modes.items() if mode & 0o077}
    assert not open_to_others, (
        f"Others on this machine can read or change what plugins store: {open_to_others}. Create"
        " each file with the mode 0o600, whatever the umask is."
    )
