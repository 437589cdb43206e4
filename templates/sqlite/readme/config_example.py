    "path": "errbot.sqlite3",
    "timeout": 10.0,
    "synchronous": "normal",
