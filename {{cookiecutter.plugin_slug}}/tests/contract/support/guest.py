"""What second_process.py does to see what a storage changes in its process."""

import asyncio
import copyreg
import csv
import decimal
import faulthandler
import gc
import json
import locale
import logging
import multiprocessing
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from types import FrameType, GeneratorType, MappingProxyType, ModuleType
from typing import Any

from errbot.storage.base import StorageBase

from contract.support.deadlines import at_once
from contract.support.outcomes import outcome, refusal
from contract.support.sample_values import MARK, Unreadable, Unstorable

resource: Any = None if sys.platform == "win32" else import_module("resource")
HOUR = 3_600
DEEP, DEEPER = 20_000, 100_000
"""Levels of values that are nested too deeply."""
STATUS = 3
"""The exit status of another plugin's program."""
THREADS = 8
NOT_PICKLED = [
    *(type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event),
    *(FrameType, ModuleType, GeneratorType, MappingProxyType, TextIOWrapper, socket.socket),
]
"""Types whose objects cannot be pickled, and must not become so for all plugins."""
FILES = 250
"""How many open files the process is allowed, which nothing else sets to this number."""


def shared_settings() -> dict[str, Any]:
    """Return the settings that other threads use at every moment."""
    os.umask(umask := os.umask(0))
    state: dict[str, Any] = {
        "the working directory": os.getcwd(),
        "the umask": umask,
        "the default timeout of sockets": socket.getdefaulttimeout(),
        "the locale": locale.setlocale(locale.LC_ALL),
        "the level of all logging": logging.root.manager.disable,
        "the filters of warnings": tuple(warnings.filters),
        "sys.stdin, sys.stdout and sys.stderr": tuple(
            (stream, stream and stream.encoding, stream and stream.errors)
            for stream in [sys.stdin, sys.stdout, sys.stderr]
        ),
    }
    for number in [signal.SIGINT, signal.SIGTERM]:
        state[f"that {number.name} is obeyed"] = signal.getsignal(number) is not signal.SIG_IGN
    state |= {f"the environment variable {name}": value for name, value in os.environ.items()}
    return state


def changed_meanwhile(storage: StorageBase) -> list[str]:
    """Return which of these settings an operation changes, even if it restores them.

    The value is small, because these settings are compared at each call of a function in C.
    """
    before = shared_settings()
    found: set[str] = set()

    def look(_frame: FrameType, event: str, _argument: Any) -> None:
        if event != "c_call":
            return
        after = shared_settings()
        found.update(name for name, value in before.items() if after.get(name) != value)
        found.update(after.keys() - before.keys())

    sys.setprofile(look)
    try:
        storage.set("key", [MARK])
        storage.get("key")
        outcome(storage.get, "missing")
        storage.len()
        for key in list(storage.keys()):
            storage.remove(key)
    finally:
        sys.setprofile(None)
    return [f"{name} while it works" for name in found]


def searched() -> tuple[str, ...]:
    """Return `sys.path` without the folders of plugins at its end, which Errbot adds."""
    paths = list(sys.path)
    while paths and any(Path(paths[-1]).glob("*.plug")):
        paths.pop()
    return tuple(paths)


def settings() -> dict[str, Any]:
    """Return the settings of this process, which belong to the bot and all its plugins."""
    root = logging.getLogger()
    state = shared_settings() | {
        "the process group": os.getpgrp() if hasattr(os, "getpgrp") else 0,
        "the priority": os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else 0,
        "the time zone": time.tzname,
        "the default encoding": (locale.getpreferredencoding(False), sys.getdefaultencoding()),
        "sys.path": searched(),
        "how modules are imported": (*sys.meta_path, *sys.path_hooks),
        "sys.argv": tuple(sys.argv),
        "sys.dont_write_bytecode": sys.dont_write_bytecode,
        "the hooks of sys": (sys.excepthook, sys.unraisablehook, sys.displayhook),
        "the hooks of generators": sys.get_asyncgen_hooks(),
        "the hook of threading": threading.excepthook,
        "what traces and profiles": (sys.gettrace(), sys.getprofile(), threading.gettrace()),
        "the recursion limit": sys.getrecursionlimit(),
        "the stack size of threads": threading.stack_size(),
        "the switch interval": sys.getswitchinterval(),
        "the garbage collector": (gc.isenabled(), gc.get_threshold(), *gc.callbacks),
        "what the garbage collector keeps": gc.get_debug(),
        "the limit of digits": getattr(sys, "get_int_max_str_digits", int)(),
        "the folder for temporary files": tempfile.gettempdir(),
        "faulthandler": faulthandler.is_enabled(),
        "multiprocessing's start method": multiprocessing.get_start_method(allow_none=True),
        "asyncio's policy": getattr(asyncio.events, "_event_loop_policy", None),
        "the contexts of decimals": (repr(decimal.getcontext()), repr(decimal.DefaultContext)),
        "the classes of logging": (logging.getLoggerClass(), logging.getLogRecordFactory()),
        "the names of levels": tuple(map(logging.getLevelName, range(0, 60, 10))),
        "what logging does with errors": (logging.raiseExceptions, logging.lastResort),
        "the root logger": (root.level, root.disabled, *root.handlers, *root.filters),
        "the timers": tuple(signal.getitimer(timer)[0] > HOUR / 2 for timer in timers()),
        "urllib's opener": urllib.request._opener,  # type: ignore[attr-defined]
        "how sqlite3 converts values": (*sqlite3.adapters.items(), *sqlite3.converters.items()),
        "the limit of csv": csv.field_size_limit(),
        "the memory for sqlite3": limits_of_sqlite(),
        "the limits of the process": limits(),
        "the event loop": event_loop(),
        "the signals": tuple(signals_of_the_kernel()),
    }
    for number in signal.valid_signals():
        state[f"the handler of the signal {number!r}"] = signal.getsignal(number)
    return state


def event_loop() -> object:
    """Return the event loop of the main thread, unless it is closed or was taken away."""
    with suppress(RuntimeError, DeprecationWarning):
        loop = asyncio.get_event_loop()
        return None if loop.is_closed() else loop
    return None


def limits_of_sqlite() -> list[Any]:
    """Return how much memory all connections of this process may use."""
    with closing(sqlite3.connect(":memory:")) as connection:
        names = ["soft_heap_limit", "hard_heap_limit"]
        return [connection.execute(f"PRAGMA {name}").fetchall() for name in names]


def limits() -> dict[str, tuple[int, int]]:
    """Return how many open files and so on this process may have. Windows has no such limits."""
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {name: resource.getrlimit(getattr(resource, name)) for name in names}


def timers() -> list[int]:
    """Return the timers of a process that raise signals."""
    return [int(signal.ITIMER_REAL)] if hasattr(signal, "setitimer") else []


def signals_of_the_kernel() -> list[str]:
    """Return which signals are blocked, ignored and caught, even by libraries in C. Linux only."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return [line for line in lines if line.startswith(("SigBlk", "SigIgn", "SigCgt"))]
    return []


def belongings() -> dict[str, Any]:
    """Return what others have loaded: loggers, modules, their definitions and pickling functions.

    A database's client may add to these, but what existed before must stay unchanged.
    """
    state: dict[str, Any] = {}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):
            state[f"the logger {name}"] = (
                *(logger.level, logger.disabled, logger.propagate),
                *(*logger.handlers, *logger.filters),
            )
    for name, module in list(sys.modules.items()):
        state[f"the module {name}"] = module
        if name.partition(".")[0] in {*sys.stdlib_module_names, "errbot", "requests", "urllib3"}:
            state |= definitions(name, module)
    for kind in {*copyreg.dispatch_table, *NOT_PICKLED}:
        state[f"how {kind} is pickled"] = copyreg.dispatch_table.get(kind)
    return state


def definitions(name: str, module: ModuleType) -> dict[str, Any]:
    """Return a module's functions, classes and constants, and what the classes it defines have."""
    found = {}
    for attribute, value in list(vars(module).items()):
        if callable(value) or attribute.isupper():
            found[f"{name}.{attribute}"] = value
        if isinstance(value, type) and value.__module__ == name:
            for method, function in list(vars(value).items()):
                option = type(function) in (bool, int, str) and not method.startswith("_")
                if callable(function) or option:
                    found[f"{name}.{attribute}.{method}"] = function
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of everything that was replaced. Objects are compared by identity."""

    def is_same(old: Any, new: Any) -> bool:
        # Comparing two proxies of Flask outside of a request fails.
        return old is new or (isinstance(old, tuple) and old == new)

    return [name for name in before if not is_same(before[name], after.get(name))]


def hidden(owned: dict[str, Any]) -> list[str]:
    """Return the names of new modules that a plugin cannot import if they have not been loaded.

    A plugin's own module of such a name would not be found. A name with an underscore in front is
    private to a library: `cryptography`, which PyMySQL uses, adds `_openssl`.
    """

    def is_found(name: str, file: str | None) -> bool:
        specs = (finder.find_spec(name, None) for finder in sys.meta_path)
        spec = next(filter(None, specs), None)
        return spec is not None and (file is None or spec.origin in (file, "frozen"))

    names = {name for name in sys.modules if "." not in name and not name.startswith("_")}
    new = {name for name in names if f"the module {name}" not in owned}
    return [
        name for name in new if not is_found(name, getattr(sys.modules[name], "__file__", None))
    ]


def use(storage: StorageBase) -> None:
    """Use a storage in every way, including operations that fail."""
    for value in [MARK, [MARK], MARK * 100_000]:
        storage.set("key", value)
        storage.get("key")
    fail(storage)
    storage.len()
    for key in list(storage.keys()):
        storage.remove(key)


def fail(storage: StorageBase) -> None:
    """Use a storage in every way that fails."""
    operations: list[Callable[[], object]] = [
        lambda: storage.set("key", Unstorable()),
        lambda: storage.set("unreadable", Unreadable(AttributeError("no such attribute"), MARK)),
        lambda: storage.get("unreadable"),
        lambda: storage.get("missing"),
        lambda: storage.remove("missing"),
        lambda: storage.set("k" * 70_000, MARK),
        lambda: storage.set("key", [MARK * 100_000, Unstorable()]),
        # What a failed `set` may leave behind is for another test.
        lambda: storage.remove("key"),
        lambda: storage.remove("unreadable"),
        lambda: storage.remove("k" * 70_000),
    ]
    for operation in operations:
        with suppress(Exception):
            operation()


class Waiting:
    """An object that takes its time while it is unpickled."""

    began = threading.Event()

    def __getstate__(self) -> str:
        return MARK

    def __setstate__(self, state: str) -> None:
        self.began.set()
        time.sleep(0.2)


def keeps_others_from_work(storage: StorageBase) -> bool:
    """Return whether other threads can start no program while the storage unpickles a value."""
    if refusal(storage.set, "key", Waiting()):
        outcome(storage.remove, "key")
        return False  # Other tests check whether it can be stored, and what is left if not.
    Waiting.began.clear()
    thread = threading.Thread(target=outcome, args=[storage.get, "key"])
    thread.start()
    began = Waiting.began.wait(1)
    failed = began and refusal(subprocess.run, [sys.executable, "-IS", "-c", ""])
    thread.join()
    return bool(failed)


def ended_by_a_signal(work: Callable[[], object]) -> bool:
    """Return whether a forked process that does the work is ended by a signal."""
    if not (pid := os.fork()):
        outcome(work)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def nested(levels: int) -> list[Any]:
    """Return a value that is nested so deeply."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def visit(open_storage: Callable[[], StorageBase]) -> None:
    """Load, open and use a storage, including in threads, and print what this has changed."""
    # The storage may have changed these in the tests' process, which passes them on.
    os.umask(0o026)  # not the usual one
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if resource:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, limits()["RLIMIT_NOFILE"][1]))
    logging.getLogger("errbot.plugins").addHandler(logging.NullHandler())
    logging.getLogger().addHandler(logging.NullHandler())  # without one, warnings are printed
    (first := threading.Thread()).start()  # The C library catches signals from the first one on.
    first.join()
    asyncio.set_event_loop(loop := asyncio.new_event_loop())
    for timer in timers():
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(timer, HOUR)
    import_module("requests")  # Errbot and its plugins share it.
    timed: list[object] = []
    for name in ["dump_traceback_later", "cancel_dump_traceback_later"]:
        # The real ones cannot be asked, and to show what other threads do can end the process.
        setattr(faulthandler, name, lambda *given, **_: timed.append(given))
    can_fork = hasattr(os, "fork")
    if can_fork and not (program := os.fork()):
        os._exit(STATUS)
    before, filters = settings(), list(warnings.filters)
    owned, randoms, found = belongings(), [], []
    hooks: list[str] = []
    sys.addaudithook(lambda event, _: hooks.append(event) if event == "sys.addaudithook" else None)
    for number in range(2):
        random.seed(number)
        storage = open_storage()
        found += changed_meanwhile(storage)
        use(storage)
        outcome(storage.set, "deep", nested(DEEP))
        outcome(storage.remove, "deep")
        with suppress(Exception):  # Another test checks whether threads can use it.
            at_once(*[partial(use, storage)] * THREADS)
        found += ["what other threads do while it reads a value"] * keeps_others_from_work(storage)
        outcome(storage.close)
        del storage
        gc.collect()
        randoms.append(random.getstate())
    after = settings()
    if can_fork and outcome(os.waitpid, program, 0) != (program, STATUS << 8):
        found.append("the exit status of another plugin's program")
    if can_fork and ended_by_a_signal(lambda: open_storage().set("key", nested(DEEPER))):
        found.append("the recursion limit while it works, so a deeply nested value ends the bot")
    found += [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    found += changed(owned, belongings())
    found += [f"what `import {name}` loads" for name in hidden(owned)]
    found += ["what `random` gives next, by its seed"] * (randoms[0] == randoms[1])
    if [each for each in warnings.filters if each in filters] != filters:
        found.append("the filters of warnings")
    new = [each for each in warnings.filters if each not in filters]
    if any(f"the module {category.__module__}" in owned for _, _, category, _, _ in new):
        found.append("the filters of warnings")  # not only the client's own
    loop.close()
    found += ["the timer of faulthandler"] * bool(timed)
    found += ["the audit hooks, which nobody can remove"] * bool(hooks)
    print(json.dumps(sorted(set(found))))
