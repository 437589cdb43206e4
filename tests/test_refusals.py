"""Invalid answers are rejected, and valid ones result in a working plugin."""

import ast
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import CONTRACT, TEMPLATE, UV, Bake, environment, run
from cookiecutter.exceptions import FailedHookException
from cookiecutter.generate import generate_context
from cookiecutter.prompt import prompt_for_config
from cookiecutter.utils import create_env_with_context
from errbot.bootstrap import get_storage_plugin
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BAD_NAMES = [
    "",
    " ",
    "1Acme",
    "_Acme",
    "-Acme",
    " Acme",
    "Acme ",
    "Acme!",
    "Ac/me",
    "Ac.me",
    "Ac:me",
]
BAD_NAMES += [
    "Acme\nStorage",
    "Acme\t",
    'Ac"me',
    "Ac'me",
    "Ac%me",
    "{{Acme",
    "Acme-",
    "A" * 41,
    "A" * 300,
    "😀",
    "ⵣ",  # a letter without an equivalent in ASCII
    "数" * 40,  # becomes more than 40 letters in ASCII
    "Acme\u3164",
    "Acme\ud800",
]
ERRBOTS_NAMES = ["Shelf", "Memory", "Text", "Test", "Null", "XMPP", "IRC", "Telegram", "Slack"]
ERRBOTS_NAMES += ["SlackV3", "Discord", "Mattermost", "shelf", "TEXT", "slackv3"]
ERRBOTS_NAMES += ["Ｓｈｅｌｆ", "ＭＥＭＯＲＹ", "ſhelf", "ⅹmpp", "ᴵrc", "Sl\u00aack"]
BAD_SLUGS = [
    "-acme",
    "acme-",
    "3acme",
    "_acme",
    "a cme",
    "ac--me",
    "ac/me",
    "../acme",
    "/acme",
    ".",
]
BAD_SLUGS += [
    "..",
    "",
    "ac\\me",
    "acme.",
    "acmé",
    "con",
    "NUL",
    "class",
    "json",
    "errbot",
    "a" * 61,
]
BAD_SLUGS += ["acme!", "ac'me", 'ac"me', "acme\n", "pydantic", "contract", "a" * 300]
BAD_SLUGS += ["acme\ud800", "acme\udc80", "a\0b", "pytest", "PyMySQL", "typing.extensions", "build"]
BAD = {
    "plugin_name": [*BAD_NAMES, *ERRBOTS_NAMES],
    "plugin_slug": BAD_SLUGS,
    "description": [
        *("", "  ", "two\nlines", "a\rb", "a\x00b", "a\x1bb", "a\u2028b", "a\x85b", "a\x7fb"),
        *("a\u202ab", "a\u202eb", "a\u2066b", "a\u2069b", "a\ud800b", "\udcff"),
    ],
    "author_name": ["", "two\nlines", "a\x07b", "\u202etxet", "a\udfff"],
    "author_email": [
        "",
        "nobody",
        "a b@example.com",
        "a@b@c",
        "<a@example.com>",
        "a@example.com\n",
        "a..b@example.com",
        ".a@example.com",
        "a@example..com",
        "a@-example.com",
        "a@example.com\x7f",
        "ä@example.com",
        "a\ud800@example.com",
    ],
    "repository_url": [
        "",
        "example.com",
        "git@example.com:a/b",
        "https://a b",
        'https://a"b',
        "ftp://a",
        "https://",
        "https:///a",
        "https://a\x00b",
        "https://a\x7fb",
        "https://a\x85b",
        "https://a\u202eb",
        "https://a\u200bb",
        "https://a\ud800",
        "https://[",
        "https://a..b",
        "https://a:b@c",
        "https://ä.example.com",
        "https://a\n",
    ],
}
EXAMPLES = {
    "plugin_name": "Acme",
    "plugin_slug": "errbot-storage-acme",
    "description": "Keeps the data",
    "author_name": "Your Name",
    "author_email": "you@example.com",
    "repository_url": "https://",
}


@pytest.mark.parametrize(
    ("answer", "given"), [(key, bad) for key in BAD for bad in BAD[key]], ids=ascii
)
def test_a_bad_answer_is_refused_and_nothing_is_left(
    bake_typed: Bake, tmp_path: Path, capfd: pytest.CaptureFixture[str], answer: str, given: str
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its type depends on Cookiecutter
        bake_typed(**{answer: given})
    told = capfd.readouterr().err + str(caught.value)
    assert answer in told, "The message does not name the answer."
    assert EXAMPLES[answer] in told, "The message gives no example."
    assert list((tmp_path / "typed1").iterdir()) == [], "The failed bake left files behind."
    assert {path.name for path in tmp_path.iterdir()} == {"typed1"}, "It wrote outside its folder."


@pytest.mark.parametrize("answer", EXAMPLES)
def test_a_pair_of_lone_surrogates_is_refused(
    bake_typed: Bake, tmp_path: Path, capfd: pytest.CaptureFixture[str], answer: str
) -> None:
    """JSON joins them into one character, which the hook must detect."""
    with pytest.raises(Exception, match=r"Hook script failed|plugin_slug|surrogates"):
        bake_typed(**{answer: "\ud840\udc00"})
    told = capfd.readouterr().err
    assert f"{answer} contains a lone surrogate" in told or answer == "plugin_slug"
    assert list((tmp_path / "typed1").iterdir()) == []


@pytest.mark.parametrize("given", [None, True, 3], ids=ascii)
@pytest.mark.parametrize("answer", EXAMPLES)
def test_an_answer_that_is_not_a_string_is_refused(
    bake_typed: Bake, tmp_path: Path, capfd: pytest.CaptureFixture[str], answer: str, given: Any
) -> None:
    with pytest.raises(FailedHookException):
        bake_typed(**{answer: given})
    assert f"{answer} must be a string." in capfd.readouterr().err
    assert list((tmp_path / "typed1").iterdir()) == []


@pytest.mark.parametrize("name", ["", "ⵣ", "Ac/me", "Acme\n", "数" * 30, "数" * 60, "A" * 300])
def test_a_bad_name_is_reported_without_the_answers_made_of_it(
    bake: Bake, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - its type depends on Cookiecutter
        bake(plugin_name=name)
    told = capfd.readouterr().err + str(caught.value)
    assert "plugin_name" in told
    for answer in ["plugin_slug", "description", "repository_url"]:
        assert f"  {answer} " not in told, "A default is reported, too."
        assert f"{answer}: " not in told, "A default is reported, too."


def test_a_bad_slug_is_reported_without_the_address_made_of_it(
    bake: Bake, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FailedHookException):
        bake(plugin_slug="ac me")
    told = capfd.readouterr().err
    assert "  plugin_slug " in told
    assert "  repository_url " not in told


def test_all_bad_answers_are_reported_at_once_above_the_traceback(tmp_path: Path) -> None:
    command = [str(UV.with_name("cookiecutter")), str(TEMPLATE), "--no-input", "--default-config"]
    answers = ["plugin_name=Shelf", "author_email=nobody", "repository_url=nowhere"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path), *answers],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode != 0
    told = done.stdout.index("No project was created")
    assert told < done.stdout.index("Traceback"), "Cookiecutter's traceback hides the message."
    for answer in ["plugin_name", "author_email", "repository_url"]:
        assert done.stdout.index(f"  {answer} ") > told
    assert list(tmp_path.iterdir()) == []


def test_the_message_is_printed_on_a_terminal_that_supports_only_ascii(tmp_path: Path) -> None:
    command = [str(UV.with_name("cookiecutter")), str(TEMPLATE), "--no-input", "--default-config"]
    for variables in [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONIOENCODING": "ascii:strict"}]:
        for answer in ["plugin_name=数据库!", "author_name=a\udcff", "description=a\u202eб"]:
            done = subprocess.run(
                [*command, "-o", str(tmp_path), os.fsencode(answer)],
                stderr=subprocess.PIPE,
                cwd=tmp_path,
                env={**os.environ, "PYTHONCOERCECLOCALE": "0", **variables},
            )
            assert done.returncode == 1
            assert b"No project was created" in done.stderr
            assert b"UnicodeEncodeError" not in done.stderr
            assert list(tmp_path.iterdir()) == []


def run_pre_gen(**answers: str) -> str | None:
    """Run the hook in this process, as Cookiecutter would. Returns why it ended the bake, if so."""
    context = generate_context(str(TEMPLATE / "cookiecutter.json"), extra_context=answers)
    rendered = {"cookiecutter": prompt_for_config(context, no_input=True)}
    hook = (TEMPLATE / "hooks" / "pre_gen_project.py").read_text(encoding="utf-8")
    code = create_env_with_context(rendered).from_string(hook).render(**rendered)
    try:
        exec(compile(code, "pre_gen_project.py", "exec"), {"__name__": "__main__"})
    except SystemExit as stopped:
        return str(stopped.code)
    return None


def taken_packages() -> Iterator[str]:
    """Yield the names of all distributions and modules that projects and their tests use."""
    seen: dict[str, set[str]] = {}
    todo = [
        *("errbot", "pydantic", "itsdangerous", "sqlalchemy", "psycopg[binary]", "pymysql[rsa]"),
        *("redis", "fakeredis", "hatchling", "hypothesis", "pytest", "mypy", "ruff", "pip"),
    ]
    for requirement in map(Requirement, todo):
        name, extras = canonicalize_name(requirement.name), {"", *requirement.extras}
        if extras <= seen.setdefault(name, set()):
            continue
        seen[name] |= extras
        with contextlib.suppress(metadata.PackageNotFoundError):
            for line in metadata.requires(name) or []:
                marker = Requirement(line).marker
                if "extra" not in str(marker) or any(
                    marker is not None and marker.evaluate({"extra": extra}) for extra in extras
                ):
                    todo.append(line.split(";")[0])
    yield from seen
    for module, distributions in metadata.packages_distributions().items():
        if seen.keys() & set(map(canonicalize_name, distributions)):
            yield module
    yield from sys.stdlib_module_names
    yield from (path.stem for path in CONTRACT.parent.iterdir())


@pytest.mark.slow
def test_a_package_cannot_hide_what_the_plugin_or_its_tests_import() -> None:
    taken = {name for name in taken_packages() if re.fullmatch("[a-z][a-z0-9_-]*", name)}
    assert {"jinja2", "webtest", "pluggy", "bs4", "test_config", "typing-extensions"} <= taken
    missing = [name for name in sorted(taken) if not run_pre_gen(plugin_slug=name)]
    assert missing == [], "Add them to TAKEN_PACKAGES in hooks/pre_gen_project.py."


@pytest.mark.parametrize("slug", ["distutils", "tomllib", "cgi", "compression", "profiling"])
def test_a_package_cannot_hide_a_module_that_only_some_pythons_have(slug: str) -> None:
    assert run_pre_gen(plugin_slug=slug)


NEEDS = "needs Python 3.10 or newer and Cookiecutter 2.2.3 or newer"


@pytest.mark.parametrize("version", ["1.7.3", "2.1.1"])
def test_an_old_cookiecutter_is_refused_in_one_sentence(tmp_path: Path, version: str) -> None:
    python = environment(tmp_path / "old", sys.executable, f"cookiecutter=={version}")
    (tmp_path / "output").mkdir()
    command = [python, "-m", "cookiecutter", TEMPLATE, "--no-input", "--default-config"]
    with pytest.raises(AssertionError, match=f"No project was created: [^:]*{NEEDS}"):
        run(*command, "-o", tmp_path / "output", cwd=tmp_path)
    assert list((tmp_path / "output").iterdir()) == []


def test_an_old_python_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = (TEMPLATE / "hooks" / "pre_gen_project.py").read_text(encoding="utf-8")
    ast.parse(hook, feature_version=(3, 7))
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.delattr(sys, "stdlib_module_names")
    assert NEEDS in str(run_pre_gen())


GOOD_NAMES = [
    "Base",
    "Redis",
    "Json",
    "SQL",
    "Company DB",
    "X",
    "my_db",
    "A-1",
    "Acme 2",
    "Storage",
]
GOOD_NAMES += [
    "Plugin",
    "Config",
    "Café",
    "数据库",
    "ÄÖÜ",
    "a",
    "Acme  Two",
    "B" * 40,
    "Text 2",
    "None",
]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_good_name_bakes_a_plugin_that_errbot_loads(
    bake: Bake, tmp_path: Path, name: str
) -> None:
    check_errbot_loads(bake(plugin_name=name), name)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8080/x",
        "https://git.example.com/~me/x.git?a=b&c=%C3%BC#d",
        "https://me@git.example.com/a/b/",
        "https://[::1]/x",
        "https://xn--bcher-kva.example",
    ],
)
def test_a_good_address_is_in_the_metadata(bake: Bake, url: str) -> None:
    pyproject = (bake(repository_url=url) / "pyproject.toml").read_text()
    assert f'\nRepository = "{url}"\n' in pyproject


@pytest.mark.parametrize("slug", ["x", "acme", "Acme.Storage_1", "errbot_storage_acme", "a" * 60])
def test_a_good_slug_bakes_a_plugin_that_errbot_loads(bake: Bake, slug: str) -> None:
    project = bake(plugin_slug=slug)
    assert project.name == slug
    check_errbot_loads(project, "Acme")


def check_errbot_loads(project: Path, name: str) -> None:
    """Let Errbot load and use a project's plugin."""
    config = SimpleNamespace(
        STORAGE=name,
        BOT_EXTRA_STORAGE_PLUGINS_DIR=str(project / "src"),
        BOT_DATA_DIR=str(project),
    )
    plugin: Any = get_storage_plugin(config)
    storage = plugin.open("namespace")
    storage.set("key", 1)
    assert storage.get("key") == 1
    assert type(storage).__name__.endswith("Storage")


names = st.from_regex(r"[A-Za-z][A-Za-z0-9 _-]{0,38}[A-Za-z0-9]", fullmatch=True)


@settings(deadline=None)
@given(name=names)
def test_every_name_of_letters_digits_and_separators_gives_a_class(name: str) -> None:
    context = generate_context(
        str(TEMPLATE / "cookiecutter.json"), extra_context={"plugin_name": name}
    )
    answers = prompt_for_config(context, no_input=True)
    assert answers["__class"].isidentifier()
    assert answers["__package"].isidentifier()
