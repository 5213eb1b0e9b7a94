"""A plan against looking every packet up in both states, and what it says of changes that people make."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_cluster import key, namespace, pod, resource, snapshot
from policy_oracle import Flow
from policy_worlds import EVERYWHERE, HOSTS, LOCAL, OUTSIDE, PODS, World, flows, worlds

from core.addr import Address
from core.names import Key
from core.resources import Resource, WorkloadEndpoint
from core.resources.policy import Direction
from core.snapshot import Snapshot
from policy.compile import Compiled, compile
from policy.evaluate import Packet, lookup
from policy.model import Verdict
from policy.whatif.ends import Crowds, Member, Outside
from policy.whatif.plan import Connection, Flip, cause, plan
from policy.whatif.traffic import REST, Traffic, summary

TWO_OF_A_FAMILY = PODS["a", "p1"]
"""A flip names its pod, which may be flipped at one of its addresses only."""

OWNERS = {ip_address(each): key(*name) for name, addresses in PODS.items() for each in addresses}

OF_HOSTS = {ip_address(each) for addresses in HOSTS.values() for each in addresses}


def allowed(compiled: Compiled, flow: Flow) -> bool:
    """Whether the look-ups of both ends allow the packet."""
    source, destination = ip_address(flow.source), ip_address(flow.destination)
    for own, other, direction in (
        (source, destination, Direction.EGRESS),
        (destination, source, Direction.INGRESS),
    ):
        packet = Packet(
            peer=other, local=own, protocol=flow.protocol, sport=flow.sport, dport=flow.dport, icmp=flow.icmp
        )
        if own in OWNERS and lookup(compiled, OWNERS[own], direction, packet).verdict is Verdict.DENY:
            return False
    return True


def speaks_of(flip: Flip, flow: Flow) -> bool:
    return (
        any(is_at(member, ip_address(flow.source), flip.sources) for member in flip.sources)
        and any(is_at(member, ip_address(flow.destination), flip.destinations) for member in flip.destinations)
        and ip_address(flow.source).version in flip.families
        and any(covers(piece, flow) for piece in flip.traffic)
    )


def is_at(member: Member, address: Address, among: tuple[Member, ...]) -> bool:
    if isinstance(member, Key):
        return OWNERS.get(address) == member
    if address in OWNERS or member.family != address.version or address in OF_HOSTS:
        return False
    return not member.nets or any(address in net for net in member.nets)


def covers(piece: Traffic, flow: Flow) -> bool:
    if piece.protocol is None:
        return True
    if flow.protocol in piece.besides if piece.protocol == REST else flow.protocol != piece.protocol:
        return False
    ports = [(flow.dport, piece.ports), (flow.sport, piece.sports)]
    return all(port is None or first <= port <= last for port, (first, last) in ports) and piece.icmp in (
        None,
        flow.icmp,
        ((flow.icmp or (0, 0))[0], -1),
        (-1, -1),
    )


@settings(max_examples=50, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_a_plan_lists_what_flips_and_nothing_else(seed: int) -> None:
    rng = Random(seed)
    first: World = worlds().draw(rng)
    second: World = worlds().draw(rng)
    endpoints = [each for each in first.resources if isinstance(each, WorkloadEndpoint)]
    before, after = (
        snapshot([*endpoints, *(r for r in world.resources if not isinstance(r, WorkloadEndpoint))])
        for world in (first, second)
    )
    then, now = (compile(each, each.of(WorkloadEndpoint)) for each in (before, after))
    planned = plan(before, after)
    for home in LOCAL:
        for direction in Direction:
            for flow in [flows(key(*home), direction).draw(rng) for _ in range(10)]:
                if not {flow.source, flow.destination} <= set(EVERYWHERE) - set(map(str, OF_HOSTS)):
                    continue
                if OWNERS.get(ip_address(flow.source)) == OWNERS.get(ip_address(flow.destination)):
                    continue
                was, becomes = allowed(then, flow), allowed(now, flow)
                said = [flip for flip in planned.flips if speaks_of(flip, flow)]
                wanted = Verdict.ALLOW if becomes else Verdict.DENY
                # Outside prefixes may be told with the rest: then `any other address` speaks of them too.
                if was != becomes:
                    assert wanted in {flip.after.verdict for flip in said}, flow
                elif not {flow.source, flow.destination} & {*OUTSIDE, *TWO_OF_A_FAMILY} and flow.icmp is None:
                    assert not said, f"{flow} {said}"


SHOP = [
    namespace("shop", {"team": "sales"}),
    namespace("office"),
    *(pod("shop", f"web-{n}", [f"10.0.0.{n}", f"fd00::{n}"], {"app": "web"}) for n in range(1, 9)),
    pod("shop", "db", ["10.0.1.1", "fd00::1:1"], {"app": "db"}),
    pod("office", "desk", ["10.0.2.1", "fd00::2:1"]),
]


def calico(name: str, home: str = "shop", **spec: object) -> Resource:
    return resource(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": home},
            "spec": spec,
        }
    )


LOCKDOWN = calico(
    "lockdown",
    selector="app == 'db'",
    ingress=[{"action": "Deny", "protocol": "TCP", "destination": {"ports": [5432]}}, {"action": "Allow"}],
)


def told(before: Snapshot, after: Snapshot) -> list[str]:
    crowds = Crowds(after)
    return [
        f"{crowds.name(flip.sources)} -> {crowds.name(flip.destinations)} {summary(flip.traffic)}: "
        f"{flip.before.verdict} -> {flip.after.verdict} by {cause(flip.after.reason)}"
        for flip in plan(before, after).flips
    ]


def test_pods_with_the_same_flips_are_told_together() -> None:
    web_only = calico(
        "lockdown",
        selector="app == 'db'",
        ingress=[
            {
                "action": "Deny",
                "protocol": "TCP",
                "source": {"selector": "app == 'web'"},
                "destination": {"ports": [5432]},
            },
            {"action": "Allow"},
        ],
    )
    assert told(snapshot(SHOP), snapshot([*SHOP, web_only])) == [
        "8 pods of shop app=web -> shop/db tcp/5432: Allow -> Deny by default/shop/lockdown ingress rule 0"
    ]


def test_addresses_outside_count_too() -> None:
    assert told(snapshot(SHOP), snapshot([*SHOP, LOCKDOWN])) == [
        f"{crowd} -> shop/db tcp/5432: Allow -> Deny by default/shop/lockdown ingress rule 0"
        for crowd in ("office/desk, 8 pods of shop app=web", "any other IPv4 address, any other IPv6 address")
    ]


def test_the_same_state_flips_nothing() -> None:
    found = plan(snapshot([*SHOP, LOCKDOWN]), snapshot([LOCKDOWN, *reversed(SHOP)]))
    assert found.clean
    assert not found.flips


def test_another_reason_for_the_same_verdict_is_no_flip() -> None:
    again = calico("a-lockdown", selector="app == 'db'", ingress=LOCKDOWN.spec.ingress)  # type: ignore[attr-defined]
    assert plan(snapshot([*SHOP, LOCKDOWN]), snapshot([*SHOP, LOCKDOWN, again])).clean


def test_a_label_of_a_namespace_flips_what_policies_ask_of_it() -> None:
    guarded = calico(
        "friends",
        selector="app == 'db'",
        ingress=[{"action": "Allow", "source": {"namespaceSelector": "team == 'sales'"}}],
    )
    renamed = [namespace("shop", {"team": "buying"}), *SHOP[1:]]
    end = "the end of tier default, ingress (of default/shop/friends)"
    assert told(snapshot([*SHOP, guarded]), snapshot([*renamed, guarded])) == [
        f"8 pods of shop app=web -> shop/db all traffic: Allow -> Deny by {end}"
    ]


def test_a_network_set_flips_its_prefixes() -> None:
    def office(*nets: str) -> Resource:
        return resource(
            {
                "apiVersion": "projectcalico.org/v3",
                "kind": "NetworkSet",
                "metadata": {"name": "partners", "namespace": "shop", "labels": {"role": "partner"}},
                "spec": {"nets": list(nets)},
            }
        )

    guarded = calico(
        "partners", selector="app == 'db'", ingress=[{"action": "Allow", "source": {"selector": "role == 'partner'"}}]
    )
    before = snapshot([*SHOP, guarded, office("192.0.2.0/25")])
    after = snapshot([*SHOP, guarded, office("192.0.2.0/24", "2001:db8::/48")])
    assert told(before, after) == [
        "192.0.2.128/25, 2001:db8::/48 -> shop/db all traffic: Deny -> Allow by default/shop/partners ingress rule 0"
    ]


def test_a_prefix_that_is_a_pods_address_is_not_told_beside_the_pod() -> None:
    only = calico("only", selector="app == 'db'", ingress=[{"action": "Allow", "source": {"nets": ["10.0.2.1/32"]}}])
    shut = calico("only", selector="app == 'db'", ingress=[])
    assert told(snapshot([*SHOP, only]), snapshot([*SHOP, shut])) == [
        "office/desk -> shop/db all traffic: Allow -> Deny by the end of tier default, ingress (of default/shop/only)"
    ]


def test_what_comes_and_goes_is_named_and_does_not_flip() -> None:
    found = plan(snapshot([*SHOP, LOCKDOWN]), snapshot([*SHOP[:-1], pod("shop", "new", ["10.0.3.1"]), LOCKDOWN]))
    assert found.clean
    assert found.added == (key("shop", "new"),)
    assert found.removed == (key("office", "desk"),)


def connection(source: str, destination: str, dport: int) -> Connection:
    return Connection(
        source=ip_address(source), destination=ip_address(destination), protocol=6, sport=40000, dport=dport
    )


def test_live_connections_are_cut_where_their_verdict_turns_to_deny() -> None:
    live = [
        connection("10.0.0.1", "10.0.1.1", 5432),
        connection("10.0.0.1", "10.0.1.1", 80),
        connection("fd00::3", "fd00::1:1", 5432),
        connection("8.8.8.8", "10.0.1.1", 5432),
        connection("8.8.8.8", "9.9.9.9", 5432),
    ]
    closing = plan(snapshot(SHOP), snapshot([*SHOP, LOCKDOWN]), live)
    assert [each.connection for each in closing.cuts] == [live[0], live[2], live[3]]
    assert {cause(each.after.reason) for each in closing.cuts} == {"default/shop/lockdown ingress rule 0"}
    assert not plan(snapshot([*SHOP, LOCKDOWN]), snapshot(SHOP), live).cuts


def test_a_connection_of_a_pod_that_goes_is_not_cut_by_policy() -> None:
    live = [connection("10.0.2.1", "10.0.1.1", 5432)]
    assert not plan(snapshot(SHOP), snapshot([*SHOP[:-1], LOCKDOWN]), live).cuts


@pytest.mark.parametrize("staged", [False, True])
def test_only_what_is_in_force_counts(staged: bool) -> None:
    manifest = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "StagedNetworkPolicy" if staged else "NetworkPolicy",
        "metadata": {"name": "shut", "namespace": "shop"},
        "spec": {"selector": "all()", "types": ["Ingress"]},
    }
    assert plan(snapshot(SHOP), snapshot([*SHOP, resource(manifest)])).clean is staged


def test_outside_names_few_of_many_prefixes() -> None:
    nets = tuple(ip_network(f"192.0.2.{n}/32") for n in range(5))
    assert str(Outside(4, nets)) == "192.0.2.0/32, 192.0.2.1/32, 192.0.2.2/32 and 2 more"
