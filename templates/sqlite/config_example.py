    "path": "errbot.sqlite3",
    "timeout": 10.0,
    "synchronous": "normal",
    # "signing_key": os.environ["ERRBOT_SIGNING_KEY"],
