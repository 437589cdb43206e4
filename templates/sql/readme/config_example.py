    "url": "postgresql://errbot:password@db.example.com/errbot",
    "timeout": 10.0,
