"""An etcd server."""

from pathlib import Path

from servers.base import Server, free_port, needs


class Etcd(Server):
    """An etcd of one member, which talks over plain HTTP."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        super().__init__(folder, port)
        [self.binary] = needs("etcd", package="etcd-server")
        self.peer_port = free_port()

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        url, peer = f"http://{self.host}:{self.port}", f"http://{self.host}:{self.peer_port}"
        return [
            *(self.binary, f"--data-dir={self.folder / 'data'}"),
            *(f"--listen-client-urls={url}", f"--advertise-client-urls={url}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
            f"--initial-cluster=default={peer}",
        ]
