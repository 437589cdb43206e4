"""Redis for the tests: one server, a master with a replica and Sentinels, and a Cluster.

With `REDIS_SERVER=valkey-server`, Valkey replaces Redis.
"""

import os
import socket
import subprocess
import threading
from pathlib import Path

from servers.base import Server, free_port, needs


class Redis(Server):
    """A redis-server. Settings are given as lines of redis.conf."""

    def __init__(self, folder: Path, *settings: str, port: int | None = None) -> None:
        super().__init__(folder, port)
        name = os.environ.get("REDIS_SERVER", "redis-server")
        client = name.replace("-server", "-cli")
        self.binary, self.client = needs(name, client, package=Path(name).name)
        self.settings = [
            *("bind 127.0.0.1", f"port {self.port}", 'save ""', "appendonly yes"),
            *("appendfsync always", "daemonize no", "repl-diskless-sync-delay 0"),
            *settings,
        ]

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        # Only the first start writes the file, because Sentinels and Cluster nodes change theirs.
        file = self.folder / "server.conf"
        if not file.exists():
            file.write_text("".join(f"{line}\n" for line in [f"dir {self.folder}", *self.settings]))
        return [self.binary, str(file)]

    def is_ready(self) -> bool:
        """Return whether the server answers and has loaded its data."""
        with socket.create_connection((self.host, self.port), timeout=1) as connection:
            connection.settimeout(1)
            connection.sendall(b"PING\r\n")
            answer = connection.recv(100)
        return answer.startswith((b"+PONG", b"-NOAUTH"))

    def cli(self, *command: str, port: int | None = None) -> str:
        """Run redis-cli with a command, and return what it printed."""
        done = subprocess.run(
            [self.client, "-p", str(port or self.port), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=30,
        )
        return done.stdout.strip()

    @property
    def url(self) -> str:
        """The url of the server."""
        return f"redis://{self.host}:{self.port}/0"


class SentinelProcess(Redis):
    """A Sentinel that watches one master."""

    def __init__(self, folder: Path, master: int) -> None:
        super().__init__(folder)
        self.settings = [
            *("bind 127.0.0.1", f"port {self.port}", "daemonize no"),
            f"sentinel monitor mymaster 127.0.0.1 {master} 2",
            "sentinel down-after-milliseconds mymaster 1000",
            "sentinel failover-timeout mymaster 5000",
        ]

    def command(self) -> list[str]:
        """Return the command that runs the Sentinel in the foreground."""
        return [*super().command(), "--sentinel"]


class RedisSentinel:
    """A master, its replica, and three Sentinels, two of which must agree on a failover."""

    def __init__(self, folder: Path) -> None:
        self.master = Redis(folder / "master")
        self.replica = Redis(folder / "replica", f"replicaof 127.0.0.1 {self.master.port}")
        self.sentinels = [
            SentinelProcess(folder / f"sentinel{number}", self.master.port) for number in range(3)
        ]
        self.servers = [self.master, self.replica, *self.sentinels]

    @property
    def addresses(self) -> list[str]:
        """The addresses of the Sentinels."""
        return [f"{sentinel.host}:{sentinel.port}" for sentinel in self.sentinels]

    def start(self) -> None:
        """Start all, and wait until a failover would succeed."""
        for server in self.servers:
            server.start()
        self.replica.wait_until(
            lambda: "master_link_status:up" in self.replica.cli("info", "replication")
        )
        for sentinel in self.sentinels:
            sentinel.wait_until(lambda sentinel=sentinel: self.is_informed(sentinel))  # type: ignore[misc]

    def is_informed(self, sentinel: Redis) -> bool:
        """Return whether a Sentinel knows the replica and the other Sentinels."""
        master = sentinel.cli("sentinel", "master", "mymaster").splitlines()
        state = dict(zip(master[::2], master[1::2], strict=False))
        return (state.get("num-slaves"), state.get("num-other-sentinels")) == ("1", "2")

    def stop(self) -> None:
        """Stop all."""
        for server in reversed(self.servers):
            server.stop()


class RedisCluster:
    """Three masters, each with a replica."""

    def __init__(self, folder: Path) -> None:
        # Each node also listens on a second port, which by default is 10000 higher.
        self.nodes = [
            Redis(
                folder / f"node{number}",
                "cluster-enabled yes",
                "cluster-node-timeout 2000",
                "cluster-config-file nodes.conf",
                f"cluster-port {free_port()}",
            )
            for number in range(6)
        ]

    @property
    def url(self) -> str:
        """The url of the first node."""
        return self.nodes[0].url

    def start(self) -> None:
        """Start the nodes, join them, and wait until all of them agree."""
        for node in self.nodes:
            node.start()
        addresses = [f"{node.host}:{node.port}" for node in self.nodes]
        first = self.nodes[0]
        made = first.cli(
            "--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes"
        )
        assert "All 16384 slots covered" in made, made
        for node in self.nodes:
            node.wait_until(lambda node=node: self.is_informed(node))  # type: ignore[misc]

    def is_informed(self, node: Redis) -> bool:
        """Return whether a node knows three masters with one replica each, and has its data."""
        roles = [line.split()[2] for line in node.cli("cluster", "nodes").splitlines()]
        return (
            "cluster_state:ok" in node.cli("cluster", "info")
            and sum("slave" in role for role in roles) == 3
            and "master_link_status:down" not in node.cli("info", "replication")
        )

    def master_of(self, key: str) -> Redis:
        """Return the master that has a key."""
        slot = int(self.nodes[0].cli("cluster", "keyslot", key))
        for line in self.nodes[0].cli("cluster", "nodes").splitlines():
            words = line.split()
            for slots in words[8:]:
                first, _, last = slots.partition("-")
                if "master" in words[2] and int(first) <= slot <= int(last or first):
                    port = int(words[1].partition("@")[0].rpartition(":")[2])
                    return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"No master has the slot {slot}.")

    def stop(self) -> None:
        """Stop all nodes."""
        for node in self.nodes:
            node.stop()


class Deaf:
    """Accepts connections, and never answers."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = int(self.socket.getsockname()[1])

    def stop(self) -> None:
        """Stop listening."""
        self.socket.close()


class Proxy:
    """Forwards connections to a port of this machine, until it drops them."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.port = int(self.socket.getsockname()[1])
        self.dropped = threading.Event()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        """Connect each client to the port."""
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            for pair in [(client, server), (server, client)]:
                threading.Thread(
                    target=self.hand_on, args=(*pair, self.dropped), daemon=True
                ).start()

    def hand_on(
        self, source: socket.socket, target: socket.socket, dropped: threading.Event
    ) -> None:
        """Forward data, or silently discard them once the connection is dropped."""
        try:
            while data := source.recv(65_536):
                if not dropped.is_set():
                    target.sendall(data)
            if not dropped.is_set():
                target.close()
        except OSError:
            pass

    def drop(self) -> None:
        """Act like a firewall that has forgotten all its connections."""
        self.dropped.set()
        self.dropped = threading.Event()

    def stop(self) -> None:
        """Stop accepting connections."""
        self.socket.close()
