"""The benchmarks' harness: turns, medians, targets, and what is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import __main__, harness
from bench.model import Bench, Subjects, Target

HOUSE = Path(__file__).parents[2]


def described(bound: Target, target: float) -> Bench:
    return Bench(name="try", what="a try", unit="s", peer="another", bound=bound, target=target, runs=3)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One benchmark is known: ours gives 3, 100, 6 and 9 (the first to warm up), the peer 2 each time."""
    made: list[str] = []
    figures = iter([3.0, 100.0, 6.0, 9.0])

    def ours() -> float:
        made.append("ours")
        return next(figures)

    def peer() -> float:
        made.append("peer")
        return 2.0

    @contextmanager
    def subjects() -> Iterator[Subjects]:
        yield Subjects(ours, peer)
        made.append("cleaned up")

    found = harness.Found(described(Target.AT_LEAST, 5.0), subjects)
    monkeypatch.setattr(harness, "benches", lambda: {"try": found})
    return made


def test_ours_and_the_peers_take_turns_and_medians_are_compared(
    calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["try", "--json"]) == 1
    line = json.loads(capsys.readouterr().out)
    assert line == {
        "name": "try",
        "figure": 9.0,
        "unit": "s",
        "peer": "another",
        "peer_figure": 2.0,
        "ratio": 4.5,
        "target": "at least 5",
        "met": False,
    }
    assert calls == ["ours", "peer"] * 4 + ["cleaned up"]


def test_a_target_bounds_the_ratio_from_its_side() -> None:
    assert described(Target.AT_LEAST, 1.5).meets(1.5)
    assert not described(Target.AT_LEAST, 1.5).meets(1.49)
    assert described(Target.AT_MOST, 1.6).meets(1.6)
    assert not described(Target.AT_MOST, 1.6).meets(1.61)


def test_the_list_names_what_can_be_run() -> None:
    listed = subprocess.run([sys.executable, "-m", "bench"], cwd=HOUSE, check=True, capture_output=True, text=True)
    assert "route-install" in listed.stdout
    unknown = subprocess.run([sys.executable, "-m", "bench", "nope"], cwd=HOUSE, capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "there is no benchmark 'nope'" in unknown.stderr
