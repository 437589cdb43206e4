"""Errbot finds the plugin as an installed wheel, and in a folder that config.py names."""

import ast
import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PACKAGE = PROJECT / "src" / "{{ cookiecutter.__package }}"
{%- if cookiecutter.database == "dict" %}
TO_EDIT = ["README.md", "docs/operation.md", "tests/conftest.py"]
{%- endif %}
FIND = """
from types import SimpleNamespace
from errbot.bootstrap import get_storage_plugin
plugin = get_storage_plugin(SimpleNamespace(STORAGE={name!r}, BOT_DATA_DIR={data!r}, {more}))
print(__import__("sys").modules[type(plugin).__module__].__spec__.origin)
"""


def find(folder: Path, search_path: Path | None = None, more: str = "") -> Path:
    """Let Errbot load the plugin in a new process, and return the file that it loaded."""
    code = FIND.format(name="{{ cookiecutter.plugin_name }}", data=str(folder), more=more)
    # With -S and this search path, Errbot does not find an installed copy of this project.
    path = [str(search_path)] if search_path else []
    paths = [*path, *(entry for entry in sys.path if "site-packages" in entry)]
    script = f"import sys\nsys.path[:0] = {paths!r}\n{code}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], capture_output=True, encoding="utf-8", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_errbot_finds_the_plugin_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "storages"
    folder.mkdir()
    for name in ["storage.plug", "storage.py"]:
        shutil.copy(PACKAGE / name, folder)
    found = find(tmp_path, more=f"BOT_EXTRA_STORAGE_PLUGINS_DIR={str(folder)!r}")
    assert found == folder / "storage.py", f"Errbot loaded {found}."


def test_errbot_finds_the_plugin_in_a_checkout(tmp_path: Path) -> None:
    found = find(tmp_path, more=f"BOT_EXTRA_STORAGE_PLUGINS_DIR={str(PROJECT / 'src')!r}")
    assert found == PACKAGE / "storage.py", f"Errbot loaded {found}."


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The wheel of this project."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    return next(tmp_path.glob("*.whl"))


def test_errbot_finds_the_plugin_in_an_installed_wheel(tmp_path: Path, wheel: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    found = find(tmp_path, search_path=site)
    assert found == site / PACKAGE.name / "storage.py", f"Errbot loaded {found}."


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    files = [f"{PACKAGE.name}/{file.name}" for file in PACKAGE.iterdir() if file.is_file()]
    assert sorted(names) == sorted(files)
    assert f"{PACKAGE.name}/storage.plug" in names, "Errbot needs the .plug file to find a plugin."


def test_the_plug_file_is_read_as_errbot_reads_it() -> None:
    plug = configparser.ConfigParser()
    plug.read(PACKAGE / "storage.plug", encoding="utf-8")
    assert plug.get("Core", "Name") == "{{ cookiecutter.plugin_name }}"
    assert plug.get("Core", "Module") == "storage"
    assert plug.get("Documentation", "Description"), "storage.plug has no description."


def imported() -> set[str]:
    """Return the names of the distributions that storage.py imports."""
    modules = set()
    for node in ast.walk(ast.parse((PACKAGE / "storage.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.partition(".")[0])
    known = packages_distributions()
    return {known.get(module, [module])[0] for module in modules - sys.stdlib_module_names}


def normal(name: str) -> str:
    """Return a distribution's name in the normal form of package indexes."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_storage_py_imports_is_declared() -> None:
    pyproject = (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
    declared = pyproject.partition("\ndependencies = [")[2].partition("\ntest = [")[0]
    names = {normal(name) for name in re.findall(r'"([\w.-]+)', declared)}
    missing = {name for name in imported() if normal(name) not in names}
    assert not missing, (
        f"storage.py imports {missing}, which pyproject.toml does not declare. Add it to"
        " `dependencies`, or the installed plugin may not start."
    )
    readme = (PROJECT / "README.md").read_text(encoding="utf-8").lower()
    missing = {name for name in imported() if name.lower() not in readme}
    assert not missing, f"README.md does not say that a plugin in a folder needs {missing}."
{%- if cookiecutter.database == "dict" %}


def test_nothing_speaks_of_a_stand_in_that_is_gone() -> None:
    storage = PACKAGE / "storage.py"
    if "# YOUR DATABASE" in storage.read_text(encoding="utf-8"):
        return  # The stand-in is still in use.
    left = [
        f"{file.name}, line {number}: {line.strip()}"
        for file in [storage, *(PROJECT / name for name in TO_EDIT)]
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search("dict://|stand-in|YOUR DATABASE", line)
    ]
    assert not left, "You removed the stand-in, but these lines mention it:\n" + "\n".join(left)
{%- endif %}
