"""A compiler that has seen other states before says what one says that has not: state, not history."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from policy_cluster import pod, resource, snapshot
from policy_worlds import PODS, World
from test_policy_doubt import crowded
from test_policy_properties import DEEP, SEEDS, SETTINGS

from core.names import Key
from core.resources import HostEndpoint, Metadata, Node, Resource
from core.resources.network import HostEndpointSpec
from core.resources.policy import Direction
from core.snapshot import Snapshot
from policy.compile import Compiled, Compiler, compile
from policy.model import Plane

CHANGES = 4
FEWER = settings(SETTINGS, max_examples=5_000 if DEEP else 40)


def hosts(rng: Random) -> list[Resource]:
    """Interfaces of the node, with or without addresses."""
    return [
        HostEndpoint(
            metadata=Metadata(name=name, labels=rng.choice([{}, {"app": "web"}, {"env": "db"}])),
            spec=HostEndpointSpec(
                node="n1",
                interface_name=interface,
                expected_ips=rng.choice([[], ["192.168.7.7"], ["192.168.0.1", "fd99::1"]]),
                profiles=rng.choice([[], ["custom"], ["absent"]]),
            ),
        )
        for name, interface in rng.sample([("eth0", "eth0"), ("any", "*")], rng.randint(0, 2))
    ]


def changed(rng: Random, state: Snapshot, world: World) -> Snapshot:
    """A state made of this one: things come from another world, go, move, break or are mended."""
    keys = sorted([*(key for table in state.tables.values() for key in table), *state.problems])
    edits: list[tuple[Key, Resource | str | None]] = [
        (each.key, each) for each in rng.sample(world.resources, rng.randint(0, 4))
    ]
    edits += [
        (key, rng.choice([None, None, "spec: something is wrong"]))
        for key in rng.sample(keys, min(len(keys), rng.randint(0, 2)))
    ]
    if rng.random() < 0.3:
        address = rng.choice(sorted(address for own in PODS.values() for address in own))
        moved = pod(rng.choice("ab"), rng.choice(["p3", "q1"]), [address], {"app": rng.choice(["web", "db"])})
        edits.append((moved.key, moved))
    edits += [
        (key, next((each for each in world.resources if each.key == key), None))
        for key in rng.sample(sorted(state.problems), min(len(state.problems), rng.randint(0, 2)))
    ]
    return state.apply(state.revision + 1, edits)


def same(one: Compiled, other: Compiled) -> None:
    for name, table in one.tables.items():
        assert other.tables[name] == table
    assert one == other


@FEWER
@given(seed=SEEDS)
def test_what_was_compiled_before_leaves_no_trace(seed: int) -> None:
    rng = Random(seed)
    compiler, world = Compiler(), crowded(rng)
    state = snapshot([*world.resources, *hosts(rng)])
    for _ in range(CHANGES):
        local = rng.sample(world.local, rng.randint(1, len(world.local)))
        ours = sorted(state.of(HostEndpoint))
        before = compiler.compile(state, local, ours)
        if not before.settled:
            before = compiler.compile(state, local, ours)
        same(before, compile(state, local, ours))
        after = compiler.compile(state, local, ours)
        assert after.tables is before.tables
        assert after.identity.exact is before.identity.exact
        other = crowded(rng)
        state = changed(rng, state, World([*other.resources, *hosts(rng)], other.local))


@FEWER
@given(seed=SEEDS)
def test_a_host_endpoint_has_tables_in_every_plane(seed: int) -> None:
    rng = Random(seed)
    world = crowded(rng)
    state = snapshot([*world.resources, *hosts(rng)])
    ours = sorted(state.of(HostEndpoint))
    compiled = compile(state, world.local, ours)
    for key in ours:
        ways = {(plane, way) for each, plane, way in compiled.hosts if each == key}
        assert ways == {
            (plane, way)
            for plane in (Plane.HOST, Plane.FORWARD, Plane.PRE_DNAT, Plane.UNTRACKED)
            for way in Direction
            if (plane, way) != (Plane.PRE_DNAT, Direction.EGRESS)
        }
    for (_, plane, way), name in compiled.hosts.items():
        assert (compiled.tables[name].plane, compiled.tables[name].direction) == (plane, way)


def test_what_comes_to_be_closed_is_told_although_its_policy_stays_as_it_is() -> None:
    peers = [{"nodes": {"matchLabels": {"of": "nobody"}}}]
    closed = resource(
        {
            "apiVersion": "policy.networking.k8s.io/v1alpha1",
            "kind": "AdminNetworkPolicy",
            "metadata": {"name": "first"},
            "spec": {"priority": 1, "subject": {"namespaces": {}}, "egress": [{"action": "Allow", "to": peers}]},
        }
    )
    compiler, state = Compiler(), snapshot([closed])
    assert closed.key not in compiler.compile(state, []).problems
    state = state.apply(2, [(Key(Node.KIND, "", "n1"), "spec: something is wrong")])
    assert "nodes that cannot be read" in compiler.compile(state, []).problems[closed.key]
    state = state.apply(3, [(Key(Node.KIND, "", "n1"), None)])
    assert closed.key not in compiler.compile(state, []).problems
