    def __init__(self, database: Any, namespace: str, secrets: list[SecretStr]) -> None:
        self._database = database
        self._namespace = namespace
        self._signing_keys = secrets
        quoted = quote(namespace, safe="", errors="surrogatepass")
        self._heads, self._parts = f"heads/{quoted}/", f"parts/{quoted}/"
        self.collect()

    # Bytes: the same for every database that limits values. Nothing to edit from here on, but PART.
    # Under a key is a head: a small value, or where the parts of a large one are. Parts are written
    # under a fresh id and never change; then the head is switched in one step; then the old parts
    # are deleted. A bot that is killed leaves parts that no head names: `collect` finds them.
    #
    # The database has six methods. A place and a name together lead to bytes:
    #   get(place, name)               returns the bytes, None if there are none
    #   put(place, name, data)         stores bytes
    #   switch(place, name, new, old)  in one step: stores new bytes, or removes the name if new is
    #                                  None; does neither unless old is None or there; returns the
    #                                  bytes that were there
    #   delete(place, beginning)       removes every name that begins so
    #   names(place, start, limit)     returns so many names, in order, beginning with start or next
    #   count(place)                   returns the number of names

    PART = 500_000  # bytes of a part, and of a value in its head; `switch` may send two heads
    HOUR = 3_600  # seconds after which parts without a head count as left behind

    def read(self, key: str) -> bytes:
        """Return the bytes stored under a key. Raises KeyError if there are none."""
        before = None
        while (head := self._database.get(self._heads, key)) != before:
            if head is not None and (data := self._join(head)) is not None:
                return data
            before = head  # Its parts are gone, so there should be a newer one.
        if head is None:
            raise KeyError(key)
        raise StoreException(f"A part of the value of the key {key!r} is missing.")

    def write(self, key: str, data: bytes) -> None:
        """Store bytes under a key, in one step. They are in the database on return."""
        head = self._store(key, data)
        self._discard(self._database.switch(self._heads, key, head, None))

    def swap(self, key: str, old: bytes, new: bytes) -> bool:
        """Replace bytes if they are still the old ones, in one step. Returns whether it did."""
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
        """Iterate over the keys, which may be added and removed meanwhile."""
        return self._names(self._heads)

    def close(self) -> None:
        """Do nothing: every operation is done on return, and the connection is the plugin's."""

    def collect(self) -> None:
        """Delete parts that no head has named for an hour: a bot was killed in a `set`."""
        for id in {name.split("/")[0] for name in self._names(self._parts)}:
            if time() - int(id.split("-")[0]) > self.HOUR:
                key = self._database.get(self._parts, f"{id}/key") or b""
                head = self._database.get(self._heads, key.decode("utf-8", "surrogatepass")) or b""
                if not head.startswith(id.encode()):
                    self._database.delete(self._parts, f"{id}/")

    def _names(self, place: str) -> Iterator[str]:
        start = ""
        while page := self._database.names(place, start, 100):
            yield from page
            start = page[-1] + "\0"

    def _store(self, key: str, data: bytes) -> bytes:
        """Write the parts of a large value, and return the head for it."""
        if len(data) <= self.PART:
            return b"=" + data
        id, cuts = f"{int(time())}-{uuid4().hex}", range(0, len(data), self.PART)
        self._database.put(self._parts, f"{id}/key", key.encode("utf-8", "surrogatepass"))
        for number, cut in enumerate(cuts):
            self._database.put(self._parts, f"{id}/{number}", data[cut : cut + self.PART])
        if time() - int(id.split("-")[0]) > self.HOUR / 2:  # `collect` must never meet it.
            raise StoreException(f"{len(data)} bytes for the key {key!r} took too long to store.")
        return f"{id} {len(cuts)}".encode()

    def _join(self, head: bytes) -> bytes | None:
        """Return the value of a head, None if its parts have been deleted."""
        if head.startswith(b"="):
            return head[1:]
        id, count = head.decode().split()
        found = [self._database.get(self._parts, f"{id}/{number}") for number in range(int(count))]
        return None if None in found else b"".join(found)

    def _discard(self, head: bytes | None) -> None:
        """Delete the parts of a head that is no more."""
        if head and not head.startswith(b"="):
            self._database.delete(self._parts, head.split()[0].decode() + "/")
