"""Answers that cannot become a working plugin, and honest ones that must."""

import subprocess
from pathlib import Path

import pytest
from conftest import TEMPLATE, UV, Bake, run
from hypothesis import given
from hypothesis import strategies as st

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
    "😀",
]
ERRBOTS_NAMES = ["Shelf", "Memory", "Text", "Test", "Null", "XMPP", "IRC", "Telegram", "Slack"]
ERRBOTS_NAMES += ["SlackV3", "Discord", "Mattermost", "shelf", "TEXT", "slackv3"]
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
BAD_SLUGS += ["acme!", "ac'me", 'ac"me', "acme\n", "pydantic", "contract"]
BAD = {
    "plugin_name": [*BAD_NAMES, *ERRBOTS_NAMES],
    "plugin_slug": BAD_SLUGS,
    "description": ["", "  ", "two\nlines", "a\rb", "a\x00b", "a\x1bb", "a\u2028b", "a\x85b"],
    "author_name": ["", "two\nlines", "a\x07b"],
    "author_email": [
        "",
        "nobody",
        "a b@example.com",
        "a@b@c",
        "<a@example.com>",
        "a@example.com\n",
    ],
    "repository_url": [
        "",
        "example.com",
        "git@example.com:a/b",
        "https://a b",
        'https://a"b',
        "ftp://a",
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
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is Cookiecutter's affair
        bake_typed(**{answer: given})
    told = capfd.readouterr().err + str(caught.value)
    assert answer in told, "The refusal does not name the answer."
    assert EXAMPLES[answer] in told, "The refusal gives no example."
    assert list((tmp_path / "typed1").iterdir()) == [], "The refused bake left something behind."
    assert {path.name for path in tmp_path.iterdir()} == {"typed1"}, "It wrote beside its folder."


def test_all_bad_answers_are_named_at_once_above_the_traceback(tmp_path: Path) -> None:
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
    told = done.stdout.index("Nothing was baked")
    assert told < done.stdout.index("Traceback"), "Cookiecutter's traceback hides the refusal."
    for answer in ["plugin_name", "author_email", "repository_url"]:
        assert done.stdout.index(f"  {answer} ") > told
    assert list(tmp_path.iterdir()) == []


HONEST_NAMES = [
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
HONEST_NAMES += [
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


@pytest.mark.parametrize("name", HONEST_NAMES)
def test_an_honest_name_bakes_a_plugin_that_errbot_loads(
    bake: Bake, tmp_path: Path, name: str
) -> None:
    check_errbot_loads(bake(plugin_name=name), name)


@pytest.mark.parametrize("slug", ["x", "acme", "Acme.Storage_1", "errbot_storage_acme", "a" * 60])
def test_an_honest_slug_bakes_a_plugin_that_errbot_loads(bake: Bake, slug: str) -> None:
    project = bake(plugin_slug=slug)
    assert project.name == slug
    check_errbot_loads(project, "Acme")


def check_errbot_loads(project: Path, name: str) -> None:
    """Let Errbot load the plugin of a project, and use it, in a process of its own."""
    code = f"""
from types import SimpleNamespace
from errbot.bootstrap import get_storage_plugin
config = SimpleNamespace(
    STORAGE={name!r}, BOT_EXTRA_STORAGE_PLUGINS_DIR={str(project / "src")!r}, BOT_DATA_DIR="."
)
storage = get_storage_plugin(config).open("namespace")
storage.set("key", 1)
print(storage.get("key"), type(storage).__name__)
"""
    printed = run(UV.with_name("python"), "-c", code, cwd=project).split("\n")[-2]
    assert printed.startswith("1 ")
    assert printed.endswith("Storage")


names = st.from_regex(r"[A-Za-z][A-Za-z0-9 _-]{0,38}[A-Za-z0-9]", fullmatch=True)


@given(name=names)
def test_every_name_of_letters_digits_and_separators_gives_a_class(name: str) -> None:
    from cookiecutter.generate import generate_context
    from cookiecutter.prompt import prompt_for_config

    context = generate_context(
        str(TEMPLATE / "cookiecutter.json"), extra_context={"plugin_name": name}
    )
    answers = prompt_for_config(context, no_input=True)
    assert answers["__class"].isidentifier()
    assert answers["__package"].isidentifier()
