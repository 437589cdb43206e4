"""A second process on the same database: python second_process.py CONFIG.PY NOTES NAMESPACE TASK"""

import atexit
import builtins
import gc
import getpass
import json
import os
import platform
import random
import signal
import socket
import sqlite3
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from threading import Thread
from time import sleep, time
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from errbot.backend_plugin_manager import BackendPluginManager  # noqa: E402
from errbot.bootstrap import get_storage_plugin  # noqa: E402
from errbot.storage.base import StorageBase, StoragePluginBase  # noqa: E402

from contract.support import forks  # noqa: E402
from contract.support.loading import load_config, load_plugin  # noqa: E402
from contract.support.outcomes import contents, outcome, same  # noqa: E402
from contract.support.sample_values import (  # noqa: E402
    LARGE,
    MARK,
    REPLACED,
    REPLACERS,
    SAMPLES,
    SHARED,
    large_value,
    replacement,
)
from contract.support.throwaway import Notes  # noqa: E402

Open = Callable[[], StorageBase]
"""Connects like a bot that starts, and opens the namespace."""
STEPS = ("os.mkdir", "os.remove", "os.rename", "os.link", "fcntl.", "socket.", "sqlite3.connect")
"""Beginnings of the names of audit events that change files, or connect."""
CALLS = ["execute", "executescript", "executemany", "commit", "send", "sendall", "write"]
"""Names of functions in C that send or write something."""
WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES, CHANGING = 1_100, 20
"""How often a key is set and removed, more often than storages tidy up, in how many seconds."""
KILLS, MOMENT = 5, 0.06
"""How often a process is killed at any moment, and within how many seconds of work."""
OPTIONAL = ["bz2", "lzma", "compression.zstd", "zstandard", "lz4", "brotli", "orjson", "msgpack"]
"""Modules that are missing from some environments, so what they write may not be readable there."""
TIDIED = 100
"""After so many changes, or 2 MB of them, a storage may rewrite its files."""
WENT_ON = 5
"""The exit status of a process that was told to end before."""
ENDING = 0.3
"""Seconds within which other processes that get Ctrl-C have ended."""
TICK = 0.01
"""Processes do something at the same moment: when the clock shows a multiple of these seconds."""


def read(open_storage: Open) -> None:
    """Print the contents of the namespace."""
    storage = open_storage()
    print({key: storage.get(key) for key in sorted(storage.keys())})


def check(open_storage: Open) -> None:
    """Print how many values there are, or which one is not as the test has set it."""
    storage = open_storage()
    keys = list(storage.keys())
    for key in keys:
        expected = {"large": large_value(1), "long": [MARK * 5_000]}.get(key, [MARK, key])
        try:
            if storage.get(key) == expected:
                continue
            print(f"the value of {ascii(key)} has changed")
        except Exception as error:
            print(f"the key {ascii(key)}: {ascii(error)}")
        return
    print(len(keys), "values")


def hide_machine_id(event: str, arguments: tuple[object, ...]) -> None:
    """Hide `/etc/machine-id`, which most containers lack."""
    if event == "open" and str(arguments[0]).endswith("/machine-id"):
        raise FileNotFoundError(arguments[0])


class OtherPython(tuple[Any, ...]):
    """A `sys.version_info` that shows the version before, but is compared as this one."""

    shown = (3, sys.version_info.minor - 1, 0, "final", 0)
    major, minor, micro, releaselevel, serial = shown

    def __getitem__(self, index: Any) -> Any:
        return self.shown[index]


def check_elsewhere(open_storage: Open) -> None:
    """Run `check` on what looks like another machine, with another Python."""
    for name in OPTIONAL:
        sys.modules[name] = None  # type: ignore[assignment]  # It cannot be imported.
    try:
        open_storage()
    except Exception:  # It needs some of them, so it is installed with them.
        for name in OPTIONAL:
            del sys.modules[name]
    import_once(open_storage)
    sys.addaudithook(hide_machine_id)
    socket.gethostname = lambda: "elsewhere"
    socket.getfqdn = lambda name="": "elsewhere.example.com"
    platform.node = lambda: "elsewhere"
    if hasattr(os, "uname"):
        uname = os.uname()
        os.uname = lambda: os.uname_result(("Elsewhere", "elsewhere", *uname[2:]))
    uuid.getnode = lambda: 1
    getpass.getuser = lambda: "somebody"
    os.cpu_count = lambda: 61
    vars(os).update(process_cpu_count=os.cpu_count, sched_getaffinity=lambda _: set(range(61)))
    here, other = f"3.{sys.version_info.minor}", f"3.{OtherPython.minor}"
    sys.version_info = OtherPython(sys.version_info)  # type: ignore[assignment]
    sys.version = sys.version.replace(here, other, 1)
    sys.implementation.cache_tag = f"cpython-3{OtherPython.minor}"
    platform.python_version = lambda: f"{other}.0"
    vars(builtins)["LaterError"] = type("LaterError", (Exception,), {"__module__": "builtins"})
    check(open_storage)


def write_at_exit(open_storage: Open, order: str) -> None:
    """Set a small and a large value in a function of `atexit`, and print errors."""
    opened: list[StorageBase] = []

    def save() -> None:
        for key, value in {"small": [MARK], "large": large_value(1)}.items():
            try:
                opened[0].set(key, value)
            except Exception as error:
                print(f"{key}: {ascii(error)}", flush=True)

    if order == "last":  # Functions of `atexit` run in reverse order.
        atexit.register(save)
    opened.append(open_storage())
    opened[0].set("small", None)
    opened[0].remove("small")
    if order == "first":
        atexit.register(save)


def write(open_storage: Open) -> None:
    """Set three keys, remove one, and end without closing, like a process that is killed.

    Before, it replaces a value so often that a storage may tidy up.
    """
    storage = open_storage()
    for turn in range(TIDIED):
        storage.set("b", [MARK * 1_000, turn])
    for key in ["a", "b", "c"]:
        storage.set(key, MARK)
    storage.remove("b")


def write_and_close(open_storage: Open) -> None:
    """Set a key, and end normally."""
    storage = open_storage()
    storage.set("key", MARK)
    storage.close()


def restart(open_storage: Open) -> None:
    """Set values, close, and start again twice as `!restart` does, with the same process ID."""
    number = int(os.environ.get("STARTS", "0"))
    storage = open_storage()
    for key in "ab":
        outcome(storage.set, f"{key} {number}", [MARK * 20_000, key, number])
    storage.close()
    if number < 2:
        os.environ["STARTS"] = str(number + 1)
        os.execv(sys.executable, [sys.executable, *sys.argv])


def write_at_once(open_storage: Open) -> None:
    """Wait for a line of input, then connect and set keys at that moment, and wait again."""
    print("ready", flush=True)
    number, turns = input().split()
    storage = open_storage()
    for turn in range(int(turns)):
        storage.set(f"{number} {turn}", [MARK, f"{number} {turn}"])
        storage.set("shared", [MARK, number])
    print("done", flush=True)
    sys.stdin.read()


def open_at_once(load: Callable[[], StoragePluginBase], namespace: str) -> None:
    """Connect, wait for a line of input, then set a key in new namespaces, and wait again.

    Some of them are also opened by the other processes.
    """
    plugin, shared = load(), f"{namespace.rpartition(' ')[0]} shared"
    print("ready", flush=True)
    number, turns = input().split()
    for turn in range(int(turns)):
        sleep(TICK - time() % TICK)
        plugin.open(f"{namespace} {turn}").set("key", [MARK, number])
        if turn % SHARED == 0:
            sleep(TICK - time() % TICK)
            plugin.open(f"{shared} {turn}").set(number, MARK)
    print("done", flush=True)
    sys.stdin.read()


def start_at_once(config: Any, namespace: str) -> None:
    """Load the plugin, wait for a line of input, start it again and again, and print the errors."""
    plugin: Any = get_storage_plugin(config)
    print("ready", flush=True)
    _, turns = input().split()
    errors = []
    for _ in range(int(turns)):
        try:
            plugin = type(plugin)(config)
            plugin.open(namespace).len()
        except Exception as error:
            errors.append(repr(error))
    print(json.dumps(errors), flush=True)
    sys.stdin.read()


def transferred() -> dict[str, int]:
    """Return how many bytes this process has read and written so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return {"read": int(fields["rchar"]), "written": int(fields["wchar"])}


def start(open_storage: Open) -> None:
    """Start and close, and print how many bytes this has read and written."""
    for _ in range(2):  # What is imported is read the first time.
        before = transferred()
        storage = open_storage()
        storage.len()
        storage.close()
    after = transferred()
    print(json.dumps({way: after[way] - before[way] for way in after}))


def change_little(open_storage: Open) -> None:
    """Print how many bytes operations with a small value read and write, also if there are many."""
    storage = open_storage()
    operations: dict[str, Callable[[], object]] = {
        "set": lambda: storage.set("key", MARK),
        "get": lambda: storage.get("key"),
        "remove": lambda: storage.remove("key"),
    }
    turns = []
    for _ in range(3):  # because a database may tidy up now and then
        used = {}
        for name, operation in operations.items():
            before = sum(transferred().values())
            operation()
            used[name] = sum(transferred().values()) - before
        turns.append(used)
    most, end = 0, time() + CHANGING
    for turn in range(2 * CHANGES):
        before = sum(transferred().values())
        operations["remove" if turn % 2 else "set"]()
        most = max(most, sum(transferred().values()) - before)
        if time() > end:
            break
    print(json.dumps([turns, most]))


def visit(open_storage: Open) -> None:
    """Print what loading, opening and using a storage changes."""
    from contract.support import guest  # It imports much that the other tasks do not need.

    guest.visit(open_storage)


def rest(load: Callable[[], StoragePluginBase], namespace: str, seconds: float) -> None:
    """Do nothing for a while, and print how often threads woke up, and the processor's seconds."""
    from contract.support import guest

    plugin = load()  # A bot keeps it.
    storage = plugin.open(namespace)
    guest.use(storage)
    before = guest.resource.getrusage(guest.resource.RUSAGE_SELF)
    sleep(seconds)
    after = guest.resource.getrusage(guest.resource.RUSAGE_SELF)
    storage.close()
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps([after.ru_nvcsw - before.ru_nvcsw, busy]), flush=True)


def import_plugin(manager: BackendPluginManager) -> None:
    """Import a storage plugin, but do not start it."""
    information: Any = manager.plugin_info
    sys.path.append(str(information.location.parent))
    information.load_plugin_classes("errbot.storage", StoragePluginBase)


def import_once(open_storage: Open) -> None:
    """Import the plugin before the forks, because imports take long, and are no steps."""
    sys.dont_write_bytecode = True
    real = BackendPluginManager.load_plugin
    BackendPluginManager.load_plugin = import_plugin  # type: ignore[method-assign, assignment]
    with suppress(Exception):
        open_storage()
    BackendPluginManager.load_plugin = real  # type: ignore[method-assign]


def trace_statements(call: Callable[[str], None]) -> None:
    """Call a function before each statement of SQLite, for connections made from now on."""

    def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = real(*arguments, **options)
        connection.set_trace_callback(call)
        return connection

    real = sqlite3.connect
    sqlite3.connect = sqlite3.dbapi2.connect = connect  # type: ignore[assignment]


def killed_at(number: int, prepare: Callable[[], Callable[[], object]]) -> bool:
    """Do prepared work in a child, and kill it at a step. Returns whether it got that far.

    A step is what Python reports to audit hooks (a file is created or opened for writing, renamed
    or removed, or something connects), a call of a function that sends or writes something, or a
    statement of SQLite.
    """
    step, working = 0, False

    def count_step(_statement: str = "") -> None:
        nonlocal step
        step += working
        if step == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if arguments[2] & WRITE if event == "open" else event.startswith(STEPS):
            count_step()

    def profile(_frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call" and argument.__name__ in CALLS:
            count_step()

    if not (pid := os.fork()):
        with suppress(Exception):
            trace_statements(count_step)
            work = prepare()
            working = True
            sys.addaudithook(audit)
            sys.setprofile(profile)
            work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def kill_after(seconds: float, prepare: Callable[[], Callable[[], object]]) -> None:
    """Do prepared work again and again in a child, and kill it in the middle."""
    ready, begun = os.pipe()
    if not (pid := os.fork()):
        with suppress(Exception):
            work = prepare()
            os.write(begun, b"!")
            while True:
                work()
        os._exit(0)
    os.close(begun)
    os.read(ready, 1)
    os.close(ready)
    sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def start_and_be_killed(open_storage: Open) -> None:
    """Start in processes that are killed at every step, then start, and print what is there."""
    import_once(open_storage)
    step = 1
    while killed_at(step, lambda: lambda: open_storage().len()):
        step += 1
    try:
        read(open_storage)
    except Exception as error:
        print(repr(error))


def be_killed_in_container(open_storage: Open) -> None:
    """Set a key in processes that are killed, and print what the next one cannot do with it.

    First they have numbers of their own. If that works, as other tests check, all take themselves
    for process 1, as the first one of a container is.
    """
    import_once(open_storage)

    def prepare() -> Callable[[], object]:
        return partial(open_storage().set, "key", [MARK])

    def start_again() -> None:
        try:
            storage = open_storage()
            storage.set("key", MARK)
            if storage.get("key") == MARK:
                return
            problem = "gets another value than it has set"
        except Exception as error:
            problem = f"fails with {error!r}"
        if os.getpid() == 1:
            print(problem, flush=True)
        os._exit(1)

    def works() -> bool:
        for _ in range(KILLS):
            kill_after(random.uniform(0, MOMENT / 2), prepare)
            if not forks.await_end(forks.fork(start_again)):
                return False
        return True

    if works():
        os.getpid = lambda: 1
        works()


def be_terminated(open_storage: Open) -> None:
    """Tell processes to end in the middle of a `set`, at ever later calls, and print who goes on.

    They end as the signal does by default: Errbot has no handler of its own.
    """
    import_once(open_storage)
    number, reached = 1, True
    while reached:
        if not (pid := os.fork()):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            told = outcome(set_and_terminate, open_storage, number)
            os._exit(WENT_ON if told is True else 0)
        status = os.waitpid(pid, 0)[1]
        reached = bool(status)
        if status == WENT_ON << 8:
            print(f"call {number}")
        number = number * 3 // 2 + 1


def be_interrupted(open_storage: Open) -> None:
    """Get Ctrl-C like all processes of a terminal, then store a value, and print what is there."""
    os.setsid()  # This is the only process yet.
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A background job has none.
    storage = open_storage()
    storage.set("before", MARK)
    with suppress(KeyboardInterrupt):
        os.killpg(0, signal.SIGINT)
        sleep(ENDING)
    sleep(ENDING)
    failed = outcome(storage.set, "after", [MARK])
    print(failed or outcome(lambda: sorted(contents(storage).items())))


def set_and_terminate(open_storage: Open, number: int) -> bool:
    """Set a value, and send SIGTERM at a call of a function in C. Returns whether it came to it."""
    called = count(1)

    def profile(_frame: FrameType, event: str, _argument: Any) -> None:
        if event == "c_call" and next(called) == number:
            os.kill(os.getpid(), signal.SIGTERM)

    storage = open_storage()
    sys.setprofile(profile)
    outcome(storage.set, "key", MARK)
    sys.setprofile(None)
    sleep(TICK)
    return next(called) > number


def change_and_be_killed(open_storage: Open) -> None:
    """Replace and remove a large value in processes that are killed, and print what is damaged."""
    import_once(open_storage)
    before, after = (large_value(number)[: LARGE // 2] for number in range(2))

    def be_killed(name: str, change: Callable[[StorageBase], None], done: object) -> None:
        """Kill processes at the first steps of a change, some later ones, and any moment of it."""

        def change_and_set() -> Callable[[], object]:
            storage = open_storage()

            def work() -> None:
                change(storage)
                storage.set("key", before)

            return work

        def start_again() -> None:
            try:
                storage = open_storage()
                got, keys = outcome(storage.get, "key"), list(storage.keys())
                if not same(got, before) and not same(got, done):
                    size = len(got) if isinstance(got, bytes) else repr(got)
                    print(f"after a killed `{name}`, `get` gives {size}")
                elif keys != ["key"] * (got is not KeyError):
                    print(f"after a killed `{name}`, `keys` gives {keys}")
                storage.set("key", before)
            except Exception as error:
                print(f"after a killed `{name}`, the next start fails: {error!r}")

        step, killed = 0, True
        while killed:
            step += 1 + step // 3
            killed = killed_at(step, lambda: partial(change, open_storage()))
            forks.await_end(forks.fork(start_again))
        for _ in range(KILLS):
            kill_after(random.uniform(0, MOMENT), change_and_set)
            forks.await_end(forks.fork(start_again))

    forks.await_end(forks.fork(lambda: outcome(lambda: open_storage().set("key", before))))
    be_killed("set", lambda storage: storage.set("key", after), after)
    be_killed("remove", lambda storage: storage.remove("key"), KeyError)


def write_many(open_storage: Open) -> None:
    """Set keys until this process is killed, and print the number of each one that is done."""
    storage = open_storage()
    number = 0
    while True:
        storage.set(str(number), [MARK, number, "x" * (number % 50 * 200)])
        print(number, flush=True)
        number += 1


def replace_many(open_storage: Open) -> None:
    """Replace values with longer and shorter ones until this process is killed."""
    storage = open_storage()
    number = 0
    while True:
        storage.set(f"key {number % REPLACED}", replacement(number))
        print(number, flush=True)
        number += 1


def replace_large(open_storage: Open) -> None:
    """Replace large values, each in its own thread, until this process is killed."""
    storage = open_storage()

    def replace(key: str) -> None:
        try:
            for number in count():
                storage.set(key, large_value(number))
                os.write(1, f"{key} {number}\n".encode())  # in one piece
        finally:
            os._exit(1)  # The test notices that it ended too early.

    for number in range(REPLACERS):
        Thread(target=replace, args=[f"key{number}"]).start()


def memory_used() -> int:
    """Return how many bytes of memory this process has for itself, without files it has mapped."""
    resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def replace_in_memory(open_storage: Open) -> None:
    """Replace large values without garbage collection, and print how many stay in memory."""
    storage, before = open_storage(), 0
    gc.disable()  # It counts objects, not their bytes, so it may come very late.
    for number in range(35):
        before = memory_used() if number == 5 else before
        storage.set("key", large_value(number))
        storage.get("key")
    print((memory_used() - before) // LARGE)


def read_in_memory(open_storage: Open) -> None:
    """Read all values, and print how many bytes stay in memory."""
    storage, before = open_storage(), memory_used()
    for number, key in enumerate(storage.keys()):
        before = memory_used() if number == 5 else before
        storage.get(key)
    print(memory_used() - before)


def remove_at_once(open_storage: Open) -> None:
    """Wait for a line of input, then remove keys, and print those that were there."""
    storage = open_storage()
    storage.len()
    print("ready", flush=True)
    taken = []
    for number in range(int(input())):
        with suppress(KeyError):
            storage.remove(str(number))
            taken.append(number)
    print(json.dumps(taken), flush=True)
    sys.stdin.read()


def swap_at_once(open_storage: Open) -> None:
    """Wait for a line of input, then count up by `swap`, and print how often that worked."""
    storage: Any = open_storage()
    print("ready", flush=True)
    _, turns = input().split()
    done = 0
    for _ in range(int(turns)):
        old = storage.read("key")
        done += storage.swap("key", old, b"%d" % (int(old) + 1))
    print(done, flush=True)
    sys.stdin.read()


def remove_many(open_storage: Open) -> None:
    """Set and remove keys until this process is killed, and print the numbers of removed ones."""
    storage = open_storage()
    number = 0
    while True:
        storage.set(f"kept {number}", [MARK, number])
        storage.set(f"gone {number}", [MARK, number])
        storage.remove(f"gone {number}")
        print(number, flush=True)
        number += 1


def write_values(open_storage: Open) -> None:
    """Set a value of each kind, and print what was set and what came back."""
    storage = open_storage()
    for name, value in SAMPLES.items():
        try:
            storage.set(name, value)
            got = storage.get(name)
        except Exception:
            # Other tests check whether it can be stored, and what a failed `set` leaves behind.
            outcome(storage.remove, name)
            continue
        if " at 0x" not in repr(got):  # an address, which differs in each process
            print(ascii([name, f"{type(got)} {got!r}"]))


if __name__ == "__main__":
    # In a locale without UTF-8, sys.argv has surrogates instead of other characters.
    file, path, namespace, task = (os.fsencode(word).decode() for word in sys.argv[1:])
    config, notes = load_config(Path(file)), Notes(Path(path)) if path else None
    load = partial(load_plugin, config, notes)
    tasks: dict[str, Callable[[Open], None]] = {
        "read": read,
        "check": check,
        "check-elsewhere": check_elsewhere,
        "write": write,
        "write-and-close": write_and_close,
        "restart": restart,
        "write-at-once": write_at_once,
        "open-at-once": lambda _: open_at_once(load, namespace),
        "start": start,
        "start-at-once": lambda _: start_at_once(config, namespace),
        "change-little": change_little,
        "read-in-memory": read_in_memory,
        "rest": lambda _: rest(load, namespace, 1),
        "use": lambda _: rest(load, namespace, 0),
        "start-and-be-killed": start_and_be_killed,
        "change-and-be-killed": change_and_be_killed,
        "be-killed-in-container": be_killed_in_container,
        "be-terminated": be_terminated,
        "be-interrupted": be_interrupted,
        "write-at-exit-first": lambda open_storage: write_at_exit(open_storage, "first"),
        "write-at-exit-last": lambda open_storage: write_at_exit(open_storage, "last"),
        "write-many": write_many,
        "replace-many": replace_many,
        "replace-large": replace_large,
        "replace-in-memory": replace_in_memory,
        "remove-at-once": remove_at_once,
        "swap-at-once": swap_at_once,
        "remove-many": remove_many,
        "write-values": write_values,
        "visit": visit,
        "work-in-forks": lambda open_storage: forks.work_at_once(open_storage()),
        "fork-while-threads-work": lambda _: forks.fork_while_threads_work(load(), namespace),
        "outlive-forks": lambda open_storage: forks.outlive_children(open_storage()),
        "set-in-forks": lambda open_storage: forks.set_in_children(open_storage()),
    }
    tasks[task](lambda: load().open(namespace))
