"""Reject invalid answers before any file is written."""

import contextlib
import json
import keyword
import os
import re
import sys
import unicodedata

# Cookiecutter renders this file before Python runs it. JSON never contains three quotes in a row,
# so no answer can end the string and run as code.
ANSWERS = json.loads(r"""{{ cookiecutter|tojson }}""")

# If a hook fails, Cookiecutter deletes the project's folder. For a recorded slug such as x/.. that
# would be another folder. It deletes nothing if it cannot render the hook, so raise a KeyError.
# {% set slug = cookiecutter.plugin_slug|replace("\\", "/") %}{% if "/.." in slug %}
# {{ {}.pop("No project was created: plugin_slug must be one folder, not " ~ slug) }}{% endif %}

OLD = sys.version_info < (3, 10)
if not OLD and "__prompts__" in ANSWERS:  # Cookiecutter 2.1 and older treat it as an answer.
    from importlib.metadata import version

    OLD = [int(part) for part in version("cookiecutter").split(".")[:2]] < [2, 2]
if OLD:
    needed = "Python 3.10 or newer and Cookiecutter 2.2.3 or newer"
    sys.exit(f"No project was created: this template needs {needed}.")

# JSON joins two lone surrogates into one character. Only the length reveals them.
LENGTHS = "{{ cookiecutter|dictsort(true)|map('last')|map('string')|map('length')|join(' ') }}"
LENGTH = dict(zip(ANSWERS, LENGTHS.split(), strict=True))
NAME_IN_ASCII = "{{ cookiecutter.plugin_name|string|slugify(lowercase=False) }}"
PACKAGE = re.sub("[-.]", "_", str(ANSWERS["plugin_slug"]).lower())

# The names of Errbot's own and of published plugins, as in their .plug files.
ERRBOTS_NAMES = """
    Campfire CiscoWebexTeams Discord Gitter GoogleHangoutsChat Graphic Hipchat IRC Matrix Mattermost
    Memory Null RocketChat Shelf Skype Slack SlackEvents SlackRTM SlackSDK SlackV3 Telegram Test
    Text Tox Webapp XMPP Zulip
"""
# A package with such a name would hide a module that the plugin, its tests or Errbot import, that
# some versions of Python have, or that belongs to the tests. The project's .gitignore has build and
# dist.
TAKEN_PACKAGES = """
    annotated_types ansi ast_serialize async_timeout attr attrs backports beautifulsoup4 blinker
    brotli brotlicffi bs4 cdifflib certifi cffi chardet charset_normalizer click colorama colorlog
    cryptography daemonize deepmerge dissolve dulwich errbot exceptiongroup fakeredis flask greenlet
    hatchling hiredis hyperscan hypothesis idna importlib_metadata iniconfig itsdangerous jinja2
    lazy_importer legacy_cgi librt markdown markupsafe merge3 mypy mypy_extensions mypyc org
    opentelemetry packaging pathspec pip pluggy psycopg psycopg_binary psycopg_c psycopg_pool py
    pycparser pydantic pydantic_core pygments pygments_markdown_lexer pymysql pyopenssl pytest re2
    redis requests ruff setuptools simplejson socks sortedcontainers soupsieve sqlalchemy tomli
    tomlkit trove_classifiers typing_extensions typing_inspection tzdata urllib3 waitress webob
    webtest werkzeug wheel xxhash zipp

    aifc annotationlib asynchat asyncore audioop binhex cgi cgitb chunk compression crypt distutils
    imghdr imp lib2to3 mailcap msilib nis nntplib ossaudiodev pipes profiling smtpd sndhdr spwd
    sunau telnetlib tomllib uu xdrlib

    conftest contract build dist
"""


def problem_with_name(name: str) -> str:
    """Return what is wrong with a name of letters, digits, spaces, - and _, if anything."""
    normal = unicodedata.normalize("NFKC", name).casefold()
    clash = [taken for taken in ERRBOTS_NAMES.split() if taken.casefold() == normal]
    if len(name) > 40:
        return f"has {len(name)} characters, but at most 40 are allowed"
    if clash:
        return f"clashes with Errbot's own {clash[0]}"
    if not NAME_IN_ASCII[:1].isalpha():
        return f"must start with a letter in ASCII too, but becomes {NAME_IN_ASCII!r}"
    if len(NAME_IN_ASCII) > 40:
        return f"becomes {NAME_IN_ASCII} in ASCII, which has more than 40 characters"
    return ""


def problem_with_slug(slug: str) -> str:
    """Return what is wrong with a slug of letters, digits, -, _ and dots, if anything."""
    taken = PACKAGE in {*TAKEN_PACKAGES.split(), *sys.stdlib_module_names}
    if len(slug) > 60:
        return f"has {len(slug)} characters, but at most 60 are allowed"
    if taken or PACKAGE.startswith("test_") or keyword.iskeyword(PACKAGE):
        return f"would create a Python package called {PACKAGE!r}, a name that is taken"
    if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", slug, re.IGNORECASE):
        return "is a device name on Windows"
    return ""


# For each answer: a pattern, the rule in words, and an example. Hangul fillers, which are letters,
# are invisible.
TEXT = (
    r"(?=.*\S)[^\0-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufffe\uffff]+",
    "must be one line of text, without control characters or bidirectional overrides",
)
ATOM = r"[a-zA-Z0-9_!#$%&'*+/=?^`{|}~-]+"
LABEL = "[a-zA-Z0-9]([a-zA-Z0-9_-]*[a-zA-Z0-9])?"
HOST = rf"{LABEL}(\.{LABEL})*"
IN_A_PATH = r"[a-zA-Z0-9_.~:/?#@!$&'()*+,;=%-]"
RULES = {
    "plugin_name": (
        r"(?!.*[\u115f\u1160\u3164\uffa0])[^\W\d_]([\w -]*\w)?",
        "must start with a letter and contain only letters, digits, spaces, - and _",
        "Acme",
    ),
    "plugin_slug": (
        "[A-Za-z]([A-Za-z0-9]|[-_.](?=[A-Za-z0-9]))*",
        "must start with a letter, and be letters and digits with single -, _ or . between",
        "errbot-storage-acme",
    ),
    "description": (*TEXT, "Keeps the data of an Errbot bot in Acme."),
    "author_name": (*TEXT, "Your Name"),
    "author_email": (
        rf"{ATOM}(\.{ATOM})*@{HOST}",
        "must be one e-mail address, in ASCII",
        "you@example.com",
    ),
    "repository_url": (
        rf"https?://([a-zA-Z0-9_.-]+@)?({HOST}|\[[0-9a-fA-F:.]+\])(:[0-9]+)?([/?#]{IN_A_PATH}*)?",
        "must be a web address that begins with https:// or http://, in ASCII",
        "https://github.com/your-org/errbot-storage-acme",
    ),
}
CHOICES = {
    "database": ["dict", "sqlite", "sql", "redis"],
    "license": ["MIT", "BSD-3-Clause", "Apache-2.0", "GPL-3.0-or-later", "Proprietary"],
    "ci": ["github", "gitlab", "none"],
}
DEFAULTS = {
    "plugin_slug": f"errbot-storage-{NAME_IN_ASCII.lower()}",
    "description": f"Keeps the data of an Errbot bot in {ANSWERS['plugin_name']}.",
    "repository_url": f"https://github.com/your-org/{ANSWERS['plugin_slug']}",
}
# Settings that are derived from the answers, or change how Cookiecutter renders.
SETTINGS = {
    "__package": PACKAGE,
    "__class": "".join(word[:1].upper() + word[1:] for word in NAME_IN_ASCII.split("-")),
    "_copy_without_render": ["tests/contract"],
    "_extensions": None,
    "_jinja2_env_vars": None,
    "_new_lines": None,
}


def problem_with(answer: str, given: object) -> str:
    """Return what is wrong with the answer to a question without choices, if anything."""
    pattern, allowed, _ = RULES[answer]
    if not isinstance(given, str):
        return "must be a string"
    if re.search(r"[\ud800-\udfff]", given) or len(given) != int(LENGTH[answer]):
        return "contains a lone surrogate, which cannot be written to a file"
    if given == DEFAULTS.get(answer):
        return ""  # If a default is wrong, so is the answer that it is made of: report only that.
    if not re.fullmatch(pattern, given):
        return allowed
    more = {"plugin_name": problem_with_name, "plugin_slug": problem_with_slug}
    return more[answer](given) if answer in more else ""


refused: list[tuple[str, str, object]] = []
for answer, rule in RULES.items():
    refused.append((answer, problem_with(answer, ANSWERS[answer]), rule[-1]))
for answer, choices in CHOICES.items():
    if ANSWERS[answer] not in choices:
        refused.append((answer, f"must be one of {', '.join(choices)}", choices[0]))
refused = [refusal for refusal in refused if refusal[1]] or [
    (setting, "is set by the template and must not be changed", value)
    for setting, value in SETTINGS.items()
    if ANSWERS.get(setting) != value
]
if refused:
    line = "=" * 72
    print(line, "No project was created, because of these answers:", sep="\n", file=sys.stderr)
    for answer, problem, example in refused:
        given = ANSWERS.get(answer)
        print(f"  {answer} {problem}.", file=sys.stderr)
        print(f"    given:   {given!r:.200}\n    example: {example!r}", file=sys.stderr)
    print(line, file=sys.stderr)
    # If a replayed slug contains a slash, Cookiecutter creates several folders, but deletes one.
    output = ANSWERS.get("_output_dir", "")
    folder = os.path.join(output, str(ANSWERS["plugin_slug"]))
    if os.path.dirname(folder) != output:
        os.chdir(output)
        while folder not in (output, os.path.dirname(folder)):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
            folder = os.path.dirname(folder)
    sys.exit(1)
