"""Common review tools find nothing wrong with the bakes and the template's workflow.

The tools are in the template's dependency group, so no test is skipped.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import TEMPLATE, UV, run
from pytest_cookies.plugin import Cookies

BAKES = [
    ("dict", "github", "MIT"),
    ("sqlite", "none", "GPL-3.0-or-later"),
    ("sql", "github", "Proprietary"),
    ("redis", "github", "Apache-2.0"),
    ("dict", "gitlab", "BSD-3-Clause"),
    ("sql", "gitlab", "Proprietary"),
]
ENVIRONMENT = os.environ | {"PATH": f"{UV.parent}{os.pathsep}{os.environ['PATH']}"}
HOOKS: dict[str, dict[str, str | list[str]]] = {
    "check-added-large-files": {},
    "check-case-conflict": {},
    "check-merge-conflict": {"types": ["text"]},
    "check-toml": {"types": ["toml"]},
    "check-yaml": {"types": ["yaml"]},
    "end-of-file-fixer": {"types": ["text"]},
    "mixed-line-ending": {"types": ["text"]},
    "trailing-whitespace": {"types": ["text"], "entry": "trailing-whitespace-fixer"},
    "ruff-check": {"types": ["python"], "entry": "ruff check"},
    "ruff-format": {"entry": "ruff format"},
    "mypy": {"types": ["python"]},
    "codespell": {"types": ["text"]},
    "rumdl": {"types": ["markdown"], "entry": "rumdl check"},
    "validate-pyproject": {"files": "^pyproject.toml$"},
    "zizmor": {"files": r"^\.github/.*\.yml$", "entry": "zizmor --offline --no-progress"},
}
"""How to run the hooks with the installed tools, which pre-commit would download."""


@pytest.fixture(scope="session", params=BAKES, ids="-".join)
def project(request: pytest.FixtureRequest, cookies_session: Cookies) -> Path:
    """A bake with all files in git's index. Tests must not change it."""
    answers = dict(zip(["database", "ci", "license"], request.param, strict=True))
    result = cookies_session.bake(extra_context=answers)
    if result.exception:
        raise result.exception
    folder = Path(result.project_path)
    run("git", "init", "--quiet", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    return folder


def tool(*command: str | Path, cwd: Path) -> str:
    """Run a tool from the template's environment."""
    return run(*command, cwd=cwd, env=ENVIRONMENT)


def test_sp_repo_review_fails_nothing(project: Path) -> None:
    report = json.loads(tool("repo-review", project, "--format=json", "--show=err", cwd=project))
    assert {name: check["err_msg"] for name, check in report["checks"].items()} == {}


def test_zizmor_finds_nothing(project: Path) -> None:
    if (project / ".github").exists():
        tool("zizmor", "--offline", project, cwd=project)


def test_a_package_index_would_accept_the_distribution(project: Path, tmp_path: Path) -> None:
    tool("validate-pyproject", "pyproject.toml", cwd=project)
    tool("hatchling", "build", "-d", tmp_path, cwd=project)
    distributions = sorted(tmp_path.iterdir())
    assert [file.suffix for file in distributions] == [".whl", ".gz"]
    tool("twine", "check", "--strict", *distributions, cwd=project)
    tool("check-wheel-contents", tmp_path, cwd=project)
    tool("pyroma", "--min=10", "--file", distributions[1], cwd=project)


def test_zizmor_finds_nothing_in_the_template() -> None:
    tool("zizmor", "--offline", "--persona=pedantic", ".github", cwd=TEMPLATE)


def test_every_action_is_pinned_to_a_commit_with_its_version() -> None:
    pinned = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
    folders = [TEMPLATE / ".github", TEMPLATE / "{{cookiecutter.plugin_slug}}" / ".github"]
    used = [
        line.split("uses: ")[1]
        for folder in folders
        for file in folder.rglob("*.yml")
        for line in file.read_text(encoding="utf-8").splitlines()
        if "uses: " in line
    ]
    assert used
    assert [action for action in used if not pinned.fullmatch(action)] == []
    assert len(set(used)) == len({action.split("@")[0] for action in used}), "Versions differ."


def offline(project: Path) -> Path:
    """Write a copy of the project's pre-commit configuration that uses the installed tools."""
    config = yaml.safe_load((project / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [
        {"name": hook["id"], "entry": hook["id"], "language": "system", "require_serial": True}
        | HOOKS[hook["id"]]
        | {key: value for key, value in hook.items() if key != "additional_dependencies"}
        for repository in config["repos"]
        for hook in repository["hooks"]
    ]
    file = project / ".git" / "offline.yaml"
    file.write_text(yaml.safe_dump({"repos": [{"repo": "local", "hooks": hooks}]}))
    return file


@pytest.mark.slow
def test_pre_commit_finds_mistakes_and_nothing_else(default_project: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(default_project, tmp_path / "project"))
    run("git", "init", "--quiet", cwd=project)
    run("git", "add", "--all", cwd=project)
    command = ["pre-commit", "run", "--all-files", "--config", str(offline(project))]
    printed = tool(*command, cwd=project)
    assert set(re.findall(r"^([\w-]+)\.+Passed$", printed, re.MULTILINE)) == set(HOOKS)

    def spoil(file: str, old: str, new: str) -> None:
        text = (project / file).read_text(encoding="utf-8")
        assert old in text
        (project / file).write_text(text.replace(old, new), encoding="utf-8")

    spoil("src/errbot_storage_acme/storage.py", "-> int:", "-> str :")
    spoil("src/errbot_storage_acme/storage.py", "import sys\n", "import os, sys \n")
    spoil("README.md", "## Licence", "##Licence of teh plugin")
    spoil("pyproject.toml", 'version = "0.1.0"', 'version = "one"')
    spoil(".github/workflows/test.yml", "@3d3c42e5aac5ba805825da76410c181273ba90b1", "@main")
    with pytest.raises(AssertionError) as caught:
        tool(*command, cwd=project)
    failed = set(re.findall(r"^ *([\w-]+)\.+Failed$", str(caught.value), re.MULTILINE))
    expected = {"trailing-whitespace", "ruff-check", "ruff-format", "mypy", "codespell", "rumdl"}
    assert failed == expected | {"validate-pyproject", "zizmor"}


@pytest.mark.parametrize("ci", ["github", "gitlab", "none"])
def test_pre_commit_knows_every_key_of_its_configuration(
    cookies_session: Cookies, ci: str, tmp_path: Path
) -> None:
    for database in ["dict", "sql"]:
        result = cookies_session.bake(extra_context={"database": database, "ci": ci})
        folder = Path(result.project_path)
        printed = tool("pre-commit", "validate-config", ".pre-commit-config.yaml", cwd=folder)
        assert printed == "", "pre-commit warns."
        config = yaml.safe_load((folder / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
        mypy = next(hook for repo in config["repos"] for hook in repo["hooks"] if "args" in hook)
        assert ("sqlalchemy>=2.0.43" in mypy["additional_dependencies"]) == (database == "sql")
