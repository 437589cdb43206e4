"""Names of keys and namespaces that databases tend to confuse."""

import re

ALIKE: dict[str, list[str]] = {
    "case": ["key", "Key", "KEY", "\u00df", "ss", "SS", "i", "I", "\u0131", "\u0130"],
    "spaces around": ["key", " key", "key ", "key  ", " key ", "key\t", "key\n", "\nkey"],
    "spaces inside": ["a b", "a  b", "ab", "a\u00a0b", "a\tb", "a_b"],
    "accents": ["e", "\u00e9", "e\u0301", "\u00e8", "\u00ea"],
    "other forms of a letter": ["fi", "\ufb01", "1", "\u2460", "\u212b", "\u00c5", "A", "\uff21"],
    "digits": ["1", "01", "001", "1.0", "+1", "1e0", "\uff11", "\u0661"],
    "long numbers": ["9007199254740992", "9007199254740993", "1" * 18, "1" * 17 + "2", "1" * 40],
    "emoji": ["\U0001f600", "\U0001f603", "\U0001f44d", "\U0001f44d\U0001f3fd", "\u263a\ufe0f"],
    "quotes": ["'", "''", '"', '""', "`", "\\", "\\\\", "\\'", "' OR '1'='1", "';--"],
    "SQL patterns": ["%", "_", "%%", "__", "a%", "a_", "ab", "abc"],
    "shell patterns": ["*", "?", "a*", "a?", "ab", "[ab]", "a[b]", "a"],
    "regular expressions": [".", ".*", "a.c", "abc", "a|b", "^a", "a$", "(a)"],
    "separators": ["a:b", "a::b", "a/b", "a//b", "a.b", "a..b", "a|b", "a,b", "a;b", ":", "/"],
    "paths": ["..", "../a", "./a", "a", "/a", "a/", "b/../a", "c/../a", "~", "C:\\a"],
    "line breaks": ["ab", "a\nb", "a\rb", "a\r\nb", "a\u2028b", "a\u0085b"],
    "invisible": ["ab", "a\u200bb", "a\u200db", "a\u00adb", "\ufeffab", "a\u0001b", "a\u007fb"],
    "nothing": ["", " ", "''", "None", "null", "0", "False", "\u200b"],
    "placeholders": ["%s", "%(a)s", "{}", "{0}", "{{}}", "$1", ":1", "&amp;", "&", "%20"],
    "encodings": ["a/b", "a%2Fb", "a%2fb", "a%252Fb", "a=2Fb", "YS9i", "612f62", "a\\x2fb"],
    "folders": ["a", "a/b", "a/b/c", "a/b/", "a/c", "ab", "a\\b", "a b"],
    "addresses": [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0",
        "a@example.com",
        "a@example.org",
        "v1.2",
        "v1.3",
    ],
    "files": ["a", "a.", "a.tmp", "a.lock", ".a", "a~", "a.db", "a.pickle", "a.json", "CON", "nul"],
    "parts": ["a", "a#0", "a#1", "a:0", "a.0", "a_0", "a/0", "a.part0", "a\x1f0", "a-1", "a@1"],
    "fields": ["_id", "id", "key", "value", "__proto__", "__class__", "len", "rowid"],
    "names of lists": ["__keys__", "__len__", "__meta__", "_count", "index", "$", "@", ".keys"],
    "one checksum": ["plumless", "buckeroo", "key 100020", "key 100101", "costarring", "liquid"],
    "one beginning of a digest": [
        *["key 132964", "key 216496", "key 134652", "key 135228", "key 147076", "key 157150"],
        *["key 41080", "key 97862", "key 46706", "key 104355", "key 6646", "key 47002"],
        *["key 44581", "key 56107", "key 55439", "key 63089", "key 107017", "key 107157"],
        *["key 102051", "key 104072", "key 114909", "key 116420", "key 15934", "key 68863"],
        *["Aa", "BB"],
    ],
    "long": ["k" * 249, "k" * 250, "k" * 249 + "a", "k" * 249 + "K", "K" + "k" * 249],
    "long in the middle": [f"{'k' * 124}{number:02}{'k' * 124}" for number in [1, 2, 10, 12]],
    "long beyond Latin": ["\U0001f600" * 250, "\U0001f600" * 249 + "\U0001f603", "\u00e9" * 250],
}
"""By aspect: keys and names of namespaces, all different. Every storage must accept them.

Those with equal checksums are pairs with the same crc32, adler32 or FNV-1a. Those with equal
beginnings are pairs with the same first or last 32 bits of MD5, SHA-1 or SHA-256, the same first 32
bits of SHA-512, SHA3-256, BLAKE2b or BLAKE2s, the same BLAKE2b or BLAKE2s of 32 bits, or Java's
`hashCode`.
"""

HARD: list[str] = [
    *["a\0b", "a\0c", "a\0", "\0"],
    *["\ud800", "a\udc80", "a\udc81"],
    *["\U0001f600", "\ud83d\ude00", "\u00e9", "\udcc3\udca9", "\u00c3\u00a9"],
    *["k" * 251, "k" * 255 + "a", "k" * 255 + "b"],
    *["k" * 1_000, "k" * 1_200 + "a", "k" * 1_200 + "b"],
    *["k" * 9_999 + "a", "k" * 9_999 + "b", "k" * 70_000 + "a", "k" * 70_000 + "b"],
    *["\u00e9" * 600, "\U0001f600" * 2_000],
]
"""Keys that a database may be unable to store. Then `set` raises ValueError and stores nothing.

Some become the same name in UTF-16, or as a file name, as the character that they display.
"""

OWN: list[str] = [
    *["namespaces", "namespace", "errbot", "storage", "metadata", "meta", "__meta__", "_meta"],
    *["data", "sqlite_master", "sqlite_schema", "sqlite_sequence", "main", "temp"],
    *["information_schema", "pg_catalog", "public", "mysql", "sys", "performance_schema"],
    *["postgres", "template1", "dual", "admin", "local", "config", "test", "system", "default"],
    *["root", "index", "keys", "values", "key", "value", "count", "lock", "locks", "version"],
    *["schema", "migrations", "alembic_version", "_schema", "all", "None", "null", "0"],
    *["__init__", "__pycache__", "tmp", "backup", "journal"],
]
"""Names that a storage or its database may use itself, but that are ordinary namespaces."""


SEPARATORS: list[str] = [
    *[":", "/", ".", "-", "_", "|", " ", ",", ";", "::", "\t", "__", "#", "@", "\x1f"],
    *["=", "~", "\\", "\n", "->", "$", "[", "(", "{", "<", "+", "&", "!", "\u00e9"],
]
"""Separators that authors put between the name of a namespace and a key."""


def may_be_refused(key: str) -> bool:
    """Return whether a database may be unable to store a key."""
    return len(key) > 250 or re.search("[\0\ud800-\udfff]", key) is not None
