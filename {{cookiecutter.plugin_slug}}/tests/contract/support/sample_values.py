"""Values that a storage must give back as they were: what Errbot and its plugins store."""

import os
import pickle
import re
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID

MARK = "stored-value-b1f4"
"""Stands in the values of the tests, and so must never stand in a log record."""


REPLACED = 10
"""Keys whose values a process replaces until it is killed."""


def replacement(number: int) -> list[Any]:
    """Return the value of that number: in turn longer and shorter than the one before it."""
    return [MARK, number, "x" * (number * 7_919 % 20_000)]


@dataclass
class Person:
    """What a plugin might keep of a user."""

    name: str
    friends: list["Person"] = field(default_factory=list)


class Settings(dict[str, Any]):
    """A dict with behaviour of its own, as plugins like to keep their settings in."""


class Level(Enum):
    """A choice of a plugin."""

    LOW = "low"
    HIGH = "high"


Point = namedtuple("Point", ["x", "y"])


class Counted:
    """An object that says itself what is stored of it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.lock = object()  # stands for what cannot be stored, and is made anew

    def __getstate__(self) -> int:
        return self.count

    def __setstate__(self, count: int) -> None:
        self.__init__(count)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"Counted({self.count})"


class Failure(Exception):
    """An error that holds more than its text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code: int | None = None

    def __repr__(self) -> str:
        return f"Failure({self.args[0]!r}, code={self.code!r})"


class Room(dict[str, Any]):
    """A dict that holds more than its items."""

    topic: str | None = None

    def __repr__(self) -> str:
        return f"Room({super().__repr__()}, topic={self.topic!r})"


class Summer(tzinfo):
    """A time zone of a plugin's own."""

    def utcoffset(self, _when: datetime | None) -> timedelta:
        return timedelta(hours=2)

    def dst(self, _when: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def tzname(self, _when: datetime | None) -> str:
        return "summer"

    def __repr__(self) -> str:
        return "Summer()"


class Unreadable:
    """What a plugin stored before its class changed: it cannot be unpickled any more."""

    def __init__(self, error: Exception, value: object = None) -> None:
        self.error = error
        self.value = value

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise state["error"]


class Unstorable:
    """An object that fails in the middle of being stored, after others were written."""

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot pickle this ({MARK})")

    def __repr__(self) -> str:
        return "Unstorable()"


def with_attributes(instance: Any, **attributes: object) -> Any:
    """Set attributes of an instance, and return it."""
    vars(instance).update(attributes)
    return instance


FALSY: dict[str, Any] = {
    "None": None,
    "False": False,
    "0": 0,
    "0.0": 0.0,
    "empty str": "",
    "empty bytes": b"",
    "empty list": [],
    "empty tuple": (),
    "empty dict": {},
    "empty set": set(),
    "empty instance": Settings(),
}

PLAIN: dict[str, Any] = {
    "True": True,
    "1": 1,
    "-0.0": -0.0,
    "float": 0.1,
    "infinity": float("inf"),
    "not a number": float("nan"),
    "large int": 2**200,
    "negative int": -(2**63) - 1,
    "complex": 1 + 2j,
    "str": MARK,
    "str of digits": "007",
    "str that is JSON": f'{{"{MARK}": [1]}}',
    "str that is null": "null",
    "str that is true": "true",
    "str with spaces around": f"  {MARK}\t\n",
    "str with line breaks": f"{MARK}\r\n{MARK}\n",
    "str with quotes": f"""{MARK} ' " ` \\ %s {{}} """,
    "str beyond Latin": f"{MARK} Größe 数据 😀 e\u0301",
    "str with NUL": f"{MARK}\0{MARK}",
    "str with a lone surrogate": f"{MARK}\udc80",
    "bytes": MARK.encode(),
    "bytes that are a pickle": pickle.dumps([MARK], protocol=5),
    "bytes of every kind": bytes(range(256)),
    "bytearray": bytearray(MARK.encode()),
}

CONTAINERS: dict[str, Any] = {
    "list": [MARK, 1, None],
    "tuple": (MARK, 1, None),
    "tuple of one": (MARK,),
    "set": {MARK},
    "frozenset": frozenset({MARK}),
    "dict with int keys": {1: MARK, 2: MARK},
    "dict with keys of all kinds": {None: 1, True: 2, (1, "a"): 3, b"b": 4, 2.5: 5, "1": 6},
    "dict in its order": {"z": MARK, "a": MARK, "m": MARK},
    "nested": {"list": [({"set": {MARK}},)], "tuple": ((), [(), []])},
    "named tuple": Point(MARK, 2),
    "OrderedDict": OrderedDict(b=MARK, a=1),
    "defaultdict": defaultdict(list, {MARK: [1]}),
    "Counter": Counter([MARK, MARK]),
    "deque": deque([MARK, 1], maxlen=3),
    "range": range(1, 9, 2),
}

OBJECTS: dict[str, Any] = {
    "date": date(2000, 2, 29),
    "datetime": datetime(2000, 2, 29, 23, 59, 59, 999999),
    "datetime with a zone": datetime(2000, 2, 29, tzinfo=timezone(timedelta(hours=5, minutes=30))),
    "datetime with a zone of its own": datetime(2000, 2, 29, tzinfo=Summer()),
    "time": time(1, 2, 3, 4),
    "timedelta": timedelta(days=-1, microseconds=1),
    "Decimal": Decimal("1.10"),
    "Fraction": Fraction(1, 3),
    "UUID": UUID(int=1),
    "path": PurePosixPath(f"/var/{MARK}"),
    "IP address": ip_address("127.0.0.1"),
    "pattern": re.compile(MARK, re.IGNORECASE),
    "exception": ValueError(MARK, 1),
    "exception with attributes": with_attributes(Failure(MARK), code=1),
    "class": Person,
    "function": os.path.join,
    "member of an enumeration": Level.HIGH,
    "instance": Person(MARK),
    "instance with instances": Person(MARK, [Person("a"), Person("b")]),
    "instance that is a dict": Settings(a=MARK),
    "instance that is a dict with attributes": with_attributes(Room(a=MARK), topic=MARK),
    "instance with a state of its own": Counted(7),
}
