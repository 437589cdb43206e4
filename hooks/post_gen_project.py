"""Remove the CI files that were not chosen, and say what comes next."""

import os

# pre_gen_project.py has made sure that none of these can end a string.
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
