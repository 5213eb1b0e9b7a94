"""A cluster with as many policy rules as asked for, as users write them, of which the last decides.

Two pods of one node, web and db, and 499 peers elsewhere. `rules` rules apply to what web sends and as many to what db
receives, in policies of 3 to 40 rules:

    every fifth policy is in tier platform (defaultAction Pass), the others in tier default
    half of the rules: one app, one port          the rest: port ranges, lists of ports, several apps, a team of
    four in five ask for the protocol that is     25 apps, one net, three nets, a net denied
    measured, the others for the other one

The packets that are measured, web to db on `DECIDED_LAST`, are allowed by the last rule of the last policy and match
none before it. Datagrams can be sent without Python in the way; where they are measured, UDP is to the rules what TCP
is to most users'. The first two rules are there to be tried: they deny `DENIED_FIRST` and allow `ALLOWED_EARLY`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Final

from core.names import workload_interface
from core.resources import GlobalNetworkPolicy, IPPool, Metadata, Namespace, Node, Resource, Tier, WorkloadEndpoint
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec, WorkloadEndpointSpec
from core.resources.policy import Action, Direction, EntityRule, GlobalNetworkPolicySpec, Rule, TierSpec
from core.snapshot import Snapshot

NODE: Final = "node"
NAMESPACE: Final = "shop"
PODS: Final = {"web": "10.0.0.1", "db": "10.0.0.2"}

DECIDED_LAST: Final = 9000
ALLOWED_EARLY: Final = 7005
DENIED_FIRST: Final = 9500
DENIED_BY_NONE: Final = 9001

_PEERS: Final = 499
_TEAMS: Final = 20
_SIZES: Final = (3, 8, 20, 40, 9)
_OTHER: Final = {"UDP": "TCP", "TCP": "UDP"}


def cluster(rules: int, protocol: str = "UDP") -> Snapshot:
    """The state of the datastore with `rules` rules each way: 0, or at least 3. `protocol`, measured: UDP or TCP."""
    resources: list[Resource] = [
        Node(metadata=Metadata(name=NODE), spec=NodeSpec(bgp=NodeBGPSpec())),
        Namespace(metadata=Metadata(name=NAMESPACE)),
        IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr="10.0.0.0/15")),
        Tier(metadata=Metadata(name="platform"), spec=TierSpec(order=100.0, default_action=Action.PASS)),
        *(_endpoint(name, address, "shop", NODE) for name, address in PODS.items()),
        *(_endpoint(f"peer{n}", f"10.1.{n // 250}.{n % 250}", f"team{n % _TEAMS}", "other") for n in range(_PEERS)),
        *_policies(rules, Direction.INGRESS, "db", "web", protocol),
        *_policies(rules, Direction.EGRESS, "web", "db", protocol),
    ]
    return Snapshot().apply(1, [(each.key, each) for each in resources])


def _endpoint(name: str, address: str, team: str, node: str) -> WorkloadEndpoint:
    spec = WorkloadEndpointSpec(
        orchestrator="k8s",
        node=node,
        pod=name,
        endpoint="eth0",
        ip_networks=[f"{address}/32"],
        profiles=[f"kns.{NAMESPACE}"],
        interface_name=workload_interface(NAMESPACE, name),
    )
    labels = {"app": name, "team": team}
    return WorkloadEndpoint(metadata=Metadata(name=name, namespace=NAMESPACE, labels=labels), spec=spec)


def _policies(rules: int, direction: Direction, pod: str, other: str, protocol: str) -> Iterator[GlobalNetworkPolicy]:
    spellings = (f"app == '{pod}'", f"app == '{pod}' && team == 'shop'", f"app in {{'{pod}', 'cache'}}")
    whom = EntityRule(selector=f"app == '{other}'")
    start = number = 0
    for size in cycle(_SIZES):
        if start >= rules:
            return
        end = rules if rules - start <= size else start + size
        written = [_rule(n, direction, protocol) for n in range(start, end)]
        if start == 0:
            written[0] = _one(direction, Action.DENY, whom, [DENIED_FIRST], protocol)
            written[1] = _one(direction, Action.ALLOW, whom, [f"{ALLOWED_EARLY - 5}:{ALLOWED_EARLY + 5}"], protocol)
        if end == rules:
            written[-1] = _one(direction, Action.ALLOW, whom, [DECIDED_LAST], protocol)
        platform = number % 5 == 0 and end != rules
        yield GlobalNetworkPolicy(
            metadata=Metadata(name=f"{'platform.' if platform else ''}{direction.lower()}-{number}"),
            spec=GlobalNetworkPolicySpec(
                tier="platform" if platform else "default",
                order=float(number),
                selector=spellings[number // 3 % len(spellings)],
                types=[direction],
                ingress=written if direction is Direction.INGRESS else None,
                egress=written if direction is Direction.EGRESS else None,
            ),
        )
        start, number = end, number + 1


def _rule(number: int, direction: Direction, measured: str) -> Rule:
    """The rule of that number: its kind goes round in twenties."""
    kind = number % 20
    peer, next_peer = number % _PEERS, (number + 1) % _PEERS
    port = 1000 + number * 7 % 6000
    nets = [f"10.{200 + more}.{number // 20 % 256}.0/24" for more in range(3)]
    protocol = _OTHER[measured] if kind % 5 == 4 else measured
    if kind < 10:
        return _one(direction, Action.ALLOW, EntityRule(selector=f"app == 'peer{peer}'"), [port], protocol)
    if kind < 12:
        high: list[int | str] = [f"{20000 + port}:{20099 + port}"]
        return _one(direction, Action.ALLOW, EntityRule(selector=f"app == 'peer{peer}'"), high, protocol)
    if kind < 14:
        either = EntityRule(selector=f"app in {{'peer{peer}', 'peer{next_peer}'}}")
        return _one(direction, Action.ALLOW, either, [port, port + 1, 30000 + port], protocol)
    if kind < 16:
        return _one(direction, Action.ALLOW, EntityRule(selector=f"team == 'team{number % _TEAMS}'"), [port], protocol)
    if kind < 18:
        return _one(direction, Action.ALLOW, EntityRule(nets=nets[:1]), [port], protocol)
    if kind < 19:
        return _one(direction, Action.ALLOW, EntityRule(nets=nets), [port], protocol)
    return _one(direction, Action.DENY, EntityRule(nets=[f"10.210.{number // 20 % 256}.0/24"]), [], protocol)


def _one(direction: Direction, action: Action, whom: EntityRule, ports: list[int | str], protocol: str) -> Rule:
    if direction is Direction.INGRESS:
        return Rule(action=action, protocol=protocol, source=whom, destination=EntityRule(ports=ports))
    there = EntityRule(selector=whom.selector, nets=whom.nets, ports=ports)
    return Rule(action=action, protocol=protocol, destination=there)
