"""Addresses of ours on the loopback interface: a host answers on them, and does nothing else with them.

    IPv4   scope host                    never chosen as the source of what the host sends by itself
    IPv6   deprecated, no prefix route   likewise, and nothing of it in the main table
    both   IFA_PROTO 200                 ours, for a process with no memory

An address of somebody else's is never touched. It serves as well as one of ours: when it is the one that is wanted,
there is nothing to do. The kernel keeps IFA_PROTO since Linux 5.18; on an older one the driver knows what it has added
itself, and what an earlier process added is somebody else's. Sources: rtnetlink(7), linux/if_addr.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from core.addr import Interface
from core.reconcile import Plan
from core.routing import RouteProtocol
from linux.interfaces import IFADDR, RTM_DELADDR, RTM_GETADDR, RTM_NEWADDR, family, unpack_address
from linux.netlink import NLM_F_CREATE, NLM_F_EXCL, Attributes, Netlink, Refused, attribute, attributes

LOOPBACK: Final = 1
"""The ifindex of `lo`, in every namespace (LOOPBACK_IFINDEX)."""

UNMARKED: Final = (
    "this kernel does not keep whose an address is (Linux does since 5.18): those that muslin has added to lo are not"
    " known as its own after a restart, and stay there; remove them by hand"
)

_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO, _IFA_FLAGS, _IFA_PROTO = 1, 2, 6, 8, 11
_IFA_F_NODAD, _IFA_F_DEPRECATED, _IFA_F_NOPREFIXROUTE = 0x2, 0x20, 0x200
_SCOPE_UNIVERSE, _SCOPE_HOST = 0, 254
_CACHEINFO: Final = struct.Struct("=IIII")  # preferred and valid lifetimes (s), and two times that the kernel fills in
_FOR_EVER: Final = 0xFFFFFFFF
_U32: Final = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class _Held:
    """One address of `lo`; `sound`: with the scope and flags that we give."""

    ours: bool
    sound: bool


class AddressDriver:
    """Our addresses on `lo`, in the namespace in which the driver is made (a `core.reconcile.Driver`).

    The value is whether the address is as we make it; one that is not is made anew. `protocol` is what marks ours.
    """

    name = "addresses"

    def __init__(self, protocol: int = RouteProtocol.FELIX) -> None:
        self._protocol = int(protocol)
        self._netlink = Netlink()
        self._added: set[Interface] = set()
        self._keeps_protocol = True

    @property
    def warning(self) -> str:
        """What to know of this kernel, once something was wanted of it; "" where there is nothing."""
        return "" if self._keeps_protocol else UNMARKED

    def close(self) -> None:
        """Let go of the socket; the addresses stay."""
        self._netlink.close()

    async def read(self) -> Mapping[Interface, bool]:
        """Every address of ours; raises OSError if the kernel cannot tell."""
        return {address: each.sound for address, each in self._read().items() if each.ours}

    async def apply(self, plan: Plan[Interface, bool]) -> Mapping[Interface, Exception]:
        """Add and remove, one after the other; what failed is returned with the kernel's reason."""
        failed: dict[Interface, Exception] = {}
        actual = self._read()
        for address in (*plan.delete, *plan.upsert):
            try:
                self._make_so(address, actual.get(address), wanted=address in plan.upsert)
            except Refused as refusal:
                failed[address] = Refused(refusal.errno, f"address {address} on lo: {refusal}")
        if plan.upsert:
            self._read()  # the kernel's answer to whether it keeps the mark
        return failed

    def _read(self) -> dict[Interface, _Held]:
        found: dict[Interface, _Held] = {}
        protocols = False
        for data in self._netlink.dump(RTM_GETADDR, IFADDR.pack(0, 0, 0, 0, 0)):
            index, address = unpack_address(data)
            parts = attributes(data, IFADDR.size)
            protocols = protocols or _IFA_PROTO in parts
            if index != LOOPBACK:
                continue
            marked = parts.get(_IFA_PROTO) == bytes((self._protocol,))
            found[address] = _Held(ours=marked or address in self._added, sound=_sound(address, data, parts))
        self._added &= found.keys()
        if found:  # 127.0.0.1 says whose it is, if the kernel can
            self._keeps_protocol = protocols
        return found

    def _make_so(self, address: Interface, now: _Held | None, *, wanted: bool) -> None:
        if now is not None and not now.ours:
            return
        if now is not None:
            self._request(RTM_DELADDR, 0, address, errno.EADDRNOTAVAIL)
            self._added.discard(address)
        if wanted and self._request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, address, errno.EEXIST):
            self._added.add(address)

    def _request(self, kind: int, flags: int, address: Interface, fine: int) -> bool:
        """Whether it was done; not when there was nothing to do (`fine`), because somebody was faster."""
        try:
            self._netlink.request(kind, flags, _pack(address, self._protocol))
        except Refused as refusal:
            if refusal.errno != fine:
                raise
            return False
        return True


def _pack(address: Interface, protocol: int) -> bytes:
    scope = _SCOPE_HOST if address.version == 4 else _SCOPE_UNIVERSE
    body = IFADDR.pack(family(address), address.network.prefixlen, 0, scope, LOOPBACK)
    body += attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)
    if address.version == 6:
        body += attribute(_IFA_FLAGS, _U32.pack(_IFA_F_NODAD | _IFA_F_NOPREFIXROUTE))
        body += attribute(_IFA_CACHEINFO, _CACHEINFO.pack(0, _FOR_EVER, 0, 0))
    return body + attribute(_IFA_PROTO, bytes((protocol,)))


def _sound(address: Interface, data: bytes, parts: Attributes) -> bool:
    scope = IFADDR.unpack_from(data)[3]
    if address.version == 4:
        return bool(scope == _SCOPE_HOST)
    flags = _U32.unpack(parts[_IFA_FLAGS])[0] if _IFA_FLAGS in parts else 0
    wanted = _IFA_F_DEPRECATED | _IFA_F_NOPREFIXROUTE
    return bool(flags & wanted == wanted)
