class LockedFile(Faults):
    """A file of SQLite. While it is `stopped`, another program holds the lock for writers."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def stop(self) -> None:
        """Let another program begin to write."""
        self._other = sqlite3.connect(self._path, isolation_level=None)
        self._other.execute("BEGIN IMMEDIATE")

    def start(self) -> None:
        """Let the other program end."""
        self._other.close()
