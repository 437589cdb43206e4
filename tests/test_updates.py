"""cruft updates existing projects, and older versions of Cookiecutter work."""

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import TEMPLATE, UV, clean_environment, files, run
from test_tree import tracked

GIT = ["git", "-c", "user.name=Somebody", "-c", "user.email=somebody@example.com"]
CRUFT = UV.with_name("cruft")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with the current template."""
    folder = tmp_path / "template"
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (TEMPLATE / name).is_file():
            shutil.copy(TEMPLATE / name, folder / name)
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    """Commit everything in a folder."""
    run("git", "init", "--quiet", "--initial-branch=main", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run(*GIT, "commit", "--quiet", "--message", "State", cwd=folder)


def test_cruft_creates_and_updates_a_project(repository: Path, tmp_path: Path) -> None:
    run(CRUFT, "create", repository, "--no-input", "--output-dir", tmp_path, cwd=tmp_path)
    project = tmp_path / "errbot-storage-acme"
    storage = project / "src/errbot_storage_acme/storage.py"
    assert storage.is_file()
    commit(project)
    run(CRUFT, "check", cwd=project)

    own = storage.read_text().replace("self._rows[key] = data", "self._rows[key] = bytes(data)")
    storage.write_text(own)
    commit(project)
    contract = repository / "{{cookiecutter.plugin_slug}}/tests/contract/test_keys.py"
    contract.write_text(contract.read_text() + "\n\n# a later promise\n")
    shared = repository / "templates/shared/values.py"
    shared.write_text(shared.read_text().replace("Pickle a value", "Pickle the value"))
    commit(repository)

    check = subprocess.run([CRUFT, "check"], cwd=project, capture_output=True, text=True)
    assert check.returncode == 1, "cruft does not notice that the template has changed."
    run(CRUFT, "update", "--skip-apply-ask", cwd=project)
    assert (project / "tests/contract/test_keys.py").read_text().endswith("# a later promise\n")
    assert storage.read_text() == own.replace("Pickle a value", "Pickle the value"), (
        "The update did not keep the user's changes."
    )
    run(CRUFT, "check", cwd=project)


@pytest.mark.parametrize("version", ["2.6.0"])
def test_an_older_cookiecutter_bakes_the_same(
    tmp_path: Path, default_project: Path, version: str
) -> None:
    command = ["tool", "run", "--quiet", "--isolated", "--from", f"cookiecutter=={version}"]
    run(
        *(UV, *command, "cookiecutter", TEMPLATE, "--no-input", "--default-config"),
        *("--output-dir", tmp_path),
        cwd=tmp_path,
        env=clean_environment(),
    )
    assert files(tmp_path / default_project.name) == files(default_project)
