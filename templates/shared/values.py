    # Values: the same for every database. Do not edit the rest of this class.

    def get(self, key: str) -> Any:
        """Return a value. Raises KeyError if there is none, StoreException if it is unreadable."""
        return self._load(key, self.read(key))

    def set(self, key: str, value: Any) -> None:
        """Store a value. If it cannot be pickled, nothing changes."""
        self.write(key, self._dump(key, value))

    def signer(self, key: str) -> Signer:
        """Return a signer for this namespace and key. A value moved elsewhere does not verify."""
        place = [self._namespace, key]  # json.dumps writes an emoji and its surrogates alike
        salt = json.dumps(place) if json.loads(json.dumps(place)) == place else ascii(place)
        keys = [secret.get_secret_value() for secret in self._signing_keys]
        return Signer(keys, salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)

    def _dump(self, key: str, value: Any) -> bytes:
        """Pickle a value, and sign it if there is a signing key."""
        if not isinstance(key, str):
            raise TypeError(f"A key must be a str, not a {type(key).__name__}.")
        data = pickle.dumps(value, protocol=5)
        return self.signer(key).sign(data) if self._signing_keys else data

    def _load(self, key: str, data: bytes) -> Any:
        """Check the signature before unpickling, because unpickling runs code."""
        where = f"the value of the key {key!r} in the namespace {self._namespace!r}"
        why = "is signed, but STORAGE_CONFIG has no signing_key"
        if self._signing_keys:
            why = "was changed, moved here, or not signed with a signing_key in STORAGE_CONFIG"
        try:
            stream = BytesIO(self.signer(key).unsign(data) if self._signing_keys else data)
            value = pickle.load(stream)
            if stream.read(1):
                raise BadSignature("data after the pickle")
            return value
        except BadSignature:
            raise StoreException(f"Refused {where}: it {why}.") from None
        except Exception as error:
            found = re.search(r"(No module \w+|(Can't get|has no) attribute) '[\w.]+'", str(error))
            reason = found[0] if found else type(error).__name__
            raise StoreException(f"Cannot unpickle {where}: {reason}.") from error
        finally:
            data, value = b"", None  # Sentry reports the local variables of each frame.

    __reduce__ = None  # type: ignore[assignment]  # Not to be pickled: it has keys.
