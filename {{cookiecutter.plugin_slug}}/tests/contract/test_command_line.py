"""`errbot --storage-get`, `--storage-set` and `--storage-merge`, as an administrator uses them."""

import ast
import sys

import pytest

from contract.support.database import Database, process_command, reason, run_command
from contract.support.outcomes import contents
from contract.support.sample_values import MARK


def errbot(database: Database, option: str, name: str, given: str = "") -> str:
    """Run `errbot OPTION NAMESPACE` with this input, and return the output."""
    database.note(name, *(ast.literal_eval(given) if given else ()))
    command = [sys.executable, "-m", "errbot.cli", "-c", str(database.config_file), option]
    done = run_command([*command, database.namespace(name)], given, database.config_file.parent)
    if done.returncode:
        # Errbot hides the error of a storage that does not open behind an error of its own.
        probe = run_command(process_command(database, name, "read"))
        failed = probe if probe.returncode else done
        pytest.fail(f"`errbot {option}` fails with {reason(failed.stderr)}")
    return done.stdout.strip()


def test_storage_get_of_a_new_namespace_prints_an_empty_dict(database: Database) -> None:
    """`errbot --storage-get` of a new namespace prints an empty dict and changes nothing."""
    other = database.open("other")
    other.set("key", MARK)
    assert errbot(database, "--storage-get", "namespace") == "{}", (
        "`errbot --storage-get` of a new namespace prints something, or its storage does not open."
    )
    assert contents(other) == {"key": MARK}, (
        "`errbot --storage-get` of a new namespace changed another one that the bot has open."
    )
    other.set("key", [MARK])
    assert other.get("key") == [MARK], (
        "After `errbot --storage-get`, the bot cannot store anything."
    )


@pytest.mark.usefixtures("other_processes")
def test_storage_set_get_and_merge_work_while_the_bot_runs(database: Database) -> None:
    """`errbot --storage-set`, `-get` and `-merge` work while the bot runs."""
    storage = database.open("namespace")
    storage.set("old", MARK)
    given = {"key": {"list": [MARK, None], "tuple": (1, 2)}, "größe": 1}
    errbot(database, "--storage-set", "namespace", repr(given))
    assert contents(storage) == given, (
        "`errbot --storage-set` did not replace the contents of the namespace."
    )
    printed = errbot(database, "--storage-get", "namespace")
    assert ast.literal_eval(printed) == given, (
        "`errbot --storage-get` does not print the stored data."
    )
    errbot(
        database, "--storage-merge", "namespace", repr({"key": {"list": ["more"]}, "new": {"a": 1}})
    )
    assert contents(storage) == {
        "key": {"list": [MARK, None, "more"], "tuple": (1, 2)},
        "größe": 1,
        "new": {"a": 1},
    }, "`errbot --storage-merge` did not merge into the contents of the namespace."
