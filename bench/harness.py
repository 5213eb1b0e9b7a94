"""Finds benchmarks, runs them, and reduces their runs to one line."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median

import bench
from bench.model import Bench, Figures, Result, Subjects, Target


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
    ours: list[float | Figures] = []
    peers: list[float | Figures] = []
    with found.subjects() as subjects:
        subjects.ours()
        subjects.peer()
        for _ in range(found.bench.runs):
            ours.append(subjects.ours())
            peers.append(subjects.peer())
    return reduce(found.bench, ours, peers)


def reduce(described: Bench, ours: Sequence[float | Figures], peers: Sequence[float | Figures]) -> Result:
    """The line that says how `ours` compare with `peers`; KeyError for a target of a figure that no turn gave.

    A ratio is the median of the turns' own ratios: the two of a turn ran under the same load, those of two turns
    need not have.
    """
    mine, theirs = _columns(ours), _columns(peers)

    def ratio(of: str) -> float:
        return median(one / other for one, other in zip(mine[of], theirs[of], strict=True))

    def reached(target: Target) -> float:
        return median(mine[target.of]) if target.absolute else ratio(target.of)

    series, peer_series = ({name: round(median(each), 3) for name, each in side.items()} for side in (mine, theirs))
    return Result(
        name=described.name,
        figure=round(series.pop(""), 1),
        unit=described.unit,
        peer=described.peer,
        peer_figure=round(peer_series.pop(""), 1),
        ratio=round(ratio(""), 3),
        target=described.target,
        met=all(target.met(reached(target)) for target in described.targets),
        series=series,
        peer_series=peer_series,
    )


def _columns(turns: Sequence[float | Figures]) -> dict[str, list[float]]:
    """Each figure's values over the turns; the benchmark's own has no name."""
    rows = [each if isinstance(each, Figures) else Figures(each) for each in turns]
    return {"": [row.figure for row in rows]} | {
        name: [row.others[name] for row in rows] for name in (rows[0].others if rows else ())
    }
