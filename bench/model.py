"""What a benchmark is, and what it says.

A benchmark is a module of this package, named as it is with dashes for underscores, that holds

    BENCH = Bench(...)            its description
    def subjects() -> ...         a context manager: prepares, gives the two things to measure, cleans up

Run in turns, ours and the peer's, so that a busy moment of the machine falls on both. A turn gives one figure, or
several: then `Figures` names the others.

    targets=(at_most(1.5),)                                        our figure over the peer's
    targets=(at_most(20, absolute=True), at_most(60, of="p99 ms", absolute=True))     our figure; another of ours
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Bound(StrEnum):
    """Which side of a target is good."""

    AT_LEAST = "at least"
    AT_MOST = "at most"


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be reached: by the ratio of our figure to the peer's, or (`absolute`) by our figure itself.

    `of` names one of the turn's other figures; without it the target is the benchmark's own figure's.
    """

    bound: Bound
    value: float
    of: str = ""
    absolute: bool = False

    def met(self, reached: float) -> bool:
        """Whether a ratio or figure is good enough."""
        return reached >= self.value if self.bound is Bound.AT_LEAST else reached <= self.value

    def text(self, unit: str) -> str:
        """The target in words; `unit` is that of the benchmark's own figure. A named figure's name has its own."""
        what = f"{self.of} " if self.of else ""
        measured = "" if not self.absolute or self.of else f" {unit}"
        of_ratio = " times" if self.of and not self.absolute else ""
        return f"{what}{self.bound} {self.value:g}{of_ratio}{measured}"


def at_least(value: float, *, of: str = "", absolute: bool = False) -> Target:
    """A target from below."""
    return Target(Bound.AT_LEAST, value, of, absolute)


def at_most(value: float, *, of: str = "", absolute: bool = False) -> Target:
    """A target from above."""
    return Target(Bound.AT_MOST, value, of, absolute)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A benchmark's description. All of `targets` are to be met."""

    name: str
    what: str
    unit: str
    peer: str
    targets: tuple[Target, ...]
    runs: int = 5

    @property
    def target(self) -> str:
        """All targets in words."""
        return ", ".join(each.text(self.unit) for each in self.targets)


@dataclass(frozen=True, slots=True)
class Figures:
    """What one turn gave: the figure that the benchmark is about, and others by name (with their unit in the name)."""

    figure: float
    others: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Subjects:
    """What is measured: each call does the whole work once and returns a figure in the description's unit, or more."""

    ours: Callable[[], float | Figures]
    peer: Callable[[], float | Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Medians over the turns, as printed by `--json`. The series hold a turn's other figures by name, if it has any."""

    name: str
    figure: float
    unit: str
    peer: str
    peer_figure: float
    ratio: float
    target: str
    met: bool
    series: dict[str, float]
    peer_series: dict[str, float]
