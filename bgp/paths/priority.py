"""Priority and local preference: two ways to say which of several routes is wanted.

A priority is a metric as in Calico's BGPFilter and BGPConfiguration: lower wins, 1024 is an ordinary route, anything
lower one that must win (a live migration's). Between routers of one AS it travels as local preference, where higher
wins. calico.md 1.4, "Export filter order".

    iBGP   local preference = 2147483647 - priority, both ways, as Calico's nodes have it
    eBGP   not told. Taken in: 1024 is local preference 100, as with a path that nobody touched; lower priorities are
           as in iBGP, above everything ordinary; higher ones lie under 100, and from 1124 on all at 0

Either way a lower priority never loses to a higher one. What is written into the kernel is another matter: routes
stand there at `core.routing.Metric`, whatever their priority, so that two writers never share a metric.
"""

from __future__ import annotations

from typing import Final

NORMAL: Final = 1024
"""The priority of an ordinary route."""

MAX_PRIORITY: Final = 2147483646
"""The greatest priority that still has a local preference of its own."""

DEFAULT_LOCAL_PREF: Final = 100
"""What a path is worth of which nobody said anything (every implementation's default; RFC 4271, 5.1.5)."""

_SUM: Final = 2147483647


def local_pref(priority: int, *, internal: bool) -> int:
    """The local preference of a path learnt with, or given, this priority; `internal` over iBGP."""
    if internal or priority < NORMAL:
        return _SUM - priority
    return max(0, DEFAULT_LOCAL_PREF + NORMAL - priority)


def priority(preference: int, *, internal: bool) -> int:
    """The priority of a path with this local preference; `internal` says that it is our own or came over iBGP."""
    if internal or preference > _SUM - NORMAL:
        return max(0, _SUM - preference)
    return NORMAL + max(0, DEFAULT_LOCAL_PREF - preference)
