"""Copies namespaces from another storage as bytes, and compares them afterwards."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from errbot.storage import StoreException

from {{ cookiecutter.__package }} import storages, values

THREADS = 8
ROWS = 400
BYTES = 8_000_000
"""At most this many values, and about this many bytes, are copied at once."""

GIVE_UP = 5
"""After this many failures in a row, a move stops: the storage may be locked or full."""

POOL = ThreadPoolExecutor(THREADS)

Row = tuple[str, bytes]
Watch = Callable[[str, Iterable[Any], int], Any]
"""Returns a context manager that passes on the keys and shows progress."""


@dataclass
class Result:
    """The result for one namespace."""

    namespace: str
    keys: int = 0
    bytes: int = 0
    equal: int = 0
    conflicts: list[str] = field(default_factory=list)
    """Keys that have other values here."""
    problems: list[tuple[str | None, str]] = field(default_factory=list)
    """What went wrong, by key. None is the whole namespace."""

    @property
    def is_good(self) -> bool:
        """Whether the namespace has exactly the same values here."""
        return self.equal == self.keys and not self.problems and not self.conflicts

    def to_json(self, compared: bool) -> dict[str, Any]:
        """Return the result for JSON output, and whether it is good if values were compared."""
        problems = [{"key": key, "why": why} for key, why in self.problems]
        good = {"good": self.is_good} if compared else {}
        return {**asdict(self), "problems": problems, **good}


def find_conflicts(source: Any, target: Any, namespace: str) -> Result:
    """Find keys that a copy would replace, because they have other values here."""
    result = Result(namespace)
    try:
        with source.open(namespace) as old, closing(target.open(namespace)) as new:
            result.keys = old.len()
            items = values.items(new)
            result.conflicts = [key for key, data in items if not is_equal(old, new, key, data)]
    except storages.Unreadable as error:
        result.problems.append((None, str(error)))
    return result


def try_out(source: Any, target: Any, result: Result, watch: Watch) -> None:
    """Read everything that would be copied, and count the values that are already here."""
    namespace = result.namespace
    with source.open(namespace) as old, closing(target.open(namespace)) as new:
        is_empty = new.len() == 0
        with watch(f"Reading {namespace}", old.keys(), old.len()) as keys:
            for portion in portions(old, keys, result):
                rows = only_whole(portion, result)
                result.bytes += sum(len(pickled) for _, pickled in rows)
                result.equal += 0 if is_empty else len(rows) - len(unequal(new, rows))


def is_equal(old: Any, new: Any, key: str, data: bytes) -> bool:
    """Return whether the other storage has the same value under a key as this data."""
    try:
        return holds(new, (key, old.read(key)), data)
    except (KeyError, storages.Unreadable):
        return False


def copy(source: Any, target: Any, namespace: str, replace: bool, watch: Watch) -> Result:
    """Copy a namespace from another storage to this one, and compare them.

    Equal values are not written again, so an interrupted copy can be completed.
    """
    result = Result(namespace)
    try:
        with source.open(namespace) as old, closing(target.open(namespace)) as new:
            with watch(f"Copying {namespace}", old.keys(), old.len()) as keys:
                write_all(old, new, keys, result)
            if replace:
                remove_others(old, new)
            if not all_equal(old, new, result, watch):
                with watch(f"Comparing {namespace}", old.keys(), old.len()) as keys:
                    compare_all(old, new, keys, result)
    except storages.Unreadable as error:
        result.problems.append((None, str(error)))
    return result


def portions(old: Any, keys: Iterable[str], result: Result) -> Iterator[list[Row]]:
    """Yield the rows to copy, a bounded number of bytes at a time. Record each bad one once."""
    rows, size = list[Row](), 0
    bad = {key for key, _ in result.problems}
    for key in keys:
        if key in bad:
            continue
        try:
            rows.append((key, pickled := old.read(key)))
            size += len(pickled)
        except KeyError:  # removed meanwhile
            continue
        except (storages.Unreadable, StoreException) as error:
            old.len()  # If the storage cannot be reached, this raises and so stops the move.
            result.problems.append((key, str(error)))
        if len(rows) == ROWS or size >= BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def only_whole(rows: list[Row], result: Result) -> list[Row]:
    """Return the rows that are intact pickles, and record the others as bad."""
    whole = [row for row in rows if values.is_whole(row[1])]
    bad = {key for key, _ in rows}.difference(key for key, _ in whole)
    result.problems += [(key, values.BROKEN) for key in sorted(bad)]
    return whole


def write_all(old: Any, new: Any, keys: Iterable[str], result: Result) -> None:
    """Write what is missing here: one portion while the next one is being read."""
    is_empty = new.len() == 0
    with ThreadPoolExecutor(1) as background:
        written: Future[None] | None = None
        for portion in portions(old, keys, result):
            rows = only_whole(portion, result)
            if written:
                written.result()
            written = background.submit(write_rows, new, rows, is_empty, result)
        if written:
            written.result()


def write_rows(new: Any, rows: list[Row], is_empty: bool, result: Result) -> None:
    """Write those of some rows that are missing here."""
    missing = rows if is_empty else unequal(new, rows)
    if missing and not write_many(new, missing):
        in_threads(new, write_one, missing, result)


def write_many(new: Any, rows: list[Row]) -> bool:
    """Write many values at once, if the storage can. Returns whether it did."""
    if not values.IN_BULK:
        return False
    try:
        values.write_many(new, {key: values.sign(new, key, pickled) for key, pickled in rows})
    except (ValueError, StoreException):  # Writing them one by one shows which one is bad.
        return False
    return True


def write_one(new: Any, row: Row) -> None:
    """Write one value."""
    key, pickled = row
    new.write(key, values.sign(new, key, pickled))


def remove_others(old: Any, new: Any) -> None:
    """Remove the keys that the other storage does not have."""
    for key in new.keys():
        try:
            old.read(key)
        except KeyError:
            new.remove(key)
        except storages.Unreadable:
            pass  # The value here may be the only one left.


def all_equal(old: Any, new: Any, result: Result, watch: Watch) -> bool:
    """Return whether all values are equal, by reading many of this storage's at once.

    This is faster, if the storage can do it. If a value differs, `compare_all` finds out which.
    """
    if result.problems or not values.IN_BULK:
        return False
    count = size = 0
    with watch(f"Comparing {result.namespace}", values.items(new), new.len()) as items:
        for key, data in items:
            try:
                pickled = old.read(key)
            except (KeyError, storages.Unreadable):
                return False
            if not holds(new, (key, pickled), data):
                return False
            count += 1
            size += len(pickled)
    result.keys, result.equal, result.bytes = old.len(), count, size
    return count == result.keys


def compare_all(old: Any, new: Any, keys: Iterable[str], result: Result) -> None:
    """Read everything again from both storages, and count the values that are equal."""
    result.equal = result.bytes = 0
    for rows in portions(old, keys, result):
        different = [key for key, _ in unequal(new, rows)]
        result.problems += [(key, "not equal") for key in different]
        result.equal += len(rows) - len(different)
        result.bytes += sum(len(pickled) for _, pickled in rows)
    result.keys = result.equal + len(result.problems)
    if new.len() > result.equal:
        known = set(old.keys())
        if more := sum(key not in known for key in new.keys()):
            why = f"keys here that the other storage does not have: {more}"
            result.problems.append((None, why))


def unequal(new: Any, rows: list[Row]) -> list[Row]:
    """Return the rows that this storage does not have, with a signature that a bot accepts."""
    failed = Result("")
    in_threads(new, check_one, rows, failed)
    keys = {key for key, _ in failed.problems}
    return [row for row in rows if row[0] in keys]


def check_one(new: Any, row: Row) -> None:
    """Raise KeyError or ValueError if this storage does not have a row."""
    if not holds(new, row, new.read(row[0])):
        raise ValueError("not equal")


def holds(new: Any, row: Row, data: bytes) -> bool:
    """Return whether this storage's data are a row's value with a signature that a bot accepts."""
    key, pickled = row
    if data == values.sign(new, key, pickled):
        return True
    return data.rpartition(b".")[0] == pickled and values.signed_by(new, key, data) > 0


def in_threads(new: Any, task: Callable[[Any, Row], None], rows: list[Row], result: Result) -> None:
    """Do a task for each row, in several threads. Record what fails."""
    shares = [rows[first::THREADS] for first in range(min(THREADS, len(rows)))]
    failed = [bad for share in POOL.map(partial(do, new, task), shares) for bad in share]
    if any(isinstance(error, StoreException) for _, error in failed):
        new.len()  # If the storage cannot be reached, this raises and so stops the move.
    result.problems += [(key, str(error)) for key, error in failed]


def do(new: Any, task: Callable[[Any, Row], None], rows: list[Row]) -> list[tuple[str, Exception]]:
    """Do a task for some rows, and return what failed. Raises StoreException to stop the move."""
    failed: list[tuple[str, Exception]] = []
    in_a_row = 0
    for row in rows:
        try:
            task(new, row)
            in_a_row = 0
        except (KeyError, ValueError, StoreException) as error:
            failed.append((row[0], error))
            in_a_row = in_a_row + 1 if isinstance(error, StoreException) else 0
            if in_a_row == GIVE_UP:
                raise
    return failed
