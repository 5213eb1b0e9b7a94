"""ExaBGP with three commands more and another way to read prefixes, registered with its own decorators; nothing else
of it is replaced but its clock, and two of its lists are completed.

    neighbor A , neighbor B muslin announce ATTRIBUTES nlri P P P      done | error
    neighbor A , neighbor B muslin withdraw P P P                      done | error
    muslin configure                                                   done | error

Its own `announce attributes` copies every prefix, attributes and all, with `copy.deepcopy` for each neighbour: most of
its time. Here ExaBGP's parser reads the attributes once, and the prefixes go to the reactor's
`configuration.inject_change`, as its own commands do, in changes that say by Python's own protocol (`__deepcopy__`)
what of them need not be copied. That is eight times as fast (docs/benchmarks.md).

And it is safe where its own are not. What ExaBGP has yet to send, it keeps by attributes, and sends these in the order
in which it first met them: a prefix announced, withdrawn and announced again before anything was sent ends up
withdrawn. So a command waits until what is pending is on its way; after `PATIENCE_S` it is refused, for then a peer
does not read. An announcement to a peer without a session is refused: it is told everything when it comes up.

`muslin configure` reads the configuration file again. A signal would not do: ExaBGP drops it when anything is still to
be sent to anybody, were it a withdrawal for a peer that is down, and nobody hears of it.

Of each prefix that a peer tells it makes an object, keeps it in a table that is switched off, and writes JSON: 5.5 us a
prefix. Here an UPDATE's prefixes are one object: they are checked as ExaBGP checks them, and passed on as they came, in
hexadecimal (`{ "packed": "180a0102" }`), which `bgp.exabgp.line` takes apart.

Its hold times, keepalives and pauses between two calls go by the wall clock. That would end every session when the
clock is set forward, and when it is set back no KEEPALIVE goes out and nobody is called until it has caught up. So
these get the steady clock instead.

It lists the attributes that cost a route, or themselves, when they are malformed, instead of the session (RFC 7606).
Four are missing there: a reflector's two (7.9, 7.10), and those of old speakers (RFC 6793, 6).

Run as `python -P entry.py server CONF` with ExaBGP and the standard library; never imported. `bgp.exabgp.process` runs
it with the version that `bgp.exabgp.line` knows, and plain ExaBGP with any other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import copy
from types import SimpleNamespace
from typing import Any, Final

import exabgp.bgp.timer
import exabgp.reactor.delay
from exabgp.application.main import main
from exabgp.bgp.message import Action
from exabgp.bgp.message.notification import Notify
from exabgp.bgp.message.update.attribute import Attribute, Attributes
from exabgp.bgp.message.update.nlri import CIDR, INET, NLRI
from exabgp.protocol.family import AFI, SAFI
from exabgp.protocol.ip import IP, NoNextHop
from exabgp.reactor.api.command.command import Command
from exabgp.reactor.api.command.limit import extract_neighbors
from exabgp.rib.change import Change

ANNOUNCE: Final = "muslin announce"
WITHDRAW: Final = "muslin withdraw"
CONFIGURE: Final = "muslin configure"

PATIENCE_S: Final = 0.5
"""Less than an answer may take; new connections wait as long."""

INVALID_FIELD: Final = (3, 10)
"""UPDATE message error, invalid network field (RFC 4271, 6.3)."""

Task = Callable[[Any, Any, str, str], Iterator[None]]
"""Carries out one line for a service, step by step."""


class Light(Change):  # type: ignore[misc]  # ExaBGP has no types
    """A change whose copy has a prefix and a set of attributes of its own, and shares what these consist of."""

    def __deepcopy__(self, _: dict[int, Any]) -> Light:
        return Light(copy(self.nlri), copy(self.attributes))


class Field(NLRI):  # type: ignore[misc]  # ExaBGP has no types
    """All prefixes of one field of an UPDATE, which ExaBGP takes for one."""

    def __init__(self, afi: Any, safi: Any, action: int, packed: bytes) -> None:
        super().__init__(afi, safi, action)
        self.packed, self.nexthop = packed, NoNextHop

    @classmethod
    def unpack_nlri(cls, afi: Any, safi: Any, data: bytes, action: int, addpath: bool) -> tuple[Any, bytes]:
        """The whole field, and that nothing is left; raises `Notify` where ExaBGP does."""
        if addpath:
            return INET.unpack_nlri(afi, safi, data, action, addpath)  # type: ignore[no-any-return]
        bits, at, end = 8 * IP.length(afi), 0, len(data)
        while at < end:
            length = data[at]
            if length > bits:
                raise Notify(*INVALID_FIELD, f"a prefix of {length} bits")
            at += 1 + (length + 7 >> 3)
        if at != end:
            raise Notify(*INVALID_FIELD, "the last prefix is cut short")
        return cls(afi, safi, action, bytes(data)), b""

    def __len__(self) -> int:
        return len(self.packed)

    def __str__(self) -> str:
        return self.packed.hex()

    def pack_nlri(self, _: Any = None) -> bytes:
        """As it came."""
        return self.packed

    def json(self, announced: bool = True, compact: bool = False) -> str:
        """What takes the place of ExaBGP's `{ "nlri": "10.1.2.0/24" }`."""
        return f'{{ "packed": "{self.packed.hex()}" }}'


def changes(api: Any, command: str) -> list[Light]:
    """What a command is about; ValueError, IndexError or OSError when it cannot be read."""
    if command.startswith(WITHDRAW):
        nothing = Attributes()
        return [_change(each, Action.WITHDRAW, nothing) for each in command.removeprefix(WITHDRAW).split()]
    said, _, rest = command.removeprefix(ANNOUNCE).strip().partition(" nlri ")
    prefixes = rest.split()
    read = api.api_attributes(f"announce attributes {said} nlri {prefixes[0]}", ())
    announced = [_change(each, Action.ANNOUNCE, read[0].attributes) for each in prefixes]
    for each in announced:
        each.nlri.nexthop = read[0].nlri.nexthop
    return announced


def _change(prefix: str, action: int, attributes: Any) -> Light:
    address, length = prefix.split("/")
    six = ":" in address
    nlri = INET(AFI.ipv6 if six else AFI.ipv4, SAFI.unicast, action)
    nlri.cidr = CIDR(IP.pton(address), int(length))
    return Light(nlri, attributes)


def carry_out(api: Any, reactor: Any, service: str, line: str) -> Iterator[None]:
    """One command, as a task of the reactor's; each step leaves the peers a turn. Its peers are looked up by name:
    ExaBGP's own way holds each description against each peer, which for a hundred is most of the time."""
    descriptions, command = extract_neighbors(line)
    among = reactor.established_peers() if command.startswith(ANNOUNCE) else reactor.peers(service)
    named = {f"neighbor {reactor.neighbor_ip(each)}": each for each in among}
    peers = {named[name] for name, *_ in descriptions if name in named}
    until = time.monotonic() + PATIENCE_S
    try:
        todo = changes(api, command)
        refused = not descriptions or len(peers) != len(descriptions)
    except (ValueError, IndexError, OSError):
        refused = True
    while not refused and _pending(reactor, peers):
        refused = time.monotonic() > until
        yield
    if refused:
        reactor.processes.answer_error(service)
        return
    for each in todo:
        reactor.configuration.inject_change(peers, each)
    reactor.processes.answer_done(service)


def _pending(reactor: Any, peers: set[str]) -> bool:
    """Whether one of them has a session, and has not begun to send what it was given before."""
    neighbors = reactor.configuration.neighbors
    return any(neighbors[peer].rib.outgoing.pending() for peer in reactor.established_peers() & peers)


def configure(_api: Any, reactor: Any, service: str, _line: str) -> Iterator[None]:
    """Bring the sessions in line with the file. One that leaves has to be gone first: if it were asked for again before
    that, ExaBGP would take it for there, and then let it go."""
    until = time.monotonic() + PATIENCE_S
    while any(peer.stopping() for peer in reactor._peers.values()) and time.monotonic() < until:
        yield
    answer = reactor.processes.answer_done if reactor.reload() else reactor.processes.answer_error
    answer(service)


def _scheduled(name: str, task: Task) -> Callable[[Any, Any, str, str, bool], bool]:
    def command(api: Any, reactor: Any, service: str, line: str, _: bool) -> bool:
        reactor.asynchronous.schedule(service, name, task(api, reactor, service, line))
        return True

    return command


if __name__ == "__main__":
    Attributes.TREAT_AS_WITHDRAW += (Attribute.CODE.ORIGINATOR_ID, Attribute.CODE.CLUSTER_LIST)
    Attributes.DISCARD += (Attribute.CODE.AS4_PATH, Attribute.CODE.AS4_AGGREGATOR)
    exabgp.bgp.timer.time = exabgp.reactor.delay.time = SimpleNamespace(time=time.monotonic)
    for name, task in ((ANNOUNCE, carry_out), (WITHDRAW, carry_out), (CONFIGURE, configure)):
        Command.register(name)(_scheduled(name, task))
    for family in (AFI.ipv4, AFI.ipv6):
        NLRI.register(family, SAFI.unicast, force=True)(Field)
    main()
