"""Storages that misread STORAGE_CONFIG, write into it, or show its secrets."""

import subprocess
import sys
import threading
import time
from base64 import b64encode
from typing import Any

from broken_storages.support import (
    caught_by,
    config_class,
    know_plugin,
    log,
    name_namespaces_after,
    replace,
)


def secrets_of(Plugin: Any, bot_config: Any) -> list[str]:
    """Return the secrets of a bot's STORAGE_CONFIG, except lists of them."""
    config = config_class(Plugin).load(getattr(bot_config, "STORAGE_CONFIG", None))
    values = vars(config).values()
    return [value.get_secret_value() for value in values if hasattr(value, "get_secret_value")]


@caught_by("test_the_plugin_leaves_storage_config_as_it_is")
def a_default_is_written_into_the_config(Storage, Plugin):
    """As Errbot's Shelf does with `basedir`."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if self._storage_config:
            self._storage_config.setdefault("timeout", 10.0)


@caught_by("test_storage_config_may_be_missing", "test_an_empty_storage_config_is_enough")
def storage_config_must_be_there(Storage, Plugin):
    """`bot_config.STORAGE_CONFIG["url"]`."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        _ = bot_config.STORAGE_CONFIG | {}
        old(self, bot_config)


@caught_by("test_a_storage_config_that_is_not_a_dict_is_refused")
def pairs_are_made_a_dict(Storage, Plugin):
    """`dict(STORAGE_CONFIG)`, to have a copy."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        if isinstance(getattr(bot_config, "STORAGE_CONFIG", None), list):
            bot_config.STORAGE_CONFIG = dict(bot_config.STORAGE_CONFIG)
        old(self, bot_config)


@caught_by("test_every_wrong_key_is_named_at_once")
def only_the_first_wrong_key_is_named(Storage, Plugin):
    """`errors()[0]`: with three mistakes, the bot must be started four times."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        try:
            old(self, bot_config)
        except ValueError as error:
            text = "\n".join(str(error).splitlines()[:2])
        else:
            return
        raise ValueError(text)


@caught_by("test_an_unknown_key_is_refused")
def unknown_keys_are_ignored(Storage, Plugin):
    """pydantic's default."""
    Config = config_class(Plugin)
    Config.model_config = {**Config.model_config, "extra": "ignore"}
    Config.model_rebuild(force=True)


@caught_by("test_a_wrong_value_is_refused_and_not_shown")
def errors_show_the_value(Storage, Plugin):
    """ "Wrong STORAGE_CONFIG: {...}", with the password in it."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        try:
            old(self, bot_config)
        except ValueError as error:
            text = f"{error}\nIt was {bot_config.STORAGE_CONFIG!r}."
        else:
            return
        raise ValueError(text)


@caught_by("test_a_wrong_value_is_refused_and_not_shown")
def errors_carry_the_one_of_pydantic(Storage, Plugin):
    """`raise ... from error`: the traceback shows the given values."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        try:
            old(self, bot_config)
        except ValueError as error:
            raise ValueError(str(error)) from ValueError(repr(bot_config.STORAGE_CONFIG))


@caught_by("test_no_secret_shows")
def the_config_is_logged(Storage, Plugin):
    """A log line that says how the bot was started."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        log.info("Starting with %r.", getattr(bot_config, "STORAGE_CONFIG", None))
        old(self, bot_config)


@caught_by("test_no_secret_shows")
def the_repr_shows_the_signing_key(Storage, Plugin):
    """A repr of everything, for debugging."""

    def shown(self):
        return f"Storage({[key.get_secret_value() for key in self._signing_keys]})"

    Storage.__repr__ = shown


@caught_by("test_no_secret_shows")
def old_signing_keys_are_logged(Storage, Plugin):
    """During a change of keys, the log says which old keys are still accepted."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        for key in self._signing_keys[:-1]:
            log.warning("Still reading what was signed with %s.", key.get_secret_value())


@caught_by("test_no_secret_shows")
def signing_keys_are_printed(Storage, Plugin):
    """A forgotten debugging line, not even in the log."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        for key in self._signing_keys:
            print("signing with", key.get_secret_value(), file=sys.stderr)


@caught_by("test_no_secret_shows_when_the_plugin_starts")
def the_secrets_are_logged_at_the_start(Storage, Plugin):
    """ "Connecting to ...", with the password in it."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        for secret in secrets_of(Plugin, bot_config):
            log.info("Connecting with %s.", secret)
        old(self, bot_config)


@caught_by("test_no_secret_shows_beside_what_is_wrong")
def errors_show_what_was_understood(Storage, Plugin):
    """An unknown key is refused, and the valid keys are shown with their values."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        try:
            old(self, bot_config)
        except ValueError as error:
            text = str(error)
        else:
            return
        given = getattr(bot_config, "STORAGE_CONFIG", None)
        if isinstance(given, dict) and "no such key" in text and len(given) > 1:
            text += f"\n  Understood: {given}"
        raise ValueError(text)


@caught_by("test_the_plugin_leaves_storage_config_as_it_is")
def the_signing_key_is_taken_out_of_the_config(Storage, Plugin):
    """`pop`, so that the secret is nowhere else."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if isinstance(given := getattr(bot_config, "STORAGE_CONFIG", None), dict):
            given.pop("signing_key", None)


@caught_by("test_the_plugin_leaves_storage_config_as_it_is")
def old_signing_keys_are_taken_out_of_the_config(Storage, Plugin):
    """`pop` on the administrator's own list."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        given = getattr(bot_config, "STORAGE_CONFIG", None) or {}
        if isinstance(keys := given.get("signing_key"), list):
            del keys[:-1]


@caught_by("test_neither_vars_nor_a_pickle_shows_a_secret")
def the_keys_are_kept_in_clear(Storage, Plugin):
    """An attribute of the storage, which Sentry and debuggers show."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.keys_in_clear = [key.get_secret_value() for key in storage._signing_keys]
        return storage


@caught_by("test_no_frame_of_an_error_shows_a_secret")
def a_frame_of_an_error_holds_the_config(Storage, Plugin):
    """A local variable of a function that raises, which Errbot sends to Sentry."""
    Config = config_class(Plugin)
    load = Config.load
    code = "def load(given):\n    settings = repr(given)\n    return old(given)\n"
    names = {"old": load}
    exec(compile(code, load.__func__.__code__.co_filename, "exec"), names)
    Config.load = names["load"]


@caught_by("test_no_part_of_a_secret_shows")
def the_log_shows_what_follows_the_at_sign(Storage, Plugin):
    """The host is taken to be what follows the first `@`, which may be half of a password."""
    Config = config_class(Plugin)

    @replace(Plugin)
    def __init__(old, self, bot_config):
        config = Config.load(getattr(bot_config, "STORAGE_CONFIG", None))
        for value in vars(config).values():
            if hasattr(value, "get_secret_value") and "@" in value.get_secret_value():
                log.info("Connecting to %s.", value.get_secret_value().partition("@")[2])
        old(self, bot_config)


@caught_by("test_a_timeout_may_be_a_fraction_of_a_second", outlives_process=True)
def a_timeout_is_in_whole_seconds(Storage, Plugin):
    """`int(timeout)`, as some clients demand. Half a second is none."""

    @replace(Plugin)
    def _connect(old, self):
        self.config = self.config.model_copy(update={"timeout": int(self.config.timeout)})
        connection = old(self)
        connection.execute(f"PRAGMA busy_timeout = {self.config.timeout * 1000}")
        return connection


@caught_by("test_files_of_bots_in_one_folder_are_told_apart", outlives_process=True)
def the_file_gets_an_ending(Storage, Plugin):
    """`with_suffix` adds one, or replaces what follows the last dot."""

    @replace(Plugin)
    def _connect(old, self):
        self._path = self._path.with_suffix(".sqlite3")
        return old(self)


@caught_by("test_no_program_gets_a_secret")
def a_program_asks_whether_the_server_is_ready(Storage, Plugin):
    """The database's own program, with the url as its argument. Python stands in for it."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        for secret in secrets_of(Plugin, bot_config):
            subprocess.run([sys.executable, "-Sc", "", secret], check=True)
        old(self, bot_config)


@caught_by("test_no_secret_shows_when_operations_take_long")
def slow_operations_name_their_server(Storage, Plugin):
    """The log says which operation was slow, and where: the url with its password."""
    know_plugin(Plugin)

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.secrets = secrets_of(Plugin, bot_config)

    @replace(Storage)
    def write(old, self, key, data):
        began = time.monotonic()
        old(self, key, data)
        if time.monotonic() - began > 1:
            log.warning("Slow: %s", self.plugin.secrets)


@caught_by("test_sqlite_waits_for_the_disk_as_configured", outlives_process=True)
def nothing_waits_for_the_disk(Storage, Plugin):
    """A setting that makes SQLite faster, until the power fails."""

    @replace(Plugin)
    def _connect(old, self):
        connection = old(self)
        connection.execute("PRAGMA synchronous = OFF")
        return connection


@caught_by("test_no_secret_shows_when_the_plugin_starts")
def a_thread_is_named_after_the_url(Storage, Plugin):
    """It keeps the connection alive. Its name stands in the log, and in lists of threads."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.ended = threading.Event()
        for secret in secrets_of(Plugin, bot_config):
            name = f"for {secret}"
            threading.Thread(target=self.ended.wait, name=name, daemon=True).start()


@caught_by("test_a_file_may_be_outside_the_bots_folder", outlives_process=True)
def namespaces_are_named_after_the_bots_folder(Storage, Plugin):
    """So that bots do not share them, not even if they are to share a file."""
    name_namespaces_after(Plugin, lambda bot_config: bot_config.BOT_DATA_DIR)


@caught_by("test_a_long_timeout_is_waited_for", outlives_process=True)
def nobody_waits_for_longer_than_two_seconds(Storage, Plugin):
    """A long `timeout` is shortened, so that no command takes too long."""

    @replace(Plugin)
    def _connect(old, self):
        self.config.timeout = min(self.config.timeout, 2.0)
        return old(self)


@caught_by("test_no_secret_shows")
def the_account_is_logged_as_it_is_sent(Storage, Plugin):
    """The header of each request, at DEBUG: name and password in base64."""

    @replace(Plugin)
    def open(old, self, namespace):
        for secret in self.config.signing_keys if "config" in vars(self) else self._signing_keys:
            sent = b64encode(b"bot:" + secret.get_secret_value().encode()).decode()
            log.debug("> GET /%s Authorization: Basic %s", namespace, sent)
        return old(self, namespace)
