"""Moving a bot from Shelf and between databases, with kills and re-signing, as README says."""

import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import clean_environment, environment, files, pythons, run
from pytest_cookies.plugin import Cookies
from servers.mariadb import MariaDB
from servers.postgresql import PostgreSQL
from servers.redis import Redis, RedisCluster

NAMES = ["sqlite", "postgresql", "mariadb", "redis", "cluster"]
BAKES = {"sqlite": "sqlite", "redis": "redis", "cluster": "redis"}
PASSWORD = "hunter2-s3cret"
OLD = "old-signing-key-of-the-bot"
NEW = "new-signing-key-of-the-bot"
KILLS = 20
KEYS = 2_000

# What a bot of seven plugins has stored: its own classes are modules that only Errbot loads.
WRITE_SHELF = """
import datetime, enum, sys, types
from errbot.storage.shelf import ShelfStoragePlugin

folder, keys = sys.argv[1], int(sys.argv[2])
plugin = ShelfStoragePlugin(types.SimpleNamespace(STORAGE_CONFIG={}, BOT_DATA_DIR=folder))
for number in range(7):
    name = f"Plugin {number}"
    module = types.ModuleType(f"errbot.plugins.{number}")
    sys.modules[module.__name__] = module
    class Note:
        pass
    class Level(enum.Enum):
        HIGH = 1
    for kind in [Note, Level]:
        kind.__module__, kind.__qualname__ = module.__name__, kind.__name__
        setattr(module, kind.__name__, kind)
    storage = plugin.open(name)
    note = Note()
    note.when, note.level = datetime.datetime(2026, 1, 2, 3, 4, 5), Level.HIGH
    for key in range(keys // 7):
        storage.set(f"größe {key}", [key, note])
    storage.close()
for name, values in [
    ("core", {"configs": {"Notes": {"GREETING": "Good morning"}}, "bl_plugins": ["Plugin 3"]}),
    ("Notes", {"notes": ["milk", "bread"]}),
    ("test_backend", {"rooms": {("a", 1): {1, 2}}}),
    ("repomgr", {"installed_repos": {}}),
]:
    storage = plugin.open(name)
    for key, value in values.items():
        storage.set(key, value)
    storage.close()
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for servers. Those of pytest are closed to `nobody`, as whom servers may run."""
    with tempfile.TemporaryDirectory(prefix="servers-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[Callable[[str], Any]]:
    """Starts each server when it is first asked for."""
    made = {"postgresql": PostgreSQL, "mariadb": MariaDB, "redis": Redis, "cluster": RedisCluster}
    running: dict[str, Any] = {}

    def server(name: str) -> Any:
        if name not in running:
            one: Any = made[name](folder / name)
            running[name] = one
            one.start()
            if hasattr(one, "add_account"):
                one.add_account("bot", PASSWORD, "bot")
        return running[name]

    yield server
    for one in running.values():
        one.stop()


class Storage:
    """The storage of a bot in one database: its config.py, and the program with the commands."""

    def __init__(self, name: str, project: Path, folder: Path, storage_config: Any) -> None:
        self.name = name
        self.folder = folder
        self.source = project / "src"
        self.package = next(self.source.iterdir()).name
        self.config = folder / "config.py"
        self.settings = {
            "STORAGE": "Acme",
            "STORAGE_CONFIG": storage_config,
            "BOT_EXTRA_STORAGE_PLUGINS_DIR": str(self.source),
            "BOT_DATA_DIR": str(folder),
        }
        folder.mkdir(parents=True)
        self.keys(NEW)

    def keys(self, *keys: str) -> None:
        """Give the bot these signing keys, the newest last."""
        self.settings["STORAGE_CONFIG"]["signing_key"] = list(keys)
        text = "".join(f"{name} = {value!r}\n" for name, value in self.settings.items())
        self.config.write_text(text)

    def command(self, *words: object) -> list[str]:
        """Return the command that runs one of the commands from the checkout."""
        program = self.source / self.package / "__main__.py"
        return [sys.executable, str(program), *map(str, words), "-c", str(self.config)]

    def run(self, *words: object) -> str:
        """Run a command, which must end well, and return what it printed."""
        return run(*self.command(*words), cwd=self.folder)

    def plugin(self) -> Any:
        """Start the storage plugin, as a bot does."""
        from types import SimpleNamespace

        from errbot.bootstrap import get_storage_plugin

        plugin: Any = get_storage_plugin(SimpleNamespace(**self.settings))
        return plugin

    def contents(self) -> dict[tuple[str, str], bytes]:
        """Return the pickles of all values; each must be signed."""
        found = {}
        plugin = self.plugin()
        for namespace in plugin.namespaces():
            storage = plugin.open(namespace)
            for key in list(storage.keys()):
                found[namespace, key] = storage.signer(key).unsign(storage.read(key))
        return found


@pytest.fixture
def storage(
    cookies_session: Cookies, servers: Callable[[str], Any], tmp_path: Path
) -> Callable[[str], Storage]:
    """Makes an empty storage of that name, beside those of other tests."""
    count = 0

    def storage(name: str) -> Storage:
        nonlocal count
        count += 1
        result = cookies_session.bake(extra_context={"database": BAKES.get(name, "sql")})
        assert result.exception is None, result.exception
        part = f"t{random.getrandbits(40)}"
        config: dict[str, Any] = {}
        if name in ("redis", "cluster"):
            config = {"url": servers(name).url, "prefix": f"{part}:", "cluster": name == "cluster"}
        elif name != "sqlite":
            url = f"{name}://bot:{PASSWORD}@127.0.0.1:{servers(name).port}/bot"
            config = {"url": url, "table": part}
        project = Path(shutil.copytree(result.project_path, tmp_path / f"project{count}"))
        return Storage(name, project, tmp_path / f"{name}{count}", config)

    return storage


@pytest.fixture(scope="module", params=["3.11", "3.13"])
def shelf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Shelf of seven plugins, written by Errbot with that Python: dbm.dumb, dbm.sqlite3 ..."""
    if request.param not in pythons():
        pytest.skip(f"no Python {request.param}")
    folder = tmp_path_factory.mktemp("shelf")
    python = Path(sys.executable)
    if sys.version_info[:2] != tuple(map(int, request.param.split("."))):
        python = environment(folder / "venv", pythons()[request.param], "errbot>=6.2.1")
    data = folder / "data"
    data.mkdir()
    run(python, "-c", WRITE_SHELF, data, KEYS, cwd=folder, env=clean_environment())
    (folder / "old_config.py").write_text(f"BOT_DATA_DIR = {str(data)!r}\nBACKEND = 'Test'\n")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_one_command_moves_a_bot_from_shelf(
    shelf: Path, storage: Callable[[str], Storage], name: str
) -> None:
    new = storage(name)
    before = files(shelf / "data")
    printed = new.run("move", shelf / "old_config.py")
    number = KEYS // 7 * 7 + 5
    assert printed.splitlines()[-1] == f"11 namespaces, {number} keys: all equal"
    assert files(shelf / "data") == before, "The Shelf was changed."
    assert len(new.contents()) == number
    answers = talk(new, "!notes")
    assert "Good morning: milk, bread" in answers, "The bot has forgotten something."


TALK = """
import json, logging, sys
from errbot.backends.test import TestBot
logging.disable(logging.CRITICAL)
config, plugins, command = json.loads(sys.argv[1])
config |= {"BOT_ADMINS": ("gbin@localhost",), "CORE_PLUGINS": ("Plugins", "Utils")}
config["BOT_LOG_FILE"] = config["BOT_DATA_DIR"] + "/errbot.log"
bot = TestBot(extra_plugin_dir=plugins, extra_config=config)
bot.start()
print(bot.exec_command(command))
bot.stop()
"""


def talk(new: Storage, command: str) -> str:
    """Start a real bot on a storage, in a process of its own, and return its answer."""
    plugins = new.source.parent / "tests" / "contract" / "support" / "notes_plugin"
    given = json.dumps([new.settings, str(plugins), command])
    return " ".join(run(sys.executable, "-c", TALK, given, cwd=new.folder).split())


@pytest.mark.parametrize("target", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_a_bot_moves_from_each_database_to_each(
    storage: Callable[[str], Storage], source: str, target: str
) -> None:
    if source == target == "cluster":
        pytest.skip("as from redis to the Cluster, and back")
    old, new = storage(source), storage(target)
    old.keys(OLD)
    fill(old, 300)
    printed = new.run("move", old.config)
    assert printed.splitlines()[-1] == "4 namespaces, 300 keys: all equal"
    assert new.contents() == old.contents()


def fill(old: Storage, number: int) -> None:
    """Store values of all sizes in four namespaces, under keys that databases mix up."""
    plugin = old.plugin()
    for count in range(number):
        key = ["key", "Key", "key ", "größe", "", "a:b", "%", "😀"][count % 8]
        storage = plugin.open(["core", "Notes", "notes", "a:b"][count % 4])
        storage.set(f"{key}{count // 8}", "x" * (count**2 % 5_000))


def test_a_refused_value_is_reported_and_the_rest_moves(
    storage: Callable[[str], Storage],
) -> None:
    old, new = storage("sqlite"), storage("postgresql")
    fill(old, 40)
    old.plugin().open("core").write("planted", pickle.dumps("planted"))
    command = new.command("move", old.config)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "core, planted: unsigned" in done.stdout
    assert len(new.contents()) == 40


def wait_until_it_writes(new: Storage, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a move has written more than was there, or has ended."""
    plugin = new.plugin()
    opened = [plugin.open(namespace) for namespace in ["core", "Notes", "notes", "a:b"]]
    before = sum(storage.len() for storage in opened)
    while process.poll() is None and sum(storage.len() for storage in opened) == before:
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["sqlite", "postgresql"])
def test_a_move_that_was_killed_is_completed_by_running_it_again(
    storage: Callable[[str], Storage], name: str
) -> None:
    old, new = storage("sqlite"), storage(name)
    fill(old, 3_000)
    before = old.contents()
    chance = random.Random(1)
    partly = 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            new.command("move", old.config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until_it_writes(new, process)
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        here = new.contents()
        assert here.items() <= before.items(), "A kill left something else than what was moved."
        partly += 0 < len(here) < len(before)
        if len(here) == len(before):  # too late: let the next one have something to do
            for namespace in ["core", "Notes", "a:b"]:
                new.run("delete", "--yes", namespace)
    assert partly, "No move was killed while it wrote."
    assert new.run("move", old.config).splitlines()[-1] == "4 namespaces, 3000 keys: all equal"
    assert new.contents() == before
    assert old.contents() == before, "The old storage was changed."


@pytest.mark.parametrize("name", NAMES)
def test_resign_loses_nothing_that_a_bot_writes_meanwhile(
    storage: Callable[[str], Storage], name: str
) -> None:
    bot = storage(name)
    bot.keys(OLD)
    opened = bot.plugin().open("core")
    for number in range(400):
        opened.set(f"key {number}", 0)
    bot.keys(OLD, NEW)
    plugin, stop = bot.plugin(), threading.Event()
    last = [0] * 400

    def write(first: int) -> None:
        writer = plugin.open("core")
        while not stop.is_set():
            for number in range(first, 200, 8):  # the others are not written: only `resign` is
                last[number] += 1
                writer.set(f"key {number}", last[number])

    threads = [threading.Thread(target=write, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            bot.run("resign")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    check = json.loads(bot.run("check", "--json"))
    assert check["total"]["newest"] == 400
    bot.keys(NEW)
    alone = bot.plugin().open("core")
    assert [alone.get(f"key {number}") for number in range(400)] == last, "A write was lost."


def blocks(storage: Storage, heading: str) -> list[str]:
    """Return the shell commands of a section of the baked docs/operation.md."""
    page = (storage.source.parent / "docs/operation.md").read_text(encoding="utf-8")
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    found: list[str] = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found, f"{heading} has no commands."
    return found


def shell(storage: Storage, script: str, status: int = 0, **variables: str) -> str:
    """Run shell commands of that page as they stand, in the folder of config.py."""
    programs = storage.folder / "bin"
    programs.mkdir(exist_ok=True)
    python = programs / "python"
    if not python.exists():
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", script],
        cwd=storage.folder,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(storage.source), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.mark.parametrize("name", ["sqlite", "postgresql", "mariadb", "redis"])
def test_the_readme_moves_signs_and_repairs(
    shelf: Path, storage: Callable[[str], Storage], name: str
) -> None:
    bot = storage(name)
    config = bot.config.read_text()
    bot.config.write_text((shelf / "old_config.py").read_text())
    keep, move = blocks(bot, "Move a bot here")
    shell(bot, keep)
    del bot.settings["STORAGE_CONFIG"]["signing_key"]
    unsigned = "".join(f"{name} = {value!r}\n" for name, value in bot.settings.items())
    bot.config.write_text(unsigned)
    assert "all equal" in shell(bot, move)

    make, sign = blocks(bot, "Begin to sign")
    key = shell(bot, make).strip()
    bot.keys(key)
    assert "all good" in shell(bot, sign)
    bot.keys(key, NEW)
    [change] = blocks(bot, "Change the signing key")
    assert "key 1 of 2 of signing_key: no value needs it" in shell(bot, change)
    bot.config.write_text(config)
    bot.keys(NEW)
    bot.plugin().open("Notes").write("notes", b"spoilt")
    [repair] = blocks(bot, "One bad value")
    printed = shell(bot, repair.replace("check\n", "check || true\n"))
    assert "Notes, notes: no whole pickle" in printed
    assert "Deleted the key notes of Notes." in printed
    assert "all good" in bot.run("check")


def test_the_readme_backs_up_and_restores_sqlite(storage: Callable[[str], Storage]) -> None:
    bot = storage("sqlite")
    fill(bot, 40)
    before = bot.contents()
    back_up, restore = blocks(bot, "Back up and restore")
    shell(bot, back_up)
    bot.plugin().open("core").set("late", 1)
    shell(bot, restore)
    assert bot.contents() == before


@pytest.mark.parametrize("name", ["postgresql", "mariadb"])
def test_the_readme_backs_up_and_restores_sql(
    storage: Callable[[str], Storage], servers: Callable[[str], Any], name: str
) -> None:
    bot = storage(name)
    table = bot.settings["STORAGE_CONFIG"]["table"]
    fill(bot, 40)
    before = bot.contents()
    script = blocks(bot, "Back up and restore")[0 if name == "postgresql" else 1]
    back_up, restore = script.replace("errbot_storage", table).strip().split("\n")
    url = f"postgresql://bot:{PASSWORD}@127.0.0.1:{servers(name).port}/bot"
    if name == "mariadb":
        account = f"--no-defaults -h127.0.0.1 -P{servers(name).port} -ubot -p{PASSWORD}"
        back_up, restore = (
            re.sub(r"^(mariadb\S*)", rf"\1 {account}", line).replace(" errbot ", " bot ")
            for line in [back_up, restore]
        )
    if name == "postgresql":
        binaries = str(Path(servers(name).psql).parent)
        os.environ["PATH"] += os.pathsep + binaries
    shell(bot, back_up, DATABASE_URL=url)
    bot.plugin().open("core").set("late", 1)
    shell(bot, restore, DATABASE_URL=url)
    assert bot.contents() == before


def test_the_readme_backs_up_and_restores_redis(
    storage: Callable[[str], Storage], servers: Callable[[str], Any]
) -> None:
    bot = storage("redis")
    fill(bot, 40)
    before = bot.contents()
    back_up, serve, move = blocks(bot, "Back up and restore")
    shell(bot, back_up, REDIS_URL=servers("redis").url)
    bot.plugin().open("core").set("late", 1)
    bot.plugin().open("core").remove("key0")
    from servers.base import free_port

    port = free_port()
    serve = serve.replace("6400", str(port)).replace("redis-server", "exec redis-server")
    server = subprocess.Popen(["sh", "-ec", serve], cwd=bot.folder, stdout=subprocess.DEVNULL)
    try:
        url = bot.settings["STORAGE_CONFIG"]["url"]
        text = bot.config.read_text().replace(url, f"redis://127.0.0.1:{port}/0")
        (bot.folder / "backup_config.py").write_text(text)
        time.sleep(1)
        assert "all equal" in shell(bot, move)
    finally:
        server.terminate()
        server.wait()
    assert bot.contents() == before
