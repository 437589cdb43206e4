"""DEBUG messages go into files and to services that otherwise see no data."""

import logging
import traceback
import warnings
from functools import partial
from pathlib import Path

import pytest
from errbot.storage import StoreMixin
from errbot.storage.base import StorageBase

from contract.support.clock import Clock
from contract.support.database import Database
from contract.support.deadlines import at_once
from contract.support.expectations import set_or_skip, shows, skip_if_threads_fail
from contract.support.guest import use
from contract.support.outcomes import outcome
from contract.support.sample_values import MARK, Unreadable, Unstorable, large_value

USES = 20
"""How often a mapping is used in every way."""


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


@pytest.mark.parametrize("size", [1, 60_000], ids=["small", "large"])
def test_a_slow_operation_logs_no_value(
    database: Database, log_lines: list[str], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """No value appears in the log, even if an operation takes long."""
    clock = Clock(monkeypatch)
    storage = database.open("namespace", clock.load(database))
    for clock.pace in [0, 10]:
        for value in [[MARK] * size, [MARK] * size, Unreadable(AttributeError("id"), MARK)]:
            outcome(storage.set, "key", value)  # The client's own deadlines may be over.
            outcome(storage.get, "key")
        outcome(storage.len)
        outcome(lambda: list(storage.keys()))
        outcome(storage.remove, "key")
        told = [line for line in log_lines if is_told(line)]
        if told and not clock.pace:
            pytest.skip("values are always logged, which another test reports")
    assert not told, f"Who logs slow operations must leave the values out: {told[0]:.200}"


def test_ordinary_operations_are_no_problems_in_the_log(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Ordinary operations log no warning and no error, even if a key is missing."""
    mapping = database.mapping()
    mapping["key"] = MARK
    mapping["key"] = [MARK]
    caplog.clear()
    use_as_mapping(mapping)
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not told, (
        f"Ordinary operations log {told[0].levelname}: {told[0].getMessage():.200}. A missing key"
        " is no problem, and with BOT_LOG_SENTRY each is reported. Log it at DEBUG, or not at all."
    )


def test_ordinary_operations_do_not_fill_the_log(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Ordinary operations log at most now and then at INFO, Errbot's usual level."""
    mapping = database.mapping()
    caplog.set_level(logging.INFO)
    caplog.clear()
    for _ in range(USES):
        mapping["key"] = MARK
        use_as_mapping(mapping)
    told = [record for record in caplog.records if record.levelno == logging.INFO]
    assert len(told) < USES, (
        f"Ordinary operations fill the log: {len(told)} times INFO, {told[0].getMessage():.200}."
        " Log what happens all day at DEBUG."
    )


def use_as_mapping(mapping: StoreMixin) -> None:
    """Use a storage as plugins do all day."""
    assert ("key" in mapping, "new" in mapping, mapping.get("new")) == (True, False, None)
    mapping.setdefault("new", {})
    with mapping.mutable("list", []) as value:
        value.append(MARK)
    mapping["key"] = MARK
    del mapping["key"]
    mapping.pop("key", None)
    mapping.update({"key": MARK})
    assert len(mapping) > 0
    assert "key" in sorted(mapping)
    mapping.clear()


def test_a_log_handler_may_use_the_storage(storage: StorageBase) -> None:
    """A handler of `logging` may store what the storage itself logs."""
    skip_if_threads_fail(storage)

    class Storing(logging.Handler):
        stores = False

        def emit(self, record: logging.LogRecord) -> None:
            if not self.stores:
                self.stores = True
                outcome(storage.set, "last", record.levelname)
                self.stores = False

    def work() -> None:
        use(storage)
        outcome(storage.set, "large", large_value(1))

    handler = Storing(logging.INFO)
    logging.getLogger().addHandler(handler)
    try:
        at_once(work, seconds=20)
        # A storage may connect for each thread, and log this.
        at_once(*[partial(outcome, use, storage)] * 8, seconds=20)
    except TimeoutError:
        pytest.fail(
            "A plugin's handler of `logging` stores the last messages, and the bot hangs: the"
            " storage logs while it holds a lock, which the handler's `set` needs. Log afterwards."
        )
    finally:
        logging.getLogger().removeHandler(handler)


def is_told(line: str) -> bool:
    """Return whether a line shows the beginning of the mark, or all of it in another form."""
    return MARK[:6] in line or shows(line, MARK)


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
    logged: list[str] = []

    class Sentry(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(locals_of(record.exc_info[1] if record.exc_info else None))

    handler = Sentry(logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        storage.get("key")
    except Exception as error:
        logged.append(locals_of(error))
    finally:
        logging.getLogger().removeHandler(handler)
    shown = any(MARK in text for text in logged)
    assert not shown, (
        "With BOT_LOG_SENTRY, Errbot sends the local variables of each frame of an error, and one"
        " of these holds a value. Delete the variable before you raise the error: `del data`."
    )
