"""The router's side for GoBGP 3: a whole gobgpd.toml. Pure.

GoBGP speaks and does not forward: its routes reach a kernel through FRR's zebra or another program of yours. It has no
BFD either, which the text says where a BGPPeer asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bgp.router_config.side import CHANGE_ME, Neighbour, RouterSide, head
from core.addr import Address, Network

_LONGEST = {4: 32, 6: 128}


def gobgp(side: RouterSide) -> str:
    """The text; `gobgpd --dry-run -f FILE` checks it."""
    addresses = ", ".join(f'"{each}"' for each in side.addresses)
    lines = [
        *head(side, "#", "GoBGP 3"),
        "[global.config]",
        f"  as = {side.as_number}",
        f'  router-id = "{side.router_id}"',
        f"  port = {side.port}",
        f"  local-address-list = [{addresses}]",
        "[global.use-multiple-paths.config]",
        "  enabled = true",
        "[global.apply-policy.config]",
        '  import-policy-list = ["muslin-taken"]',
        '  default-import-policy = "accept-route"',
        '  export-policy-list = ["muslin-told", "muslin-self"]',
        '  default-export-policy = "accept-route"',
    ]
    for each in side.neighbours:
        lines += ["", *_session(side, each)]
    lines += ["", *_sets(side), *_policies(side)]
    return "\n".join([*lines, ""])


def _session(side: RouterSide, peer: Neighbour) -> Iterator[str]:
    yield f"# node {peer.node}, {peer.peering}"
    if peer.bfd:
        yield f"# {peer.peering} asks for BFD, which GoBGP does not speak: run FRR's bfdd beside it"
    yield "[[neighbors]]"
    yield "  [neighbors.config]"
    yield f'    neighbor-address = "{peer.address}"'
    yield f"    peer-as = {peer.as_number}"
    if peer.secret:
        yield f'    auth-password = "{CHANGE_ME}"  # {peer.secret}'
    yield "  [neighbors.transport.config]"
    yield f'    local-address = "{peer.local}"'
    yield f"    remote-port = {peer.port}"
    yield "  [neighbors.timers.config]"
    yield f"    hold-time = {peer.hold_s}"
    yield f"    keepalive-interval = {peer.keepalive_s}"
    yield "    connect-retry = 5"
    yield "  [neighbors.graceful-restart.config]"
    yield "    enabled = true"
    yield f"    restart-time = {peer.restart_s or 120}"
    if peer.ttl_hops is not None:
        yield "  [neighbors.ttl-security.config]"
        yield "    enabled = true"
        yield f"    ttl-min = {256 - peer.distance}"
    elif peer.far and not side.internal(peer):
        yield "  [neighbors.ebgp-multihop.config]"
        yield "    enabled = true"
        yield f"    multihop-ttl = {peer.distance}"
    if side.internal(peer):
        yield "  [neighbors.route-reflector.config]"
        yield "    route-reflector-client = true"
        yield f'    route-reflector-cluster-id = "{side.router_id}"'
    if peer.hide:
        yield "  [neighbors.as-path-options.config]"
        yield "    replace-peer-as = true"
    yield from _family(peer)


def _family(peer: Neighbour) -> Iterator[str]:
    yield "  [[neighbors.afi-safis]]"
    yield "    [neighbors.afi-safis.config]"
    yield f'      afi-safi-name = "ipv{peer.address.version}-unicast"'
    yield "    [neighbors.afi-safis.mp-graceful-restart.config]"
    yield "      enabled = true"
    if peer.most is not None:
        yield "    [neighbors.afi-safis.prefix-limit.config]"
        yield f"      max-prefixes = {peer.most}"
        yield "      shutdown-threshold-pct = 80"


def _sets(side: RouterSide) -> Iterator[str]:
    for name, prefixes in (("taken", side.taken), ("told", side.told)):
        for version in side.versions:
            if inside := [net for net in prefixes if net.version == version]:
                yield from _prefix_set(f"muslin-{name}{version}", inside)
    for name, internal in (("nodes", None), ("internal", True)):
        for version in side.versions:
            peers = [
                each.address
                for each in side.neighbours
                if each.address.version == version and internal in (None, side.internal(each))
            ]
            if peers:
                yield from _neighbor_set(f"muslin-{name}{version}", peers)


def _prefix_set(name: str, prefixes: Iterable[Network]) -> Iterator[str]:
    yield "[[defined-sets.prefix-sets]]"
    yield f'  prefix-set-name = "{name}"'
    for net in prefixes:
        yield "  [[defined-sets.prefix-sets.prefix-list]]"
        yield f'    ip-prefix = "{net}"'
        yield f'    masklength-range = "{net.prefixlen}..{_LONGEST[net.version]}"'


def _neighbor_set(name: str, peers: Iterable[Address]) -> Iterator[str]:
    yield "[[defined-sets.neighbor-sets]]"
    yield f'  neighbor-set-name = "{name}"'
    yield f"  neighbor-info-list = [{', '.join(chr(34) + str(each) + chr(34) for each in peers)}]"


def _policies(side: RouterSide) -> Iterator[str]:
    """What is outside is rejected, to and from nodes; the rest is left to the router's other policies.

    With no prefix of a family everything of it is outside: a set without any matches nothing in GoBGP, nor does its
    inverse, so nothing is asked of the prefix then.
    """
    for name, prefixes in (("taken", side.taken), ("told", side.told)):
        yield "[[policy-definitions]]"
        yield f'  name = "muslin-{name}"'
        for version in side.versions:
            yield "  [[policy-definitions.statements]]"
            yield f'    name = "muslin-{name}{version}"'
            yield "    [policy-definitions.statements.conditions.match-neighbor-set]"
            yield f'      neighbor-set = "muslin-nodes{version}"'
            if any(net.version == version for net in prefixes):
                yield "    [policy-definitions.statements.conditions.match-prefix-set]"
                yield f'      prefix-set = "muslin-{name}{version}"'
                yield '      match-set-options = "invert"'
            yield "    [policy-definitions.statements.actions]"
            yield '      route-disposition = "reject-route"'
    yield from _next_hop_self(side)


def _next_hop_self(side: RouterSide) -> Iterator[str]:
    """Nodes of the router's own AS know the way to the router, not to those that it hears from elsewhere."""
    yield "[[policy-definitions]]"
    yield '  name = "muslin-self"'
    for version in side.versions:
        if any(side.internal(each) and each.address.version == version for each in side.neighbours):
            yield "  [[policy-definitions.statements]]"
            yield f'    name = "muslin-self{version}"'
            yield "    [policy-definitions.statements.conditions.match-neighbor-set]"
            yield f'      neighbor-set = "muslin-internal{version}"'
            yield "    [policy-definitions.statements.conditions.bgp-conditions]"
            yield '      route-type = "external"'
            yield "    [policy-definitions.statements.actions.bgp-actions]"
            yield '      set-next-hop = "self"'
