"""ExaBGP's connections, watched over for what it does not do itself (linux.borrowed has the means).

TTL security: it checks the TTL on connections that it opens. On those that it accepts it would not, for all sessions
share a listener; so the listener gets a filter that knows which address is held to which TTL. And it answers calls with
the highest TTL: a caller that is as strict would not hear it otherwise, and never come to the session itself.

Send hold: a session whose peer has acknowledged nothing of what waits, for twice the hold time, is cut; ExaBGP takes it
as a lost connection and opens it again. RFC 9687 has at least eight minutes, for peers across the world; a rack's ToR
that has not read for a minute does not forward by what we say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from bgp.exabgp.conf import MAX_TTL, least_ttl
from bgp.exabgp.stalls import Stalls
from bgp.model import Session
from core.addr import Address
from linux.borrowed import borrowed, cut, far_end, guard, listens, progress, send_ttl

HOLD_TIMES: Final = 2
UNHURRIED_S: Final = 480.0
"""For sessions without a hold time."""


class Sockets:
    """Those of one ExaBGP, of which `pidfd` is a handle. All methods raise OSError when they cannot be had."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self._pid, self._pidfd = pid, pidfd
        self._stalls = Stalls()

    def protect(self, sessions: Iterable[Session]) -> None:
        """Hold every session with TTL security to its TTL, on connections that come."""
        least = {each.peer: least_ttl(each.ttl_hops) for each in sessions if each.ttl_hops is not None}
        with borrowed(self._pid, self._pidfd) as tcp:
            for each in tcp:
                if listens(each) or far_end(each) in least:
                    guard(each, least)
                if listens(each):
                    send_ttl(each, MAX_TTL)

    def cut_stalled(self, sessions: Sequence[Session], now: float) -> Mapping[Address, float]:
        """Cut the connections whose peers do not read; for how many seconds each has not."""
        limits = {each.peer: HOLD_TIMES * each.hold_s or UNHURRIED_S for each in sessions}
        with borrowed(self._pid, self._pidfd) as tcp:
            by_peer = {peer: each for each in tcp if (peer := far_end(each)) in limits and peer is not None}
            seen = {peer: progress(each) for peer, each in by_peer.items()}
            stood = self._stalls.see({peer: each.acked for peer, each in seen.items() if each.queued}, now)
            stalled = {peer: seconds for peer, seconds in stood.items() if seconds >= limits[peer]}
            for peer in stalled:
                cut(by_peer[peer])
        return stalled
