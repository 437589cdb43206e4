    signing_key: SigningKey | Annotated[list[SigningKey], Field(min_length=1)] = Field(
        default=[], description="Signs every value. To change it, give a list, the new key last."
    )

    @property
    def signing_keys(self) -> list[SecretStr]:
        """The signing keys, the newest last; none if values are not signed."""
        return self.signing_key if isinstance(self.signing_key, list) else [self.signing_key]
