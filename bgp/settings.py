"""A node's BGP settings, its own and as its neighbours see them: AS number, port, addresses, router id."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from core.addr import Address
from core.resources import BGPConfiguration, Node
from core.snapshot import Snapshot
from core.values import as_number

DEFAULT_AS: Final = 64512
DEFAULT_PORT: Final = 179
DEFAULT_HOLD_S: Final = 90
DEFAULT_RESTART_S: Final = 120
MAX_RESTART_S: Final = 4095
MAX_HOLD_S: Final = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a node brings to every session."""

    as_number: int
    port: int
    router_id: IPv4Address
    addresses: tuple[Address, ...]
    listen: tuple[Address, ...]

    def address(self, version: int) -> Address | None:
        """The node's address of IP `version`."""
        return next((address for address in self.addresses if address.version == version), None)


def settings(snapshot: Snapshot, node: Node) -> Settings:
    """The settings of `node`: its own AS number, then BGPConfiguration `node.NAME`, then `default`.

    Raises ValueError for an AS number that is none.
    """
    name = node.metadata.name
    configurations = [
        found.spec
        for found in (snapshot.get(BGPConfiguration, f"node.{name}"), snapshot.get(BGPConfiguration, "default"))
        if found
    ]
    numbers = [node.spec.bgp.as_number if node.spec.bgp else None, *(each.as_number for each in configurations)]
    ports = [each.listen_port for each in configurations]
    modes = [each.bind_mode for each in configurations]
    addresses = tuple(interface.ip for interface in (node.spec.bgp.interfaces if node.spec.bgp else ()))
    bound = next(filter(None, modes), "None") == "NodeIP"
    return Settings(
        as_number=next((as_number(number) for number in numbers if number), DEFAULT_AS),
        port=next(filter(None, ports), DEFAULT_PORT),
        router_id=next((a for a in addresses if isinstance(a, IPv4Address)), _hashed(name)),
        addresses=addresses,
        listen=addresses if bound else tuple(type(address)(0) for address in addresses),
    )


def _hashed(name: str) -> IPv4Address:
    """A router id for a node without an IPv4 address; never 0."""
    return IPv4Address(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) or 1)
