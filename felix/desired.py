"""From one state of the datastore and the kernel's facts to what the kernel should hold. Pure, and all of it.

    snapshot ─┬─ policy.compile ── policy.render ── Judged ──┐
              │                                              │
    facts ────┼─ endpoints ── sources, dispatch ── filter ───┼── nft      one table
              │           └── host routes ───────┐           │
              ├─ overlay ──── cluster routes ────┴───────────┼── routes   protocol 200
              │           └── IP-in-IP device ───────────────┼── tunnels
              ├─ peering_address ────────────────────────────┼── addresses of lo
              ├─ nat ────────────────────────────────────────┘
              └─ forwarding, per link ────────────────────────── sysctls

Rules do not wait for links (an interface may be known before it exists); routes and sysctls do.

Each part sees only the tables that it reads, and is worked out again only when one of them, or the facts, are others:
the memo that an agent keeps remembers the rest. One policy's change costs what policy.compile makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Any, Final

import msgspec

from core.addr import Address, Network
from core.memo import Memo
from core.names import IPIP_DEVICE, Key
from core.nftables import Ruleset
from core.parts import Parts
from core.resources import (
    BGPConfiguration,
    BGPPeer,
    FelixConfiguration,
    HostEndpoint,
    IPAMBlock,
    IPPool,
    Namespace,
    Node,
    Profile,
    ServiceAccount,
    WorkloadEndpoint,
)
from core.resources.network import FelixConfigurationSpec
from core.snapshot import Snapshot
from felix import filter as frame
from felix import host_frame
from felix.cut import Ruling
from felix.endpoints import Endpoints, claims, endpoints, host_routes
from felix.endpoints import sysctls as endpoint_sysctls
from felix.failsafe import Failsafes
from felix.failsafe import failsafes as failsafes_of
from felix.guard import Guard
from felix.hosts import Hosts, hosts, is_workloads, local_keys
from felix.model import Config, Desired, Judged
from felix.nat import nat
from felix.overlay import Overlay, Placed, may_tunnel, overlay, placed, tunnels
from felix.overlay import sysctls as tunnel_sysctls
from felix.peering_address import Peering, peering
from felix.peering_address import rules as peering_rules
from felix.view import seen
from linux.model import Facts, Route, RouteKey
from linux.tunnels import Tunnel
from policy.compile import Compiler
from policy.render import Renderer

_NOBODY: Final[tuple[Address, ...]] = ()
_PEERING: Final = (BGPConfiguration, BGPPeer, IPPool, Namespace, Node, Profile, ServiceAccount, WorkloadEndpoint)
"""Kinds that say which pods peer with their node, and how."""

_PEERING_KINDS: Final = frozenset(each.KIND for each in _PEERING)
_ALL_READ: Final[frozenset[Key]] = frozenset()


class Judge:
    """The policy part, snapshot after snapshot: the same for the same snapshot, whatever the facts and those before."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._begin()

    def _begin(self) -> None:
        self._compiler, self._renderer, self._memo = Compiler(), Renderer(), Memo()

    def __call__(self, snapshot: Snapshot) -> Judged:
        """Judge `snapshot`. Not to be called again before it returns."""
        try:
            claimed = claims(snapshot, self._node, self._memo)
            pods = [each.key for each in claimed.local]
            compiled = self._compiler.compile(snapshot, pods, local_keys(snapshot, self._node))
            rules = self._renderer.render(compiled)
        except BaseException:
            self._begin()
            raise
        self._memo.forget()
        return Judged(
            rules=rules,
            chains=compiled.chains,
            hosts=host_frame.stacks(compiled),
            problems=compiled.problems,
            compiled=compiled,
            claims=claimed,
            lost=compiled.lost,
            unnumbered=self._renderer.unnumbered,
            settled=compiled.settled and self._renderer.settled,
        )


def judge(snapshot: Snapshot, node: str) -> Judged:
    """The policy part of one snapshot."""
    return Judge(node)(snapshot)


def desired(
    snapshot: Snapshot, facts: Facts, config: Config, judged: Judged | None = None, memo: Memo | None = None
) -> Desired:
    """What this node's kernel should hold. `judged`, when given, is `judge` of the same snapshot, already made.

    `memo` is what an agent keeps from one decision to the next, and ends the round of.
    """
    memo, node = memo or Memo(), config.node
    judged = judged or judge(snapshot, node)
    settings = memo(settings_of, seen(memo, snapshot, FelixConfiguration), node)
    local = snapshot.get(Node, node)
    pools, host = seen(memo, snapshot, IPPool), memo.steady(_without_pods, facts)
    ours = memo.steady(endpoints, judged.claims, facts.links, memo)
    blocks = memo.each(placed, snapshot.of(IPAMBlock))
    cluster = memo(overlay, blocks, seen(memo, snapshot, IPPool, Node), host, local, node)
    devices = memo(tunnels, pools, host, local, settings.ipip_mtu)
    unjudged = {each.key: "policy made no chains for it" for each in ours.local if each.key not in judged.chains}
    guarded = memo(hosts, seen(memo, snapshot, HostEndpoint), facts if snapshot.of(HostEndpoint) else host, node)
    failsafes = failsafes_of(settings, config.datastore)
    unread = frozenset(key for key in snapshot.problems if key.kind in _PEERING_KINDS) or _ALL_READ
    pods = memo(_peering, seen(memo, snapshot, *_PEERING), node, ours, unread)
    return Desired(
        revision=snapshot.revision,
        stale=snapshot.stale,
        sysctls=memo(_sysctls, pools, host, ours, memo),
        tunnels=devices,
        nft=_nft(memo, snapshot, ours, judged, settings, devices.get(IPIP_DEVICE), guarded, failsafes, pods),
        routes=memo(_routes, cluster, ours, memo),
        endpoints=ours.local,
        rejected=MappingProxyType({**ours.rejected, **unjudged, **guarded.rejected}),
        problems=(
            *_problems(snapshot, judged, node),
            *cluster.problems,
            *pods.problems,
            *host_frame.ignored(guarded.local, judged.hosts),
        ),
        hosts=guarded.local,
        peering=pods,
        tunnelled=memo(_tunnelled, pools),
        awaited=any(name not in facts.links or not facts.links[name].up for name in devices),
        ruling=Ruling(
            compiled=judged.compiled,
            owners=memo.steady(_owners, ours),
            host=memo.steady(_addresses_of, facts),
            blocks=memo(_own_blocks, blocks, node),
            interfaces=memo.steady(_workloads, facts),
            guard=Guard(
                hosts=guarded.local,
                failsafes=failsafes,
                nodes=memo(frozenset, memo(_nodes, seen(memo, snapshot, Node)) if IPIP_DEVICE in devices else _NOBODY),
                to_host=settings.default_endpoint_to_host_action or "Drop",
                calls=pods.calls,
            ),
            enabled=settings.policy_cut_connections != "Disabled",
        ),
    )


def _peering(snapshot: Snapshot, node: str, ours: Endpoints, unread: frozenset[Key]) -> Peering:
    return peering(replace(snapshot, problems=dict.fromkeys(unread, "")), node, ours)


def _without_pods(facts: Facts) -> Facts:
    """What of the host's facts is not about workloads: stays the same while pods come and go."""
    links = {name: each for name, each in facts.links.items() if not is_workloads(name)}
    return Facts(links=links, gateways=facts.gateways)


def _routes(cluster: Overlay, ours: Endpoints, memo: Memo) -> Mapping[RouteKey, Route]:
    """In parts, so that a round looks at those of the endpoints that changed."""
    return Parts({"": cluster.routes, **{each.name: memo(host_routes, each) for each in ours.local}})


def _tunnelled(snapshot: Snapshot) -> tuple[str, ...]:
    return tuple(sorted(pool.metadata.name for pool in snapshot.of(IPPool).values() if may_tunnel(pool)))


def _owners(ours: Endpoints) -> Mapping[Address, tuple[Key, str, str]]:
    return MappingProxyType(
        {address: (each.key, each.interface, each.container) for each in ours.local for address in each.addresses}
    )


def _addresses_of(facts: Facts) -> frozenset[Address]:
    return frozenset(interface.ip for each in facts.links.values() for interface in each.addresses)


def _workloads(facts: Facts) -> frozenset[str]:
    return frozenset(filter(is_workloads, facts.links))


def _own_blocks(blocks: Mapping[Key, Placed], node: str) -> tuple[Network, ...]:
    return tuple(each.network for each in blocks.values() if each.node == node)


def settings_of(snapshot: Snapshot, node: str) -> FelixConfigurationSpec:
    """FelixConfiguration `default`, each field overridden by `node.NAME` where that sets it."""
    merged = FelixConfigurationSpec()
    for name in ("default", f"node.{node}"):
        found = snapshot.get(FelixConfiguration, name)
        if found:
            given = {k: v for k, v in msgspec.structs.asdict(found.spec).items() if v is not None}
            merged = msgspec.structs.replace(merged, **given)
    return merged


def _sysctls(snapshot: Snapshot, host: Facts, ours: Endpoints, memo: Memo) -> Mapping[str, str]:
    found = {"net/ipv4/ip_forward": "1"}
    pools = {pool.spec.network.version for pool in snapshot.of(IPPool).values()}
    if 6 in pools | {address.version for each in ours.local for address in each.addresses}:
        found["net/ipv6/conf/all/forwarding"] = "1"
    for endpoint in ours.local:
        found.update(memo(endpoint_sysctls, endpoint))
    if IPIP_DEVICE in host.links:
        found.update(tunnel_sysctls(IPIP_DEVICE))
    return MappingProxyType(found)


def _nft(
    memo: Memo,
    snapshot: Snapshot,
    ours: Endpoints,
    judged: Judged,
    settings: FelixConfigurationSpec,
    tunnel: Tunnel | None,
    guarded: Hosts,
    failsafes: Failsafes,
    pods: Peering,
) -> Mapping[str, Ruleset]:
    """The table in parts, of which only those are new that changed."""
    nodes = memo(_nodes, seen(memo, snapshot, Node))
    inner = next((interface.ip for interface in tunnel.addresses), None) if tunnel else None
    exempt = nodes if settings.nat_outgoing_exclusions == "IPPoolsAndHostIPs" else _NOBODY
    to_host = frame.verdict_to_host(settings.default_endpoint_to_host_action)
    shape, ipip = host_frame.shape(guarded.local, judged.hosts), tunnel is not None
    spoofing = any(endpoint.spoofs for endpoint in ours.local)
    hosted = host_frame.part(shape, guarded.local, judged.hosts, failsafes, ipip=ipip) if shape else None
    return MappingProxyType(
        {
            "frame": frame.base(
                to_host, ipip=ipip, spoofing=spoofing, peering=bool(pods.calls), hosts=host_frame.rules(shape)
            ),
            **({"hosts": hosted} if hosted else {}),
            **({"peering": memo(peering_rules, pods.calls)} if pods.calls else {}),
            **_dispatch(memo, ours, judged.chains),
            **({"nodes": memo(_between, nodes)} if tunnel else {}),
            "nat": memo(_nat, seen(memo, snapshot, IPPool), exempt, inner),
            **judged.rules,
        }
    )


def _nodes(snapshot: Snapshot) -> tuple[Address, ...]:
    return tuple(address for node in snapshot.of(Node).values() for v in (4, 6) if (address := node.address(v)))


def _dispatch(memo: Memo, ours: Endpoints, chains: Mapping[Key, tuple[str, str]]) -> Mapping[str, Ruleset]:
    """A part for each endpoint: what makes it known."""
    return {
        f"dispatch {each.name}": memo(_known, each.interface, each.addresses, each.spoofs, *chains[each.key])
        for each in ours.local
        if each.key in chains
    }


def _known(*given: Any) -> Ruleset:
    return Ruleset(elements=MappingProxyType(frame.dispatch(*given)))


def _between(nodes: tuple[Address, ...]) -> Ruleset:
    return Ruleset(elements=MappingProxyType(frame.nodes(address for address in nodes if address.version == 4)))


def _nat(snapshot: Snapshot, exempt: tuple[Address, ...], inner: IPv4Address | None) -> Ruleset:
    return nat(snapshot.of(IPPool).values(), exempt, inner)


def _problems(snapshot: Snapshot, judged: Judged, node: str) -> list[str]:
    wrong = {**snapshot.problems, **judged.problems}
    found = [f"{key}: {why}" for key, why in sorted(wrong.items(), key=lambda item: item[0])]
    if judged.lost:
        found.append(
            f"{judged.lost} kinds of address are denied here, as the packet mark has no number left for them: "
            "write policy with fewer different selectors and nets"
        )
    if judged.unnumbered:
        found.append(
            f"{judged.unnumbered} outcomes of rules are denied here, as the packet mark has no number left for them: "
            "write policy with fewer rules that apply to the pods of one node"
        )
    if snapshot.get(Node, node) is None:
        found.append(
            f"there is no Node {node} in the datastore: no tunnels and no routes to other nodes until there is"
        )
    return found
