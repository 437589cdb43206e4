"""Draw docs/terminal.svg, the picture in README.md, from a real terminal session.

All commands in it are run: the template is baked with typed answers, the bake's tests run, and a
bot starts twice. Only the template's address differs: the picture shows GitHub, the run uses this
folder. `--quick FILE` runs only a few tests and draws into that file.
"""

import argparse
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import pexpect
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

HERE = Path(__file__).parent
TEMPLATE = HERE.parent
WIDTH = 104
COOKIECUTTER = "cookiecutter gh:org/errbot-storage-template"
ANSWERS = {3: "2"}
"""The typed answers by question. At the other questions, only Enter is pressed."""
SHOWN = [1, 3]
"""The questions in the picture, which has no room for all of them."""
PYTEST = "python -m pytest -q"
NOTES = TEMPLATE / "{{cookiecutter.plugin_slug}}/tests/contract/support/notes_plugin"
CONFIG = f"""import os
BACKEND = "Text"
BOT_DATA_DIR = "."
BOT_LOG_FILE = "errbot.log"
BOT_LOG_LEVEL = "ERROR"
BOT_ADMINS = ("@admin",)
BOT_EXTRA_PLUGIN_DIR = {str(NOTES)!r}
CORE_PLUGINS = ("Plugins", "TextCmds")
BOT_EXTRA_STORAGE_PLUGINS_DIR = os.environ["PYTHONPATH"]
STORAGE = "Acme"
STORAGE_CONFIG = {{"signing_key": os.environ["ERRBOT_SIGNING_KEY"]}}
"""
LINES = [
    ["!plugin config Notes {'GREETING': 'Good morning'}", "!note milk"],
    ["!notes"],
]
"""The messages to the bot for each of its starts."""
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
THEME = TerminalTheme(
    (13, 17, 23),
    (230, 237, 243),
    [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34)]
    + [(88, 166, 255), (188, 140, 255), (57, 197, 207), (177, 186, 196)],
)


class Terminal:
    """Runs commands, and shows them with their output."""

    def __init__(self, folder: Path) -> None:
        tools, source = Path(sys.executable).parent, folder / "errbot-storage-acme/src"
        self.folder = folder
        self.environment = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(source),
            "ERRBOT_SIGNING_KEY": "a key for the picture only",
            "TERM": "xterm-256color",
            "COLUMNS": str(WIDTH),
        }
        self.console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)

    def type(self, command: str) -> None:
        """Show a command."""
        self.console.print(f"\n[bold green]$[/] [bold]{command}[/]", highlight=False)

    def show(self, printed: str) -> None:
        """Show a program's output without blank lines."""
        for line in printed.split("\n"):
            text = Text.from_ansi(line.rstrip("\r").rpartition("\r")[2])  # as a terminal does
            if text.plain.strip():
                self.console.print(text)

    def start(self, command: str, folder: str = "") -> "pexpect.spawn[str]":
        """Start a program in its own terminal."""
        return pexpect.spawn(
            "bash",
            ["-c", command],
            cwd=self.folder / folder,
            env=self.environment,
            dimensions=(50, WIDTH),
            encoding="utf-8",
            timeout=300,
        )

    def run(self, command: str, folder: str = "") -> str:
        """Run a command, and show its output. Fails if the command fails."""
        self.type(command)
        program = self.start(command, folder)
        program.expect(pexpect.EOF)
        printed = str(program.before)
        program.close()
        if program.exitstatus:
            sys.exit(f"{command} failed:\n{printed}")
        self.show(printed)
        return printed

    def bake(self) -> None:
        """Answer the questions."""
        self.type(f"pipx run {COOKIECUTTER}")
        program = self.start(f"cookiecutter --default-config {TEMPLATE}")
        hidden = 0
        for number in range(1, 10):
            program.expect(rf"\[{number}/9\][\s\S]*?\)\S*: $")
            program.sendline(ANSWERS.get(number, ""))
            if number in SHOWN:
                self.skip(hidden)
                question = str(program.after).partition("]")[2]
                self.show(f"  [{number}/9]{question}{ANSWERS.get(number, '')}")
            hidden = 0 if number in SHOWN else hidden + 1
        self.skip(hidden)
        program.expect(pexpect.EOF)
        self.show(str(program.before).partition("\r\n\r\n")[2].partition(" Next")[0])

    def skip(self, questions: int) -> None:
        """Say how many questions are not shown."""
        if questions:
            text = f"  ⋮ {questions} more, each with a default" if questions > 1 else "  ⋮"
            self.console.print(text, style="dim", highlight=False)

    def talk(self, lines: list[str]) -> None:
        """Start the bot, send it some messages, and stop it."""
        self.type("errbot --text")
        program = self.start("errbot --text")
        program.expect(">>> ")
        prompt = str(program.before).splitlines()[-1] + ">>> "
        for line in lines:
            program.sendline(line)
            program.expect(">>> ")
            *answer, _prompt = str(program.before).splitlines()
            self.show("\n".join([f"{prompt}\x1b[0m{line}", *answer[1:]]))
        program.sendeof()
        program.expect(pexpect.EOF)

    def picture(self) -> str:
        """Return the picture, which loads no remote font."""
        self.console.print()
        remote = r"@font-face \{\{.*?\}\}\n|<!--.*?-->\n"
        form = re.sub(remote, "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
        form = form.replace("Fira Code, monospace", FONT).replace(
            "font-family: arial", "font-family: sans-serif"
        )
        svg = self.console.export_svg(
            title="From the questions to a bot that remembers",
            theme=THEME,
            code_format=form,
            unique_id="terminal",
        )
        return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)


def main() -> None:
    """Run everything and draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", metavar="FILE", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        terminal = Terminal(Path(name))
        terminal.bake()
        some = " tests/contract/test_basics.py" if options.quick else ""
        terminal.run(PYTEST + some, "errbot-storage-acme")
        (Path(name) / "config.py").write_text(CONFIG)
        terminal.run("tail -n 2 config.py")
        for lines in LINES:
            terminal.talk(lines)
        (options.quick or HERE / "terminal.svg").write_text(terminal.picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
