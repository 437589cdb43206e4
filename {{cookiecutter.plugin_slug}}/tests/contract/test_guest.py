"""A storage is a guest in the bot's process: it leaves what belongs to others alone."""

import json
import os

import pytest

from contract.support.database import Database, run_process
from contract.support.guest import use


def test_a_storage_changes_nothing_of_its_process(
    database: Database, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading, opening and using a storage changes nothing of its process."""
    for name in os.environ.keys() - environment.keys():
        monkeypatch.delenv(name)
    changed = json.loads(run_process(database, "guest", "visit").splitlines()[-1])
    assert not changed, (
        f"The storage changes what belongs to the bot and all its plugins: {', '.join(changed)}."
        " Set options only on the database's client, and restore what you have to change."
    )


def test_a_storage_prints_nothing(database: Database, capfd: pytest.CaptureFixture[str]) -> None:
    """Loading, opening and using a storage prints nothing."""
    storage = database.open("namespace", database.plugin())
    use(storage)
    database.close(storage)
    printed = "".join(capfd.readouterr())
    assert not printed, (
        f"The storage prints {printed[:200]!r}. This appears on a bot's screen, and in the output"
        " of `errbot --storage-get`. Use `logging`, or print nothing."
    )
