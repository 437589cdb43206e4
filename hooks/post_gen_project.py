"""Remove the CI files that were not chosen, and say what comes next."""

import json
import os

ANSWERS = json.loads(r"""{{ cookiecutter|tojson }}""")
SLUG = ANSWERS["plugin_slug"]

# Rendering can leave out a file, but not a folder.
if ANSWERS["ci"] != "github":
    for file in ["dependabot.yml", "workflows/release.yml", "workflows/test.yml"]:
        os.remove(f".github/{file}")
    os.removedirs(".github/workflows")
if ANSWERS["ci"] != "gitlab":
    os.remove(".gitlab-ci.yml")
    os.remove("renovate.json")

if ANSWERS["database"] == "dict":
    then = "Then put your database into storage.py: README.md says how."
else:
    then = "README.md says what the config.py of a bot needs to use it."

activate = r".venv\Scripts\activate" if os.name == "nt" else ". .venv/bin/activate"
print(f"""
{SLUG} is baked. Next:

  cd {SLUG}
  python -m venv .venv
  {activate}
  python -m pip install -e ".[dev]"
  python -m pytest

{then}
""")
