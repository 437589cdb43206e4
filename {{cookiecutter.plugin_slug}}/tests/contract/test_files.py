"""A storage's files contain the plugins' data, and are in a folder that it shares with others."""

import os
import random
import re
import shelve
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Any

import pytest
from errbot.storage.base import StorageBase

from contract.support.amounts import many
from contract.support.clock import YEARS, Clock
from contract.support.database import Database, open_files
from contract.support.guest import fail, use
from contract.support.outcomes import contents, outcome, refusal, same
from contract.support.sample_values import MARK, large_value

FOLDERS = ["bot data", "50%41", "it's", "a#b", "[ab]", "Gr\u00f6\u00dfe"]
"""Names of folders with characters that are special in a URL, a pattern or a statement."""
if sys.platform != "win32":
    FOLDERS += ["what?mode=ro", 'say "a"', "b:c", "back\\slash", "*"]
VAR_TMP = Path("/var/tmp")
"""A folder for temporary files that outlive a restart."""
DAY = 86_400
PROCESSES = range(2**22, 2**30)
"""Numbers that no process has."""
SHARED_MEMORY = Path("/dev/shm")
"""A folder in memory, which other programs use, too."""
OTHERS = [
    *("errbot.log", "backup.py", "backup.py.bak", "notes.tmp", "notes.lock", "notes.json", "tmp"),
    *("notes.pickle", "notes.dat", "old.sqlite3", "plugins/notes.py", "plugins/notes.db"),
    *("cache/a", "tmp.d/b", "backups/c", ".hidden"),
]
"""Files that others may keep in BOT_DATA_DIR."""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder for this test alone, so no other program leaves files in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def is_open_to_others(path: Path, root: Path) -> bool:
    """Return whether other accounts can access a file, if they can access a folder that it is in.

    They cannot if one of the folders between is private.
    """
    between = [folder for folder in path.parents if root in folder.parents]
    return bool(path.stat().st_mode & 0o077) and all(f.stat().st_mode & 0o011 for f in between)


@contextmanager
def watching(look: Callable[[Path], object], *events: str) -> Iterator[None]:
    """Look at each file for which Python reports one of these events in the block."""
    active = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event in events and isinstance(arguments[0], (str, bytes, os.PathLike)):
            with suppress(OSError):  # There is no such file, so the operation fails, too.
                look(Path(os.fsdecode(arguments[0])).absolute())

    sys.addaudithook(hook)  # It cannot be removed again.
    try:
        yield
    finally:
        active.clear()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_files_are_for_the_account_of_the_bot_alone(
    database: Database, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the bot's account can access files, including temporary ones, even after a restart."""
    folder, home = Path(database.config.BOT_DATA_DIR), temporary / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    before = {home, *folder.rglob("*")}
    found: dict[str, str] = {}

    def look(path: Path) -> None:
        roots = (root for root in [home, temporary, folder] if root in path.parents)
        if path.is_file() and is_open_to_others(path, next(roots, Path(path.anchor))):
            found[path.name] = oct(path.stat().st_mode & 0o777)

    clock = Clock(monkeypatch)
    umask = os.umask(0)
    try:
        with watching(look, "os.remove", "os.rename", "os.chmod"):
            for value, clock.ahead in [(MARK, 0), (MARK * 100_000, 0), (MARK, YEARS)]:
                storage = database.open("namespace", clock.load(database))
                for key in ["key", "new"]:
                    storage.set(key, value)
                    storage.get(key)
                fail(storage)
                for path in {*folder.rglob("*"), *temporary.rglob("*")} - before:
                    look(path)
                database.close(storage)
    finally:
        os.umask(umask)
    assert not found, (
        f"Other users of this machine can read or change the plugins' data: {found}. Create each"
        " file with mode 0o600, whatever the umask is, even if it is removed at once. To change the"
        " mode afterwards is too late."
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_a_start_changes_no_permissions(database: Database) -> None:
    """A storage that starts keeps the mode that an administrator gave to its files."""
    if database.notes:
        pytest.skip("the folder of a bot that is in use is not changed")
    storage = database.open("namespace", database.plugin())
    storage.set("key", large_value(1)[:100_000])
    database.close(storage)
    numbers = {}
    for path in Path(database.config.BOT_DATA_DIR).rglob("*"):
        if path.is_file() and path.stat().st_size > 4_000:  # It is no lock.
            path.chmod(0o640)
            numbers[path] = path.stat().st_ino
    assert database.open("namespace", database.plugin()).len() == 1
    kept = [path for path in numbers if path.exists() and path.stat().st_ino == numbers[path]]
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in kept}
    changed = {name: mode for name, mode in modes.items() if mode != oct(0o640)}
    assert not changed, (
        "An administrator let an account for backups read the files (mode 0o640), and a start"
        f" changes this: {changed}. Set a mode only when you create a file."
    )


def test_no_value_is_kept_in_a_folder_for_temporary_files(
    database: Database, temporary: Path
) -> None:
    """No value is kept in a folder for temporary files, which the system empties."""
    opened: set[Path] = set()
    storage = database.open("namespace", database.plugin())
    with watching(opened.add, "open"):
        for value in [MARK, MARK * 100_000]:
            storage.set("key", value)
    kept = {*temporary.rglob("*"), *(path for path in opened if VAR_TMP in path.parents)}
    kept = {path for path in kept if path.is_file()}
    assert not kept, (
        f"After `set`, data are in {min(kept)}. The system removes such files after a restart or"
        " some weeks. Keep all data in the database, or in BOT_DATA_DIR."
    )
    temporary.rename(temporary.with_name("removed"))
    for new in [[MARK, 0], [MARK * 100_000, 0]]:
        assert (refusal(storage.set, "key", new), storage.get("key")) == (None, new), (
            "If the folder for temporary files is full or missing, as in some containers, `set`"
            " fails. Pickle in memory."
        )
    got = [outcome(operation) for operation in (storage.len, lambda: list(storage.keys()))]
    assert (refusal(storage.remove, "key"), *got) == (None, 1, ["key"]), (
        "If the folder for temporary files is missing, `remove`, `len` or `keys` fail. Lock what"
        " is in the database or in BOT_DATA_DIR, which all its processes share."
    )
    temporary.mkdir()
    for new in [[MARK, 1], [MARK * 100_000, 1]]:
        assert (refusal(storage.set, "key", new), storage.get("key")) == (None, new), (
            "After the system has emptied the folder for temporary files, `set` fails. Create what"
            " you need there each time."
        )


def files_left(database: Database, temporary: Path, operation: Callable[[], object]) -> set[Path]:
    """Return the new files in the storage's folder and in the folder for temporary files."""

    def files() -> set[Path]:
        return {*Path(database.config.BOT_DATA_DIR).rglob("*"), *temporary.rglob("*")}

    operation()  # Files that are created once, such as the database itself, exist from now on.
    before = files()
    for _ in range(20):
        operation()
    return files() - before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not list a process's open files")
def test_an_operation_that_fails_leaves_no_file(database: Database, temporary: Path) -> None:
    """An operation that fails leaves no file behind, and no file or connection open."""
    storage = database.open()
    fail(storage)
    before = open_files()
    made = files_left(database, temporary, lambda: fail(storage))
    left = open_files() - before
    assert left < 10, (
        f"20 failing operations left {left} files or connections open: eventually the bot fails"
        " with `Too many open files`. Close them in a `with` or a `finally`."
    )
    assert len(made) < 10, (
        f"20 failing operations left {len(made)} files behind, such as {min(made)}: the disk fills"
        " up. Remove them in a `finally`."
    )


def test_a_value_that_is_replaced_or_removed_leaves_no_file(
    database: Database, temporary: Path
) -> None:
    """A value that is replaced or removed leaves no file behind, however large it is."""
    storage = database.open()

    def set_and_remove() -> None:
        for size in [1, many(400_000, 100_000)]:
            for key in ["key", "removed"]:
                storage.set(key, [MARK * size])
                storage.get(key)
        storage.remove("removed")

    made = files_left(database, temporary, set_and_remove)
    assert len(made) < 10, (
        f"Replacing and removing values 20 times left {len(made)} files behind, such as"
        f" {min(made)}: the disk fills up. Remove files that are no longer needed."
    )


def test_a_start_leaves_no_file(
    database: Database, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bot that starts again, even days later, leaves no more files than before."""
    clock, numbers = Clock(monkeypatch), set[str]()
    database.open("namespace", database.plugin()).set("key", MARK)
    database.close_all()

    def start() -> None:
        clock.ahead += DAY
        process = random.choice(PROCESSES)
        monkeypatch.setattr(os, "getpid", lambda: process)
        numbers.add(str(process))
        storage = database.open("namespace", clock.load(database))
        outcome(storage.get, "key")
        storage.set("key", [MARK])
        database.close(storage)

    made = files_left(database, temporary, start)
    shared = [path for folder in [VAR_TMP, SHARED_MEMORY] for path in folder.glob("*")]
    made |= {path for path in shared if numbers.intersection(re.findall(r"\d+", path.name))}
    assert len(made) < 10, (
        f"20 starts left {len(made)} files behind, such as {min(made)}. `errbot --storage-get` is a"
        " start, too, so the disk fills up."
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows moves no file that is open")
def test_the_bots_folder_can_be_moved(database: Database, tmp_path: Path) -> None:
    """`BOT_DATA_DIR` can be moved, or restored from a backup at another place."""
    if database.notes:
        pytest.skip("the folder of a bot that is in use is not changed")
    expected: dict[str, object] = {"small": MARK, "new": [MARK]}
    before = tmp_path / "before"
    before.mkdir()
    use_folder(database, before)
    database.open_twice("probe")
    storage = database.open("namespace", database.plugin())
    storage.set("small", MARK)
    # Another test checks whether a large value can be stored.
    if not refusal(storage.set, "large", large_value(1)):
        expected["large"] = large_value(1)
    database.close_all()
    with tarfile.open(tmp_path / "backup.tar", "w") as backup:  # It keeps no extended attributes.
        backup.add(before, "after")
        shutil.rmtree(before)
        before.write_text("something else")
    with tarfile.open(tmp_path / "backup.tar") as backup:
        backup.extraction_filter = lambda member, _: member  # all as it was
        backup.extractall(tmp_path)
    use_folder(database, tmp_path / "after")
    storage = database.open("namespace", database.plugin())
    storage.set("new", [MARK])
    assert same(contents(storage), expected), (
        "After BOT_DATA_DIR was restored at another place, data are lost. Store no absolute path,"
        " and keep everything in the contents and names of files."
    )


def test_a_large_disk_is_used_until_it_is_full(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with 100 GB left is used, even if these are only one percent of it."""
    blocks, left, names = 2_500_000_000, 25_000_000, 1_000_000
    sizes = (4_096, 4_096, blocks, left, left, names, names, names, 0, 255)
    in_bytes = [4_096 * size for size in [blocks, blocks - left, left]]
    usage = type(shutil.disk_usage(os.curdir))(*in_bytes)
    if sys.platform != "win32":
        monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(sizes))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    storage = database.open("namespace", database.plugin())
    for value in [MARK, [MARK]]:
        refused = refusal(storage.set, "key", value)
        assert refused is None, (
            f"With 100 GB left on the disk, `set` fails: {refused!r}. Only the database knows"
            " whether a value can be stored. Keep no share of a disk free."
        )


def use_folder(database: Database, folder: Path) -> None:
    """Let `folder` be `BOT_DATA_DIR`, including in the paths of `STORAGE_CONFIG`."""
    old = Path(database.config.BOT_DATA_DIR)
    for key, value in database.config.STORAGE_CONFIG.items():
        if isinstance(value, str) and Path(value).is_relative_to(old):
            database.config.STORAGE_CONFIG[key] = str(folder / Path(value).relative_to(old))
    database.config.BOT_DATA_DIR = str(folder)


def test_the_bots_folder_may_have_any_name(database: Database, tmp_path: Path) -> None:
    """`BOT_DATA_DIR` may have any name that a folder can have."""
    if database.notes:
        pytest.skip("the folder of a bot that is in use is not changed")
    for name in FOLDERS:
        folder = tmp_path / "bots" / name
        folder.mkdir(parents=True)
        database.config.BOT_DATA_DIR = str(folder)
        storage = database.open("namespace", database.plugin())
        storage.set("key", [MARK, name])
        database.close(storage)
        restarted = database.open("namespace", database.plugin())
        assert restarted.get("key") == [MARK, name], f"With BOT_DATA_DIR = {name!r}, data are lost."
    found = sorted(path.name for path in (tmp_path / "bots").iterdir())
    assert found == sorted(FOLDERS), (
        f"With BOT_DATA_DIR set to {FOLDERS}, the data are in {found}: some data of one bot are in"
        " another bot's folder. Quote the name wherever it is part of a URL, a pattern or a"
        " statement."
    )


def skip_if_lost_at_a_restart(database: Database) -> None:
    """Set a key, and skip a test if a restart loses it, which another test reports."""
    database.open("namespace", database.plugin()).set("key", MARK)
    database.close_all()
    if outcome(database.open("namespace", database.plugin()).get, "key") != MARK:
        pytest.skip("data are lost at a restart")
    database.close_all()


def test_the_bots_folder_may_be_a_path(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """`BOT_DATA_DIR` may be a `pathlib.Path`, as `errbot` accepts it."""
    skip_if_lost_at_a_restart(database)
    monkeypatch.setattr(database.config, "BOT_DATA_DIR", Path(database.config.BOT_DATA_DIR))
    got = outcome(lambda: database.open("namespace", database.plugin()).get("key"))
    assert got == MARK, (
        f"If BOT_DATA_DIR is a pathlib.Path, a bot gets {got}. Use os.path.join or Path."
    )


def test_the_bots_folder_may_be_a_symbolic_link(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`BOT_DATA_DIR` may be a symbolic link, as to a mounted volume."""
    link = tmp_path / "link"
    if refusal(link.symlink_to, database.config.BOT_DATA_DIR, True):
        pytest.skip("this account may not create symbolic links")
    skip_if_lost_at_a_restart(database)
    for name in ["BOT_DATA_DIR", "STORAGE_CONFIG"]:  # which may be those of a bot that is in use
        monkeypatch.setattr(database.config, name, copy(getattr(database.config, name)))
    use_folder(database, link)
    got = outcome(lambda: database.open("namespace", database.plugin()).get("key"))
    assert got == MARK, (
        f"If BOT_DATA_DIR is a symbolic link, a bot gets {got}. Compare no paths of which only one"
        " is resolved."
    )


def test_a_namespace_that_was_emptied_stays_empty(database: Database) -> None:
    """A namespace that was emptied stays empty, even if the bot used Shelf before."""
    if database.notes:
        pytest.skip("the folder of a bot that is in use is not filled with files")
    with shelve.open(str(Path(database.config.BOT_DATA_DIR) / "namespace.db")) as shelf:
        shelf["before"] = MARK
    for turn in range(3):
        storage = database.open("namespace", database.plugin())
        found = list(storage.keys())
        found += ["before"] * (outcome(storage.get, "before") is not KeyError)
        assert not (turn and found), (
            f"A plugin had removed all its keys, and after a restart {found} are back. Leave the"
            " files of another storage alone, or move their data once, by a command."
        )
        storage.set("new", MARK)
        for key in list(storage.keys()):
            storage.remove(key)
        database.close(storage)


def test_files_of_others_stay_as_they_are(database: Database) -> None:
    """Files in `BOT_DATA_DIR` that do not belong to the storage stay as they are."""
    folder = Path(database.config.BOT_DATA_DIR)
    if database.notes:
        pytest.skip("the folder of a bot that is in use is not filled with files")
    for name in OTHERS:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(MARK)
        path.chmod(0o640)
        os.utime(path, (1, 1))
    folder.chmod(0o750)
    storages: list[StorageBase] = []
    for _ in range(2):
        storages.append(database.open("core", database.plugin()))
        use(storages[-1])
    for storage in storages:
        database.close(storage)
    changed = [name for name in OTHERS if not is_as_it_was(folder / name)]
    changed += [] if folder.stat().st_mode & 0o777 == 0o750 else ["the folder itself"]
    assert not changed, (
        f"The storage changes, removes or exposes files of Errbot and plugins: {changed}. Touch"
        " only the files that you created, and give them distinctive names."
    )


def is_as_it_was(path: Path) -> bool:
    """Return whether a file still has the contents, mode and time that the test gave it."""
    if not path.is_file():
        return False
    status = path.stat()
    return (path.read_text(), status.st_mode & 0o777, status.st_mtime) == (MARK, 0o640, 1)
