"""Start Errbot's test bot with a configuration in JSON, and report when it is ready."""

import json
import logging
import os
import sys

from errbot.backends.test import TestBot

logging.disable(logging.CRITICAL)
bot = TestBot(extra_config=json.loads(sys.argv[1]))
bot.start(timeout=20)
print("ready", flush=True)
os._exit(0)  # The time that a bot takes to stop is not measured.
