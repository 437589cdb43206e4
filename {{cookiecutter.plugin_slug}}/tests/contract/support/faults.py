"""How tests make a database fail, as the fixture `faults` of tests/conftest.py defines it."""

import math
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Event, Thread
from typing import Any, NoReturn

import pytest

from contract.support.server import free_ports


def cannot(what: str) -> NoReturn:
    """Skip a test, because the fixture `faults` of conftest.py does not say how to do this."""
    pytest.skip(f"tests/conftest.py does not say how to {what} (its fixture `faults`)")


@contextmanager
def none_left(limit: str, what: str, but: int = 0) -> Iterator[None]:
    """Let this process use no more of something that the system limits, but so much."""
    resource = pytest.importorskip("resource", reason=f"Windows cannot limit {what}")
    number = getattr(resource, limit)
    soft, hard = resource.getrlimit(number)
    resource.setrlimit(number, (but, hard))
    try:
        yield
    finally:
        resource.setrlimit(number, (soft, hard))


FULL_DISK = partial(none_left, "RLIMIT_FSIZE", "the size of files")


class Faults:
    """How the tests make a database fail. Faults that a database cannot have are skipped.

    For a database with a server, `Proxy` does most of it.
    """

    def unreachable(self) -> dict[str, Any]:
        """Return keys of STORAGE_CONFIG that lead to no database."""
        cannot("name a database that cannot be reached")

    def stop(self) -> None:
        """Take the database away: until `start`, it cannot be used, or at least not be changed."""
        cannot("stop the database")

    def start(self) -> None:
        """Bring the database back, with all its data."""

    @contextmanager
    def away(self) -> Iterator[None]:
        """Take the database away for the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def stall(self) -> None:
        """Let the database accept connections, and give its answers only after `start`."""
        cannot("keep the database from answering")

    def lose_answer(self, number: int) -> None:
        """Close a connection instead of sending it an answer, after `number` answers."""
        cannot("lose an answer of the database")

    def damage(self, everything: bool) -> None:
        """Make the data unreadable, even for plugins that have the database open.

        Damages all but the beginning, which says what it is, or everything.
        """
        cannot("damage what is stored")

    def mend(self) -> None:
        """Make all data readable again."""

    def drop(self) -> None:
        """Close all connections, as servers and firewalls do after a long time without traffic."""
        cannot("drop connections")

    def full(self) -> AbstractContextManager[object]:
        """Let the database have no more space, for plugins that are loaded in the block."""
        cannot("fill the database")

    def read_only(self) -> AbstractContextManager[object]:
        """Let the database refuse changes, for plugins that are loaded in the block."""
        cannot("make the database read-only")

    def counting(self) -> AbstractContextManager[Callable[[], int]]:
        """Count what the database does for plugins that are loaded in the block, such as rows read.

        Yields a function that returns the number so far.
        """
        cannot("count what the database does")

    def writing(self) -> AbstractContextManager[object]:
        """Change everything in a transaction of another program, which the block's end undoes."""
        cannot("change the database in a transaction")

    def backup(self) -> AbstractContextManager[object]:
        """Make a backup in a transaction of another program, which ends with the block."""
        cannot("read the database as a backup does")

    def restore(self) -> None:
        """Replace the database with the last backup. Nobody has it open."""
        cannot("restore a backup")

    def age(self) -> None:
        """Let the database age by years. By default, nothing is done: databases do not forget."""


class Proxy(Faults):
    """A connection between the plugin and a server, which tests can break.

    `config` returns the keys of STORAGE_CONFIG that lead to a port of this machine.
    """

    def __init__(self, host: str, port: int, config: Callable[[int], dict[str, Any]]) -> None:
        self._target = host, port
        self._config = config
        self._open: set[socket.socket] = set()
        self._port, self._nowhere = free_ports(2)
        self._server: ThreadingTCPServer | None = None
        self._answering = Event()
        self._answers = math.inf
        self.start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def config(self) -> dict[str, Any]:
        """Return the keys of STORAGE_CONFIG with which the plugin connects through this proxy."""
        return self._config(self._port)

    def unreachable(self) -> dict[str, Any]:
        """Return keys of STORAGE_CONFIG that lead to a port where nothing listens."""
        return self._config(self._nowhere)

    def start(self) -> None:
        """Accept connections, and forward everything, including what was held back."""
        self._answers = math.inf
        self._answering.set()
        if self._server:
            return
        carry = self._carry

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                carry(self.request)

        class Server(ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True
            request_queue_size = 100

        self._server = server = Server(("127.0.0.1", self._port), Handler)
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()

    def stop(self) -> None:
        """Accept no more connections, and close all that are open."""
        self._answering.set()
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.drop()

    def stall(self) -> None:
        """Accept connections, and hold back all answers."""
        self._answering.clear()

    def lose_answer(self, number: int) -> None:
        """Forward `number` answers, and close a connection instead of forwarding the next one.

        An answer is what the server sends at once; a large one may count as several.
        """
        self._answers = number

    def drop(self) -> None:
        """Close all connections."""
        while self._open:
            with suppress(OSError, KeyError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def _carry(self, client: socket.socket) -> None:
        """Forward the data of client and server, until one has finished or `drop` closes it."""
        with suppress(OSError), socket.create_connection(self._target) as server:
            peer = {client: server, server: client}
            self._open |= set(peer)
            for end in peer:  # Forward small packets at once, as the client sends them.
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                for source in select.select(list(peer), [], [])[0]:
                    if not (data := source.recv(65_536)):
                        return
                    if source is server and not self._may_answer():
                        return
                    peer[source].sendall(data)

    def _may_answer(self) -> bool:
        """Wait until answers are forwarded. Returns whether the next one is."""
        self._answering.wait()
        self._answers -= 1
        if self._answers >= 0:
            return True
        self._answers = math.inf
        return False
