"""Values that a storage must return unchanged, as Errbot and its plugins store them."""

import os
import pickle
import re
import signal
import socket
import subprocess
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from fractions import Fraction
from functools import cache, partial
from hashlib import shake_128
from http.cookies import SimpleCookie
from importlib import import_module
from importlib.util import find_spec
from ipaddress import ip_address
from operator import itemgetter
from pathlib import PurePosixPath
from pickle import PickleBuffer
from types import SimpleNamespace
from typing import Any, ClassVar, SupportsIndex
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from errbot.backends.base import Identifier

MARK = "b1f4-stored-value"
"""Part of the tests' values, so it must never appear in a log record."""


REPLACED = 10
"""Keys whose values a process replaces until it is killed."""


def replacement(number: int) -> list[Any]:
    """Return replacement number N: alternately longer and shorter than the one before."""
    return [MARK, number, "x" * (number * 7_919 % 20_000)]


SHARED = 4
"""Of so many new namespaces, processes that open them at the same time share one."""

REPLACERS = 3
"""Threads that replace large values until their process is killed, so that one is in a `set`."""

LARGE = 5_000_000
"""Bytes of a value that no database stores in one page, packet or item."""


@cache
def noise() -> bytes:
    """Return bytes that cannot be compressed, so that a large value stays large."""
    return shake_128(b"noise").digest(LARGE)


def large_value(number: int) -> bytes:
    """Return a large value, the first byte and the length of which tell which one it is."""
    mark = number % 251
    value = bytes([mark]) + noise()[mark * 999 :] + noise()[: mark * 999 + number % 7 * 100_000]
    return value[: LARGE + number % 7 * 100_000]


FIRST_VALUE = "as it was" * 2_000
"""What the first release of a plugin has stored, long enough to be compressed."""
AS_IT_WAS = b"\x80\x05X" + len(FIRST_VALUE).to_bytes(4, "little") + FIRST_VALUE.encode() + b"."
"""The pickle of it, byte by byte, so that it stays the same in every Python."""
FIRST_KEYS = [
    *[("first", "key"), ("first", "alice@example.com"), ("first", "#Gr\u00f6\u00dfe 1/2 %41")],
    *[("Two words", "key"), *[("rows", f"row {number}") for number in range(200)]],
]
"""The namespaces and keys under which it has stored this."""


@dataclass
class Person:
    """What a plugin might store about a user."""

    name: str
    friends: list["Person"] = field(default_factory=list)


class Settings(dict[str, Any]):
    """A dict with its own behaviour, as some plugins use for their settings."""


class Level(Enum):
    """A plugin's enumeration."""

    LOW = "low"
    HIGH = "high"


Point = namedtuple("Point", ["x", "y"])


class Tag(str):
    """A text with its own behaviour, which stores more than its characters."""

    color: str | None = None

    def __repr__(self) -> str:
        return f"Tag({super().__repr__()}, color={self.color!r})"


class Amount(int):
    """A number with its own behaviour."""


class Rate(float):
    """A fraction with its own behaviour."""


class Blob(bytes):
    """Bytes with their own behaviour."""


class Queue(list[Any]):
    """A list with its own behaviour."""


class Pair(tuple[Any, ...]):
    """A tuple with its own behaviour."""


class Names(set[str]):
    """A set with its own behaviour."""


class Priority(IntEnum):
    """A plugin's enumeration of numbers."""

    HIGH = 1


class Color(str, Enum):
    """A plugin's enumeration of texts."""

    RED = "red"


class Slots:
    """An object without an attribute dict."""

    __slots__ = ("name", "unset")

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Slots({self.name!r}, {hasattr(self, 'unset')})"


@dataclass(frozen=True)
class Version:
    """An object that cannot be changed."""

    number: int

    class Part:
        """A nested class."""

        def __repr__(self) -> str:
            return "Version.Part()"


class Rights(Flag):
    """A plugin's flags, which can be combined."""

    READ = 1
    WRITE = 2


class Counted:
    """An object that defines itself what is stored."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.lock = object()  # represents what cannot be stored, and is created again

    def __getstate__(self) -> int:
        return self.count

    def __setstate__(self, count: int) -> None:
        self.__init__(count)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"Counted({self.count})"


class Restored:
    """An object that defines only how it is restored."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.mine = id(self)  # represents what each object needs for itself

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, mine=id(self))

    def __repr__(self) -> str:
        return f"Restored({self.count}, {self.mine == id(self)})"


class Built:
    """An object that a method of its class makes."""

    def __init__(self, count: int) -> None:
        self.count = count

    @classmethod
    def build(cls, count: int) -> "Built":
        """Make an instance."""
        return cls(count)

    def __reduce__(self) -> Any:
        return self.build, (self.count,)

    def __repr__(self) -> str:
        return f"Built({self.count})"


class User(Identifier):
    """Somebody in a chat, as a plugin stores who has asked for something."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"User({self.name!r})"


class Registered:
    """An object that only a function can store that a library has registered with `copyreg`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Registered({self.count})"


def reduce_registered(value: Registered) -> Any:
    """Return how such an object is stored."""
    return Registered, (value.count,)


class Failure(Exception):
    """An error that contains more than its text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code: int | None = None

    def __repr__(self) -> str:
        return f"Failure({self.args[0]!r}, code={self.code!r})"


class Room(dict[str, Any]):
    """A dict that contains more than its items."""

    topic: str | None = None

    def __repr__(self) -> str:
        return f"Room({super().__repr__()}, topic={self.topic!r})"


class Summer(tzinfo):
    """A plugin's own time zone."""

    def utcoffset(self, _when: datetime | None) -> timedelta:
        return timedelta(hours=2)

    def dst(self, _when: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def tzname(self, _when: datetime | None) -> str:
        return "summer"

    def __repr__(self) -> str:
        return "Summer()"


class Described:
    """An object that can also describe itself, as those of many libraries can."""

    def as_dict(self) -> dict[str, str]:
        """Return a description."""
        return {"name": MARK}

    _asdict = to_dict = dict = model_dump = as_dict

    def __repr__(self) -> str:
        return "Described()"


class Incomparable:
    """An object that cannot be compared with others, as arrays of NumPy cannot."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("it is neither equal nor different")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return "Incomparable()"


class Unshowable:
    """An object that can only be stored: it has no text, no length and no truth."""

    def fail(self) -> Any:
        """Raise an error."""
        raise RuntimeError("there is nothing to show")

    __repr__ = __str__ = __len__ = __bool__ = __hash__ = fail


@dataclass
class Secret:
    """An object that neither shows nor compares what it contains."""

    content: str = field(repr=False, compare=False)


class Unreadable:
    """A value that a plugin stored before its class changed, so it can no longer be unpickled."""

    def __init__(self, error: Exception, value: object = None) -> None:
        self.error = error
        self.value = value

    def __getstate__(self) -> dict[str, Any]:  # Some serializers call both or none.
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise state["error"]


class Unstorable:
    """An object that fails in the middle of being stored, after other parts were written."""

    def __init__(self, error: type[Exception] = TypeError) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error(f"cannot pickle this ({MARK})")

    def __repr__(self) -> str:
        return "Unstorable()"


class Growing:
    """An object that is larger each time it is pickled, as a list to which a thread appends."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    def __reduce__(self) -> Any:
        self.parts += (bytes([len(self.parts) % 256]) * 1_000,)
        return type(self), self.parts


class Samples:
    """An object that pickles its buffer without a copy, as arrays of NumPy do."""

    def __init__(self, data: Any) -> None:
        self.data = memoryview(data)

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        buffer = PickleBuffer(self.data) if int(protocol) >= 5 else bytearray(self.data)
        return type(self), (buffer,)


class Asking:
    """An object that uses the storage, by calling `ask`, while it is pickled or unpickled."""

    ask: ClassVar[list[Callable[[], object]]] = []

    def __getstate__(self) -> str:
        self.ask[0]()
        return MARK

    def __setstate__(self, state: str) -> None:
        self.ask[0]()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    __hash__ = None  # type: ignore[assignment]


class AskingToReduce(Asking):
    """The same with `__reduce__`."""

    def __reduce__(self) -> Any:
        self.ask[0]()
        return made_while_asking, ()


def made_while_asking() -> AskingToReduce:
    """Make an instance, and call `ask` as well."""
    Asking.ask[0]()
    return AskingToReduce()


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
    "dict with long numbers as keys": {10**17 + number: MARK for number in range(3)},
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
    "datetime of an hour that comes twice": datetime(2000, 10, 29, 2, 30, fold=1),
    "time": time(1, 2, 3, 4),
    "timedelta": timedelta(days=-1, microseconds=1),
    "Decimal": Decimal("1.10"),
    "Fraction": Fraction(1, 3),
    "UUID": UUID(int=1),
    "path": PurePosixPath(f"/var/{MARK}"),
    "IP address": ip_address("127.0.0.1"),
    "cookie": SimpleCookie({"name": MARK}),
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
    "instance that is restored": Restored(7),
    "instance that its class builds": Built(7),
    "identifier of a user": User(MARK),
    "instance with slots": Slots(MARK),
    "instance that is frozen": Version(1),
    "instance of a class in a class": Version.Part(),
    "several members of an enumeration": Rights.READ | Rights.WRITE,
    "instance that describes itself": Described(),
    "instance that cannot be compared": Incomparable(),
    "function with arguments": partial(int, base=2),
    "function that gets an item": itemgetter(MARK),
    "result of a program": subprocess.CompletedProcess([MARK], 0),
    "status of a file": os.stat_result(range(10)),
    "record of no class": SimpleNamespace(name=MARK),
    "number of a signal": signal.SIGTERM,
    "kind of a socket": socket.AF_INET,
    "type of a list": list[int],
}
with suppress(ZoneInfoNotFoundError):
    OBJECTS["datetime with a place's zone"] = datetime(2000, 2, 29, tzinfo=ZoneInfo("Asia/Tokyo"))
if find_spec("pydantic"):
    Model = import_module("pydantic").create_model("Model", __module__=__name__, name=(str, ...))
    OBJECTS["model of pydantic"] = Model(name=MARK)

KINDS: dict[str, Any] = {
    "kind of str": Tag(MARK),
    "kind of str with attributes": with_attributes(Tag(MARK), color="red"),
    "kind of str that is empty": Tag(""),
    "kind of int": Amount(7),
    "kind of int that is 0": Amount(0),
    "kind of float": Rate(0.5),
    "kind of bytes": Blob(MARK.encode()),
    "kind of list": Queue([MARK, 1]),
    "kind of tuple": Pair([MARK, 1]),
    "kind of set": Names([MARK]),
    "member that is an int": Priority.HIGH,
    "member that is a str": Color.RED,
    "kinds inside of others": {Tag("a"): [Amount(1), (Rate(1), Color.RED)]},
}
"""Instances of classes that plugins derive from the types of plain values."""

MARKUP: dict[str, list[Any]] = {
    "jsonpickle": [
        *[{"py/tuple": [1, 2]}, {"py/set": [1]}, {"py/id": 1}, {"py/type": "builtins.int"}],
        *[{"py/object": "builtins.dict"}, {"py/object": "no.such.Class", "a": 1}],
        *[{"py/repr": "1 + 1"}, {"py/b64": "YWJj"}, {"py/reduce": [1]}, {"json://1": 2}],
    ],
    "JSON of databases": [
        *[{"$date": 0}, {"$date": "2000-01-01T00:00:00Z"}, {"$oid": "0" * 24}, {"$uuid": "0" * 32}],
        *[{"$binary": "YWJj", "$type": "00"}, {"$numberLong": "1"}, {"$ref": "a", "$id": "b"}],
        *[{"$set": {"a": 1}}, {"$inc": {"a": 1}}, {"a.b": 1}, {"a": {"b": 1}}, {"": 1}],
        *[{"S": "a"}, {"N": "1"}, {"NULL": True}, {"L": [{"N": "1"}]}, {"_id": 1}, {"_id": "key"}],
    ],
    "names of types": [
        *[{"__type__": "tuple", "items": [1]}, {"__class__": "set", "value": [1]}, {"type": "set"}],
        *[{"__tuple__": [1]}, {"__tuple__": True, "items": [1]}, {"__set__": [1]}],
        *[{"__datetime__": "2000-01-01T00:00:00"}, {"__complex__": True, "real": 1, "imag": 2}],
        *[{"_type": "datetime", "value": "2000-01-01"}, {"@type": "bytes", "@value": "YQ=="}],
        *[{"__module__": "builtins", "__name__": "int"}, {"__dict__": {}}, {"!tuple": [1]}],
        *[["__tuple__", 1], ["tuple", [1]], ["set", [1]], {"value": 1}, {"v": 1}, {"data": "a"}],
        *[{"value": 1, "expires": 0}, {"value": 1, "version": 1}, {"parts": 2}, ["parts", 2]],
        *[("parts", 2), ("__none__",), {"__none__": True}, {"deleted": True}, {"error": "a"}],
    ],
    "texts": [
        *["!!python/tuple [1]", "!!int '1'", "~", "- 1", "a: 1", "*a", "&a 1", "<<", "="],
        *["NaN", "Infinity", "__none__", "__deleted__", "<null>", "\\N", "nil", "TOMBSTONE"],
        *["b'abc'", "base64:YQ==", "YQ==", "gASVBAAAAAAAAACMAJQu", "\x80\x05N.", "pickle:N.", "N."],
        *["2000-01-01", "2000-01-01T00:00:00", "datetime.datetime(2000, 1, 1)", "0x10", "1e3"],
        *["[1]", "(1,)", "{1}", '"a"', "'a'", "None", "True", "yes", "no", "on", "off", "1_000"],
    ],
    "bytes": [
        *[b"N.", b"\x80\x04N.", b"\x1f\x8b", b"BZh", b"x\x9c", b"\xfd7zXZ", b"(\xb5/\xfd", b"PK"],
        *[b"null", b"[1]", b"1", b"abc", b"\0", b"=", b"base64:YQ==", b"YQ==", b"\xff"],
    ],
    "variables": [
        *["$HOME", "${HOME}", "$PATH", "${PATH}", "%PATH%", "~", "~/a", "!ENV ${PATH}", "env:PATH"],
        *["{key}", "%(key)s", "%s", "<%= key %>", "@key", "#{key}", "\\1", "&key;", "`pwd`"],
    ],
    "lifetimes": [
        *[(1, timedelta(hours=1)), (1, datetime(2000, 1, 1)), (1, 0.5), (1, None), (0.5, 1)],
        *[{"value": 1, "ttl": 60}, {"data": 1, "timeout": 60}, {"value": 1, "expires_at": 0}],
    ],
    "keys of several types": [
        *[{"1": "b", 1: "a"}, {"None": 2, "null": 3, None: 1}, {"True": 1, "true": 3, True: 2}],
        *[{"1.5": 2, 1.5: 1}, {"(1, 2)": 2, (1, 2): 1}, {"a": 2, "b'a'": 3, b"a": 1}, {0: 1}],
        *[{frozenset({1}): 1}, {"2000-01-01": 2, date(2000, 1, 1): 1}, {1: {2: {"3": {4: 5}}}}],
        *[{None: None}, {"": None, None: ""}, {float("inf"): 1}, {"low": 2, Level.LOW: 1}],
    ],
}
"""By kind: values that look like the markup of a serializer or database."""

SAMPLES: dict[str, Any] = FALSY | PLAIN | CONTAINERS | OBJECTS | KINDS | MARKUP
"""All of these, by name."""

TWINS: dict[str, tuple[Any, Any]] = {
    "crc32": ("plumless", "buckeroo"),
    "adler32": ("key 100020", "key 100101"),
    "hash of numbers": (-1, -2),
    "hash of large numbers": (1, 2**61),
    "equal": (1, True),
    "equal texts": (MARK, Tag(MARK)),
    "equal tuples": ((1, 0), (True, False)),
    "equal dicts in another order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "length": ("abc", "xyz"),
    "beginning": ([MARK * 9_000, 1], [MARK * 9_000, 2]),
    "end": ([1, MARK * 9_000], [2, MARK * 9_000]),
    "middle": (["a" * 9_000, 1, "a" * 9_000], ["a" * 9_000, 2, "a" * 9_000]),
    "letters": ("ab", "ba"),
    "all that they show": (Secret("one"), Secret("other")),
}
"""Pairs of values that may be confused, by what they share."""
