class LockedFile(Faults):
    """An SQLite file. While it is `stopped`, another program holds the write lock."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def stop(self) -> None:
        """Lock the file for writing, as another program would."""
        self._other = sqlite3.connect(self._path, isolation_level=None)
        self._other.execute("BEGIN IMMEDIATE")

    def start(self) -> None:
        """Release the lock."""
        self._other.close()
