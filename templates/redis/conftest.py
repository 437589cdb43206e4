"""Provides the tests' throwaway database.

The tests start redis-server or valkey-server if it is installed. To use another server, set
STORAGE_TEST_URL: there, the tests use a prefix of their own, and remove their keys afterwards.
Without either, they use fakeredis, which simulates Redis in their own process.

`contract` tests what Errbot expects of every storage. Do not change it, and keep it green.
"""

import os
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis
from contract.support.faults import Faults, Proxy
from contract.support.sample_values import AS_IT_WAS, FIRST_KEYS
from contract.support.server import free_ports, running

SOURCE = Path(__file__).parent.parent / "src"
TEST_URL = os.environ.get("STORAGE_TEST_URL")
BINARY = shutil.which("redis-server") or shutil.which("valkey-server")
PREFIX = f"errbot-test-{uuid4().hex}:"
NUMBERS = count()


def pytest_report_header(config: pytest.Config) -> str | None:
    """Report which server the tests use."""
    if config.getoption("--errbot-config"):
        return None
    if TEST_URL:
        return "redis: the server in STORAGE_TEST_URL"
    if BINARY:
        return f"redis: {BINARY}, started for the tests"
    return "redis: FAKEREDIS, because redis-server is not installed and STORAGE_TEST_URL is not set"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what fakeredis cannot do."""
    if is_fake(config):
        for item in items:
            if item.path.name in ("test_command_line.py", "test_forks.py"):
                item.add_marker(pytest.mark.skip(reason="fakeredis exists only in this process"))
            if item.name == "test_keys_and_len_work_while_others_write":
                item.add_marker(pytest.mark.skip(reason="HSCAN of fakeredis may miss fields"))


def is_fake(config: pytest.Config) -> bool:
    """Return whether the tests use fakeredis."""
    return not (TEST_URL or BINARY or config.getoption("--errbot-config"))


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The url of a server for all tests."""
    if TEST_URL:
        yield TEST_URL
        with redis.Redis.from_url(TEST_URL) as server:
            for key in server.scan_iter(match=f"{PREFIX}*", count=1_000):
                server.delete(key)
    elif BINARY:
        folder, [port] = tmp_path_factory.mktemp("redis"), free_ports(1)
        command = [BINARY, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
        with running([*command, "--save", ""], port, folder / "output.log", "redis-server"):
            yield f"redis://127.0.0.1:{port}/0"
    else:
        yield from fake_server()


def fake_server() -> Iterator[str]:
    """Make redis-py connect to a server in this process, and yield its url."""
    from fakeredis import FakeRedisConnection, FakeServer

    from_url = partial(
        redis.ConnectionPool.from_url, connection_class=FakeRedisConnection, server=FakeServer()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis.ConnectionPool, "from_url", from_url)
        yield "redis://fakeredis"


@pytest.fixture
def errbot_config(tmp_path: Path, url: str) -> SimpleNamespace:
    """The bot's configuration: this storage plugin, with a prefix for one test."""
    return SimpleNamespace(
        STORAGE="{{ cookiecutter.plugin_name }}",
        STORAGE_CONFIG={"url": url, "prefix": f"{PREFIX}{next(NUMBERS)}:"},
        BOT_EXTRA_STORAGE_PLUGINS_DIR=str(SOURCE),
        BOT_DATA_DIR=str(tmp_path),
    )


@pytest.fixture
def another_database(errbot_config: SimpleNamespace) -> dict[str, Any]:
    """Keys of STORAGE_CONFIG of another bot on the server: another prefix."""
    return {"prefix": f"{errbot_config.STORAGE_CONFIG['prefix']}another:"}


@pytest.fixture
def first_release(errbot_config: SimpleNamespace) -> None:
    """What the first release of this plugin stored. Do not change it, so that upgrades are safe."""
    config = errbot_config.STORAGE_CONFIG
    with redis.Redis.from_url(config["url"]) as server:
        for namespace, key in FIRST_KEYS:
            server.hset(f"{config['prefix']}{namespace}", key, AS_IT_WAS)


class RedisProxy(Proxy):
    """A proxy to Redis, where keys can have a time to live."""

    def age(self) -> None:
        """Remove all keys that have a time to live."""
        with redis.Redis.from_url(self.config()["url"]) as server:
            for key in server.scan_iter(match=f"{PREFIX}*", count=1_000):
                if server.ttl(key) >= 0:
                    server.delete(key)


@pytest.fixture
def faults(
    errbot_config: SimpleNamespace, url: str, pytestconfig: pytest.Config
) -> Iterator[Faults]:
    """Makes the database fail."""
    if is_fake(pytestconfig):
        yield Faults()  # fakeredis runs in this process
        return
    parts = urlsplit(url)
    account = parts.netloc.rpartition("@")[0]

    def config(port: int) -> dict[str, Any]:
        place = f"{account}@127.0.0.1:{port}" if account else f"127.0.0.1:{port}"
        return {"url": parts._replace(netloc=place).geturl()}

    with RedisProxy(parts.hostname or "localhost", parts.port or 6379, config) as proxy:
        errbot_config.STORAGE_CONFIG |= {"timeout": 2.0, **proxy.config()}
        yield proxy


@pytest.fixture(scope="session")
def outlives_process(pytestconfig: pytest.Config) -> bool:
    """Whether data survive the process that stored them."""
    return not is_fake(pytestconfig)
