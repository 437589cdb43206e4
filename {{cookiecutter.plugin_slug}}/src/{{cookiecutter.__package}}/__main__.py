"""Commands for the data that a bot has stored: list, check, move, resign, show and delete.

They work on bytes: they load none of the bot's plugins, and unpickle nothing.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any, NoReturn

if not __package__:  # Run as a file: Python must look for the package in its parent folder.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import click
from errbot.storage import StoreException

from {{ cookiecutter.__package }} import moving, storages, values

LINE = 100
"""Characters that `show` prints of each value in a namespace."""
WHOLE = 10_000_000
"""Characters that `show` prints of a single value."""


class Commands(click.Group):
    """The commands. If a storage fails, they print its message instead of a traceback."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(context)
        except BrokenPipeError:  # such as `list | head`: click ends quietly
            raise
        except (OSError, StoreException, ValueError) as error:
            raise storages.CannotRun(str(error)) from None
        except KeyboardInterrupt:
            raise storages.CannotRun("Interrupted. Run the same command again.") from None


def note(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Keep the value of an option that may come before or after the command's name."""
    if value:
        context.meta[str(option.name)] = value


def settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command has."""
    for option in [
        click.option(
            "-c",
            "--config",
            type=click.Path(path_type=Path),
            callback=note,
            expose_value=False,
            help="The bot's config.py.  [default: ./config.py]",
        ),
        click.option(
            "--json",
            is_flag=True,
            callback=note,
            expose_value=False,
            help="Print one JSON document, for scripts.",
        ),
    ]:
        command = option(command)
    return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@settings
def main() -> None:
    """Look after the data that a bot keeps in {{ cookiecutter.plugin_name }}.

    The bot's config.py says where they are. No plugin of the bot is loaded, nothing is unpickled,
    and only `show` prints values.

    Exit status: 0 for success, 1 for a problem with the data (a bad value, a difference, a missing
    key), 2 if the command could not run.
    """
    for stream in [sys.stdout, sys.stderr]:  # A console may not support all characters of a key.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def storage_plugin() -> Any:
    """Start the storage plugin of the bot's config.py."""
    return storages.open_here(click.get_current_context().meta.get("config", Path("config.py")))


def finish(document: dict[str, Any], lines: Iterable[str], good: bool = True) -> None:
    """Print a command's result, as JSON if requested, and exit with status 1 if it is not good."""
    if click.get_current_context().meta.get("json"):
        click.echo(json.dumps(document, indent=2))
    else:
        for line in lines:
            click.echo(line)
    if not good:
        sys.exit(1)


def watch(label: str, items: Iterable[Any], length: int) -> AbstractContextManager[Any]:
    """Show a progress bar if the output is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext(items)
    return click.progressbar(items, length=length, label=shown(label), file=sys.stderr)


def table(heading: list[str], rows: Iterable[list[Any]]) -> Iterator[str]:
    """Lay out rows in columns, the first one aligned left and the others right."""
    lines = [heading, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def shown(name: str) -> str:
    """Return a name for a line of output. Quote it if it is empty or would be hard to see."""
    if not name.isprintable():
        return ascii(name)
    return name if name and name == name.strip() else repr(name)


def many(number: int, thing: str) -> str:
    """Return a number and its noun, such as "2 keys"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def number_of_signing_keys(plugin: Any) -> int:
    """Return how many signing keys STORAGE_CONFIG has."""
    with closing(plugin.open("core")) as storage:
        return len(storage._signing_keys)


def read_all(plugin: Any, namespace: str) -> Iterator[tuple[Any, str, bytes]]:
    """Yield the open storage, the key and the bytes of each value of a namespace."""
    with closing(plugin.open(namespace)) as storage, ExitStack() as stack:
        items = watch(namespace, values.items(storage), storage.len())
        for key, data in stack.enter_context(items):
            yield storage, key, data


@main.command("list")
@settings
def list_() -> None:
    """List the namespaces, and how many keys and bytes they have."""
    plugin = storage_plugin()
    found = []
    for namespace in sorted(plugin.namespaces()):
        sizes = [len(data) for _, _, data in read_all(plugin, namespace)]
        found.append(
            {
                "namespace": namespace,
                "keys": len(sizes),
                "bytes": sum(sizes),
                "largest": max(sizes, default=0),
            }
        )
    keys, size = (sum(entry[name] for entry in found) for name in ["keys", "bytes"])
    rows = [[shown(entry["namespace"]), *list(entry.values())[1:]] for entry in found]
    lines = [*table(["namespace", "keys", "bytes", "largest"], rows)] if rows else []
    lines.append(f"{many(len(found), 'namespace')}, {many(keys, 'key')}, {many(size, 'byte')}")
    finish({"namespaces": found, "keys": keys, "bytes": size}, lines)


@main.command()
@settings
def check() -> None:
    """Check that every value is intact and correctly signed.

    The status is 1 if a bot would refuse a value. Values are not unpickled, so a value whose class
    is missing counts as good. Also reports which keys of signing_key are still needed: remove an
    old key when it has signed none of the values.
    """
    plugin = storage_plugin()
    found, bad = [], []
    number_of_keys = number_of_signing_keys(plugin)
    signed: dict[int, int] = {}
    for namespace in sorted(plugin.namespaces()):
        counts = dict.fromkeys(COLUMNS, 0)
        for storage, key, data in read_all(plugin, namespace):
            value = values.examine(storage, key, data)
            signed[value.number] = signed.get(value.number, 0) + 1
            counts[column_of(value, number_of_keys)] += 1
            if not values.is_sound(storage, value):
                why = values.explain(storage, value)
                bad.append({"namespace": namespace, "key": key, "why": why})
        found.append({"namespace": namespace, "keys": sum(counts.values()), **counts})
    total = {name: sum(entry[name] for entry in found) for name in ["keys", *COLUMNS]}
    keys = [
        {"number": number, "values": signed.get(number, 0), "newest": number == number_of_keys}
        for number in range(1, number_of_keys + 1)
    ]
    document = {"namespaces": found, "total": total, "bad": bad, "signing_keys": keys}
    finish({**document, "good": not bad}, check_lines(found, total, bad, keys), not bad)


COLUMNS = ["newest", "older", values.UNSIGNED, values.REFUSED, "broken"]


def column_of(value: values.Value, number_of_keys: int) -> str:
    """Return the column of check's table that counts a value."""
    if value.state == values.BROKEN:
        return "broken"
    return value.state or ("newest" if value.number == number_of_keys else "older")


def check_lines(
    found: list[Any], total: dict[str, int], bad: list[Any], keys: list[Any]
) -> Iterator[str]:
    """Yield the lines that `check` prints."""
    rows = [[shown(entry["namespace"]), *list(entry.values())[1:]] for entry in found]
    rows.append(["total", *total.values()])
    yield from table(["namespace", "keys", *COLUMNS], rows)
    for entry in bad:
        yield f"{shown(entry['namespace'])}, {shown(entry['key'])}: {entry['why']}"
    for key in keys:
        yield f"signing_key {key['number']} of {len(keys)}: {use_of(key)}"
    if not keys:
        yield "STORAGE_CONFIG has no signing_key: values are not signed."
    yield many(len(bad), "bad value") if bad else many(total["keys"], "value") + ": all good"


def use_of(key: dict[str, Any]) -> str:
    """Return whether a signing key is still needed, in words."""
    if key["newest"]:
        return f"the newest, has signed {many(key['values'], 'value')}"
    if key["values"]:
        return f"needed for {many(key['values'], 'value')}, until you run `resign`"
    return "not needed: remove it, unless a backup needs it"


@main.command()
@settings
@click.argument("old_config", type=click.Path(path_type=Path))
@click.option("--only", metavar="NS", multiple=True, help="Only this namespace. May be repeated.")
@click.option("--dry-run", is_flag=True, help="Report what would be done, and write nothing.")
@click.option("--replace", is_flag=True, help="Replace the contents of these namespaces here.")
def move(old_config: Path, only: tuple[str, ...], dry_run: bool, replace: bool) -> None:
    """Copy everything from the storage of OLD_CONFIG to this one.

    OLD_CONFIG is the config.py with the old STORAGE: Errbot's Shelf, a storage plugin made with the
    same template as this one, or any other. Stop the bot first. The old storage does not change.
    At the end, all values are compared byte by byte. Values that cannot be read are skipped and
    reported, and the status is 1.

    After an interruption, run the same command again. It copies only what is missing. If a
    namespace has other values here, nothing is written without --replace.

    Shelf and storages made with the same template are copied as bytes. Any other storage unpickles
    each value, so the classes of the values must be importable. If a namespace is not found there,
    name it with --only.
    """
    target, source = storage_plugin(), storages.open_source(old_config)
    names = chosen(source, only)
    results = [moving.find_conflicts(source, target, name) for name in names]
    results = [result for result in results if result.keys or result.problems]
    blocked = not replace and any(result.conflicts for result in results)
    if dry_run:
        for result in results:
            if not result.problems:
                moving.try_out(source, target, result, watch)
    elif not blocked:
        names = [result.namespace for result in results]
        results = [moving.copy(source, target, name, replace, watch) for name in names]
    done = dry_run or all(result.is_good for result in results)
    good = done and not blocked and not any(result.problems for result in results)
    found = [result.to_json(compared=not dry_run) for result in results]
    lines = move_lines(results, dry_run, blocked, replace)
    finish({"namespaces": found, "good": good}, lines, good)


def chosen(source: Any, only: tuple[str, ...]) -> list[str]:
    """Return the namespaces to move."""
    names = source.namespaces()
    unknown = [name for name in only if name not in names]
    if unknown and not isinstance(source, storages.Other):
        known = ", ".join(shown(name) for name in names) or "none"
        raise storages.CannotRun(
            f"The old storage has no namespace {shown(unknown[0])}. It has: {known}."
        )
    return list(dict.fromkeys(only)) if only else list(names)


def move_lines(
    results: list[moving.Result], dry_run: bool, blocked: bool, replace: bool
) -> Iterator[str]:
    """Yield the lines that `move` prints."""
    rows = [[shown(one.namespace), one.keys, one.bytes, one.equal] for one in results]
    if rows and not blocked:
        yield from table(["namespace", "keys", "bytes", "equal"], rows)
    for one in results:
        yield from problem_lines(one)
        if one.conflicts:
            number = many(len(one.conflicts), "key")
            some = ", ".join(map(shown, one.conflicts[:5]))
            some += ", ..." if len(one.conflicts) > 5 else ""
            end = "use --replace to replace them" if not replace else "they will be replaced"
            yield f"{shown(one.namespace)}: {number} with other values here ({some}): {end}"
    keys, equal = sum(one.keys for one in results), sum(one.equal for one in results)
    start = f"{many(len(results), 'namespace')}, {many(keys, 'key')}"
    if dry_run:
        yield f"{start}: {equal} already here, nothing was written"
    elif blocked:
        yield f"{start}: nothing was written"
    else:
        is_good = all(one.is_good for one in results)
        yield f"{start}: " + ("all equal" if is_good else f"NOT all equal, only {equal}")


def problem_lines(result: moving.Result) -> Iterator[str]:
    """Yield a line for each problem in a namespace."""
    for key, why in result.problems:
        place = [result.namespace] if key is None else [result.namespace, key]
        yield f"{', '.join(map(shown, place))}: {why}"


@main.command()
@settings
@click.option(
    "--accept-unsigned",
    is_flag=True,
    help="Sign unsigned values, too. This approves whatever is stored, even values that an attacker"
    " has planted in the database.",
)
def resign(accept_unsigned: bool) -> None:
    """Sign every value with the newest key of signing_key.

    The bot may run meanwhile, if its config.py has the same keys. Nothing that it sets is lost.
    Afterwards `check` says which keys are no longer needed. A value that is refused does not
    change, and the status is 1.
    """
    plugin = storage_plugin()
    if not number_of_signing_keys(plugin):
        raise storages.CannotRun("STORAGE_CONFIG has no signing_key to sign with.")
    counts = {"signed": 0, "already signed": 0}
    bad = []
    for namespace in sorted(plugin.namespaces()):
        for storage, key, _ in read_all(plugin, namespace):
            try:
                done, why = resign_one(storage, key, accept_unsigned)
            except KeyError:  # removed meanwhile
                continue
            if why:
                bad.append({"namespace": namespace, "key": key, "why": why})
            else:
                counts["signed" if done else "already signed"] += 1
    lines = [f"{shown(entry['namespace'])}, {shown(entry['key'])}: {entry['why']}" for entry in bad]
    lines.append(
        f"{many(counts['signed'], 'value')} signed with the newest key,"
        f" {counts['already signed']} already were, {len(bad)} left unchanged"
    )
    document = {"signed": counts["signed"], "already_signed": counts["already signed"]}
    finish({**document, "bad": bad, "good": not bad}, lines, not bad)


def resign_one(storage: Any, key: str, accept_unsigned: bool) -> tuple[bool, str]:
    """Sign a value. Returns whether it was changed and, if it is bad, why. Raises KeyError."""
    while True:
        data = storage.read(key)
        value = values.examine(storage, key, data)
        if value.state and not (accept_unsigned and value.state == values.UNSIGNED):
            return False, values.explain(storage, value)
        if value.number == len(storage._signing_keys):
            return False, ""
        # If the bot has changed it meanwhile, start again.
        if storage.swap(key, data, values.sign(storage, key, value.pickled)):
            return True, ""


@main.command()
@settings
@click.argument("namespace", metavar="NS")
@click.argument("key", required=False)
def show(namespace: str, key: str | None) -> None:
    """Show a value as text, or the start of each one in a namespace.

    No class is loaded: an instance is shown as the name of its class and its content. A value that
    a bot would refuse can be shown, too.
    """
    plugin = storage_plugin()
    with closing(plugin.open(namespace)) as storage:
        keys = [key] if key is not None else sorted(storage.keys())
        found = []
        for name in keys:
            try:
                data = storage.read(name)
            except KeyError:
                if key is None:  # removed meanwhile
                    continue
                missing(namespace, key)
            value = values.examine(storage, name, data)
            state = "" if values.is_sound(storage, value) else values.explain(storage, value)
            text = value_text(value.pickled, LINE if key is None else WHOLE)
            found.append({"key": name, "value": text, "bytes": len(data), "bad": state})
    if not found:
        missing(namespace)
    lines = [text_line(entry, key is None) for entry in found]
    finish({"namespace": namespace, "values": found}, lines)


def value_text(pickled: bytes, limit: int) -> str:
    """Return a pickle as text, or the bytes if it is not a pickle."""
    try:
        return values.describe(pickled, limit)
    except ValueError:
        return repr(pickled[:limit])


def text_line(entry: dict[str, Any], with_key: bool) -> str:
    """Return the line that shows a value."""
    start = f"{shown(entry['key'])}: " if with_key else ""
    return f"{start}{entry['value']}" + (f"  ({entry['bad']})" if entry["bad"] else "")


def missing(namespace: str, key: str | None = None) -> NoReturn:
    """Exit with status 1, because there is no such key."""
    what = "no key" if key is None else f"no key {shown(key)}"
    raise click.ClickException(f"There is {what} in the namespace {shown(namespace)}.")


@main.command()
@settings
@click.argument("namespace", metavar="NS")
@click.argument("key", required=False)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def delete(namespace: str, key: str | None, yes: bool) -> None:
    """Remove a key or a whole namespace, without reading values."""
    plugin = storage_plugin()
    with closing(plugin.open(namespace)) as storage:
        keys = [name for name in storage.keys() if key in (None, name)]
        if not keys:
            missing(namespace, key)
        what = many(len(keys), "key") if key is None else f"the key {shown(key)}"
        if not yes:
            click.confirm(f"Delete {what} of {shown(namespace)}?", abort=True, err=True)
        for name in keys:
            try:
                storage.remove(name)
            except KeyError:
                if key is not None:
                    missing(namespace, key)
    finish({"namespace": namespace, "deleted": keys}, [f"Deleted {what} of {shown(namespace)}."])


if __name__ == "__main__":
    try:
        main(prog_name="python -m {{ cookiecutter.__package }}")
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # Already reported. Without this, Python would fail again when it exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
