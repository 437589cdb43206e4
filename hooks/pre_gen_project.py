"""Refuse answers that cannot become a working plugin, before anything is written."""

import json
import keyword
import re
import sys

# Cookiecutter renders this file before Python runs it. No answer can end the string and run as
# code: in JSON, three quotes never stand in a row.
ANSWERS = json.loads(r"""{{ cookiecutter|tojson }}""")

# What Errbot has, or what is published for it, by the `Name` of the .plug file.
STORAGES = {"Memory", "Shelf"}
CHAT_BACKENDS = {
    *("Campfire", "CiscoWebexTeams", "Discord", "Gitter", "GoogleHangoutsChat", "Graphic"),
    *("Hipchat", "IRC", "Matrix", "Mattermost", "Null", "RocketChat", "Skype", "Slack"),
    *("SlackEvents", "SlackRTM", "SlackSDK", "SlackV3", "Telegram", "Test", "Text", "Tox"),
    *("Webapp", "XMPP", "Zulip"),
}
TAKEN = {name.casefold(): name for name in STORAGES | CHAT_BACKENDS}

# A package of these names would hide what the plugin, its tests or Errbot import.
HIDDEN = {*sys.stdlib_module_names, "contract", "errbot", "hypothesis", "itsdangerous", "pydantic"}
HIDDEN |= {"click", "fakeredis", "redis"}
WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
NOT_IN_ONE_LINE = re.compile(r"[\0-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]")


def problem_with_name(name: str) -> str | None:
    """Say what is wrong with the plugin's name."""
    if not name:
        return "is empty"
    if not re.fullmatch(r"[^\W\d_]([\w -]*\w)?", name):
        return "must start with a letter and hold only letters, digits, spaces, - and _"
    if len(name) > 40:
        return f"has {len(name)} characters, and may have 40"
    if not ANSWERS["__class"].isidentifier():
        return "has no letter that can be written in ASCII"
    if name.casefold() in TAKEN:
        return f"would be mixed up with {TAKEN[name.casefold()]}, a name that Errbot has already"
    return None


def problem_with_slug(slug: str) -> str | None:
    """Say what is wrong with the name of the folder and the distribution."""
    package = ANSWERS["__package"]
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9]|[-_.](?=[A-Za-z0-9]))*", slug):
        return "must be letters and digits, with single -, _ or . between, and start with a letter"
    if len(slug) > 60:
        return f"has {len(slug)} characters, and may have 60"
    if not package.isidentifier() or package in HIDDEN or keyword.iskeyword(package):
        return f"would make a Python package called {package!r}, which is taken"
    if WINDOWS_DEVICES.fullmatch(slug):
        return "is the name of a device on Windows"
    return None


def problem_with_text(text: str) -> str | None:
    """Say what is wrong with a text, which may hold anything that is one line."""
    if not text.strip():
        return "is empty"
    if found := NOT_IN_ONE_LINE.search(text):
        return f"must be one line of text, and holds the character {found[0]!a}"
    return None


def problem_with_email(email: str) -> str | None:
    """Say what is wrong with an address."""
    if not re.fullmatch(r"[\w.!#$%&'*+/=?^`{|}~-]+@[\w.-]+\w", email, re.ASCII):
        return "must be one e-mail address"
    return None


def problem_with_url(url: str) -> str | None:
    """Say what is wrong with the address of the repository."""
    if not re.fullmatch(r"https?://[^\s\"\\<>^`{|}]+", url, re.ASCII):
        return "must be a web address that begins with https:// or http://"
    return None


CHECKS = {
    "plugin_name": (problem_with_name, "Acme"),
    "plugin_slug": (problem_with_slug, "errbot-storage-acme"),
    "description": (problem_with_text, "Keeps the data of an Errbot bot in Acme."),
    "author_name": (problem_with_text, "Your Name"),
    "author_email": (problem_with_email, "you@example.com"),
    "repository_url": (problem_with_url, "https://github.com/your-org/errbot-storage-acme"),
}

problems = [
    f"  {answer} {problem}.\n    given:   {ANSWERS[answer]!r}\n    example: {example!r}"
    for answer, (check, example) in CHECKS.items()
    if (problem := check(ANSWERS[answer]))
]
if problems:
    rule = "=" * 72
    print(
        rule,
        "Nothing was baked, because of these answers:",
        *problems,
        rule,
        sep="\n",
        file=sys.stderr,
    )
    sys.exit(1)
