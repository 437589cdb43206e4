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

    def damage(self, everything: bool) -> None:
        """Overwrite the file, as a failing disk may, or all but its first page, with the schema."""
        with closing(sqlite3.connect(self._path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._whole = self._path.read_bytes()
        begin = b"" if everything else self._whole[:4_096]
        self._path.write_bytes(begin.ljust(len(self._whole), b"\xff"))

    def mend(self) -> None:
        """Restore the file."""
        self._path.write_bytes(self._whole)

    def full(self) -> AbstractContextManager[None]:
        """Let connections that are made in the block add no page to the file."""
        # No fewer pages than there are.
        return self._connecting(lambda new: new.execute("PRAGMA max_page_count = 1"))

    def read_only(self) -> AbstractContextManager[None]:
        """Let connections that are made in the block change nothing."""
        return self._connecting(lambda new: new.execute("PRAGMA query_only = ON"))

    @contextmanager
    def counting(self) -> Iterator[Callable[[], int]]:
        """Count the instructions that SQLite executes for connections made in the block."""
        done = 0

        def count() -> int:
            nonlocal done
            done += 1
            return 0

        with self._connecting(lambda new: new.set_progress_handler(count, 1)):
            yield lambda: done

    @contextmanager
    def _connecting(self, prepare: Callable[[sqlite3.Connection], object]) -> Iterator[None]:
        """Prepare connections that are made in the block."""

        def connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = real(*arguments, **options)
            prepare(connection)
            return connection

        real = sqlite3.connect
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sqlite3, "connect", connect)
            patch.setattr(sqlite3.dbapi2, "connect", connect)
            yield

    def writing(self) -> AbstractContextManager[None]:
        """Lock the file for writing."""
        return self.away()

    @contextmanager
    def backup(self) -> Iterator[None]:
        """Copy the file, and go on reading it."""
        with (
            closing(sqlite3.connect(self._path, isolation_level=None)) as source,
            closing(sqlite3.connect(f"{self._path}.bak")) as copy,
        ):
            source.backup(copy)
            source.execute("BEGIN")
            source.execute("SELECT * FROM sqlite_master").fetchall()
            yield

    def age(self) -> None:
        """Put all times that are stored back by ten years."""
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.create_function("earlier", 1, ten_years_earlier)
            columns = connection.execute(
                "SELECT tables.name, columns.name FROM sqlite_master tables,"
                " pragma_table_info(tables.name) columns WHERE tables.type = 'table'"
            )
            for table, column in columns.fetchall():
                name, earlier = f'"{column}"', f'earlier("{column}")'
                change = f'UPDATE "{table}" SET {name} = {earlier} WHERE {name} IS NOT {earlier}'
                connection.execute(change)

    def restore(self) -> None:
        """Make the file anew from the copy, as `.dump` does: the rows get other numbers."""
        backup = Path(f"{self._path}.bak")
        for path in backup.parent.glob(f"{backup.stem}*"):  # -wal, -shm, and what a storage adds
            if path.is_dir():
                shutil.rmtree(path)
            elif path != backup:
                path.unlink()
        with (
            closing(sqlite3.connect(backup)) as copy,
            closing(sqlite3.connect(self._path)) as new,
        ):
            new.executescript("\n".join(copy.iterdump()))
            [version] = copy.execute("PRAGMA user_version").fetchone()
            new.execute(f"PRAGMA user_version = {version}")
