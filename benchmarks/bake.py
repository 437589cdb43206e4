"""How long a bake takes, against a template of one file and no hooks, as a whole process.

Both are run in turn, so that whatever else the machine does slows down both. The figure is the
ratio of the medians. It fails above the limit, which keeps hooks and files few. Where Python has
cached the bytecode of Cookiecutter, both take half as long and the ratio is higher, about 1.4.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEMPLATE = Path(__file__).parent.parent
COOKIECUTTER = Path(sys.executable).with_name("cookiecutter")
ROUNDS = 21
LIMIT = 1.3


def one_file_template(folder: Path) -> Path:
    """Write the smallest template there can be."""
    project = folder / "one" / "{{cookiecutter.slug}}"
    project.mkdir(parents=True)
    (project / "README.md").write_text("# {{ cookiecutter.slug }}\n")
    (folder / "one" / "cookiecutter.json").write_text(json.dumps({"slug": "project"}))
    return folder / "one"


def seconds(template: Path, folder: Path, *, count: int) -> float:
    """Return the seconds that a bake takes, from the start of the process to its end."""
    output = folder / f"{template.name}{count}"
    options = ["--no-input", "--default-config", "--output-dir", str(output)]
    start = time.perf_counter()
    subprocess.run([COOKIECUTTER, template, *options], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, and fail where the limit is passed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one = one_file_template(folder)
        times: dict[Path, list[float]] = {one: [], TEMPLATE: []}
        for count in range(ROUNDS):
            for template, measured in times.items():
                measured.append(seconds(template, folder, count=count))
    small, ours = (statistics.median(measured[1:]) for measured in times.values())
    print(
        f"one-file template: {small:.3f} s, this template: {ours:.3f} s, ratio {ours / small:.2f}"
    )
    print(f"limit: {LIMIT}")
    sys.exit(ours / small > LIMIT)


if __name__ == "__main__":
    main()
