"""Counters of decisions as Prometheus wants them: bounded, and never running backwards."""

from __future__ import annotations

from felix.metrics import Decisions
from linux.nft_counters import Counted


def packets(decisions: Decisions, **counts: int) -> dict[str, float]:
    """The packets' samples by policy, or by `other`."""
    counters = {
        f"deny/in/default/networkpolicies/shop/{name}/0": Counted(count, 60 * count) for name, count in counts.items()
    }
    family, of_bytes = decisions.families(counters)
    assert family.name == "muslin_felix_policy_packets_total"
    assert {labels: 60 * count for labels, count in family.samples.items()} == of_bytes.samples
    return {labels[4].rpartition("/")[2] or labels[6]: count for labels, count in family.samples.items()}


def test_reasons_past_the_bound_share_a_series() -> None:
    assert packets(Decisions(2), a=5, b=3, c=2, d=1) == {"a": 5, "b": 3, "other": 3}


def test_who_has_a_series_keeps_it_and_the_shared_one_never_runs_backwards() -> None:
    decisions = Decisions(2)
    assert packets(decisions, a=5, b=3, c=2, d=1) == {"a": 5, "b": 3, "other": 3}
    assert packets(decisions, a=5, b=3, c=9, d=1) == {"a": 5, "b": 3, "other": 10}
    assert packets(decisions, a=5, c=9, d=2) == {"a": 5, "other": 11}
    assert packets(decisions, a=6, c=9, e=4) == {"a": 6, "e": 4, "other": 11}
    assert packets(decisions, a=6, c=1, e=4) == {"a": 6, "e": 4, "other": 12}, "c went, and came again"
