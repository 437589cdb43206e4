"""Storages that change what belongs to the bot and to all of its plugins."""

import asyncio
import atexit
import copyreg
import decimal
import faulthandler
import gc
import http.client
import json
import locale
import logging
import multiprocessing
import os
import pickle
import random
import resource
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from errbot.storage import StoreException
from requests.sessions import Session

from broken_storages.support import caught_by, know_plugin, replace

NOTHING = "test_a_storage_changes_nothing_of_its_process"


def at_start(Plugin: Any, change: Callable[[], object]) -> None:
    """Run something when the plugin is loaded, in a separate process of the tests."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if sys.argv[-1] == "visit":  # not in the process of all tests, which would keep it
            change()


@caught_by(NOTHING, alone=True)
def sockets_get_a_timeout(Storage, Plugin):
    """`setdefaulttimeout`, because the client has no such option. It ends the chat's connection."""
    at_start(Plugin, lambda: socket.setdefaulttimeout(10))


@caught_by(NOTHING)
def the_working_directory_is_another(Storage, Plugin):
    """`chdir` to the folder of the data."""
    at_start(Plugin, lambda: os.chdir(os.sep))


@caught_by(NOTHING)
def the_password_goes_into_the_environment(Storage, Plugin):
    """As database clients expect it, but each child inherits it, and `env` shows it."""
    at_start(Plugin, lambda: os.environ.setdefault("PGPASSWORD", "secret"))


@caught_by(NOTHING)
def deep_values_raise_the_recursion_limit(Storage, Plugin):
    """As advised for a RecursionError of pickle. Then nothing ends a plugin's endless recursion."""

    @replace(Storage)
    def _dump(old, self, key, value):
        try:
            return old(self, key, value)
        except RecursionError:
            sys.setrecursionlimit(2 * sys.getrecursionlimit())
            return old(self, key, value)


@caught_by(NOTHING)
def secrets_are_taken_out_of_the_environment(Storage, Plugin):
    """So that no child inherits them. But `!restart` reads the bot's config.py again."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        secrets = list(bot_config.STORAGE_CONFIG.values())
        for name in [name for name, value in os.environ.items() if value in secrets]:
            del os.environ[name]


@caught_by(NOTHING)
def sigterm_is_caught(Storage, Plugin):
    """A handler that flushes, but does not end the bot."""
    at_start(Plugin, lambda: signal.signal(signal.SIGTERM, lambda *_: None))


@caught_by(NOTHING)
def signals_are_blocked(Storage, Plugin):
    """So that no signal interrupts a transaction, but they are never unblocked."""
    at_start(Plugin, lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]))


@caught_by(NOTHING)
def ended_children_are_ignored(Storage, Plugin):
    """To avoid zombies, but then `subprocess` loses every exit status."""
    at_start(Plugin, lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))


@caught_by(NOTHING)
def locks_become_new_ones(Storage, Plugin):
    """So that objects that have a lock can be stored, but `copy` and all other pickles have one."""
    lock = type(threading.Lock())
    at_start(Plugin, lambda: copyreg.pickle(lock, lambda _: (threading.Lock, ())))


@caught_by(NOTHING)
def an_alarm_is_set(Storage, Plugin):
    """The process's timer is used as the timeout of a connection, and never reset."""
    at_start(Plugin, lambda: signal.setitimer(signal.ITIMER_REAL, 1_000))


@caught_by(NOTHING)
def logging_is_configured(Storage, Plugin):
    """`basicConfig`: each line of the bot's log appears twice."""
    at_start(Plugin, lambda: logging.basicConfig(force=True, level=logging.DEBUG))


@caught_by(NOTHING)
def loggers_of_others_are_disabled(Storage, Plugin):
    """`dictConfig` disables all existing loggers by default."""

    def configure() -> None:
        from logging.config import dictConfig

        dictConfig({"version": 1})

    at_start(Plugin, configure)


@caught_by(NOTHING)
def debugging_is_switched_off(Storage, Plugin):
    """`logging.disable`, because the client is noisy."""
    at_start(Plugin, lambda: logging.disable(logging.INFO))


@caught_by(NOTHING)
def its_folder_is_on_the_path(Storage, Plugin):
    """`sys.path`, to import a neighbour: each of its modules hides others of the same name."""
    at_start(Plugin, lambda: sys.path.insert(0, str(Path(__file__).parent)))


@caught_by(NOTHING)
def the_plugins_folder_is_searched_first(Storage, Plugin):
    """To import a neighbour. Errbot adds this folder, too, but to the end."""
    folder = str(Path(Plugin.open.__globals__["__file__"]).parent)
    at_start(Plugin, lambda: sys.path.insert(0, folder))


@caught_by(NOTHING)
def warnings_are_silenced(Storage, Plugin):
    """`simplefilter`, because the client warns at each start."""
    at_start(Plugin, lambda: warnings.simplefilter("ignore"))


@caught_by(NOTHING)
def the_locale_is_set(Storage, Plugin):
    """So that names are sorted as people expect."""

    def change() -> None:
        other = "C" if "UTF-8" in locale.setlocale(locale.LC_ALL) else "C.UTF-8"
        locale.setlocale(locale.LC_ALL, other)

    at_start(Plugin, change)


@caught_by(NOTHING)
def the_umask_is_set(Storage, Plugin):
    """Only the bot may access the storage's files, but this applies to plugins' files, too."""
    at_start(Plugin, lambda: os.umask(0o177))


@caught_by(NOTHING)
def errors_are_caught_by_a_hook(Storage, Plugin):
    """`sys.excepthook`, to close the connection."""
    at_start(Plugin, lambda: setattr(sys, "excepthook", lambda *_: None))


@caught_by(NOTHING)
def errors_of_threads_are_caught_by_a_hook(Storage, Plugin):
    """`threading.excepthook`, to give back a connection."""
    at_start(Plugin, lambda: setattr(threading, "excepthook", lambda _: None))


@caught_by(NOTHING)
def processes_are_spawned(Storage, Plugin):
    """`set_start_method`, because the client does not survive a fork. Plugins that set one fail."""
    at_start(Plugin, lambda: multiprocessing.set_start_method("spawn", force=True))


@caught_by(NOTHING)
def recursion_is_unlimited(Storage, Plugin):
    """So that deeply nested values can be pickled, but an endless recursion kills the bot."""
    at_start(Plugin, lambda: sys.setrecursionlimit(100_000))


@caught_by(NOTHING)
def the_garbage_collector_is_off(Storage, Plugin):
    """For speed, and never enabled again."""
    at_start(Plugin, gc.disable)


@caught_by(NOTHING)
def certificates_are_not_checked(Storage, Plugin):
    """For the whole bot, as an answer on the internet suggests."""
    at_start(
        Plugin,
        lambda: setattr(ssl, "_create_default_https_context", ssl._create_unverified_context),
    )


@caught_by(NOTHING)
def sessions_check_no_certificates(Storage, Plugin):
    """Those of `requests`, because the database has a certificate of its own."""
    merge = Session.merge_environment_settings

    def without(self, *arguments):
        return merge(self, *arguments) | {"verify": False}

    at_start(Plugin, lambda: setattr(Session, "merge_environment_settings", without))


@caught_by(NOTHING)
def json_takes_everything(Storage, Plugin):
    """`JSONEncoder.default` is replaced, so that dates can be stored."""
    at_start(Plugin, lambda: setattr(json.JSONEncoder, "default", lambda _self, value: str(value)))


@caught_by(NOTHING)
def sockets_are_replaced(Storage, Plugin):
    """As gevent's `patch_all` or a proxy for all connections does."""
    at_start(Plugin, lambda: setattr(socket, "create_connection", lambda *_, **__: None))


@caught_by(NOTHING)
def a_module_is_replaced(Storage, Plugin):
    """`sys.modules["sqlite3"] = ...`: a newer one, for all plugins."""
    at_start(Plugin, lambda: sys.modules.__setitem__("json", pickle))


@caught_by(NOTHING)
def randomness_is_seeded(Storage, Plugin):
    """So that tests can predict ids, but then plugins' random numbers can be predicted, too."""
    at_start(Plugin, lambda: random.seed(0))


@caught_by(NOTHING)
def levels_get_other_names(Storage, Plugin):
    """`addLevelName`, for lines in colour."""
    at_start(Plugin, lambda: logging.addLevelName(logging.WARNING, "\x1b[33mWARNING"))


@caught_by(NOTHING)
def the_event_loop_is_set(Storage, Plugin):
    """`set_event_loop_policy`, for a faster one."""
    at_start(Plugin, lambda: setattr(asyncio.events, "_event_loop_policy", object()))


@caught_by(NOTHING)
def temporary_files_are_elsewhere(Storage, Plugin):
    """`tempfile.tempdir`, so that a file can be renamed into its place."""
    at_start(Plugin, lambda: setattr(tempfile, "tempdir", os.sep))


@caught_by(NOTHING)
def each_use_sets_the_umask(Storage, Plugin):
    """Not at the start, but with the first value, and it is not restored after an error."""

    @replace(Storage)
    def set(old, self, key, value):
        umask = os.umask(0o077)
        old(self, key, value)
        os.umask(umask)


@caught_by(NOTHING)
def the_event_loop_is_closed(Storage, Plugin):
    """An asynchronous client runs in a loop of its own, which then is everybody's, and closed."""

    def connect():
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.close()

    at_start(Plugin, connect)


@caught_by(NOTHING)
def each_timeout_takes_the_timer_of_plugins(Storage, Plugin):
    """A timeout by SIGALRM, which ends the timer that a plugin has set."""

    @replace(Storage)
    def get(old, self, key):
        if threading.current_thread() is not threading.main_thread():
            return old(self, key)
        handler = signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 10)
        try:
            return old(self, key)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)


@caught_by(NOTHING)
def urllib_opens_everything_with_the_password(Storage, Plugin):
    """`install_opener`, with the credentials of the database."""

    def install():
        opener = urllib.request.build_opener()
        opener.addheaders = [("Authorization", "Basic ZXJyYm90OnNlY3JldA==")]
        urllib.request.install_opener(opener)

    at_start(Plugin, install)


@caught_by(NOTHING)
def sqlite3_converts_lists_for_everybody(Storage, Plugin):
    """`register_adapter`, which counts for all connections of the process."""
    at_start(Plugin, lambda: sqlite3.register_adapter(list, json.dumps))


@caught_by("test_a_storage_prints_nothing", alone=True)
def the_start_is_printed(Storage, Plugin):
    """A banner, which a bot in a terminal prints into the conversation."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        print("Connected.", file=sys.stderr)


@caught_by("test_a_storage_prints_nothing")
def errors_are_printed(Storage, Plugin):
    """`traceback.print_exc`, or a client that prints its opinion of an answer."""

    @replace(Storage)
    def remove(old, self, key):
        try:
            old(self, key)
        except KeyError:
            os.write(2, b"no such key\n")
            raise


@caught_by(NOTHING)
def all_http_traffic_is_printed(Storage, Plugin):
    """`debuglevel`, which counts for every connection of every plugin."""
    at_start(Plugin, lambda: setattr(http.client.HTTPConnection, "debuglevel", 1))


@caught_by(NOTHING)
def other_threads_get_its_umask(Storage, Plugin):
    """Files are created under a umask, which is then restored: to what another thread has set."""

    @replace(Storage)
    def write(old, self, key, data):
        before = os.umask(0o077)
        try:
            old(self, key, data)
            time.sleep(0.001)
        finally:
            os.umask(before)


@caught_by(NOTHING)
def the_end_of_any_program_is_awaited(Storage, Plugin):
    """`os.wait` for its own program takes the exit status of another plugin's program."""

    @replace(Storage)
    def write(old, self, key, data):
        if sys.argv[-1] == "visit" and len(data) > 100_000:
            with suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
        old(self, key, data)


@caught_by(NOTHING)
def decimals_trap_in_new_threads(Storage, Plugin):
    """`decimal.DefaultContext`, as some clients set it so that no digit is lost."""
    at_start(Plugin, lambda: decimal.DefaultContext.traps.update({decimal.Inexact: True}))


if sys.version_info < (3, 12):  # Newer ones have another limit for functions in C.

    @caught_by(NOTHING)
    def the_recursion_limit_is_lifted_for_pickle(Storage, Plugin):
        """So that deep values can be stored. Deeper ones end the process."""

        @replace(Storage)
        def set(old, self, key, value):
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(10**6)
            try:
                old(self, key, value)
            finally:
                sys.setrecursionlimit(limit)


@caught_by(NOTHING)
def nobody_opens_a_file_while_it_unpickles(Storage, Plugin):
    """So that a value can read none. But other threads then can start no program, either."""

    @replace(Storage)
    def _load(old, self, key, data):
        if sys.argv[-1] != "visit":  # In the process of all tests, it would break others.
            return old(self, key, data)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
        try:
            return old(self, key, data)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


@caught_by(NOTHING)
def sqlite_gets_little_memory(Storage, Plugin):
    """A PRAGMA for this storage's connection, which holds for all of the process."""
    limit = "PRAGMA hard_heap_limit = 268435456"
    at_start(Plugin, lambda: sqlite3.connect(":memory:").execute(limit).fetchall())


@caught_by(NOTHING)
def the_process_may_open_other_numbers_of_files(Storage, Plugin):
    """As many as the storage itself needs."""

    def limit():
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (1_024, 1_024))

    at_start(Plugin, limit)


@caught_by(NOTHING)
def the_umask_becomes_the_usual_one(Storage, Plugin):
    """Restored to 022, not to what it was. With UMask=0077, all new files become readable."""
    at_start(Plugin, lambda: os.umask(0o022))


@caught_by(NOTHING)
def the_process_gets_a_group_of_its_own(Storage, Plugin):
    """So that Ctrl-C does not reach the client, but it does not reach the bot either."""
    at_start(Plugin, lambda: os.setpgid(0, 0))


@caught_by(NOTHING)
def garbage_is_kept(Storage, Plugin):
    """Left from the search for a leak: objects in a cycle are never freed."""
    at_start(Plugin, lambda: gc.set_debug(gc.DEBUG_SAVEALL))


@caught_by(NOTHING)
def its_helpers_are_a_module_named_utils(Storage, Plugin):
    """Errbot executes storage.py by its path. Plugins have a utils.py of their own."""
    at_start(Plugin, lambda: sys.modules.setdefault("utils", ModuleType("utils")))


@caught_by("test_a_storage_changes_nothing_of_the_configuration", alone=True)
def commands_get_one_thread(Storage, Plugin):
    """Because the client is for one thread. All commands of all plugins wait for each other."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        bot_config.BOT_ASYNC_POOLSIZE = 1


@caught_by("test_a_storage_prints_nothing")
def a_connection_is_closed_twice(Storage, Plugin):
    """By its client and by `atexit`, whose error Python prints when the bot has ended."""

    def close():
        raise ValueError("The connection is closed.")

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if sys.argv[-1].startswith("write"):  # not in the process of all tests
            atexit.register(close)


@caught_by(NOTHING, alone=True)
def prints_are_swallowed_while_it_works(Storage, Plugin):
    """`redirect_stdout`, because the client is chatty. It is the screen of all threads."""

    @replace(Storage)
    def write(old, self, key, data):
        with redirect_stdout(StringIO()):
            old(self, key, data)


@caught_by(NOTHING)
def the_password_is_in_the_environment_while_it_works(Storage, Plugin):
    """For the client's own program. Programs that other threads start then inherit it."""

    @replace(Storage)
    def read(old, self, key):
        os.environ["ACME_PASSWORD"] = "secret"
        try:
            return old(self, key)
        finally:
            os.environ.pop("ACME_PASSWORD", None)


@caught_by("test_a_storage_that_nobody_uses_does_nothing", alone=True)
def a_thread_looks_for_work_all_the_time(Storage, Plugin):
    """Instead of a condition that wakes it up."""

    def look():
        while True:
            time.sleep(0.002)

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if sys.argv[-1] == "rest":  # not for the rest of all tests
            threading.Thread(target=look, daemon=True).start()


@caught_by("test_python_ends_soon_after_a_storage_was_used", alone=True)
def a_timer_keeps_python_from_ending(Storage, Plugin):
    """It renews the login, and is no daemon, so it must be cancelled in `close`."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if sys.argv[-1] == "use":  # All other processes would wait, too.
            threading.Timer(15, lambda: None).start()


@caught_by(NOTHING)
def a_watchdog_tells_where_it_hangs(Storage, Plugin):
    """`faulthandler` has one timer, which the bot or another plugin may need."""

    @replace(Storage)
    def read(old, self, key):
        faulthandler.dump_traceback_later(60, file=2)
        try:
            return old(self, key)
        finally:
            faulthandler.cancel_dump_traceback_later()


@caught_by("test_a_storage_changes_nothing_of_its_process")
def signals_are_ignored_while_it_writes(Storage, Plugin):
    """So that no Ctrl-C interrupts a `set`. But a bot that is told to stop goes on."""

    @replace(Storage)
    def write(old, self, key, data):
        if threading.current_thread() is not threading.main_thread():
            old(self, key, data)
            return
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            old(self, key, data)
        finally:
            signal.signal(signal.SIGTERM, handler)


@caught_by("test_a_storage_changes_nothing_of_its_process")
def all_clients_of_the_process_get_another_port(Storage, Plugin):
    """The port of all HTTP clients, although only one needs it."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        http.client.HTTP_PORT = 8_080  # type: ignore[misc]


@caught_by("test_plugins_can_store_what_they_have_when_ctrl_c_ends_a_bot", alone=True)
def the_database_is_a_program_of_the_bots_group(Storage, Plugin):
    """A terminal sends Ctrl-C to it as well, so it ends before the bot."""
    know_plugin(Plugin)

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        if sys.argv[-1] == "be-interrupted":
            serve = [sys.executable, "-c", "input()"]
            self.server = subprocess.Popen(serve, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)

    @replace(Storage)
    def write(old, self, key, data):
        server = self.plugin.__dict__.get("server")
        if server and server.poll() is not None:
            raise StoreException("The database has ended.")
        old(self, key, data)


@caught_by(NOTHING)
def warnings_are_hidden_while_it_unpickles(Storage, Plugin):
    """Old values warn about what is deprecated. But the filters belong to all threads."""

    @replace(Storage)
    def get(old, self, key):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return old(self, key)


@caught_by("test_a_bot_that_is_told_to_end_in_a_set_ends", alone=True)
def a_signal_waits_until_a_value_is_stored(Storage, Plugin):
    """Afterwards its handler is called, but the default one cannot be called."""

    @replace(Storage)
    def set(old, self, key, value):
        if threading.current_thread() is not threading.main_thread():
            old(self, key, value)
            return
        came = []
        handler = signal.signal(signal.SIGTERM, lambda *arguments: came.append(arguments))
        try:
            old(self, key, value)
        finally:
            signal.signal(signal.SIGTERM, handler)
            if came and callable(handler):
                handler(*came[0])


@caught_by(NOTHING)
def an_audit_hook_watches_what_is_unpickled(Storage, Plugin):
    """It refuses planted functions, but also those that another plugin's processes are to run."""

    def refuse(event, arguments):
        if event == "pickle.find_class" and arguments[0] in ("posix", "subprocess"):
            raise pickle.UnpicklingError("This may run a program.")

    at_start(Plugin, lambda: sys.addaudithook(refuse))
