"""Shared fixtures and helpers: they bake projects and run their tests."""

import atexit
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from cookiecutter.main import cookiecutter
from errbot.storage.base import StorageBase
from pytest_cookies.plugin import Cookies

TEMPLATE = Path(__file__).parent.parent
UV = Path(sys.executable).with_name("uv")
CONTRACT = TEMPLATE / "{{cookiecutter.plugin_slug}}" / "tests" / "contract"
SUPPORTED = ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"]
DATABASES = ["dict", "sqlite", "sql", "redis"]
LONGEST = "forks freshness guest interrupts large_values many model namespaces_at_once processes"
SHORT_RUN = ["--quick", *(f"--ignore=tests/contract/test_{name}.py" for name in LONGEST.split())]
"""Options of pytest that leave out the files of the contract that take longest."""
KILLS = [8, pytest.param(50, marks=pytest.mark.nightly)]
"""How often tests kill a process that writes."""

# With it, each of hundreds of processes would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

MEMORY = Path("/dev/shm")
if (
    MEMORY.is_dir()
    and shutil.disk_usage(MEMORY).free > 4e9
    and "PYTEST_XDIST_WORKER" not in os.environ
):
    # Subprocesses keep throwaway databases in memory, where fsync takes no time.
    tempfile.gettempdir()  # Python remembers the answer, so pytest's own files stay on the disk.
    os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="errbot-storage-template-", dir=MEMORY)
    os.chmod(os.environ["TMPDIR"], 0o711)  # PostgreSQL does not run as root.
    atexit.register(shutil.rmtree, os.environ["TMPDIR"], ignore_errors=True)

Bake = Callable[..., Path]
"""Bakes a project from answers given as keyword arguments, and returns its folder."""


def run(*command: object, cwd: Path, **options: Any) -> str:
    """Run a command, and return what it printed. If the command fails, fail with its output."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout}"
    return str(done.stdout)


def skipped(printed: str, *but: str) -> list[str]:
    """Return the lines of `pytest -rs` about skipped tests, except those with one of the texts."""
    lines = [line for line in printed.splitlines() if line.startswith("SKIPPED")]
    return [line for line in lines if not any(text in line for text in but)]


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def check_that_a_loop_that_renames_its_keys_ends(storage: StorageBase, count: int) -> None:
    """Check this for so many keys. The first twenty may be met twice."""
    for number in range(count):
        storage.set(f"key {number}", number)
    turns = 0
    for key in islice(storage.keys(), 3 * count + 3):
        storage.set(f"~{key}", storage.get(key))  # behind all others
        storage.remove(key)
        turns += 1
    assert count <= turns <= count + 20
    assert sorted(map(storage.get, storage.keys())) == list(range(count))


def check_that_ctrl_c_ends_a_wait(storage: StorageBase, file: Path) -> None:
    """Check this for a `set` that waits for the lock of an SQLite file."""
    storage.set("key", 1)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # A background job has none.
    try:
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                storage.set("key", 2)
            assert time.monotonic() - began < 10, "Ctrl-C had to wait."
    finally:
        signal.signal(signal.SIGINT, handler)
    assert storage.get("key") == 1
    storage.set("key", 3)
    assert storage.get("key") == 3


@pytest.fixture
def bake(cookies: Cookies) -> Bake:
    """Bake without prompts, as `cookiecutter --no-input` does. Raises the bake's exception."""

    def bake(**answers: str) -> Path:
        result = cookies.bake(extra_context=answers)
        if result.exception:
            raise result.exception
        return Path(result.project_path)

    return bake


@pytest.fixture(scope="session")
def default_project(cookies_session: Cookies) -> Path:
    """The project with default answers. Tests must not change it."""
    result = cookies_session.bake()
    if result.exception:
        raise result.exception
    return Path(result.project_path)


@pytest.fixture
def bake_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bake]:
    """Bake with answers typed at the prompts.

    Unlike with --no-input, Cookiecutter does not render these answers as templates.
    """
    count = 0

    def bake_typed(**answers: str) -> Path:
        nonlocal count
        count += 1

        def variable(key: str, default: Any, *_: Any) -> Any:
            return answers.get(key, default)

        def choice(key: str, options: list[str], *_: Any) -> str:
            return answers.get(key, options[0])

        monkeypatch.setattr("cookiecutter.prompt.read_user_variable", variable)
        monkeypatch.setattr("cookiecutter.prompt.read_user_choice", choice)
        folder = tmp_path / f"typed{count}"
        folder.mkdir()
        try:
            return Path(cookiecutter(str(TEMPLATE), output_dir=str(folder), default_config=True))
        finally:
            assert len(list(folder.iterdir())) <= 1, "More than the project was written."

    yield bake_typed
    shutil.rmtree(tmp_path, ignore_errors=True)


def contract_tests(*files: Path) -> set[str]:
    """Return the names of all tests of the contract, or of those in some files."""
    return {
        name
        for file in files or CONTRACT.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }


@cache
def pythons() -> dict[str, str]:
    """Return the Pythons on this machine that a baked project supports, by version."""
    environment = dict(os.environ)
    if pyenv := shutil.which("pyenv"):
        installed = subprocess.run([pyenv, "versions", "--bare"], capture_output=True, text=True)
        environment["PYENV_VERSION"] = ":".join(installed.stdout.split())
    found = {}
    for version in SUPPORTED:
        command = [str(UV), "python", "find", "--no-python-downloads", "--no-project", version]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            found[version] = done.stdout.strip()
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize `python_version` with the newest version and, with `-m nightly`, the oldest.

    Only if a test needs it, because finding the Pythons takes a while.
    """
    if "python_version" in metafunc.fixturenames:
        *older, newest = pythons() or ["none"]
        oldest = [pytest.param(version, marks=pytest.mark.nightly) for version in older[:1]]
        metafunc.parametrize("python_version", [newest, *oldest])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take minutes, so that none of them runs alone at the end.

    pytest-xdist gives each process a part of the list.
    """

    def minutes(item: pytest.Item) -> int:
        mark = item.get_closest_marker("slow")
        return mark.kwargs.get("minutes", 0) if mark else 0

    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    longest = sorted(filter(minutes, items), key=minutes, reverse=True)
    for number, item in enumerate(longest):
        items.remove(item)
        items.insert(number % processes * len(items) // processes, item)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print which broken storage was caught by which tests."""
    stats = terminalreporter.stats
    reports = [*stats.get("passed", []), *stats.get("failed", [])]
    caught = dict(
        report.user_properties[0]
        for report in reports
        if report.when == "call" and report.nodeid.startswith("tests/test_broken_storages.py")
        if report.user_properties
    )
    if caught:
        terminalreporter.section("broken storages, and the tests that caught them")
    for broken, tests in sorted(caught.items()):
        terminalreporter.write_line(f"{broken}: {tests}")


def environment(folder: Path, python: str, *requirements: str | Path) -> Path:
    """Create an environment with these packages, and return its Python."""
    run(UV, "venv", "--quiet", "--python", python, folder, cwd=folder.parent)
    interpreter = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [UV, "pip", "install", "--quiet", "--python", interpreter]
    run(*install, *requirements, cwd=folder.parent)
    return interpreter


@pytest.fixture(scope="session")
def interpreter_of(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Path, str], Path]:
    """Creates an environment for a baked project's tests, once per project and Python."""

    @cache
    def interpreter_of(project: Path, version: str) -> Path:
        folder = tmp_path_factory.mktemp("environment") / version
        return environment(folder, pythons()[version], f"{project}[test]")

    return interpreter_of


def clean_environment() -> Mapping[str, str]:
    """Return this process's environment variables without those of Python and pytest."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PY")}
