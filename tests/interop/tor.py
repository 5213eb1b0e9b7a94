"""A router at the top of a rack, whatever its make: the same verbs for BIRD, FRR and GoBGP.

    configure(peerings)             its side of the sessions, as its administrator would write it
    announce, withdraw              what it originates, with the attributes that it says
    session(node)                   how it sees a session        ┐ read from the router's own output:
    heard(node)                     what a node has told it      ┘ birdc, vtysh, gobgp
    kill, start                     its process

Every claim of these tests about what was on the wire is a claim of the router's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from bgp_world import World

TOR4, TOR6 = "10.9.1.1", "fd09::1"
NODE4, NODE6 = "10.9.1.2", "fd09::2"
TOR_AS, NODE_AS = 65001, 64512


@dataclass(frozen=True, slots=True, kw_only=True)
class Peering:
    """The router's side of a session with a node.

    `ttl_security`: it believes nobody who is not on its own wire, and shows itself to be. `passive` waits to be called,
    `multihop` reaches further than its own wire. `restart_s` is the graceful restart time it asks for, 0 without the
    capability; `long_lived_s` the long-lived one. `client`: it reflects to the node. `most_in` is how many prefixes it
    takes before it ends the session.
    """

    node: str = NODE4
    local: str = TOR4
    node_as: int = NODE_AS
    node_port: int = 179
    hold_s: int = 30
    password: str = ""
    ttl_security: bool = False
    passive: bool = False
    multihop: bool = False
    restart_s: int = 120
    long_lived_s: int = 0
    client: bool = False
    bfd: bool = False
    most_in: int | None = None

    @property
    def version(self) -> int:
        """The IP version, of its addresses and of what it carries."""
        return ip_address(self.node).version


FOUR = Peering()
SIX = Peering(node=NODE6, local=TOR6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the router says of a prefix. `path` are the AS numbers behind its own, nearest first."""

    path: tuple[int, ...] = ()
    communities: tuple[str, ...] = ()
    med: int | None = None
    local_pref: int | None = None

    @property
    def standard(self) -> list[str]:
        """The communities of two parts."""
        return [each for each in self.communities if each.count(":") == 1]

    @property
    def large(self) -> list[str]:
        """The communities of three parts."""
        return [each for each in self.communities if each.count(":") == 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A node's route, as the router tells of it."""

    next_hop: str
    path: tuple[int, ...] = ()
    origin: str = "IGP"
    communities: frozenset[str] = frozenset()
    med: int | None = None
    local_pref: int | None = None
    originator: str = ""
    clusters: tuple[str, ...] = ()
    stale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A session, as the router tells of it. `state` and `error` are in its own words."""

    state: str = ""
    up: bool = False
    node_as: int = 0
    local_as: int = 0
    hold_s: int = 0
    restart_s: int = 0
    error: str = ""
    capabilities: str = field(default="", repr=False)


class Tor(ABC):
    """One router, in a namespace of its own."""

    kind: str
    """What it is called in the names of tests."""

    def __init__(self, world: World, place: str, as_number: int = TOR_AS, router_id: str = TOR4) -> None:
        self.world, self.place, self.router_id = world, place, router_id
        self.as_number = as_number
        self.peerings: tuple[Peering, ...] = ()
        self.announced: dict[str, Said] = {}

    def configure(self, *peerings: Peering, as_number: int = TOR_AS) -> None:
        """Have these sessions, in this AS, and announce nothing. What is so already stays as it is."""
        for prefix in [*self.announced]:
            self.withdraw(prefix)
        if (peerings, as_number) != (self.peerings, self.as_number):
            self.peerings, self.as_number = peerings, as_number
            self.reconfigure()

    def announce(self, prefix: str, said: Said | None = None) -> None:
        """Originate `prefix` to everybody."""
        self.announced[prefix] = said or Said()
        self.originate(prefix, self.announced[prefix])

    def withdraw(self, prefix: str) -> None:
        """Stop originating `prefix`."""
        said = self.announced.pop(prefix)
        self.retract(prefix, said)

    def restart(self) -> None:
        """Die without a farewell, and be back with the same configuration."""
        self.kill()
        self.start()

    def prompt(self) -> bool:
        """Skip what it would wait, of its own accord, before it is in session again; whether there was any."""
        return False

    @abstractmethod
    def start(self) -> None:
        """Start with the current peerings and announcements."""

    @abstractmethod
    def kill(self) -> None:
        """Die as in a crash: no farewell to anybody."""

    @abstractmethod
    def reconfigure(self) -> None:
        """Take `peerings` and `as_number` up."""

    @abstractmethod
    def originate(self, prefix: str, said: Said) -> None:
        """Add or replace an announcement."""

    @abstractmethod
    def retract(self, prefix: str, said: Said) -> None:
        """Take an announcement back."""

    @abstractmethod
    def session(self, node: str = NODE4) -> View:
        """The session with a node."""

    @abstractmethod
    def heard(self, node: str = NODE4) -> Mapping[str, Heard]:
        """What a node has told it and it took, by prefix."""

    @abstractmethod
    def clear(self, node: str = NODE4) -> None:
        """End the session with a node by a NOTIFICATION, as an administrator does; it may come back at once."""
