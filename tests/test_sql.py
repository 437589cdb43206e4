"""The `sql` database on real servers: faults, failover, secrets, privileges and round trips."""

import gc
import importlib.util
import logging
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from conftest import (
    SHORT_RUN,
    check_that_a_loop_that_renames_its_keys_ends,
    check_that_ctrl_c_ends_a_wait,
    clean_environment,
    run,
    skipped,
)
from errbot.storage import StoreException
from errbot.storage.base import StorageBase
from pytest_cookies.plugin import Cookies
from servers.base import Server, free_port, needs
from servers.mariadb import SCHEME, MariaDB
from servers.postgresql import PostgreSQL

PASSWORD = "hunter2-s3cret"
THREADS = 8
SERVERS = ["postgresql", SCHEME]
NAMES = [SERVERS[0], pytest.param(SERVERS[1], marks=pytest.mark.slow)]


@pytest.fixture(scope="session")
def project(cookies_session: Cookies) -> Path:
    """A project baked for SQL. Tests must not change it."""
    result = cookies_session.bake(extra_context={"database": "sql"})
    if result.exception:
        raise result.exception
    return Path(result.project_path)


@pytest.fixture(scope="session")
def storage_module(project: Path) -> ModuleType:
    """The module storage.py of that project."""
    file = next(project.glob("src/*/storage.py"))
    spec = importlib.util.spec_from_file_location("baked_sql_storage", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


Connect = Callable[..., Any]
"""Creates a plugin instance for a URL and more keys of STORAGE_CONFIG."""


@pytest.fixture
def connect(storage_module: ModuleType, tmp_path: Path) -> Connect:
    """Connects as a bot does when it starts."""

    def connect(url: str | None, **config: Any) -> Any:
        settings = {"timeout": 5.0, **config} | ({"url": url} if url else {})
        bot_config = SimpleNamespace(STORAGE_CONFIG=settings, BOT_DATA_DIR=str(tmp_path))
        return storage_module.AcmePlugin(bot_config)

    return connect


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for servers. `nobody`, who may run them, cannot access pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="servers-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def postgresql(folder: Path) -> Iterator[PostgreSQL]:
    """A PostgreSQL server with the account and database `bot`."""
    server = PostgreSQL(folder / "postgresql", log_statement="all")
    server.start()
    server.add_account("bot", PASSWORD, "bot")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def mariadb(folder: Path) -> Iterator[MariaDB]:
    """A MariaDB or MySQL server with the account and database `bot`."""
    server = MariaDB(folder / "mariadb")
    server.start()
    server.add_account("bot", PASSWORD, "bot")
    yield server
    server.stop()


def url_of(name: str, port: int, account: str = f"bot:{PASSWORD}", database: str = "bot") -> str:
    """Return the URL of a server on this machine."""
    return f"{name}://{account}@127.0.0.1:{port}/{database}"


def fixture_of(name: str) -> str:
    """Return the name of the fixture that is the server of that name."""
    return "postgresql" if name == "postgresql" else "mariadb"


@pytest.fixture
def server(request: pytest.FixtureRequest, name: str) -> PostgreSQL | MariaDB:
    """The server of that name."""
    server: PostgreSQL | MariaDB = request.getfixturevalue(fixture_of(name))
    return server


@pytest.fixture
def url(request: pytest.FixtureRequest, name: str, tmp_path: Path) -> str:
    """The URL of the server of that name, or of an SQLite file."""
    if name == "sqlite":
        return f"sqlite:///{tmp_path / 'storage.sqlite'}"
    return url_of(name, request.getfixturevalue(fixture_of(name)).port)


@pytest.fixture
def table() -> str:
    """The name of a table that no other test uses."""
    return f"t{random.getrandbits(40)}"


# The whole test suite of the bake


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(
            SERVERS[0], ["--quick"], marks=pytest.mark.slow(minutes=5), id=f"{SERVERS[0]}-quick"
        ),
        pytest.param(
            SERVERS[1], SHORT_RUN, marks=pytest.mark.slow(minutes=3), id=f"{SERVERS[1]}-short"
        ),
        *(pytest.param(name, [], marks=pytest.mark.nightly, id=name) for name in SERVERS),
    ],
)
def test_the_baked_tests_pass(
    project: Path,
    tmp_path: Path,
    name: str,
    options: list[str],
    url: str,
    python_version: str,
    interpreter_of: Callable[[Path, str], Path],
) -> None:
    copy = shutil.copytree(project, tmp_path / "project")
    interpreter = interpreter_of(project, python_version)
    variables = {**clean_environment(), "STORAGE_TEST_URL": url}
    # For each connection, PyMySQL reads all certificates of the system, which doubles the time.
    variables["SSL_CERT_FILE"] = os.devnull
    printed = run(interpreter, "-m", "pytest", "-q", *options, cwd=copy, env=variables)
    passed = printed.splitlines()[-1]
    print(f"Python {python_version}, {name}: {passed}")
    assert " passed" in passed
    # A server's files are its own.
    assert (
        skipped(
            printed,
            "damage what is",
            "fill the database",
            "read-only",
            "restore a backup",
            "count what",
        )
        == []
    )


# Crashes

WRITE = """
import importlib.util, os, random, signal, sys, time
from types import SimpleNamespace
spec = importlib.util.spec_from_file_location("storage", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
settings = {"url": sys.argv[2], "table": sys.argv[3]}
config = SimpleNamespace(STORAGE_CONFIG=settings, BOT_DATA_DIR=".")
module.AcmePlugin(config)  # imports the driver
for turn in range(int(sys.argv[4])):
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        storage = module.AcmePlugin(config).open("kill")
        number = 0
        while True:
            key = f"{turn} {number}"
            storage.set(key, [key, "x" * (number % 30 * 500)])
            os.write(1, f"{key}\\n".encode())
            os.write(told, b".")
            number += 1
    os.read(heard, 1)
    time.sleep(random.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("name", ["sqlite", *NAMES])
def test_a_killed_bot_has_lost_no_set_that_returned(
    project: Path, connect: Connect, name: str, url: str, table: str
) -> None:
    file = next(project.glob("src/*/storage.py"))
    printed = run(sys.executable, "-c", WRITE, file, url, table, "50", cwd=project)
    done = {line for line in printed.splitlines() if re.fullmatch(r"\d+ \d+", line)}
    print(f"{name}: {len(done)} values set by 50 killed processes")
    assert len(done) > 50
    storage = connect(url, table=table).open("kill")
    keys = set(storage.keys())
    assert done <= keys, "Values are missing although `set` had returned."
    for key in keys:
        number = int(key.split()[1])
        assert storage.get(key) == [key, "x" * (number % 30 * 500)]


class Load:
    """Threads that set, get and remove keys of their own, and check every answer."""

    def __init__(self, storage: StorageBase) -> None:
        self.storage = storage
        self.stopped = threading.Event()
        self.wrong: list[str] = []
        self.failures: list[StoreException] = []
        self.acknowledged = 0
        self.latest = [0.0] * THREADS
        self.may_be: list[set[int | None]] = [{None} for _ in range(THREADS)]
        self.threads = [threading.Thread(target=self.work, args=[n]) for n in range(THREADS)]
        for thread in self.threads:
            thread.start()

    def work(self, number: int) -> None:
        """Do one operation after another. One that fails may or may not have been done."""
        key, value = f"key {number}", 0
        while not self.stopped.is_set():
            value += 1
            may_be = self.may_be[number]
            try:
                if value % 10 == 0:
                    before = set(may_be)
                    may_be.add(None)
                    try:
                        self.storage.remove(key)
                    except KeyError:
                        if len(may_be) == 2 and None not in before:
                            self.wrong.append(f"{key} is missing and cannot be removed")
                    self.may_be[number] = {None}
                else:
                    may_be.add(value)
                    self.storage.set(key, value)
                    self.may_be[number] = {value}
                self.acknowledged += 1
                self.check(number)
                self.latest[number] = time.monotonic()
            except StoreException as error:
                self.failures.append(error)
                time.sleep(0.02)
            except Exception as error:
                self.wrong.append(repr(error))

    def check(self, number: int) -> None:
        """Get the key, and compare its value with the possible ones."""
        try:
            got = self.storage.get(f"key {number}")
        except KeyError:
            got = None
        if got not in self.may_be[number]:
            self.wrong.append(f"key {number} is {got}, not one of {self.may_be[number]}")

    def wait_for_all(self, since: float, seconds: float) -> float:
        """Wait until each thread has succeeded since a moment, and return how long that took."""
        while time.monotonic() < since + seconds:
            if min(self.latest) > since:
                return max(self.latest) - since
            time.sleep(0.01)
        raise AssertionError(f"Not all threads recover in {seconds} s: {self.failures[-1]}")

    def stop(self) -> None:
        """Stop, and check everything once more."""
        self.stopped.set()
        for thread in self.threads:
            thread.join()
        for number in range(THREADS):
            self.check(number)
        assert not self.wrong, self.wrong[:5]
        for failure in self.failures:
            assert "127.0.0.1" in str(failure)
            assert PASSWORD not in "".join(traceback.format_exception(failure))


@pytest.mark.parametrize("name", NAMES)
def test_a_bot_recovers_when_its_server_is_back(
    connect: Connect, server: Server, name: str, url: str, table: str
) -> None:
    load = Load(connect(url, table=table).open("load"))
    try:
        for _ in range(2):
            time.sleep(1)
            server.kill()
            time.sleep(0.5)
            server.start()
            took = load.wait_for_all(time.monotonic(), 5)
            print(f"{name}: all threads work {took:.2f} s after the server is back")
    finally:
        load.stop()
    print(f"{name}: {load.acknowledged} acknowledged, {len(load.failures)} failed")
    assert load.failures, "The server was never unreachable."


def test_a_bot_continues_with_the_promoted_standby(
    connect: Connect, folder: Path, table: str
) -> None:
    primary = PostgreSQL(folder / "primary")
    primary.start()
    primary.add_account("bot", PASSWORD, "bot")
    standby = primary.standby(folder / "standby")
    try:
        standby.start()
        # From now on, the primary acknowledges only writes that the standby has.
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        primary.sql("SELECT pg_reload_conf()")
        hosts = f"host=127.0.0.1:{primary.port}&host=127.0.0.1:{standby.port}"
        url = f"postgresql://bot:{PASSWORD}@/bot?{hosts}&target_session_attrs=read-write"
        load = Load(connect(url, table=table).open("load"))
        try:
            time.sleep(1)
            killed = time.monotonic()
            primary.kill()
            standby.promote()
            promoted = time.monotonic()
            took = load.wait_for_all(promoted, 10)
            print(
                f"promoted {promoted - killed:.2f} s after the primary was killed;"
                f" all threads work {took:.2f} s later"
            )
        finally:
            load.stop()
        assert load.failures, "The primary was never unreachable."
    finally:
        standby.stop()
        primary.stop()


# Servers that do not answer


class Proxy:
    """Forwards to a server, and can stop forwarding, as a firewall does."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.open = threading.Event()
        self.open.set()
        self.pause = 0.0
        """Seconds between two bytes, to slow down answers."""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        """Connect each client to the server."""
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            for source, sink in [(client, server), (server, client)]:
                threading.Thread(target=self.carry, args=[source, sink], daemon=True).start()

    def carry(self, source: socket.socket, sink: socket.socket) -> None:
        """Forward data from one side to the other."""
        try:
            while data := source.recv(65536):
                self.open.wait()
                for start in range(len(data) if self.pause else 0):
                    sink.sendall(data[start : start + 1])
                    time.sleep(self.pause)
                if not self.pause:
                    sink.sendall(data)
        except OSError:
            pass
        finally:
            sink.close()


@pytest.mark.parametrize("name", NAMES)
def test_operations_on_a_server_that_goes_silent_time_out(
    connect: Connect, server: Server, name: str, table: str
) -> None:
    proxy = Proxy(server.port)
    storage = connect(url_of(name, proxy.port), table=table, timeout=2.0).open("namespace")
    storage.set("key", "value")
    proxy.open.clear()
    for operation in [lambda: storage.get("key"), lambda: storage.set("key", 1), storage.len]:
        began = time.monotonic()
        with pytest.raises(StoreException, match=f"127.0.0.1:{proxy.port}"):
            operation()
        assert time.monotonic() - began < 2 + 1.5
    proxy.open.set()
    assert storage.get("key") in ("value", 1)
    proxy.listener.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operation", ["set", "remove"])
def test_a_write_whose_answer_is_withheld_may_have_been_done(
    connect: Connect, server: Server, name: str, operation: str, table: str
) -> None:
    proxy = Proxy(server.port)
    storage = connect(url_of(name, proxy.port), table=table, timeout=1.0).open("namespace")
    storage.set("key", "value")
    proxy.open.clear()
    with pytest.raises(StoreException, match="It may have been done, or not"):
        storage.set("key", "new") if operation == "set" else storage.remove("key")
    proxy.open.set()
    proxy.listener.close()


def test_an_operation_with_a_very_slow_answer_times_out(
    connect: Connect, postgresql: PostgreSQL, table: str
) -> None:
    proxy = Proxy(postgresql.port)
    storage = connect(url_of("postgresql", proxy.port), table=table, timeout=2.0).open("n")
    storage.set("key", "x" * 1000)
    proxy.pause = 0.5
    began = time.monotonic()
    with pytest.raises(StoreException, match=f"127.0.0.1:{proxy.port}"):
        storage.get("key")
    assert time.monotonic() - began < 2 + 1.5
    proxy.pause = 0
    assert storage.get("key") == "x" * 1000
    proxy.listener.close()


@pytest.mark.parametrize("name", NAMES)
def test_connecting_to_a_server_that_never_answers_times_out(connect: Connect, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(StoreException, match=f"127.0.0.1:{port}") as caught:
            connect(url_of(name, port), timeout=2.0)
        assert time.monotonic() - began < 2 + 1.5
        assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_an_operation_on_a_locked_table_times_out(
    connect: Connect, postgresql: PostgreSQL, table: str
) -> None:
    storage = connect(url_of("postgresql", postgresql.port), table=table, timeout=1.0).open("n")
    storage.set("key", 1)
    command = f"BEGIN; LOCK TABLE {table}; SELECT pg_sleep(4); COMMIT"
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(postgresql.sql, command, "bot")
        time.sleep(1)
        with pytest.raises(StoreException, match="statement timeout"):
            storage.get("key")
        done.result()
    assert storage.get("key") == 1


# Secrets


def wrong_urls(postgresql: int, mariadb: int) -> list[str]:
    """Return addresses with all kinds of mistakes, and the password in all possible places."""
    wrong = f"wrong:{PASSWORD}"
    urls = []
    for name, port in [("postgresql", postgresql), ("mysql", mariadb), ("mariadb", mariadb)]:
        urls += [
            *(url_of(name, port, wrong), url_of(name, port, wrong, "nowhere")),
            *(url_of(name, free_port(), wrong), f"{name}://{wrong}@host.invalid/bot"),
            *(f"{name}://{wrong}@127.0.0.1:port/bot", f"{name}://{wrong}", f"{name}:{wrong}"),
            *(f"{name}://{wrong}@{wrong}@127.0.0.1/bot", f"{name}://wrong:a@{PASSWORD}@h/bot"),
            *(f"{name}://wrong:a@{PASSWORD}/b@h/bot", f"{name}+{wrong}@127.0.0.1/bot"),
            url_of(name, port, f"wrong:{PASSWORD}?#/[]{PASSWORD}"),
            url_of(name, port, f"wrong:%40%3A%25{PASSWORD}"),
            url_of(name, port, wrong) + f"?connect_timeout={PASSWORD}",
            url_of(name, port, "wrong") + f"?password={PASSWORD}&nonsense=1",
        ]
    for more in ["sslmode=require", "sslmode=verify-full&sslrootcert=/nowhere", "sslmode=nonsense"]:
        urls.append(f"{url_of('postgresql', postgresql, wrong)}?{more}")
    for more in ["ssl_ca=/nowhere", "ssl_ca=/etc/hosts", "charset=nonsense"]:
        urls.append(f"{url_of('mysql', mariadb, wrong)}?{more}")
    others = [PASSWORD, f"{PASSWORD}://a:b@c/d", f"oracle://{wrong}@h/d", f"nonsense://{wrong}@h/d"]
    return [*urls, *others, f"postgresql+asyncpg://{wrong}@h/d", f"sqlite://{wrong}@h/d"]


def test_no_password_is_shown(
    connect: Connect, caplog: pytest.LogCaptureFixture, postgresql: PostgreSQL, mariadb: MariaDB
) -> None:
    caplog.set_level(logging.DEBUG)
    for url in wrong_urls(postgresql.port, mariadb.port):
        with pytest.raises((ValueError, StoreException)) as caught:
            connect(url, timeout=2.0)
        error: BaseException | None = caught.value
        assert not isinstance(error, ValueError) or "STORAGE_CONFIG" in str(error)
        while error is not None:
            assert PASSWORD not in str(error) + repr(error), url
            error = error.__cause__ or error.__context__
        assert PASSWORD not in "".join(traceback.format_exception(caught.value)), url
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("name", ["sqlite", *NAMES])
def test_no_value_is_shown_when_the_database_refuses_it(
    connect: Connect, caplog: pytest.LogCaptureFixture, name: str, url: str, table: str
) -> None:
    caplog.set_level(logging.DEBUG)
    plugin = connect(url, table=table)
    dialect = plugin._engine.dialect.name
    # A table that accepts no values, as if someone had created it for another purpose.
    refuse = {"sqlite": "1 = 0", "postgresql": "false", "mysql": "1 = 0", "mariadb": "1 = 0"}
    with plugin._engine.connect() as connection:
        connection.exec_driver_sql(f"DROP TABLE {table}")
        large = "BLOB" if dialect != "postgresql" else "BYTEA"
        name_type = {"postgresql": "BYTEA", "sqlite": "BLOB"}.get(dialect, "VARBINARY(100)")
        key = '"key"' if dialect in ("sqlite", "postgresql") else "`key`"
        connection.exec_driver_sql(
            f"CREATE TABLE {table} (namespace {name_type}, {key} {name_type}, value {large},"
            f" PRIMARY KEY (namespace, {key}), CHECK ({refuse[dialect]}))"
        )
    storage = plugin.open("namespace")
    with pytest.raises(StoreException) as caught:
        storage.set("key", PASSWORD)
    shown = "".join(traceback.format_exception(caught.value))
    assert PASSWORD not in shown
    assert PASSWORD.encode().hex() not in shown
    assert caught.value.__cause__ is None
    assert PASSWORD not in caplog.text


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Create a self-signed certificate for a host, and its key."""
    (openssl,) = needs("openssl", package="openssl")
    folder.mkdir()
    files = folder / "certificate.pem", folder / "key.pem"
    run(
        *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
        *("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
        *("-out", files[0], "-keyout", files[1]),
        cwd=folder,
    )
    files[1].chmod(0o600)
    return files


@pytest.mark.parametrize("name", NAMES)
def test_the_documented_tls_options_refuse_other_servers(
    connect: Connect, folder: Path, name: str
) -> None:
    home = folder / f"{name} with TLS"
    home.mkdir()
    known, key = certificate(home / "certificates", "localhost")
    unknown, _ = certificate(home / "others", "localhost")
    server: PostgreSQL | MariaDB
    if name == "postgresql":
        server = PostgreSQL(home, ssl="on", ssl_cert_file=str(known), ssl_key_file=str(key))
        option = "sslmode=verify-full&sslrootcert="
    else:
        server = MariaDB(home, None, **{"ssl-cert": str(known), "ssl-key": str(key)})
        option = "ssl_ca="
    server.start()
    try:
        server.add_account("bot", PASSWORD, "bot")
        plain = url_of(name, server.port)
        by_name = plain.replace("127.0.0.1", "localhost")
        connect(f"{by_name}?{option}{known}").open("namespace").set("key", 1)
        # The certificate is for the host's name, not for its IP address.
        for wrong in [f"{by_name}?{option}{unknown}", f"{plain}?{option}{known}"]:
            with pytest.raises(StoreException, match="certificate") as caught:
                connect(wrong)
            assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    finally:
        server.stop()


# Privileges


def grants(project: Path, server: str) -> str:
    """Return the statements in docs/operation.md for the administrator of a server."""
    blocks = re.findall(r"```sql\n(.*?)```", (project / "docs/operation.md").read_text(), re.DOTALL)
    return str(blocks[SERVERS.index(server)])


@pytest.mark.parametrize("name", NAMES)
def test_the_documented_privileges_are_sufficient_and_minimal(
    project: Path, connect: Connect, server: PostgreSQL | MariaDB, name: str
) -> None:
    server.sql("CREATE DATABASE errbot")
    if isinstance(server, PostgreSQL):
        server.sql(grants(project, name), database="errbot")
    else:
        server.sql(grants(project, name))
    url = url_of(name, server.port, "errbot:choose-one", "errbot")
    plugin = connect(url)
    storage = plugin.open("namespace")
    storage.set("key", 1)
    storage.set("key", 2)
    assert (storage.get("key"), storage.len(), list(storage.keys())) == (2, 1, ["key"])
    storage.remove("key")
    for statement in ["DROP TABLE errbot_storage", "CREATE TABLE t (a INT)", "SELECT * FROM other"]:
        with plugin._engine.connect() as connection, pytest.raises(sqlalchemy.exc.DBAPIError):
            connection.exec_driver_sql(statement)
    with pytest.raises(StoreException, match="ask someone with CREATE rights to run CREATE TABLE"):
        connect(url, table="another")


@pytest.mark.parametrize("name", NAMES)
def test_the_statement_in_the_error_creates_the_table(
    connect: Connect, server: PostgreSQL | MariaDB, name: str
) -> None:
    database = "rights"
    if isinstance(server, PostgreSQL):
        server.sql(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
        server.sql(f"CREATE DATABASE {database}")
    else:
        server.sql(f"CREATE DATABASE {database}; CREATE USER reader IDENTIFIED BY '{PASSWORD}'")
        server.sql(f"GRANT SELECT ON {database}.* TO reader")
    url = url_of(name, server.port, f"reader:{PASSWORD}", database)
    with pytest.raises(StoreException) as caught:
        connect(url, table="given")
    statement = re.search(r"run (CREATE TABLE .*?); and GRANT", str(caught.value))
    assert statement, str(caught.value)
    rights = "GRANT SELECT, INSERT, UPDATE, DELETE ON given TO reader"
    if isinstance(server, PostgreSQL):
        server.sql(f"{statement[1]}; {rights}", database=database)
    else:
        server.sql(f"USE {database}; {statement[1]}; {rights}")
    storage = connect(url, table="given").open("namespace")
    storage.set("key", 1)
    assert storage.get("key") == 1


@pytest.mark.parametrize("name", ["sqlite", *NAMES])
def test_bots_that_start_at_once_create_one_table(
    connect: Connect, name: str, url: str, table: str
) -> None:
    barrier = threading.Barrier(THREADS)

    def start(number: int) -> None:
        barrier.wait()
        connect(url, table=table).open("namespace").set(str(number), number)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(start, range(THREADS)))
    assert connect(url, table=table).open("namespace").len() == THREADS


def test_a_table_can_be_in_a_schema(connect: Connect, postgresql: PostgreSQL) -> None:
    postgresql.sql("CREATE SCHEMA bots AUTHORIZATION bot", database="bot")
    url = url_of("postgresql", postgresql.port)
    connect(url, table="bots.One").open("namespace").set("key", 1)
    assert connect(url, table="bots.Two").open("namespace").len() == 0
    assert postgresql.sql('SELECT count(*) FROM bots."One"', database="bot") == "1"


# Round trips, connections, limits


def test_a_get_and_a_set_are_one_statement_on_postgresql(
    connect: Connect, postgresql: PostgreSQL, table: str
) -> None:
    storage = connect(url_of("postgresql", postgresql.port), table=table).open("namespace")
    storage.set("key", 0)
    before = (postgresql.folder / "output.log").stat().st_size
    for number in range(20):
        storage.set("key", number)
        storage.get("key")
    with (postgresql.folder / "output.log").open() as log:
        log.seek(before)
        words = re.findall(r"LOG:  (?:statement|execute [^:]*): (\w+)", log.read())
    assert words == ["INSERT", "SELECT"] * 20


def test_a_get_and_a_set_are_one_statement_on_mariadb(
    connect: Connect, mariadb: MariaDB, table: str
) -> None:
    storage = connect(url_of(SCHEME, mariadb.port), table=table).open("namespace")
    storage.set("key", 0)
    log = mariadb.folder / "data" / "general.log"
    mariadb.sql("SET GLOBAL general_log_file = 'general.log'; SET GLOBAL general_log = ON")
    for number in range(20):
        storage.set("key", number)
        storage.get("key")
    mariadb.sql("SET GLOBAL general_log = OFF")
    lines = log.read_text(errors="replace").splitlines()
    words = [match[1] for line in lines if (match := re.search(r"\d Query\t(\w+)", line))]
    # SET is the switch itself, and MySQL's own client uses lower case.
    assert [word for word in words if word not in ("SET", "select")] == ["INSERT", "SELECT"] * 20


def test_threads_share_the_connections_of_the_pool(
    connect: Connect, postgresql: PostgreSQL, table: str
) -> None:
    url = url_of("postgresql", postgresql.port)
    count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'bot'"
    deadline = time.monotonic() + 10
    while postgresql.sql(count) != "0" and time.monotonic() < deadline:
        time.sleep(0.1)  # the connections of other tests
    before = int(postgresql.sql(count))
    plugins = [connect(url, table=table, pool_size=3)]

    def work(number: int) -> None:
        storage = plugins[0].open(f"namespace {number}")
        for turn in range(20):
            storage.set(str(turn), number)
            assert storage.get(str(turn)) == number

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(100)))
    assert int(postgresql.sql(count)) - before <= 3
    plugins.clear()
    deadline = time.monotonic() + 10
    while int(postgresql.sql(count)) > before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert int(postgresql.sql(count)) <= before, "A deleted plugin has left connections."


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_operation_closes_its_connection(
    connect: Connect, server: PostgreSQL | MariaDB, url: str, table: str
) -> None:
    """Otherwise the server waits for the rest of the statement, and keeps its locks."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    storage = connect(url, table=table).open("namespace")
    storage.set("key", b"")
    before, interrupted = len(os.listdir("/dev/fd")), 0
    handler = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()
    try:
        for _ in range(20):
            storage.set("key", b"")  # It connects, which this test does not interrupt.
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.005, 0.02))
            try:
                while True:
                    storage.set("key", bytes(5_000_000))
            except KeyboardInterrupt:
                interrupted += 1
        left = len(os.listdir("/dev/fd")) - before
    finally:
        gc.enable()
        signal.signal(signal.SIGALRM, handler)
    assert interrupted == 20
    assert left <= 1
    storage.set("key", b"new")
    assert storage.get("key") == b"new"


@pytest.mark.parametrize("name", NAMES)
def test_threads_wait_in_turn_for_a_connection(
    connect: Connect, name: str, url: str, table: str
) -> None:
    storage = connect(url, table=table, pool_size=2, timeout=5.0).open("namespace")
    storage.set("key", 1)
    counts = [0] * 32
    together, stopped = threading.Barrier(32), threading.Event()

    def work(number: int) -> None:
        together.wait()
        while not stopped.is_set():
            storage.get("key")
            counts[number] += 1

    with ThreadPoolExecutor(32) as pool:
        done = [pool.submit(work, number) for number in range(32)]
        time.sleep(3)
        stopped.set()
        for each in done:
            each.result()
    assert min(counts) > max(counts) / 4, f"Some threads got more turns than others: {counts}"


@pytest.mark.parametrize("name", ["sqlite", *NAMES])
def test_names_of_any_length_are_stored_or_refused(
    connect: Connect, name: str, url: str, table: str
) -> None:
    plugin = connect(url, table=table)
    noise = random.Random(1)
    # Random, because an index in PostgreSQL can hold longer names if they can be compressed.
    longest = "".join(chr(noise.randrange(0x21, 0x7F)) for _ in range(1600))
    storage = plugin.open(longest[:1000])
    storage.set(longest, 1)
    assert (storage.get(longest), list(storage.keys())) == (1, [longest])
    for key in [f"{longest}x", longest[:-1] + "é", "😀" * 401]:
        with pytest.raises(ValueError, match="bytes in UTF-8. At most 1600 fit"):
            storage.set(key, 1)
        with pytest.raises(KeyError):
            storage.get(key)
        with pytest.raises(KeyError):
            storage.remove(key)
    assert storage.len() == 1
    with pytest.raises(ValueError, match="1001 bytes in UTF-8. At most 1000 fit"):
        plugin.open(longest[:1001])


@pytest.mark.parametrize("count", [20, 1_200])
@pytest.mark.parametrize("name", ["sqlite", *NAMES])
def test_a_loop_that_renames_its_keys_ends(
    connect: Connect, name: str, url: str, table: str, count: int
) -> None:
    storage = connect(url, table=table).open("n")
    check_that_a_loop_that_renames_its_keys_ends(storage, count)


def test_ctrl_c_ends_an_operation_that_waits_for_a_lock_of_sqlite(
    connect: Connect, tmp_path: Path
) -> None:
    file = tmp_path / "storage.sqlite"
    check_that_ctrl_c_ends_a_wait(connect(f"sqlite:///{file}", timeout=60.0).open("n"), file)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_is_too_large_for_the_server_is_refused(
    connect: Connect, server: Server, name: str, url: str, table: str
) -> None:
    storage = connect(url, table=table, timeout=20.0).open("namespace")
    value = os.urandom(7_000_000)
    storage.set("key", value)
    assert storage.get("key") == value
    if name != "postgresql":
        with pytest.raises(StoreException, match="127.0.0.1"):
            storage.set("key", os.urandom(40_000_000))
        assert storage.get("key") == value
