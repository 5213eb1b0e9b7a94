"""Every case of tests/conformance, on real packets between pods on two nodes and hosts outside."""

from __future__ import annotations

import pytest

from tests.packets.cases import Case, begin, cases, change
from tests.packets.ground import Ground
from tests.packets.prober import Prober, bare, differences

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("case", cases(), ids=str)
def test_case_on_packets(case: Case, two_nodes: Ground, prober: Prober) -> None:
    state = begin(case.topology, two_nodes.place)
    pairs = list(case.topology.pairs())
    for step in case.steps:
        state = change(state, step, two_nodes.place)
        if not step.expect:
            continue
        two_nodes.settle(state)
        wanted = {
            (bare(probe), (source, destination, family))
            for probe, expectation in step.expect.items()
            for source, destination in pairs
            for family in probe.families
            if expectation.allows(source, destination)
        }
        found = prober.ask(step.expect, pairs, wanted)
        assert not (wrong := differences(found, wanted)), wrong
