"""lint: what in policy is not, or may not be, as it was meant; in manifests, or in the datastore."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, terminal
from cli.explain import snapshot_of
from cli.kinds import reference
from cli.objects import load
from core.names import Key
from core.snapshot import Snapshot

if TYPE_CHECKING:
    from policy.whatif.findings import Finding


def register(app: typer.Typer) -> None:
    """Add this family's command."""
    app.command("lint")(lint)


def lint(
    filename: Annotated[
        list[str] | None,
        typer.Option("--filename", "-f", help="Look at these manifests alone, offline; else at the datastore."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 at an error or a warning.")] = False,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Find rules that never decide, policies that select nothing, tiers that are not there, and the like."""
    places: dict[Key, str] = {}
    if filename:
        found = load(filename)
        places = {each.resource.key: each.where for each in found}
        snapshot = Snapshot().apply(0, [(each.resource.key, each.resource) for each in found])
    else:
        snapshot = asyncio.run(snapshot_of(datastore))
        for why in snapshot.problems.values():
            terminal.tell(f"left out, because it cannot be read: {why}")
    from policy.whatif.findings import Severity
    from policy.whatif.lint import lint as linted

    findings = linted(snapshot)
    if output is options.ResultFormat.JSON:
        terminal.show_json({"findings": [document(each, places) for each in findings]})
    else:
        terminal.show_lines([*(line(each, places) for each in findings), summary(findings)])
    if strict and any(each.severity is not Severity.INFO for each in findings):
        raise typer.Exit(1)


def line(finding: Finding, places: Mapping[Key, str]) -> str:
    """One finding as people read it."""
    where = [places.get(finding.key, ""), reference(finding.key), finding.path]
    said = ": ".join(part for part in where if part)
    return f"{finding.severity} {finding.code}: {said}: {finding.what}; {finding.remedy}"


def summary(findings: Sequence[Finding]) -> str:
    """How many of each severity."""
    from policy.whatif.findings import Severity

    counts = [(sum(each.severity is severity for each in findings), severity) for severity in Severity]
    said = (
        f"{count} {severity}{'' if count == 1 or severity is Severity.INFO else 's'}"
        for count, severity in counts
        if count
    )
    return ", ".join(said) or "nothing found"


def document(finding: Finding, places: Mapping[Key, str]) -> dict[str, Any]:
    """One finding for programs."""
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "object": reference(finding.key),
        "where": places.get(finding.key, ""),
        "path": finding.path,
        "what": finding.what,
        "remedy": finding.remedy,
    }
