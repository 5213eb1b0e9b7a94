"""Route reflection (RFC 4456): who may pass on what was heard within the AS, and how a loop shows.

    heard from     told to clients   told to other iBGP peers
    a client       yes               yes
    another        yes               no

Without a reflector nothing heard over iBGP is told over iBGP: that is what keeps an AS free of loops. A reflector marks
what it passes on: ORIGINATOR_ID says who first told it within the AS, CLUSTER_LIST through which reflectors it went.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from bgp.attributes import Path


def reflects(*, from_client: bool, to_client: bool) -> bool:
    """Whether a reflector passes on from one iBGP peer to another."""
    return from_client or to_client


def loop(path: Path, router_id: IPv4Address, cluster_id: IPv4Address | None) -> str:
    """Why a path heard by router `router_id` (of cluster `cluster_id` when it reflects) has been here before; "" if it
    has not. Such a path must not be used (RFC 4456, 8)."""
    if path.originator == router_id:
        return f"we told it first: ORIGINATOR_ID is our router id {router_id}"
    if cluster_id is not None and cluster_id in path.clusters:
        return f"our cluster id {cluster_id} stands in CLUSTER_LIST: a loop"
    return ""
