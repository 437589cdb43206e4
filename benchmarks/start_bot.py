"""Start Errbot's bot for tests with a configuration given as JSON, and say when it is ready."""

import json
import logging
import os
import sys

from errbot.backends.test import TestBot

logging.disable(logging.CRITICAL)
bot = TestBot(extra_config=json.loads(sys.argv[1]))
bot.start(timeout=20)
print("ready", flush=True)
os._exit(0)  # How long a bot takes to stop is not measured.
