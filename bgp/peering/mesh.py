"""The node-to-node mesh: a session with every other node, unless it is off. Pure.

Route reflectors are in no mesh, neither as ourselves nor as the other end (calico.md 1.4, Route reflector). A node with
an AS number of its own is in it, by eBGP. Of two nodes the one with the higher address calls. The mesh's settings are
BGPConfiguration `default`'s: an unequal mesh would be none.
"""

from __future__ import annotations

from collections.abc import Iterator

from bgp.model import Blocked, PeerType, Session
from bgp.peering.settings import Settings
from bgp.peering.terms import of_mesh
from bgp.peering.wishes import blocked, opened, with_node
from core.resources import BGPConfiguration, Node
from core.snapshot import Snapshot


def mesh(snapshot: Snapshot, node: Node, ours: Settings) -> Iterator[Session | Blocked]:
    """The mesh's sessions of `node`; all of them blocked when the mesh's password cannot be had."""
    cluster = snapshot.get(BGPConfiguration, "default")
    spec = cluster.spec if cluster else None
    if (spec and spec.node_to_node_mesh_enabled is False) or ours.cluster_id is not None:
        return
    terms, reason = None, ""
    try:
        terms = of_mesh(spec, snapshot, ours)
    except ValueError as error:
        reason = f"the mesh's {error}"
    for key, other in sorted(snapshot.of(Node).items()):
        if key.name == node.metadata.name or (other.spec.bgp and other.spec.bgp.route_reflector_cluster_id):
            continue
        name = f"mesh/{key.name}"
        try:
            wishes = list(with_node(name, PeerType.MESH, snapshot, ours, other, both=True))
        except ValueError as error:  # the other node's AS number
            yield Blocked(name=name, peer="", remote_as=0, reason=str(error))
            continue
        for wish in wishes:
            yield opened(wish, terms, ours) if terms else blocked(wish, reason)
    for key, why in sorted(snapshot.problems.items()):
        if key.kind == Node.KIND and key.name != node.metadata.name:
            yield Blocked(name=f"mesh/{key.name}", peer="", remote_as=0, reason=f"its Node cannot be read: {why}")
