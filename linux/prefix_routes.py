"""Routes of one protocol at one metric, by prefix: `linux.routes` for tables of a hundred thousand.

    {Prefix: Route} ──> a template for each route and length ──> the address put into it ──> rtnetlink, by the thousand

What `linux.routes` knows of the kernel's habits holds here too. A route of the protocol at another metric is nobody's
any more: it makes its prefix's value one that nobody can ask for, and goes when the prefix is written.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from core.prefix import Prefix
from core.reconcile import Plan
from core.routing import Metric, RouteProtocol
from linux.model import Route, RouteKey
from linux.netlink import ATTRIBUTE, Netlink, Refused, attributes
from linux.routes import (
    DELETE,
    INLINE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_PRIORITY,
    RTMSG,
    SCOPE_NOWHERE,
    TANGLE,
    UPSERT,
    dumped,
    join,
    pack,
    pack_tail,
    refuse,
    route_shape,
    unpack_route,
)

_ADDRESS_AT: Final = 32
"""Where a message that `pack` made has its destination: after header, rtmsg and that attribute's own header."""

_DUMPED_AT: Final = 24
"""Where IPv4 routes that are read have theirs: the table's number stands before it."""


class PrefixRoutes:
    """Routes of `protocol` at `metric` in the main table of the namespace in which this was made
    (a `core.reconcile.Driver`)."""

    def __init__(self, protocol: RouteProtocol, metric: Metric) -> None:
        self.name = f"routes/{protocol.name.lower()}"
        self._protocol, self._metric = int(protocol), int(metric)
        self._netlink = Netlink()
        self._surplus: dict[Prefix, list[int]] = {}  # metrics of what stands there besides one route at ours

    @property
    def port(self) -> int:
        """By which `linux.links.watch_facts` tells our own changes from somebody else's."""
        return self._netlink.port

    def close(self) -> None:
        """Let go of the socket; the routes stay."""
        self._netlink.close()

    async def read(self) -> Mapping[Prefix, Route]:
        """Every route of ours; raises OSError if the kernel cannot tell."""
        return await asyncio.to_thread(self._read)

    async def apply(self, plan: Plan[Prefix, Route]) -> Mapping[Prefix, Exception]:
        """Upsert, then delete. Already gone is success; what failed is returned with the kernel's reason."""
        if len(plan.upsert) + len(plan.delete) > INLINE:
            return await asyncio.to_thread(self._apply, plan)
        return self._apply(plan)

    def _read(self) -> Mapping[Prefix, Route]:
        found: dict[Prefix, Route] = {}
        surplus: dict[Prefix, list[int]] = {}
        for family, width in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
            seen = _Seen(family, width, self._protocol)
            for data in dumped(self._netlink, family, self._protocol):
                entry = seen.entry(data)
                if entry is None:
                    continue
                prefix, metric, route = entry
                if metric != self._metric:
                    surplus.setdefault(prefix, []).append(metric)
                elif prefix in found:
                    route = join(family, found[prefix], route)
                    if route is TANGLE:
                        surplus.setdefault(prefix, []).append(self._metric)
                found[prefix] = route
        found |= dict.fromkeys(surplus, TANGLE)
        self._surplus = surplus
        return found

    def _apply(self, plan: Plan[Prefix, Route]) -> Mapping[Prefix, Exception]:
        failed: dict[Prefix, Exception] = {}
        cleared = [prefix for prefix in self._surplus if prefix in plan.upsert or prefix in plan.delete]
        if cleared:
            entries = [(prefix, metric) for prefix in cleared for metric in self._surplus[prefix]]
            messages = [self._message(DELETE, prefix, metric) for prefix, metric in entries]
            failed |= self._send([prefix for prefix, _ in entries], messages, errno.ESRCH)
        keys, messages = self._upserts(plan.upsert, failed)
        failed |= self._send(keys, messages, 0)
        gone = list(plan.delete)
        failed |= self._send(gone, self._deletions(gone), errno.ESRCH)
        self._surplus = {}
        return failed

    def _upserts(
        self, wanted: Mapping[Prefix, Route], failed: dict[Prefix, Exception]
    ) -> tuple[list[Prefix], list[bytes]]:
        """Prefixes and their messages; what the kernel would not keep as it is written goes to `failed`."""
        keys: list[Prefix] = []
        messages: list[bytes] = []
        templates: dict[tuple[int, int, int], tuple[bytes, bytes] | str] = {}
        for prefix, route in wanted.items():
            alike = (id(route), prefix[0], len(prefix))
            template = templates.get(alike)
            if template is None:
                template = templates[alike] = self._template(prefix, route)
            if isinstance(template, str):
                failed[prefix] = Refused(errno.EINVAL, f"{prefix}: {template}")
                continue
            keys.append(prefix)
            messages.append(template[0] + prefix[1:] + template[1])
        return keys, messages

    def _template(self, prefix: Prefix, route: Route) -> tuple[bytes, bytes] | str:
        """The message without the address, or why there is none."""
        why = refuse(RouteKey(prefix.network, self._metric), route)
        return why or _around(self._message(UPSERT, prefix, self._metric, route), prefix)

    def _deletions(self, prefixes: Iterable[Prefix]) -> list[bytes]:
        templates: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        messages = []
        for prefix in prefixes:
            alike = (prefix[0], len(prefix))
            template = templates.get(alike)
            if template is None:
                template = templates[alike] = _around(self._message(DELETE, prefix, self._metric), prefix)
            messages.append(template[0] + prefix[1:] + template[1])
        return messages

    def _message(self, request: tuple[int, int], prefix: Prefix, metric: int, route: Route | None = None) -> bytes:
        """A deletion names the protocol, so that nobody else's route goes, and leaves everything else open."""
        key = RouteKey(prefix.network, metric)
        if route is None:
            return pack(request, key, (self._protocol, SCOPE_NOWHERE, 0, 0), b"")
        scope, flags, tail = pack_tail(prefix.version, route)
        return pack(request, key, (self._protocol, scope, route.type.value, flags), tail)

    def _send(self, keys: Sequence[Prefix], messages: Sequence[bytes], fine: int) -> dict[Prefix, Exception]:
        return {
            keys[index]: Refused(refusal.errno, f"{keys[index]} metric {self._metric}: {refusal}")
            for index, refusal in self._netlink.batch(messages).items()
            if refusal.errno != fine
        }


class _Seen:
    """Messages of one dump. Those that differ in nothing but the address are taken apart once: most of a table is.

    IPv6 routes carry when they were last used, so no two of them are alike.
    """

    def __init__(self, family: int, width: int, protocol: int) -> None:
        self._family, self._width, self._protocol = family, width, protocol
        self._header = ATTRIBUTE.pack(4 + width, RTA_DST) if family == socket.AF_INET else b"none"
        self._alike: dict[bytes, tuple[bytes, int, Route] | None] = {}
        self._routes: dict[tuple[object, ...], Route] = {}

    def entry(self, data: bytes) -> tuple[Prefix, int, Route] | None:
        """Prefix, metric and route; None when it is not of the protocol, or not in the main table."""
        at, end = _DUMPED_AT, _DUMPED_AT + self._width
        if data[at - ATTRIBUTE.size : at] != self._header:
            parts = attributes(data, RTMSG.size)
            known, address = self._taken_apart(data), parts.get(RTA_DST, bytes(self._width))
        else:
            rest, address = data[:at] + data[end:], data[at:end]
            if rest not in self._alike:
                self._alike[rest] = self._taken_apart(data)
            known = self._alike[rest]
        return (Prefix(known[0] + address), known[1], known[2]) if known else None

    def _taken_apart(self, data: bytes) -> tuple[bytes, int, Route] | None:
        """The prefix's length, metric and route."""
        at, length, _, tos, table, protocol, _, kind, flags = RTMSG.unpack_from(data)
        if (at, table, protocol, tos) != (self._family, RT_TABLE_MAIN, self._protocol, 0):
            return None
        parts = attributes(data, RTMSG.size)
        metric = int.from_bytes(parts.pop(RTA_PRIORITY, b""), sys.byteorder)
        shape = route_shape(kind, flags, parts)
        route = self._routes.get(shape)
        if route is None:
            route = self._routes[shape] = unpack_route(kind, flags, parts)
        return bytes((length,)), metric, route


def _around(message: bytes, prefix: Prefix) -> tuple[bytes, bytes]:
    return message[:_ADDRESS_AT], message[_ADDRESS_AT + len(prefix) - 1 :]
