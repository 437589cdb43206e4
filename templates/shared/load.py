    @classmethod
    def load(cls, storage_config: object) -> "{{ cookiecutter.__class }}Config":
        """Read STORAGE_CONFIG. Raises ValueError, which names each wrong key but shows no value."""
        try:
            return cls.model_validate({} if storage_config is None else storage_config)
        except ValidationError as error:
            problems = error.errors(include_input=False, include_context=False)
        del storage_config  # Sentry reports the local variables of each frame.
        known, lines = ", ".join(cls.model_fields), dict[str | int, str]()
        for problem in sorted(problems, key=lambda p: -len(p["loc"])):  # the precise ones first
            key, *_ = problem["loc"] or [""]
            line = f"{key}: no such key. The keys are {known}."
            if field := cls.model_fields.get(str(key)):
                line = f"{key}: {problem['msg']}. {field.description}"
            lines.setdefault(key, line if problem["loc"] else f"It must be a dict with {known}.")
        heading = "STORAGE_CONFIG of {{ cookiecutter.plugin_name }} is wrong:"
        raise ValueError("\n  ".join([heading, *lines.values()]))
