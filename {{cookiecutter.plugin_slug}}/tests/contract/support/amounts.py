"""How much the tests do: thousands of keys, or hundreds with --quick."""

quick = False
"""Whether --quick is given. It is set before the tests are imported."""


def many(full: int, quickly: int) -> int:
    """Return a number of keys, namespaces or rounds: the full number, or the one for --quick."""
    return quickly if quick else full
