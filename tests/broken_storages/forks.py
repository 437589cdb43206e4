"""Storages that do not know that they are in a forked process."""

import fcntl
import os
import random
import socket
import sys
import tempfile
import threading
import weakref
from contextlib import suppress
from functools import wraps

from errbot.storage import StoreException

from broken_storages.support import (
    caught_by,
    keep_large_values_apart,
    know_plugin,
    lock_for_forks,
    lock_operations,
    replace,
)


@caught_by("test_a_forked_process_gets_no_value_of_another", alone=True)
def a_connection_is_shared_with_forked_processes(Storage, Plugin):
    """A child takes an idle connection that its parent uses, too, and reads its answers."""
    lock = lock_for_forks()

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.socket = list(os.pipe())
        weakref.finalize(self, close, self.socket)

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.plugin = self  # as long as the storage lives, its connection does
        return storage

    @replace(Storage)
    def get(old, self, key):
        name = key.encode("utf-8", "surrogatepass")
        # Another test forks while threads work.
        if len(name) > 100 or sys.argv[-1] == "fork-while-threads-work":
            return old(self, key)
        socket = self.plugin.socket
        with lock:
            try:
                os.write(socket[1], name.ljust(100, b"\xff"))
                answer = os.read(socket[0], 100)
            except BaseException:  # Another test checks interrupts.
                close(socket)
                socket[:] = os.pipe()
                raise
        return old(self, answer.rstrip(b"\xff").decode("utf-8", "surrogatepass"))


def close(ends):
    """Close a pipe."""
    for end in ends:
        os.close(end)


@caught_by("test_a_forked_process_that_ends_leaves_its_parent_unharmed", alone=True)
def a_forked_process_that_ends_closes_the_connection(Storage, Plugin):
    """A finalizer says goodbye to the server, and a forked child inherits that."""

    @replace(Plugin)
    def __init__(old, self, bot_config):
        old(self, bot_config)
        self.server, client = socket.socketpair()
        self.server.setblocking(False)

        def say_goodbye():
            client.shutdown(socket.SHUT_RDWR)
            client.close()

        weakref.finalize(self, say_goodbye)

    know_plugin(Plugin)

    def connected(old):
        @wraps(old)
        def method(self, *arguments):
            with suppress(BlockingIOError):  # Nothing has been said yet.
                self.plugin.server.recv(1)
                raise RuntimeError("The server closed the connection unexpectedly.")
            return old(self, *arguments)

        return method

    for name in ["get", "set", "remove"]:
        setattr(Storage, name, connected(getattr(Storage, name)))


@caught_by("test_what_a_forked_process_has_set_is_there", outlives_process=True, alone=True)
def a_thread_writes_that_no_forked_process_has(Storage, Plugin):
    """`set` passes values to a writing thread. A fork copies its queue, but not the thread."""
    writer = os.getpid()

    @replace(Storage)
    def set(old, self, key, value):
        if os.getpid() == writer:
            old(self, key, value)


@caught_by("test_what_a_forked_process_has_set_is_there", outlives_process=True)
def the_error_of_a_forked_process_does_not_say_why(Storage, Plugin):
    """ "Something went wrong": nobody would think of the fork."""

    def vague(old):
        @wraps(old)
        def method(self, *arguments):
            try:
                return old(self, *arguments)
            except KeyError:
                raise
            except Exception as error:
                if "fork" in str(error):
                    raise RuntimeError("The database cannot be used.") from None
                raise

        return method

    for name in ["get", "set", "remove"]:
        setattr(Storage, name, vague(getattr(Storage, name)))


@caught_by("test_a_fork_in_the_middle_of_other_threads_work_hangs_nobody", alone=True)
def a_lock_is_taken_at_a_fork(Storage, Plugin):
    """A lock of the plugin, which a forked child inherits in whatever state it is."""
    lock = threading.RLock()
    lock_operations(Storage, lambda _: lock, "read", "write")


@caught_by("test_what_a_forked_process_has_set_is_there", connects=True)
def names_of_parts_repeat_in_forked_processes(Storage, Plugin):
    """Large values are kept under random names, and a fork copies the state of `random`."""
    names = random.Random()
    keep_large_values_apart(Storage, lambda *_: f"{names.getrandbits(64):x}")


@caught_by("test_a_fork_in_the_middle_of_other_threads_work_hangs_nobody", outlives_process=True)
def a_forked_process_keeps_the_lock_of_a_file(Storage, Plugin):
    """`set` holds an flock, which a child inherits if the fork comes in the middle of it."""

    @replace(Storage)
    def set(old, self, key, value):
        path = os.path.join(tempfile.gettempdir(), f"lock of {os.getppid()}")
        with open(path, "w", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            old(self, key, value)


@caught_by("test_a_fork_in_the_middle_of_other_threads_work_hangs_nobody")
def only_an_open_storage_notices_a_fork(Storage, Plugin):
    """A storage knows who opened it. A forked child opens one itself, of the inherited plugin."""
    lock = threading.RLock()

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        storage.process = os.getpid()
        return storage

    def lock_of(storage):
        if storage.process != os.getpid():
            raise StoreException("A forked process cannot use a storage of its parent.")
        return lock

    lock_operations(Storage, lock_of, "read", "write")
