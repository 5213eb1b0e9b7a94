"""Finds benchmarks, runs them, and reduces their runs to one line."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

import bench
from bench.model import Bench, Result, Subjects


@dataclass(frozen=True, slots=True)
class Found:
    """A benchmark of this package."""

    bench: Bench
    subjects: Callable[[], AbstractContextManager[Subjects]]


def benches() -> Mapping[str, Found]:
    """Every benchmark by name."""
    found = {}
    for each in pkgutil.iter_modules(bench.__path__):
        if each.name == "__main__":
            continue
        module = importlib.import_module(f"bench.{each.name}")
        if hasattr(module, "BENCH"):
            found[module.BENCH.name] = Found(module.BENCH, module.subjects)
    return dict(sorted(found.items()))


def run(found: Found) -> Result:
    """Warm both up once, then measure them in turns; medians."""
    ours: list[float] = []
    peers: list[float] = []
    with found.subjects() as subjects:
        subjects.ours()
        subjects.peer()
        for _ in range(found.bench.runs):
            ours.append(subjects.ours())
            peers.append(subjects.peer())
    return reduce(found.bench, ours, peers)


def reduce(described: Bench, ours: list[float], peers: list[float]) -> Result:
    """The line that says how `ours` compare with `peers`.

    The ratio is the median of the turns' own ratios: the two of a turn ran under the same load, those of two turns
    need not have.
    """
    figure, peer_figure = median(ours), median(peers)
    ratio = median(one / other for one, other in zip(ours, peers, strict=True))
    return Result(
        name=described.name,
        figure=round(figure, 1),
        unit=described.unit,
        peer=described.peer,
        peer_figure=round(peer_figure, 1),
        ratio=round(ratio, 3),
        target=f"{described.bound} {described.target:g}",
        met=described.meets(ratio),
    )
