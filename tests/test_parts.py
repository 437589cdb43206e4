"""Large values in parts (templates/shared/parts.py), on a hostile database and on etcd."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from conftest import TEMPLATE
from errbot.storage import StoreException
from servers.etcd import Etcd
from test_etcd import load

PART = 10
SMALL, OTHER_SMALL = b"small", b"other"
LARGE, OTHER_LARGE = b"a large one, in parts" * 2, b"ANOTHER LARGE ONE, MIXED WITH NONE" * 2
VALUES = [SMALL, OTHER_SMALL, LARGE, OTHER_LARGE]


class Killed(BaseException):
    """The process ends here."""


class Dict:
    """A database over a dict. Each operation is atomic."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], bytes] = {}
        self.lock = threading.Lock()

    def get(self, place: str, name: str) -> bytes | None:
        with self.lock:
            return self.rows.get((place, name))

    def put(self, place: str, name: str, data: bytes) -> None:
        self.switch(place, name, data, None)

    def switch(self, place: str, name: str, new: bytes | None, old: bytes | None) -> bytes | None:
        with self.lock:
            found = self.rows.get((place, name))
            if old in (None, found):
                self.rows.pop((place, name), None)
                if new is not None:
                    self.rows[place, name] = new
            return found

    def delete(self, place: str, beginning: str) -> None:
        with self.lock:
            for row in list(self.rows):
                if row[0] == place and row[1].startswith(beginning):
                    del self.rows[row]

    def names(self, place: str, start: str, limit: int) -> list[str]:
        with self.lock:
            names = sorted(name for where, name in self.rows if where == place and name >= start)
            return names[:limit]

    def count(self, place: str) -> int:
        with self.lock:
            return sum(row[0] == place for row in self.rows)


class Hostile:
    """Wraps a database. It refuses large requests, and lets something happen at a certain step.

    Each call to the database has two steps: the moments before it and after it.
    """

    def __init__(self, database: Any) -> None:
        self.database = database
        self.steps = 0
        self.at = -1
        self.happens: Callable[[], object] = lambda: None

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self.call, getattr(self.database, method))

    def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        sent = sum(len(argument) for argument in arguments if isinstance(argument, bytes))
        assert sent <= 2 * (PART + 60), f"A request with {sent} bytes is too large."
        self.step()
        answer = method(*arguments)
        self.step()
        return answer

    def step(self) -> None:
        if self.steps == self.at:
            self.at = -1  # only once
            self.happens()
        self.steps += 1


def compile_store() -> Any:
    """Compile the code in parts.py to a class."""
    fragment = (TEMPLATE / "templates/shared/parts.py").read_text(encoding="utf-8")
    source = f"""
from collections.abc import Iterator
from time import time
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from errbot.storage import StoreException

SecretStr = str


class Store:
{fragment}"""
    names: dict[str, Any] = {}
    exec(compile(source, "parts.py", "exec"), names)
    store: Any = names["Store"]
    store.PART = PART
    return store


Store = compile_store()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    server = Etcd(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.stop()


NewDatabase = Callable[[], Any]
ETCD_IS_SLOW = pytest.mark.parametrize(
    "new_database", ["dict", pytest.param("etcd", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(params=["dict", "etcd"])
def new_database(request: pytest.FixtureRequest) -> NewDatabase:
    """Creates an empty database: a dict, or the plugin of examples/etcd with a server."""
    if request.param == "dict":
        return Dict
    server = request.getfixturevalue("etcd")
    return lambda: load(host=server.host, port=server.port, prefix=f"{uuid4()}/")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Advances the clock of all stores by some seconds."""
    module, offset = Store.write.__globals__, [0.0]
    now = module["time"]
    monkeypatch.setitem(module, "time", lambda: now() + offset[0])

    def later(seconds: float) -> None:
        offset[0] += seconds

    return later


def open_store(database: Any, namespace: str = "a/b") -> Any:
    return Store(database, namespace, [])


def seen(store: Any) -> bytes | None:
    """Return the key's value, or None."""
    value: bytes | None = None
    with suppress(KeyError):
        value = store.read("key")
    assert store.len() == len(list(store.keys())) == (value is not None)
    return value


def ids(store: Any) -> set[str]:
    """Return the ids of all stored parts."""
    return {name.split("/")[0] for name in store._names(store._parts)}


def check_no_orphans(store: Any) -> None:
    """Fail if there are parts that do not belong to the stored value."""
    head = store._database.get(store._heads, "key") or b"="
    named = set() if head.startswith(b"=") else {head.decode().split()[0]}
    assert ids(store) == named


Operation = tuple[str, tuple[bytes, ...]]
OPERATIONS: list[tuple[bytes | None, Operation, bytes | None]] = [
    (None, ("write", (LARGE,)), LARGE),
    (SMALL, ("write", (OTHER_SMALL,)), OTHER_SMALL),
    (SMALL, ("write", (LARGE,)), LARGE),
    (LARGE, ("write", (OTHER_LARGE,)), OTHER_LARGE),
    (LARGE, ("write", (SMALL,)), SMALL),
    (LARGE, ("remove", ()), None),
    (SMALL, ("swap", (SMALL, LARGE)), LARGE),
    (LARGE, ("swap", (LARGE, OTHER_LARGE)), OTHER_LARGE),
    (LARGE, ("swap", (LARGE, SMALL)), SMALL),
    (LARGE, ("swap", (OTHER_LARGE, SMALL)), LARGE),
]
"""The value before, an operation, and the value afterwards."""


def with_value(database: Any, value: bytes | None) -> Any:
    """Return a store with a value, or an empty one."""
    store = open_store(database)
    if value is not None:
        store.write("key", value)
    return store


def steps_of(new_database: NewDatabase, before: bytes | None, operation: Operation) -> int:
    """Return the number of steps of an undisturbed operation."""
    hostile = Hostile(with_value(new_database(), before)._database)
    getattr(open_store(hostile), operation[0])("key", *operation[1])
    return hostile.steps


@ETCD_IS_SLOW
@pytest.mark.parametrize(("before", "operation", "after"), OPERATIONS)
def test_an_operation_that_is_killed_leaves_the_old_or_the_new_value(
    new_database: NewDatabase,
    later: Callable[[float], None],
    before: bytes | None,
    operation: Operation,
    after: bytes | None,
) -> None:
    orphans = 0
    for at in range(steps_of(new_database, before, operation)):
        store = with_value(new_database(), before)
        hostile = Hostile(store._database)

        def die() -> None:
            raise Killed

        hostile.at, hostile.happens = at, die
        with pytest.raises(Killed):
            getattr(open_store(hostile), operation[0])("key", *operation[1])
        found = seen(store)
        assert found in (before, after), f"Killed at step {at}."
        there = ids(store)
        orphans += len(there)
        store.collect()
        assert ids(store) == there, "`collect` deletes parts that another bot is writing."
        later(3_700)
        store.collect()
        check_no_orphans(store)
        assert seen(store) == found, "`collect` changed the value."
    assert LARGE not in (before, after) or orphans, "No parts were left, so this tests nothing."


@pytest.mark.parametrize(("before", "operation", "after"), OPERATIONS)
def test_a_reader_gets_an_intact_value_during_other_operations(
    new_database: NewDatabase, before: bytes | None, operation: Operation, after: bytes | None
) -> None:
    if before is None:
        return
    for at in range(steps_of(new_database, before, ("read", ()))):
        store = with_value(new_database(), before)
        hostile = Hostile(store._database)
        hostile.at = at
        hostile.happens = partial(getattr(store, operation[0]), "key", *operation[1])
        try:
            assert open_store(hostile).read("key") in (before, after), f"Changed at step {at}."
        except KeyError:
            assert after is None, "A value was missing while it was replaced."
        assert hostile.at == -1


@ETCD_IS_SLOW
@pytest.mark.parametrize("first", [SMALL, LARGE])
@pytest.mark.parametrize("second", [OTHER_SMALL, OTHER_LARGE, None])
@pytest.mark.parametrize("before", [None, b"before", b"before, in parts"])
def test_two_writers_leave_the_value_of_one_and_no_orphans(
    new_database: NewDatabase, before: bytes | None, first: bytes, second: bytes | None
) -> None:
    for at in range(steps_of(new_database, before, ("write", (first,)))):
        store = with_value(new_database(), before)
        hostile = Hostile(store._database)

        def meanwhile(store: Any = store) -> None:
            with suppress(KeyError):
                store.remove("key") if second is None else store.write("key", second)

        hostile.at, hostile.happens = at, meanwhile
        open_store(hostile).write("key", first)
        assert seen(store) in (first, second)
        check_no_orphans(store)


@ETCD_IS_SLOW
@pytest.mark.parametrize("old", [SMALL, LARGE])
@pytest.mark.parametrize("new", [OTHER_SMALL, OTHER_LARGE])
@pytest.mark.parametrize("meanwhile", [b"meanwhile", b"stored meanwhile, in parts"])
def test_a_swap_never_overwrites_a_value_that_was_stored_meanwhile(
    new_database: NewDatabase, old: bytes, new: bytes, meanwhile: bytes
) -> None:
    for at in range(steps_of(new_database, old, ("swap", (old, new)))):
        store = with_value(new_database(), old)
        hostile = Hostile(store._database)
        hostile.at, hostile.happens = at, partial(store.write, "key", meanwhile)
        open_store(hostile).swap("key", old, new)
        assert seen(store) == meanwhile, f"Lost at step {at}."
        check_no_orphans(store)


def test_collecting_at_any_moment_does_not_disturb_a_writer(new_database: NewDatabase) -> None:
    for at in range(steps_of(new_database, LARGE, ("write", (OTHER_LARGE,)))):
        store = with_value(new_database(), LARGE)
        hostile = Hostile(store._database)
        hostile.at, hostile.happens = at, open_store(store._database).collect
        open_store(hostile).write("key", OTHER_LARGE)
        assert seen(store) == OTHER_LARGE
        check_no_orphans(store)


def test_a_writer_that_is_too_slow_gives_up(
    new_database: NewDatabase, later: Callable[[float], None]
) -> None:
    store = with_value(new_database(), LARGE)
    hostile = Hostile(store._database)
    slow = open_store(hostile)
    hostile.at, hostile.happens = hostile.steps + 3, partial(later, 1_900)
    with pytest.raises(StoreException, match="key 'key' took too long"):
        slow.write("key", OTHER_LARGE)
    assert seen(store) == LARGE


@pytest.mark.parametrize("key", ["", "key", "a/b", "é😀", "\ud800", "x" * 300], ids=ascii)
def test_a_stored_value_is_never_collected(
    new_database: NewDatabase, later: Callable[[float], None], key: str
) -> None:
    database = new_database()
    store = open_store(database)
    store.write(key, LARGE)
    later(1_000_000)
    for namespace in ["a/b", "a", "", "a/b/c"]:
        open_store(database, namespace).collect()
    assert store.read(key) == LARGE
    assert list(store.keys()) == [key]


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1, 205])
def test_a_value_of_any_size_comes_back(new_database: NewDatabase, size: int) -> None:
    store = open_store(Hostile(new_database()))
    data = bytes(range(256))[:size]
    store.write("key", data)
    assert seen(store) == data
    assert store.swap("key", data, b"new") is True
    assert ids(store) == set()


def test_a_missing_part_is_not_a_missing_key(new_database: NewDatabase) -> None:
    store = with_value(new_database(), LARGE)
    [id] = ids(store)
    store._database.switch(store._parts, f"{id}/1", None, None)
    with pytest.raises(StoreException, match="key 'key'"):
        store.read("key")
    assert store.swap("key", LARGE, SMALL) is False
    store.write("key", SMALL)
    assert seen(store) == SMALL
    check_no_orphans(store)


def test_threads_that_write_read_and_remove_mix_up_no_values(new_database: NewDatabase) -> None:
    database = new_database()
    store = with_value(database, LARGE)

    def work(number: int) -> None:
        own = open_store(database)
        for turn in range(15):
            value = bytes([number]) * (number * turn)
            if number % 3 == 0:
                with suppress(KeyError):
                    own.remove("key")
            own.write("key", value)
            with suppress(KeyError):
                got = own.read("key")
                assert got in VALUES or len(set(got)) < 2, "Two values are mixed up."
            with suppress(KeyError):
                own.swap("key", value, value + value)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    seen(store)
    check_no_orphans(store)


def test_the_example_contains_the_code_unchanged() -> None:
    piece = (TEMPLATE / "templates/shared/parts.py").read_text(encoding="utf-8")
    storage = TEMPLATE / "examples/etcd/src/errbot_storage_etcd/storage.py"
    assert piece in storage.read_text(encoding="utf-8")
