"""Remove the CI files that were not chosen, and say what comes next."""

import shutil
from pathlib import Path

CI = "{{ cookiecutter.ci }}"
SLUG = "{{ cookiecutter.plugin_slug }}"

# Rendering can leave out a file, but not a folder.
if CI != "github":
    shutil.rmtree(".github")
if CI != "gitlab":
    Path(".gitlab-ci.yml").unlink()

print(f"""
{SLUG} is baked. Next:

  cd {SLUG}
  python -m venv .venv && .venv/bin/python -m pip install -e '.[dev]'
  .venv/bin/python -m pytest

{% if cookiecutter.database == "dict" -%}
Then put your database into src/{{ cookiecutter.__package }}/storage.py: README.md says how.
{%- else -%}
README.md says what a bot's config.py needs to use it.
{%- endif %}
""")
