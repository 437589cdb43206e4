"""The steps in README.md work: they replace the dict with a database."""

import ast
import re
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import TEMPLATE, Bake, run, skipped


def steps() -> list[str]:
    """Return the Python blocks of README.md."""
    readme = (TEMPLATE / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", readme, re.DOTALL)


def with_methods(source: str, class_name: str, block: str) -> str:
    """Return the source with the methods of a block in a class, replacing those of the same names.

    A new method comes after the one before it in the block.
    """
    before = ""
    for new in ast.parse(textwrap.dedent(block)).body:
        assert isinstance(new, ast.FunctionDef)
        owner = next(
            node
            for node in ast.parse(source).body
            if isinstance(node, ast.ClassDef) and node.name == class_name
        )
        methods = {node.name: node for node in owner.body if isinstance(node, ast.FunctionDef)}
        old = methods.get(new.name)
        start = old.lineno - 1 if old else methods[before].end_lineno
        lines = source.splitlines(keepends=True)
        code = textwrap.indent(ast.unparse(new), "    ") + "\n"
        source = "".join([*lines[:start], code, *lines[old.end_lineno if old else start :]])
        before = new.name
    return source


def test_the_diagram_is_the_same_in_design_md_and_in_a_bake(default_project: Path) -> None:
    """It also names the classes of the bake."""
    texts = [TEMPLATE / "docs/design.md", default_project / "README.md"]
    design, baked = (
        re.findall(r"```mermaid\n.*?```", text.read_text(), re.DOTALL) for text in texts
    )
    assert design == baked
    assert len(baked) == 1
    source = (default_project / "src/errbot_storage_acme/storage.py").read_text()
    for name in re.findall(r"<b>(Acme\w+)</b>", baked[0]):
        assert f"\nclass {name}(" in source


SOME = [
    "tests/test_config.py",
    *(f"tests/contract/test_{n}.py" for n in ["basics", "files", "keys"]),
]


@pytest.mark.parametrize(
    "tests",
    [
        pytest.param(["--quick", *SOME], id="some tests"),
        pytest.param([], marks=pytest.mark.nightly, id="all tests"),
    ],
)
def test_five_steps_replace_the_dict_with_a_database(bake: Bake, tests: list[str]) -> None:
    project = bake()
    config, plugin, storage, conftest = steps()
    file = project / "src/errbot_storage_acme/storage.py"
    source = file.read_text()
    source = source.replace(
        "import sys\n", "import os\nimport sqlite3\nimport threading\nfrom pathlib import Path\n"
    )
    source = re.sub(
        r"    url: Secret = Field\(.*?\n    \)\n", lambda _: config, source, flags=re.DOTALL
    )
    source = re.sub(r"# YOUR DATABASE: remove the .*?\n\n\n", "\n\n", source, flags=re.DOTALL)
    source = with_methods(source, "AcmePlugin", plugin)
    source = with_methods(source, "AcmeStorage", storage)
    assert "YOUR DATABASE" not in source.split('"""', 2)[2], "The steps omit a marked line."
    file.write_text(source)

    fixtures = project / "tests/conftest.py"
    given = re.compile(r"    return SimpleNamespace\(.*?\n    \)\n", re.DOTALL)
    text = given.sub(lambda _: conftest, fixtures.read_text())
    another = re.search(
        r'`another_database` return `(\{"path".*?\})`', (TEMPLATE / "README.md").read_text()
    )
    assert another
    text = re.sub('return {"url".*', f"return {another[1]}", text)
    fixtures.write_text(text.replace("return False  # YOUR DATABASE: True", "return True"))
    readme = project / "README.md"
    row = "| `path` | str | `'errbot.sqlite'` | The file of the database. |"
    readme.write_text(re.sub(r"\| `url` .*", row, readme.read_text()))
    operation = project / "docs/operation.md"
    for path in [file, readme, operation]:  # A test of the bake requires this, see step 5.
        stand_in = r"(?m)^.*(dict://|stand-in|YOUR DATABASE).*\n"
        path.write_text(re.sub(stand_in, "", path.read_text()))

    printed = run(sys.executable, "-m", "pytest", "-q", "-rs", *tests, cwd=project)
    assert skipped(printed, "fixture `faults`", "`first_release`", "names no port") == [], (
        "On a database that survives the process, all tests run, except those that make it fail,"
        " and one for databases with a port."
    )
