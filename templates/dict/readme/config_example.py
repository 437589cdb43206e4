    "url": "dict://localhost/errbot",
    "timeout": 10.0,
