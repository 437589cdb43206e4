IN_BULK = True
"""Whether the storage reads and writes several values at once."""


def items(storage: Any) -> Iterator[tuple[str, bytes]]:
    """Iterate over the keys and bytes of a namespace, in pages of at most a hundred values.

    Pages of large values have fewer.
    """
    with suppress(KeyError):  # The empty key is not greater than b"".
        yield "", storage.read("")
    last, limit = b"", 1
    while page := storage._run("items", n=storage._encoded, k=last, s=limit)[0]:
        for name, data in page:
            with suppress(UnicodeDecodeError):
                yield bytes(name).decode("utf-8", "surrogatepass"), bytes(data)
        size = sum(len(data) for _, data in page)
        limit = min(limit * 2, 100) if size < 1_000_000 else max(limit // 4, 1)
        last = bytes(page[-1][0])


def write_many(storage: Any, rows: dict[str, bytes]) -> None:
    """Store bytes under several keys, in one round trip if the driver supports that."""
    names = {key: key.encode("utf-8", "surrogatepass") for key in rows}
    values = [{"n": storage._encoded, "k": names[key], "v": rows[key]} for key in rows]
    storage._run("write", values)
