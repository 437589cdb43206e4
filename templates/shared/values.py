    def _dump(self, key: str, value: Any) -> bytes:
        """Pickle a value, and sign it where there is a signing key."""
        if not isinstance(key, str):
            raise TypeError(f"A key of the storage is a str, not a {type(key).__name__}.")
        data = pickle.dumps(value, protocol=5)
        return self._signer(key).sign(data) if self._signing_keys else data

    def _load(self, key: str, data: bytes) -> Any:
        """Check the signature, and only then unpickle: it runs code, maybe a stranger's."""
        if self._signing_keys:
            try:
                data = self._signer(key).unsign(data)
            except BadSignature:
                raise StoreException(
                    f"Refused {self._where(key)}: it is not signed with a signing_key of"
                    " STORAGE_CONFIG, so it was changed, moved here, or stored without one."
                ) from None
        try:
            return pickle.loads(data)
        except Exception as error:
            problem = f"{self._where(key)}: {type(error).__name__}."
            raise StoreException(f"Cannot unpickle {problem}") from error

    def _where(self, key: str) -> str:
        """Say in an error which value it is about."""
        return f"the value of the key {key!r} in the namespace {self._namespace!r}"

    def _signer(self, key: str) -> Signer:
        """Make a signer for this namespace and key, so that no value is good at another place."""
        place = json.dumps([self._namespace, key]).encode()
        return Signer(
            self._signing_keys, salt=place, key_derivation="hmac", digest_method=hashlib.sha256
        )
