"""Which of the routes told to the kernel lead through a device: what may be gone when that goes down.

a pod's veth goes        none of ours leads there: nothing is doubted, nothing read
an uplink goes           those through it are written again
lo goes, or anybody's    any may be gone
  hand was on ours
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from core.prefix import Prefix
from linux.model import Route

LOOPBACK: Final = 1
"""Its index. IPv6 routes without next hop hang on it."""


class ByDevice:
    """The devices through which any route has ever led, so that most that go need no look at a hundred thousand."""

    def __init__(self) -> None:
        self._used: set[int] = set()
        self._last: Route | None = None

    def learn(self, routes: Iterable[Route | None]) -> None:
        """Of routes that are told to the kernel, or were found there."""
        for route in routes:
            if route is not None and route is not self._last:  # alike routes are one, and come one after the other
                self._last = route
                self._used.update(hop.device for hop in route.next_hops)

    def lost(self, devices: Collection[int], wanted: Mapping[Prefix, Route]) -> Collection[Prefix] | None:
        """Those of `wanted` that may be gone with `devices` (none: no device's fault); None when any may be."""
        if not devices or LOOPBACK in devices:
            return None
        gone = self._used.intersection(devices)
        return list(_through(gone, wanted)) if gone else ()


def _through(devices: Collection[int], wanted: Mapping[Prefix, Route]) -> Iterator[Prefix]:
    known: dict[int, bool] = {}
    for prefix, route in wanted.items():
        leads = known.get(id(route))
        if leads is None:
            leads = known[id(route)] = any(hop.device in devices for hop in route.next_hops)
        if leads:
            yield prefix
