"""Every case of tests/conformance, judged on the compiled tables: both ends of each pair of pods must allow it.

tests/packets asks the same of real packets. Here a verdict that is wrong is found without a kernel.
"""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from core.resources.policy import Direction
from core.snapshot import Snapshot
from policy.compile import Compiled, compile
from policy.evaluate import Packet, lookup
from policy.model import Verdict
from tests.packets.cases import OUTSIDE, Case, Probe, Topology, begin, cases, change, endpoint_key

NODE = "n1"


def on_one_node(pod: str) -> str:
    return NODE


def reaches(compiled: Compiled, topology: Topology, probe: Probe, family: int, source: str, destination: str) -> bool:
    here, there = (ip_address(topology.addresses[end][family == 6]) for end in (source, destination))
    ends = ((source, Direction.EGRESS, here, there), (destination, Direction.INGRESS, there, here))
    sport = None if probe.port is None else 40_000
    return all(
        lookup(
            compiled,
            endpoint_key(end, NODE),
            direction,
            Packet(peer=peer, local=local, protocol=probe.protocol, sport=sport, dport=probe.port, icmp=probe.icmp),
        ).verdict
        is Verdict.ALLOW
        for end, direction, local, peer in ends
        if not end.startswith(OUTSIDE)
    )


@pytest.mark.parametrize("case", cases(), ids=str)
def test_case_on_tables(case: Case) -> None:
    topology = case.topology
    state = begin(topology, on_one_node)
    pods = [endpoint_key(name, NODE) for name in topology.pods]
    wrong = []
    for number, step in enumerate(case.steps):
        state = change(state, step, on_one_node)
        if not step.expect:
            continue
        compiled = compile(Snapshot().apply(1, state.items()), pods)
        for probe, expectation in step.expect.items():
            for source, destination in topology.pairs():
                for family in probe.families:
                    found = reaches(compiled, topology, probe, family, source, destination)
                    if found != expectation.allows(source, destination):
                        wrong.append(f"step {number}: {source} > {destination} IPv{family} {probe}: {found}")
    assert not wrong
