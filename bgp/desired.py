"""The speaker a node should have: pure, from a snapshot.

    BGPPeer of this node (node, nodeSelector, neither)  ── peerIP ─────────> one session
                                                        ── peerSelector ───> one per selected node and family
    a BGPPeer elsewhere whose peerSelector takes us     ── (mirror) ───────> one per node it belongs to
    BGPConfiguration nodeToNodeMeshEnabled              ── every node ─────> one per node and family
    IPAMBlock of ours, in exported pools                ───────────────────> adverts: aggregates, never a pod's own

A session whose peer is named and cannot be had exactly as written (a filter, a password, an address that lacks) is
blocked with the reason: an unfiltered session in its place would be open where somebody asked for closed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from bgp.model import Blocked, Session, Speaker
from bgp.originate import originated
from bgp.settings import (
    DEFAULT_HOLD_S,
    DEFAULT_PORT,
    DEFAULT_RESTART_S,
    MAX_HOLD_S,
    MAX_RESTART_S,
    Settings,
    settings,
)
from core.addr import Address
from core.errors import Invalid, NotFound, Problem
from core.resources import BGPConfiguration, BGPPeer, Node
from core.resources.bgp import BGPConfigurationSpec
from core.selector import parse
from core.snapshot import Snapshot
from core.values import as_number, duration, peer_address
from linux.model import Facts

FAMILIES: Final = (4, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A session somebody asks for. `reason` non-empty: it must not be opened."""

    name: str
    peer: Address | None
    port: int = DEFAULT_PORT
    remote_as: int = 0
    calls: bool = True
    reason: str = ""


def desired(snapshot: Snapshot, name: str) -> Speaker:
    """The speaker of node `name`. Raises `NotFound` or `Invalid` when the node itself is missing
    or wrong: then nothing should be changed."""
    node = snapshot.get(Node, name)
    if node is None:
        raise NotFound(f"there is no Node {name}; apply one, with its addresses in spec.bgp")
    try:
        ours = settings(snapshot, node)
    except ValueError as error:
        raise Invalid([Problem(what=f"Node {name} or its BGPConfiguration", why=str(error))]) from error
    sessions: dict[Address, Session] = {}
    blocked: list[Blocked] = []
    for outcome in _outcomes(snapshot, node, ours):
        if isinstance(outcome, Blocked):
            blocked.append(outcome)
        elif outcome.peer in sessions:
            reason = f"{sessions[outcome.peer].name} has a session with this address already"
            blocked.append(_blocked(outcome.name, outcome.peer, outcome.remote_as, reason))
        else:
            sessions[outcome.peer] = outcome
    said = originated(snapshot, name)
    return Speaker(
        router_id=ours.router_id,
        as_number=ours.as_number,
        port=ours.port,
        listen=ours.listen,
        addresses=ours.addresses,
        sessions=tuple(sessions.values()),
        blocked=tuple(blocked),
        own=said.own,
        pools=said.pools,
        problems=(*_problems(node), *said.problems),
    )


def absent(speaker: Speaker, facts: Facts) -> tuple[str, ...]:
    """A sentence for each address of the speaker's that no link of this host has: no session can start from it."""
    present = {interface.ip for link in facts.links.values() for interface in link.addresses}
    return tuple(
        f"this host has no address {address} (Node spec.bgp.ipv{address.version}Address)"
        for address in speaker.addresses
        if address not in present
    )


def _outcomes(snapshot: Snapshot, node: Node, ours: Settings) -> Iterator[Session | Blocked]:
    for key, peer in sorted(snapshot.of(BGPPeer).items()):
        label = f"BGPPeer/{key.name}"
        try:
            wishes = _wishes(label, peer, snapshot, node, ours)
            yield from [_session(wish, peer, ours) for wish in wishes if wish.peer not in ours.addresses]
        except ValueError as error:  # a selector, an AS number, a duration: this peer's blame, and only this peer's
            yield Blocked(name=label, peer=peer.spec.peer_ip, remote_as=0, reason=str(error))
    yield from _mesh(snapshot, node, ours)


def _wishes(label: str, peer: BGPPeer, snapshot: Snapshot, node: Node, ours: Settings) -> Iterator[_Wish]:
    spec = peer.spec
    here = _applies(peer, node)
    if spec.peer_selector:
        takes_us = spec.reverse_peering != "Manual" and parse(spec.peer_selector).matches(node.metadata.labels)
        for key, other in sorted(snapshot.of(Node).items()):
            mine = here and parse(spec.peer_selector).matches(other.metadata.labels)
            mirrored = takes_us and _applies(peer, other)
            if key.name != node.metadata.name and (mine or mirrored):
                both = spec.reverse_peering != "Manual" or (mine and takes_us)
                yield from _with_node(f"{label}/{key.name}", snapshot, ours, other, both=both)
    elif here and spec.local_workload_selector:
        yield _Wish(name=label, peer=None, reason="localWorkloadSelector is not supported yet")
    elif here:
        yield _with_address(label, peer)


def _applies(peer: BGPPeer, node: Node) -> bool:
    if peer.spec.node:
        return peer.spec.node == node.metadata.name
    return not peer.spec.node_selector or parse(peer.spec.node_selector).matches(node.metadata.labels)


def _with_address(label: str, peer: BGPPeer) -> _Wish:
    spec = peer.spec
    address, port = peer_address(spec.peer_ip)
    if spec.as_number is None:
        return _Wish(name=label, peer=address, reason="asNumber is needed with peerIP")
    return _Wish(name=label, peer=address, port=port or DEFAULT_PORT, remote_as=as_number(spec.as_number))


def _with_node(label: str, snapshot: Snapshot, ours: Settings, other: Node, *, both: bool) -> Iterator[_Wish]:
    """One session a family that both nodes have; when both ends know of it, the higher address calls."""
    theirs = settings(snapshot, other)
    for family in FAMILIES:
        local, remote = ours.address(family), theirs.address(family)
        if local is not None and remote is not None:
            calls = not both or int(local) > int(remote)
            yield _Wish(name=label, peer=remote, port=theirs.port, remote_as=theirs.as_number, calls=calls)


def _session(wish: _Wish, peer: BGPPeer, ours: Settings) -> Session | Blocked:
    spec = peer.spec
    reason = wish.reason or _unsupported(peer)
    local = ours.address(wish.peer.version) if wish.peer else None
    if not reason and local is None and wish.peer:
        reason = f"this node has no IPv{wish.peer.version} address"
    if reason or wish.peer is None:
        return _blocked(wish.name, wish.peer or peer.spec.peer_ip, wish.remote_as, reason)
    return Session(
        name=wish.name,
        peer=wish.peer,
        port=wish.port,
        local=None if spec.source_address == "None" else local,
        local_as=as_number(spec.local_as_number) if spec.local_as_number else ours.as_number,
        remote_as=wish.remote_as,
        hold_s=_hold(spec.keepalive_time),
        restart_s=_restart(spec.max_restart_time),
        passive=not wish.calls,
        ttl_hops=None if spec.ttl_security is None else max(1, spec.ttl_security),
        own_as_allowed=spec.num_allowed_local_as_numbers or 0,
    )


def _unsupported(peer: BGPPeer) -> str:
    spec = peer.spec
    if spec.filters:
        return f"filters ({', '.join(spec.filters)}) are not supported yet; unfiltered it would be open"
    if spec.password:
        return "password: its Secret cannot be read; without it the session would be unprotected"
    if spec.reachable_by:
        return "reachableBy is not supported yet"
    return ""


def _mesh(snapshot: Snapshot, node: Node, ours: Settings) -> Iterator[Session | Blocked]:
    cluster = snapshot.get(BGPConfiguration, "default")
    spec = cluster.spec if cluster else None
    if (spec and spec.node_to_node_mesh_enabled is False) or _reflects(node):
        return
    for key, other in sorted(snapshot.of(Node).items()):
        if key.name == node.metadata.name or _reflects(other):
            continue
        label = f"mesh/{key.name}"
        try:
            wishes = _with_node(label, snapshot, ours, other, both=True)
            yield from [_mesh_session(wish, wish.peer, spec, ours) for wish in wishes if wish.peer]
        except ValueError as error:  # the other node's AS number, or the mesh's restart time
            yield Blocked(name=label, peer="", remote_as=0, reason=str(error))


def _mesh_session(wish: _Wish, peer: Address, spec: BGPConfigurationSpec | None, ours: Settings) -> Session | Blocked:
    if spec and spec.node_mesh_password:
        reason = "nodeMeshPassword: its Secret cannot be read; without it the session would be unprotected"
        return _blocked(wish.name, peer, wish.remote_as, reason)
    return Session(
        name=wish.name,
        peer=peer,
        port=wish.port,
        local=ours.address(peer.version),
        local_as=ours.as_number,
        remote_as=wish.remote_as,
        hold_s=DEFAULT_HOLD_S,
        restart_s=_restart(spec.node_mesh_max_restart_time if spec else None),
        passive=not wish.calls,
    )


def _problems(node: Node) -> Iterator[str]:
    if _reflects(node):
        yield f"Node {node.metadata.name}: routeReflectorClusterID is set and routes are not reflected yet"


def _reflects(node: Node) -> bool:
    return bool(node.spec.bgp and node.spec.bgp.route_reflector_cluster_id)


def _hold(keepalive: str | None) -> int:
    return min(MAX_HOLD_S, max(3, 3 * int(duration(keepalive)))) if keepalive else DEFAULT_HOLD_S


def _restart(time: str | None) -> int:
    return min(MAX_RESTART_S, int(duration(time))) if time else DEFAULT_RESTART_S


def _blocked(name: str, peer: Address | str, remote_as: int, reason: str) -> Blocked:
    return Blocked(name=name, peer=str(peer), remote_as=remote_as, reason=reason)
