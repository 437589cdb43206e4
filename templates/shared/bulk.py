IN_BULK = False
"""Whether the storage reads and writes several values at once."""


def items(storage: Any) -> Iterator[tuple[str, bytes]]:
    """Iterate over the keys and bytes of a namespace."""
    for key in storage.keys():
        with suppress(KeyError):  # removed meanwhile
            yield key, storage.read(key)


def write_many(storage: Any, rows: dict[str, bytes]) -> None:
    """Store bytes under several keys."""
    for key, data in rows.items():
        storage.write(key, data)
