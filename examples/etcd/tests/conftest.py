"""Where the tests' throwaway database comes from: the one file of the tests that is yours to edit.

`contract` holds what Errbot expects of every storage. Keep it as it is, and keep it green.
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from contract.support.faults import Faults, Proxy
from contract.support.server import free_ports, running

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture(scope="session")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an etcd that is started for all tests."""
    folder, (port, peer_port) = tmp_path_factory.mktemp("etcd"), free_ports(2)
    url, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    command = ["etcd", f"--data-dir={folder}", f"--initial-cluster=default={peer}"]
    command += [f"--{name}-client-urls={url}" for name in ["listen", "advertise"]]
    command += [f"--{name}-peer-urls={peer}" for name in ["listen", "initial-advertise"]]
    with running(command, port, folder / "output.log", package="etcd-server"):
        yield port


@pytest.fixture
def errbot_config(tmp_path: Path, port: int) -> SimpleNamespace:
    """What config.py says: this storage plugin, on a database that is empty and this test's alone.

    A fixture that has to drop the database afterwards yields the configuration instead. To start a
    server for all tests, use `running` from contract/support/server.py in a fixture of the session.
    """
    return SimpleNamespace(
        STORAGE="Etcd",
        STORAGE_CONFIG={"host": "127.0.0.1", "port": port, "prefix": f"{uuid4()}/"},
        BOT_EXTRA_STORAGE_PLUGINS_DIR=str(SOURCE),
        BOT_DATA_DIR=str(tmp_path),
    )


@pytest.fixture(scope="session")
def outlives_process() -> bool:
    """Whether the data are still there when the process that stored them is gone."""
    return True


@pytest.fixture
def faults(errbot_config: SimpleNamespace, port: int) -> Iterator[Faults]:
    """How the tests make the database fail: the plugin reaches it by a way that can break."""
    with Proxy("127.0.0.1", port, lambda port: {"port": port}) as proxy:
        errbot_config.STORAGE_CONFIG |= {"timeout": 2.0, **proxy.config()}
        yield proxy
