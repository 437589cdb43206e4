"""DEBUG messages go into files and to services that otherwise see no data."""

import traceback
import warnings
from base64 import b64encode
from pathlib import Path

import pytest
from errbot.storage.base import StorageBase

from contract.support.database import Database
from contract.support.expectations import outcome, set_or_skip
from contract.support.sample_values import MARK, Unreadable, Unstorable


def test_no_value_stands_in_the_log(
    database: Database, log_lines: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """No value appears in the log or in the output."""
    storage = database.open()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        # Another test checks whether a value is refused or comes back.
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
    told = [line for line in told if is_told(line)]
    assert not told, f"A value appears in the log. Log names, never values: {told[0]}"


def is_told(line: str) -> bool:
    """Return whether a line shows the beginning of the mark, or all in hexadecimal or base64."""
    data = MARK.encode()
    # In base64, three bytes are four characters, so it depends on where the mark begins.
    encoded = [b64encode(data[start:][: len(data) // 3 * 3 - 3]).decode() for start in range(3)]
    return data.hex() in line.lower() or any(form in line for form in [MARK[:6], *encoded])


def test_no_value_stands_in_an_error(storage: StorageBase) -> None:
    """No value appears in an error."""
    shown = ""
    for value in [[MARK, lambda: None], Unreadable(AttributeError("no such attribute"), MARK)]:
        try:
            storage.set("key", value)
            storage.get("key")
        except Exception as error:
            shown += "".join(traceback.format_exception(error))
    told = [line for line in shown.splitlines() if MARK[:6] in line]
    assert not told, f"Errbot logs the errors of plugins, and this one shows a value: {told[0]}"


def locals_of(error: BaseException | None) -> str:
    """Return the local variables of an error's frames and its causes, as Sentry shows them.

    Frames of the contract itself, and so of its values' classes, are left out.
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
    """No frame of an error of `get` shows a value in its local variables."""
    set_or_skip(storage, "key", Unreadable(AttributeError("no such attribute"), [MARK] * size))
    shown = False
    try:
        storage.get("key")
    except Exception as error:
        shown = MARK in locals_of(error)
    assert not shown, (
        "With BOT_LOG_SENTRY, Errbot sends the local variables of each frame of an error, and one"
        " of these holds a value. Delete the variable before you raise the error: `del data`."
    )
