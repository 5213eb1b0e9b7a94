"""apply, create, replace, delete, get: objects in and out of the datastore, each command one transaction."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli import options, render, store, terminal
from cli.changes import Change, Outcome, Stored, Verb, plan
from cli.kinds import parse_target, reference
from cli.removal import Removal, removal
from core import clock, manifest, source
from core.errors import Conflict, Invalid, NotFound, Problem
from core.manifest import Located
from core.names import Key, Kind
from core.resources import IPPool, Resource
from datastore.ipam.listing.holders import KINDS, Holdings

ATTEMPTS: Final = 4
"""How often `apply` and `delete` read again when somebody else wrote in between."""


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.command("apply")(apply)
    app.command("create")(create)
    app.command("replace")(replace)
    app.command("delete")(delete)
    app.command("get")(get)


def apply(
    filename: options.FilesOption,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Create or change every object of the manifests: all of them in one transaction, or none."""
    _write(Verb.APPLY, filename, output, datastore)


def create(
    filename: options.FilesOption,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Create every object of the manifests; refused as a whole when one exists already."""
    _write(Verb.CREATE, filename, output, datastore)


def replace(
    filename: options.FilesOption,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Change every object of the manifests; refused as a whole when one does not exist."""
    _write(Verb.REPLACE, filename, output, datastore)


def delete(
    target: Annotated[str | None, typer.Argument(metavar="KIND[/NAME]", help="What to delete.")] = None,
    name: Annotated[str | None, typer.Argument(help="Its name, when KIND stands alone.")] = None,
    filename: Annotated[
        list[str] | None, typer.Option("--filename", "-f", help="Delete the objects that these manifests name.")
    ] = None,
    namespace: options.NamespaceOption = None,
    ignore_not_found: Annotated[
        bool, typer.Option("--ignore-not-found", help="An object that is not there is no error.")
    ] = False,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Delete one object, or all that the manifests name, in one transaction; a pool goes when nobody uses it."""
    if (target is None) == (not filename):
        raise Invalid([Problem(why="name one object (KIND NAME) or give manifests (-f), and not both")])
    found = load(filename or ())
    if filename:
        keys = [each.resource.key for each in found]
    else:
        assert target is not None
        kind, name, namespace = parse_target(target, name, namespace)
        if name is None:
            raise Invalid([Problem(why="the name of the object to delete is missing", what=kind.name)])
        keys = [Key(kind, (namespace or manifest.DEFAULT_NAMESPACE) if kind.namespaced else "", name)]
    with told_where(found):
        revision, gone = asyncio.run(_delete(datastore, keys, ignore_not_found))
    _report(gone.outcomes, revision, output)
    for note in gone.notes:
        terminal.tell(note)


def get(
    target: Annotated[str, typer.Argument(metavar="KIND[/NAME]", help="A kind by any of its names; see docs/cli.md.")],
    name: Annotated[str | None, typer.Argument(help="One object's name.")] = None,
    namespace: options.NamespaceOption = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Of every namespace.")] = False,
    output: options.GetOption = options.GetFormat.TABLE,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Show objects, as tables or as manifests that `apply` takes back."""
    kind, name, namespace = parse_target(target, name, namespace)
    if kind.namespaced and not everywhere:
        namespace = namespace or manifest.DEFAULT_NAMESPACE
    if everywhere and (name is not None or namespace is not None):
        raise Invalid([Problem(why="--all-namespaces goes with neither a name nor a namespace")])
    found = asyncio.run(_get(datastore, kind, name, namespace))
    _print(kind, found, one=name is not None, everywhere=everywhere, output=output)


def _print(kind: Kind, found: list[Stored], *, one: bool, everywhere: bool, output: options.GetFormat) -> None:
    match output:
        case options.GetFormat.YAML:
            terminal.show_lines(manifest.to_yaml([render.manifests(found, one=one)]).splitlines())
        case options.GetFormat.JSON:
            terminal.show_json(render.manifests(found, one=one))
        case options.GetFormat.NAME:
            terminal.show_lines([reference(each.resource.key) for each in found])
        case options.GetFormat.TABLE | options.GetFormat.WIDE:
            if not found:
                terminal.tell(f"there is no {kind.name} here")
                return
            wide = output is options.GetFormat.WIDE
            now = datetime.now(UTC)
            terminal.show(render.objects(kind, found, wide=wide, namespaces=everywhere, now=now))


def _write(verb: Verb, files: Sequence[str], output: options.ResultFormat, target: str) -> None:
    found = load(files)
    with told_where(found):
        revision, changes = asyncio.run(_transact(verb, [each.resource for each in found], target))
    _report([(change.key, change.outcome) for change in changes], revision, output)


def load(files: Sequence[str]) -> list[Located]:
    """The resources of files, folders and stdin (`-`); `Invalid` with the problems of all of them.

    A file without any is a problem too: behind it stands a program that failed and whose output was to be applied.
    """
    resources: list[Located] = []
    problems: list[Problem] = []
    for file in files:
        try:
            if file == "-":
                found = manifest.locate(source.read_stdin("stdin"), "stdin")
            else:
                found = manifest.locate_path(Path(file))
        except Invalid as error:
            problems += error.problems
            continue
        resources += found
        if not found:
            problems.append(Problem(why=f"no manifest in {'stdin' if file == '-' else file}"))
    if problems:
        raise Invalid(problems)
    return resources


@contextmanager
def told_where(found: Sequence[Located]) -> Iterator[None]:
    """What is refused in here for an object that was read from a file is refused with the file and the line."""
    places: dict[str, str] = {}
    for each in found:
        for name in (manifest.named(each.resource.key), str(each.resource.key)):
            places.setdefault(name, each.where)
    try:
        yield
    except Invalid as error:
        problems = error.problems
        raise Invalid(
            [dataclasses.replace(each, where=each.where or places.get(each.what, "")) for each in problems]
        ) from None
    except Conflict as error:
        where = places.get(error.what)
        raise Conflict(f"{where}: {error.what}" if where else error.what, error.expected, error.actual) from None


async def _transact(verb: Verb, resources: Sequence[Resource], target: str) -> tuple[int, list[Change]]:
    """Read, plan, and write in one transaction; read again when somebody else wrote in between."""
    async with store.opened(target) as opened:
        for attempt in range(1, ATTEMPTS + 1):
            state = await store.read(opened)
            changes = plan(verb, resources, state.objects, state.revisions, datetime.now(UTC))
            try:
                return await store.write(opened, state, changes), changes
            except Conflict:
                if attempt == ATTEMPTS:
                    raise
    raise AssertionError("the last attempt returns or raises")


async def _delete(target: str, keys: Sequence[Key], ignore_not_found: bool) -> tuple[int, Removal]:
    kinds = {key.kind for key in keys}
    async with store.opened(target) as opened:
        for attempt in range(1, ATTEMPTS + 1):
            listing = await opened.list(kinds | KINDS if IPPool.KIND in kinds else kinds)
            revisions = {entry.key: entry.revision for entry in listing.entries}
            missing = [key for key in keys if key not in revisions]
            if missing and not ignore_not_found:
                raise Invalid([Problem(what=str(key), why="there is none") for key in missing])
            there = [key for key in keys if key in revisions]
            gone = removal(there, revisions, Holdings(listing), clock.now())
            if not gone.operations:
                return listing.revision, gone
            try:
                return await opened.txn(gone.operations, gone.guards), gone
            except Conflict:
                if attempt == ATTEMPTS:
                    raise
    raise AssertionError("the last attempt returns or raises")


async def _get(target: str, kind: Kind, name: str | None, namespace: str | None) -> list[Stored]:
    async with store.opened(target) as opened:
        state = await store.read(opened, {kind})

    def meant(key: Key) -> bool:
        return (namespace is None or key.namespace == namespace) and (name is None or key.name == name)

    unreadable = [why for key, why in state.unreadable.items() if meant(key)]
    found = [stored for key, stored in state.objects.items() if meant(key)]
    if name is not None and not found:
        raise NotFound(unreadable[0] if unreadable else f"{Key(kind, namespace or '', name)}: there is none")
    for why in unreadable:
        terminal.tell(f"left out, because it cannot be read: {why}")
    return found


def _report(outcomes: Sequence[tuple[Key, Outcome]], revision: int, output: options.ResultFormat) -> None:
    if output is options.ResultFormat.JSON:
        terminal.show_json({"revision": revision, "objects": [_document(key, outcome) for key, outcome in outcomes]})
        return
    terminal.show_lines([*(f"{reference(key)} {outcome}" for key, outcome in outcomes), f"revision {revision}"])


def _document(key: Key, outcome: Outcome) -> Mapping[str, Any]:
    head = {"apiVersion": key.kind.api_version, "kind": key.kind.name, "name": key.name}
    return head | ({"namespace": key.namespace} if key.kind.namespaced else {}) | {"outcome": outcome.value}
