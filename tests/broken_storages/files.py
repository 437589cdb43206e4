"""Storages that leave files for everybody to read."""

from pathlib import Path

from broken_storages.support import caught_by, replace


@caught_by("test_files_are_for_the_account_of_the_bot_alone", alone=True)
def a_copy_is_kept_for_everybody(Storage, Plugin):
    """A cache beside the database, made by `open` with whatever mode the umask leaves."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        Path(bot_config.BOT_DATA_DIR, "copy.bin").write_bytes(b"")
