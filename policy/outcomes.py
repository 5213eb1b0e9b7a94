"""From the number that a judgement leaves in the mark to what is done, and to what is counted.

    judgement ──> mark: NUMBER ──> not in @undenied: judged once more (`ask`)
                              ──> settled    @reasons    NUMBER : counter object, named after the reason
                                             @verdicts   NUMBER : accept | return | goto accepted, untracked
                                             @branches   NUMBER : goto residual-HASH | goto staged-HASH
                                             goto denied
    residual-HASH   the rules still undecided, each ──> mark: NUMBER ──> decided    as settled, but for the branches
    staged-HASH     counts what staged policies would do, then what is enforced ──> decided

Maps of marks hold no verdicts, so that the kernel need not go through all of them whenever one element is added. What
has no element is denied: a number that is not known, too. Counters belong to reasons and not to elements, so that they
go on counting while rules, classes and tables around them change.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from core.nftables import Chain, Element, Set
from core.resources.policy import Direction
from policy.keep import OURS, SHIFT, THEIRS, call, high
from policy.model import (
    Cause,
    Decision,
    Outcome,
    Plane,
    Reason,
    Residual,
    Settled,
    Table,
    Verdict,
    Watched,
)

MOST_OUTCOMES: Final = 0xFFFB
UNASKED: Final = 0xFFFC
UNPROGRAMMED: Final = 0xFFFD
UNREADABLE: Final = 0xFFFE
ACCEPTED: Final = 0xFFFF
"""Outcomes' numbers are 1 to the first; then come: a packet of a host's interface that this plane has nothing to ask
about, an interface that nobody has programmed, a header that is cut off, and a packet that an earlier plane of a host
endpoint has let in. The first is denied like the others wherever it is settled."""

REASONS: Final = "reasons"
VERDICTS: Final = "verdicts"
BRANCHES: Final = "branches"
UNDENIED: Final = "undenied"
READABLE: Final = "readable"

DENIED_GROUP: Final = 0x6D75
"""The NFLOG group that hears of denied packets; each carries its mark, and so the number of its outcome."""

DENIED_A_SECOND: Final = 100
MOST_NAME: Final = 200
"""Characters of a counter's name; nft takes 255."""

_NAME: Final = re.compile(r"[A-Za-z0-9/._-]+")
_ODD: Final = re.compile(r"[^A-Za-z0-9/._-]")
_SIDES: Final = {Direction.INGRESS: "in", Direction.EGRESS: "out"}


@dataclass(frozen=True, slots=True)
class Answer:
    """An outcome, and where it is given: the same one is another thing to do in another plane or direction."""

    plane: Plane
    direction: Direction
    outcome: Outcome

    def digest(self) -> bytes:
        """The same for the same answer, in every process."""
        return hashlib.sha256(f"{self.plane} {self.direction} {_text(self.outcome)}".encode()).digest()

    def inner(self) -> Iterator[Answer]:
        """The answers that this one leads to."""
        outcome = self.outcome
        if isinstance(outcome, Watched):
            yield Answer(self.plane, self.direction, outcome.enforced)
        elif isinstance(outcome, Residual):
            for line in outcome.lines:
                if isinstance(line.then, Decision | Residual):
                    yield Answer(self.plane, self.direction, line.then)
            yield Answer(self.plane, self.direction, outcome.final)


def _text(outcome: Outcome) -> str:
    if isinstance(outcome, Decision):
        return f"{outcome.verdict} {_reason(outcome.reason)}"
    if isinstance(outcome, Watched):
        return f"({_text(outcome.enforced)}) watched ({_text(outcome.pending)})"
    lines = [
        f"{line.tests} {_text(line.then) if isinstance(line.then, Decision | Residual) else _reason(line.then.reason)}"
        for line in outcome.lines
    ]
    return "\n".join(("(", *lines, _text(outcome.final), ")"))


def _reason(reason: Reason) -> str:
    policy = reason.policy.path if reason.policy else ""
    return "|".join((reason.cause, reason.direction, reason.tier, policy, reason.profile, str(reason.rule)))


def answers(table: Table) -> set[Answer]:
    """All that a table can answer, and all that those answers lead to."""
    given = {id(each): each for each in table.outcomes}
    found: set[Answer] = set()
    open_ = [Answer(table.plane, table.direction, each) for each in given.values()]
    while open_:
        answer = open_.pop()
        if answer not in found:
            found.add(answer)
            open_.extend(answer.inner())
    return found


def reasons(table: Table) -> Iterator[tuple[str, Decision]]:
    """Every decision that a table counts, under its counter's name; those of staged policies too."""
    for answer in answers(table):
        if isinstance(answer.outcome, Decision):
            yield counter(answer.plane, answer.outcome), answer.outcome
        yield from pending(answer)


def pending(answer: Answer) -> Iterator[tuple[str, Decision]]:
    """What is counted of what staged policies would do, if they differ in this answer."""
    if isinstance(answer.outcome, Watched):
        for decision in _decisions(answer.outcome.pending):
            yield counter(answer.plane, decision, pending=True), decision


def _decisions(settled: Settled) -> Iterator[Decision]:
    if isinstance(settled, Decision):
        yield settled
        return
    for line in settled.lines:
        if isinstance(line.then, Decision | Residual):
            yield from _decisions(line.then)
    yield settled.final


def counter(plane: Plane, decision: Decision, *, pending: bool = False) -> str:
    """The name of the counter object that counts a decision, e.g. `deny/in/default/networkpolicies/shop/web/0`."""
    reason = decision.reason
    side = _SIDES[reason.direction] if plane is Plane.WORKLOAD else f"{plane}-{_SIDES[reason.direction]}"
    words = ["pending", str(decision.verdict).lower(), side] if pending else [str(decision.verdict).lower(), side]
    name = "/".join((*words, *_named(reason)))
    if len(name) <= MOST_NAME and _NAME.fullmatch(name):
        return name
    return f"{_ODD.sub('_', name)[: MOST_NAME - 13]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _named(reason: Reason) -> list[str]:
    key = reason.policy
    policy: list[str] = []
    if key is not None:
        calico = key.kind.group == "projectcalico.org"
        kind = key.kind.plural if calico else f"{key.kind.plural}.{key.kind.group}"
        policy = [kind, *([key.namespace] if key.namespace else []), key.name]
    match reason.cause:
        case Cause.RULE:
            return [reason.tier, *policy, str(reason.rule)]
        case Cause.END_OF_TIER:
            return [reason.tier, "end-of-tier"]
        case Cause.PROFILE_RULE:
            return ["profile", reason.profile, str(reason.rule)]
        case Cause.MISSING_PROFILE:
            return ["profile", reason.profile, "missing"]
        case Cause.UNREADABLE_POLICY:
            return ["unreadable-policy", *policy]
    return [reason.cause.replace(" ", "-")]


def word(plane: Plane, direction: Direction, verdict: Verdict) -> str:
    """nft's verdict; "" for what is denied, which no map holds. `return` hands on to whoever called the judgement."""
    if verdict is Verdict.DENY:
        return ""
    if verdict is Verdict.ALLOW:
        match plane:
            case Plane.PRE_DNAT:
                return "goto accepted"
            case Plane.UNTRACKED:
                return "goto untracked"
            case Plane.HOST:
                return "accept"
            case Plane.WORKLOAD if direction is Direction.INGRESS:
                return "accept"
    return "return"


def set_mark(number: int) -> str:
    """A statement that writes `number` into our half of the mark and leaves the other."""
    return f"meta mark set meta mark & {THEIRS} | {high(number)}"


def mark(number: int) -> str:
    """`number` as the mark of an element, the low half empty. One text, however many elements have it."""
    return sys.intern(str(number << SHIFT))


def ask(judgement: str, *first: str) -> tuple[str, ...]:
    """Rules that call the chain `judgement` and settle its answer, after the rules `first` have looked at it.

    What would be denied is judged a second time. A packet that was held up between two look-ups while the table changed
    may have been told a class by the new maps that the old stack does not know, and denied for it, though old rules and
    new ones allow it; the second time it meets the new table alone.
    """
    answered = (*call(judgement), *first)
    return (*answered, f"meta mark & {OURS} @{UNDENIED} goto settled", *answered, "goto settled")


def sets() -> dict[str, Set]:
    """The maps that settle a judgement."""
    return {
        REASONS: Set(key=("mark",), value="counter"),
        VERDICTS: Set(key=("mark",), value="verdict"),
        BRANCHES: Set(key=("mark",), value="verdict"),
        UNDENIED: Set(key=("mark",)),
    }


def chains() -> dict[str, Chain]:
    """The chains that settle a judgement."""
    counted = f"counter name meta mark & {OURS} map @{REASONS}"
    decided = f"meta mark & {OURS} vmap @{VERDICTS}"
    limit = f"limit rate {DENIED_A_SECOND}/second burst {DENIED_A_SECOND} packets"
    return {
        "settled": Chain(rules=(counted, decided, f"meta mark & {OURS} vmap @{BRANCHES}", "goto denied")),
        "decided": Chain(rules=(counted, decided, "goto denied")),
        "denied": Chain(rules=(f"{limit} log group {DENIED_GROUP} snaplen 128", "counter drop")),
        # Both rules read the first four bytes of the transport header: ports, or ICMP type and code.
        READABLE: Chain(rules=("@th,0,32 0-4294967295 return", set_mark(UNREADABLE))),
        "accepted": Chain(rules=(set_mark(ACCEPTED), "accept")),
        "untracked": Chain(rules=("notrack", "goto accepted")),
    }


def reserved() -> tuple[dict[Element, str], frozenset[str]]:
    """What is counted of numbers that stand for no rule: elements, and the counters they name."""
    names = {UNPROGRAMMED: "deny/unprogrammed-interface", UNREADABLE: "deny/unreadable-header"}
    elements = {Element(REASONS, mark(number)): name for number, name in names.items()}
    return elements, frozenset(names.values())
