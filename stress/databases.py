"""Starts every database on a free port, with a storage that is baked for it."""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).parent.parent
sys.path.insert(0, str(TEMPLATE / "tests"))

from servers.base import Server  # noqa: E402
from servers.mariadb import MariaDB  # noqa: E402
from servers.postgresql import PostgreSQL  # noqa: E402
from servers.redis import Redis  # noqa: E402

DATABASES = ["sqlite", "sql-sqlite", "sql-postgresql", "sql-mariadb", "redis"]


@contextmanager
def running(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Start a database in a folder, and yield the STORAGE_CONFIG for it."""
    server: Server
    if name == "sql-postgresql":
        server = PostgreSQL(folder / name)
    elif name == "sql-mariadb":
        server = MariaDB(folder / name)
    elif name == "redis":
        server = Redis(folder / name)
    else:
        yield {}
        return
    server.start()
    try:
        address = f"127.0.0.1:{server.port}"
        if isinstance(server, (PostgreSQL, MariaDB)):
            server.add_account("bot", "password", "bot")
            yield {"url": f"{name.removeprefix('sql-')}://bot:password@{address}/bot"}
        else:
            yield {"url": f"redis://{address}/0"}
    finally:
        server.stop()


def load_plugin(storage: Path, folder: Path, storage_config: dict[str, Any]) -> Any:
    """Start the storage plugin in storage.py with the folder as BOT_DATA_DIR, as a bot does."""
    spec = importlib.util.spec_from_file_location("errbot.storage.storage", storage)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = SimpleNamespace(STORAGE_CONFIG=storage_config, BOT_DATA_DIR=str(folder))
    return module.AcmePlugin(config)


def main(option: str, default: int, work: Callable[[Any, int], dict[str, Any]]) -> int:
    """Let `work` measure each database in its own process, and print the results.

    `work` gets a plugin and the number from the option. Returns the exit status: 1 if a database
    has counts of wrong, lost or dead.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument(option, dest="amount", type=int, default=default)
    parser.add_argument("--database", choices=DATABASES, action="append")
    parser.add_argument("--storage-config", type=json.loads, default={}, help="more keys, as JSON")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        storage, folder, config = arguments.worker
        plugin = load_plugin(Path(storage), Path(folder), json.loads(config))
        print(json.dumps(work(plugin, arguments.amount)))
        return 0
    status = 0
    for name in arguments.database or DATABASES:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            baked = cookiecutter(
                str(TEMPLATE),
                no_input=True,
                extra_context={"database": name.partition("-")[0]},
                output_dir=folder,
                default_config=True,
                accept_hooks=False,
            )
            with running(name, Path(folder)) as config:
                worker = [next(Path(baked).glob("src/*/storage.py")), folder]
                worker.append(json.dumps(config | arguments.storage_config))
                command = [sys.executable, sys.argv[0], option, arguments.amount]
                command += ["--worker", *worker]
                done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE)
            result = json.loads(done.stdout or "null") or {"failed": 1}
            print(name, *(f"{count:,} {what}" for what, count in result.items()), sep="\n    ")
            sys.stdout.flush()
            status |= any(result.get(what, 1) for what in ["wrong", "lost", "dead"])
    return status
