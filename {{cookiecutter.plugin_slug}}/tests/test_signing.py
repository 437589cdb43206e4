"""signing_key: a value that someone planted in the database is refused, and never unpickled."""

import pickle
import re
import sys
import traceback
import tracemalloc
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from contract.support.database import Database, run_command
from contract.support.deadlines import at_once
from contract.support.sample_values import (
    FALSY,
    MARK,
    Asking,
    AskingToReduce,
    Color,
    Person,
    Tag,
)
from contract.support.tricky_names import ALIKE, SEPARATORS
from errbot.storage import StoreException

EXECUTED: list[str] = []
KEY = "key one of sixteen"
OLD = "old key of sixteen"
NEW = "new key of sixteen"
KEYS = 1_000

SIGNED = (
    b"\x80\x05\x95\r\x00\x00\x00\x00\x00\x00\x00\x8c\tas it was\x94."
    b".zFCsImFpf7HTOFfIXnCz-s7y9Vst1gEpTliD2-VaUF8"
)
"""The bytes that the first version stored in "namespace" under "key", signed with KEY."""

WHERE = "the value of the key 'key' in the namespace 'namespace'"


def run_code() -> None:
    """Record that an attacker's code ran."""
    EXECUTED.append("code ran")


class Evil:
    """An attacker's value: unpickling it runs code."""

    def __reduce__(self) -> Any:
        # A function, because EXECUTED.append would be pickled with a copy of its list.
        return run_code, ()


@pytest.fixture(autouse=True)
def _nothing_executed() -> None:
    EXECUTED.clear()


def signed(database: Database, *keys: str) -> Any:
    """Open "namespace" with these signing keys, the newest last, or with none.

    Its `read` and `write` handle bytes, as would anyone with access to the database.
    """
    settings = dict(database.config.STORAGE_CONFIG)
    settings.pop("signing_key", None)
    database.config.STORAGE_CONFIG = settings | ({"signing_key": list(keys)} if keys else {})
    return database.open("namespace", database.plugin())


@pytest.mark.parametrize("value", FALSY.values(), ids=FALSY)
def test_a_signed_falsy_value_comes_back(database: Database, value: Any) -> None:
    signed(database, KEY).set("key", value)
    assert signed(database, KEY).get("key") == value


@pytest.mark.parametrize("value", [{"a": [MARK]}, MARK * 100_000], ids=["dict", "large"])
def test_a_signed_value_comes_back(database: Database, value: Any) -> None:
    storage = signed(database, KEY)
    storage.set("key", MARK * 200_000)
    storage.set("key", value)
    assert signed(database, KEY).get("key") == value


def test_a_signed_value_that_another_bot_sets_is_seen(database: Database) -> None:
    database.open_twice("probe")
    storage, other = signed(database, KEY), signed(database, KEY)
    for turn in range(4):
        other.set("key", [MARK, turn])
        for _ in range(30):
            assert storage.get("key") == [MARK, turn], "`get` returned an older value."


@pytest.mark.usefixtures("switch_often")
def test_threads_get_the_signed_values_of_their_keys(database: Database) -> None:
    storage = signed(database, KEY)

    def work(key: str) -> None:
        storage.set(key, [key])
        for _ in range(200):
            assert storage.get(key) == [key], "A thread got another thread's value."

    at_once(*(partial(work, key) for key in "abcdefgh"))


def test_a_value_that_the_first_release_signed_can_still_be_read(database: Database) -> None:
    storage = signed(database, KEY)
    storage.write("key", SIGNED)
    assert storage.get("key") == "as it was", "After an update, a bot could not read its data."


@pytest.mark.parametrize("signing_key", [KEY, "k" * 16], ids=["words", "one letter"])
def test_one_key_needs_no_list(database: Database, signing_key: str) -> None:
    signed(database, signing_key).set("key", MARK)
    database.config.STORAGE_CONFIG["signing_key"] = signing_key
    storage = database.open("namespace", database.plugin())
    assert storage.get("key") == MARK
    storage.set("key", [MARK])
    assert signed(database, signing_key).get("key") == [MARK]


def test_an_unsigned_value_is_refused_and_not_unpickled(database: Database) -> None:
    signed(database).set("key", Evil())
    storage = signed(database, KEY)
    with pytest.raises(StoreException, match="signing_key") as caught:
        storage.get("key")
    assert str(caught.value) == (
        f"Refused {WHERE}: it was changed, moved here, or not signed with a signing_key in"
        " STORAGE_CONFIG."
    ), "The error does not say what was refused, where, and why."
    assert EXECUTED == [], "An unsigned value was unpickled."
    for value in [MARK, None, 5, [Evil(), "x" * 2_000_000]]:
        signed(database).set("key", value)
        with pytest.raises(StoreException, match="signing_key"):
            storage.get("key")
    assert EXECUTED == [], "An unsigned value was unpickled."


def test_a_value_signed_with_another_key_is_refused(database: Database) -> None:
    signed(database, "key two of sixteen").set("key", Evil())
    with pytest.raises(StoreException, match="signing_key"):
        signed(database, KEY).get("key")
    assert EXECUTED == [], "A value with another signature was unpickled."


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[(KEY, KEY.title()), (KEY, f"{KEY} "), ("k" * 32, "k" * 33)],
        *[("k" * 99 + "a", "k" * 99 + "b"), ("\u0447\u0430\u0441" * 9, "\u0442\u0430\u0441" * 9)],
    ],
)
def test_signing_keys_are_told_apart_to_the_letter(
    database: Database, one: str, other: str
) -> None:
    signed(database, one).set("key", MARK)
    with pytest.raises(StoreException, match="signing_key"):
        signed(database, other).get("key")
    assert signed(database, one).get("key") == MARK, "The refused value is lost."


def test_a_signed_value_is_refused_without_a_signing_key(database: Database) -> None:
    signed(database, KEY).set("key", MARK)
    with pytest.raises(StoreException) as caught:
        signed(database).get("key")
    assert str(caught.value) == (
        f"Refused {WHERE}: it is signed, but STORAGE_CONFIG has no signing_key."
    ), "A bot without its signing_key reads signed values, and would store unsigned ones."
    assert signed(database, KEY).get("key") == MARK, "The refused value is lost."


@pytest.mark.parametrize("behind", [b".", b"\n", b"\0" * 32, pickle.dumps(MARK)], ids=repr)
def test_a_pickle_followed_by_other_bytes_is_refused(database: Database, behind: bytes) -> None:
    storage = signed(database)
    storage.write("key", pickle.dumps(MARK, protocol=5) + behind)
    with pytest.raises(StoreException, match=f"^Refused {WHERE}: "):
        storage.get("key")


def test_a_value_moved_to_another_place_is_refused(database: Database) -> None:
    signed(database, KEY)
    plugin = database.plugin()
    for origin, target in [
        (("namespace", "a"), ("namespace", "b")),
        (("namespace", "a"), ("other", "a")),
        (("a", "b:c"), ("a:b", "c")),
        (("a", "bc"), ("ab", "c")),
        (("a", 'b", "c'), ('a", "b', "c")),
        *((("a", f"b{mark}c"), (f"a{mark}b", "c")) for mark in SEPARATORS),
    ]:
        one: Any = database.open(origin[0], plugin)
        other: Any = database.open(target[0], plugin)
        one.set(origin[1], MARK)
        assert one.get(origin[1]) == MARK
        other.write(target[1], one.read(origin[1]))
        with pytest.raises(StoreException, match="signing_key"):
            other.get(target[1])


def test_a_value_moved_between_long_keys_is_refused(database: Database) -> None:
    storage = signed(database, KEY)
    one, other = "k" * 300 + "a", "k" * 300 + "b"
    try:
        storage.set(one, MARK)
    except ValueError:  # a storage may refuse keys of this length
        return
    storage.write(other, storage.read(one))
    with pytest.raises(StoreException, match="signing_key"):
        storage.get(other)


@pytest.mark.parametrize("of", ["key", "namespace"])
def test_an_emoji_and_its_two_surrogates_share_no_signature(database: Database, of: str) -> None:
    signed(database, KEY)
    plugin = database.plugin()
    storages: list[Any] = []
    keys = []
    try:
        for name in ["\U0001f600", "\ud83d\ude00"]:
            storages.append(database.open(name if of == "namespace" else "namespace", plugin))
            keys.append(name if of == "key" else "key")
            storages[-1].set(keys[-1], [MARK, keys[-1]])
    except ValueError:  # a storage may refuse surrogates
        return
    storages[0].write(keys[0], storages[1].read(keys[1]))
    with pytest.raises(StoreException, match="signing_key"):
        storages[0].get(keys[0])
    assert storages[1].get(keys[1]) == [MARK, keys[1]]


@pytest.mark.parametrize("names", ALIKE.values(), ids=ALIKE)
def test_a_value_moved_to_a_name_that_looks_alike_is_refused(
    database: Database, names: list[str]
) -> None:
    signed(database, KEY)
    plugin = database.plugin()
    storages: dict[str, Any] = {name: database.open(name, plugin) for name in names}
    for one, other in pairwise([*names, names[0]]):
        storages[one].set(one, MARK)
        for storage, key in [(storages[one], other), (storages[other], one)]:
            storage.write(key, storages[one].read(one))
            with pytest.raises(StoreException, match="signing_key"):
                storage.get(key)


def test_a_changed_value_is_refused(database: Database) -> None:
    storage = signed(database, KEY)
    storage.set("key", MARK)
    data = storage.read("key")
    for position in range(0, len(data), 7):
        storage.write("key", data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(StoreException, match="signing_key"):
            storage.get("key")
    storage.set("large", MARK * 200_000)
    large = storage.read("large")
    for position in [20, *range(300_000, len(large), 300_000), len(large) - 60]:
        storage.write("large", large[:position] + b"x" + large[position + 1 :])
        with pytest.raises(StoreException, match="signing_key"):
            storage.get("large")
    for cut in [b"", data[:-1], data[1:], data + b"x", b"." + data, b"."]:
        storage.write("key", cut)
        with pytest.raises(StoreException, match="signing_key"):
            storage.get("key")


@pytest.mark.parametrize("key", [Color.RED, Tag("red")], ids=["member", "kind of str"])
def test_a_key_of_a_kind_of_str_is_signed_as_its_text(database: Database, key: str) -> None:
    storage = signed(database, KEY)
    storage.set(key, MARK)
    assert [storage.get(each) for each in [*storage.keys(), "red", key]] == [MARK] * 3
    storage.set("red", [MARK])
    assert storage.get(key) == [MARK]


@pytest.mark.parametrize("kind", [Asking, AskingToReduce])
def test_what_is_set_while_another_value_is_signed_is_signed_for_its_own_key(
    database: Database, monkeypatch: pytest.MonkeyPatch, kind: type[Asking]
) -> None:
    storage = signed(database, KEY)
    monkeypatch.setattr(Asking, "ask", [lambda: storage.set("other", MARK)])
    for _ in range(2):
        storage.set("key", kind())
        assert storage.get("key") == kind()
        assert storage.get("other") == MARK


@pytest.mark.parametrize("value", [MARK, MARK * 100_000], ids=["small", "large"])
def test_a_signing_key_is_stored_nowhere(database: Database, value: str) -> None:
    storage = signed(database, KEY)
    storage.set("key", value)
    database.close_all()
    shown = [
        path.name
        for path in Path(database.config.BOT_DATA_DIR).rglob("*")
        if path.is_file() and path.name != "config.py" and KEY.encode() in path.read_bytes()
    ]
    assert not shown, f"Who can read {shown} can sign any value: signing protects nothing."


def test_a_refused_value_harms_nothing_else(database: Database) -> None:
    signed(database).set("planted", Evil())
    storage = signed(database, KEY)
    storage.set("key", MARK)
    assert storage.get("key") == MARK
    assert (storage.len(), sorted(storage.keys())) == (2, ["key", "planted"])
    storage.remove("planted")
    assert list(storage.keys()) == ["key"]


def test_keys_can_be_rotated(database: Database) -> None:
    signed(database, OLD).set("key", MARK)
    both = signed(database, OLD, NEW)
    assert both.get("key") == MARK, "An old key in the list is not accepted."
    both.set("key", both.get("key"))
    assert signed(database, NEW).get("key") == MARK, "The last key of the list does not sign."
    with pytest.raises(StoreException, match="signing_key"):
        signed(database, OLD).get("key")


def test_reading_signs_nothing_anew(database: Database) -> None:
    signed(database, OLD).set("key", MARK)
    both: Any = signed(database, OLD, NEW)
    before = bytes(both.read("key"))
    assert both.get("key") == MARK
    assert bytes(both.read("key")) == before, (
        "`get` has signed a value with the newest key. If another bot has set the key meanwhile,"
        " its value is lost. Leave that to `resign`."
    )


def test_every_key_of_the_list_counts_and_the_last_one_signs(database: Database) -> None:
    keys = [f"signing key number {number}" for number in range(5)]
    for key in keys:
        signed(database, key).set(key, MARK)
    for order in [keys, keys[::-1], [*keys[2:], *keys[:2]]]:
        storage = signed(database, *order)
        assert [storage.get(key) for key in keys] == [MARK] * 5, "A listed key is not accepted."
        storage.set("new", MARK)
        assert signed(database, order[-1]).get("new") == MARK, "The last key does not sign."


def test_a_value_that_cannot_be_unpickled_is_a_clear_error(database: Database) -> None:
    storage = signed(database)
    storage.set("good", MARK)
    whole = storage.read("good")
    for number, data in enumerate([b"", b"{}", b"no pickle", whole[:-5], b"\x80\x05h\x07."]):
        storage.write(f"bad {number}", data)
        where = f"the value of the key 'bad {number}' in the namespace 'namespace'"
        with pytest.raises(StoreException, match=rf"^Cannot unpickle {where}: \w+\.$"):
            storage.get(f"bad {number}")
    assert (storage.get("good"), storage.len()) == (MARK, 6), "One bad value harmed the others."


@pytest.mark.parametrize(
    ("name", "gone", "reason"),
    [
        (b"contract.", b"kontrakt.", "No module named 'kontrakt'"),
        (b"Person", b"Nobody", "(Can't get|has no) attribute 'Nobody'"),
    ],
    ids=["module", "class"],
)
def test_an_error_names_what_is_gone(
    database: Database, name: bytes, gone: bytes, reason: str
) -> None:
    storage = signed(database)
    storage.write("key", pickle.dumps(Person(MARK), protocol=5).replace(name, gone))
    with pytest.raises(StoreException) as caught:
        storage.get("key")
    assert re.fullmatch(f"Cannot unpickle {re.escape(WHERE)}: {reason}\\.", str(caught.value)), (
        "The error does not say which module or class is missing."
    )


@pytest.mark.parametrize(
    "signing_key",
    ["", "k" * 15, ["k" * 15], [KEY, ""], None, [None], 5, [5], KEY.encode()],
    ids=repr,
)
def test_what_is_no_signing_key_is_refused(database: Database, signing_key: object) -> None:
    database.config.STORAGE_CONFIG |= {"signing_key": signing_key}
    with pytest.raises(ValueError, match="signing_key: "):
        database.plugin()


@pytest.mark.parametrize("signing_key", ["k" * 16, ["k" * 16]], ids=["one", "list"])
def test_a_signing_key_of_sixteen_characters_is_taken(
    database: Database, signing_key: object
) -> None:
    database.config.STORAGE_CONFIG |= {"signing_key": signing_key}
    storage: Any = database.open("namespace", database.plugin())
    storage.set("key", MARK)
    assert storage.get("key") == MARK
    assert storage.read("key") != pickle.dumps(MARK, protocol=5), "The value is not signed."


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *[("core", "configs"), ("core", "bl_plugins"), ("core", "key"), ("repomgr", "repo_index")],
        *[("repomgr", "installed_repos"), ("text_backend", "key"), ("Notes", "notes"), ("", "")],
    ],
)
def test_a_signature_is_checked_at_each_get(database: Database, name: str, key: str) -> None:
    signed(database, KEY)
    storage: Any = database.open(name, database.plugin())
    planted = pickle.dumps([Evil(), MARK], protocol=5)
    for value in [None, MARK, [MARK] * 10_000]:
        storage.set(key, value)
        data = storage.read(key)
        for _ in range(12):
            assert storage.get(key) == value
        for changed in [planted, planted.ljust(len(data), b"N"), planted + data[-44:]]:
            storage.write(key, changed)
            for _ in range(2):
                with pytest.raises(StoreException, match="signing_key") as caught:
                    storage.get(key)
                shown = MARK in shown_to_sentry(caught.value)
                assert not shown, "The error shows the value."
        storage.write(key, data)
        assert storage.get(key) == value
    assert EXECUTED == [], "A value that was planted later was unpickled."


def shown_to_sentry(error: BaseException) -> str:
    """Return what Sentry gets about an error: its frames with local variables, except this one."""
    assert error.__traceback__
    steps = error.__traceback__.tb_next
    shown = traceback.TracebackException(type(error), error, steps, capture_locals=True)
    return "".join(shown.format())


@pytest.mark.parametrize("is_signed", [False, True], ids=["refused", "unreadable"])
def test_no_log_or_error_helps_to_sign_a_value(
    database: Database, caplog: pytest.LogCaptureFixture, is_signed: bool
) -> None:
    """Those who may read logs, or Sentry, learn no signing key, and no signature to plant."""
    storage = signed(database, OLD, KEY)
    planted = pickle.dumps(Person(MARK), protocol=5).replace(b"Person", b"Nobody")
    data = storage.signer("key").sign(planted)
    signature = data.rpartition(b".")[2]
    storage.write("key", data if is_signed else planted + b"." + b"x" * len(signature))
    with caplog.at_level("DEBUG"), pytest.raises(StoreException) as caught:
        storage.get("key")
    shown = caplog.text + shown_to_sentry(caught.value)
    for secret in [OLD, KEY, signature.decode()]:
        assert secret not in shown, f"The log, or the error for Sentry, shows {secret}."


def test_the_keys_of_signed_values_take_no_memory(database: Database) -> None:
    storage = signed(database, KEY)
    storage.set("key", MARK)
    tracemalloc.start()
    try:
        for number in range(KEYS):
            storage.set(f"key {number}", MARK)
            storage.get(f"key {number}")
            storage.remove(f"key {number}")
            if number == KEYS // 2:
                before = tracemalloc.get_traced_memory()[0]
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 100 * KEYS, (
        f"{KEYS // 2} signed values that were removed left {grown} bytes in memory. Keep no signer"
        " for each key."
    )


def test_what_is_refused_is_refused_under_python_o() -> None:
    folder = Path(__file__).parent
    files = ["test_signing.py", "test_config.py", "contract/test_keys.py"]
    without = [f"-pno:{plugin}" for plugin in ["cacheprovider", "hypothesispytest", "xdist"]]
    command = [sys.executable, "-O", "-m", "pytest", "-q", *without]
    chosen = "(refused or missing) and not alike and not python_o and not letter"
    command += ["-W", "ignore::pytest.PytestConfigWarning", "-k", chosen]
    done = run_command([*command, *files], folder=folder)
    assert done.returncode == 0, (
        "With `python -O` or PYTHONOPTIMIZE, Python ignores `assert`, and the storage accepts what"
        f" it must refuse. Check with `if` and `raise`:\n{done.stdout}{done.stderr}"
    )
