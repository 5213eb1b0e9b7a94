"""The router's side for FRR 8: a whole configuration for bgpd, bfdd and zebra (frr.conf). Pure."""

from __future__ import annotations

from collections.abc import Iterator

from bgp.router_config.side import CHANGE_ME, Neighbour, RouterSide, head
from core.addr import Network

_WORD = {4: "ip", 6: "ipv6"}
_LONGEST = {4: 32, 6: 128}


def frr(side: RouterSide) -> str:
    """The text; `bgpd -C -f FILE` checks it."""
    lines = [*head(side, "!", "FRR"), "frr defaults traditional", "!"]
    if side.port != 179:
        lines += [f"! bgpd has to listen on port {side.port}: start it with -p {side.port}"]
    lines += ["! what a node that is being drained tells (RFC 8326) is used only where there is nothing else"]
    lines += ["bgp community-list standard MUSLIN-DRAINED permit 65535:0"]
    for version in side.versions:
        lines += _prefix_list("TAKEN", version, side.taken) + _prefix_list("TOLD", version, side.told)
        for name in ("TAKEN", "TOLD"):
            match = f" match {_WORD[version]} address prefix-list MUSLIN-{name}{version}"
            if name == "TAKEN":
                drained = [" match community MUSLIN-DRAINED", " set local-preference 0"]
                lines += [f"route-map MUSLIN-{name}{version} permit 5", match, *drained, "exit"]
            lines += [f"route-map MUSLIN-{name}{version} permit 10", match, "exit"]
    lines += [
        "!",
        f"router bgp {side.as_number}",
        f" bgp router-id {side.router_id}",
        " no bgp default ipv4-unicast",
        " bgp graceful-restart",
        " bgp graceful-restart preserve-fw-state",
        " bgp bestpath as-path multipath-relax",
    ]
    for each in side.neighbours:
        lines += [" !", *_session(side, each)]
    for version in side.versions:
        lines += [" !", f" address-family ipv{version} unicast"]
        for each in side.neighbours:
            if each.address.version == version:
                lines += _family(side, each)
        lines += [" exit-address-family"]
    return "\n".join([*lines, "exit", ""])


def _prefix_list(name: str, version: int, prefixes: tuple[Network, ...]) -> list[str]:
    start, longest = f"{_WORD[version]} prefix-list MUSLIN-{name}{version}", _LONGEST[version]
    own = [prefix for prefix in prefixes if prefix.version == version]
    allowed = [
        f"{start} seq {5 * seq} permit {net}{f' le {longest}' if net.prefixlen < longest else ''}"
        for seq, net in enumerate(own, 1)
    ]
    return allowed or [f"{start} seq 5 deny any"]


def _session(side: RouterSide, peer: Neighbour) -> Iterator[str]:
    to = f" neighbor {peer.address}"
    yield f"{to} remote-as {peer.as_number}"
    yield f"{to} description node {peer.node}, {peer.peering}"
    yield f"{to} update-source {peer.local}"
    if peer.port != 179:
        yield f"{to} port {peer.port}"
    yield f"{to} timers {peer.keepalive_s} {peer.hold_s}"
    yield f"{to} timers connect 5"
    if peer.ttl_hops is not None:
        yield f"{to} ttl-security hops {peer.distance}"
    elif peer.far and not side.internal(peer):
        yield f"{to} ebgp-multihop {peer.distance}"
    if peer.secret:
        yield f" ! {peer.secret}"
        yield f"{to} password {CHANGE_ME}"
    if peer.bfd:
        yield f"{to} bfd {peer.bfd.multiplier} {peer.bfd.transmit_ms} {peer.bfd.receive_ms}"


def _family(side: RouterSide, peer: Neighbour) -> Iterator[str]:
    to, version = f"  neighbor {peer.address}", peer.address.version
    yield f"{to} activate"
    yield f"{to} route-map MUSLIN-TAKEN{version} in"
    yield f"{to} route-map MUSLIN-TOLD{version} out"
    if peer.most is not None:
        yield f"{to} maximum-prefix {peer.most} 80 restart 1"
    if side.internal(peer):
        yield f"{to} route-reflector-client"
        yield f"{to} next-hop-self"
    if peer.hide:
        yield f"{to} as-override"
