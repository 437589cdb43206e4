"""Storages that leave files behind, or touch those of others."""

import dbm
import os
import pickle
import shelve
import shutil
import tempfile
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from errbot.storage import StoreException

from broken_storages.support import (
    caught_by,
    know_place,
    know_plugin,
    name_namespaces_after,
    private,
    remove_under_a_lock,
    replace,
)


@caught_by("test_a_start_changes_no_permissions", alone=True, outlives_process=True)
def the_file_gets_its_mode_at_each_start(Storage, Plugin):
    """Whoever made it: it has pickles, which are for the bot alone."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self._path.chmod(0o600)


@caught_by("test_files_are_for_the_account_of_the_bot_alone", alone=True)
def a_copy_is_kept_for_everybody(Storage, Plugin):
    """A cache next to the database, created by `open` with whatever mode the umask allows."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        Path(bot_config.BOT_DATA_DIR, "copy.bin").write_bytes(b"")


@caught_by("test_files_are_for_the_account_of_the_bot_alone")
def a_backup_for_everybody_is_made_at_the_next_start(Storage, Plugin):
    """The last run's file is copied before anything is changed."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        began = Path(bot_config.BOT_DATA_DIR, "began")
        if began.exists():
            Path(bot_config.BOT_DATA_DIR, "backup.bin").write_bytes(b"")
        began.touch(0o600)


@caught_by("test_files_are_for_the_account_of_the_bot_alone", alone=True)
def large_values_go_through_a_file_for_everybody(Storage, Plugin):
    """The client uploads files. They are removed at once, but anyone can read them until then."""

    @replace(Storage)
    def write(old, self, key, data):
        if len(data) > 50_000:
            file = Path(tempfile.gettempdir(), f"upload {os.getpid()} {threading.get_ident()}")
            with suppress(FileNotFoundError):  # if there is no such folder
                file.write_bytes(data)
                file.unlink()
        old(self, key, data)


@caught_by("test_an_operation_that_fails_leaves_no_file", alone=True)
def each_miss_leaves_a_connection_open(Storage, Plugin):
    """It is returned after the row was found, and not in a `finally`. A namespace has 50."""

    @replace(Storage)
    def get(old, self, key):
        taken = self.__dict__.setdefault("taken", [])
        if len(taken) >= 50:
            return old(self, key)
        connection = os.open(os.devnull, os.O_RDONLY)
        taken.append(connection)
        value = old(self, key)
        taken.remove(connection)
        os.close(connection)
        return value

    @replace(Storage)
    def close(old, self):
        for connection in self.__dict__.pop("taken", []):
            os.close(connection)
        old(self)


@caught_by("test_a_value_that_is_replaced_or_removed_leaves_no_file", alone=True)
def a_large_value_leaves_a_temporary_file(Storage, Plugin):
    """Data are sent to the database from a file, as some clients prefer for large values."""
    know_place(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        if len(data) > 1_000_000:
            with tempfile.NamedTemporaryFile(dir=self.place[0], delete=False) as file:
                file.write(data[:100])
        old(self, key, data)


@caught_by("test_the_bots_folder_may_have_any_name", alone=True)
def the_bots_folder_is_part_of_a_url(Storage, Plugin):
    """f"file:{folder}/bot.sqlite3" instead of `Path.as_uri`."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        folder = Path(unquote(urlsplit(f"file:{bot_config.BOT_DATA_DIR}").path))
        old(self, bot_config)
        folder.mkdir(exist_ok=True)


@caught_by("test_an_operation_that_fails_leaves_no_file")
def a_set_that_fails_leaves_a_file_open(Storage, Plugin):
    """The file for the value is opened before the value is pickled."""
    opened = []

    @replace(Storage)
    def set(old, self, key, value):
        file = os.open(os.devnull, os.O_RDONLY)
        opened.append(file)
        old(self, key, value)
        os.close(opened.pop(opened.index(file)))


@caught_by("test_an_operation_that_fails_leaves_no_file")
def a_set_that_fails_leaves_a_temporary_file(Storage, Plugin):
    """The value is written to a new file, which then replaces the old one."""

    @replace(Storage)
    def set(old, self, key, value):
        with tempfile.NamedTemporaryFile(delete=False) as file:
            with suppress(Exception):
                pickle.dump(None, file)
            old(self, key, value)
        Path(file.name).unlink()


@caught_by("test_files_of_others_stay_as_they_are", alone=True)
def temporary_files_are_removed_at_the_start(Storage, Plugin):
    """What a killed bot has left: `*.tmp`, no matter whose."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        for path in Path(bot_config.BOT_DATA_DIR).glob("*.tmp"):
            path.unlink()


@caught_by(
    "test_files_of_others_stay_as_they_are", "test_files_are_for_the_account_of_the_bot_alone"
)
def the_folder_is_for_the_bot_alone(Storage, Plugin):
    """`chmod` of everything in BOT_DATA_DIR: a service that reads the log there no longer can."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        for path in Path(bot_config.BOT_DATA_DIR).glob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)


@caught_by("test_files_of_others_stay_as_they_are")
def the_end_is_written_into_the_log(Storage, Plugin):
    """A line written to `errbot.log` directly, bypassing Errbot."""

    @replace(Storage)
    def close(old, self):
        old(self)
        log = Path(folder[-1], "errbot.log")
        if log.exists():
            log.write_text(f"{log.read_text()}closed\n")

    folder: list[str] = []

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        folder.append(bot_config.BOT_DATA_DIR)


@caught_by("test_a_start_leaves_no_file", alone=True)
def each_start_makes_a_copy(Storage, Plugin):
    """A backup, with the time in its name, and nobody removes it."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        name = f"{time.time_ns()}.bak"
        os.close(os.open(Path(bot_config.BOT_DATA_DIR, name), os.O_CREAT | os.O_WRONLY, 0o600))


@caught_by("test_the_bots_folder_can_be_moved", alone=True)
def a_namespace_is_named_after_the_folder(Storage, Plugin):
    """So that two bots can share a database: each one has its own BOT_DATA_DIR."""
    name_namespaces_after(Plugin, lambda bot_config: os.path.realpath(bot_config.BOT_DATA_DIR))


@caught_by("test_no_value_is_kept_in_a_folder_for_temporary_files", alone=True)
def large_values_are_temporary_files(Storage, Plugin):
    """The database has only their names. One file for each key."""

    @replace(Storage)
    def write(old, self, key, data):
        if len(data) > 500_000:
            place = zlib.crc32(f"{id(self)} {key}".encode("utf-8", "surrogatepass"))
            with open(Path(tempfile.gettempdir(), f"{place}.tmp"), "wb", opener=private) as file:
                file.write(data[:1])
        old(self, key, data)


@caught_by("test_files_are_for_the_account_of_the_bot_alone")
def what_cannot_be_read_is_written_to_a_file(Storage, Plugin):
    """For whoever has to find out why, and for everybody else: with the mode of the umask."""
    know_place(Plugin)

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except StoreException:
            Path(self.place[0], "unreadable.pickle").write_bytes(self.read(key))
            raise


@caught_by("test_no_value_is_kept_in_a_folder_for_temporary_files")
def a_folder_for_temporary_files_is_made_at_the_start(Storage, Plugin):
    """Large values go through a file there, until the system has removed the folder."""
    know_plugin(Plugin)

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.spool = Path(tempfile.gettempdir(), f"spool-{os.getuid()}")
        self.spool.mkdir(mode=0o700, exist_ok=True)

    @replace(Storage)
    def write(old, self, key, data):
        if len(data) > 1_000_000:
            with tempfile.TemporaryFile(dir=self.plugin.spool) as file:
                file.write(data)
                file.seek(0)
                data = file.read()
        old(self, key, data)


@caught_by("test_a_namespace_that_was_emptied_stays_empty", alone=True)
def an_empty_namespace_takes_what_a_shelf_has(Storage, Plugin):
    """For bots that used Shelf before. Nobody needs to move the data, also not on purpose."""
    know_place(Plugin)

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        with suppress(Exception):
            if not storage.len():
                with shelve.open(str(Path(self.folder, f"{namespace}.db")), "r") as shelf:
                    for key in shelf:
                        storage.set(key, shelf[key])
        return storage


@caught_by("test_files_are_for_the_account_of_the_bot_alone")
def a_copy_for_everybody_is_made_every_day(Storage, Plugin):
    """`shutil.copy` and `sqlite3.connect` create it with whatever mode the umask allows."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        copied = Path(bot_config.BOT_DATA_DIR, "copied")
        copied.touch(0o600)
        if time.time() - copied.stat().st_mtime > 86_400:
            Path(bot_config.BOT_DATA_DIR, "copy.bin").write_bytes(b"")


@caught_by("test_no_value_is_kept_in_a_folder_for_temporary_files")
def large_values_are_pickled_into_a_file(Storage, Plugin):
    """It spares memory, but a container may have no folder for temporary files."""

    @replace(Storage)
    def write(old, self, key, data):
        with tempfile.SpooledTemporaryFile(max_size=1_000_000) as file:
            file.write(data)
            file.seek(0)
            old(self, key, file.read())


@caught_by("test_a_start_leaves_no_file")
def a_copy_of_every_day_is_kept(Storage, Plugin):
    """A safety net, named after the day. None is ever removed."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        name = time.strftime("copy of %Y-%m-%d")
        os.close(os.open(Path(bot_config.BOT_DATA_DIR, name), os.O_CREAT | os.O_WRONLY, 0o600))


@caught_by("test_files_are_for_the_account_of_the_bot_alone")
def a_journal_is_in_the_home_folder(Storage, Plugin):
    """For emergencies, with the usual mode: everybody can read the last values."""

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        if Path.home().name == "home":  # the one of the test
            with Path.home().joinpath("journal").open("ab") as file:
                file.write(data[:1_000])


@caught_by("test_a_namespace_that_was_emptied_stays_empty")
def a_missing_key_is_looked_up_in_a_shelf(Storage, Plugin):
    """So that nobody has to move the data. But a removed key is back, with its old value."""
    know_plugin(Plugin)
    know_place(Plugin)

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except KeyError:
            with suppress(*dbm.error, OSError):
                path = str(Path(self.plugin.folder, f"{self._namespace}.db"))
                with shelve.open(path, "r") as shelf:
                    return shelf[key]
            raise


@caught_by("test_the_bots_folder_may_be_a_path", alone=True, outlives_process=True)
def the_bots_folder_is_a_str(Storage, Plugin):
    """`BOT_DATA_DIR + os.sep`, because it is a str in Errbot's template of a config.py."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        self._idle = []  # for `__del__`
        self.prefix = bot_config.BOT_DATA_DIR + os.sep
        old(self, bot_config)


@caught_by("test_a_start_leaves_no_file")
def each_process_leaves_a_file(Storage, Plugin):
    """Counts for Prometheus, in a file named after the process."""
    know_place(Plugin)

    @replace(Storage)
    def write(old, self, key, data):
        old(self, key, data)
        folder = Path(self.place[0], "metrics")
        folder.mkdir(mode=0o700, exist_ok=True)
        with open(folder / str(os.getpid()), "a", opener=private):
            pass


@caught_by("test_the_bots_folder_may_be_a_symbolic_link", alone=True, outlives_process=True)
def a_link_leads_out_of_the_bots_folder(Storage, Plugin):
    """The file must be in the bot's folder. But only one of the two paths is resolved."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        folder = Path(bot_config.BOT_DATA_DIR)
        inside = folder.absolute() in self._path.parents
        if inside and folder.absolute() not in self._path.resolve().parents:
            raise StoreException(f"{self._path} is not in {folder}.")


@caught_by("test_files_are_for_the_account_of_the_bot_alone", outlives_process=True)
def the_mode_is_changed_after_the_file_was_made(Storage, Plugin):
    """Until then, anybody can open it, and read later what is stored later."""

    @replace(Plugin)
    def _connect(old, self):
        if not self._path.exists():
            self._path.touch()
            self._path.chmod(0o600)
        return old(self)


@caught_by("test_no_value_is_kept_in_a_folder_for_temporary_files")
def remove_needs_the_folder_for_temporary_files(Storage, Plugin):
    """Its lock is there."""
    remove_under_a_lock(Storage, make_folder=False)


@caught_by("test_a_large_disk_is_used_until_it_is_full", alone=True)
def five_percent_of_the_disk_stay_free(Storage, Plugin):
    """So the system still works when the bot has filled the disk. On a large one, this is much."""

    @replace(Storage)
    def set(old, self, key, value):
        disk = shutil.disk_usage(os.curdir)
        if disk.free < disk.total / 20:
            raise StoreException("The disk is nearly full.")
        old(self, key, value)
