"""IP-in-IP devices of ours: made, kept as they should be, removed.

One device carries the traffic to every remote node: it has a local address and no remote one, and each route through
it names its node as the (onlink) gateway. A device called by our name that is something else is replaced; `tunl0`,
which the kernel makes on its own with the first ipip device of a namespace, belongs to others and is left alone.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Final

from core.addr import Address, Interface
from core.errors import Unsupported
from core.names import IPIP_DEVICE
from core.reconcile import Plan
from linux import interfaces
from linux.interfaces import IFF_UP, IFINFO, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO
from linux.netlink import Netlink, Refused, attribute, attributes

OVERHEAD: Final = 20
"""Bytes that IP-in-IP adds to a packet: an outer IPv4 header."""

_LOCAL, _REMOTE, _TTL, _TOS, _PROTO, _PMTUDISC = 2, 3, 4, 5, 9, 10  # IFLA_IPTUN_*
_IPPROTO_IPIP: Final = 4
_HOPS: Final = 64
_INHERIT_TOS: Final = 1

NO_IPIP: Final = frozenset({errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT})
"""How a kernel without the module answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """An ipip device that is up. `local` is the outer source address, `mtu` in bytes; `addresses` are sorted."""

    local: Address
    mtu: int
    addresses: tuple[Interface, ...] = ()
    up: bool = True
    sound: bool = True  # made as we make it; read back as False for a device that must be made anew


class TunnelDriver:
    """Our tunnel devices by name, in the namespace in which the driver is made (a `core.reconcile.Driver`)."""

    name = "tunnels"

    def __init__(self, names: frozenset[str] = frozenset({IPIP_DEVICE})) -> None:
        self._names = names
        self._netlink = Netlink()

    def close(self) -> None:
        """Let go of the socket; the devices stay."""
        self._netlink.close()

    async def read(self) -> Mapping[str, Tunnel]:
        """Every device of ours."""
        return {name: tunnel for name, (_, tunnel) in self._read().items()}

    async def apply(self, plan: Plan[str, Tunnel]) -> Mapping[str, Exception]:
        """Make, change or remove devices, one after the other."""
        failed: dict[str, Exception] = {}
        actual = self._read()
        for name in (*plan.delete, *plan.upsert):
            try:
                if name not in self._names:
                    raise Unsupported(f"tunnel {name}: muslin's tunnel devices are {', '.join(sorted(self._names))}")
                if name in plan.upsert:
                    self._make_so(name, plan.upsert[name], actual.get(name))
                else:
                    interfaces.delete_link(self._netlink, name)
            except (OSError, Unsupported) as error:
                failed[name] = error
        return failed

    def _read(self) -> dict[str, tuple[int, Tunnel]]:
        found = {}
        messages = interfaces.link_messages(self._netlink)
        addresses = interfaces.addresses(self._netlink)
        for data in messages:
            link = interfaces.unpack_link(data)
            if link is None or link.name not in self._names:
                continue
            own = [each for index, each in addresses if index == link.index and not each.ip.is_link_local]
            tunnel = replace(_unpack(data, link.mtu), addresses=tuple(sorted(own, key=_order)))
            found[link.name] = (link.index, tunnel)
        return found

    def _make_so(self, name: str, wanted: Tunnel, actual: tuple[int, Tunnel] | None) -> None:
        if wanted.local.version != 4:
            raise Unsupported(f"tunnel {name}: IP-in-IP carries IPv4 between IPv4 nodes; {wanted.local} is not one")
        if actual is not None and (actual[1].local, actual[1].sound) != (wanted.local, True):
            interfaces.delete_link(self._netlink, name)
            actual = None
        if actual is None:
            self._add(name, wanted.local)
            actual = self._read()[name]
        index, now = actual
        interfaces.set_link(self._netlink, index, up=True, mtu=wanted.mtu)
        for address in now.addresses:
            if address not in wanted.addresses:
                interfaces.delete_address(self._netlink, index, address)
        for address in wanted.addresses:
            interfaces.add_address(self._netlink, index, address)

    def _add(self, name: str, local: Address) -> None:
        data = (
            attribute(_LOCAL, local.packed)
            + attribute(_TTL, struct.pack("=B", _HOPS))
            + attribute(_TOS, struct.pack("=B", _INHERIT_TOS))
            + attribute(_PMTUDISC, b"\1")
            + attribute(_PROTO, struct.pack("=B", _IPPROTO_IPIP))
        )
        try:
            interfaces.add_link(self._netlink, name, "ipip", data)
        except Refused as refusal:
            if refusal.errno in NO_IPIP:
                raise Unsupported(
                    f"tunnel {name}: this kernel has no ipip; load the module with `modprobe ipip`, or run a kernel "
                    "that has it, or use pools without IP-in-IP"
                ) from refusal
            raise


def _unpack(data: bytes, mtu: int) -> Tunnel:
    """A tunnel without its addresses, from its link's message."""
    info = attributes(attributes(data, IFINFO.size).get(IFLA_LINKINFO, b""))
    given = attributes(info.get(IFLA_INFO_DATA, b""))
    up = bool(IFINFO.unpack_from(data)[3] & IFF_UP)
    kind = info.get(IFLA_INFO_KIND, b"").rstrip(b"\0")
    expected = {_REMOTE: bytes(4), _TTL: bytes([_HOPS]), _TOS: bytes([_INHERIT_TOS]), _PMTUDISC: b"\1"}
    sound = kind == b"ipip" and all(given.get(each) == value for each, value in expected.items())
    local = IPv4Address(given.get(_LOCAL, bytes(4))) if kind == b"ipip" else IPv4Address(0)
    return Tunnel(local=local, mtu=mtu, up=up, sound=sound)


def _order(interface: Interface) -> tuple[int, bytes]:
    return interface.version, interface.packed
