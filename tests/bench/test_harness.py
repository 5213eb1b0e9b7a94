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
from bench.model import Bench, Figures, Subjects, Target, at_least, at_most

HOUSE = Path(__file__).parents[2]


def described(*targets: Target) -> Bench:
    return Bench(name="try", what="a try", unit="s", peer="another", targets=targets, runs=3)


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

    found = harness.Found(described(at_least(5)), subjects)
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
        "series": {},
        "peer_series": {},
    }
    assert calls == ["ours", "peer"] * 4 + ["cleaned up"]


def test_a_target_bounds_from_its_side() -> None:
    assert at_least(1.5).met(1.5)
    assert not at_least(1.5).met(1.49)
    assert at_most(1.6).met(1.6)
    assert not at_most(1.6).met(1.61)


def test_an_absolute_target_is_the_figures_own_and_no_ratios() -> None:
    ours, peers = [30.0, 10.0, 20.0], [1.0, 1.0, 1.0]
    reached = harness.reduce(described(at_most(20, absolute=True)), ours, peers)
    assert (reached.met, reached.ratio, reached.target) == (True, 20.0, "at most 20 s")
    assert not harness.reduce(described(at_most(19, absolute=True)), ours, peers).met


def test_a_turn_may_give_several_figures_and_every_target_is_to_be_met() -> None:
    ours = [Figures(5.0, {"p99 ms": p99, "rules": 7.0}) for p99 in (60.0, 70.0, 50.0)]
    peers = [Figures(4.0, {"p99 ms": p99}) for p99 in (60.0, 35.0, 25.0)]
    good = described(at_most(1.25), at_most(60, of="p99 ms", absolute=True), at_most(2, of="p99 ms"))
    result = harness.reduce(good, ours, peers)
    assert result.met
    assert result.target == "at most 1.25, p99 ms at most 60, p99 ms at most 2 times"
    assert (result.series, result.peer_series) == ({"p99 ms": 60.0, "rules": 7.0}, {"p99 ms": 35.0})
    assert not harness.reduce(described(at_most(1.25), at_most(1.9, of="p99 ms")), ours, peers).met
    assert not harness.reduce(described(at_most(1.2), at_most(2, of="p99 ms")), ours, peers).met


def test_a_target_of_a_figure_that_no_turn_gives_is_an_error_and_not_met() -> None:
    with pytest.raises(KeyError, match="p50"):
        harness.reduce(described(at_most(1, of="p50")), [1.0], [1.0])


def test_the_list_names_what_can_be_run() -> None:
    listed = subprocess.run([sys.executable, "-m", "bench"], cwd=HOUSE, check=True, capture_output=True, text=True)
    assert "route-install" in listed.stdout
    unknown = subprocess.run([sys.executable, "-m", "bench", "nope"], cwd=HOUSE, capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "there is no benchmark 'nope'" in unknown.stderr
