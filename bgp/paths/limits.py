"""How many prefixes a peer may tell: `maxPrefixesIn`, counted as they come in, before any filter.

    0 ───────────── 80 % ───────────── most ─────────────
    taken           taken, and a       prefixes beyond are refused: they are not stored, only counted; the
                    warning            session stays, and what was taken before goes on being used

Which prefixes are refused depends on the order in which the peer tells them; nothing else does. When there is room
again the peer is asked to tell everything once more (RFC 2918), at most every half minute: a peer that hovers at its
maximum must not have its whole table sent round in circles. A bound that is lowered keeps the lowest prefixes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from core.prefix import Prefix

WARN_AT: Final = 0.8
"""The share of a maximum from which a warning is given."""

ASK_EVERY_S: Final = 30.0
"""The least time between two requests for everything."""


@dataclass(slots=True)
class Intake:
    """One peer's. `refused` counts announcements that found no room since the session came up or was asked again."""

    most: int | None = None
    refused: int = 0
    asked_at: float | None = None

    def bound(self, most: int | None, held: Collection[Prefix]) -> Sequence[Prefix]:
        """Set the maximum; which of the prefixes held there is no room for."""
        self.most = most
        surplus = sorted(held)[most:] if most is not None and len(held) > most else []
        self.refused += len(surplus)
        return surplus

    def start(self) -> None:
        """The peer begins anew."""
        self.refused, self.asked_at = 0, None

    def take(self, told: list[Prefix], held: Collection[Prefix]) -> list[Prefix]:
        """Of what is told, what there is room for: all that is held already, and others while there is room."""
        if self.most is None or len(held) + len(told) <= self.most:
            return told
        taken, room = [], self.most - len(held)
        for prefix in dict.fromkeys(told):
            known = prefix in held
            if known or room > 0:
                taken.append(prefix)
                room -= not known
            else:
                self.refused += 1
        return taken

    def due(self, held: int) -> float | None:
        """When the peer should be asked for everything; None while nothing was refused, or there is no room."""
        if not self.refused or (self.most is not None and held >= self.most):
            return None
        return 0.0 if self.asked_at is None else self.asked_at + ASK_EVERY_S

    def wants_refresh(self, held: int, now: float) -> bool:
        """Whether the peer should be asked for everything now; True once."""
        due = self.due(held)
        if due is None or now < due:
            return False
        self.asked_at, self.refused = now, 0
        return True

    def problem(self, held: int) -> str:
        """What is to be said of `held` prefixes; "" when there is nothing."""
        return warning(held, self.most, self.refused)


def warning(count: int, most: int | None, refused: int = 0) -> str:
    """What is to be said of `count` prefixes of at most `most`, of which `refused` found no room; "" for nothing."""
    if refused:
        return f"{count} prefixes, of at most {most}: {refused} more were refused"
    if most is not None and count >= most * WARN_AT:
        return f"{count} prefixes, of at most {most}: more will be refused"
    return ""
