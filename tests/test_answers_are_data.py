"""Free text is kept verbatim in every file, and never executed."""

import configparser
import email
import sys
import zipfile
from email.headerregistry import Address
from email.utils import getaddresses
from pathlib import Path

import pytest
import yaml
from conftest import Bake, files, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CODE = "open('OWNED', 'w')"
HOSTILE = [
    """quotes " ' ` and \\ backslashes \\n \\\\""",
    "ends with a backslash \\",
    "three quotes \"\"\" and ''' in a row",
    f'"""; {CODE}; """',
    f"'); {CODE} #",
    f'"); {CODE} #',
    f"${{{{ {CODE} }}}} `{CODE}` $({CODE})",
    f"{{{{ {CODE} }}}}",
    "{{ cookiecutter }} {% raw %} {# comment #} {{",
    "{% endraw %}{{ 1 + 1 }}{% raw %}",
    "100 % of it, %s %(name)s %%",
    "# no comment ; nor this",
    "= [section] key: value",
    "- item",
    "> quote",
    "1. first",
    "*bold* _italic_ ~~gone~~ [link](url) ![image](url) <b>html</b> &amp; <!-- -->",
    "\u00dcn\u00efc\u00f6d\u00e9 \u6570\u636e \U0001f600 e\u0301 \u200b \u00a0 \ufeff",
    "null",
    "yes",
    "1.0",
    "inner  spaces\tand tabs",
    "~",
    "&anchor *alias !tag |",
    "x" * 400,
    "\u05e9\u05dc\u05d5\u05dd\u200f! C++\u200e",
]


def check_kept(project: Path, text: str) -> None:
    """Parse every file in its own language, and compare the text with the answer."""
    package = next((project / "src").iterdir())
    text = text.strip()

    metadata = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["description"] == text
    assert metadata["authors"] == [{"name": text, "email": "you@example.com"}]

    plug = configparser.ConfigParser()
    plug.read(package / "storage.plug", encoding="utf-8")
    assert plug.get("Documentation", "Description") == text

    readme = (
        MarkdownIt("commonmark")
        .enable("strikethrough")
        .parse((project / "README.md").read_text(encoding="utf-8"))
    )
    paragraph = next(
        token for token in readme if token.type == "inline" and "plugin for" in token.content
    )
    shown = "".join(child.content for child in paragraph.children or [])
    assert shown == f"A storage plugin for Errbot. {text}"

    licence = (project / "LICENSE").read_text(encoding="utf-8")
    assert f" {text}\n" in licence

    for path, content in files(project).items():
        if path.endswith(".py") and not path.startswith("tests/contract/"):  # copied as it is
            compile(content, path, "exec")
            assert text not in content.decode() or len(text) < 40, "Free text is in a Python file."
        if path.endswith(".yml"):
            yaml.safe_load(content)
    assert not list(project.parent.rglob("OWNED")), "An answer was executed as code."


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:30])
def test_hostile_text_is_kept_verbatim(bake_typed: Bake, text: str) -> None:
    check_kept(bake_typed(description=text, author_name=text), text)


one_line = st.characters(
    exclude_categories=["Cs", "Zl", "Zp"],
    exclude_characters=[
        *map(chr, [*range(0x20), *range(0x7F, 0xA0), 0xFFFE, 0xFFFF]),
        *map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)]),  # reorder text
    ],
)
texts = st.one_of(
    st.text(one_line, min_size=1, max_size=40),
    st.text("\"'\\%#{}$`<>&*_[]()!~| \t-=:;,", min_size=1, max_size=20),
).filter(lambda text: text.strip() != "")


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(text=texts)
def test_any_line_of_text_is_kept_verbatim(bake_typed: Bake, text: str) -> None:
    check_kept(bake_typed(description=text, author_name=text), text)


@pytest.mark.parametrize(
    "text",
    [*HOSTILE[:3], *(pytest.param(text, marks=pytest.mark.slow) for text in HOSTILE[3:])],
    ids=lambda text: ascii(text)[:30],
)
def test_a_wheel_contains_hostile_text_verbatim(
    bake_typed: Bake, tmp_path: Path, text: str
) -> None:
    project = bake_typed(description=text, author_name=text)
    wheel = tmp_path / "wheel"
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheel, cwd=project)
    with zipfile.ZipFile(next(wheel.iterdir())) as archive:
        name = next(name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = email.message_from_string(archive.read(name).decode())
    assert str(metadata["Summary"]).split() == text.split()
    expected = str(Address(text, addr_spec="you@example.com"))
    assert getaddresses([str(metadata["Author-email"])]) == getaddresses([expected])
