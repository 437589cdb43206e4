"""How a database is made to fail, which the fixture `faults` of tests/conftest.py says."""

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any, NoReturn

import pytest

from contract.support.server import free_ports


def cannot(what: str) -> NoReturn:
    """Skip a test, because the fixture `faults` of conftest.py does not say how to do this."""
    pytest.skip(f"tests/conftest.py does not say how to {what} (its fixture `faults`)")


class Faults:
    """How the tests make a database fail. What a database cannot do is skipped.

    For a database with a server, `Proxy` does most of it.
    """

    def unreachable(self) -> dict[str, Any]:
        """Return keys of STORAGE_CONFIG that lead to no database."""
        cannot("reach no database")

    def stop(self) -> None:
        """Take the database away: until `start`, it can be used in no way, or not be changed."""
        cannot("stop the database")

    def start(self) -> None:
        """Give the database back, with everything that was stored."""

    def damage(self) -> None:
        """Make what is stored unreadable, also for plugins that have the database open."""
        cannot("damage what is stored")

    def mend(self) -> None:
        """Make everything readable again."""

    def drop(self) -> None:
        """End all connections, as servers and firewalls do if they are idle for long."""
        cannot("drop its connections")

    def age(self) -> None:
        """Let years pass in the database. By itself, none forgets anything."""


class Proxy(Faults):
    """A way from the plugin to a server, which can break.

    `config` returns the keys of STORAGE_CONFIG that lead to a port of this machine.
    """

    def __init__(self, host: str, port: int, config: Callable[[int], dict[str, Any]]) -> None:
        self._target = host, port
        self._config = config
        self._open: set[socket.socket] = set()
        self._port, self._nowhere = free_ports(2)
        self.start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def config(self) -> dict[str, Any]:
        """Return the keys of STORAGE_CONFIG with which the plugin takes this way."""
        return self._config(self._port)

    def unreachable(self) -> dict[str, Any]:
        """Return keys of STORAGE_CONFIG that lead to a port where nobody listens."""
        return self._config(self._nowhere)

    def start(self) -> None:
        """Take connections."""
        carry = self._carry

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                carry(self.request)

        class Server(ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True
            request_queue_size = 100

        self._server = Server(("127.0.0.1", self._port), Handler)
        Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def stop(self) -> None:
        """Take no more connections, and end all that are open."""
        self._server.shutdown()
        self._server.server_close()
        self.drop()

    def drop(self) -> None:
        """End all connections."""
        while self._open:
            with suppress(OSError, KeyError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def _carry(self, client: socket.socket) -> None:
        """Carry what client and server say, until one of them has said all or `drop` ends it."""
        with suppress(OSError), socket.create_connection(self._target) as server:
            ways = {client: server, server: client}
            self._open |= set(ways)
            while True:
                for source in select.select(list(ways), [], [])[0]:
                    if not (data := source.recv(65_536)):
                        return
                    ways[source].sendall(data)
