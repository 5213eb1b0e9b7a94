"""What was decided on a prefix, and the whole story of it for people: `muslin bgp routes --why` only prints this."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bgp.attributes import Path
from bgp.paths.bestpath import Choice
from bgp.paths.rib import AdjRibIn, Gone
from core.addr import Address, Network
from core.prefix import Prefix
from linux.model import Route


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """The choice among what peers say of a prefix, and the kernel's route for it, or why there is none.

    One object for all prefixes of which the same is said, so it is compared by identity.
    """

    choice: Choice
    route: Route | None
    why: str


UNDECIDED: Final = Decision(Choice(), None, "nobody speaks of it")


class Standing(StrEnum):
    """What became of a path."""

    BEST = "best"
    USED = "used"
    """Equal to the best, and used together with it."""
    NOT_USED = "not used"
    """It could be; another one won."""
    REFUSED = "refused"
    WITHDRAWN = "withdrawn"
    """It is no longer there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One path of an explanation, as it was taken in if it was.

    `why` is what it was refused for, which comparison it lost, or why it went. `ago_s` is how long it has been gone or
    stale, None when it is neither; `left_s` how long a stale one stays; `last_resort` that it is used only where there
    is nothing else (RFC 9494). Seconds.
    """

    session: str
    peer: Address
    path: Path
    standing: Standing
    why: str = ""
    ago_s: float | None = None
    left_s: float | None = None
    last_resort: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a prefix goes where it goes.

    `reason` is the comparison that decided. `route` is what should be in the kernel; None with `why_not`. `adopted`: it
    is what an earlier run of the agent left there, kept until the peers have had time to speak.
    """

    prefix: Network
    said: tuple[Said, ...]
    reason: str
    route: Route | None
    why_not: str = ""
    adopted: bool = False


def explain(
    prefix: Prefix,
    decision: Decision,
    rib: AdjRibIn,
    gone: Iterable[Gone],
    now: float,
    adopted: Route | None = None,
) -> Explanation:
    """The story of one prefix at `now`, by the clock the table is kept by; `gone` are its paths that are."""
    wanted = adopted or decision.route
    return Explanation(
        prefix=prefix.network,
        said=(*_there(prefix, decision.choice, rib, now), *_gone(gone, now)),
        reason=decision.choice.reason,
        route=wanted,
        why_not="" if wanted else decision.why,
        adopted=adopted is not None,
    )


def _there(prefix: Prefix, choice: Choice, rib: AdjRibIn, now: float) -> Iterator[Said]:
    all_of_them = [(each, Standing.USED if at else Standing.BEST, "") for at, each in enumerate(choice.used)]
    all_of_them += [(each, Standing.NOT_USED, why) for each, why in choice.lost]
    all_of_them += [(each, Standing.REFUSED, why) for each, why in choice.refused]
    for candidate, standing, why in all_of_them:
        peer = candidate.session.peer
        stale = rib.stale(peer, prefix)
        yield Said(
            session=candidate.session.name,
            peer=peer,
            path=candidate.path,
            standing=standing,
            why=why,
            ago_s=now - stale.since if stale else None,
            left_s=max(0.0, stale.until - now) if stale else None,
            last_resort=stale.last_resort if stale else False,
        )


def _gone(gone: Iterable[Gone], now: float) -> Iterator[Said]:
    for each in gone:
        yield Said(
            session=each.session,
            peer=each.heard.peer,
            path=each.heard.path,
            standing=Standing.WITHDRAWN,
            why=each.why,
            ago_s=now - each.at,
        )
