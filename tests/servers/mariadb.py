"""A MariaDB server. `MYSQL_SERVER=mysqld` takes one of MySQL instead."""

import os
import subprocess
from pathlib import Path

from servers.base import Server, needs

MYSQL = os.environ.get("MYSQL_SERVER")
SCHEME = "mysql" if MYSQL else "mariadb"
"""What the server's URLs begin with."""


class MariaDB(Server):
    """A MariaDB or MySQL server; its account `admin` may do everything, and needs no password."""

    refuses_root = True

    def __init__(self, folder: Path, port: int | None = None, **settings: str) -> None:
        programs = (MYSQL, "mysql") if MYSQL else ("mariadbd", "mariadb", "mariadb-install-db")
        self.server, self.client, *self.install = needs(*programs, package=f"{SCHEME}-server")
        super().__init__(folder, port)
        self.data = folder / "data"
        # Not /tmp: a server that starts removes all temporary tables there, and another's too.
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
            # MySQL would take a second port, and files from a folder of the machine.
            **({"mysqlx": "OFF", "secure-file-priv": "NULL"} if MYSQL else {}),
            **settings,
        }

    def prepare(self) -> None:
        """Make the server's data folder."""
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
            # Without names of hosts, 127.0.0.1 is another account than root's localhost.
            self._client("root", "CREATE USER admin; GRANT ALL ON *.* TO admin WITH GRANT OPTION")

    def is_ready(self) -> bool:
        """Tell whether the server takes commands. The first time it has no `admin` yet."""
        return any(self._run(name, "SELECT 1").returncode == 0 for name in ["admin", "root"])

    def _run(self, account: str, statement: str) -> "subprocess.CompletedProcess[str]":
        """Run statements with the server's own client, by its socket."""
        command = [
            *(self.client, "--no-defaults", f"--socket={self.settings['socket']}"),
            *(f"--user={account}", "--skip-column-names", "--batch", "-e", statement),
        ]
        return subprocess.run(command, capture_output=True, text=True)

    def _client(self, account: str, statement: str) -> str:
        """Run statements, and return what they gave."""
        done = self._run(account, statement)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def sql(self, statement: str) -> str:
        """Run statements as the account that may do everything, and return what they gave."""
        return self._client("admin", statement)

    def add_account(self, name: str, password: str, database: str) -> None:
        """Make an account with a password, and a database in which it may do everything."""
        self.sql(f"CREATE USER {name} IDENTIFIED BY '{password}'; CREATE DATABASE {database}")
        self.sql(f"GRANT ALL ON {database}.* TO {name}")
