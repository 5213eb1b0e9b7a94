"""Whether policy keeps what a test asserts, for all the traffic that the assertion is about, and if not, why.

assertion ── ends ──> pairs ── both ends' rows ──> regions ──> those that it is about ──> kept, or Failure
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import TypeAlias

from core.addr import Address
from core.errors import Problem
from core.names import Key
from core.resources import WorkloadEndpoint
from core.snapshot import Snapshot
from policy.compile import Compiled, compile
from policy.model import Cause, Decision, Reason, Verdict
from policy.whatif.rows import Book, Decisions, Row, regions
from policy.whatif.suite import EVERYTHING, Asked, Assertion, PolicyTest, Wanted, asked, in_family
from policy.whatif.traffic import REST, Traffic, joined, touching

End: TypeAlias = Key | Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A pair, in the names that people use, and traffic of it that is not as asserted.

    `decision` is what decided; `because` is what should have decided, where only that differs. `only` is the family of
    which it is said, where the other one is as asserted, or fails otherwise.
    """

    source: str
    destination: str
    traffic: tuple[Traffic, ...]
    decision: Decision
    because: str = ""
    only: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One assertion: how many pairs it was about, and those that fail it."""

    assertion: Assertion
    pairs: int
    failures: tuple[Failure, ...]

    @property
    def kept(self) -> bool:
        """Whether all is as asserted."""
        return not self.failures


def check(test: PolicyTest, snapshot: Snapshot) -> tuple[list[Checked], list[Problem]]:
    """Every assertion of the test on its cluster (`policy.whatif.suite.cluster`); and ends that mean nothing there."""
    ends = _Ends(snapshot)
    problems: list[Problem] = []
    pairs: list[list[tuple[End, End]]] = []
    for index, assertion in enumerate(test.assert_):
        sources, lost = ends.all_of(assertion.sources, f"assert[{index}].from")
        destinations, missed = ends.all_of(assertion.destinations, f"assert[{index}].to")
        problems += [*lost, *missed]
        found = [(one, other) for one in sources for other in destinations if _policed(one, other)]
        pairs.append(found)
        if not found and not lost and not missed:
            problems.append(
                Problem(path=f"assert[{index}]", why="is about no two ends, one of them a pod: nothing would be tested")
            )
    local = {end for each in pairs for pair in each for end in pair if isinstance(end, Key)}
    judge = _Judge(compile(snapshot, local), ends, test.families)
    checked = []
    for index, (assertion, found) in enumerate(zip(test.assert_, pairs, strict=True)):
        failures = []
        for one, other in found:
            families = judge.families(one, other)
            if not families:
                why = f"{ends.name(one)} and {ends.name(other)} have no addresses of one family that is tested"
                problems.append(Problem(path=f"assert[{index}]", why=why))
            failures += _joined([judge.failures(assertion, one, other, family) for family in families], families)
        checked.append(Checked(assertion=assertion, pairs=len(found), failures=tuple(failures)))
    return checked, problems


def _joined(each_family: Sequence[Sequence[Failure]], families: Sequence[int]) -> list[Failure]:
    """What fails in both families alike once, and what fails in one with its family."""
    found: dict[Failure, list[int]] = defaultdict(list)
    for family, failures in zip(families, each_family, strict=True):
        for failure in failures:
            found[failure].append(family)
    return [
        failure if len(among) == len(families) else replace(failure, only=among[0]) for failure, among in found.items()
    ]


def _policed(one: End, other: End) -> bool:
    """Policy is asked at pods only, and never about what a pod sends to itself."""
    return one != other and (isinstance(one, Key) or isinstance(other, Key))


class _Ends:
    """What the ends of assertions mean."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._endpoints = snapshot.of(WorkloadEndpoint)
        self._names = {key: f"{key.namespace}/{each.spec.pod or key.name}" for key, each in self._endpoints.items()}
        self._owners = {address: key for key, each in self._endpoints.items() for address in each.spec.addresses}

    def all_of(self, texts: Sequence[str], path: str) -> tuple[list[End], list[Problem]]:
        """The ends that the texts mean, each once."""
        found: dict[End, None] = {}
        problems = []
        for text in texts:
            meant = list(self._meant(text))
            found |= dict.fromkeys(meant)
            if not meant:
                problems.append(Problem(path=path, why=f"{text!r} is no address, and there is no such pod"))
        return list(found), problems

    def _meant(self, text: str) -> Iterator[End]:
        if "/" in text:
            yield from (key for key, name in sorted(self._names.items()) if fnmatchcase(name, text))
            return
        try:
            address = ip_address(text)
        except ValueError:
            return
        yield self._owners.get(address, address)

    def name(self, end: End) -> str:
        """`NAMESPACE/POD`, or the address."""
        return self._names[end] if isinstance(end, Key) else str(end)


class _Judge:
    """Asks the tables about pairs; pairs whose rows are the same are asked once."""

    def __init__(self, compiled: Compiled, ends: _Ends, families: Sequence[int]) -> None:
        self._compiled = compiled
        self._book = Book(compiled.tables)
        self._ends = ends
        self._families = families
        self._wrong: dict[tuple[int, int, int, int], list[tuple[tuple[Traffic, ...], Decision, str]]] = {}

    def families(self, one: End, other: End) -> list[int]:
        """Those that both ends have and that are tested; of an address, its own."""
        shared = {each.version for each in self._addresses(one)} & {each.version for each in self._addresses(other)}
        given = {each.version for each in (one, other) if not isinstance(each, Key)}
        return sorted(each for each in shared if each in (given or self._families))

    def _addresses(self, end: End) -> Sequence[Address]:
        return self._compiled.addresses[end] if isinstance(end, Key) else (end,)

    def _address(self, end: End, family: int) -> Address:
        return next(each for each in self._addresses(end) if each.version == family)

    def failures(self, assertion: Assertion, one: End, other: End, family: int) -> list[Failure]:
        """What of the pair is not as asserted, in as few pieces as can be said."""
        egress, ingress = self._rows(one, other, family)
        key = (id(assertion), family, id(egress), id(ingress))
        if key not in self._wrong:
            self._wrong[key] = list(_wrong(assertion, family, list(regions((egress, ingress)))))
        return [
            Failure(
                source=self._ends.name(one),
                destination=self._ends.name(other),
                traffic=traffic,
                decision=decision,
                because=because,
            )
            for traffic, decision, because in self._wrong[key]
        ]

    def _rows(self, one: End, other: End, family: int) -> tuple[Row | None, Row | None]:
        here, there = self._address(one, family), self._address(other, family)
        of = self._compiled.identity.of
        return (
            self._book.row(self._compiled.chains[one][1], of(there), here) if isinstance(one, Key) else None,
            self._book.row(self._compiled.chains[other][0], of(here), there) if isinstance(other, Key) else None,
        )


def _wrong(
    assertion: Assertion, family: int, pieces: Sequence[tuple[Traffic, Decisions]]
) -> Iterator[tuple[tuple[Traffic, ...], Decision, str]]:
    """Traffic that is not as asserted, by the decision and by what should have decided."""
    whole = [traffic for traffic, _ in pieces]
    found: dict[tuple[Decision, str], list[Traffic]] = defaultdict(list)
    for wanted in [in_family(asked(text), family) for text in assertion.ports] or [EVERYTHING]:
        for traffic, decisions in _about(wanted, pieces):
            fault = _fault(assertion, decisions)
            if fault is not None:
                found[fault].append(_within(wanted, traffic))
    for (decision, because), traffics in found.items():
        yield tuple(touching(traffics)) if assertion.ports else joined(traffics, whole), decision, because


def _about(wanted: Asked, pieces: Sequence[tuple[Traffic, Decisions]]) -> Iterator[tuple[Traffic, Decisions]]:
    """The pieces that have traffic in common with what is asked."""
    types = {each.icmp[0] for each, _ in pieces if each.icmp is not None and each.protocol == wanted.protocol}
    kind = wanted.icmp if wanted.icmp in types else -1
    for traffic, decisions in pieces:
        if wanted.protocol is not None:
            named = traffic.protocol == wanted.protocol
            if not (wanted.protocol not in traffic.besides if traffic.protocol == REST else named):
                continue
        if traffic.ports[0] > wanted.ports[1] or traffic.ports[1] < wanted.ports[0]:
            continue
        if wanted.icmp is None or traffic.icmp is None or traffic.icmp[0] == kind:
            yield traffic, decisions


def _within(wanted: Asked, traffic: Traffic) -> Traffic:
    """The part of the piece that was asked about."""
    if wanted.protocol is None:
        return traffic
    ports = (max(traffic.ports[0], wanted.ports[0]), min(traffic.ports[1], wanted.ports[1]))
    icmp = traffic.icmp if wanted.icmp is None or traffic.icmp is None else (wanted.icmp, traffic.icmp[1])
    return Traffic(protocol=wanted.protocol, ports=ports, sports=traffic.sports, icmp=icmp)


def _fault(assertion: Assertion, decisions: Decisions) -> tuple[Decision, str] | None:
    """The decision that is not as asserted, and what should have decided; None when all is well."""
    asked_ends = [each for each in decisions if each is not None]
    denials = [each for each in asked_ends if each.verdict is Verdict.DENY]
    if assertion.verdict is Wanted.ALLOW and denials:
        return denials[0], ""
    if assertion.verdict is Wanted.DENY and not denials:
        return asked_ends[-1], ""
    deciding = denials or asked_ends
    if assertion.because and not any(assertion.because in names(each.reason) for each in deciding):
        by_profile = [each for each in deciding if each.reason.cause is Cause.PROFILE_RULE]
        return next((each for each in deciding if each not in by_profile), deciding[0]), assertion.because
    return None


def names(reason: Reason) -> set[str]:
    """What `because` may call it: the policy (`NAME`, `NAMESPACE/NAME`), the profile, `tier NAME` for a tier's end."""
    keys = [reason.policy] if reason.policy is not None else list(reason.policies)
    found = {name for key in keys for name in (key.name, f"{key.namespace}/{key.name}")}
    if reason.cause is Cause.END_OF_TIER:
        found.add(f"tier {reason.tier}")
    return found | ({reason.profile} if reason.profile else set())
