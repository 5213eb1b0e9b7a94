"""BFD's vocabulary (RFC 5880, 4.1 and 6.8.1) as frozen values. Intervals are microseconds, as on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

SLOW_US: Final = 1_000_000
"""Nobody sends faster than this while a session is not up (RFC 5880, 6.8.3)."""


class State(IntEnum):
    """What one side thinks of the session."""

    ADMIN_DOWN = 0
    DOWN = 1
    INIT = 2
    UP = 3

    @property
    def label(self) -> str:
        """The state's name as routers print it."""
        return _LABELS[self]


_LABELS: Final = {State.ADMIN_DOWN: "AdminDown", State.DOWN: "Down", State.INIT: "Init", State.UP: "Up"}


class Diagnostic(IntEnum):
    """Why a session last left Up."""

    NONE = 0
    TIME_EXPIRED = 1
    ECHO_FAILED = 2
    NEIGHBOR_SIGNALED_DOWN = 3
    FORWARDING_PLANE_RESET = 4
    PATH_DOWN = 5
    CONCATENATED_PATH_DOWN = 6
    ADMINISTRATIVELY_DOWN = 7
    REVERSE_CONCATENATED_PATH_DOWN = 8

    @classmethod
    def _missing_(cls, value: object) -> Diagnostic:
        return cls.NONE  # reserved numbers (RFC 5880, 4.1) say nothing to us

    @property
    def label(self) -> str:
        """The reason in words."""
        return self.name.lower().replace("_", " ")

    @property
    def path_failed(self) -> bool:
        """Whether it says that packets do not get through. "Neighbor signaled down" says that one has got through, and
        a session without a reason is new: its owner has started BFD anew, as FRR does when BGP comes up."""
        return self not in (Diagnostic.NONE, Diagnostic.NEIGHBOR_SIGNALED_DOWN, Diagnostic.ADMINISTRATIVELY_DOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How a session should be kept: how often to send at most, how often to be sent to, how many may be missed."""

    transmit_us: int
    receive_us: int
    multiplier: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One control packet, without authentication (which single-hop sessions to a rack's router do not use).

    `independent` is the C bit: the sender's BFD does not share the fate of its control plane.
    """

    state: State
    mine: int
    yours: int
    multiplier: int
    transmit_us: int
    receive_us: int
    diagnostic: int = 0
    poll: bool = False
    final: bool = False
    independent: bool = False
    demand: bool = False
    echo_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """What the peer last said. Before its first word nothing bounds us but our own wish (6.8.1)."""

    discriminator: int = 0
    state: State = State.DOWN
    diagnostic: int = 0
    transmit_us: int = 0
    receive_us: int = 1
    multiplier: int = 0
    demand: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What it takes to go on with a session that is up: both sides' discriminators and what the peer asked for."""

    discriminator: int
    remote: Remote


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A datagram with what the kernel knows of it. `at` is its arrival in seconds of the monotonic clock, `hops` its
    TTL or hop limit (-1 unknown), `device` the index of the interface it came by, `to` where it was sent."""

    data: bytes
    source: str
    to: str
    hops: int
    device: int
    at: float
