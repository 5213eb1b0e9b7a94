"""When another program keeps changing our table: how long to wait before it is put right again. Pure.

    change ── at once ── change ── at once ── change ── ... ── change ── 0.1 s ── change ── 0.2 s ── ... 2 s
    └───────────── PATIENCE of them, each within CALM_S of the one before ──┘   └── a quarrel, said once ──┘

A change by itself is put right at once. Somebody who answers every repair with the same change would have us
write the table hundreds of times a second and never win; the kernel's time is better spent, and a person has to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CALM_S: Final = 3.0
"""A quarrel is over when nothing was changed for so long."""

PATIENCE: Final = 5
"""So many changes in a row are put right without delay."""

PAUSE_S: Final = 0.1
PAUSE_MAX_S: Final = 2.0


@dataclass(slots=True)
class Quarrel:
    """What is remembered of the changes so far; times are in seconds of any one clock."""

    changes: int = 0
    last: float = float("-inf")

    def hear(self, now: float) -> float:
        """One more change: how many seconds to wait before the table is read and written again."""
        self.changes = 1 if now - self.last > CALM_S else self.changes + 1
        self.last = now
        if not self.on:
            return 0.0
        return min(PAUSE_MAX_S, PAUSE_S * 2.0 ** min(self.changes - PATIENCE - 1, 30))

    @property
    def begins(self) -> bool:
        """Whether the last change was the one that made it a quarrel."""
        return self.changes == PATIENCE + 1

    @property
    def on(self) -> bool:
        """Whether there is one, as of the last change."""
        return self.changes > PATIENCE
