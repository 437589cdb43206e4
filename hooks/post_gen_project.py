"""Remove the CI files that were not chosen, and print the next steps."""

import os

# pre_gen_project.py ensures that none of these can end a string.
SLUG = "{{ cookiecutter.plugin_slug }}"
DATABASE = "{{ cookiecutter.database }}"
CI = "{{ cookiecutter.ci }}"

# Rendering can leave out a file, but not a folder.
if CI != "github":
    for file in ["dependabot.yml", "workflows/release.yml", "workflows/test.yml"]:
        os.remove(f".github/{file}")
    os.removedirs(".github/workflows")
if CI != "gitlab":
    os.remove(".gitlab-ci.yml")
    os.remove("renovate.json")

if DATABASE == "dict":
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
