"""An etcd server."""

from pathlib import Path

from servers.base import Server, free_port, needs


class Etcd(Server):
    """A single etcd. With a TLS key, it accepts only clients with a certificate."""

    def __init__(self, folder: Path, *options: str, tls: str | None = None) -> None:
        super().__init__(folder)
        [self.binary] = needs("etcd", package="etcd-server")
        self.peer_port = free_port()
        self.scheme = "https" if tls else "http"
        self.options = [*options, *([f"--key-file={tls}", "--client-cert-auth"] if tls else [])]

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        url = f"{self.scheme}://{self.host}:{self.port}"
        peer = f"http://{self.host}:{self.peer_port}"
        return [
            *(self.binary, f"--data-dir={self.folder / 'data'}"),
            *(f"--listen-client-urls={url}", f"--advertise-client-urls={url}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"),
            *(f"--initial-cluster=default={peer}", *self.options),
        ]
