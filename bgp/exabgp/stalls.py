"""Peers that keep a session and read nothing of what we send: the Send Hold Timer (RFC 9687), kept from outside.

ExaBGP waits for such a peer for ever: its window is zero, its KEEPALIVEs come, so no hold timer runs out. What tells
is the kernel: bytes wait, and none is acknowledged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from core.addr import Address


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a connection was, and since when (seconds, any clock that does not jump)."""

    acked: int
    since: float


class Stalls:
    """A fold over what is seen of the connections, from time to time."""

    def __init__(self) -> None:
        self._standing: dict[Address, Standing] = {}

    def see(self, acked: Mapping[Address, int], now: float) -> Mapping[Address, float]:
        """Take in, of every peer for which bytes wait, how many bytes it has acknowledged; for how many seconds each
        has stood still."""
        before = self._standing
        self._standing = {
            peer: before[peer] if peer in before and before[peer].acked == count else Standing(count, now)
            for peer, count in acked.items()
        }
        return {peer: now - standing.since for peer, standing in self._standing.items()}
