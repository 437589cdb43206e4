"""Bake the default project into demo/, install it, and talk to a real bot that uses it.

`make demo` runs this file twice: here, and as `demo.py talk` in the bot's environment.
"""

import importlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DEMO = HERE / "demo"
PROJECT = DEMO / "errbot-storage-acme"
NOTES = PROJECT / "tests" / "contract" / "support" / "notes_plugin"
BOT = DEMO / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"


def say(text: str) -> None:
    """Print what happens next."""
    print(f"\n== {text}", flush=True)


def run(*command: str | Path) -> None:
    """Show a command and run it. Raises CalledProcessError if it fails."""
    words = [str(word) for word in command]
    shown = " ".join(words).replace(f"{HERE}{os.sep}", "").replace(str(HERE), ".")
    print(f"  $ {shown}", flush=True)
    subprocess.run(words, check=True, cwd=HERE)


def bake_and_install() -> None:
    """Bake the project, install it as a bot's administrator would, and talk to the bot."""
    tools = Path(sys.executable).parent
    shutil.rmtree(DEMO, ignore_errors=True)
    say("Bake a storage plugin with the default answers")
    run(tools / "cookiecutter", HERE, "--no-input", "--output-dir", DEMO)
    say("Install it next to Errbot, in a new environment")
    run(tools / "uv", "venv", "--quiet", "--python", sys.executable, DEMO / ".venv")
    run(tools / "uv", "pip", "install", "--quiet", "--python", BOT, f"{PROJECT}[test]")
    say("Start a bot whose config.py says STORAGE = 'Acme', and talk to it")
    run(BOT, HERE / "demo.py", "talk")
    print(f"\nThe project is in {PROJECT.relative_to(HERE)}. See its README.md for the next steps.")


def talk() -> None:
    """Start the same bot twice to show that it remembers, and look into the database."""
    from errbot.backends.test import TestBot

    logging.disable(logging.CRITICAL)
    data = DEMO / "data"
    data.mkdir(exist_ok=True)
    config = {
        "STORAGE": "Acme",
        "STORAGE_CONFIG": {"url": "dict://demo", "signing_key": "a key for the demo only"},
        "BOT_DATA_DIR": str(data),
        "BOT_LOG_FILE": str(data / "errbot.log"),
        "BOT_ADMINS": ("gbin@localhost",),
        "CORE_PLUGINS": ("Plugins", "Utils"),
    }
    for lines in [
        ["!plugin config Notes {'GREETING': 'Good morning'}", "!note milk", "!note bread"],
        ["!notes"],
    ]:
        bot = TestBot(extra_plugin_dir=str(NOTES), extra_config=config)
        bot.start()
        plugin: Any = bot.bot.storage_plugin
        file = Path(str(sys.modules[type(plugin).__module__].__file__))
        print(f"  -- the bot starts and loads {file.relative_to(DEMO)}")
        for line in lines:
            print(f"  you: {line}")
            answer = bot.exec_command(line)
            print(f"  bot: {' '.join(answer.split())}")
        bot.stop()
        print("  -- the bot stops")
    if "Good morning: milk, bread" not in answer:
        sys.exit("The bot has forgotten what it was told.")
    say("What the database contains: namespaces, keys and signed values")
    database = vars(sys)["errbot_storage_acme"]["dict://demo"]
    for namespace, rows in database.items():
        for key, value in rows.items():
            print(f"  {namespace:8} {key:8} {value[:40]!r}... {len(value)} bytes")
    say("What happens if someone changes a value in the database")
    rows = database["Notes"]
    rows["notes"] = rows["notes"].replace(b"bread", b"money")
    try:
        plugin.open("Notes").get("notes")
    except Exception as error:
        print(f"  {type(error).__name__}: {error}")
    else:
        sys.exit("The changed value was not refused.")
    say("How the bot's administrator finds it")
    show_commands(config)


def show_commands(config: dict[str, Any]) -> None:
    """Run two of the plugin's commands in this process, because its memory holds the data."""
    from click.testing import CliRunner

    file = DEMO / "data" / "config.py"
    file.write_text("".join(f"{name} = {value!r}\n" for name, value in config.items()))
    package = importlib.import_module("errbot_storage_acme.__main__")
    for command in ["list", "check"]:
        print(f"  $ python -m errbot_storage_acme {command}")
        done = CliRunner().invoke(package.main, ["-c", str(file), command])
        for line in done.output.splitlines():
            print(f"  {line}")
    if "Notes, notes: refused" not in done.output:
        sys.exit("`check` did not find the changed value.")


if __name__ == "__main__":
    if sys.argv[1:] == ["talk"]:
        talk()
    else:
        bake_and_install()
