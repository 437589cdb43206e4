"""The baked SQLite storage with kills, locks, other processes and unusable files."""

import gc
import importlib.util
import multiprocessing
import os
import pickle
import pwd
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import (
    KILLS,
    check_that_a_loop_that_renames_its_keys_ends,
    check_that_ctrl_c_ends_a_wait,
)
from errbot.storage import StoreException
from errbot.storage.base import StorageBase, StoragePluginBase
from pytest_cookies.plugin import Cookies

# These processes start fast, because everything is imported already. They have no file open.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["errbot.storage.base", "itsdangerous", "pydantic"])
FILE = "errbot.sqlite3"


@pytest.fixture(scope="module")
def module_file(cookies_session: Cookies) -> Path:
    """The storage.py of a project baked for SQLite."""
    result = cookies_session.bake(extra_context={"database": "sqlite"})
    if result.exception:
        raise result.exception
    return next(Path(result.project_path).glob("src/*/storage.py"))


def load(module_file: Path, folder: Path, **storage_config: Any) -> StoragePluginBase:
    """Start the storage plugin with this folder as BOT_DATA_DIR, as a bot does."""
    spec = importlib.util.spec_from_file_location("errbot.storage.storage", module_file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plugin = module.AcmePlugin(
        SimpleNamespace(STORAGE_CONFIG=storage_config, BOT_DATA_DIR=str(folder))
    )
    assert isinstance(plugin, StoragePluginBase)
    return plugin


@pytest.fixture
def start(module_file: Path, tmp_path: Path) -> Callable[..., StorageBase]:
    """Starts the storage plugin with these keys of STORAGE_CONFIG, and opens a namespace."""

    def start(**storage_config: Any) -> StorageBase:
        return load(module_file, tmp_path, **storage_config).open("namespace")

    return start


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Another program's connection to the file."""
    with closing(sqlite3.connect(tmp_path / FILE, timeout=0, isolation_level=None)) as connection:
        yield connection


def in_processes(count: int, task: Callable[..., None], *arguments: Any) -> None:
    """Run a task in several processes at once; each gets its number and a barrier."""
    barrier = PROCESSES.Barrier(count)
    processes = [
        PROCESSES.Process(target=task, args=(number, barrier, *arguments))
        for number in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count, "A process failed."


def write_until_killed(module_file: Path, folder: Path, life: int, told: Connection) -> None:
    """Set 20 keys again and again, and report each `set` that has returned."""
    storage = load(module_file, folder).open("namespace")
    number = 0
    while True:
        storage.set(f"{life} {number % 20}", [number, str(number) * (number % 50 * 40)])
        told.send(number)
        number += 1


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_process_has_lost_no_set_that_returned(
    module_file: Path, tmp_path: Path, kills: int
) -> None:
    chance = random.Random(1)
    told_in_all = 0
    for life in range(kills):
        here, there = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(
            target=write_until_killed, args=(module_file, tmp_path, life, there)
        )
        process.start()
        there.close()
        told = {}
        end = None
        try:
            while True:
                number = here.recv()
                told[f"{life} {number % 20}"] = number
                end = end or time.monotonic() + chance.uniform(0, 0.05)
                if time.monotonic() > end and process.is_alive():
                    os.kill(process.pid or 0, signal.SIGKILL)
        except EOFError:
            process.join()
        assert process.exitcode == -signal.SIGKILL, "The process failed before it was killed."
        storage = load(module_file, tmp_path).open("namespace")
        for key, last in told.items():
            number, text = storage.get(key)
            assert number in (last, last + 20), f"{key} was set to {last}, and is {number}."
            assert text == str(number) * (number % 50 * 40), "Two values are mixed up."
        assert set(told) <= set(storage.keys())
        with closing(sqlite3.connect(tmp_path / FILE)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        told_in_all += sum(told.values())
    assert told_in_all > kills * 20, "The processes were killed before they wrote anything."


def hammer(number: int, barrier: Barrier, module_file: Path, folder: Path) -> None:
    """Set, get and remove this process's own keys, and a shared one."""
    storage = load(module_file, folder).open("namespace")
    barrier.wait()
    for turn in range(1000):
        storage.set(f"{number} {turn}", [number, turn])
        storage.set("shared", [number] * 100)
        assert len(set(storage.get("shared"))) == 1
        assert storage.get(f"{number} {turn}") == [number, turn]
        if turn % 4 == 0:
            storage.remove(f"{number} {turn}")


def test_two_processes_can_use_one_file_at_once(
    module_file: Path, tmp_path: Path, start: Callable[..., StorageBase]
) -> None:
    in_processes(2, hammer, module_file, tmp_path)
    expected = {f"{number} {turn}" for number in range(2) for turn in range(1000) if turn % 4}
    assert set(start().keys()) == {*expected, "shared"}


def open_new_files(number: int, barrier: Barrier, module_file: Path, folder: Path) -> None:
    """Create files at the same moment as the other processes."""
    for name in range(30):
        barrier.wait()
        load(module_file, folder, path=f"{name}").open("namespace").set(f"{number}", number)


def test_processes_can_create_the_file_at_once(
    module_file: Path, tmp_path: Path, start: Callable[..., StorageBase]
) -> None:
    in_processes(6, open_new_files, module_file, tmp_path)
    for name in range(30):
        assert start(path=f"{name}").len() == 6


def test_a_long_lock_is_a_clear_error_until_it_ends(
    tmp_path: Path, start: Callable[..., StorageBase], bare: sqlite3.Connection
) -> None:
    storage = start(timeout=0.3)
    storage.set("key", "old")
    bare.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    with pytest.raises(StoreException, match="locked.*timeout") as caught:
        storage.set("key", "new")
    assert 0.2 < time.monotonic() - begun < 5, "The storage did not wait for `timeout`."
    assert str(tmp_path / FILE) in str(caught.value)
    with pytest.raises(StoreException, match="locked"):
        storage.remove("key")
    assert storage.get("key") == "old", "Readers cannot read while another process writes."
    assert (storage.len(), list(storage.keys())) == (1, ["key"])
    assert start(timeout=0.3).get("key") == "old", "No bot can start while another one writes."
    bare.execute("ROLLBACK")
    storage.set("key", "new")
    assert storage.get("key") == "new"


def test_a_short_lock_is_not_an_error(
    start: Callable[..., StorageBase], bare: sqlite3.Connection
) -> None:
    storage = start(timeout=30)
    bare.execute("BEGIN IMMEDIATE")
    threads = [threading.Thread(target=storage.set, args=(f"{n}", n)) for n in range(16)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert storage.len() == 0
    bare.execute("ROLLBACK")
    for thread in threads:
        thread.join()
    assert storage.len() == 16


def test_ctrl_c_ends_an_operation_that_waits_for_a_lock(
    start: Callable[..., StorageBase], tmp_path: Path
) -> None:
    check_that_ctrl_c_ends_a_wait(start(timeout=60.0), tmp_path / FILE)


def test_a_file_that_is_not_a_database_is_reported_and_not_changed(
    tmp_path: Path, start: Callable[..., StorageBase]
) -> None:
    text = "This is a letter. " * 500
    (tmp_path / "letter.txt").write_text(text)
    with pytest.raises(StoreException, match=r"letter\.txt: file is not a database.*path"):
        start(path="letter.txt")
    assert (tmp_path / "letter.txt").read_text() == text


def test_a_database_of_another_program_is_reported_and_not_changed(
    start: Callable[..., StorageBase], bare: sqlite3.Connection
) -> None:
    bare.execute("CREATE TABLE errbot (a, b)")
    with pytest.raises(StoreException, match=rf"{FILE}.*another program.*path"):
        start()
    assert bare.execute("SELECT sql FROM sqlite_master").fetchall() == [
        ("CREATE TABLE errbot (a, b)",)
    ]


def test_a_damaged_file_is_a_clear_error_and_a_restored_one_works(
    tmp_path: Path, start: Callable[..., StorageBase]
) -> None:
    storage = start()
    for number in range(500):
        storage.set(f"{number}", "x" * 2000)
    del storage
    file = tmp_path / FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + b"\xff" * 40_000 + whole[44_096:])
    with pytest.raises(StoreException, match=rf"{FILE}.*malformed.*backup"):
        list(start().keys())
    file.write_bytes(whole)
    assert start().len() == 500


@pytest.mark.parametrize("path", ["no/such/folder/file", "."])
def test_a_path_that_cannot_be_a_file_is_reported(
    start: Callable[..., StorageBase], tmp_path: Path, path: str
) -> None:
    with pytest.raises(StoreException, match="folder must exist") as caught:
        start(path=path)
    assert str(tmp_path / path) in str(caught.value)


def become_nobody() -> None:
    """Drop root's privileges, if this process has them."""
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)


def use_a_read_only_folder(number: int, barrier: Barrier, module_file: Path, folder: Path) -> None:
    """Check that a file can neither be created nor written there."""
    plugins = {path: folder / path for path in ["new", "there"]}
    load(module_file, folder, path="warm")  # imports files that `nobody` may not read
    become_nobody()
    for path, file in plugins.items():
        with pytest.raises(StoreException, match="folder") as caught:
            load(module_file, folder, path=path).open("namespace").set("key", "value")
        assert str(file) in str(caught.value)


def test_a_read_only_folder_is_a_clear_error(module_file: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy = folder / "storage.py"
        copy.write_bytes(module_file.read_bytes())
        load(copy, folder, path="there").open("namespace").set("key", "value")
        gc.collect()
        (folder / "there").chmod(0o666)
        load(copy, folder, path="warm")
        folder.chmod(0o555)
        copy.chmod(0o444)
        in_processes(1, use_a_read_only_folder, copy, folder)
        folder.chmod(0o700)


def fill_the_disk(number: int, barrier: Barrier, module_file: Path, folder: Path) -> None:
    """Run out of disk space, and continue when there is some again."""
    storage = load(module_file, folder).open("namespace")
    storage.set("key", "old")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, unlimited[1]))
    with pytest.raises(StoreException, match="disk") as caught:
        storage.set("key", "x" * 1_000_000)
    assert str(folder / FILE) in str(caught.value)
    assert (storage.get("key"), storage.len()) == ("old", 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    storage.set("key", "x" * 1_000_000)
    assert len(storage.get("key")) == 1_000_000


def test_a_full_disk_is_a_clear_error_and_loses_nothing(module_file: Path, tmp_path: Path) -> None:
    in_processes(1, fill_the_disk, module_file, tmp_path)


def test_no_other_account_can_read_a_new_file(
    tmp_path: Path, start: Callable[..., StorageBase]
) -> None:
    before = os.umask(0)
    try:
        storage = start()
        storage.set("key", "value")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {FILE: 0o600, f"{FILE}-wal": 0o600, f"{FILE}-shm": 0o600}


def test_the_permissions_of_an_existing_file_do_not_change(
    tmp_path: Path, start: Callable[..., StorageBase]
) -> None:
    (tmp_path / FILE).touch()
    (tmp_path / FILE).chmod(0o660)
    start().set("key", "value")
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o660


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_that_come_and_go_leave_no_descriptor(start: Callable[..., StorageBase]) -> None:
    storage = start()
    before = os.listdir("/proc/self/fd")
    connection = 3  # the database file and the two next to it
    for turn in range(30):
        threads = [
            threading.Thread(target=lambda: (storage.set("key", 1), list(storage.keys())))
            for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        left = len(os.listdir("/proc/self/fd")) - len(before)
        assert left <= 10 * connection, f"{turn * 10} threads, at most 10 at once, have leaked."


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_plugins_that_come_and_go_leave_no_descriptor(start: Callable[..., StorageBase]) -> None:
    start().set("key", 0)
    gc.collect()
    before = os.listdir("/proc/self/fd")
    for number in range(50):
        start().set("key", number)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_memory_stays_flat_over_many_keys(
    start: Callable[..., StorageBase], bare: sqlite3.Connection
) -> None:
    storage = start()
    value = pickle.dumps(None)
    bare.execute("BEGIN")
    bare.executemany(
        "INSERT INTO errbot VALUES ('namespace', ?, ?)",
        ((f"key {number:06}", value) for number in range(200_000)),
    )
    bare.execute("COMMIT")
    tracemalloc.start()
    try:
        count = sum(1 for _ in iter(storage.keys()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 200_000
    assert peak < 2_000_000, f"Iterating over 200,000 keys took {peak} bytes."


@pytest.mark.parametrize("count", [1, 19, 20, 21, 2_500])
def test_a_loop_that_renames_its_keys_ends(start: Callable[..., StorageBase], count: int) -> None:
    check_that_a_loop_that_renames_its_keys_ends(start(), count)


def test_planted_keys_are_skipped(
    start: Callable[..., StorageBase], bare: sqlite3.Connection
) -> None:
    storage = start()
    expected = [f"{kind}{number}" for kind in ["a", "a\0", "\U0001f600"] for number in range(700)]
    for key in expected:
        storage.set(key, key)
    for planted in ["CAST(x'61ff' AS TEXT)", "x'61'", "5", "1.5"]:
        bare.execute(f"INSERT INTO errbot VALUES ('namespace', {planted}, x'4e2e')")
    keys = list(storage.keys())
    assert len(keys) == len(expected)
    assert set(keys) == set(expected)
    for key in iter(storage.keys()):
        storage.remove(key)
    assert list(storage.keys()) == []


def test_a_forked_process_is_refused_and_harms_nothing(tmp_path: Path, module_file: Path) -> None:
    code = f"""
import multiprocessing, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from pathlib import Path
from test_sqlite import StoreException, load

storage = load(Path({str(module_file)!r}), Path({str(tmp_path)!r})).open("namespace")
storage.set("key", "value")

def use():
    try:
        storage.get("key")
    except StoreException as error:
        print(error, flush=True)

process = multiprocessing.get_context("fork").Process(target=use)
process.start()
process.join()
storage.set("key", "new")
print(storage.get("key"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert FILE in done.stdout
    assert "spawn" in done.stdout
    assert done.stdout.endswith("\nnew\n")
