"""What is logged at DEBUG goes into files and to services that see no data otherwise."""

import traceback
import warnings
from pathlib import Path

import pytest
from errbot.storage.base import StorageBase

from contract.support.database import Database
from contract.support.expectations import outcome
from contract.support.sample_values import MARK, Unreadable, Unstorable


def test_no_value_stands_in_the_log(
    database: Database, log_lines: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """No value stands in the log, or in what is printed."""
    storage = database.open()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        # Whether a value is refused, or comes back, is another test's matter.
        for value in [
            *[MARK, [MARK], {MARK: MARK}, MARK.encode(), MARK * 1_000, [MARK, Unstorable()]],
            Unreadable(AttributeError("no such attribute"), MARK),
        ]:
            outcome(storage.set, "key", value)
            outcome(storage.get, "key")
        list(storage.keys())
        outcome(storage.remove, "key")
        database.close(storage)
    printed = "".join(capfd.readouterr()).splitlines()
    told = [*log_lines, *printed, *(str(warning.message) for warning in warned)]
    told = [line for line in told if MARK in line]
    assert not told, f"A value stands in the log. Log names, never values: {told[0]}"


def test_no_value_stands_in_an_error(storage: StorageBase) -> None:
    """No value stands in an error."""
    shown = ""
    for value in [[MARK, lambda: None], Unreadable(AttributeError("no such attribute"), MARK)]:
        try:
            storage.set("key", value)
            storage.get("key")
        except Exception as error:
            shown += "".join(traceback.format_exception(error))
    told = [line for line in shown.splitlines() if MARK in line]
    assert not told, f"Errbot logs the errors of plugins, and this one shows a value: {told[0]}"


def locals_of(error: BaseException | None) -> str:
    """Return the locals of the frames of an error and its causes, as Sentry and others show them.

    Those of the contract itself, and so of the classes of its values, are left out.
    """
    shown: list[str] = []
    while error:
        steps = traceback.walk_tb(error.__traceback__)
        for frame in traceback.StackSummary.extract(steps, capture_locals=True):
            if Path(__file__).parent not in Path(frame.filename).resolve().parents:
                shown += (frame.locals or {}).values()
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(shown)


@pytest.mark.parametrize("size", [1, 50_000], ids=["small", "large"])
def test_no_frame_of_an_error_of_get_shows_a_value(storage: StorageBase, size: int) -> None:
    """No frame of an error of `get` shows the value."""
    storage.set("key", Unreadable(AttributeError("no such attribute"), [MARK] * size))
    shown = False
    try:
        storage.get("key")
    except Exception as error:
        shown = MARK in locals_of(error)
    assert not shown, (
        "With BOT_LOG_SENTRY, Errbot sends the locals of each frame of an error, and one of these"
        " shows a value. Delete what holds it before you raise: `del data`."
    )
