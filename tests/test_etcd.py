"""docs/tutorial.md turns a bake into examples/etcd, which passes the contract on a real etcd."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import TEMPLATE, Bake, clean_environment, files, run, skipped
from errbot.storage import StoreException
from servers.base import needs
from servers.etcd import Etcd

EXAMPLE = TEMPLATE / "examples/etcd"
TUTORIAL = TEMPLATE / "docs/tutorial.md"
STORAGE = "src/errbot_storage_etcd/storage.py"
BIN = Path(sys.executable).parent
PIECE = (TEMPLATE / "templates/shared/parts.py").read_text(encoding="utf-8")
# What the tutorial's fixtures do not do. etcd locks nothing for those who read.
WITHOUT = (
    "damage what is stored",
    "count what the database does",
    "as a backup does",
    "in a transaction",
    "fill the database",
    "read-only",
    "first release",
)
# Not run, because the test's environment has all of this already.
INSTALLS = ("sudo apt-get install", "python3 -m venv", ".venv/bin/python -m pip install")


def load(**storage_config: Any) -> Any:
    """Start the storage plugin with this STORAGE_CONFIG, as a bot does."""
    spec = importlib.util.spec_from_file_location("errbot.storage.storage", EXAMPLE / STORAGE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EtcdPlugin(SimpleNamespace(STORAGE_CONFIG=storage_config))


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    """A server that the test may stop."""
    server = Etcd(tmp_path / "etcd")
    server.start()
    yield server
    server.stop()


def blocks() -> list[tuple[str, str]]:
    """Return the tutorial's code blocks and their languages."""
    text = TUTORIAL.read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def paste(project: Path) -> None:
    """Paste the piece of code as the tutorial says."""
    file = project / STORAGE
    source = file.read_text(encoding="utf-8")
    start = source.index("    def __init__", source.index("class EtcdStorage"))
    end = source.index("    # Values", start)
    file.write_text(f"{source[:start]}{PIECE}\n{source[end:]}", encoding="utf-8")


def apply(project: Path, diff: str) -> None:
    """Apply a diff of the tutorial. Before the first one for storage.py, paste the piece."""
    if "class EtcdConfig" in diff:
        paste(project)
    done = subprocess.run(
        ["git", "apply", "-"], input=diff, cwd=project, text=True, capture_output=True
    )
    assert done.returncode == 0, f"{done.stderr}\nThis no longer applies to a bake:\n{diff}"


def shell(folder: Path, script: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run commands of the tutorial."""
    lines = [line for line in script.splitlines() if not line.startswith(INSTALLS)]
    script = "\n".join(lines).replace(".venv/bin/", f"{BIN}/")
    bake = f"{BIN}/cookiecutter {TEMPLATE}"
    script = script.replace("pipx run cookiecutter gh:org/errbot-storage-template", bake)
    environment = {**clean_environment(), "PYTHONPATH": "src", **more}
    return subprocess.run(
        ["bash", "-euc", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_tutorial_makes_the_example(bake: Bake) -> None:
    project = bake(plugin_name="Etcd")
    before = files(project)
    for language, block in blocks():
        if language == "diff":
            apply(project, block)
        elif block.startswith("sed "):
            assert shell(project, block).returncode == 0
    after = files(project)
    changed = {path: text for path, text in after.items() if before.get(path) != text}
    stale = {path for path, text in changed.items() if files(EXAMPLE).get(path) != text}
    assert not stale, "Update the example:\n" + "\n".join(
        f"cp {project / path} examples/etcd/{path}" for path in stale
    )
    assert changed.keys() == files(EXAMPLE).keys()


def test_the_tutorial_says_how_many_lines_it_takes(bake: Bake) -> None:
    project = bake(plugin_name="Etcd")

    def added(*options: str) -> dict[str, tuple[int, int]]:
        printed = run("git", "diff", "--numstat", *options, cwd=project)
        rows = (line.split("\t") for line in printed.splitlines())
        return {path: (int(plus), int(minus)) for plus, minus, path in rows}

    run("git", "init", "--quiet", cwd=project)
    run("git", "add", ".", cwd=project)
    paste(project)
    piece = added()[STORAGE][0]
    run("git", "add", ".", cwd=project)
    shutil.copytree(EXAMPLE, project, dirs_exist_ok=True)
    paths = [STORAGE, "tests/conftest.py", "README.md", ".github/workflows/test.yml"]
    (storage, _), (conftest, _), (readme, _), (ci, _) = (added()[path] for path in paths)
    told = " ".join(TUTORIAL.read_text(encoding="utf-8").split())
    assert (
        f"You add {storage} lines to `storage.py`, and {piece} come with the piece. You add"
        f" {conftest} lines to `tests/conftest.py`, {readme} to the README, and {ci} to CI."
    ) in told
    assert storage < 100


SOME = "--quick -k 'test_basics or test_bytes or test_config or test_faults or test_lifecycle'"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(SOME, marks=pytest.mark.slow(minutes=2), id="some tests"),
        pytest.param("", marks=pytest.mark.nightly, id="as it stands"),
    ],
)
def test_the_tutorial_works_as_written(tmp_path: Path, etcd: Etcd, options: str) -> None:
    folder, project = tmp_path, tmp_path / "errbot-storage-etcd"
    done: subprocess.CompletedProcess[str] | None = None
    for language, block in blocks():
        if language == "diff":
            apply(project, block)
        elif language == "python":
            config = block.replace("2379", str(etcd.port))
            config += 'BOT_EXTRA_STORAGE_PLUGINS_DIR = "src"\n'
            (project / "config.py").write_text(config, encoding="utf-8")
        elif language == "text":
            assert done
            assert done.returncode != 0, "The tests should fail here."
            assert block.strip() in done.stdout
            done = None
        else:
            assert not done or done.returncode == 0, done.stdout
            done = shell(folder, block, PYTEST_ADDOPTS=options)
            folder = project
            assert skipped(done.stdout, *WITHOUT) == [], done.stdout
    assert done
    assert done.returncode == 0, done.stdout
    assert "'answer': 42" in done.stdout
    assert re.search(r"notes +1 ", done.stdout), done.stdout


def test_values_survive_a_restart_of_the_server(etcd: Etcd) -> None:
    plugin = load(host=etcd.host, port=etcd.port, timeout=2)
    storage = plugin.open("namespace")
    storage.set("key", "before")
    storage.set("large", b"x" * 3_000_000)
    etcd.stop()
    start = time.monotonic()
    with pytest.raises(StoreException, match=r"etcd at 127\.0\.0\.1: txn failed: .*refused"):
        storage.set("key", "away")
    assert time.monotonic() - start < 5
    etcd.start()
    assert storage.get("key") == "before"
    storage.set("key", "after")
    assert plugin.open("namespace").get("large") == b"x" * 3_000_000


def test_a_set_succeeds_on_a_connection_that_etcd_has_closed(etcd: Etcd) -> None:
    storage = load(host=etcd.host, port=etcd.port).open("namespace")
    storage.set("key", "before")
    etcd.stop()
    etcd.start()
    storage.set("key", "after")
    assert storage.get("key") == "after"


def test_an_error_from_etcd_does_not_show_the_value(etcd: Etcd) -> None:
    plugin = load(host=etcd.host, port=etcd.port)
    storage = plugin.open("namespace")
    storage.PART = 3_000_000
    with pytest.raises(StoreException, match="txn failed: etcdserver: request is too large") as got:
        storage.set("key", b"secret" * 300_000)
    assert "secret" not in str(got.value)
    with pytest.raises(KeyError):
        storage.get("key")


def test_only_a_bot_with_a_certificate_can_connect(tmp_path: Path) -> None:
    [openssl] = needs("openssl", package="openssl")
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    make += ["-addext", "extendedKeyUsage=serverAuth,clientAuth"]
    run(*make, "-keyout", "key.pem", "-out", "ca.pem", cwd=tmp_path)
    both = (tmp_path / "ca.pem").read_text() + (tmp_path / "key.pem").read_text()
    (tmp_path / "bot.pem").write_text(both)
    ca, cert, key = (str(tmp_path / name) for name in ["ca.pem", "bot.pem", "key.pem"])
    server = Etcd(tmp_path / "etcd", f"--trusted-ca-file={ca}", f"--cert-file={ca}", tls=key)
    server.start()
    try:
        config = {"host": server.host, "port": server.port, "ca_cert": ca}
        storage = load(**config, cert=cert).open("namespace")
        storage.set("key", b"x" * 1_000_000)
        assert storage.get("key") == b"x" * 1_000_000
        with pytest.raises(StoreException, match=r"etcd at 127\.0\.0\.1: range failed"):
            load(**config).open("namespace")
        with pytest.raises(StoreException, match="CERTIFICATE_VERIFY_FAILED"):
            load(**{**config, "ca_cert": other_ca(tmp_path, make)}, cert=cert).open("namespace")
    finally:
        server.stop()


def other_ca(folder: Path, make: list[str]) -> str:
    """Create a CA that signed neither certificate, and return its file."""
    run(*make, "-keyout", os.devnull, "-out", "other.pem", cwd=folder)
    return str(folder / "other.pem")


@pytest.mark.slow
def test_ruff_and_mypy_find_nothing_in_the_example(bake: Bake) -> None:
    project = bake(plugin_name="Etcd")
    shutil.copytree(EXAMPLE, project, dirs_exist_ok=True)
    run(BIN / "ruff", "format", "--check", cwd=project)
    run(BIN / "ruff", "check", cwd=project)
    run(BIN / "mypy", "--strict", cwd=project)
