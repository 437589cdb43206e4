"""A storage is a guest in the process of the bot: what belongs to others stays as it is."""

import json
import os

import pytest

from contract.support.database import Database, run_process
from contract.support.guest import use


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
