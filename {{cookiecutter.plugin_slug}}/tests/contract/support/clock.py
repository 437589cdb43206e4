"""The clock of the process, which tests set forward."""

import datetime
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date as real_date
from datetime import datetime as real_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from errbot.storage.base import StoragePluginBase

from contract.support.database import Database

SLICE = 0.05
"""Seconds after which those who wait longer look at the clock again."""
DAY = 24 * 3_600.0
JULIAN_1970 = 2_440_587.5
"""The Julian day of the time that Python counts as 0."""
YEARS = 10 * 365 * DAY
"""Seconds of ten years."""


def ten_years_earlier(value: Any) -> Any:
    """Return a time of these years ten years earlier, and anything else as it is.

    A time is a text that begins with a date, a number of seconds, milliseconds or microseconds, or
    a Julian day, as SQLite's `julianday` returns it.
    """
    if isinstance(value, str) and re.match(r"20\d\d-\d\d-\d\d", value):
        return f"{int(value[:4]) - 10}{value[4:]}"
    near = 2 * YEARS  # The clock may be ahead.
    for unit in [1, 1_000, 1_000_000]:
        if isinstance(value, (int, float)) and abs(value / unit - time.time()) < near:
            return value - type(value)(YEARS * unit)
    if isinstance(value, float) and abs((value - JULIAN_1970) * DAY - time.time()) < near:
        return value - YEARS / DAY
    return value


class Clock:
    """The clock of this process, as a plugin that is loaded now sees it, whatever it imports."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._sleep_really, self._now_really = time.sleep, time.monotonic
        self._earlier: list[threading.Thread] | None = None
        self.ahead = 0.0
        """Seconds by which the clock is put forward."""
        self.pace = 0.0
        """Seconds that pass with each look at the clock."""
        self._patch = patch
        for name in ["time", "monotonic", "perf_counter"]:
            patch.setattr(time, name, self._put_forward(getattr(time, name), 1))
            nanoseconds = getattr(time, f"{name}_ns")
            patch.setattr(time, f"{name}_ns", self._put_forward(nanoseconds, 10**9))
        for name in ["localtime", "gmtime", "ctime"]:
            patch.setattr(time, name, self._of_now(getattr(time, name), time.time))
        patch.setattr(time, "asctime", self._of_now(time.asctime, time.localtime))
        patch.setattr(time, "strftime", self._of_now(time.strftime, time.localtime, others=1))
        patch.setattr(time, "sleep", self._sleep)
        patch.setattr(threading.Condition, "wait", self._waiting(threading.Condition.wait))

    def load(self, database: Database) -> StoragePluginBase:
        """Load the storage plugin so that `datetime` also shows it this clock.

        Only that plugin sees it, because while `datetime` contains other classes, dates cannot be
        pickled. Only threads that are started from now on wait by it.
        """
        self._earlier = self._earlier or threading.enumerate()
        with self._patch.context() as patch:
            patch.setattr(datetime, "datetime", Datetime)
            patch.setattr(datetime, "date", Date)
            shown = SimpleNamespace(**vars(datetime))
            plugin = database.plugin()
        module = sys.modules.get(plugin.__class__.__module__)
        for name, value in list(vars(module).items()):
            if value is datetime:
                self._patch.setattr(module, name, shown)
        return plugin

    def _left(self, seconds: float) -> Iterator[float]:
        """Divide a time by this clock into slices, until all of it has passed."""
        if self._earlier is None or threading.current_thread() in self._earlier:
            yield seconds
            return
        until = self._now_really() + self.ahead + seconds
        while (left := until - self._now_really() - self.ahead) > 0:
            yield min(left, SLICE)

    def _sleep(self, seconds: float) -> None:
        for left in self._left(seconds):
            self._sleep_really(left)

    def _waiting(self, wait: Any) -> Any:
        """Let those who wait for an event, a queue or a timer see the time pass by this clock."""

        def wait_in_slices(condition: threading.Condition, timeout: float | None = None) -> Any:
            if timeout is None or timeout <= SLICE:
                return wait(condition, timeout)
            return any(wait(condition, left) for left in self._left(timeout))

        return wait_in_slices

    def _put_forward(self, clock: Any, unit: int) -> Any:
        def show() -> Any:
            self.ahead += self.pace
            return clock() + type(clock())(self.ahead * unit)

        return show

    def _of_now(self, convert: Any, now: Callable[[], Any], others: int = 0) -> Any:
        """Let a function convert the time of this clock if it gets none after other arguments."""

        def show(*arguments: Any) -> Any:
            given = arguments[others:] not in [(), (None,)]
            return convert(*arguments) if given else convert(*arguments[:others], now())

        return show


class Kind(type):
    """Makes real dates count as instances of the classes below, which have no instances."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.__bases__[0])


class Date(real_date, metaclass=Kind):
    """`datetime.date` by `time.time`."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """Return a real date."""
        return real_date(*arguments, **options)

    @classmethod
    def today(cls) -> Any:
        """Return the date of `time.time`."""
        return real_date.fromtimestamp(time.time())


class Datetime(real_datetime, metaclass=Kind):
    """`datetime.datetime` by `time.time`."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """Return a real date and time."""
        return real_datetime(*arguments, **options)

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        """Return the time of `time.time`."""
        return real_datetime.fromtimestamp(time.time(), tz)

    today = now

    @classmethod
    def utcnow(cls) -> Any:
        """Return the time of `time.time` in UTC, without its zone."""
        return cls.now(datetime.timezone.utc).replace(tzinfo=None)
