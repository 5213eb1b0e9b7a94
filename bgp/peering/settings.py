"""A node's BGP settings, its own and as its neighbours see them: AS number, port, addresses, router id, cluster."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from core.addr import Address
from core.peering import configurations, listen_port
from core.resources import Node
from core.snapshot import Snapshot
from core.values import as_number

DEFAULT_AS: Final = 64512

DEFAULT_HOLD_S: Final = 30
"""A silent peer is given up after this long. Routers' own default, 90 to 240 s, is for links that are slow and dear; in
a rack half a minute of lost packets is long, and two keepalives lost in a row are rare. BFD is for what is faster."""

DEFAULT_RESTART_S: Final = 120
MAX_RESTART_S: Final = 4095
MAX_HOLD_S: Final = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a node brings to every session. `cluster_id` is set when it reflects routes (RFC 4456)."""

    as_number: int
    port: int
    router_id: IPv4Address
    addresses: tuple[Address, ...]
    listen: tuple[Address, ...]
    cluster_id: IPv4Address | None = None

    def address(self, version: int) -> Address | None:
        """The node's address of IP `version`."""
        return next((address for address in self.addresses if address.version == version), None)


def settings(snapshot: Snapshot, node: Node) -> Settings:
    """The settings of `node`: its own AS number, then its configurations'; an AS number of 0 says nothing.

    Raises ValueError for an AS number or a cluster id that is none.
    """
    name = node.metadata.name
    found = configurations(snapshot, name)
    numbers = [node.spec.bgp.as_number if node.spec.bgp else None, *(each.as_number for each in found)]
    modes = [each.bind_mode for each in found]
    addresses = tuple(interface.ip for interface in (node.spec.bgp.interfaces if node.spec.bgp else ()))
    bound = next(filter(None, modes), "None") == "NodeIP"
    return Settings(
        as_number=next((number for number in map(asked_as, numbers) if number), DEFAULT_AS),
        port=listen_port(snapshot, name),
        router_id=next((a for a in addresses if isinstance(a, IPv4Address)), _hashed(name)),
        addresses=addresses,
        listen=addresses if bound else tuple(type(address)(0) for address in addresses),
        cluster_id=cluster_id(node),
    )


def cluster_id(node: Node) -> IPv4Address | None:
    """The cluster that `node` reflects for; None when it does not reflect. ValueError when it is no IPv4 address."""
    text = node.spec.bgp.route_reflector_cluster_id if node.spec.bgp else ""
    return IPv4Address(text) if text else None


def asked_as(given: int | str | None) -> int:
    """An AS number as a manifest gives it; 0 when it gives none. ValueError when it is no AS number."""
    return as_number(given) if given is not None and given != "" else 0


def _hashed(name: str) -> IPv4Address:
    """A router id for a node without an IPv4 address; never 0."""
    return IPv4Address(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) or 1)
