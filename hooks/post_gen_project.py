"""Remove the CI files that were not chosen, and say what comes next."""

import json
import os

ANSWERS = json.loads(r"""{{ cookiecutter|tojson }}""")
SLUG = ANSWERS["plugin_slug"]

# Rendering can leave out a file, but not a folder.
if ANSWERS["ci"] != "github":
    os.remove(".github/workflows/test.yml")
    os.removedirs(".github/workflows")
if ANSWERS["ci"] != "gitlab":
    os.remove(".gitlab-ci.yml")

if ANSWERS["database"] == "dict":
    then = "Then put your database into storage.py: README.md says how."
else:
    then = "README.md says what the config.py of a bot needs to use it."

print(f"""
{SLUG} is baked. Next:

  cd {SLUG}
  python -m venv .venv && .venv/bin/python -m pip install -e '.[dev]'
  .venv/bin/python -m pytest

{then}
""")
