"""policy test: who may talk to whom, asserted in files and checked offline: no datastore, no root, no network."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, terminal
from cli.render import Table
from core.errors import Invalid, Problem

if TYPE_CHECKING:
    from core.documents import Document
    from core.resources import Resource
    from policy.whatif.assertions import Checked, Failure
    from policy.whatif.suite import PolicyTest

policy = typer.Typer(help="Policies, before they are applied.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.add_typer(policy, name="policy")


@dataclass(frozen=True, slots=True)
class Result:
    """One test of one file."""

    where: str
    name: str
    checked: Sequence[Checked]

    @property
    def kept(self) -> bool:
        """Whether every assertion of it holds."""
        return all(each.kept for each in self.checked)


@policy.callback()
def policies() -> None:
    """Policies, before they are applied."""


@policy.command("test")
def assertions(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Policy tests; of a folder, all in it.")],
    output: options.ResultOption = options.ResultFormat.TEXT,
    junit: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write the results there as JUnit XML too.")
    ] = None,
) -> None:
    """Check assertions about who may talk to whom; exit 1 when one does not hold."""
    results = [result(file, document) for file, document in found_in(files)]
    if junit is not None:
        _write(junit, junit_of(results))
    if output is options.ResultFormat.JSON:
        terminal.show_json({"kept": all(each.kept for each in results), "tests": [_document(each) for each in results]})
    else:
        terminal.show(_table(results))
        terminal.show_lines(list(_lines(results)))
    if not all(each.kept for each in results):
        raise typer.Exit(1)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Invalid([Problem(where=str(path), why=f"cannot be written: {error.strerror}")]) from None


def found_in(files: Sequence[str]) -> list[tuple[Path, Document]]:
    """The tests in the files: every document of a file that is named, those of the kind in a folder."""
    from core import documents, source
    from core.manifest import SUFFIXES
    from policy.whatif.suite import KIND

    found: list[tuple[Path, Document]] = []
    problems: list[Problem] = []
    for name in files:
        path = Path(name)
        whole = path.is_dir()
        mine: list[tuple[Path, Document]] = []
        for file in sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES) if whole else [path]:
            read, wrong = documents.read(source.read_file(file), str(file))
            problems += wrong
            mine += [(file, each) for each in read if not whole or _kind(each) == KIND]
        if not mine:
            problems.append(Problem(where=name, why=f"no {KIND} in it"))
        found += mine
    if problems:
        raise Invalid(problems)
    return found


def _kind(document: Document) -> object:
    return document.value.get("kind") if isinstance(document.value, dict) else None


def result(file: Path, document: Document) -> Result:
    """One test, checked. Raises `Invalid` with the problems of the test and of its manifests."""
    from policy.whatif.assertions import check
    from policy.whatif.suite import cluster, read

    test, problems = read(document.value)
    if test is None or problems:
        raise Invalid(_placed(problems, document))
    snapshot, problems = cluster(test, manifests(test, file, document))
    if problems:
        raise Invalid(_placed(problems, document))
    checked, problems = check(test, snapshot)
    if problems:
        raise Invalid(_placed(problems, document))
    return Result(document.where, test.metadata.name or file.stem, checked)


def _placed(problems: Iterable[Problem], document: Document) -> list[Problem]:
    return [replace(each, where=each.where or document.at(each.path)) for each in problems]


def manifests(test: PolicyTest, file: Path, document: Document) -> list[Resource]:
    """The resources that the test's manifests hold. Raises `Invalid`, also when one of them means no file."""
    from core.manifest import locate_path

    found: dict[Path, None] = {}
    problems: list[Problem] = []
    for index, pattern in enumerate(test.manifests):
        paths = sorted(glob.glob(str(file.parent / pattern), recursive=True))
        if not paths:
            problems.append(
                Problem(where=document.at("manifests"), path=f"manifests[{index}]", why="there is no such file")
            )
        found |= dict.fromkeys(map(Path, paths))
    if problems:
        raise Invalid(problems)
    return [each.resource for path in found if path.resolve() != file.resolve() for each in locate_path(path)]


def _table(results: Sequence[Result]) -> Table:
    return Table(
        ("TEST", "FROM", "TO", "TRAFFIC", "VERDICT", "PAIRS", "RESULT"),
        tuple(
            (
                each.name,
                ", ".join(one.assertion.sources),
                ", ".join(one.assertion.destinations),
                ", ".join(one.assertion.ports) or "all traffic",
                one.assertion.verdict.value,
                str(one.pairs),
                "ok" if one.kept else "FAILED",
            )
            for each in results
            for one in each.checked
        ),
    )


def _lines(results: Sequence[Result]) -> Iterator[str]:
    for each in results:
        for index, one in enumerate(each.checked):
            for failure in one.failures:
                yield f"{each.where}: assert[{index}]: {sentence(failure, one)}"
    total = [one for each in results for one in each.checked]
    failed = sum(not one.kept for one in total)
    count = f"{len(total)} assertion{'' if len(total) == 1 else 's'}"
    yield f"{count}, {failed} failed" if failed else f"{count}, all kept"


def sentence(failure: Failure, checked: Checked) -> str:
    """What fails, and what decided it."""
    from policy.whatif.plan import cause
    from policy.whatif.traffic import summary

    family = f" in IPv{failure.only}" if failure.only else ""
    said = f"{failure.source} -> {failure.destination} {summary(failure.traffic)}{family}"
    decided = f"{failure.decision.verdict} by {cause(failure.decision.reason)}"
    if failure.because:
        return f"{said}: {decided}, not by {failure.because}"
    return f"{said}: {decided}, not {checked.assertion.verdict.value}"


def _document(result: Result) -> dict[str, Any]:
    from cli import reasons

    return {
        "where": result.where,
        "name": result.name,
        "kept": result.kept,
        "assertions": [
            {
                "name": one.assertion.name,
                "from": one.assertion.sources,
                "to": one.assertion.destinations,
                "ports": one.assertion.ports,
                "verdict": one.assertion.verdict.value,
                "pairs": one.pairs,
                "kept": one.kept,
                "failures": [
                    {
                        "text": sentence(failure, one),
                        "from": failure.source,
                        "to": failure.destination,
                        "traffic": [each.document() for each in failure.traffic],
                        "onlyFamily": failure.only,
                        "decision": reasons.document(failure.decision),
                    }
                    for failure in one.failures
                ],
            }
            for one in result.checked
        ],
    }


def junit_of(results: Sequence[Result]) -> str:
    """The results as JUnit XML, which CI systems show."""
    from xml.etree import ElementTree

    root = ElementTree.Element("testsuites")
    for each in results:
        failed = sum(not one.kept for one in each.checked)
        suite = ElementTree.SubElement(
            root, "testsuite", name=each.name, tests=str(len(each.checked)), failures=str(failed)
        )
        for index, one in enumerate(each.checked):
            name = one.assertion.name or f"assert[{index}]"
            case = ElementTree.SubElement(suite, "testcase", classname=each.where, name=name)
            if not one.kept:
                said = [sentence(failure, one) for failure in one.failures]
                ElementTree.SubElement(case, "failure", message=said[0]).text = "\n".join(said)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
