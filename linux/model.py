"""What the kernel holds, as frozen values: routes, links and the facts agents decide on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from core.addr import Address, Interface, Network


@dataclass(frozen=True, slots=True, order=True)
class RouteKey:
    """What the kernel tells routes apart by, in the main table."""

    destination: Network
    metric: int


class RouteType(Enum):
    """The `rtm_type` of a route."""

    UNICAST = 1
    BLACKHOLE = 6


@dataclass(frozen=True, slots=True)
class NextHop:
    """One way out. `gateway` None means on-link; `onlink` skips the check that the gateway is reachable there."""

    device: int  # ifindex
    gateway: Address | None = None
    onlink: bool = False
    weight: int = 1

    @property
    def order(self) -> tuple[int, int, bytes, bool, int]:
        """What next hops are sorted by: the device, then the gateway, if any, of either family."""
        version, packed = (self.gateway.version, self.gateway.packed) if self.gateway else (0, b"")
        return (self.device, version, packed, self.onlink, self.weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route's value. `next_hops` is empty for a blackhole. `source` is the preferred local address.

    However it is given, it is kept as the kernel keeps it, so that equal routes are equal: next hops sorted, and a
    single one with weight 1 (a share of one is all of it).
    """

    type: RouteType = RouteType.UNICAST
    next_hops: tuple[NextHop, ...] = ()
    source: Address | None = None

    def __post_init__(self) -> None:
        hops = self.next_hops
        if len(hops) > 1:
            object.__setattr__(self, "next_hops", tuple(sorted(hops, key=lambda hop: hop.order)))
        elif hops and hops[0].weight != 1:
            object.__setattr__(self, "next_hops", (replace(hops[0], weight=1),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network interface. `up` is operational: administratively up, with carrier."""

    name: str
    index: int
    up: bool
    mtu: int
    mac: str = ""
    kind: str = ""
    addresses: tuple[Interface, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Via:
    """A route of the main table that is not ours and has a gateway; what next hops are resolved through."""

    destination: Network
    gateway: Address
    device: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What this host's kernel says: links by name, and others' gateway routes (the default route above all)."""

    links: Mapping[str, Link] = field(default_factory=lambda: MappingProxyType({}))
    gateways: tuple[Via, ...] = ()

    def on_link(self, address: Address) -> Link | None:
        """The link whose subnet holds `address`: where it can be reached without a gateway (longest prefix wins)."""
        best: tuple[int, Link] | None = None
        for link in self.links.values():
            for interface in link.addresses:
                network = interface.network
                reachable = link.up and address.version == network.version and address in network
                if reachable and (best is None or network.prefixlen > best[0]):
                    best = (network.prefixlen, link)
        return best[1] if best else None
