    "url": "redis://errbot:PASSWORD@redis.example.com:6379/0",
    "prefix": "errbot:",
