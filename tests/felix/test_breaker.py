"""What vanishes in masses is held; what goes in ordinary numbers goes."""

from __future__ import annotations

import pytest

from core.resources import NetworkPolicy, WorkloadEndpoint
from felix.breaker import hold
from tests.felix.cluster import block, deny, namespace, pod, snapshot

POLICIES = [deny(f"p{n}", "shop") for n in range(60)]
PODS = [pod(f"w{n}", f"10.0.0.{n}") for n in range(60)]
REST = [namespace("shop"), block("10.0.0.0/26", "a")]


@pytest.mark.parametrize(("left", "held"), [(0, True), (9, True), (10, False), (60, False)])
def test_most_of_the_policies_gone(left: int, held: bool) -> None:
    before = snapshot([*POLICIES, *PODS, *REST], 1)
    after = snapshot([*POLICIES[:left], *PODS[:-1], *REST], 2)
    seen, said = hold(before, after)
    assert len(seen.of(NetworkPolicy)) == (60 if held else left)
    assert len(seen.of(WorkloadEndpoint)) == 59  # another group is not concerned
    assert seen.revision == 2
    assert said == ((f"{60 - left} of 60 policies vanished at once",) if held else ())


def test_held_stays_held_against_what_was_accepted() -> None:
    accepted = snapshot([*POLICIES, *REST], 1)
    empty = snapshot(REST, 2)
    once, _ = hold(accepted, empty)
    twice, said = hold(once, snapshot(REST, 3))
    assert len(twice.of(NetworkPolicy)) == 60
    assert said


def test_half_of_many_is_not_too_much() -> None:
    many = [deny(f"p{n}", "shop") for n in range(200)]
    assert hold(snapshot(many, 1), snapshot(many[:100], 2))[1] == ()
    assert hold(snapshot(many, 1), snapshot(many[:99], 2))[1] != ()
