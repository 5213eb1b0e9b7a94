"""Rows and regions say of every packet what the look-up of that packet says, and regions leave nothing out."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_cluster import packet, snapshot
from policy_oracle import Flow
from policy_worlds import World, flows, worlds

from core.resources.policy import Direction
from policy.compile import compile
from policy.evaluate import lookup
from policy.whatif.rows import Book, regions
from policy.whatif.traffic import ALL_TRAFFIC, ICMPS, REST, Traffic, joined


def covers(traffic: Traffic, flow: Flow, named: set[int], cases: list[tuple[int, int]]) -> bool:
    """Whether the packet is of this piece: read from the piece's own words."""
    if traffic.protocol != (flow.protocol if flow.protocol in named else REST):
        return False
    if flow.dport is not None and not traffic.ports[0] <= flow.dport <= traffic.ports[1]:
        return False
    if flow.sport is not None and not traffic.sports[0] <= flow.sport <= traffic.sports[1]:
        return False
    if traffic.icmp is None or flow.icmp is None:
        return True
    exact = flow.icmp if flow.icmp in cases else (flow.icmp[0], -1)
    return traffic.icmp == (exact if exact in cases else (-1, -1))


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_regions_decide_as_look_ups_do(seed: int) -> None:
    rng = Random(seed)
    world: World = worlds().draw(rng)
    compiled = compile(snapshot(world.resources), world.local)
    book = Book(compiled.tables)
    for endpoint in world.local:
        for direction in Direction:
            ingress = direction is Direction.INGRESS
            name = compiled.chains[endpoint][0 if ingress else 1]
            for flow in [flows(endpoint, direction).draw(rng) for _ in range(12)]:
                here, there = (flow.destination, flow.source) if ingress else (flow.source, flow.destination)
                row = book.row(name, compiled.identity.of(ip_address(there)), ip_address(here))
                found = list(regions([row]))
                named = {traffic.protocol for traffic, _ in found if traffic.protocol is not None}
                cases = [traffic.icmp for traffic, _ in found if traffic.icmp and traffic.protocol == flow.protocol]
                mine = [decisions[0] for traffic, decisions in found if covers(traffic, flow, named, cases)]
                asked = packet(
                    flow.source,
                    flow.destination,
                    flow.protocol,
                    ingress=ingress,
                    sport=flow.sport,
                    dport=flow.dport,
                    icmp=flow.icmp,
                )
                expected = lookup(compiled, endpoint, direction, asked)
                if flow.dport is None and flow.protocol not in ICMPS:
                    assert expected in mine, f"{endpoint} {direction} {flow}"
                else:
                    assert mine == [expected], f"{endpoint} {direction} {flow}"


def test_pieces_that_touch_are_said_as_one() -> None:
    whole = [Traffic(protocol=6, ports=span) for span in [(0, 79), (80, 80), (81, 90), (91, 65535)]]
    whole += [Traffic(protocol=17), Traffic(protocol=REST, besides=(6, 17))]
    assert joined(whole, whole) == (ALL_TRAFFIC,)
    assert [str(each) for each in joined(whole[1:3], whole)] == ["tcp/80-90"]
    assert [str(each) for each in joined(whole[:5], whole)] == ["tcp", "udp"]
    assert [str(each) for each in joined([whole[0], whole[2], whole[5]], whole)] == [
        "tcp/0-79",
        "tcp/81-90",
        "anything but tcp, udp",
    ]


def test_pieces_have_words() -> None:
    assert str(Traffic(protocol=1, icmp=(8, -1))) == "icmp type 8"
    assert str(Traffic(protocol=58, icmp=(128, 0))) == "icmpv6 type 128 code 0"
    assert str(Traffic(protocol=1, icmp=(-1, -1))) == "icmp other types"
    assert str(Traffic(protocol=17, ports=(53, 53), sports=(0, 1023))) == "udp/53 from port 0-1023"
    assert str(Traffic(protocol=47)) == "protocol 47"


def test_no_decision_is_given_where_there_is_no_row() -> None:
    assert list(regions([None])) == [(Traffic(protocol=REST), (None,))]
