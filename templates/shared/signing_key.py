    signing_key: Secret | Annotated[list[Secret], Field(min_length=1)] | None = Field(
        default=None,
        description="Signs every value, so that nobody can plant one in the database. "
        "While you change it, a list: the old keys first, the new one last.",
    )

    @property
    def signing_keys(self) -> list[str]:
        """The signing keys, the newest last; none where values are not signed."""
        keys = self.signing_key if isinstance(self.signing_key, list) else [self.signing_key]
        return [key.get_secret_value() for key in keys if key]
