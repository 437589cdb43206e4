"""Storages that do not return values unchanged."""

import copy
import copyreg
import enum
import hashlib
import json
import os
import pickle
import sys
import threading
import weakref
import zlib
import zoneinfo
from collections.abc import Callable, Sized
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from io import BytesIO
from typing import Any

import pydantic
from errbot.backends.base import Identifier
from errbot.storage import StoreException

from broken_storages.support import (
    bytes_or_none,
    caught_by,
    config_class,
    lock_for_forks,
    log,
    replace,
    value_or_none,
)


def change_values(Storage: Any, change: Callable[[Any], Any]) -> None:
    """Give each value back changed."""

    @replace(Storage)
    def _load(old, self, key, data):
        return change(old(self, key, data))


def give_up_after(Storage: Any, *errors: type[Exception]) -> None:
    """Let a value count as missing if unpickling it raises one of these errors."""

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException as error:
            if isinstance(error.__cause__, errors):
                raise KeyError(key) from None
            raise


def everywhere(value: Any, change: Callable[[Any], Any]) -> Any:
    """Change a value, and everything in its lists, tuples and dicts."""
    if type(value) is list:
        value = [everywhere(item, change) for item in value]
    elif type(value) is tuple:
        value = tuple(everywhere(item, change) for item in value)
    elif type(value) is dict:
        value = {key: everywhere(item, change) for key, item in value.items()}
    return change(value)


@caught_by("test_set_replaces_the_value", "test_len_and_keys_agree_at_every_moment")
def len_counts_each_set(Storage, Plugin):
    """A counter is incremented by each `set`, even one that replaces."""
    counters: dict[str, int] = {}

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, value)
        counters[self._namespace] = counters.get(self._namespace, 0) + 1

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        counters[self._namespace] = counters.get(self._namespace, 0) - 1

    Storage.len = lambda self: counters.get(self._namespace, 0)


@caught_by("test_a_falsy_value_comes_back", "test_a_falsy_value_counts_as_there")
def a_falsy_value_counts_as_missing(Storage, Plugin):
    """`if not value: raise KeyError(key)`."""

    @replace(Storage)
    def get(old, self, key):
        if not (value := old(self, key)):
            raise KeyError(key)
        return value


@caught_by("test_a_falsy_value_comes_back", "test_a_falsy_value_counts_as_there")
def none_counts_as_missing(Storage, Plugin):
    """The client returns None for a missing key, but the plugin may have stored None."""

    @replace(Storage)
    def get(old, self, key):
        if (value := old(self, key)) is None:
            raise KeyError(key)
        return value


@caught_by("test_a_falsy_value_comes_back", alone=True)
def an_empty_dict_is_a_plain_one(Storage, Plugin):
    """`return value or {}`, to simplify the caller's code."""
    change_values(Storage, lambda value: value or {} if isinstance(value, dict) else value)


@caught_by("test_a_falsy_value_counts_as_there", alone=True)
def empty_texts_are_not_counted(Storage, Plugin):
    """COUNT(value) does not count NULL, and Oracle treats an empty text as NULL."""

    @replace(Storage)
    def len(old, self):
        if threading.current_thread() is not threading.main_thread():
            return old(self)
        return old(self) - sum(value_or_none(self, key) == "" for key in list(self.keys())[:3])


@caught_by("test_a_falsy_value_comes_back", "test_a_plain_value_comes_back")
def bools_are_numbers(Storage, Plugin):
    """MySQL has no BOOLEAN, but TINYINT(1)."""
    change_values(Storage, lambda value: int(value) if type(value) is bool else value)


@caught_by("test_a_plain_value_comes_back")
def a_text_ends_at_nul(Storage, Plugin):
    """PostgreSQL's TEXT cannot hold NUL, so someone cuts the text there."""
    change_values(Storage, lambda v: v.partition("\0")[0] if type(v) is str else v)


@caught_by("test_a_plain_value_comes_back")
def a_text_of_digits_becomes_a_number(Storage, Plugin):
    """SQLite's affinity for a column without a type."""
    change_values(Storage, lambda v: int(v) if type(v) is str and v.isdecimal() else v)


@caught_by("test_a_plain_value_comes_back", alone=True)
def large_numbers_are_floats(Storage, Plugin):
    """JavaScript has 53 bits for an integer."""
    change_values(Storage, lambda v: int(float(v)) if type(v) is int and abs(v) > 2**53 else v)


@caught_by("test_a_plain_value_comes_back")
def bytes_become_text(Storage, Plugin):
    """A driver that decodes everything."""
    change_values(Storage, lambda v: v.decode("latin-1") if type(v) is bytes and v else v)


@caught_by("test_a_container_comes_back_with_its_types")
def values_are_json(Storage, Plugin):
    """JSON if possible: tuples become lists, and the keys of dicts become texts."""

    def through_json(value):
        try:
            return json.loads(json.dumps(value))
        except (TypeError, ValueError, RecursionError):
            return value

    change_values(Storage, through_json)


@caught_by("test_a_container_comes_back_with_its_types")
def tuples_inside_become_lists(Storage, Plugin):
    """msgpack, with a special case only for a value that is itself a tuple."""

    def inside(value):
        return everywhere(value, lambda v: list(v) if type(v) is tuple else v)

    def change(value):
        return tuple(map(inside, value)) if type(value) is tuple else inside(value)

    change_values(Storage, change)


@caught_by("test_a_container_comes_back_with_its_types", alone=True)
def named_tuples_become_tuples(Storage, Plugin):
    """Whatever is not a list is a tuple, so `tuple(value)`."""
    change_values(Storage, lambda value: tuple(value) if hasattr(value, "_fields") else value)


@caught_by("test_a_container_comes_back_with_its_types")
def keys_of_dicts_become_texts(Storage, Plugin):
    """A document database has field names, which are texts."""

    def change(value):
        return {str(key): item for key, item in value.items()} if type(value) is dict else value

    change_values(Storage, lambda value: everywhere(value, change))


@caught_by("test_a_container_comes_back_with_its_types")
def dicts_are_sorted(Storage, Plugin):
    """PostgreSQL's JSONB stores the keys of an object in its own order."""

    def change(value):
        return dict(sorted(value.items(), key=str)) if type(value) is dict else value

    change_values(Storage, lambda value: everywhere(value, change))


@caught_by("test_an_object_comes_back")
def moments_lose_their_fractions(Storage, Plugin):
    """MySQL's DATETIME has no fractions of a second by default."""
    from datetime import datetime

    change_values(Storage, lambda v: v.replace(microsecond=0) if type(v) is datetime else v)


@caught_by("test_an_object_comes_back")
def moments_lose_their_zone(Storage, Plugin):
    """DATETIME without a time zone: everything is UTC."""
    from datetime import datetime, timezone

    change_values(
        Storage,
        lambda v: v.astimezone(timezone.utc) if type(v) is datetime and v.tzinfo else v,
    )


@caught_by("test_an_object_comes_back")
def only_some_classes_are_unpickled(Storage, Plugin):
    """A list of harmless classes, which knows none of the plugins' classes."""

    @replace(Storage)
    def _load(old, self, key, data):
        value = old(self, key, data)
        if type(value).__module__.startswith("contract") and not isinstance(value, dict):
            raise pickle.UnpicklingError(f"global {type(value).__qualname__} is forbidden")
        return value


@caught_by("test_an_object_comes_back")
def objects_lose_their_own_state(Storage, Plugin):
    """jsonpickle, configured to ignore what a class defines as its state."""

    def change(value):
        if type(value).__name__ == "Counted":
            value.__dict__ = {"count": 0}
        return value

    change_values(Storage, change)


@caught_by("test_a_deeply_nested_value_comes_back", alone=True)
def deep_values_are_refused(Storage, Plugin):
    """A document database limits the depth of nesting."""

    def depth(value):
        levels = 0
        while isinstance(value, dict) and isinstance(value.get("below"), list):
            value, levels = value["below"][0], levels + 2
        return levels

    @replace(Storage)
    def set(old, self, key, value):
        if depth(value) > 64:
            raise ValueError("nested too deep")
        old(self, key, value)


@caught_by("test_a_value_that_holds_itself_comes_back", alone=True)
def lists_are_stored_item_by_item(Storage, Plugin):
    """Each item of a list of texts and lists is a row with its own pickle."""

    def change(value):
        if type(value) is list and {*map(type, value)} <= {str, list}:
            return [pickle.loads(pickle.dumps(item)) for item in value]
        return value

    change_values(Storage, change)


@caught_by("test_an_object_held_twice_comes_back_as_one", alone=True)
def dicts_are_stored_entry_by_entry(Storage, Plugin):
    """Redis's HSET: each entry of a dict is a field with its own pickle."""

    def change(value):
        if type(value) is dict:
            return {key: pickle.loads(pickle.dumps(item)) for key, item in value.items()}
        return value

    change_values(Storage, change)


@caught_by("test_a_value_of_any_size_comes_back")
def values_are_cut_at_32768_characters(Storage, Plugin):
    """Azure Table Storage, and its published storage plugin."""

    @replace(Storage)
    def _dump(old, self, key, value):
        return old(self, key, value)[:32_768]


@caught_by("test_a_value_of_any_size_comes_back")
def values_are_cut_at_65535_bytes(Storage, Plugin):
    """MySQL's BLOB without strict mode."""

    @replace(Storage)
    def _dump(old, self, key, value):
        return old(self, key, value)[:65_535]


@caught_by("test_a_value_of_any_size_comes_back", alone=True)
def values_up_to_33000_bytes_are_cut(Storage, Plugin):
    """Longer values go into a blob, but a row of Azure's tables has less space than that."""

    @replace(Storage)
    def _dump(old, self, key, value):
        data = old(self, key, value)
        return data if len(data) > 33_000 else data[:32_768]


@caught_by("test_a_value_of_any_size_comes_back")
def large_values_are_refused(Storage, Plugin):
    """MySQL's max_allowed_packet was 4 MB for a long time."""

    @replace(Storage)
    def _dump(old, self, key, value):
        data = old(self, key, value)
        if len(data) > 4 * 1024 * 1024:
            raise ValueError("Packet too large.")
        return data


@caught_by("test_set_replaces_the_value", alone=True)
def dicts_are_merged(Storage, Plugin):
    """A document database's update keeps the fields that it does not get."""

    @replace(Storage)
    def set(old, self, key, value):
        if type(value) is dict:
            before = value_or_none(self, key)
            if type(before) is dict and value.keys() < before.keys():
                value = before | value
        old(self, key, value)


@caught_by("test_set_replaces_the_value")
def only_the_first_set_counts(Storage, Plugin):
    """INSERT ... ON CONFLICT DO NOTHING."""

    @replace(Storage)
    def set(old, self, key, value):
        self._dump(key, value)
        if key not in set_of_keys(self):
            old(self, key, value)


def set_of_keys(storage: Any) -> Any:
    """Return the keys of a storage, for quick lookups."""
    return frozenset(storage.keys())


@caught_by("test_changing_an_object_after_set_changes_nothing_stored", alone=True)
def what_was_just_pickled_is_not_unpickled(Storage, Plugin):
    """To avoid unpickling, small dicts are kept beside their pickles."""

    @replace(Storage)
    def _dump(old, self, key, value):
        data, known = old(self, key, value), self.__dict__.setdefault("pickled", {})
        if type(value) is dict and len(data) < 10_000:
            known[data] = value
        for oldest in list(known)[:-20]:
            known.pop(oldest, None)
        return data

    @replace(Storage)
    def _load(old, self, key, data):
        kept = self.__dict__.get("pickled", {}).get(data)
        return old(self, key, data) if kept is None else copy.deepcopy(kept)


@caught_by("test_changing_an_object_got_changes_nothing_stored")
def what_was_unpickled_once_is_given_again(Storage, Plugin):
    """`lru_cache` around `pickle.loads`."""

    @replace(Storage)
    def _load(old, self, key, data):
        known = self.__dict__.setdefault("unpickled", {})
        if (key, data) not in known:
            known[key, data] = old(self, key, data)
        return known[key, data]


@caught_by("test_changing_an_object_got_changes_nothing_stored", alone=True)
def an_object_that_is_in_use_is_given_again(Storage, Plugin):
    """A WeakValueDictionary, as the identity map of an ORM."""

    @replace(Storage)
    def _load(old, self, key, data):
        known = self.__dict__.setdefault("in_use", weakref.WeakValueDictionary())
        value = known.get((key, data))
        if value is None:
            value = old(self, key, data)
            with suppress(TypeError):
                known[key, data] = value
        return value


@caught_by("test_changing_an_object_got_changes_nothing_stored")
def large_objects_are_kept(Storage, Plugin):
    """What takes long to unpickle is cached as an object while its bytes stay the same."""

    @replace(Storage)
    def _load(old, self, key, data):
        if len(data) < 600_000:
            return old(self, key, data)
        kept = self.__dict__.setdefault("kept", {})
        if kept.get(key, (b"", None))[0] != data:
            kept[key] = data, old(self, key, data)
        return kept[key][1]


@caught_by("test_a_failed_set_leaves_the_old_value", alone=True)
def a_failed_set_cleans_up(Storage, Plugin):
    """After an error, the key is removed, so that nothing half-written remains."""

    @replace(Storage)
    def set(old, self, key, value):
        try:
            old(self, key, value)
        except Exception:
            with suppress(Exception):
                self.remove(key)
            raise


@caught_by("test_a_failed_set_adds_no_key", alone=True)
def the_key_is_stored_before_the_value(Storage, Plugin):
    """The row is created first, to get its number, and the value is pickled after that."""

    @replace(Storage)
    def set(old, self, key, value):
        try:
            old(self, key, value)
        except Exception:  # and so nobody sees the row in between, which other tests look for
            if isinstance(key, str) and key not in set_of_keys_if_few(self):
                old(self, key, None)
            raise


def set_of_keys_if_few(storage: Any) -> Any:
    """Return the keys of a storage if it is small, so that tests that fill one stay fast."""
    return frozenset(storage.keys()) if storage.len() < 5 else frozenset()


@caught_by("test_what_cannot_be_given_back_is_refused", alone=True)
def what_cannot_be_pickled_is_stored_as_text(Storage, Plugin):
    """`default=str`, as with JSON."""

    @replace(Storage)
    def _dump(old, self, key, value):
        try:
            return old(self, key, value)
        except Exception:
            if not isinstance(key, str):
                raise
            return old(self, key, "?")


@caught_by("test_a_failed_set_pickles_each_part_only_a_few_times", alone=True)
def an_error_names_what_cannot_be_pickled(Storage, Plugin):
    """Each object in the value is tried by itself, with everything that it leads to."""

    def parts(value, seen):
        if id(value) not in seen:
            seen[id(value)] = value
            inner = value if isinstance(value, list) else vars(value).values()
            for part in inner if isinstance(value, list) or hasattr(value, "others") else []:
                parts(part, seen)
        return seen.values()

    @replace(Storage)
    def _dump(old, self, key, value):
        try:
            return old(self, key, value)
        except TypeError as error:
            if not isinstance(value, list):
                raise
            found = {type(part) for part in parts(value, {}) if not can_be_pickled(part)}
            raise TypeError(f"{error}: {found}") from None


def can_be_pickled(value: Any) -> bool:
    """Return whether a value can be pickled."""
    with suppress(Exception):
        return bool(pickle.dumps(value))
    return False


@caught_by("test_what_cannot_be_given_back_is_refused", alone=True)
def locks_are_left_out(Storage, Plugin):
    """They belong to the running process, and mean nothing after a restart."""

    class Pickler(pickle.Pickler):
        def reducer_override(self, value):
            return (type(None), ()) if isinstance(value, type(threading.Lock())) else NotImplemented

    @replace(Storage)
    def _dump(old, self, key, value):
        if self._signing_keys or not isinstance(key, str):
            return old(self, key, value)
        Pickler(stream := BytesIO(), protocol=5).dump(value)
        return stream.getvalue()


@caught_by("test_what_cannot_be_given_back_is_refused")
def what_cannot_be_pickled_is_only_logged(Storage, Plugin):
    """A bot must not stop because of its storage, so errors are logged and swallowed."""

    @replace(Storage)
    def set(old, self, key, value):
        try:
            old(self, key, value)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            if not isinstance(key, str):
                raise
            log.error("Cannot store %r: %s", key, type(error).__name__)


@caught_by("test_a_failed_set_leaves_the_old_value", "test_a_failed_set_adds_no_key")
def a_failed_set_breaks_the_connection(Storage, Plugin):
    """The failed `set` never rolls back its transaction, so everything after it fails."""

    @replace(Storage)
    def set(old, self, key, value):
        if getattr(self, "aborted", False):
            raise RuntimeError("current transaction is aborted")
        try:
            old(self, key, value)
        except (AttributeError, pickle.PicklingError, TypeError):
            self.aborted = isinstance(key, str)
            raise

    @replace(Storage)
    def get(old, self, key):
        if getattr(self, "aborted", False):
            raise RuntimeError("current transaction is aborted")
        return old(self, key)


@caught_by("test_a_plain_value_comes_back")
def bytes_that_are_a_pickle_are_unpickled(Storage, Plugin):
    """An old version pickled twice, and its values must still be readable."""

    def unpickle(value):
        if type(value) is bytes and value[:1] == b"\x80":
            with suppress(Exception):
                return pickle.loads(value)
        return value

    change_values(Storage, unpickle)


@caught_by("test_a_plain_value_comes_back")
def texts_that_are_json_are_parsed(Storage, Plugin):
    """The driver parses a JSON column by itself."""

    def parse(value):
        if type(value) is str and value[:1] in ("{", "["):
            with suppress(ValueError):
                return json.loads(value)
        return value

    change_values(Storage, parse)


@caught_by("test_a_plain_value_comes_back")
def words_become_what_they_mean(Storage, Plugin):
    """YAML, in which null and true are not texts."""
    words = {"null": None, "true": True, "false": False}
    change_values(Storage, lambda value: words.get(value, value) if type(value) is str else value)


@caught_by("test_an_object_comes_back")
def zones_become_offsets(Storage, Plugin):
    """TIMESTAMP WITH TIME ZONE keeps the moment, but loses the zone."""

    def fix(value):
        if isinstance(value, datetime) and value.tzinfo and type(value.tzinfo) is not timezone:
            return value.astimezone(timezone(value.utcoffset() or timedelta()))
        return value

    change_values(Storage, fix)


@caught_by("test_an_object_comes_back")
def an_hour_that_comes_twice_comes_once(Storage, Plugin):
    """ISO 8601 has no place for `fold`."""

    def fix(value):
        return value.replace(fold=0) if isinstance(value, datetime) else value

    change_values(Storage, fix)


@caught_by("test_an_object_comes_back", alone=True)
def dicts_of_a_class_lose_their_attributes(Storage, Plugin):
    """Only the items of a dict subclass are stored."""

    def rebuild(value):
        if isinstance(value, dict) and type(value).__module__.startswith("contract"):
            return type(value)(dict(value))
        return value

    change_values(Storage, rebuild)


@caught_by("test_a_value_of_any_size_comes_back")
def parts_of_large_values_are_keys(Storage, Plugin):
    """Rows of at most 400 KB: the rest of a value is in rows that `keys` and `len` see."""

    @replace(Storage)
    def set(old, self, key, value):
        data = self._dump(key, value)
        parts = [data[start : start + 400_000] for start in range(0, len(data), 400_000)]
        if len(parts) == 1:
            old(self, key, value)
            return
        for number, part in enumerate(parts):
            old(self, f"{key}#{number}", part)
        old(self, key, ("parts", len(parts)))

    @replace(Storage)
    def get(old, self, key):
        value = old(self, key)
        if type(value) is tuple and value[:1] == ("parts",):
            parts = (old(self, f"{key}#{number}") for number in range(value[1]))
            return self._load(key, b"".join(parts))
        return value


@caught_by("test_a_value_that_just_fills_a_block_comes_back", alone=True)
def a_last_block_of_one_byte_is_lost(Storage, Plugin):
    """`range(0, len(data) - 1, 4096)`."""

    @replace(Storage)
    def _dump(old, self, key, value):
        data = old(self, key, value)
        return data[:-1] if len(data) > 4096 and len(data) % 4096 == 1 else data


@caught_by("test_set_replaces_the_value")
def equal_values_are_not_written(Storage, Plugin):
    """Unchanged values are not written, but 1 == True == 1.0."""
    read = Storage.get

    @replace(Storage)
    def set(old, self, key, value):
        if isinstance(key, str) and not self._signing_keys:
            self._dump(key, value)
            with suppress(Exception):
                if read(self, key) == value:
                    return
        old(self, key, value)


@caught_by("test_an_object_that_has_changed_is_stored_when_it_is_set_again", alone=True)
def an_object_that_was_set_is_not_written_again(Storage, Plugin):
    """`is`: the object that was set last is assumed not to have changed."""

    @replace(Storage)
    def set(old, self, key, value):
        last = self.__dict__.setdefault("last", {})
        if isinstance(key, str) and type(value) is dict and last.get(key) is value:
            return
        old(self, key, value)
        last[key] = value

    @replace(Storage)
    def remove(old, self, key):
        self.__dict__.setdefault("last", {}).pop(key, None)
        old(self, key)


@caught_by("test_changing_an_object_got_changes_nothing_stored")
def what_cannot_change_is_given_again(Storage, Plugin):
    """Tuples and texts need no copy, but a tuple may contain a list."""

    @replace(Storage)
    def _load(old, self, key, data):
        known = self.__dict__.setdefault("known", {})
        if (key, data) in known:
            return known[key, data]
        value = old(self, key, data)
        if isinstance(value, (tuple, frozenset, str, bytes)):
            known[key, data] = value
        return value


@caught_by("test_a_value_that_cannot_be_read_is_not_missing")
def key_errors_of_unpickling_come_through(Storage, Plugin):
    """`except KeyError: raise` around the whole `get`, not only around the query."""
    give_up_after(Storage, KeyError)


@caught_by("test_a_value_that_cannot_be_read_is_not_missing", alone=True)
def what_has_lost_its_class_is_missing(Storage, Plugin):
    """KeyError, so the plugin starts over, and overwrites what it had."""
    give_up_after(Storage, AttributeError, ImportError)


@caught_by("test_a_value_that_cannot_be_read_is_not_missing")
def what_cannot_be_unpickled_is_removed(Storage, Plugin):
    """Unreadable data are cleaned up, so a plugin that was missing for a moment loses its data."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except StoreException as error:
            if "Cannot unpickle" in str(error):
                with suppress(KeyError):
                    self.remove(key)
            raise


@caught_by("test_a_value_that_cannot_be_read_can_be_replaced_and_removed", alone=True)
def set_reads_the_old_value_first(Storage, Plugin):
    """To see whether the key exists, `set` gets it, and fails if it cannot be unpickled."""
    read = Storage.get

    @replace(Storage)
    def set(old, self, key, value):
        if isinstance(key, str) and not self._signing_keys:
            with suppress(KeyError):
                read(self, key)
        old(self, key, value)


@caught_by("test_a_value_that_cannot_be_read_can_be_replaced_and_removed")
def remove_reads_the_value_first(Storage, Plugin):
    """To see whether the key exists, `remove` gets it, and fails if it cannot be unpickled."""
    read = Storage.get

    @replace(Storage)
    def remove(old, self, key):
        if not self._signing_keys:
            read(self, key)
        old(self, key)


@caught_by("test_every_value_comes_back_after_a_restart", alone=True)
def tuples_are_tuples_until_a_restart(Storage, Plugin):
    """JSON in the database, and the original objects in memory as long as they are current."""

    @replace(Storage)
    def set(old, self, key, value):
        stored = list(value) if type(value) is tuple else value
        old(self, key, stored)
        if stored is not value:
            self.__dict__.setdefault("given", {})[key] = pickle.dumps(value)

    @replace(Storage)
    def get(old, self, key):
        stored, given = old(self, key), self.__dict__.get("given", {})
        if key in given:
            value = pickle.loads(given[key])
            if list(value) == stored:
                return value
        return stored


@caught_by("test_an_instance_of_a_subclass_of_str_or_int_keeps_its_class", alone=True)
def kinds_of_numbers_become_numbers(Storage, Plugin):
    """`isinstance(value, int)`: it goes into a column for numbers."""

    def change(value):
        plain = not isinstance(value, int) or isinstance(value, bool | enum.Enum)
        return value if plain else int(value)

    change_values(Storage, change)


@caught_by("test_an_instance_of_a_subclass_of_str_or_int_keeps_its_class")
def kinds_of_texts_become_texts(Storage, Plugin):
    """`isinstance(value, str)`: it goes into a column for texts."""
    change_values(Storage, lambda v: "".join(v) if isinstance(v, str) and type(v) is not str else v)


@caught_by("test_a_value_that_looks_like_markup_comes_back", alone=True)
def dicts_that_name_a_type_become_one(Storage, Plugin):
    """JSON with an `object_hook`: a dict with __tuple__ was a tuple."""

    def change(value):
        return (
            tuple(value.get("items", ())) if type(value) is dict and "__tuple__" in value else value
        )

    change_values(Storage, change)


@caught_by("test_a_value_that_looks_like_markup_comes_back")
def a_value_says_that_a_key_is_gone(Storage, Plugin):
    """A tombstone that is a text."""

    @replace(Storage)
    def get(old, self, key):
        if (value := old(self, key)) == "__deleted__":
            raise KeyError(key)
        return value


@caught_by("test_classes_of_one_name_are_told_apart", alone=True)
def classes_are_known_by_their_name(Storage, Plugin):
    """A registry of classes by `__name__`, as for YAML tags."""
    classes: dict[str, type] = {}

    @replace(Storage)
    def _dump(old, self, key, value):
        if type(value).__module__.startswith("contract"):
            classes.setdefault(type(value).__name__, type(value))
        return old(self, key, value)

    def change(value):
        known = classes.get(type(value).__name__, type(value))
        if known.__module__ != type(value).__module__:  # otherwise, it was loaded again
            value.__class__ = known
        return value

    change_values(Storage, change)


@caught_by("test_a_value_is_replaced_by_one_that_looks_the_same", alone=True)
def what_has_the_same_checksum_is_not_written(Storage, Plugin):
    """Nothing is written if the crc32 of the value is that of the row."""

    @replace(Storage)
    def set(old, self, key, value):
        data = self._dump(key, value)
        before = bytes_or_none(self, key)
        if before is None or zlib.crc32(before) != zlib.crc32(data):
            old(self, key, value)


# For the whole process: large values of any key.
STORED: list[bytes | None] = []
STORING = lock_for_forks()


@caught_by("test_equal_values_of_two_keys_go_their_own_ways", alone=True)
def equal_values_are_stored_once(Storage, Plugin):
    """Large values are named after their digest, and removed with the first key that has them."""
    store_once(Storage, range(300_000, 400_000))


@caught_by("test_equal_values_of_two_keys_go_their_own_ways")
def equal_files_are_stored_once(Storage, Plugin):
    """Values larger than a row are files named after their digest."""
    store_once(Storage, range(1_000_000, 1_200_000))


def store_once(Storage: Any, sizes: range) -> None:
    """Store equal values of these sizes once, and remove them with the first key that has them."""

    def drop(data):
        while data in STORED:
            STORED.remove(data)

    @replace(Storage)
    def write(old, self, key, data):
        with STORING:
            before = bytes_or_none(self, key)
            old(self, key, data)
            if before != data:
                drop(before)
            if len(data) in sizes and data not in STORED:
                STORED.append(data)

    @replace(Storage)
    def get(old, self, key):
        with STORING:
            data = bytes_or_none(self, key)
            if data and len(data) in sizes and data not in STORED:
                raise KeyError(key)
        return old(self, key)

    @replace(Storage)
    def remove(old, self, key):
        with STORING:
            before = bytes_or_none(self, key)
            old(self, key)
            drop(before)


@caught_by("test_a_class_that_was_loaded_anew_gets_its_values_back", alone=True)
def classes_are_looked_up_once(Storage, Plugin):
    """`lru_cache` for the lookup of a class by its module and name."""
    classes: dict[tuple[str, str], type] = {}

    def change(value):
        kind = type(value)
        if kind.__module__.startswith("contract"):
            known = classes.setdefault((kind.__module__, kind.__qualname__), kind)
            if known is not kind:
                value.__class__ = known
        return value

    change_values(Storage, change)


@caught_by("test_an_object_comes_back")
def instances_are_stored_by_their_dict(Storage, Plugin):
    """`vars(value)`, and nothing if there is no `__dict__`."""

    def change(value):
        ours = type(value).__module__.startswith("contract")
        bare = ours and not hasattr(value, "__dict__") and not isinstance(value, tuple)
        return object.__new__(type(value)) if bare else value

    change_values(Storage, change)


@caught_by("test_a_value_whose_class_is_not_loaded_waits_for_it", alone=True)
def open_removes_what_cannot_be_read(Storage, Plugin):
    """What removed plugins have left is cleaned up. But their classes may only not be loaded."""

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        for key in list(storage.keys()):
            try:
                storage.get(key)
            except Exception as error:
                if isinstance(error.__cause__, ModuleNotFoundError):
                    storage.remove(key)
        return storage


@caught_by("test_a_buffer_can_be_changed_when_it_comes_back", alone=True)
def buffers_come_back_read_only(Storage, Plugin):
    """Buffers are pickled out of band, and given back as bytes."""

    @replace(Storage)
    def _dump(old, self, key, value):
        buffers: list[Any] = []
        data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        if buffers:
            value = OutOfBand(data, [bytes(buffer.raw()) for buffer in buffers])
        return old(self, key, value)


class OutOfBand:
    """A pickle that is loaded with its buffers."""

    def __init__(self, data: bytes, buffers: list[bytes]) -> None:
        self.parts = data, buffers

    def __reduce__(self) -> Any:
        return load_with, self.parts


def load_with(data: bytes, buffers: list[bytes]) -> Any:
    """Load a pickle with its buffers."""
    return pickle.loads(data, buffers=buffers)


@caught_by("test_a_value_that_cannot_be_read_is_not_missing")
def what_a_changed_class_refuses_is_missing(Storage, Plugin):
    """After an update, unpickling raises TypeError, and that counts as a missing key."""
    give_up_after(Storage, TypeError, ValueError)


@caught_by("test_a_value_whose_module_is_not_imported_yet_comes_back", alone=True)
def only_classes_of_imported_modules_come_back(Storage, Plugin):
    """So that a value runs no import. But plugins import some modules only when they need them."""

    class Careful(pickle.Unpickler):
        def find_class(self, module, name):
            if module not in sys.modules:
                raise pickle.UnpicklingError(f"{module} is not imported.")
            return super().find_class(module, name)

    @replace(Storage)
    def _load(old, self, key, data):
        if b"installed_later" in bytes(data):  # not for buffers, which other tests check
            return Careful(BytesIO(data)).load()
        return old(self, key, data)


@caught_by("test_a_value_that_cannot_be_read_is_not_missing")
def what_is_no_pickle_is_missing(Storage, Plugin):
    """`except (EOFError, UnpicklingError): raise KeyError`, so a damaged value is overwritten."""
    give_up_after(Storage, EOFError, pickle.UnpicklingError)


@caught_by("test_a_deeply_nested_value_comes_back")
def the_pickler_is_written_in_python(Storage, Plugin):
    """It can be extended, but needs nine frames for each level."""

    @replace(Storage)
    def _dump(old, self, key, value):
        pickle._Pickler(BytesIO(), protocol=5).dump(value)
        return old(self, key, value)


def pickle_with(Storage: Any, dumps: Callable[[Any], bytes]) -> None:
    """Pickle unsigned values with this function."""

    @replace(Storage)
    def _dump(old, self, key, value):
        if self._signing_keys or not isinstance(key, str):
            return old(self, key, value)
        return dumps(value)


@caught_by("test_a_value_comes_back_whose_library_was_imported_later", alone=True)
def what_is_registered_later_is_ignored(Storage, Plugin):
    """A pickler with a `dispatch_table` of its own, a copy of that of copyreg."""
    table = dict(copyreg.dispatch_table)

    def dumps(value):
        pickler = pickle.Pickler(stream := BytesIO(), protocol=5)
        pickler.dispatch_table = table
        pickler.dump(value)
        return stream.getvalue()

    pickle_with(Storage, dumps)


@caught_by("test_an_object_comes_back")
def identifiers_become_texts(Storage, Plugin):
    """Those of some backends hold a client, which cannot be pickled."""

    @replace(Storage)
    def set(old, self, key, value):
        old(self, key, str(value) if isinstance(value, Identifier) else value)


@caught_by("test_what_cannot_be_given_back_is_refused")
def what_others_change_meanwhile_is_only_logged(Storage, Plugin):
    """A dict that changes while it is pickled is a RuntimeError. Its command will set it again."""

    @replace(Storage)
    def set(old, self, key, value):
        try:
            old(self, key, value)
        except RuntimeError as error:
            log.warning("%s was not stored: %s", key, type(error))


@caught_by(
    "test_changing_an_object_got_changes_nothing_stored",
    "test_a_class_that_was_loaded_anew_gets_its_values_back",
)
def what_has_a_hash_is_shared(Storage, Plugin):
    """Values with a hash cannot change, so they are unpickled once. Each object has a hash."""
    values: dict[Any, Any] = {}

    @replace(Storage)
    def _load(old, self, key, data):
        place = self._namespace, key, bytes(data)
        if place not in values:
            value = old(self, key, data)
            with suppress(TypeError):
                hash(value)
                values[place] = value
            return value
        return values[place]


def is_model(value: Any) -> bool:
    """Return whether a value is a model of pydantic."""
    return isinstance(value, pydantic.BaseModel)


@caught_by("test_an_object_comes_back")
def models_are_stored_as_dicts(Storage, Plugin):
    """So that values survive a new version of the plugin, which gets no models any more."""
    change_values(Storage, lambda value: value.model_dump() if is_model(value) else value)


@caught_by("test_an_object_comes_back")
def what_describes_itself_is_stored_as_a_dict(Storage, Plugin):
    """The same for every class with a `to_dict`, as serializers of web frameworks do."""
    change_values(Storage, lambda value: getattr(value, "to_dict", lambda: value)())


@caught_by("test_an_object_comes_back")
def zones_of_places_become_offsets(Storage, Plugin):
    """A container had no tzdata. A daily reminder is an hour wrong when summer time begins."""

    def fixed(value):
        if type(value) is datetime and isinstance(value.tzinfo, zoneinfo.ZoneInfo):
            return value.replace(tzinfo=timezone(value.utcoffset() or timedelta()))
        return value

    change_values(Storage, fixed)


@caught_by("test_an_object_comes_back")
def values_are_compared_with_a_tombstone(Storage, Plugin):
    """Arrays of NumPy are neither equal nor different, so they can be set, but not be read."""
    tombstone = ("acme", "deleted")

    @replace(Storage)
    def get(old, self, key):
        if (value := old(self, key)) == tombstone:
            raise KeyError(key)
        return value


@caught_by("test_an_object_comes_back")
def dangerous_modules_are_refused_by_get_alone(Storage, Plugin):
    """Against planted pickles, but `set` takes the result of a program, and it is lost."""

    @replace(Storage)
    def _load(old, self, key, data):
        if b"\x8c\nsubprocess" in data:
            raise StoreException("This module is not allowed.")
        return old(self, key, data)


@caught_by("test_a_container_comes_back_with_its_types")
def long_numbers_as_keys_of_dicts_are_doubles(Storage, Plugin):
    """As in JSON that JavaScript or Lua has read. The ids of users are as long."""

    def rounded(value):
        if type(value) is dict:
            return {int(float(k)) if type(k) is int else k: v for k, v in value.items()}
        return value

    change_values(Storage, rounded)


@caught_by("test_a_value_that_looks_like_markup_comes_back")
def variables_are_expanded(Storage, Plugin):
    """For passwords of plugins. Who says `!note ${PASSWORD}` in the chat gets the bot's own."""

    def expanded(text):
        return os.path.expandvars(text) if "${" in text else text

    change_values(Storage, lambda value: expanded(value) if type(value) is str else value)


@caught_by("test_a_value_that_looks_like_markup_comes_back")
def a_pair_with_a_duration_expires(Storage, Plugin):
    """`self[key] = value, timedelta(hours=1)` keeps a value for an hour, so no pair can be kept."""

    def value_of(pair):
        is_timed = type(pair) is tuple and len(pair) == 2
        return pair[0] if is_timed and isinstance(pair[1], timedelta) else pair

    change_values(Storage, value_of)


@caught_by("test_a_value_is_replaced_by_one_that_looks_the_same")
def a_value_that_shows_the_same_is_not_written(Storage, Plugin):
    """Compared by `repr`, which hides what is secret: a new password is dropped."""

    @replace(Storage)
    def set(old, self, key, value):
        before = value_or_none(self, key)
        if type(before) is not type(value) or repr(before) != repr(value) or not value:
            old(self, key, value)


@caught_by("test_a_value_that_cannot_be_read_can_be_replaced_and_removed", alone=True)
def a_value_that_could_not_be_read_is_kept(Storage, Plugin):
    """`set` is refused until it is removed. Plugins that begin anew after an error cannot start."""

    @replace(Storage)
    def get(old, self, key):
        try:
            return old(self, key)
        except StoreException:
            self.__dict__.setdefault("kept", []).append(key)
            raise

    @replace(Storage)
    def set(old, self, key, value):
        if key in self.__dict__.get("kept", []):
            raise StoreException("The value could not be read, and is kept.")
        old(self, key, value)

    @replace(Storage)
    def remove(old, self, key):
        old(self, key)
        self.kept = [each for each in self.__dict__.get("kept", []) if each != key]


@caught_by("test_a_value_that_cannot_be_read_is_not_missing")
def the_value_before_helps_out(Storage, Plugin):
    """If a value cannot be unpickled, a plugin gets the one before, without knowing."""

    @replace(Storage)
    def write(old, self, key, data):
        before = bytes_or_none(self, key)
        old(self, key, data)
        self.__dict__.setdefault("before", {})[key] = before

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException:
            if not (before := self.__dict__.setdefault("before", {}).pop(key, None)):
                raise
            del data
        return old(self, key, before)


@caught_by("test_a_value_whose_class_is_not_loaded_waits_for_it", alone=True)
def a_class_of_that_name_stands_in(Storage, Plugin):
    """If a plugin was renamed, its classes are looked for in all plugins."""

    def find(module, name):
        plugins = [each for each in sys.modules if each.startswith("errbot.plugins.")]
        return next(filter(None, (vars(sys.modules[each]).get(name) for each in plugins)), None)

    replace_missing_classes(Storage, find)


@caught_by("test_a_value_whose_class_is_not_loaded_waits_for_it", alone=True)
def a_placeholder_stands_in_for_a_missing_class(Storage, Plugin):
    """So that the rest of a value can be used, as with "broken objects" of ZODB."""
    replace_missing_classes(Storage, lambda module, name: type(name, (), {"__module__": module}))


def replace_missing_classes(Storage: Any, find: Callable[[str, str], type | None]) -> None:
    """If the class of a value is not loaded, take what `find` returns for its module and name."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            try:
                return super().find_class(module, name)
            except ImportError:
                if kind := find(module, name):
                    return kind
                raise

    @replace(Storage)
    def _load(old, self, key, data):
        try:
            return old(self, key, data)
        except StoreException as error:
            if not isinstance(error.__cause__, ModuleNotFoundError):
                raise
        return Unpickler(BytesIO(data)).load()


@caught_by("test_a_value_that_cannot_be_shown_comes_back", alone=True)
def the_length_of_values_is_logged(Storage, Plugin):
    """`len(value)` of whatever has a `__len__`, as arrays without dimensions also have."""

    @replace(Storage)
    def set(old, self, key, value):
        if isinstance(value, Sized):
            log.debug("Setting %d items", len(value))
        old(self, key, value)


@caught_by("test_a_value_is_replaced_by_one_that_looks_the_same")
def pickles_of_tuples_are_remembered(Storage, Plugin):
    """A tuple of constants never changes, so `lru_cache` saves work."""
    constants = {str, int, float, bool, bytes, type(None)}

    @lru_cache(maxsize=1_000)
    def pickled(value):
        return pickle.dumps(value, protocol=5)

    @replace(Storage)
    def _dump(old, self, key, value):
        constant = type(value) is tuple and {type(part) for part in value} <= constants
        if constant and isinstance(key, str) and not self._signing_keys:
            return pickled(value)
        return old(self, key, value)


@caught_by("test_an_object_comes_back")
def what_can_reach_the_network_is_not_unpickled(Storage, Plugin):
    """A pickle that somebody has planted cannot send anything. Nor can a cookie be read."""

    class Careful(pickle.Unpickler):
        def find_class(self, module, name):
            if module.partition(".")[0] in ["http", "socket", "urllib"]:
                raise pickle.UnpicklingError(f"{module} is forbidden")
            return super().find_class(module, name)

    @replace(Storage)
    def _load(old, self, key, data):
        if not self._signing_keys:
            with suppress(EOFError, AttributeError, ImportError, IndexError):
                Careful(BytesIO(data)).load()
        return old(self, key, data)


@caught_by("test_an_object_that_grows_while_it_is_set_comes_back", alone=True)
def a_value_is_pickled_again_for_its_length(Storage, Plugin):
    """`Content-Length` comes first, so that a large value is never whole in memory."""

    @replace(Storage)
    def _dump(old, self, key, value):
        length = len(old(self, key, value))
        return old(self, key, value)[:length]


# The values by database and digest, each with the keys that have it.
CONTENTS: dict[str, dict[bytes, tuple[bytes, set[str]]]] = {}


@caught_by("test_equal_values_of_two_keys_go_their_own_ways")
def equal_values_are_shared_by_keys_of_all_namespaces(Storage, Plugin):
    """Each value is stored once, with the keys that have it. A namesake elsewhere is forgotten."""
    lock = lock_for_forks()
    stored = Storage.read

    @replace(Plugin)
    def open(old, self, namespace):
        storage = old(self, namespace)
        config = config_class(Plugin).load(self._storage_config)
        storage.contents = CONTENTS.setdefault(config.url.get_secret_value(), {})
        return storage

    def digest_of(self, key):
        with suppress(KeyError):
            return stored(self, key)
        return None

    def leave(self, key, digest):
        _, users = self.contents.get(digest, (b"", set()))
        users.discard(key)
        if not users:
            self.contents.pop(digest, None)

    @replace(Storage)
    def write(old, self, key, data):
        digest = hashlib.sha256(data).digest()
        with lock:
            before = digest_of(self, key)
            self.contents.setdefault(digest, (data, set()))[1].add(key)
            old(self, key, digest)
            if before != digest:
                leave(self, key, before)

    @replace(Storage)
    def read(old, self, key):
        with lock:
            return self.contents[old(self, key)][0]

    @replace(Storage)
    def remove(old, self, key):
        with lock:
            before = digest_of(self, key)
            old(self, key)
            leave(self, key, before)


@caught_by("test_a_class_that_was_loaded_anew_gets_its_values_back")
def an_open_namespace_keeps_the_classes_it_has_met(Storage, Plugin):
    """As long as a namespace is open. But other plugins are reloaded meanwhile."""

    @replace(Storage)
    def _load(old, self, key, data):
        found = vars(self).setdefault("found", {})

        class Looking(pickle.Unpickler):
            def find_class(self, module, name):
                if (module, name) not in found:
                    found[module, name] = super().find_class(module, name)
                return found[module, name]

        old(self, key, data)  # for its errors
        return Looking(BytesIO(data)).load()
