"""A cluster of many pods and policies, as users write them: namespaces of teams, apps in versions, tiers of a service.

Pods have the labels app, tier, version and pod-template-hash; namespaces a team. Policies are namespaced: web of an app
may be reached from everywhere on two ports, its api from its web, its db from its api, and one in ten looks across
namespaces by team. Pods of the namespaces go round the nodes, so that every node has some of many.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final

from core.names import workload_endpoint_name, workload_interface
from core.resources import IPPool, Metadata, Namespace, NetworkPolicy, Node, Resource, WorkloadEndpoint
from core.resources.network import IPPoolSpec, NodeBGPSpec, NodeSpec, WorkloadEndpointSpec
from core.resources.policy import Action, Direction, EntityRule, NetworkPolicySpec, Rule

NODE: Final = "node-0"
"""The node that is looked at."""

_FIRST: Final = int(IPv4Address("10.64.0.0"))
_TIERS: Final = ("web", "api", "db")
_APPS: Final = 6
_TEAMS: Final = 20


def cluster(*, pods: int, policies: int, local: int, namespaces: int) -> Iterator[Resource]:
    """All of it; `local` of the pods are on `NODE`, the others on nodes of as many."""
    yield IPPool(metadata=Metadata(name="pods"), spec=IPPoolSpec(cidr="10.64.0.0/10"))
    for number in range(-(-pods // local)):
        address = f"192.168.{number // 250}.{number % 250 + 1}/16"
        bgp = NodeBGPSpec(ipv4_address=address)
        yield Node(metadata=Metadata(name=f"node-{number}"), spec=NodeSpec(bgp=bgp))
    for number in range(namespaces):
        yield Namespace(metadata=Metadata(name=f"ns-{number}", labels={"team": f"team-{number % _TEAMS}"}))
    for number in range(pods):
        yield pod(number, node=number % -(-pods // local), namespace=number % namespaces)
    for number in range(policies):
        yield _policy(number, number % namespaces)


def pod(number: int, *, node: int, namespace: int, version: str = "v1") -> WorkloadEndpoint:
    """One pod; its labels follow from its number."""
    app, tier = number // 3 % _APPS, _TIERS[number % 3]
    name, where = f"app-{app}-{tier}-{number}", f"ns-{namespace}"
    labels = {
        "app": f"app-{app}",
        "tier": tier,
        "version": version,
        "pod-template-hash": f"{(app * 31 + namespace) * 2654435761 % 2**32:08x}",
    }
    spec = WorkloadEndpointSpec(
        orchestrator="k8s",
        node=f"node-{node}",
        pod=name,
        endpoint="eth0",
        ip_networks=[f"{IPv4Address(_FIRST + number + 1)}/32"],
        profiles=[f"kns.{where}", f"ksa.{where}.default"],
        interface_name=workload_interface(where, name),
    )
    metadata = Metadata(name=workload_endpoint_name(f"node-{node}", name), namespace=where, labels=labels)
    return WorkloadEndpoint(metadata=metadata, spec=spec)


def _policy(number: int, namespace: int) -> NetworkPolicy:
    app, tier = number % _APPS, number // _APPS % 3
    target = f"app == 'app-{app}' && tier == '{_TIERS[tier]}'"
    ports: list[int | str] = [80, 443] if tier == 0 else [8000 + app] if tier == 1 else [5432]
    sources = (
        [EntityRule()] if tier == 0 else [EntityRule(selector=f"app == 'app-{app}' && tier == '{_TIERS[tier - 1]}'")]
    )
    if number % 10 == 9:
        sources.append(EntityRule(selector="tier == 'web'", namespace_selector=f"team == 'team-{number % _TEAMS}'"))
    ingress = [
        Rule(action=Action.ALLOW, protocol="TCP", source=source, destination=EntityRule(ports=ports))
        for source in sources
    ]
    spec = NetworkPolicySpec(selector=target, types=[Direction.INGRESS], ingress=ingress)
    return NetworkPolicy(metadata=Metadata(name=f"policy-{number}", namespace=f"ns-{namespace}"), spec=spec)
