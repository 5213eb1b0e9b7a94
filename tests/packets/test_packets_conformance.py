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
    for step in case.steps:
        state = change(state, step, two_nodes.place)
        if not step.expect:
            continue
        two_nodes.settle(state)
        expected = {
            (bare(probe), (source, destination, family)): expectation.allows(source, destination)
            for probe, expectation in step.expect.items()
            for source, destination in case.topology.pairs()
            for family in probe.families
        }
        wanted = {question for question, allowed in expected.items() if allowed}
        found = prober.ask(expected.keys(), wanted)
        assert not (wrong := differences(found, wanted)), f"{wrong}; the kernel said {prober.refused}"
