"""The base class of all test servers: a process that tests can start, stop and kill."""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

GIVEN: set[int] = set()
"""Ports that were returned. A cluster needs a dozen before its first server starts."""


def free_port() -> int:
    """Return a free TCP port of the loopback address, and never the same one again.

    It is below those from which connections start: one of other tests could take it meanwhile.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in GIVEN:
                GIVEN.add(port)
                return port


def needs(*binaries: str, package: str) -> list[str]:
    """Return the paths of a server's programs.

    If they are missing, the test is skipped, or fails in CI, which installs them.
    """
    folders = os.pathsep.join(
        [
            os.environ.get("PATH", ""),
            "/usr/sbin",
            *sorted(map(str, Path("/usr/lib").glob("postgresql/*/bin"))),
        ]
    )
    found = [shutil.which(binary, path=folders) for binary in binaries]
    if all(found):
        return [str(path) for path in found]
    missing = f"no {' and '.join(binaries)}: install {package}"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


class Server:
    """A server process on a free port of the loopback address, with its data in a folder.

    A subclass defines the command, and may define how to tell that the server is ready.
    """

    #: Whether the server refuses to run as root. If so, tests as root start it as `nobody`.
    refuses_root = False

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Return whether the server answers. May raise OSError if not."""
        with socket.create_connection((self.host, self.port), timeout=1):
            return True

    def user(self) -> str | None:
        """Return the name of the user that runs the server, None for the current one."""
        return (
            "nobody" if self.refuses_root and sys.platform != "win32" and os.getuid() == 0 else None
        )

    def give_folder_away(self) -> None:
        """Give the folder of a server that does not run to its user, and let them reach it."""
        if name := self.user():
            entry = pwd.getpwnam(name)
            for path in [self.folder, *self.folder.rglob("*")]:
                os.chown(path, entry.pw_uid, entry.pw_gid)
            for parent in self.folder.parents:
                if parent.stat().st_uid == os.getuid() and parent != Path("/"):
                    parent.chmod(parent.stat().st_mode | 0o011)

    def start(self) -> None:
        """Start the server, and wait until it answers. Raises AssertionError after 30 s."""
        self.give_folder_away()
        with (self.folder / "output.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                user=self.user(),
                cwd=self.folder,
            )
        self.wait_until(self.is_ready)

    def wait_until(self, true: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until a function returns true. An OSError counts as false."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process is not None
            assert self.process.poll() is None, f"The server ended: {self.output()}"
            try:
                if true():
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"The server does not answer: {self.output()}")

    def output(self) -> str:
        """Return the end of what the server printed."""
        return (self.folder / "output.log").read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        """Kill the server, whatever it is doing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Stop the server, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
