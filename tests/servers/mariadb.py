"""A MariaDB server, or a MySQL server with `MYSQL_SERVER=mysqld`."""

import os
import subprocess
from pathlib import Path

from servers.base import Server, needs

MYSQL = os.environ.get("MYSQL_SERVER")
SCHEME = "mysql" if MYSQL else "mariadb"
"""The scheme of the server's URLs."""


class MariaDB(Server):
    """A MariaDB or MySQL server. Its account `admin` has all privileges and no password."""

    refuses_root = True

    def __init__(self, folder: Path, port: int | None = None, **settings: str) -> None:
        programs = (MYSQL, "mysql") if MYSQL else ("mariadbd", "mariadb", "mariadb-install-db")
        self.server, self.client, *self.install = needs(*programs, package=f"{SCHEME}-server")
        super().__init__(folder, port)
        self.data = folder / "data"
        # Not /tmp, because a server that starts deletes all temporary tables in this folder.
        self.temporary = folder / "temporary"
        self.temporary.mkdir(exist_ok=True)
        self.settings = {
            "datadir": str(self.data),
            "tmpdir": str(self.temporary),
            "bind-address": self.host,
            "port": str(self.port),
            "socket": str(folder / "socket"),
            "pid-file": str(folder / "pid"),
            "innodb-buffer-pool-size": "32M",
            "innodb-flush-method": "nosync",  # the tests kill servers, but not the machine
            "skip-name-resolve": "ON",
            # MySQL would use a second port, and a folder outside of this one.
            **({"mysqlx": "OFF", "secure-file-priv": "NULL"} if MYSQL else {}),
            **settings,
        }

    def prepare(self) -> None:
        """Create the server's data folder."""
        self.give_folder_away()
        if MYSQL:
            command = [self.server, "--no-defaults", "--initialize-insecure"]
        else:
            command = [*self.install, "--no-defaults", "--skip-test-db"]
            command.append("--auth-root-authentication-method=normal")
        done = subprocess.run(
            [*command, f"--datadir={self.data}"],
            user=self.user(),
            cwd=self.folder,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        options = [f"--{name}={value}" for name, value in self.settings.items()]
        return [self.server, "--no-defaults", *options]

    def start(self) -> None:
        """Start the server, and return when it answers."""
        if self.data.exists():
            super().start()
        else:
            self.prepare()
            super().start()
            # root's account is for localhost. With skip-name-resolve, 127.0.0.1 needs another one.
            self._client("root", "CREATE USER admin; GRANT ALL ON *.* TO admin WITH GRANT OPTION")

    def is_ready(self) -> bool:
        """Return whether the server accepts statements. At first, it has no `admin` yet."""
        return any(self._run(name, "SELECT 1").returncode == 0 for name in ["admin", "root"])

    def _run(self, account: str, statement: str) -> "subprocess.CompletedProcess[str]":
        """Run statements with the server's own client, over its socket."""
        command = [
            *(self.client, "--no-defaults", f"--socket={self.settings['socket']}"),
            *(f"--user={account}", "--skip-column-names", "--batch", "-e", statement),
        ]
        return subprocess.run(command, capture_output=True, text=True)

    def _client(self, account: str, statement: str) -> str:
        """Run statements, and return their output."""
        done = self._run(account, statement)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def sql(self, statement: str) -> str:
        """Run statements as `admin`, and return their output."""
        return self._client("admin", statement)

    def add_account(self, name: str, password: str, database: str) -> None:
        """Create an account with a password, and a database with all privileges for it."""
        self.sql(f"CREATE USER {name} IDENTIFIED BY '{password}'; CREATE DATABASE {database}")
        self.sql(f"GRANT ALL ON {database}.* TO {name}")
