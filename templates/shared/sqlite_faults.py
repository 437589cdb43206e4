class SQLiteFaults(Faults):
    """How an SQLite file fails: another program locks it, or the disk damages it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def stop(self) -> None:
        """Lock the file for writing, as another program would."""
        self._other = sqlite3.connect(self._path, isolation_level=None)
        self._other.execute("BEGIN IMMEDIATE")

    def start(self) -> None:
        """Release the lock."""
        self._other.close()

    def damage(self) -> None:
        """Overwrite all but the first page, with the schema, as a failing disk may."""
        with closing(sqlite3.connect(self._path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._whole = self._path.read_bytes()
        self._path.write_bytes(self._whole[:4_096].ljust(len(self._whole), b"\xff"))

    def mend(self) -> None:
        """Restore the file."""
        self._path.write_bytes(self._whole)

    @contextmanager
    def backup(self) -> Iterator[None]:
        """Read the file in a transaction."""
        with closing(sqlite3.connect(self._path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM sqlite_master").fetchall()
            yield
