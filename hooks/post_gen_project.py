"""Remove the CI files that were not chosen, and print the next steps."""

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
    then = "Then connect your database: see README.md."
else:
    then = "Then configure your bot: see README.md."

activate = r".venv\Scripts\activate" if os.name == "nt" else ". .venv/bin/activate"
print(f"""
{SLUG} is ready. Next:

  cd {SLUG}
  python -m venv .venv
  {activate}
  python -m pip install -e ".[dev]"
  python -m pytest

{then}
""")
