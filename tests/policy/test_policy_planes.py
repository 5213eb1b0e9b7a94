"""Planes of hosts, and what staged policies would do: the tables against the oracle, on random clusters."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

from hypothesis import given, settings
from policy_cluster import packet, snapshot
from policy_oracle import EARLY, Flow, Oracle
from policy_worlds import World, flows, passing, worlds
from test_policy_properties import DEEP, SEEDS, SETTINGS

from core.names import Key
from core.resources import HostEndpoint, WorkloadEndpoint
from core.resources.policy import Direction
from policy.compile import compile
from policy.evaluate import Judgement, Packet, judge, judge_by
from policy.model import Plane

FLOWS = 12
WORLDS = settings(SETTINGS, max_examples=10_000 if DEEP else 100)
HOST_PLANES = [plane for plane in Plane if plane is not Plane.WORKLOAD]


def seen(flow: Flow, direction: Direction) -> Packet:
    return packet(
        flow.source,
        flow.destination,
        flow.protocol,
        ingress=direction is Direction.INGRESS,
        sport=flow.sport,
        dport=flow.dport,
        icmp=flow.icmp,
    )


def said(judgement: Judgement, *, pending: bool) -> str:
    decision = judgement.pending if pending and judgement.pending is not None else judgement.enforced
    return str(decision.verdict)


@WORLDS
@given(seed=SEEDS)
def test_what_staged_policies_would_do_at_pods(seed: int) -> None:
    rng = Random(seed)
    world: World = worlds().draw(rng)
    state, oracle = snapshot(world.resources), Oracle(world.resources)
    compiled = compile(state, world.local)
    for endpoint in world.local:
        manifest = state.of(WorkloadEndpoint)[endpoint]
        for direction in Direction:
            for flow in [flows(endpoint, direction).draw(rng) for _ in range(FLOWS)]:
                judgement = judge(compiled, endpoint, direction, seen(flow, direction))
                for pending in (False, True):
                    answer = oracle.answer(manifest, str(direction), flow, pending=pending)
                    assert said(judgement, pending=pending) == answer.verdict, (flow, pending, answer)


@WORLDS
@given(seed=SEEDS)
def test_each_plane_of_a_host_decides_as_the_rules_do(seed: int) -> None:
    rng = Random(seed)
    world: World = worlds().draw(rng)
    state, oracle = snapshot(world.resources), Oracle(world.resources)
    hosts = [key for key in world.hosts if key in state.of(HostEndpoint)]
    compiled = compile(state, world.local, hosts)
    for host in hosts:
        manifest = state.of(HostEndpoint)[host]
        for plane in HOST_PLANES:
            for direction in Direction:
                name = compiled.hosts.get((host, plane, direction))
                for flow in [flows_in(rng, host, plane, direction) for _ in range(FLOWS)]:
                    asked = seen(flow, direction)
                    answers = [
                        oracle.answer(manifest, str(direction), flow, plane=str(plane), pending=pending).verdict
                        for pending in (False, True)
                    ]
                    if name is None:  # nothing is asked there
                        assert answers == [left_alone(plane)] * 2, (host, plane, flow)
                        continue
                    number = compiled.identity.of(asked.peer)
                    judgement = judge_by(compiled.tables[name], number, asked, asked.local)
                    found = [said(judgement, pending=pending) for pending in (False, True)]
                    assert found == answers, (host, plane, direction, flow)


def flows_in(rng: Random, host: Key, plane: Plane, direction: Direction) -> Flow:
    """What a plane sees: the host's own packets, and in most planes those of others too."""
    through = plane is Plane.FORWARD or (plane is not Plane.HOST and rng.random() < 0.3)
    flow: Flow = passing().draw(rng) if through else flows(host, direction).draw(rng)
    assert ip_address(flow.source).version == ip_address(flow.destination).version
    return flow


def left_alone(plane: Plane) -> str:
    return "Continue" if plane in EARLY else "Allow"
