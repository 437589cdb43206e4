    "url": "postgresql://errbot:password@db.example.com/errbot",
    "timeout": 10.0,
    # "signing_key": os.environ["ERRBOT_SIGNING_KEY"],
