"""What a benchmark is, and what it says.

A benchmark is a module of this package, named as it is with dashes for underscores, that holds

    BENCH = Bench(...)            its description
    def subjects() -> ...         a context manager: prepares, gives the two things to measure, cleans up

Run in turns, ours and the peer's, so that a busy moment of the machine falls on both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Target(StrEnum):
    """Which side of the target ratio is good."""

    AT_LEAST = "at least"
    AT_MOST = "at most"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A benchmark's description. The ratio is our figure over the peer's; `target` is the ratio to meet."""

    name: str
    what: str
    unit: str
    peer: str
    bound: Target
    target: float
    runs: int = 5

    def meets(self, ratio: float) -> bool:
        """Whether a ratio is good enough."""
        return ratio >= self.target if self.bound is Target.AT_LEAST else ratio <= self.target


@dataclass(frozen=True, slots=True)
class Subjects:
    """What is measured: each call does the whole work once and returns a figure in the description's unit."""

    ours: Callable[[], float]
    peer: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Medians over the turns, as printed by `--json`."""

    name: str
    figure: float
    unit: str
    peer: str
    peer_figure: float
    ratio: float
    target: str
    met: bool
