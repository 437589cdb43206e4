"""The baked command `move`: 100,000 keys of 300 bytes from SQLite to PostgreSQL.

It is compared with a loop that inserts the same rows one by one with bare psycopg, on the same
server, which does not wait for the disk. `move` is timed as a whole process: it reads, signs and
writes, then reads everything again and compares it. Fails if a limit is missed, either without a
signing key or with one on both sides.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
from cookiecutter.main import cookiecutter

TEMPLATE = Path(__file__).parent.parent
sys.path.append(str(TEMPLATE / "tests"))

from servers.postgresql import PostgreSQL  # noqa: E402

KEYS = 100_000
VALUE = os.urandom(285)
SPEED_LIMIT = 0.7
MEMORY_LIMIT = 50_000_000
"""Maximum additional bytes of memory, compared with moving a few keys."""
FILL = """
import pickle, sys
from types import SimpleNamespace
from errbot.bootstrap import get_storage_plugin
config = {}
exec(open(sys.argv[1]).read(), config)
plugin = get_storage_plugin(SimpleNamespace(**config))
storage = plugin.open("namespace")
for number in range(int(sys.argv[2])):
    storage.set(f"key {number}", bytes.fromhex(sys.argv[3]))
print(len(storage.read("key 0")))
"""


def bake(database: str, folder: Path, storage_config: dict[str, str]) -> tuple[Path, Path]:
    """Bake a project, and write a config.py. Returns the file with the commands, and config.py."""
    folder.mkdir()
    answers, where = {"database": database}, str(folder)
    template = str(TEMPLATE)
    project = cookiecutter(template, None, True, answers, output_dir=where, accept_hooks=False)
    settings = {
        "STORAGE": "Acme",
        "STORAGE_CONFIG": storage_config,
        "BOT_EXTRA_STORAGE_PLUGINS_DIR": str(Path(project, "src")),
        "BOT_DATA_DIR": str(folder),
    }
    config = folder / "config.py"
    config.write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    return next(Path(project).glob("src/*/__main__.py")), config


def move(program: Path, old: Path, new: Path) -> tuple[float, int, str]:
    """Run `move`. Returns its seconds, its peak memory and the last line of its output."""
    command = [sys.executable, str(program), "move", str(old), "-c", str(new)]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen(command, stdout=printed)
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - start
        printed.seek(0)
        last = printed.read().splitlines()[-1]
    assert status == 0, last
    return took, usage.ru_maxrss * 1024, last


def insert_one_by_one(url: str, table: str) -> float:
    """Insert the same rows with bare psycopg, and return the seconds."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE bare_{table} (LIKE {table} INCLUDING ALL)")
        rows = connection.execute(f"SELECT namespace, key, value FROM {table}").fetchall()
        insert = f"INSERT INTO bare_{table} (namespace, key, value) VALUES (%s, %s, %s)"
        start = time.perf_counter()
        for row in rows:
            connection.execute(insert, row)
        return time.perf_counter() - start


def main() -> None:
    """Measure, print, and fail if a limit is missed."""
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = PostgreSQL(folder / "server", shared_buffers="128MB")
        server.start()
        try:
            for kind, key in [("unsigned", {}), ("signed", {"signing_key": "x" * 16})]:
                measure(folder / kind, server, missed, key)
        finally:
            server.stop()
    sys.exit(bool(missed))


def tell(text: str, kept: bool, missed: list[str]) -> None:
    """Print a figure, and record it if it misses its limit."""
    print(text if kept else f"{text}  <- MISSED", flush=True)
    missed += [] if kept else [text]


def measure(folder: Path, server: PostgreSQL, missed: list[str], key: dict[str, str]) -> None:
    """Move a few keys, to measure the program's own memory, and then all of them."""
    folder.mkdir()
    print(f"Python {sys.version.split()[0]}, PostgreSQL {server.sql('SHOW server_version')}")
    url = f"postgresql://admin@{server.host}:{server.port}/postgres"
    used = []
    for count, table in [(100, f"few_{folder.name}"), (KEYS, f"many_{folder.name}")]:
        _, old = bake("sqlite", folder / f"{table} old", key)
        program, new = bake("sql", folder / f"{table} new", {"url": url, "table": table} | key)
        fill = [sys.executable, "-c", FILL, str(old), str(count), VALUE.hex()]
        size = int(subprocess.run(fill, check=True, capture_output=True, text=True).stdout)
        took, memory, last = move(program, old, new)
        used.append(memory)
        assert last == f"1 namespace, {count} keys: all equal", last
    bare = insert_one_by_one(url, table)
    tell(
        f"move, {folder.name}: {KEYS:,} keys of {size} bytes in {took:.1f} s,"
        f" bare inserts one by one in {bare:.1f} s,"
        f" speed {bare / took:.2f} (limit {SPEED_LIMIT})",
        bare / took >= SPEED_LIMIT,
        missed,
    )
    grown = used[1] - used[0]
    tell(
        f"move, {folder.name}: memory is {memory / 1e6:.0f} MB at most,"
        f" {grown / 1e6:.1f} MB more than for 100 keys (limit {MEMORY_LIMIT / 1e6:.0f})",
        grown <= MEMORY_LIMIT,
        missed,
    )


if __name__ == "__main__":
    main()
