"""From one state of the datastore and the kernel's facts to what the kernel should hold. Pure, and all of it.

    snapshot ─┬─ policy.compile ── policy.render ── Judged ──┐
              │                                              │
    facts ────┼─ endpoints ── sources, dispatch ── filter ───┼── nft      one table
              │           └── host routes ───────┐           │
              ├─ overlay ──── cluster routes ────┴───────────┼── routes   protocol 200
              │           └── IP-in-IP device ───────────────┼── tunnels
              ├─ nat ────────────────────────────────────────┘
              └─ forwarding, per link ────────────────────────── sysctls

Rules do not wait for links (an interface may be known before it exists); routes and sysctls do.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from core.names import IPIP_DEVICE
from core.nftables import Element, Ruleset
from core.resources import FelixConfiguration, IPAMBlock, IPPool, Node, WorkloadEndpoint
from core.resources.network import FelixConfigurationSpec
from core.snapshot import Snapshot
from felix import filter as frame
from felix import host_frame
from felix.cut import Ruling
from felix.endpoints import Endpoints, endpoints, host_routes
from felix.endpoints import sysctls as endpoint_sysctls
from felix.failsafe import Failsafes
from felix.failsafe import failsafes as failsafes_of
from felix.hosts import Hosts, hosts, local_keys
from felix.model import Config, Desired, Judged
from felix.nat import nat
from felix.overlay import may_tunnel, overlay, tunnels
from felix.overlay import sysctls as tunnel_sysctls
from linux.model import Facts
from linux.tunnels import Tunnel
from policy.compile import compile as compile_policy
from policy.render import render


def judge(snapshot: Snapshot, node: str) -> Judged:
    """The policy part: the same for the same snapshot, whatever the facts."""
    pods = [each.key for each in endpoints(snapshot, Facts(), node).local]
    compiled = compile_policy(snapshot, pods, local_keys(snapshot, node))
    return Judged(
        rules=render(compiled),
        chains=compiled.chains,
        hosts=host_frame.stacks(compiled),
        problems=compiled.problems,
        compiled=compiled,
        lost=compiled.lost,
    )


def desired(snapshot: Snapshot, facts: Facts, config: Config, judged: Judged | None = None) -> Desired:
    """What this node's kernel should hold. `judged`, when given, is `judge` of the same snapshot, already made."""
    judged = judged or judge(snapshot, config.node)
    settings = settings_of(snapshot, config.node)
    local = snapshot.get(Node, config.node)
    ours = endpoints(snapshot, facts, config.node)
    cluster = overlay(snapshot, facts, local, config.node)
    devices = tunnels(snapshot, facts, local, settings.ipip_mtu)
    unjudged = {each.key: "policy made no chains for it" for each in ours.local if each.key not in judged.chains}
    guarded = hosts(snapshot, facts, config.node)
    failsafes = failsafes_of(settings, config.datastore)
    return Desired(
        revision=snapshot.revision,
        stale=snapshot.stale,
        sysctls=MappingProxyType(_sysctls(snapshot, facts, ours)),
        tunnels=devices,
        nft=_nft(snapshot, ours, judged, settings, devices.get(IPIP_DEVICE), guarded, failsafes),
        routes=MappingProxyType({**cluster.routes, **dict(pair for each in ours.local for pair in host_routes(each))}),
        endpoints=ours.local,
        rejected=MappingProxyType({**ours.rejected, **unjudged, **guarded.rejected}),
        problems=(
            *_problems(snapshot, judged, config.node),
            *cluster.problems,
            *host_frame.ignored(guarded.local, judged.hosts),
        ),
        hosts=guarded.local,
        tunnelled=tuple(sorted(pool.metadata.name for pool in snapshot.of(IPPool).values() if may_tunnel(pool))),
        awaited=any(name not in facts.links or not facts.links[name].up for name in devices),
        ruling=_ruling(snapshot, facts, config.node, ours, judged, settings),
    )


def _ruling(
    snapshot: Snapshot, facts: Facts, node: str, ours: Endpoints, judged: Judged, settings: FelixConfigurationSpec
) -> Ruling:
    known = snapshot.of(WorkloadEndpoint)
    return Ruling(
        compiled=judged.compiled,
        owners=MappingProxyType(
            {
                address: (each.key, each.interface, known[each.key].spec.container_id)
                for each in ours.local
                for address in each.addresses
            }
        ),
        host=frozenset(interface.ip for each in facts.links.values() for interface in each.addresses),
        blocks=tuple(each.spec.network for each in snapshot.of(IPAMBlock).values() if each.spec.node == node),
        enabled=settings.policy_cut_connections != "Disabled",
    )


def settings_of(snapshot: Snapshot, node: str) -> FelixConfigurationSpec:
    """FelixConfiguration `default`, each field overridden by `node.NAME` where that sets it."""
    merged = FelixConfigurationSpec()
    for name in ("default", f"node.{node}"):
        found = snapshot.get(FelixConfiguration, name)
        if found:
            given = {k: v for k, v in msgspec.structs.asdict(found.spec).items() if v is not None}
            merged = msgspec.structs.replace(merged, **given)
    return merged


def _sysctls(snapshot: Snapshot, facts: Facts, ours: Endpoints) -> dict[str, str]:
    found = {"net/ipv4/ip_forward": "1"}
    pools = {pool.spec.network.version for pool in snapshot.of(IPPool).values()}
    if 6 in pools | {address.version for each in ours.local for address in each.addresses}:
        found["net/ipv6/conf/all/forwarding"] = "1"
    for endpoint in ours.local:
        found.update(endpoint_sysctls(endpoint))
    if IPIP_DEVICE in facts.links:
        found.update(tunnel_sysctls(IPIP_DEVICE))
    return found


def _nft(
    snapshot: Snapshot,
    ours: Endpoints,
    judged: Judged,
    settings: FelixConfigurationSpec,
    tunnel: Tunnel | None,
    guarded: Hosts,
    failsafes: Failsafes,
) -> Mapping[str, Ruleset]:
    """The table in parts, of which only those are new that changed."""
    nodes = [address for node in snapshot.of(Node).values() for v in (4, 6) if (address := node.address(v))]
    ends: dict[Element, str] = {}
    for endpoint in ours.local:
        if endpoint.key in judged.chains:
            ends.update(frame.dispatch(endpoint, *judged.chains[endpoint.key]))
    if tunnel:
        ends.update(frame.nodes(address for address in nodes if address.version == 4))
    inner = next((interface.ip for interface in tunnel.addresses), None) if tunnel else None
    exempt = nodes if settings.nat_outgoing_exclusions == "IPPoolsAndHostIPs" else ()
    to_host = frame.verdict_to_host(settings.default_endpoint_to_host_action)
    shape, ipip = host_frame.shape(guarded.local, judged.hosts), tunnel is not None
    spoofing = any(endpoint.spoofs for endpoint in ours.local)
    hosted = host_frame.part(shape, guarded.local, judged.hosts, failsafes, ipip=ipip) if shape else None
    return MappingProxyType(
        {
            "frame": frame.base(to_host, ipip=ipip, spoofing=spoofing, hosts=host_frame.rules(shape)),
            **({"hosts": hosted} if hosted else {}),
            "dispatch": Ruleset(elements=MappingProxyType(ends)),
            "nat": nat(snapshot.of(IPPool).values(), exempt, inner),
            **judged.rules,
        }
    )


def _problems(snapshot: Snapshot, judged: Judged, node: str) -> list[str]:
    wrong = {**snapshot.problems, **judged.problems}
    found = [f"{key}: {why}" for key, why in sorted(wrong.items(), key=lambda item: item[0])]
    if judged.lost:
        found.append(
            f"{judged.lost} kinds of address are denied here, as the packet mark has no number left for them: "
            "write policy with fewer different selectors and nets"
        )
    if snapshot.get(Node, node) is None:
        found.append(
            f"there is no Node {node} in the datastore: no tunnels and no routes to other nodes until there is"
        )
    return found
