    @classmethod
    def load(cls, storage_config: object) -> "{{ cookiecutter.__class }}Config":
        """Read STORAGE_CONFIG, which may be missing or None, and leave it as it is.

        Raises ValueError that names each wrong key and says what it takes, but shows no value.
        """
        try:
            return cls.model_validate({} if storage_config is None else storage_config)
        except ValidationError as error:
            wrong = error.errors()
        # Not inside the except clause: a chained ValidationError would show the values.
        known = ", ".join(cls.model_fields)
        lines: dict[str, str] = {}
        for problem in wrong:
            if not problem["loc"]:
                lines[""] = f"  It takes a dict with the keys {known}."
            elif (key := str(problem["loc"][0])) in cls.model_fields:
                takes = cls.model_fields[key].description
                lines.setdefault(key, f"  {key}: {problem['msg']}. {takes}")
            else:
                lines[key] = f"  {key}: no such key. It takes {known}."
        heading = "STORAGE_CONFIG of {{ cookiecutter.plugin_name }} is wrong:"
        raise ValueError("\n".join([heading, *lines.values()]))
