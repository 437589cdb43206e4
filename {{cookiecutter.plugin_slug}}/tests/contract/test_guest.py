"""A storage is a guest in the process of the bot: what belongs to others stays as it is."""

import json
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from errbot.storage.base import StorageBase

from contract.support.database import Database, open_files, run_process
from contract.support.guest import use
from contract.support.sample_values import MARK, Unstorable


def test_a_storage_changes_nothing_of_its_process(
    database: Database, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading, opening and using a storage changes nothing of the process that it lives in."""
    for name in os.environ.keys() - environment.keys():
        monkeypatch.delenv(name)
    changed = json.loads(run_process(database, "guest", "visit").splitlines()[-1])
    assert not changed, (
        f"A storage changes what belongs to the bot and all of its plugins: {', '.join(changed)}."
        " Give options to the client of the database alone, and put back what you must change."
    )


def test_a_storage_prints_nothing(database: Database, capfd: pytest.CaptureFixture[str]) -> None:
    """Loading, opening and using a storage prints nothing."""
    storage = database.open("namespace", database.plugin())
    use(storage)
    database.close(storage)
    printed = "".join(capfd.readouterr())
    assert not printed, (
        f"A storage prints {printed[:200]!r}: on the screen of a bot that a person talks to there,"
        " and into what `errbot --storage-get` prints. Use `logging`, or say nothing."
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not list a process's open files")
def test_a_set_that_fails_leaves_no_file(database: Database) -> None:
    """A `set` that fails leaves no file behind, and none open."""
    storage = database.open()
    storage.set("key", MARK)
    folders = [Path(database.config.BOT_DATA_DIR), Path(tempfile.gettempdir())]

    def names() -> set[Path]:
        return {path for folder in folders for path in folder.iterdir()}

    def fail() -> None:
        for _ in range(20):
            with suppress(Exception):
                storage.set("key", [MARK * 100_000, Unstorable()])

    fail()
    before, names_before = open_files(), names()
    fail()
    left = open_files() - before
    assert left < 10, (
        f"20 times a `set` failed, and left {left} files open: a bot ends with `Too many open"
        " files`. Close them in a `with` or a `finally`."
    )
    made = names() - names_before
    assert len(made) < 10, (
        f"20 times a `set` failed, and left {len(made)} files, such as {min(made)}: the disk fills."
        " Remove them in a `finally`."
    )


def test_files_of_others_stay_as_they_are(database: Database) -> None:
    """Files in `BOT_DATA_DIR` that are not the storage's own stay as they are."""
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
        f"A storage changes, removes or opens to others what Errbot and plugins keep: {changed}."
        " Touch no file but those that you have made, and give them names of your own."
    )


OTHERS = [
    *("errbot.log", "backup.py", "backup.py.bak", "notes.tmp", "notes.lock", "notes.json", "tmp"),
    *("notes.pickle", "notes.dat", "old.sqlite3", "plugins/notes.py", "plugins/notes.db"),
    *("cache/a", "tmp.d/b", "backups/c", ".hidden"),
]
"""Files that others may keep in BOT_DATA_DIR."""


def is_as_it_was(path: Path) -> bool:
    """Say whether a file has the contents, mode and time that the test gave it."""
    if not path.is_file():
        return False
    status = path.stat()
    return (path.read_text(), status.st_mode & 0o777, status.st_mtime) == (MARK, 0o640, 1)
