"""Provides the tests' throwaway database. This is the only test file that you edit.

`contract` tests what Errbot expects of every storage. Do not change it, and keep it green.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from contract.support.faults import Faults, Proxy
from contract.support.server import free_ports, running

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture(scope="session")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start an etcd for all tests, and yield its port."""
    folder, (port, peer_port) = tmp_path_factory.mktemp("etcd"), free_ports(2)
    url, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    command = ["etcd", f"--data-dir={folder}", f"--initial-cluster=default={peer}"]
    command += ["--quota-backend-bytes=8000000000"]  # etcd keeps all that was replaced.
    command += [f"--{name}-client-urls={url}" for name in ["listen", "advertise"]]
    command += [f"--{name}-peer-urls={peer}" for name in ["listen", "initial-advertise"]]
    with running(command, port, folder / "output.log", package="etcd-server"):
        yield port


@pytest.fixture
def errbot_config(tmp_path: Path, port: int) -> SimpleNamespace:
    """The bot's configuration: this storage plugin, on an empty database for one test.

    To drop the database afterwards, yield the configuration instead of returning it. To start a
    server for all tests, use `running` from contract/support/server.py in a session fixture.
    """
    return SimpleNamespace(
        STORAGE="Etcd",
        STORAGE_CONFIG={"host": "127.0.0.1", "port": port, "prefix": f"{uuid4()}/"},
        BOT_EXTRA_STORAGE_PLUGINS_DIR=str(SOURCE),
        BOT_DATA_DIR=str(tmp_path),
    )


@pytest.fixture
def another_database() -> dict[str, Any]:
    """Keys of STORAGE_CONFIG of another empty database on the server, as a staging bot has."""
    return {"prefix": f"{uuid4()}/"}


@pytest.fixture(scope="session")
def outlives_process() -> bool:
    """Whether data survive the process that stored them."""
    return True


@pytest.fixture
def faults(errbot_config: SimpleNamespace, port: int) -> Iterator[Faults]:
    """How the tests make the database fail: the plugin reaches it by a way that can break."""
    with Proxy("127.0.0.1", port, lambda proxied: {"port": proxied}) as proxy:
        errbot_config.STORAGE_CONFIG |= {"timeout": 2.0, **proxy.config()}
        yield proxy
