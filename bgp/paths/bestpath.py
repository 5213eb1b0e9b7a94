"""Which of the paths to a prefix are used, and why: ordered comparisons, each of which may decide.

Paths equal through every comparison are used together (ECMP); the one of the lowest peer stands for the prefix. Age
does not count, nor does staleness short of a last resort: the same paths give the same choice in whatever order they
came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from bgp.attributes import Path
from bgp.model import Session

LLGR_STALE: Final = "65535:6"
"""The community of a path that is a last resort (RFC 9494, 4.3)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A path as it was taken in, the session it came over, the BGP identifier of the router at its other end, and the
    device through which its next hop is reached; "" and None when they are not known."""

    session: Session
    path: Path
    router_id: IPv4Address | None = None
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The outcome for one prefix. `used` is empty when nothing is eligible; `best` is its first.

    `reason` names the comparison that decided last. `lost` are candidates that are not used, each with the comparison
    that the used ones won; `refused` those that may not be used, each with why.
    """

    used: tuple[Candidate, ...] = ()
    reason: str = ""
    lost: tuple[tuple[Candidate, str], ...] = ()
    refused: tuple[tuple[Candidate, str], ...] = ()

    @property
    def best(self) -> Candidate | None:
        """The candidate that stands for the prefix."""
        return self.used[0] if self.used else None


Rank = Callable[[Candidate], int]

COMPARISONS: Final[Mapping[str, Rank]] = {
    "not a last resort": lambda candidate: LLGR_STALE in candidate.path.communities,
    "higher local preference": lambda candidate: -candidate.path.local_pref,
    "shorter AS path": lambda candidate: candidate.path.as_path_length,
    "lower origin": lambda candidate: candidate.path.origin,
    "lower MED": lambda candidate: candidate.path.med,
    "external over internal": lambda candidate: candidate.session.internal,
    "shorter cluster list": lambda candidate: len(candidate.path.clusters),
}
"""In order. A MED compares only between paths from the same neighbouring AS (RFC 4271, 9.1.2.2 c)."""

_MED: Final = "lower MED"


def choose(eligible: Sequence[Candidate], refused: Sequence[tuple[Candidate, str]] = ()) -> Choice:
    """Choose among the candidates of one prefix that may be used."""
    left = sorted(eligible, key=_by_peer) if len(eligible) > 1 else list(eligible)
    turned_away = tuple(sorted(refused, key=lambda each: _by_peer(each[0])))
    if len(left) < 2:
        return Choice(used=tuple(left), reason="only path" if left else "", refused=turned_away)
    lost: list[tuple[Candidate, str]] = []
    if len(set(map(_everything, left))) > 1:
        for name, rank in COMPARISONS.items():
            left, beaten = _compare_within_as(left, rank) if name == _MED else _compare(left, rank)
            lost += [(candidate, name) for candidate in beaten]
    return Choice(
        used=tuple(left), reason=lost[-1][1] if lost else "equal paths", lost=tuple(lost), refused=turned_away
    )


def _everything(candidate: Candidate) -> tuple[object, ...]:
    """All that is compared: most often it is the same for all."""
    path, session = candidate.path, candidate.session
    return (
        LLGR_STALE in path.communities,
        path.local_pref,
        path.as_path_length,
        path.origin,
        path.med,
        _neighbour_as(candidate),
        session.internal,
        len(path.clusters),
    )


def _compare(candidates: list[Candidate], rank: Rank) -> tuple[list[Candidate], list[Candidate]]:
    """Those that win, and those that lose."""
    lowest = min(map(rank, candidates))
    return (
        [candidate for candidate in candidates if rank(candidate) == lowest],
        [candidate for candidate in candidates if rank(candidate) != lowest],
    )


def _compare_within_as(candidates: list[Candidate], rank: Rank) -> tuple[list[Candidate], list[Candidate]]:
    lowest: dict[int, int] = {}
    for candidate in candidates:
        neighbour = _neighbour_as(candidate)
        lowest[neighbour] = min(lowest.get(neighbour, rank(candidate)), rank(candidate))
    return (
        [candidate for candidate in candidates if rank(candidate) == lowest[_neighbour_as(candidate)]],
        [candidate for candidate in candidates if rank(candidate) != lowest[_neighbour_as(candidate)]],
    )


def _neighbour_as(candidate: Candidate) -> int:
    return candidate.path.as_path[0] if candidate.path.as_path else candidate.session.local_as


def _by_peer(candidate: Candidate) -> tuple[int, int]:
    return candidate.session.peer.version, int(candidate.session.peer)
