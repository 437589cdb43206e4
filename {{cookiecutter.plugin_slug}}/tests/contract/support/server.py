"""A server that the tests start themselves, on free ports of the loopback address."""

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


def free_ports(count: int) -> list[int]:
    """Return TCP ports on which nothing listens.

    They are below the range of outgoing connections, which could take one before the server does.
    """
    ports: set[int] = set()
    while len(ports) < count:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.add(port)
    return list(ports)


@contextmanager
def running(
    command: Sequence[str], port: int, log: Path, package: str, seconds: float = 30
) -> Iterator[None]:
    """Run a server in the foreground during the block, which begins when it accepts connections.

    If the program is not installed, the tests are skipped; under CI, they fail.
    """
    if not shutil.which(command[0]):
        missing = f"There is no {command[0]} to run the tests on: install {package}."
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=log.parent)
    try:
        deadline = time.monotonic() + seconds
        while not takes_connections(port):
            assert process.poll() is None, f"{command[0]} ended: {log.read_text(errors='replace')}"
            assert time.monotonic() < deadline, (
                f"{command[0]} does not accept connections on port {port}."
            )
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def takes_connections(port: int) -> bool:
    """Return whether something listens on a port of the loopback address."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
