"""The router's side for BIRD 2: a whole bird.conf. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from bgp.router_config.side import CHANGE_ME, Neighbour, RouterSide, head
from core.addr import Network

LAST_RESORT: Final = "if (65535, 0) ~ bgp_community then bgp_local_pref = 0; "
"""What a node that is being drained tells (GRACEFUL_SHUTDOWN, RFC 8326) is used only where there is nothing else."""


def bird(side: RouterSide) -> str:
    """The text; `bird -p -c FILE` checks it."""
    lines = [*head(side, "#", "BIRD 2"), f"router id {side.router_id};", "", "protocol device {}"]
    for version in side.versions:
        told = f"ipv{version} {{ export where source = RTS_BGP; }};"
        lines += [f"protocol kernel kernel{version} {{ merge paths on; {told} }}"]
    if any(each.bfd for each in side.neighbours):
        lines += ["protocol bfd {}"]
    for version in side.versions:
        taken = [net for net in side.taken if net.version == version]
        lines += ["", *_within(f"muslin_taken{version}", taken, LAST_RESORT)]
        lines += _within(f"muslin_told{version}", [net for net in side.told if net.version == version])
    for each in side.neighbours:
        lines += ["", *_session(side, each)]
    return "\n".join([*lines, ""])


def _within(name: str, prefixes: Sequence[Network], before: str = "") -> Iterator[str]:
    """A function that says whether a route lies inside `prefixes`, and does something `before`."""
    inside = ", ".join(f"{prefix}+" for prefix in prefixes)
    yield f"function {name}() {{ {before}return {f'net ~ [ {inside} ]' if inside else 'false'}; }}"


def _session(side: RouterSide, peer: Neighbour) -> Iterator[str]:
    version = peer.address.version
    yield f"# node {peer.node}, {peer.peering}"
    yield f"protocol bgp {_name(peer)} {{"
    yield f"\tlocal {peer.local} port {side.port} as {side.as_number};"
    yield f"\tneighbor {peer.address} port {peer.port} as {peer.as_number};"
    yield f"\thold time {peer.hold_s}; keepalive time {peer.keepalive_s};"
    yield "\tgraceful restart on;"
    if peer.far or (peer.ttl_hops or 1) > 1:
        yield f"\tmultihop {peer.distance};"
    if peer.ttl_hops is not None:
        yield "\tttl security on;"
    if peer.secret:
        yield f'\tpassword "{CHANGE_ME}";  # {peer.secret}'
    if peer.bfd:
        # what we send is what the node receives: its least intervals, crossed over
        times = f"min tx interval {peer.bfd.receive_ms} ms; min rx interval {peer.bfd.transmit_ms} ms"
        yield f"\tbfd {{ {times}; multiplier {peer.bfd.multiplier}; }};"
    if side.internal(peer):
        yield "\trr client;"
    yield f"\tipv{version} {{"
    yield f"\t\timport where muslin_taken{version}();"
    if peer.most is not None:
        yield f"\t\treceive limit {peer.most} action restart;"
    if side.internal(peer):
        yield "\t\tnext hop self ebgp;"
    hidden = f"bgp_path.delete({peer.as_number}); " if peer.hide else ""
    yield f"\t\texport filter {{ if !muslin_told{version}() then reject; {hidden}accept; }};"
    yield "\t};"
    yield "}"


def _name(peer: Neighbour) -> str:
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in peer.node)
    return f"node_{plain}_v{peer.address.version}"
