    def __init__(self, database: Any, namespace: str, secrets: list[SecretStr]) -> None:
        self._database = database
        self._namespace = namespace
        self._signing_keys = secrets
        quoted = quote(namespace, safe="", errors="surrogatepass")
        self._heads, self._parts = f"heads/{quoted}/", f"parts/{quoted}/"
        self.collect()

    # Bytes: the same for every database that limits values. From here on, edit only PART.
    # Each key has a head, which holds a small value or points to the parts of a large one. Parts
    # are stored under a new id and never change. Then the head is replaced atomically, and the old
    # parts are deleted. A killed bot may leave parts without a head, which `collect` deletes.
    #
    # The database needs six methods. A place and a name together identify the stored bytes:
    #   get(place, name)               returns the bytes, or None
    #   put(place, name, data)         stores bytes
    #   switch(place, name, new, old)  atomically stores new, or removes the name if new is None,
    #                                  but only if old is None or equals the stored bytes; returns
    #                                  what was stored before
    #   delete(place, beginning)       removes all names with this beginning
    #   names(place, start, limit)     returns at most limit names, in order, from start on
    #   count(place)                   returns the number of names

    PART = 500_000  # maximum bytes in a part or a head; `switch` may send two heads
    HOUR = 3_600  # seconds after which parts without a head are deleted

    def read(self, key: str) -> bytes:
        """Return the bytes stored under a key. Raises KeyError if there are none."""
        before = None
        while (head := self._database.get(self._heads, key)) != before:
            if head is not None and (data := self._join(head)) is not None:
                return data
            before = head  # Its parts are gone, so there should be a newer head.
        if head is None:
            raise KeyError(key)
        raise StoreException(f"A part of the value of the key {key!r} is missing.")

    def write(self, key: str, data: bytes) -> None:
        """Store bytes under a key atomically. On return, they are in the database."""
        head = self._store(key, data)
        self._discard(self._database.switch(self._heads, key, head, None))

    def swap(self, key: str, old: bytes, new: bytes) -> bool:
        """Atomically replace bytes if they still are the old ones. Returns whether it did."""
        head = self._database.get(self._heads, key)
        if head is None or self._join(head) != old:
            return False
        other = self._store(key, new)
        done = bool(self._database.switch(self._heads, key, other, head) == head)
        self._discard(head if done else other)
        return done

    def remove(self, key: str) -> None:
        """Remove a key. Raises KeyError if it is not there."""
        head = self._database.switch(self._heads, key, None, None)
        if head is None:
            raise KeyError(key)
        self._discard(head)

    def len(self) -> int:
        """Return the number of keys."""
        return int(self._database.count(self._heads))

    def keys(self) -> Iterator[str]:
        """Iterate over the keys, even while keys are added and removed."""
        # Few at first, for Errbot's `clear`. Then all at once, so that a loop that adds keys ends.
        first = self._database.names(self._heads, "", 20)
        yield from first
        if len(first) == 20:
            yield from list(self._names(self._heads, first[-1] + "\0"))

    def close(self) -> None:
        """Do nothing: nothing is buffered, and the connection belongs to the plugin."""

    def collect(self) -> None:
        """Delete parts that had no head for an hour: a bot was killed during `set`."""
        for id in {name.split("/")[0] for name in self._names(self._parts)}:
            if time() - int(id.split("-")[0]) > self.HOUR:
                key = self._database.get(self._parts, f"{id}/key") or b""
                head = self._database.get(self._heads, key.decode("utf-8", "surrogatepass")) or b""
                if not head.startswith(id.encode()):
                    self._database.delete(self._parts, f"{id}/")

    def _names(self, place: str, start: str = "") -> Iterator[str]:
        while page := self._database.names(place, start, 100):
            yield from page
            start = page[-1] + "\0"

    def _store(self, key: str, data: bytes) -> bytes:
        """Store the parts of a value if it is large, and return its head."""
        if len(data) <= self.PART:
            return b"=" + data
        id, cuts = f"{int(time())}-{uuid4().hex}", range(0, len(data), self.PART)
        self._database.put(self._parts, f"{id}/key", key.encode("utf-8", "surrogatepass"))
        for number, cut in enumerate(cuts):
            self._database.put(self._parts, f"{id}/{number}", data[cut : cut + self.PART])
        if time() - int(id.split("-")[0]) > self.HOUR / 2:  # `collect` could delete the parts.
            raise StoreException(f"Storing {len(data)} bytes under the key {key!r} took too long.")
        return f"{id} {len(cuts)}".encode()

    def _join(self, head: bytes) -> bytes | None:
        """Return the value of a head, or None if its parts have been deleted."""
        if head.startswith(b"="):
            return head[1:]
        id, count = head.decode().split()
        found = [self._database.get(self._parts, f"{id}/{number}") for number in range(int(count))]
        return None if None in found else b"".join(found)

    def _discard(self, head: bytes | None) -> None:
        """Delete the parts of a head that has been replaced or removed."""
        if head and not head.startswith(b"="):
            self._database.delete(self._parts, head.split()[0].decode() + "/")
