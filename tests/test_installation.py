"""Errbot finds a bake that is installed as a wheel, and the bake passes its own tests."""

import sys
import zipfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from conftest import DATABASES, SHORT_RUN, Bake, clean_environment, environment, pythons, run
from servers.redis import Redis

ERRBOTS = ["6.2.0", "6.2.1"]
PYTHONS = pythons()

FIND = """
from types import SimpleNamespace
from errbot.bootstrap import get_storage_plugin
import errbot.version, sys
plugin = get_storage_plugin(SimpleNamespace(
    STORAGE="Acme", STORAGE_CONFIG=eval(sys.argv[1]), BOT_DATA_DIR="."
))
storage = plugin.open("namespace")
storage.set("key", "value")
print(storage.get("key"), errbot.version.VERSION, sys.modules[type(plugin).__module__].__file__)
"""


@pytest.fixture
def storage_config(database: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The minimal STORAGE_CONFIG for a bot, with a running server if it needs one."""
    if database == "redis":
        server = Redis(tmp_path / "redis")
        server.start()
        yield {"url": server.url}
        server.stop()
    else:
        yield {}


def wheel_of(project: Path, folder: Path) -> Path:
    """Build the wheel of a project."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=project)
    return next(folder.glob("*.whl"))


@pytest.mark.nightly
@pytest.mark.parametrize("database", ["sql", "redis"])
def test_a_bake_works_with_the_lowest_declared_versions(
    bake: Bake, tmp_path: Path, database: str, python_version: str
) -> None:
    """A bot's environment may contain old versions of the dependencies."""
    project = bake(database=database)
    interpreter = environment(
        tmp_path / "environment",
        PYTHONS[python_version],
        f"{wheel_of(project, tmp_path)}[test]",
        "--resolution=lowest-direct",
    )
    tests = run(interpreter, "-m", "pytest", "-q", cwd=project, env=clean_environment())
    assert " passed" in tests.splitlines()[-1]


def test_at_least_one_supported_python_is_installed() -> None:
    assert PYTHONS, "None of Python 3.10 to 3.15 is installed."


@pytest.mark.parametrize("database", DATABASES)
def test_the_wheel_has_the_plug_file_and_no_stray_files(
    bake: Bake, tmp_path: Path, database: str
) -> None:
    with zipfile.ZipFile(wheel_of(bake(database=database), tmp_path)) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        package = "errbot_storage_acme"
        commands = ["__main__.py", "moving.py", "storages.py", "values.py"]
        assert names == {
            f"{package}/{name}"
            for name in ["__init__.py", "py.typed", "storage.plug", "storage.py", *commands]
        }
        points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert archive.read(points).decode().split("\n")[0] == "[errbot.backend_plugins]"
        assert "console_scripts" not in archive.read(points).decode()


FOUND = [*PYTHONS] or ["none"]
OLD, NEW = (FOUND[0], ERRBOTS[0]), (FOUND[-1], ERRBOTS[-1])
ENVIRONMENTS = [
    pytest.param("dict", *OLD, SHORT_RUN, id="dict-short"),
    *(
        pytest.param(*case, ["--quick"], marks=pytest.mark.slow(minutes=3), id=f"{case[0]}-quick")
        for case in [("sqlite", *NEW), ("redis", *NEW)]
    ),
    *(
        pytest.param(*case, [], marks=pytest.mark.nightly, id="-".join(case))
        for case in product(DATABASES, PYTHONS, ERRBOTS)
        if case[2] == ERRBOTS[-1] or case[1:] == OLD
    ),
]


@pytest.mark.parametrize(("database", "python", "errbot", "options"), ENVIRONMENTS)
def test_the_installed_wheel_is_found_and_passes_its_own_tests(
    bake: Bake,
    tmp_path: Path,
    database: str,
    storage_config: dict[str, str],
    python: str,
    errbot: str,
    options: list[str],
) -> None:
    project = bake(database=database)
    wheel = wheel_of(project, tmp_path)
    interpreter = environment(
        tmp_path / "environment", PYTHONS[python], f"{wheel}[test]", f"errbot=={errbot}"
    )
    (tmp_path / "bot").mkdir()
    find = [interpreter, "-c", FIND, repr(storage_config)]
    found = run(*find, cwd=tmp_path / "bot", env=clean_environment())
    value, version, file = found.split("\n")[-2].split(" ", 2)
    assert (value, version) == ("value", errbot)
    assert Path(file).is_relative_to(tmp_path / "environment"), f"Errbot loaded {file}."

    command = [interpreter, "-m", "pytest", "-q", *options]
    tests = run(*command, cwd=project, env=clean_environment())
    print(f"Python {python}, Errbot {errbot}, {database}: {tests.splitlines()[-1]}")
    assert " passed" in tests.splitlines()[-1]
