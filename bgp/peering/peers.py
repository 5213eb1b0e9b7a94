"""Sessions of BGPPeers. Pure.

    of this node (node, nodeSelector, neither)  ── peerIP ────────────────> one session
                                                ── peerSelector ──────────> one per selected node and family
                                                ── localWorkloadSelector ─> one per selected pod of ours and family
    elsewhere, whose peerSelector takes us      ── (mirror) ──────────────> one per node it belongs to

Whatever is wrong with a BGPPeer blocks that BGPPeer's sessions and no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_interface

from bgp.model import Blocked, PeerType, Session
from bgp.peering.settings import Settings, asked_as, cluster_id
from bgp.peering.terms import of_peer
from bgp.peering.wishes import Wish, blocked, opened, with_node
from bgp.peering.workloads import workloads
from core.addr import Address
from core.peering import DEFAULT_PORT, applies
from core.resources import BGPPeer, Node
from core.resources.bgp import BGPPeerSpec
from core.selector import parse
from core.snapshot import Snapshot
from core.values import peer_address


def peers(snapshot: Snapshot, node: Node, ours: Settings) -> Iterator[Session | Blocked]:
    """What becomes of every session that BGPPeers ask of `node`, in order of their names."""
    nodes = _by_address(snapshot)
    for key, peer in sorted(snapshot.of(BGPPeer).items()):
        name = f"BGPPeer/{key.name}"
        try:
            wishes = list(_wishes(name, peer.spec, snapshot, node, ours, nodes))
        except ValueError as error:  # a selector, an address, an AS number
            yield Blocked(name=name, peer=peer.spec.peer_ip, remote_as=0, reason=str(error))
            continue
        yield from _outcomes([each for each in wishes if not _is_ours(each, ours)], peer.spec, snapshot, ours)
    for key, why in sorted(snapshot.problems.items()):
        if key.kind == BGPPeer.KIND:
            yield Blocked(name=f"BGPPeer/{key.name}", peer="", remote_as=0, reason=f"it cannot be read: {why}")


def _outcomes(
    wishes: list[Wish | Blocked], spec: BGPPeerSpec, snapshot: Snapshot, ours: Settings
) -> Iterator[Session | Blocked]:
    if not wishes:
        return
    terms, reason = None, ""
    try:
        terms = of_peer(spec, snapshot, ours)
    except ValueError as error:  # a filter, a password, a time
        reason = str(error)
    for wish in wishes:
        if isinstance(wish, Blocked):
            yield wish
        else:
            yield opened(wish, terms, ours) if terms else blocked(wish, reason)


def _is_ours(wish: Wish | Blocked, ours: Settings) -> bool:
    """A node is no peer of its own."""
    return isinstance(wish, Wish) and wish.peer in ours.addresses


def _wishes(
    name: str, spec: BGPPeerSpec, snapshot: Snapshot, node: Node, ours: Settings, nodes: Mapping[Address, Node]
) -> Iterator[Wish | Blocked]:
    here = applies(spec, node)
    type_ = PeerType.NODE if spec.node or spec.node_selector else PeerType.GLOBAL
    if spec.peer_selector:
        yield from _of_nodes(name, spec, snapshot, node, ours)
    elif here and spec.local_workload_selector:
        yield from workloads(name, type_, spec, snapshot, node)
    elif here and spec.peer_ip:
        yield _of_address(name, type_, spec, nodes)
    elif here:
        reason = "it names nobody: peerIP, peerSelector or localWorkloadSelector is needed"
        yield Blocked(name=name, peer="", remote_as=0, reason=reason)


def _of_address(name: str, type_: PeerType, spec: BGPPeerSpec, nodes: Mapping[Address, Node]) -> Wish | Blocked:
    peer, port = peer_address(spec.peer_ip)
    number = asked_as(spec.as_number)
    if not number:
        return Blocked(name=name, peer=str(peer), remote_as=0, reason="asNumber is needed with peerIP")
    other = nodes.get(peer)
    return Wish(
        name=name,
        type=type_,
        peer=peer,
        remote_as=number,
        port=port or DEFAULT_PORT,
        node=other.metadata.name if other else "",
        cluster=cluster_id(other) if other else None,
    )


def _of_nodes(name: str, spec: BGPPeerSpec, snapshot: Snapshot, node: Node, ours: Settings) -> Iterator[Wish | Blocked]:
    """Nodes that this node is to peer with, and those that are to peer with it: with `reversePeering: Auto` both ends
    follow from one BGPPeer."""
    here, selected = applies(spec, node), parse(spec.peer_selector)
    mirrors = spec.reverse_peering != "Manual"
    takes_us = selected.matches(node.metadata.labels)
    for key, other in sorted(snapshot.of(Node).items()):
        mine = here and selected.matches(other.metadata.labels)
        theirs = takes_us and applies(spec, other)
        if key.name == node.metadata.name or not (mine or (mirrors and theirs)):
            continue
        type_ = PeerType.GLOBAL if mine and not spec.node and not spec.node_selector else PeerType.NODE
        label = f"{name}/{key.name}"
        try:
            yield from with_node(label, type_, snapshot, ours, other, both=mirrors or (mine and theirs))
        except ValueError as error:  # the other node's AS number
            yield Blocked(name=label, peer="", remote_as=0, reason=str(error))


def _by_address(snapshot: Snapshot) -> Mapping[Address, Node]:
    found: dict[Address, Node] = {}
    for node in snapshot.of(Node).values():
        given = (node.spec.bgp.ipv4_address, node.spec.bgp.ipv6_address) if node.spec.bgp else ()
        for text in filter(None, given):
            address = _address(text)
            if address is not None:
                found[address] = node
    return found


@lru_cache(maxsize=32768)
def _address(text: str) -> Address | None:
    """Of a node's address with its subnet; remembered, as there may be thousands of nodes."""
    try:
        return ip_interface(text).ip
    except ValueError:
        return None
