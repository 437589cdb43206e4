"""The files in a bake, and in the template."""

import re
import sys
from pathlib import Path

import pytest
import yaml
from conftest import DATABASES, SUPPORTED, TEMPLATE, Bake, files, run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LICENCES = ["MIT", "BSD-3-Clause", "Apache-2.0", "GPL-3.0-or-later", "Proprietary"]

README = ["config_example.py", "development.md", "keys.md", "operation.md", "safety.md"]
NEEDED = {"storage.py", "conftest.py", *(f"readme/{name}" for name in README)}
PYPROJECT = [
    "dependencies.toml",
    "extras.toml",
    "filterwarnings.toml",
    "mypy.toml",
    "test-dependencies.toml",
]
EXTRA = {
    "bulk.py",
    "readme/install.md",
    "readme/requirements.md",
    *(f"pyproject/{name}" for name in PYPROJECT),
}
EXTRA |= {"ci/github.yml", "ci/gitlab.yml"}
"""The files that a database's folder must contain (NEEDED), and may contain (EXTRA)."""


def tracked() -> list[str]:
    """Return the files of the template."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    return [name for name in run(*command, cwd=TEMPLATE).split("\0") if name]


def test_the_readme_shows_the_tree_of_a_bake(default_project: Path) -> None:
    readme = (TEMPLATE / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```text\n(errbot-storage-acme/\n.*?)```", readme, re.DOTALL)
    assert block, "README.md shows no tree."
    shown: set[str] = set()
    folders: list[str] = []
    for line in block[1].splitlines()[1:]:
        depth = (len(line) - len(line.lstrip())) // 4
        name = line.split()[0]
        folders[depth - 1 :] = [name.rstrip("/")]
        if not name.endswith("/"):
            shown.add("/".join(folders))
    baked = {path for path in files(default_project) if not path.startswith("tests/contract/")}
    assert shown == baked


@pytest.mark.parametrize("database", DATABASES)
@pytest.mark.parametrize("ci", ["github", "gitlab", "none"])
def test_ci_files_are_the_chosen_ones(bake: Bake, database: str, ci: str) -> None:
    paths = files(bake(ci=ci, database=database))
    workflows = [".github/workflows/release.yml", ".github/workflows/test.yml"]
    chosen = {
        "github": [".github/dependabot.yml", *workflows],
        "gitlab": [".gitlab-ci.yml", "renovate.json"],
        "none": [],
    }
    found = [path for path in paths if path.startswith((".git", "renovate"))]
    assert sorted(found) == sorted([".gitignore", *chosen[ci]])
    for path in chosen[ci]:
        assert yaml.safe_load(paths[path])


def test_github_ci_has_least_permissions_and_keeps_no_credentials(default_project: Path) -> None:
    workflow = yaml.safe_load((default_project / ".github/workflows/test.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == SUPPORTED
    for job in workflow["jobs"].values():
        checkout = next(step for step in job["steps"] if "checkout" in step.get("uses", ""))
        assert checkout["with"]["persist-credentials"] is False


def test_the_job_that_publishes_a_release_does_nothing_else(default_project: Path) -> None:
    workflow = yaml.safe_load((default_project / ".github/workflows/release.yml").read_text())
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert workflow["permissions"] == {}
    assert build["permissions"] == {"contents": "read"}
    assert publish["permissions"] == {"id-token": "write"}
    assert (publish["needs"], publish["environment"]) == ("build", "release")
    assert [step["uses"].split("@")[0] for step in publish["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]


@pytest.mark.parametrize("ci", ["github", "gitlab"])
def test_a_proprietary_project_is_never_published_on_pypi(bake: Bake, ci: str) -> None:
    paths = files(bake(ci=ci, license="Proprietary"))
    path = {"github": ".github/workflows/release.yml", "gitlab": ".gitlab-ci.yml"}[ci]
    assert b"gh-action-pypi-publish" not in paths[path]
    assert b"TWINE_REPOSITORY_URL: $" in paths[path]


@pytest.mark.parametrize("database", DATABASES)
def test_the_dependency_group_has_the_tools_but_not_the_project(bake: Bake, database: str) -> None:
    """`pip install --group dev` could install someone else's package with the project's name."""
    pyproject = tomllib.loads((bake(database=database) / "pyproject.toml").read_text())
    test, dev = (pyproject["project"]["optional-dependencies"][key] for key in ("test", "dev"))
    assert dev[0] == "errbot-storage-acme[test]"
    assert sorted(pyproject["dependency-groups"]["dev"]) == sorted([*test, *dev[1:]])


@pytest.mark.parametrize("licence", LICENCES)
def test_the_licence_is_complete_and_names_year_and_holder(bake: Bake, licence: str) -> None:
    project = bake(license=licence, author_name="A. Holder")
    text = (project / "LICENSE").read_text()
    assert re.search(r"Copyright .*20\d\d,? A\. Holder", text)
    ends = {
        "MIT": "SOFTWARE.\n",
        "BSD-3-Clause": "OF SUCH DAMAGE.\n",
        "Apache-2.0": "limitations under the License.\n",
        "GPL-3.0-or-later": "why-not-lgpl.html>.\n",
        "Proprietary": "ITS USE.\n",
    }
    assert text.endswith(ends[licence])
    expression = "LicenseRef-Proprietary" if licence == "Proprietary" else licence
    pyproject = (project / "pyproject.toml").read_text()
    assert f'license = "{expression}"\n' in pyproject
    assert ('"Private :: Do Not Upload"' in pyproject) == (licence == "Proprietary")


@pytest.mark.parametrize("database", DATABASES)
@pytest.mark.parametrize("ci", ["github", "gitlab"])
@pytest.mark.parametrize("licence", ["MIT", "Proprietary"])
def test_no_file_shows_that_it_was_rendered(
    bake: Bake, database: str, ci: str, licence: str
) -> None:
    for path, content in files(bake(database=database, ci=ci, license=licence)).items():
        text = content.decode()
        assert not re.search(
            r"cookiecutter|(?<!\$)\{\{ (?!\{)|\{%|%\}|jinja", text, re.IGNORECASE
        ), path
        assert not re.search(r"[ \t]+$", text, re.MULTILINE), f"{path} has trailing whitespace."
        assert not text.startswith("\n"), f"{path} starts with a blank line."
        assert text == "" or (text.endswith("\n") and not text.endswith("\n\n")), path
        if not path.endswith(("LICENSE", ".py")):
            assert "\n\n\n" not in text, f"{path} has stray blank lines."
        assert not re.search(r"\b(TODO|FIXME|XXX|foo|my_\w+)\b", text), path


def test_every_file_name_is_valid_on_windows() -> None:
    assert not [name for name in tracked() if re.search(r'[<>:"|?*\\]|[. ](/|$)', name)]


def test_a_database_is_one_folder_and_one_line_of_the_questions() -> None:
    folders = {path.name for path in (TEMPLATE / "templates").iterdir() if path.is_dir()}
    assert folders == {*DATABASES, "licenses", "shared"}
    for database in DATABASES:
        fragments = files(TEMPLATE / "templates" / database)
        assert set(fragments) - EXTRA == NEEDED, f"templates/{database} lacks files, or has more."
        empty = [name for name, content in fragments.items() if not content.strip()]
        assert not empty, f"templates/{database} has empty files: {empty}"
