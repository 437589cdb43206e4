"""STORAGE_CONFIG: keys, errors, secrets, and the table in README.md."""

import inspect
import json
import pickle
import re
{%- if cookiecutter.database == "sqlite" %}
import sqlite3
{%- endif %}
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from contract.support.clock import Clock
from contract.support.database import Database
from contract.support.deadlines import at_once
from contract.support.expectations import shows
from contract.support.faults import Faults{% if cookiecutter.database == "sqlite" %}
from contract.support.outcomes import contents{% endif %}
from contract.support.sample_values import MARK
from errbot.storage.base import StorageBase
from pydantic import SecretStr

from {{ cookiecutter.__package }} import storage as storage_module

Config = storage_module.{{ cookiecutter.__class }}Config
README = Path(__file__).parent.parent / "README.md"
SECRET = "p4ssw0rd-that-nobody-may-see"
HEADING = "STORAGE_CONFIG of {{ cookiecutter.plugin_name }} is wrong:"
KNOWN = ", ".join(Config.model_fields)
NEEDS_A_KEY = "A key of STORAGE_CONFIG has no default."
KINDS = {"string": "str", "number": "float", "integer": "int", "boolean": "bool", "array": "list"}


def secret_keys() -> list[str]:
    """Return the keys of STORAGE_CONFIG whose values are secret."""
    return [key for key, schema in schemas() if "writeOnly" in json.dumps(schema)]


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the JSON schema of each key of STORAGE_CONFIG."""
    yield from Config.model_json_schema()["properties"].items()


def with_secrets() -> dict[str, str]:
    """Return a STORAGE_CONFIG with SECRET in every secret key."""
    config = dict.fromkeys(secret_keys(), SECRET)
    for key in config:
        default = Config.model_fields[key].default
        url = default.get_secret_value() if isinstance(default, SecretStr) else ""
        example = re.search(r"`(\w+://)", str(Config.model_fields[key].description))
        if "://" in url:
            config[key] = url.replace("://", f"://user:{SECRET}@", 1)
        elif example:
            config[key] = f"{example[1]}user:{SECRET}@127.0.0.1:1/database"
    return config


SECRETS = with_secrets()


def error_of(database: Database, storage_config: object) -> str:
    """Return the error that a wrong STORAGE_CONFIG raises."""
    database.config.STORAGE_CONFIG = storage_config
    with pytest.raises(ValueError, match="STORAGE_CONFIG") as caught:
        database.plugin()
    assert caught.value.__cause__ is None, "The error is chained to one that may show values."
    assert caught.value.__context__ is None, "The error is chained to one that may show values."
    return str(caught.value)


def test_readme_has_the_table_of_all_keys() -> None:
    rows = []
    for key, schema in schemas():
        types = [part["type"] for part in schema.get("anyOf", [schema])]
        takes = " or ".join(KINDS[name] for name in types if name in KINDS)
        secret = ", secret" if key in secret_keys() else ""
        default = Config.model_fields[key].default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        shown = "none" if default in (None, []) else f"`{default!r}`"
        rows.append(f"| `{key}` | {takes}{secret} | {shown} | {schema['description']} |")
    table = re.findall(r"^\| `.*\|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert table == rows, "README.md must contain these rows:\n" + "\n".join(rows)


@pytest.mark.parametrize("storage_config", [{}, None], ids=repr)
def test_an_empty_storage_config_is_enough(database: Database, storage_config: object) -> None:
    database.config.STORAGE_CONFIG = storage_config
    assert database.plugin() is not None, NEEDS_A_KEY


def test_storage_config_may_be_missing(database: Database) -> None:
    del database.config.STORAGE_CONFIG
    assert database.plugin() is not None, NEEDS_A_KEY


def test_a_timeout_may_be_a_fraction_of_a_second(database: Database) -> None:
    database.config.STORAGE_CONFIG |= {"timeout": 0.9}
    storages = [database.open("namespace", database.plugin()) for _ in range(2)]
    at_once(*[partial(set_often, storage, key) for storage in storages for key in "ab"])


def set_often(storage: StorageBase, key: str) -> None:
    """Set a key so often that others wait for the database."""
    for turn in range(300):
        storage.set(key, turn)


@pytest.mark.parametrize("wrong", [[], "text", 5, [("timeout", 1)]], ids=repr)
def test_a_storage_config_that_is_not_a_dict_is_refused(database: Database, wrong: object) -> None:
    error = error_of(database, wrong)
    assert error.splitlines() == [HEADING, f"  It must be a dict with {KNOWN}."]


@pytest.mark.parametrize("key", ["tiemout", ""], ids=repr)
def test_an_unknown_key_is_refused(database: Database, key: str) -> None:
    error = error_of(database, {key: SECRET})
    assert error.splitlines() == [HEADING, f"  {key}: no such key. The keys are {KNOWN}."]


@pytest.mark.parametrize("key", Config.model_fields)
def test_a_wrong_value_is_refused_and_not_shown(database: Database, key: str) -> None:
    description = Config.model_fields[key].description
    assert description, f"{key} has no description."
    error = error_of(database, {key: {SECRET: SECRET}})
    [line] = [line for line in error.splitlines() if line.startswith(f"  {key}: ")]
    assert line.endswith(f". {description}"), "The error does not say what the key takes."
    assert not shows(error, SECRET), "The error shows a value."


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "10", None, True], ids=repr)
def test_a_timeout_is_a_number_of_seconds(database: Database, timeout: object) -> None:
    assert "timeout: " in error_of(database, {"timeout": timeout})


@pytest.mark.parametrize("timeout", [0.5, 1, 60.0], ids=repr)
def test_any_positive_timeout_is_taken(database: Database, timeout: float) -> None:
    config = Config.load({**database.config.STORAGE_CONFIG, "timeout": timeout})
    assert config.timeout == timeout


def test_every_wrong_key_is_named_at_once(database: Database) -> None:
    error = error_of(database, {"timeout": "soon", "one": 1, "two": 2})
    assert all(f"{key}: " in error for key in ["timeout", "one", "two"]), error


@pytest.mark.parametrize("signing_key", [SECRET, [f"{SECRET} old", SECRET]], ids=["one", "list"])
def test_the_plugin_leaves_storage_config_as_it_is(database: Database, signing_key: object) -> None:
    database.config.STORAGE_CONFIG |= {"signing_key": signing_key}
    before = deepcopy(database.config.STORAGE_CONFIG)
    database.open().set("key", "value")
    after = database.config.STORAGE_CONFIG
    assert after == before, "The plugin changed the bot's configuration."


@pytest.mark.parametrize("signing_key", [SECRET, [f"{SECRET} old", SECRET]], ids=["one", "list"])
def test_no_secret_shows(
    database: Database,
    log_lines: list[str],
    capfd: pytest.CaptureFixture[str],
    signing_key: object,
) -> None:
    database.config.STORAGE_CONFIG |= {"signing_key": signing_key}
    plugin = database.plugin()
    storage = plugin.open("namespace")
    storage.set("key", "value")
    storage.get("key")
    shown = [repr(plugin), str(plugin), repr(storage), str(storage)]
    shown += [*log_lines, *capfd.readouterr()]
    shown.append(repr(Config.load(with_secrets())))
    assert not [text for text in shown if shows(text, SECRET)], "A secret shows."


@pytest.mark.parametrize("key", secret_keys())
def test_no_secret_shows_when_the_plugin_starts(
    database: Database, log_lines: list[str], key: str
) -> None:
    database.config.STORAGE_CONFIG |= {key: with_secrets()[key]}
    try:
        plugin = database.plugin()
    except Exception as error:  # this account does not exist
        shown = traceback.format_exception(error)
    else:
        shown = [repr(plugin), str(plugin), *(thread.name for thread in threading.enumerate())]
    assert not [text for text in [*shown, *log_lines] if shows(text, SECRET)], f"{key} shows."


@pytest.fixture(scope="module")
def programs() -> list[str]:
    """The programs that this process starts, with their arguments. Python keeps the hook."""
    started: list[str] = []

    def record(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            started.append(repr(arguments))

    sys.addaudithook(record)
    return started


def test_no_program_gets_a_secret(database: Database, programs: list[str]) -> None:
    database.config.STORAGE_CONFIG |= {**SECRETS, "timeout": 0.5}
    with suppress(Exception):  # This account may not exist.
        database.open("namespace").set("key", "value")
    told = [program for program in programs if SECRET in program]
    assert not told, "A program gets a secret, so every account of the machine sees it with `ps`."


def test_no_secret_shows_when_operations_take_long(
    database: Database, log_lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    database.config.STORAGE_CONFIG |= {**SECRETS, "timeout": 0.5}
    clock, shown = Clock(monkeypatch), list[str]()
    try:
        storage = database.open("namespace", clock.load(database))
        clock.pace = 10
        for operation in [*[partial(storage.set, "key", "value")] * 2, partial(storage.get, "key")]:
            operation()
        storage.remove("key")
    except Exception as error:  # This account may not exist, or time is over.
        shown = traceback.format_exception(error)
    assert not [text for text in [*shown, *log_lines] if shows(text, SECRET)], "A secret shows."


def test_no_secret_shows_beside_what_is_wrong(database: Database) -> None:
    configs: list[dict[str, Any]] = [with_secrets()]
    configs += [{"signing_key": [SECRET, 5]}, {"signing_key": [SECRET, ""]}]
    for config in configs:
        error = error_of(database, {**config, "timeout": "soon", "tiemout": 1})
        assert not shows(error, SECRET), "The error shows a secret."


def frames_of(error: BaseException) -> str:
    """Return what Errbot sends to Sentry about an error: its frames with their local variables.

    The frames before the plugin's belong to this test and to Errbot.
    """
    step, plugin = error.__traceback__, str(Path(inspect.getfile(Config)).resolve())
    while step and str(Path(step.tb_frame.f_code.co_filename).resolve()) != plugin:
        step = step.tb_next
    assert step, "The error was not raised in the plugin."
    shown = traceback.TracebackException(type(error), error, step, capture_locals=True)
    return "".join(shown.format())


def wrong_configs() -> Iterator[Any]:
    """Yield wrong keys of STORAGE_CONFIG, to be combined with all secrets."""
    yield pytest.param({"signing_kye": SECRET}, id="unknown key")
    for key in Config.model_fields:
        for wrong in [{SECRET: SECRET}, [SECRET, 5], 5j]:
            yield pytest.param({key: wrong}, id=f"{key} is a {type(wrong).__name__}")
    yield pytest.param({"signing_key": [SECRET, "short"]}, id="short signing_key")
    for key in secret_keys():
        for url in ["no url", f"nonsense://user:{SECRET}@host", f"postgresql://u:{SECRET}@[::1"]:
            yield pytest.param({key: url, "timeout": 0}, id=f"{key} is {url.replace(SECRET, '*')}")


@pytest.mark.parametrize("wrong", list(wrong_configs()))
def test_no_frame_of_an_error_shows_a_secret(database: Database, wrong: dict[str, Any]) -> None:
    database.config.STORAGE_CONFIG = with_secrets() | wrong
    with pytest.raises(ValueError, match="STORAGE_CONFIG") as caught:
        database.plugin()
    shown = frames_of(caught.value)
    assert not shows(shown, SECRET), f"Errbot sends this to Sentry (BOT_LOG_SENTRY):\n{shown}"


@pytest.mark.parametrize("wrong", [[SECRET], SECRET, {5: SECRET}.items()], ids=["list", "str", "?"])
def test_no_frame_shows_a_config_that_is_not_a_dict(database: Database, wrong: object) -> None:
    database.config.STORAGE_CONFIG = wrong
    with pytest.raises(ValueError, match="STORAGE_CONFIG") as caught:
        database.plugin()
    assert not shows(frames_of(caught.value), SECRET), "Errbot sends it to Sentry (BOT_LOG_SENTRY)."


def test_no_frame_shows_a_secret_if_the_database_is_away(
    database: Database, faults: Faults
) -> None:
    addresses = re.compile(r"(?<=@)[^/]*")  # replaced by one where nothing listens
    secrets = {key: addresses.sub("127.0.0.1:1", value) for key, value in SECRETS.items()}
    database.config.STORAGE_CONFIG |= faults.unreachable() | secrets | {"timeout": 1.0}
    with pytest.raises(Exception) as caught:  # noqa: PT011
        database.plugin().open("namespace").get("key")
    shown = frames_of(caught.value)
    assert not shows(shown, SECRET), f"Errbot sends this to Sentry (BOT_LOG_SENTRY):\n{shown}"


def test_neither_vars_nor_a_pickle_shows_a_secret(database: Database) -> None:
    database.config.STORAGE_CONFIG |= {"signing_key": [f"{SECRET} old", SECRET]}
    plugin = database.plugin()
    storage = plugin.open("namespace")
    # Errbot itself stores STORAGE_CONFIG in the plugin.
    mine = {name: value for name, value in vars(plugin).items() if name != "_storage_config"}
    shown = [repr(storage), str(storage), repr(vars(storage))]
    shown += [repr(plugin), str(plugin), repr(mine), *map(repr, mine.values())]
    assert not [text for text in shown if shows(text, SECRET)], "vars() shows a secret."
    with pytest.raises(Exception):  # noqa: B017, PT011
        pickle.dumps(storage)


PART = "q7xz"
"""Is in every part of a secret, because special characters may split it."""


@pytest.mark.parametrize("quoted", [False, True], ids=["as it is", "percent-encoded"])
@pytest.mark.parametrize("key", secret_keys())
def test_no_part_of_a_secret_shows(
    database: Database, log_lines: list[str], key: str, quoted: bool
) -> None:
    shown: list[str] = []
    storage_config = dict(database.config.STORAGE_CONFIG)
    for mark in ["/", "@", "%", "%40", "'", '"', "?", "#", ":", "\\", " ", "]", "&", "é", "@x/y:z"]:
        secret = f"1{PART}{mark}2{PART}{mark}3{PART}"
        value = with_secrets()[key].replace(SECRET, quote(secret, safe="") if quoted else secret)
        database.config.STORAGE_CONFIG = storage_config | {key: value, "timeout": 0.5}
        try:
            plugin = database.plugin()
            storage = plugin.open("namespace")
            mine = {name: each for name, each in vars(plugin).items() if name != "_storage_config"}
            shown += map(repr, [plugin, storage, mine, vars(storage)])
            storage.set("key", MARK)
            storage.get("key")
        except Exception as error:
            shown += [*traceback.format_exception(error), repr(error), frames_of(error)]
        if told := [text for text in [*shown, *log_lines] if PART in text]:
            pytest.fail(f"A part of {key} shows if it contains {mark!r}: {told[0]}")
{%- if cookiecutter.database == "sqlite" %}


@pytest.mark.parametrize(("synchronous", "number"), [(None, 1), ("normal", 1), ("full", 2)])
def test_sqlite_waits_for_the_disk_as_configured(
    database: Database, synchronous: str | None, number: int
) -> None:
    database.config.STORAGE_CONFIG |= {"synchronous": synchronous} if synchronous else {}
    plugin: Any = database.plugin()
    assert plugin.run("PRAGMA synchronous")[0] == [(number,)], (
        "After a power failure, more is lost than README.md says, or the file is damaged."
    )


LONG = 2.5
"""Seconds for which another program may write, if `timeout` allows it."""


def test_a_long_timeout_is_waited_for(database: Database, tmp_path: Path) -> None:
    database.config.STORAGE_CONFIG["timeout"] = 60
    storage = database.open("namespace", database.plugin())
    other = sqlite3.connect(
        tmp_path / "errbot.sqlite3", isolation_level=None, check_same_thread=False
    )
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(LONG, other.close)
    timer.start()
    storage.set("key", MARK)
    timer.join()
    assert storage.get("key") == MARK


def test_a_file_may_be_outside_the_bots_folder(database: Database, tmp_path: Path) -> None:
    database.config.STORAGE_CONFIG["path"] = str(tmp_path / "shared.sqlite3")
    for name in ["one", "two"]:
        (tmp_path / name).mkdir()
        database.config.BOT_DATA_DIR = str(tmp_path / name)
        storage = database.open("namespace", database.plugin())
        storage.set(name, MARK)
    assert contents(storage) == {"one": MARK, "two": MARK}, (
        "Two bots on one file do not see the same. Keep nothing in BOT_DATA_DIR that the data need."
    )


@pytest.mark.parametrize("names", [["bot.one", "bot.two"], ["a b", "a", "a.sqlite3"]], ids=repr)
def test_files_of_bots_in_one_folder_are_told_apart(database: Database, names: list[str]) -> None:
    for name in names:
        database.config.STORAGE_CONFIG["path"] = name
        database.open("namespace", database.plugin()).set("key", name)
    for name in names:
        database.config.STORAGE_CONFIG["path"] = name
        assert database.open("namespace", database.plugin()).get("key") == name
    found = {path.name for path in Path(database.config.BOT_DATA_DIR).iterdir()}
    assert set(names) <= found, "The file has another name than `path` says."
{%- endif %}
