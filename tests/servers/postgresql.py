"""PostgreSQL servers: a primary, and a standby that can be promoted."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from servers.base import Server, needs

ACCOUNTS = "local all all trust\nhost all admin 127.0.0.1/32 trust\n"
PASSWORDS = "host all all 127.0.0.1/32 scram-sha-256\nhost replication admin 127.0.0.1/32 trust\n"


class PostgreSQL(Server):
    """A PostgreSQL server. Its superuser `admin` needs no password; other accounts do."""

    refuses_root = True

    def __init__(self, folder: Path, port: int | None = None, **settings: str) -> None:
        self.initdb, self.postgres, self.basebackup, self.psql = needs(
            "initdb", "postgres", "pg_basebackup", "psql", package="postgresql"
        )
        super().__init__(folder, port)
        self.data = folder / "data"
        self.settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "32MB",
            "fsync": "off",  # the tests kill servers, but not the machine
            "dynamic_shared_memory_type": "mmap",  # in the data folder: a killed server leaves it
            **settings,
        }

    def prepare(self) -> None:
        """Create the server's data folder."""
        self.give_folder_away()
        self.run(
            *(self.initdb, "-D", self.data, "-U", "admin", "-A", "trust"),
            *("-E", "UTF8", "--locale=C", "--no-sync"),
        )
        (self.data / "pg_hba.conf").write_text(ACCOUNTS + PASSWORDS)

    def run(self, *command: str | Path) -> str:
        """Run a program as the server's user, and return what it printed."""
        done = subprocess.run(
            [str(word) for word in command],
            user=self.user(),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        options = [f"-c{name}={value}" for name, value in self.settings.items()]
        return [self.postgres, "-D", str(self.data), *options]

    def start(self) -> None:
        """Start the server, and return when it answers."""
        if not self.data.exists():
            self.prepare()
        super().start()

    def kill(self) -> None:
        """Kill the server, and the processes that serve its connections."""
        assert self.process is not None
        command = ["ps", "-o", "pid=", "--ppid", str(self.process.pid)]
        children = subprocess.run(command, capture_output=True, text=True).stdout.split()
        super().kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)

    def stop(self) -> None:
        """Stop the server if it runs, without waiting for its clients."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        super().stop()

    def is_ready(self) -> bool:
        """Return whether the server accepts statements."""
        command = [self.psql, self.address("admin", "postgres"), "-Atc", "SELECT 1"]
        return subprocess.run(command, capture_output=True).returncode == 0

    def address(self, account: str, database: str) -> str:
        """Return the address of a database for libpq."""
        return f"postgresql://{account}@{self.host}:{self.port}/{database}?connect_timeout=2"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run statements as the superuser, and return their output."""
        return self.run(
            *(self.psql, self.address("admin", database), "-v", "ON_ERROR_STOP=1"),
            *("-X", "-At", "-c", statement),
        ).strip()

    def add_account(self, name: str, password: str, database: str) -> None:
        """Create an account with a password, and a database that it owns."""
        self.sql(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        self.sql(f"CREATE DATABASE {database} OWNER {name}")

    def standby(self, folder: Path) -> "PostgreSQL":
        """Return a server, not yet started, that follows this one."""
        standby = PostgreSQL(folder)
        standby.give_folder_away()
        standby.run(
            *(self.basebackup, "-h", self.host, "-p", str(self.port), "-U", "admin"),
            *("-D", standby.data, "--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        )
        return standby

    def promote(self) -> None:
        """Make this standby a primary, and wait until it accepts writes."""
        self.sql("SELECT pg_promote(true, 30)")
