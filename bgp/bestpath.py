"""Which of the paths to a prefix are used, and why: ordered comparisons, each of which may decide.

Paths equal through every comparison but the last are used together (ECMP); the last only picks whose attributes
stand for the prefix. Staleness and age do not count: the same paths give the same choice in whatever order they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from bgp.model import Path, Session


@dataclass(frozen=True, slots=True)
class Candidate:
    """A path and the session it came over, the router id of who is at its other end, and the device through which its
    next hop is reached; "" and None when they are not known."""

    session: Session
    path: Path
    router_id: IPv4Address | None = None
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The outcome for one prefix. `used` is empty when nothing is eligible; `best` is its first.

    `reason` names the comparison that decided. `refused` are candidates that may not be used, each with why.
    """

    used: tuple[Candidate, ...] = ()
    reason: str = ""
    refused: tuple[tuple[Candidate, str], ...] = ()

    @property
    def best(self) -> Candidate | None:
        """The candidate that stands for the prefix."""
        return self.used[0] if self.used else None


Rank = Callable[[Candidate], int]

COMPARISONS: Final[Mapping[str, Rank]] = {
    "higher local preference": lambda candidate: -candidate.path.local_pref,
    "shorter AS path": lambda candidate: candidate.path.as_path_length,
    "lower origin": lambda candidate: candidate.path.origin,
}


def choose(candidates: Iterable[Candidate]) -> Choice:
    """Choose among all candidates of one prefix."""
    left: list[Candidate] = []
    refused: list[tuple[Candidate, str]] = []
    for candidate in sorted(candidates, key=_by_peer):
        why = refusal(candidate)
        if why:
            refused.append((candidate, why))
        else:
            left.append(candidate)
    if len(left) < 2:
        return Choice(used=tuple(left), reason="only path" if left else "", refused=tuple(refused))
    decided = ""
    for name, rank in COMPARISONS.items():
        left, lost = _keep_lowest(left, rank)
        decided = name if lost else decided
    left, lost = _compare_med(left)
    decided = "lower MED" if lost else decided
    left, lost = _keep_lowest(left, lambda candidate: int(candidate.session.internal))
    decided = "external over internal" if lost else decided
    return Choice(used=tuple(left), reason=decided or "equal paths", refused=tuple(refused))


def refusal(candidate: Candidate) -> str:
    """Why a path may not be used at all; "" when it may."""
    session, path = candidate.session, candidate.path
    own = path.as_path.count(session.local_as)
    if own > session.own_as_allowed:
        return f"our AS {session.local_as} stands in the path: a loop (BGPPeer numAllowedLocalASNumbers allows it)"
    if path.next_hop == session.local:
        return "we are the next hop"
    return ""


def _keep_lowest(candidates: list[Candidate], rank: Rank) -> tuple[list[Candidate], bool]:
    lowest = min(map(rank, candidates))
    kept = [candidate for candidate in candidates if rank(candidate) == lowest]
    return kept, len(kept) < len(candidates)


def _compare_med(candidates: list[Candidate]) -> tuple[list[Candidate], bool]:
    """MEDs compare only between paths from the same neighbouring AS (RFC 4271, 9.1.2.2 c)."""
    lowest: dict[int, int] = {}
    for candidate in candidates:
        neighbour = _neighbour_as(candidate)
        lowest[neighbour] = min(lowest.get(neighbour, candidate.path.med), candidate.path.med)
    kept = [candidate for candidate in candidates if candidate.path.med == lowest[_neighbour_as(candidate)]]
    return kept, len(kept) < len(candidates)


def _neighbour_as(candidate: Candidate) -> int:
    return candidate.path.as_path[0] if candidate.path.as_path else candidate.session.local_as


def _by_peer(candidate: Candidate) -> tuple[int, int]:
    return candidate.session.peer.version, int(candidate.session.peer)
