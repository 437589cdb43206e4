"""Refuse answers that cannot become a working plugin, before anything is written."""

import contextlib
import json
import keyword
import os
import re
import sys
import unicodedata

# Cookiecutter renders this file before Python runs it. No answer can end the string and run as
# code: in JSON, three quotes never stand in a row.
ANSWERS = json.loads(r"""{{ cookiecutter|tojson }}""")

# If a hook fails, Cookiecutter removes the folder that it has made, and takes x/.. for one. It does
# not if it cannot render the hook: so a recorded slug like that gets a KeyError with this sentence.
# {% set slug = cookiecutter.plugin_slug|replace("\\", "/") %}{% if "/.." in slug %}
# {{ {}.pop("Nothing was baked: plugin_slug must be one folder, and is " ~ slug) }}{% endif %}

OLD = sys.version_info < (3, 10)
if not OLD and "__prompts__" in ANSWERS:  # Cookiecutter 2.1 and older take them for an answer.
    from importlib.metadata import version

    OLD = [int(part) for part in version("cookiecutter").split(".")[:2]] < [2, 2]
if OLD:
    sys.exit("Nothing was baked: this needs Python 3.10 or newer and Cookiecutter 2.2.3 or newer.")

# Two lone surrogates side by side come out of JSON as one character: only their number tells.
LENGTHS = "{{ cookiecutter|dictsort(true)|map('last')|map('string')|map('length')|join(' ') }}"
LENGTH = dict(zip(ANSWERS, LENGTHS.split(), strict=True))
NAME_IN_ASCII = "{{ cookiecutter.plugin_name|string|slugify(lowercase=False) }}"
PACKAGE = re.sub("[-.]", "_", str(ANSWERS["plugin_slug"]).lower())

# What Errbot has, or what is published for it, by the `Name` of the .plug file.
ERRBOTS_NAMES = """
    Campfire CiscoWebexTeams Discord Gitter GoogleHangoutsChat Graphic Hipchat IRC Matrix Mattermost
    Memory Null RocketChat Shelf Skype Slack SlackEvents SlackRTM SlackSDK SlackV3 Telegram Test
    Text Tox Webapp XMPP Zulip
"""
# A package of these names would hide what the plugin, its tests or Errbot import or try to import,
# a module that some versions of Python have, or a module of the tests. The .gitignore of the
# project would hide build and dist.
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
    """Say what is wrong with a name of letters, digits, spaces, - and _."""
    normal = unicodedata.normalize("NFKC", name).casefold()
    clash = [taken for taken in ERRBOTS_NAMES.split() if taken.casefold() == normal]
    if len(name) > 40:
        return f"has {len(name)} characters, and may have 40"
    if clash:
        return f"clashes with Errbot's own {clash[0]}"
    if not NAME_IN_ASCII[:1].isalpha():
        return f"must start with a letter in ASCII too, and becomes {NAME_IN_ASCII!r}"
    if len(NAME_IN_ASCII) > 40:
        return f"has {len(NAME_IN_ASCII)} characters in ASCII ({NAME_IN_ASCII}), and may have 40"
    return ""


def problem_with_slug(slug: str) -> str:
    """Say what is wrong with a folder and distribution of letters, digits, -, _ and dots."""
    taken = PACKAGE in {*TAKEN_PACKAGES.split(), *sys.stdlib_module_names}
    if len(slug) > 60:
        return f"has {len(slug)} characters, and may have 60"
    if taken or PACKAGE.startswith("test_") or keyword.iskeyword(PACKAGE):
        return f"would make a Python package called {PACKAGE!r}, which is taken"
    if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", slug, re.IGNORECASE):
        return "is the name of a device on Windows"
    return ""


# What each answer must be, and an example. Hangul's fillers are letters that show nothing.
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
        "must start with a letter and hold only letters, digits, spaces, - and _",
        "Acme",
    ),
    "plugin_slug": (
        "[A-Za-z]([A-Za-z0-9]|[-_.](?=[A-Za-z0-9]))*",
        "must be letters and digits, with single -, _ or . between, and start with a letter",
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
# What follows from the answers, and what would change how Cookiecutter renders.
SETTINGS = {
    "__package": PACKAGE,
    "__class": "".join(word[:1].upper() + word[1:] for word in NAME_IN_ASCII.split("-")),
    "_copy_without_render": ["tests/contract"],
    "_extensions": None,
    "_jinja2_env_vars": None,
    "_new_lines": None,
}


def problem_with(answer: str, given: object) -> str:
    """Say what is wrong with the answer to a question without choices, if anything."""
    pattern, allowed, _ = RULES[answer]
    if not isinstance(given, str):
        return "must be a text"
    if re.search(r"[\ud800-\udfff]", given) or len(given) != int(LENGTH[answer]):
        return "holds half a character (a lone surrogate), which no file can hold"
    if given == DEFAULTS.get(answer):
        return ""  # If it is wrong, so is the answer that it is made of: that one is to blame.
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
    (setting, "is set by the template and must be left as it is", value)
    for setting, value in SETTINGS.items()
    if ANSWERS.get(setting) != value
]
if refused:
    line = "=" * 72
    print(line, "Nothing was baked, because of these answers:", sep="\n", file=sys.stderr)
    for answer, problem, example in refused:
        given = ANSWERS.get(answer)
        print(f"  {answer} {problem}.", file=sys.stderr)
        print(f"    given:   {given!r:.200}\n    example: {example!r}", file=sys.stderr)
    print(line, file=sys.stderr)
    # A replay file can name a folder in a folder: Cookiecutter has made both, and removes one.
    output = ANSWERS.get("_output_dir", "")
    folder = os.path.join(output, str(ANSWERS["plugin_slug"]))
    if os.path.dirname(folder) != output:
        os.chdir(output)
        while folder not in (output, os.path.dirname(folder)):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
            folder = os.path.dirname(folder)
    sys.exit(1)
