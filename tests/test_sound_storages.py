"""The contract requires no more than it says: unusual but correct storages pass."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import run
from pytest_cookies.plugin import Cookies

SOUND = {
    ("sqlite", "names_are_held_up_to_the_limit_and_no_longer"): """
from contract.support.tricky_names import may_be_refused


def refuse(name: str) -> None:
    if may_be_refused(name):
        raise ValueError("The database cannot hold this name.")


class Limited(AcmeStorage):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        refuse(self._namespace)

    def get(self, key: str) -> Any:
        refuse(key)
        return super().get(key)

    def set(self, key: str, value: Any) -> None:
        refuse(key)
        super().set(key, value)

    def remove(self, key: str) -> None:
        refuse(key)
        super().remove(key)


AcmeStorage = Limited
""",
    ("dict", "keys_come_backwards_in_short_pages"): """
from heapq import nlargest


class Backwards(AcmeStorage):
    def keys(self) -> Iterator[str]:
        page = nlargest(90, super().keys())
        while page:
            yield from page
            page = nlargest(90, (key for key in super(Backwards, self).keys() if key < page[-1]))


AcmeStorage = Backwards
""",
    ("sqlite", "what_is_closed_cannot_be_used"): """
class Strict(AcmeStorage):
    def __getattribute__(self, name: str) -> Any:
        if "closed" in object.__getattribute__(self, "__dict__"):
            raise RuntimeError(f"{name} of a storage that is closed")
        return super().__getattribute__(name)

    def close(self) -> None:
        super().close()
        self.closed = True


AcmeStorage = Strict
""",
}
"""Code that changes a bake's storage.py without breaking a promise, by database and name."""


CASES = [
    # On SQLite, the whole contract takes minutes.
    pytest.param(case, marks=[pytest.mark.nightly] * (case[0] != "dict"), id="-".join(case))
    for case in SOUND
]


@pytest.fixture(params=CASES)
def project(request: pytest.FixtureRequest, cookies_session: Cookies, tmp_path: Path) -> Path:
    """A project with an unusual but correct storage."""
    database, _ = request.param
    baked = cookies_session.bake(extra_context={"database": database})
    assert baked.exception is None, baked.exception
    project = Path(shutil.copytree(baked.project_path, tmp_path / "project"))
    with next(project.glob("src/*/storage.py")).open("a", encoding="utf-8") as source:
        source.write(SOUND[request.param])
    return project


@pytest.mark.parametrize(
    "configured",
    [
        pytest.param(False, marks=pytest.mark.slow, id="in the bake"),
        pytest.param(True, marks=pytest.mark.nightly, id="by --errbot-config"),
    ],
)
def test_a_sound_storage_is_green(project: Path, tmp_path: Path, configured: bool) -> None:
    command: list[object] = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # The added code imports helpers of the tests.
    command += ["--deselect=tests/test_installation.py::test_what_storage_py_imports_is_declared"]
    if configured:
        config = tmp_path / "config.py"
        config.write_text(
            f'STORAGE = "Acme"\nBOT_EXTRA_STORAGE_PLUGINS_DIR = {str(project / "src")!r}\n'
            f"BOT_DATA_DIR = {str(tmp_path)!r}\n",
            encoding="utf-8",
        )
        command.append(f"--errbot-config={config}")
    output = run(*command, cwd=project, env=os.environ | {"PYTHONPATH": str(project / "tests")})
    assert " passed" in output, output
