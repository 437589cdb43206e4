"""The baked Redis storage on real servers: kills, failovers, secrets, permissions, warnings."""

import gc
import importlib.util
import logging
import multiprocessing
import random
import re
import shutil
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from conftest import KILLS, clean_environment, run, skipped
from errbot.storage import StoreException
from errbot.storage.base import StorageBase, StoragePluginBase
from pytest_cookies.plugin import Cookies
from servers.base import free_port
from servers.redis import Deaf, Proxy, Redis, RedisCluster, RedisSentinel

# These processes start fast, because everything is imported already. They have no file open.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["errbot.storage.base", "itsdangerous", "pydantic", "redis", "pytest", "pytest_cookies.plugin"]
)
SECRET = "s3cret-that-nobody-may-see"


@pytest.fixture(scope="module")
def project(cookies_session: Cookies) -> Path:
    """A project baked for Redis."""
    result = cookies_session.bake(extra_context={"database": "redis"})
    if result.exception:
        raise result.exception
    return Path(result.project_path)


def load(project: Path, **storage_config: Any) -> StoragePluginBase:
    """Start the storage plugin with this STORAGE_CONFIG, as a bot does."""
    file = next(project.glob("src/*/storage.py"))
    spec = importlib.util.spec_from_file_location("errbot.storage.storage", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plugin = module.AcmePlugin(SimpleNamespace(STORAGE_CONFIG=storage_config))
    assert isinstance(plugin, StoragePluginBase)
    return plugin


Open = Callable[..., StorageBase]


@pytest.fixture
def open_storage(project: Path) -> Open:
    """Starts the storage plugin with a STORAGE_CONFIG, and opens a namespace."""

    def open_storage(**storage_config: Any) -> StorageBase:
        return load(project, **storage_config).open("namespace")

    return open_storage


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(module_server: Redis) -> Redis:
    """A server without data. Its settings guarantee that it loses nothing."""
    module_server.cli("flushall")
    module_server.cli("acl", "deluser", "errbot")
    return module_server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Redis]:
    """A server that the test may stop and kill."""
    server = Redis(tmp_path / "redis")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def module_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def module_sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSentinel]:
    sentinel = RedisSentinel(tmp_path_factory.mktemp("sentinel"))
    try:
        sentinel.start()
        yield sentinel
    finally:
        sentinel.stop()


@pytest.fixture
def storage_config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The STORAGE_CONFIG for a kind of installation."""
    installation = request.getfixturevalue(f"module_{request.param}")
    if isinstance(installation, RedisSentinel):
        return {"sentinels": installation.addresses}
    return {"url": installation.url, "cluster": isinstance(installation, RedisCluster)}


def connections(server: Redis) -> int:
    """Return the number of connected clients, except the one that asks."""
    clients = server.cli("client", "list", "type", "normal").splitlines()
    return sum("cmd=client" not in client for client in clients)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail if the block takes longer."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert took < seconds, f"It took {took:.1f} s, but at most {seconds:.1f} s are allowed."


# The contract


@pytest.mark.parametrize(
    "storage_config",
    [
        # `make test-slow` runs it on a server with the installed wheel: test_installation.py.
        pytest.param(kind, marks=pytest.mark.nightly)
        for kind in ["server", "sentinel", "cluster"]
    ],
    indirect=True,
)
def test_the_contract_holds(
    project: Path,
    storage_config: dict[str, Any],
    python_version: str,
    interpreter_of: Callable[[Path, str], Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    interpreter = interpreter_of(project, python_version)
    config = tmp_path / "config.py"
    config.write_text(
        f"STORAGE = 'Acme'\nSTORAGE_CONFIG = {storage_config!r}\nBOT_DATA_DIR = {str(tmp_path)!r}\n"
        f"BOT_EXTRA_STORAGE_PLUGINS_DIR = {str(project / 'src')!r}\n"
    )
    command = [interpreter, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    printed = run(*command, f"--errbot-config={config}", cwd=project, env=clean_environment())
    passed = printed.splitlines()[-1]
    print(f"{request.node.name}: {passed}")
    assert " passed" in passed
    # The project's own tests make a database fail. Nothing does that to one that is in use.
    assert skipped(printed, "in use") == []


# Servers that do not run, do not answer, or are killed


def set_until_killed(project: Path, url: str, start: int, pipe: Connection) -> None:
    """Set keys, and report each number after `set` has returned. Runs in a subprocess."""
    storage = load(project, url=url).open("namespace")
    number = start
    while True:
        storage.set(str(number), [number, "x" * (number % 50 * 200)])
        pipe.send(number)
        number += 1


@pytest.mark.parametrize("kills", KILLS)
def test_a_killed_writer_has_lost_no_set_that_returned(
    project: Path, server: Redis, open_storage: Open, kills: int
) -> None:
    last = -1
    for _ in range(kills):
        ours, theirs = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(
            target=set_until_killed, args=(project, server.url, last + 1, theirs)
        )
        process.start()
        theirs.close()
        last = ours.recv()
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        with suppress(EOFError):
            while True:
                last = ours.recv()
        process.join()
    storage = open_storage(url=server.url)
    keys = set(storage.keys())
    lost = {str(number) for number in range(last + 1)} - keys
    assert not lost, f"{len(lost)} of {last + 1} values are lost."
    for key in keys:
        assert storage.get(key) == [int(key), "x" * (int(key) % 50 * 200)]
    print(f"{kills} kills, {last + 1} values")


class Load:
    """Threads that set, get and remove keys, and record the possible contents of the database."""

    def __init__(self, storage: StorageBase, threads: int) -> None:
        self.storage = storage
        self.wrong: list[str] = []
        self.succeeded = 0.0
        self.stopped = threading.Event()
        self.pool = ThreadPoolExecutor(threads)
        self.known = self.pool.map(self.work, range(threads))

    def work(self, number: int) -> dict[str, set[int | None]]:
        """Return the possible values of each of this thread's keys. None means no value."""
        known: dict[str, set[int | None]] = {f"{number} {key}": {None} for key in range(5)}
        turn = 0
        while not self.stopped.is_set():
            turn += 1
            key = random.choice(list(known))
            try:
                if turn % 3 == 0:
                    self.storage.set(key, turn)
                    known[key] = {turn}
                elif turn % 10 == 0:
                    with suppress(KeyError):
                        self.storage.remove(key)
                    known[key] = {None}
                else:
                    known[key] = {self.check(key, known[key])}
                self.succeeded = time.monotonic()
            except StoreException:
                if turn % 3 == 0:
                    known[key] = known[key] | {turn}
                elif turn % 10 == 0:
                    known[key] = known[key] | {None}
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
        return known

    def check(self, key: str, known: set[int | None]) -> int | None:
        """Get a key, record if its value is not a possible one, and return the value."""
        value: int | None
        try:
            value = self.storage.get(key)
        except KeyError:
            value = None
        if value not in known:
            self.wrong.append(f"{key}: {value}, not one of {known}")
        return value

    def stop(self) -> None:
        """Stop the threads, and check the final contents of the database."""
        self.stopped.set()
        for known in self.known:
            for key, values in known.items():
                self.check(key, values)
        self.pool.shutdown()


def test_a_killed_server_gives_no_wrong_answer_and_loses_nothing(
    own_server: Redis, open_storage: Open
) -> None:
    own_server.start()
    load = Load(open_storage(url=own_server.url, timeout=5.0), threads=8)
    for _ in range(5):
        time.sleep(random.uniform(0.3, 0.6))
        own_server.kill()
        time.sleep(0.3)
        own_server.start()
        back = time.monotonic()
        while load.succeeded < back:
            assert time.monotonic() < back + 5, "No operation succeeded within 5 s."
            time.sleep(0.001)
        print(f"back after {load.succeeded - back:.3f} s")
    load.stop()
    assert not load.wrong, load.wrong[:5]


def seconds_until_it_works(storage: StorageBase, number: int) -> float:
    """Set and get until both succeed, and return how long that took."""
    start = time.monotonic()
    while time.monotonic() < start + 60:
        with suppress(StoreException):
            storage.set("after", number)
            assert storage.get("after") == number
            return time.monotonic() - start
        time.sleep(0.05)
    raise AssertionError("The storage does not recover.")


def test_a_failover_by_sentinels_is_followed(open_storage: Open, tmp_path: Path) -> None:
    sentinel = RedisSentinel(tmp_path / "sentinel")
    try:
        sentinel.start()
        storage = open_storage(sentinels=sentinel.addresses, timeout=2.0)
        storage.set("before", 1)
        sentinel.master.cli("wait", "1", "1000")
        sentinel.master.kill()
        print(f"Sentinel master killed: {seconds_until_it_works(storage, 2):.1f} s")
        assert storage.get("before") == 1
        assert sorted(storage.keys()) == ["after", "before"]
    finally:
        sentinel.stop()


def test_a_failover_of_a_cluster_is_followed(open_storage: Open, tmp_path: Path) -> None:
    cluster = RedisCluster(tmp_path / "cluster")
    try:
        cluster.start()
        storage = open_storage(url=cluster.url, cluster=True, timeout=2.0)
        storage.set("before", 1)
        master = cluster.master_of("errbot:namespace")
        time.sleep(0.5)
        master.kill()
        print(f"Cluster master killed: {seconds_until_it_works(storage, 2):.1f} s")
        assert storage.get("before") == 1
        assert sorted(storage.keys()) == ["after", "before"]
    finally:
        cluster.stop()


def test_a_server_may_start_after_the_bot(own_server: Redis, open_storage: Open) -> None:
    with within(5):
        storage = open_storage(url=own_server.url, timeout=5.0)
    for operation in operations(storage):
        with within(5), pytest.raises(StoreException, match=f"127.0.0.1:{own_server.port}"):
            operation()
    own_server.start()
    storage.set("key", 1)
    assert storage.get("key") == 1


def test_a_cluster_may_start_after_the_bot(own_server: Redis, open_storage: Open) -> None:
    storage = open_storage(url=own_server.url, cluster=True, timeout=5.0)
    for operation in operations(storage):
        with within(5), pytest.raises(StoreException, match=f"127.0.0.1:{own_server.port}"):
            operation()
    own_server.settings += ["cluster-enabled yes", f"cluster-port {free_port()}"]
    own_server.start()
    own_server.cli("cluster", "addslotsrange", "0", "16383")
    own_server.wait_until(lambda: "cluster_state:ok" in own_server.cli("cluster", "info"))
    storage.set("key", 1)
    assert storage.get("key") == 1


def operations(storage: StorageBase) -> list[Callable[[], Any]]:
    """Return each operation of a storage."""
    return [
        lambda: storage.set("key", 1),
        lambda: storage.get("key"),
        lambda: storage.remove("key"),
        lambda: storage.len(),
        lambda: next(iter(storage.keys())),
    ]


@pytest.mark.parametrize("kind", ["server", "sentinel", "cluster"])
def test_operations_on_a_server_that_never_answers_time_out(open_storage: Open, kind: str) -> None:
    deaf = Deaf()
    config: dict[str, Any] = {"url": f"redis://:{SECRET}@127.0.0.1:{deaf.port}"}
    if kind == "sentinel":
        config["sentinels"] = [f"127.0.0.1:{deaf.port}"] * 3
    with within(2):
        storage = open_storage(**config, cluster=kind == "cluster", timeout=1.0)
    for operation in operations(storage):
        with within(1.5), pytest.raises(StoreException, match=f"127.0.0.1:{deaf.port}"):
            operation()
    deaf.stop()


def test_a_connection_that_a_firewall_dropped_is_replaced(
    server: Redis, open_storage: Open
) -> None:
    proxy = Proxy(server.port)
    storage = open_storage(url=f"redis://127.0.0.1:{proxy.port}", timeout=1.0)
    storage.set("key", 1)
    for reading in [1, 3, 4]:
        proxy.drop()
        with within(1.5):
            operations(storage)[reading]()
    for writing in [0, 2]:
        proxy.drop()
        with within(1.5), pytest.raises(StoreException, match="may or may not have been done"):
            operations(storage)[writing]()
        assert storage.get("key") == 1
    proxy.stop()


def test_a_storage_leaves_a_former_master(own_server: Redis, open_storage: Open) -> None:
    own_server.start()
    storage = open_storage(url=own_server.url)
    storage.set("key", 1)
    own_server.cli("replicaof", "127.0.0.1", str(free_port()))
    with pytest.raises(StoreException, match="read only"):
        storage.set("key", 2)
    own_server.cli("replicaof", "no", "one")
    storage.set("key", 3)
    assert storage.get("key") == 3


# Keys


def test_each_key_comes_once_if_the_server_shrinks_the_hash_meanwhile(
    server: Redis, open_storage: Open
) -> None:
    for size, keep in [(20_000, 17), (11_000, 3), (50_000, 100)]:
        server.cli("flushall")
        with redis.Redis(port=server.port) as client:
            client.hset("errbot:namespace", mapping={str(n): b"N." for n in range(size)})
            storage = open_storage(url=server.url)
            keys = iter(storage.keys())
            seen = [next(keys) for _ in range(size // 2)]
            left = {str(n) for n in random.sample(range(size), keep)}
            gone = [str(n) for n in range(size) if str(n) not in left]
            client.hdel("errbot:namespace", *gone)
            for _ in range(200):  # each access moves a part of the hash
                client.hexists("errbot:namespace", "0")
        seen += keys
        assert len(seen) == len(set(seen)), "A key came twice."
        assert left <= set(seen), "A key is missing that was there all the time."


def test_no_key_is_missed_if_the_server_restarts_meanwhile(
    own_server: Redis, open_storage: Open
) -> None:
    own_server.start()
    expected = {str(number) for number in range(20_000)}
    with redis.Redis(port=own_server.port) as client:
        client.hset("errbot:namespace", mapping=dict.fromkeys(expected, b"N."))
    storage = open_storage(url=own_server.url)
    for taken in [1, 20, 200, 10_000]:
        keys = iter(storage.keys())
        seen = [next(keys) for _ in range(taken)]
        own_server.kill()
        own_server.start()
        seen += keys
        assert len(seen) == len(set(seen)), "A key came twice."
        assert set(seen) == expected, "A key is missing."


def test_foreign_fields_and_keys_do_no_harm(server: Redis, project: Path) -> None:
    plugin = load(project, url=server.url)
    storage = plugin.open("namespace")
    storage.set("key", 1)
    with redis.Redis(port=server.port) as client:
        client.hset("errbot:namespace", b"\xff\xfe", b"no pickle")
        assert list(storage.keys()) == ["key"]
        client.set("errbot:other", "a string")
    with pytest.raises(StoreException, match="WRONGTYPE"):
        plugin.open("other").get("key")
    assert storage.get("key") == 1


# Secrets


def shown_by(*errors: BaseException, log: str) -> str:
    """Return everything that the errors, their tracebacks and the log show."""
    lines = [
        f"{error!r}\n{error}\n{''.join(traceback.format_exception(error))}" for error in errors
    ]
    return "\n".join([*lines, log])


ADDRESSES = [
    "redis://errbot:{secret}@127.0.0.1:{port}",
    "redis://:{secret}@127.0.0.1:{port}",
    "redis://{secret}@127.0.0.1:{port}",
    "redis://127.0.0.1:{port}?password={secret}",
    "redis://errbot:{secret}@127.0.0.1:{closed}",
    "redis://errbot:{secret}@no-such-host.invalid:{port}",
    "redis://errbot:{secret}@" + "long" * 30 + ":{port}",
    "rediss://errbot:{secret}@127.0.0.1:{port}",
    "rediss://errbot:{secret}@127.0.0.1:{port}?ssl_ca_certs=/no/such/file",
    "rediss://127.0.0.1:{port}?ssl_password={secret}&ssl_keyfile=/no/such/file",
]
ADDRESSES_OF_ONE_SERVER = [
    "unix://errbot:{secret}@/no/such/socket",
    "redis://errbot:{secret}@127.0.0.1:{port}/77",
]


@pytest.mark.parametrize(
    ("url", "cluster"),
    [
        *[(url, False) for url in ADDRESSES + ADDRESSES_OF_ONE_SERVER],
        *[(url, True) for url in ADDRESSES],
    ],
)
def test_no_error_and_no_log_shows_a_password(
    server: Redis, project: Path, caplog: pytest.LogCaptureFixture, url: str, cluster: bool
) -> None:
    server.cli("config", "set", "requirepass", "another password")
    caplog.set_level(logging.DEBUG)
    try:
        url = url.format(secret=SECRET, port=server.port, closed=free_port())
        plugin = load(project, url=url, cluster=cluster, timeout=2.0, signing_key=SECRET)
        errors = []
        storage = plugin.open("namespace")
        for operation in operations(storage):
            with pytest.raises(StoreException) as caught:
                operation()
            errors.append(caught.value)
    finally:
        cli = ["-a", "another password", "config", "set", "requirepass", ""]
        server.cli(*cli)
    assert SECRET not in shown_by(*errors, log=caplog.text + repr([plugin, storage]))
    print(errors[0])


@pytest.mark.parametrize(
    "url",
    [
        "{secret}",
        "http://errbot:{secret}@127.0.0.1",
        "REDIS://errbot:{secret}@127.0.0.1",
        "redis://errbot:{secret}@127.0.0.1:port",
        "redis://errbot:{secret}@127.0.0.1:99999",
        "redis://errbot:12/{secret}@127.0.0.1:6379/0",
        "redis://errbot:12/{secret}",
        "redis://errbot:12?{secret}@127.0.0.1:6379/0",
        "redis://errbot:12#{secret}@127.0.0.1:6379/0",
        "redis://errbot:{secret}/@127.0.0.1:6379/0",
        "redis://127.0.0.1/{secret}",
        "redis://127.0.0.1?{secret}=1",
        "redis://127.0.0.1?socket_timeout={secret}",
        "redis://127.0.0.1/0?ssl_cert_reqs={secret}",
        "redis://[{secret}",
        "unix://",
    ],
)
def test_a_wrong_url_is_refused_and_not_shown(
    project: Path, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ValueError, match="STORAGE_CONFIG") as caught:
        load(project, url=url.format(secret=SECRET))
    assert "url: " in str(caught.value)
    assert SECRET not in shown_by(caught.value, log=caplog.text)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"sentinels": ["localhost"], "cluster": True}, "sentinels, cluster"),
        ({"url": "unix:///tmp/socket", "cluster": True}, "sentinels, cluster"),
        ({"url": "unix:///tmp/socket", "sentinels": ["localhost"]}, "sentinels, cluster"),
        ({"sentinels": ["localhost:port"]}, "sentinels"),
        ({"sentinels": [f"errbot:{SECRET}@localhost"]}, "sentinels"),
        ({"sentinels": "localhost"}, "sentinels"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    project: Path, config: dict[str, Any], key: str
) -> None:
    with pytest.raises(ValueError, match=f"  {key}[:,] ") as caught:
        load(project, **config)
    assert SECRET not in str(caught.value)


def test_errors_do_not_show_values(server: Redis, open_storage: Open) -> None:
    server.cli("acl", "setuser", "errbot", "on", ">pw", "~*", "+@all", "-hset")
    storage = open_storage(url=f"redis://errbot:pw@127.0.0.1:{server.port}")
    with pytest.raises(StoreException, match="NOPERM|no permissions") as caught:
        storage.set("key", SECRET)
    assert SECRET not in shown_by(caught.value, log="")


# TLS


def openssl(*arguments: str, folder: Path) -> None:
    """Run openssl."""
    binary = shutil.which("openssl")
    if not binary:
        pytest.skip("no openssl")
    subprocess.run([binary, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("cluster", [False, True])
def test_tls_works_and_checks_the_server_certificate(
    tmp_path: Path, open_storage: Open, cluster: bool
) -> None:
    for name in ["right", "wrong"]:
        certificate = ["-out", f"{name}.pem", "-subj", "/CN=localhost", "-days", "2"]
        names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key"]
        openssl("req", "-x509", *certificate, *names, *key, folder=tmp_path)
    port = free_port()
    files = [f"tls-cert-file {tmp_path}/right.pem", f"tls-key-file {tmp_path}/right.key"]
    mode = ["cluster-enabled yes", f"cluster-port {free_port()}"] if cluster else []
    mode += ["tls-cluster yes"] if cluster else []
    server = Redis(
        tmp_path / "redis", f"tls-port {port}", "tls-auth-clients no", *files, *mode,
        f"tls-ca-cert-file {tmp_path}/right.pem",
    )  # fmt: skip
    server.start()
    try:
        if cluster:
            server.cli("cluster", "addslotsrange", "0", "16383")
            server.wait_until(lambda: "cluster_state:ok" in server.cli("cluster", "info"))
        url = f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}"
        storage = open_storage(url=f"{url}/right.pem", cluster=cluster)
        storage.set("key", 1)
        assert storage.get("key") == 1
        with pytest.raises(StoreException, match=r"(?i)certificate"):
            open_storage(url=f"{url}/wrong.pem", cluster=cluster).get("key")
    finally:
        server.stop()


# Permissions


def acl_of(project: Path) -> list[str]:
    """Return the words of the ACL that docs/operation.md recommends."""
    page = (project / "docs/operation.md").read_text(encoding="utf-8")
    found = re.search(r"^ACL SETUSER errbot on .*$", page, re.MULTILINE)
    assert found, "docs/operation.md shows no ACL."
    return found[0].split()


def test_the_acl_is_sufficient(
    server: Redis, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert server.cli(*acl_of(project)) == "OK"
    url = f"redis://errbot:PASSWORD@127.0.0.1:{server.port}"
    server.cli("acl", "log", "reset")
    plugin = load(project, url=url)
    use_all(plugin)
    refused = re.findall(r"\nobject\n(.*)", server.cli("acl", "log"))
    assert set(refused) <= {"client|setinfo"}, (
        "docs/operation.md says that only this one can be omitted."
    )
    with redis.Redis.from_url(url) as client:
        for command in ["FLUSHALL", "KEYS *", "CONFIG GET *", "HGETALL errbot:namespace", "SAVE"]:
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.hget("other:namespace", "key")
    with pytest.raises(StoreException, match="errbot:|permission"):
        load(project, url=url, prefix="other:").open("namespace").get("key")


def test_the_acl_for_another_database_is_sufficient(server: Redis, project: Path) -> None:
    url = f"redis://errbot:PASSWORD@127.0.0.1:{server.port}/3"
    server.cli(*acl_of(project))
    with pytest.raises(StoreException, match="select"):
        use_all(load(project, url=url))
    server.cli(*acl_of(project), "+select")
    use_all(load(project, url=url))


def use_all(plugin: StoragePluginBase) -> None:
    """Use every operation of a storage."""
    storage = plugin.open("namespace")
    for number in range(300):
        storage.set(str(number), number)
    assert storage.get("1") == 1
    assert storage.len() == 300
    assert len(list(storage.keys())) == 300
    storage.remove("1")


def test_every_permission_in_the_acl_is_necessary(server: Redis, project: Path) -> None:
    granted = [word for word in acl_of(project) if word.startswith("+")]
    assert "+hget" in granted
    url = f"redis://errbot:PASSWORD@127.0.0.1:{server.port}"
    for word in granted:
        server.cli("del", "errbot:namespace")
        server.cli(*acl_of(project))
        server.cli("acl", "setuser", "errbot", word.replace("+", "-"))
        with pytest.raises(StoreException, match=word[1:].upper()):
            use_all(load(project, url=url))


def test_the_acl_for_a_cluster_is_sufficient(module_cluster: RedisCluster, project: Path) -> None:
    for node in module_cluster.nodes:
        words = [*acl_of(project), "+cluster|slots", "+command"]
        assert node.cli(*words) == "OK"
    url = module_cluster.url.replace("//", "//errbot:PASSWORD@")
    use_all(load(project, url=url, cluster=True))


def test_the_acl_for_sentinels_is_sufficient(module_sentinel: RedisSentinel, project: Path) -> None:
    for server in [module_sentinel.master, module_sentinel.replica]:
        assert server.cli(*acl_of(project)) == "OK"
    for sentinel in module_sentinel.sentinels:
        words = ["ACL", "SETUSER", "errbot", "on", ">OTHER", "-@all", "+sentinel|masters"]
        assert sentinel.cli(*words) == "OK"
    plugin = load(
        project,
        url="redis://errbot:PASSWORD@sentinel",
        sentinels=module_sentinel.addresses,
        sentinel_username="errbot",
        sentinel_password="OTHER",
    )
    use_all(plugin)


# Warnings


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the logged warnings, and clear the log."""
    found = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return found


def test_a_missing_signing_key_causes_a_warning(
    project: Path, server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    load(project, url=server.url, signing_key=SECRET)
    assert warnings(caplog) == []
    load(project, url=server.url)
    (warning,) = warnings(caplog)
    assert "signing_key" in warning
    assert "can run code" in warning


# Connections


def test_connections_are_shared_by_namespaces(server: Redis, project: Path) -> None:
    before = connections(server)
    plugin = load(project, url=server.url)
    for number in range(300):
        storage = plugin.open(str(number))
        storage.set("key", number)
        next(iter(storage.keys()))
        storage.close()
    assert connections(server) == before + 1
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: storage.set("key", number), range(2_000)))
    assert connections(server) <= before + 16


def test_connections_are_closed_without_the_garbage_collector(server: Redis, project: Path) -> None:
    gc.collect()
    before = connections(server)
    gc.disable()
    try:
        for _ in range(20):
            load(project, url=server.url).open("namespace").set("key", 1)
    finally:
        gc.enable()
    assert connections(server) <= before + 1
