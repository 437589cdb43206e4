"""Moving a bot from Shelf and between databases, and the commands in docs/operation.md."""

import json
import multiprocessing
import os
import pickle
import random
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from conftest import clean_environment, environment, files, pythons, run
from dulwich import porcelain
from pytest_cookies.plugin import Cookies
from servers.base import free_port, needs
from servers.mariadb import MariaDB
from servers.postgresql import PostgreSQL
from servers.redis import Redis, RedisCluster

# These processes start fast, because everything is imported already.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        *("errbot.bootstrap", "click", "itsdangerous", "pydantic", "pickletools", "sqlite3"),
        *(
            "sqlalchemy",
            "psycopg",
            "pymysql",
            "redis",
            "pytest",
            "pytest_cookies.plugin",
            "dulwich",
        ),
    ]
)
NAMES = ["sqlite", "postgresql", "mariadb", "redis", "cluster"]
SLOW, NIGHTLY = pytest.mark.slow, pytest.mark.nightly
SOME = [name if name == "sqlite" else pytest.param(name, marks=SLOW) for name in NAMES]
"""Databases for tests that take long: `make test-slow` runs them on all."""
AROUND = [*pairwise([*NAMES, NAMES[0]])]
"""Moves that lead through all databases: `make test-slow` moves from each to each."""
BAKES = {"sqlite": "sqlite", "redis": "redis", "cluster": "redis"}
PASSWORD = "hunter2-s3cret"
OLD = "old-signing-key-of-the-bot"
NEW = "new-signing-key-of-the-bot"
KEYS = 2_000

# A plugin of the bot, with its own classes, which only Errbot can load.
PLUGIN = """
import datetime, enum
from errbot import BotPlugin, botcmd

class Level(enum.Enum):
    HIGH = 1

class Entry:
    def __init__(self, number):
        self.when = datetime.datetime(2026, 1, 2, 3, number // 60, number % 60)
        self.level = Level.HIGH

class {name}(BotPlugin):
    @botcmd
    def {module}_fill(self, _message, number):
        for key in range(int(number)):
            self[f"größe {{key}}"] = [key, Entry(key)]
        self._bot["rooms"] = {{("a", 1): {{1, 2}}}}

    @botcmd
    def {module}_sum(self, _message, _arguments):
        keys, entries = zip(*self.values())
        assert all(type(entry) is Entry for entry in entries)
        levels = {{entry.level for entry in entries}}
        when = max(entry.when for entry in entries)
        return f"{name}: {{len(self)}}, {{sum(keys)}}, {{when}}, {{levels}}, {{self._bot['rooms']}}"
"""

# A real bot. It uses only one thread, because Errbot's Shelf on Python 3.13 fails in a second one.
TALK = """
import json, logging, sys
from errbot.backends.test import QUIT_MESSAGE, TestBot
from errbot.bootstrap import setup_bot
logging.disable(logging.CRITICAL)
config, plugins, commands = json.loads(sys.argv[1])
config |= {"BOT_ADMINS": ("gbin@localhost",), "CORE_PLUGINS": ("Health", "Help", "Plugins")}
config |= {"BOT_LOG_FILE": config["BOT_DATA_DIR"] + "/errbot.log", "BOT_ASYNC": False}
config |= {"BOT_PLUGIN_INDEXES": plugins + "/index.json"}
test_bot = TestBot(extra_plugin_dir=plugins, extra_config=config)
bot = setup_bot("Test", test_bot.logger, test_bot.bot_config)
for command in [*commands, QUIT_MESSAGE]:
    bot.push_message(command)
bot.serve_forever()
while not bot.outgoing_message_queue.empty():
    print(*bot.pop_message().split())
"""


def talk(python: Path, settings: dict[str, Any], plugins: Path, *commands: str) -> str:
    """Start a real bot in a new process, and return its answers to some commands."""
    given = json.dumps([settings, str(plugins), commands])
    answers = run(python, "-c", TALK, given, cwd=plugins, env=clean_environment())
    return answers.replace("\\n", " ")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for servers. `nobody`, who may run them, cannot access pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="servers-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[Callable[[str], Any]]:
    """Starts each server when it is first needed."""
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


def execute(command: list[str], printed: Path, variables: dict[str, str]) -> None:
    """Run a program in this process, as if it had been started with this command."""
    sys.argv = command
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in [1, 2]:
        os.dup2(output, number)
    os.chdir(printed.parent)
    os.environ.update(variables)
    runpy.run_path(command[0], run_name="__main__")


class Storage:
    """A bot's storage in one database, its config.py, and the program with the commands."""

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

    def start(self, *words: object) -> BaseProcess:
        """Start a command from the checkout. Its output goes to the file `printed`."""
        program = str(self.source / self.package / "__main__.py")
        command = [program, *map(str, words), "-c", str(self.config)]
        given = command, self.folder / "printed", dict(os.environ)
        process = PROCESSES.Process(target=execute, args=given)
        process.start()
        return process

    def run(self, *words: object, status: int = 0) -> str:
        """Run a command, which must exit with this status, and return its output."""
        process = self.start(*words)
        process.join()
        printed = (self.folder / "printed").read_text(encoding="utf-8")
        assert process.exitcode == status, f"{words} ended with {process.exitcode}: {printed}"
        assert "Traceback" not in printed
        return printed

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
            if hasattr(plugin, "_sql"):  # SQL: one query is ten times as fast
                name = namespace.encode()
                rows = plugin.run("items", n=name, k=b"", s=10**6)[0]
                rows = [(bytes(key).decode(), bytes(data)) for key, data in rows]
                assert len(rows) == storage.len(), "A key is empty."
            else:
                rows = [(key, storage.read(key)) for key in list(storage.keys())]
            for key, data in rows:
                found[namespace, key] = storage.signer(key).unsign(data)
        return found


@pytest.fixture(scope="module")
def projects(cookies_session: Cookies) -> dict[str, Path]:
    """A project for each database. Tests must not change them."""
    found = {}
    for database in ["sqlite", "sql", "redis"]:
        result = cookies_session.bake(extra_context={"database": database})
        assert result.exception is None, result.exception
        found[database] = Path(result.project_path)
    return found


@pytest.fixture
def storage(
    projects: dict[str, Path], servers: Callable[[str], Any], tmp_path: Path
) -> Callable[[str], Storage]:
    """Creates an empty storage of that name, next to those of other tests."""
    count = 0

    def storage(name: str) -> Storage:
        nonlocal count
        count += 1
        part = f"t{random.getrandbits(40)}"
        config: dict[str, Any] = {}
        if name in ("redis", "cluster"):
            config = {"url": servers(name).url, "prefix": f"{part}:", "cluster": name == "cluster"}
        elif name != "sqlite":
            url = f"{name}://bot:{PASSWORD}@127.0.0.1:{servers(name).port}/bot"
            config = {"url": url, "table": part}
        project = projects[BAKES.get(name, "sql")]
        return Storage(name, project, tmp_path / f"{name}{count}", config)

    return storage


@pytest.fixture(scope="module")
def plugins(projects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with six of a bot's plugins, next to a git repository with a seventh one."""
    team = tmp_path_factory.mktemp("plugins") / "team"
    support = projects["sqlite"] / "tests" / "contract" / "support"
    folder = Path(shutil.copytree(support / "notes_plugin", team / "plugins"))
    (folder / "index.json").write_text("{}")
    repository = team / "diary"
    repository.mkdir()
    for number in range(1, 7):
        where, module = repository if number == 6 else folder, f"plugin{number}"
        core, python = f"Name = Plugin{number}\nModule = {module}", "Version = 3"
        (where / f"{module}.plug").write_text(f"[Core]\n{core}\n[Python]\n{python}\n")
        text = PLUGIN.format(name=f"Plugin{number}", module=module)
        (where / f"{module}.py").write_text(text, encoding="utf-8")
    porcelain.init(str(repository))
    porcelain.add(str(repository), [str(file) for file in repository.glob("plugin*")])
    author = b"Somebody <somebody@example.com>"
    porcelain.commit(str(repository), message=b"Begin", author=author, committer=author)
    return folder


SUMS = [f"!plugin{number} sum" for number in range(1, 7)]


@pytest.fixture(scope="module", params=[pytest.param("3.11", marks=pytest.mark.nightly), "3.13"])
def shelf(
    request: pytest.FixtureRequest, plugins: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bot with Errbot's Shelf, run by that Python: dbm.dumb on 3.11, dbm.sqlite3 on 3.13.

    It has seven plugins: one comes from a repository, another one is blacklisted.
    """
    if request.param not in pythons():
        pytest.skip(f"no Python {request.param}")
    folder = tmp_path_factory.mktemp("shelf")
    python = Path(sys.executable)
    if sys.version_info[:2] != tuple(map(int, request.param.split("."))):
        python = environment(
            folder / "venv", pythons()[request.param], "errbot>=6.2.1", "pytest>=8"
        )
    data = folder / "data"
    data.mkdir()
    answers = talk(
        *(python, {"BOT_DATA_DIR": str(data), "STORAGE": "Shelf"}, plugins),
        f"!repos install {plugins.parent / 'diary'}",
        "!plugin config Notes {'GREETING': 'Good morning'}",
        *("!note milk", "!note bread"),
        *(f"!plugin{number} fill {KEYS // 6}" for number in range(1, 7)),
        *SUMS,
        "!plugin blacklist Plugin3",
    )
    (folder / "answers").write_text(answers, encoding="utf-8")
    (folder / "old_config.py").write_text(f"BOT_DATA_DIR = {str(data)!r}\nBACKEND = 'Test'\n")
    return folder


def sums(answers: str) -> list[str]:
    """Return the plugins' answers about what they have stored."""
    return sorted(line for line in answers.splitlines() if re.match(r"Plugin\d: ", line))


@pytest.mark.parametrize("name", SOME)
def test_one_command_moves_a_bot_from_shelf(
    shelf: Path, storage: Callable[[str], Storage], plugins: Path, name: str
) -> None:
    before_the_move = sums((shelf / "answers").read_text(encoding="utf-8"))
    assert len(before_the_move) == 6, "The old bot has not stored everything."
    new = storage(name)
    before = files(shelf / "data")
    printed = new.run("move", shelf / "old_config.py")
    # Six plugins' keys, one key of Notes, one of the backend, and two each of Errbot's core and its
    # repository manager.
    number = KEYS // 6 * 6 + 1 + 1 + 2 + 2
    assert printed.splitlines()[-1] == f"10 namespaces, {number} keys: all equal"
    assert files(shelf / "data") == before, "The Shelf was changed."
    assert len(new.contents()) == number

    shutil.copytree(shelf / "data" / "plugins", new.folder / "plugins")
    commands = ["!notes", "!repos", "!status plugins", *SUMS]
    commands += ["!plugin unblacklist Plugin3", "!plugin3 sum"]
    answers = talk(Path(sys.executable), new.settings, plugins, *commands)
    first, after = answers.split("removed from blacklist")
    assert "Good morning: milk, bread" in answers, "The bot has forgotten something."
    assert "team/diary" in first, "The bot has forgotten the repository."
    assert re.search(r"\bB,D\W+Plugin3\b", first), "The plugin is no longer blacklisted."
    assert not [line for line in sums(first) if line.startswith("Plugin3")]
    assert sums(first + after) == before_the_move, "The plugins have forgotten something."


@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param(*pair, marks=[] if pair in AROUND else SLOW)
        for pair in product(NAMES, NAMES)
        if pair != ("cluster", "cluster")  # Moves from redis to the Cluster and back cover it.
    ],
)
def test_a_bot_moves_from_each_database_to_each(
    storage: Callable[[str], Storage], source: str, target: str
) -> None:
    old, new = storage(source), storage(target)
    old.keys(OLD)
    fill(old, 300)
    printed = new.run("move", old.config)
    assert printed.splitlines()[-1] == "4 namespaces, 300 keys: all equal"
    assert new.contents() == old.contents()


def fill(old: Storage, number: int) -> None:
    """Store values of many sizes in four namespaces, under keys that databases may mix up."""
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
    assert "core, planted: unsigned" in new.run("move", old.config, status=1)
    assert len(new.contents()) == 40


def wait_until_it_writes(new: Storage, process: BaseProcess) -> None:
    """Wait until a move has written something, or has ended."""
    plugin = new.plugin()
    opened = [plugin.open(namespace) for namespace in ["core", "Notes", "notes", "a:b"]]
    before = sum(storage.len() for storage in opened)
    while process.is_alive() and sum(storage.len() for storage in opened) == before:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("sqlite", 3),
        pytest.param("postgresql", 5, marks=SLOW),
        *(pytest.param(name, 20, marks=NIGHTLY) for name in ["sqlite", "postgresql"]),
    ],
)
def test_a_move_that_was_killed_is_completed_by_running_it_again(
    storage: Callable[[str], Storage], name: str, kills: int
) -> None:
    old, new = storage("sqlite"), storage(name)
    fill(old, 3_000)
    before = old.contents()
    chance = random.Random(1)
    partly = 0
    for _ in range(kills):
        process = new.start("move", old.config)
        wait_until_it_writes(new, process)
        time.sleep(chance.uniform(0, 0.3))
        process.kill()
        process.join()
        here = new.contents()
        assert here.items() <= before.items(), "A killed move left other values."
        partly += 0 < len(here) < len(before)
        if len(here) == len(before):  # It was complete: start again with an empty storage.
            new = storage(name)
    assert partly, "No move was killed while it wrote."
    assert new.run("move", old.config).splitlines()[-1] == "4 namespaces, 3000 keys: all equal"
    assert new.contents() == before
    assert old.contents() == before, "The old storage was changed."


@pytest.mark.parametrize("name", SOME)
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
            for number in range(first, 200, 8):  # `resign` alone writes the other keys.
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


def section(storage: Storage, heading: str) -> str:
    """Return a section of the bake's docs/operation.md."""
    page = (storage.source.parent / "docs/operation.md").read_text(encoding="utf-8")
    return page.split(f"## {heading}\n")[1].split("\n## ")[0]


def blocks(storage: Storage, heading: str, language: str = "sh") -> list[str]:
    """Return the shell blocks of a section, or its blocks in another language."""
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", section(storage, heading), re.DOTALL)
    assert found, f"{heading} has no commands."
    return found


def shell(storage: Storage, script: str, status: int = 0, **variables: str) -> str:
    """Run shell commands from that page in the folder of config.py."""
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


@pytest.mark.parametrize("name", SOME[:4])
def test_the_documented_commands_move_sign_and_repair(
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
    assert "signing_key 1 of 2: not needed" in shell(bot, change)
    bot.config.write_text(config)
    bot.keys(NEW)
    bot.plugin().open("Notes").write("notes", b"spoilt")
    [repair] = blocks(bot, "One bad value")
    printed = shell(bot, repair.replace("check\n", "check || true\n"))
    assert "Notes, notes: not an intact pickle" in printed
    assert "Deleted the key notes of Notes." in printed
    assert "all good" in bot.run("check")


def test_a_documented_backup_of_sqlite_can_be_restored(storage: Callable[[str], Storage]) -> None:
    bot = storage("sqlite")
    fill(bot, 40)
    before = bot.contents()
    back_up, restore = blocks(bot, "Back up and restore")
    shell(bot, back_up)
    bot.plugin().open("core").set("late", 1)
    shell(bot, restore)
    assert bot.contents() == before


@pytest.mark.parametrize("name", ["postgresql", pytest.param("mariadb", marks=SLOW)])
def test_a_documented_backup_of_sql_can_be_restored(
    storage: Callable[[str], Storage], servers: Callable[[str], Any], name: str
) -> None:
    bot = storage(name)
    table = bot.settings["STORAGE_CONFIG"]["table"]
    fill(bot, 40)
    before = bot.contents()
    script = blocks(bot, "Back up and restore")[0 if name == "postgresql" else 1]
    back_up, restore = script.replace("errbot_storage", table).strip().split("\n")
    needs("pg_dump" if name == "postgresql" else "mariadb-dump", package=f"the client of {name}")
    url = f"postgresql://bot:{PASSWORD}@127.0.0.1:{servers(name).port}/bot"
    if name == "mariadb":
        account = f"--no-defaults -h127.0.0.1 -P{servers(name).port} -ubot -p{PASSWORD}"
        back_up, restore = (
            re.sub(r"^(mariadb\S*)", rf"\1 {account}", line).replace(" errbot ", " bot ")
            for line in [back_up, restore]
        )
    shell(bot, back_up, DATABASE_URL=url)
    bot.plugin().open("core").set("late", 1)
    shell(bot, restore, DATABASE_URL=url)
    assert bot.contents() == before


@pytest.mark.parametrize("name", ["redis", "cluster"])
def test_a_documented_backup_of_redis_can_be_restored(
    storage: Callable[[str], Storage],
    servers: Callable[[str], Any],
    folder: Path,
    tmp_path: Path,
    name: str,
) -> None:
    bot = storage(name)
    fill(bot, 40)
    before = bot.contents()
    back_up, serve, move = blocks(bot, "Back up and restore")
    masters = [servers(name)]
    if name == "cluster":
        masters = [node for node in servers(name).nodes if "role:master" in node.cli("info")]
    snapshots = []
    for number, master in enumerate(masters):
        snapshots.append(tmp_path / f"snapshot{number}")
        snapshots[-1].mkdir()
        shell(bot, f"cd {snapshots[-1]}\n{back_up}", REDIS_URL=master.url)
    bot.plugin().open("core").set("late", 1)
    bot.plugin().open("Notes").remove("Key0")
    for snapshot in snapshots:
        port = free_port()
        serve_here = f"cd {snapshot}\n{serve}".replace("6400", str(port))
        serve_here = serve_here.replace("redis-server", "exec redis-server")
        second = Redis(folder / "second", port=port)
        log = (snapshot / "log").open("w")
        second.process = subprocess.Popen(["sh", "-ec", serve_here], stdout=log)
        try:
            second.wait_until(second.is_ready)
            url = bot.settings["STORAGE_CONFIG"]["url"]
            text = bot.config.read_text().replace(url, second.url)
            text = text.replace("'cluster': True", "'cluster': False")
            # Within a second, three such files have the same size: Python would use the first .pyc.
            shutil.rmtree(bot.folder / "__pycache__", ignore_errors=True)
            (bot.folder / "backup_config.py").write_text(text)
            assert "all equal" in shell(bot, move)
        finally:
            second.stop()
    assert bot.contents() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["redis", "cluster"])
def test_the_documented_acl_suits_the_commands(
    storage: Callable[[str], Storage], servers: Callable[[str], Any], name: str
) -> None:
    bot, other = storage(name), storage("sqlite")
    text = section(bot, "Permissions")
    select, scan, evaluate, cluster, setinfo = re.findall(r"`(\+[^`]+)`", text)
    omitted = (select, setinfo)
    assert omitted == ("+select", "+client|setinfo"), "The text says when these can be omitted."
    [acl] = re.findall(r"^ACL SETUSER errbot .*$", text, re.MULTILINE)
    prefix = bot.settings["STORAGE_CONFIG"]["prefix"]
    acl = acl.replace("errbot", "admin", 1).replace("~errbot:", f"~{prefix}")
    nodes = servers(name).nodes if name == "cluster" else [servers(name)]

    def grant(*more: str) -> None:
        for node in nodes:
            words = [*acl.split(), *" ".join(more).split(), *cluster.split()]
            assert (
                node.cli(*(words if name == "cluster" else words[: -len(cluster.split())])) == "OK"
            )

    grant()
    url = bot.settings["STORAGE_CONFIG"]["url"].replace("//", "//admin:PASSWORD@")
    bot.settings["STORAGE_CONFIG"]["url"] = url
    bot.keys(OLD)
    fill(other, 40)
    assert "all equal" in bot.run("move", other.config)
    assert "'xxx" in bot.run("show", "core")
    bot.run("delete", "--yes", "core")
    for command in [["list"], ["check"], ["resign"]]:
        assert "SCAN failed" in bot.run(*command, status=2)
    assert "SCAN failed" in other.run("move", bot.config, status=2)
    grant(scan)
    bot.keys(OLD, NEW)
    bot.run("list")
    bot.run("check")
    assert "EVAL failed" in bot.run("resign", status=2)
    other.run("delete", "--yes", "core")
    assert "all equal" in other.run("move", bot.config)
    grant(scan, evaluate)
    assert "30 values signed" in bot.run("resign")


def test_the_documented_steps_change_the_password_of_redis(
    storage: Callable[[str], Storage], folder: Path
) -> None:
    bot = storage("redis")
    server = Redis(folder / "acl", f"aclfile {folder / 'acl' / 'users.acl'}")
    (server.folder / "users.acl").touch()
    server.start()
    try:
        [acl] = re.findall(r"^ACL SETUSER errbot .*$", section(bot, "Permissions"), re.MULTILINE)
        assert server.cli(*acl.split(), "+scan") == "OK"
        add, remove, save = blocks(bot, "Change the password", "text")[0].splitlines()
        bot.settings["STORAGE_CONFIG"]["prefix"] = "errbot:"

        def use(password: str) -> None:
            url = server.url.replace("//", f"//errbot:{password}@")
            bot.settings["STORAGE_CONFIG"]["url"] = url
            bot.keys(NEW)

        use("PASSWORD")
        bot.plugin().open("core").set("key", 1)
        assert server.cli(*add.split()) == "OK"
        assert "1 key" in bot.run("list"), "The old password no longer works."
        use("NEW-PASSWORD")
        assert "1 key" in bot.run("list")
        assert server.cli(*remove.replace("OLD-PASSWORD", "PASSWORD").split()) == "OK"
        assert server.cli(*save.split()) == "OK"
        server.stop()
        server.start()
        assert "1 key" in bot.run("list")
        use("PASSWORD")
        assert "invalid username-password pair" in bot.run("list", status=2)
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["postgresql", pytest.param("mariadb", marks=SLOW)])
def test_the_documented_steps_change_the_password_of_sql(
    storage: Callable[[str], Storage],
    servers: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    bot, server = storage(name), servers(name)
    server.add_account("errbot", "PASSWORD", "errbot")
    text = section(bot, "Change the password")
    passfile, environment = blocks(bot, "Change the password", "python")
    [line] = re.findall(r"`(\S+:PASSWORD)`", text)
    block = passfile if name == "postgresql" else environment
    block = block.replace("db.example.com", f"127.0.0.1:{server.port}")
    block = block.replace("/etc/errbot", str(bot.folder))

    def use(password: str) -> None:
        given = line.replace("PASSWORD", password).replace("db.example.com", "127.0.0.1")
        file = bot.folder / "pgpass"
        file.write_text(given.replace("5432", str(server.port)) + "\n")
        file.chmod(0o600)
        monkeypatch.setenv("ERRBOT_DATABASE_PASSWORD", password)

    use("PASSWORD")
    settings = {key: value for key, value in bot.settings.items() if key != "STORAGE_CONFIG"}
    lines = "".join(f"{key} = {value!r}\n" for key, value in settings.items())
    bot.config.write_text(f"{lines}{block}")
    given: dict[str, Any] = {}
    exec(bot.config.read_text(), given)
    bot.settings["STORAGE_CONFIG"] = given["STORAGE_CONFIG"]
    running = bot.plugin().open("core")
    running.set("key", 1)
    [change] = re.findall(rf"`(ALTER {'ROLE' if name == 'postgresql' else 'USER'} [^`]*)`", text)
    server.sql(change.replace("new", "p@ss/w%rd"))
    assert running.get("key") == 1, "A running bot has lost its connection."
    assert re.search("password|denied", bot.run("list", status=2))
    use("p@ss/w%rd")
    assert "1 key" in bot.run("list")
