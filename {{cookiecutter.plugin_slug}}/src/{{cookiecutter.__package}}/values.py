"""Examines stored values without loading them, so nothing that is stored ever runs here."""

import re
from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from pickletools import genops
from typing import Any, NamedTuple

SIGNATURE = re.compile(rb"\.[A-Za-z0-9_-]{43}\Z")
"""The end of a signed value. A pickle never ends like this: its last byte is a full stop."""

UNSIGNED = "unsigned"
REFUSED = "refused"
BROKEN = "not an intact pickle"
DEPTH = 40
"""Levels of nesting that are shown."""


class Value(NamedTuple):
    """What is known about some stored bytes."""

    state: str
    """UNSIGNED, REFUSED, BROKEN, or "" for a value that is signed and intact."""
    number: int
    """Which key of signing_key signed it, counted from 1; 0 if none did."""
    pickled: bytes
    """The pickle without its signature, or all bytes if the value is refused."""


{% include [cookiecutter.database ~ "/bulk.py", "shared/bulk.py"] %}

def examine(storage: Any, key: str, data: bytes) -> Value:
    """Find out which key signed some stored bytes, and whether they are one intact pickle."""
    if number := signed_by(storage, key, data):
        pickled = data[: data.rindex(b".")]
        return Value("" if is_whole(pickled) else BROKEN, number, pickled)
    if SIGNATURE.search(data):
        return Value(REFUSED, 0, data)
    return Value(UNSIGNED if is_whole(data) else BROKEN, 0, data)


def signed_by(storage: Any, key: str, data: bytes) -> int:
    """Return the number of the signing key that signed some bytes, or 0."""
    if not storage._signing_keys:
        return 0
    signer = storage.signer(key)
    for number in range(len(signer.secret_keys), 0, -1):
        one = copy(signer)
        one.secret_keys = signer.secret_keys[number - 1 : number]
        if one.validate(data):
            return number
    return 0


def is_sound(storage: Any, value: Value) -> bool:
    """Return whether a bot with these signing keys, or with none, would accept the value."""
    return value.state == ("" if storage._signing_keys else UNSIGNED)


def explain(storage: Any, value: Value) -> str:
    """Return why a bot would not accept a value."""
    if value.state == UNSIGNED:
        return "unsigned, but STORAGE_CONFIG has a signing_key"
    if value.state == REFUSED and not storage._signing_keys:
        return "refused: signed, but STORAGE_CONFIG has no signing_key"
    if value.state == REFUSED:
        return "refused: changed, moved here, or signed with a key that is not in STORAGE_CONFIG"
    return value.state


def sign(storage: Any, key: str, pickled: bytes) -> bytes:
    """Return the bytes to store for a pickle: signed, if there is a signing key."""
    return bytes(storage.signer(key).sign(pickled)) if storage._signing_keys else pickled


def is_whole(data: bytes) -> bool:
    """Return whether some bytes are one intact pickle and nothing else."""
    end = 0
    try:
        for _, _, position in genops(data):
            end = position or 0
    except Exception:  # any kind, because others may have written these bytes
        return False
    return 0 < end == len(data) - 1


def describe(data: bytes, limit: int) -> str:
    """Return a pickle as text of at most `limit` characters, without creating its objects.

    Anything after the pickle, such as a signature, is ignored. Raises ValueError for other data.
    """
    try:
        value = Reader().read(data)
    except Exception as error:  # any kind, because others may have written these bytes
        raise ValueError(BROKEN) from error
    pieces, left = [], limit
    for piece in write(value, ()):
        pieces.append(piece[:left])
        left -= len(piece)
        if left < 0:
            return "".join([*pieces, "..."])
    return "".join(pieces)


class Node:
    """Describes a container or an object that a pickle would create."""

    def __init__(self, kind: str, parts: list[Any], pairs: list[Any] | None = None) -> None:
        self.kind = kind
        self.parts = parts
        self.pairs = pairs or []
        self.state: Any = None


class Reader:
    """Follows a pickle's instructions as `pickle` does, but only describes what they create."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, data: bytes) -> Any:
        """Follow all instructions, and return a description of the value."""
        for instruction, argument, _ in genops(data):
            name = instruction.name
            if not (self.remember(name, argument) or self.collect(name) or self.call(name)):
                self.push(name, argument)
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        """Pop everything since the last mark from the stack."""
        found: list[Any] = []
        while (thing := self.stack.pop()) is not Reader:
            found.append(thing)
        return found[::-1]

    def remember(self, name: str, argument: Any) -> bool:
        """Follow an instruction for the stack or the memo. Returns whether it was one."""
        match name:
            case "PROTO" | "FRAME" | "STOP" | "READONLY_BUFFER":
                pass
            case "MARK":
                self.stack.append(Reader)
            case "POP":
                self.stack.pop()
            case "POP_MARK":
                self.since_mark()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case _:
                return False
        return True

    def collect(self, name: str) -> bool:
        """Follow an instruction that fills a container. Returns whether it was one."""
        match name:
            case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_SET" | "EMPTY_DICT":
                self.stack.append(Node(name[6:], []))
            case "LIST" | "TUPLE" | "FROZENSET":
                self.stack.append(Node(name, self.since_mark()))
            case "DICT":
                self.stack.append(Node(name, [], pairs(self.since_mark())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                parts = [self.stack.pop() for _ in range(int(name[-1]))]
                self.stack.append(Node("TUPLE", parts[::-1]))
            case "APPEND":
                part = self.stack.pop()
                self.stack[-1].parts.append(part)
            case "APPENDS" | "ADDITEMS":
                parts = self.since_mark()
                self.stack[-1].parts.extend(parts)
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self.stack[-1].pairs.append((key, value))
            case "SETITEMS":
                parts = self.since_mark()
                self.stack[-1].pairs.extend(pairs(parts))
            case _:
                return False
        return True

    def call(self, name: str) -> bool:
        """Follow an instruction that would call something. Returns whether it was one."""
        match name:
            case "REDUCE" | "NEWOBJ":
                given, called = self.stack.pop(), self.stack.pop()
                self.stack.append(made(called, given.parts))
            case "NEWOBJ_EX":
                named, given, called = self.stack.pop(), self.stack.pop(), self.stack.pop()
                self.stack.append(made(called, [*given.parts, named]))
            case "OBJ":
                called, *parts = self.since_mark()
                self.stack.append(made(called, parts))
            case "BUILD":
                state = self.stack.pop()
                self.stack[-1].state = state
            case "STACK_GLOBAL":
                attribute, module = self.stack.pop(), self.stack.pop()
                self.stack.append(Node(f"{module}.{attribute}", []))
            case "BINPERSID":
                self.stack.append(Node("persistent id()", [self.stack.pop()]))
            case _:
                return False
        return True

    def push(self, name: str, argument: Any) -> None:
        """Push the value that an instruction contains."""
        match name:
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True}.get(name, False))
            case "GLOBAL":
                self.stack.append(Node(argument.replace(" ", "."), []))
            case "INST":
                called = Node(argument.replace(" ", "."), [])
                self.stack.append(made(called, self.since_mark()))
            case "PERSID" | "EXT1" | "EXT2" | "EXT4":
                kind = "persistent id()" if name == "PERSID" else "extension()"
                self.stack.append(Node(kind, [argument]))
            case "NEXT_BUFFER":
                self.stack.append(Node("buffer()", []))
            case _:
                self.stack.append(argument)  # text, a number, or bytes


def pairs(parts: list[Any]) -> list[Any]:
    """Return alternating keys and values as pairs."""
    return list(zip(parts[::2], parts[1::2], strict=True))


def made(called: Any, parts: list[Any]) -> Any:
    """Return a description of the object that a call would create."""
    name = called.kind
    if name == "_codecs.encode" and parts[1:] == ["latin1"]:  # bytes, in old pickles
        return parts[0].encode("latin1")
    if name in ("copyreg._reconstructor", "copy_reg._reconstructor"):
        called, *parts = parts[0], *parts[2:]
        parts = [part for part in parts if part is not None]
    return Node(f"{called.kind}()", parts)


BRACKETS = {"LIST": "[]", "TUPLE": "()", "SET": ("set([", "])"), "DICT": "{}"}
BRACKETS |= {"FROZENSET": ("frozenset([", "])")}


def write(value: Any, above: tuple[Any, ...]) -> Iterator[str]:
    """Yield the text of a value piece by piece, because all of it may not fit into memory."""
    if not isinstance(value, Node):
        large = type(value) is int and value.bit_length() > 10_000
        yield hex(value) if large else repr(value)
    elif value in above or len(above) > DEPTH:
        yield "..."
    elif value.kind in BRACKETS:
        opening, closing = BRACKETS[value.kind]
        yield opening
        yield from write_parts(value, (*above, value))
        yield f",{closing}" if value.kind == "TUPLE" and len(value.parts) == 1 else closing
    elif not value.kind.endswith("()"):
        yield plain(value.kind)
    elif (moment := date_text(value)) is not None:
        yield moment
    else:
        yield plain(value.kind[:-1])
        yield from write_parts(value, (*above, value))
        yield ")"


def write_parts(value: Node, above: tuple[Any, ...]) -> Iterator[str]:
    """Yield the parts of a container, or of an object: its arguments, items and attributes."""
    comma = ""
    for part in value.parts:
        yield comma
        yield from write(part, above)
        comma = ", "
    for key, part in value.pairs:
        yield comma
        yield from write(key, above)
        yield ": "
        yield from write(part, above)
        comma = ", "
    state = value.state
    if isinstance(state, Node) and state.kind == "DICT" and state not in above:
        for name, part in state.pairs:
            yield comma
            if isinstance(name, str):
                yield plain(name)
            else:
                yield from write(name, above)
            yield "="
            yield from write(part, (*above, state))
            comma = ", "
    elif state is not None:
        yield f"{comma}state="
        yield from write(state, above)


def plain(name: str) -> str:
    """Return a name from a pickle without control characters, which could forge a line."""
    return name if name.isprintable() else ascii(name)[1:-1]


def date_text(value: Node) -> str | None:
    """Return a date or time as a call, such as "datetime.date(2024, 1, 2)", or None."""
    data = value.parts[0] if value.parts else None
    kind = value.kind[:-2]
    sizes = {"datetime.datetime": 10, "datetime.date": 4, "datetime.time": 6}
    if not isinstance(data, bytes) or len(data) != sizes.get(kind):
        return None
    numbers, fold = [], 0
    if kind != "datetime.time":
        numbers = [data[0] * 256 + data[1], *data[2:4]]
    if kind != "datetime.date":
        numbers += [*data[-6:-3], int.from_bytes(data[-3:], "big")]
        first = 0 if kind == "datetime.time" else 1  # the hour, or the month
        fold, numbers[first] = divmod(numbers[first], 128)
    parts = [*map(str, numbers), *("".join(write(part, ())) for part in value.parts[1:2])]
    return f"{kind}({', '.join(parts + ['fold=1'] * fold)})"
