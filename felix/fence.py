"""What keeps a connection that policy has ended from coming back by its other end. Pure.

    cut ──> its reverse tuple may not begin a flow ─┬─ its time is over ────────────────────────────> gone
                                                    ├─ an end is another pod's now ─────────────────> gone, with
                                                    └─ an end is nobody's, its interface is gone ─> that pod's rules

A fence is about two ends that live: what either still has open must not be taken up again. With a pod its sockets go,
so the fences of a pod's addresses end with it; the next pod that has one of them starts with none, as with no rules of
its predecessor's. A pod has ended when another has its address, or when its endpoint is gone and its interface, too:
while the interface stands, the same pod may get the same endpoint back, and all that it still has open with it. That
the fence is gone before the pod's last conntrack entries are is no gap: whatever would begin anew is dropped, as
nothing leads to or from an interface that is no endpoint's.

The table tells a felix that is started whose each fence was: `cut4-pods` and `cut6-pods` have the interface, and a
number made of the endpoint and its container; `cut4-hidden` and `cut6-hidden` have that number where outside the
pod was another address. Ends that are no local pod's (other hosts, this host) hold a fence for
its whole time: whether they live cannot be seen from here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final

from core.addr import Address, contains
from core.nftables import Chain, Element, Hook, Ruleset, Set
from felix.cut import TCP, UDP, Cut, Owner, Ruling
from linux.conntrack import Tuple

FENCED_S: Final[Mapping[int, float]] = MappingProxyType({TCP: 432_000.0, UDP: 180.0})
"""How long a fence stands, by protocol: what nf_conntrack gives an idle connection. Others cannot begin in mid-flow."""

MOST_FENCED: Final = 65_536
"""Of more, the oldest give way: their connections are cut all the same."""

_SETS: Final = MappingProxyType({4: "cut4", 6: "cut6"})
_PODS: Final = MappingProxyType({4: "cut4-pods", 6: "cut6-pods"})
_HIDDEN: Final = MappingProxyType({4: "cut4-hidden", 6: "cut6-hidden"})
_KINDS: Final = MappingProxyType({4: "ipv4_addr", 6: "ipv6_addr"})


@dataclass(frozen=True, slots=True)
class Holder:
    """A local pod that an address was when it was fenced: its interface, and 32 bits that tell it from any other."""

    interface: str
    number: int

    @classmethod
    def of(cls, owner: Owner) -> Holder:
        """The same for the same owner, also in another process."""
        key, interface, container = owner
        digest = hashlib.sha1(f"{key}\0{container}".encode(), usedforsecurity=False).digest()
        return cls(interface, int.from_bytes(digest[:4], "big"))


@dataclass(frozen=True, slots=True)
class Fence:
    """The reverse tuples that may not begin a flow, oldest first, and when each may again (seconds, monotonic).

    `ends` are all their addresses, with the local pod that each was, if any. A connection that was translated on its
    way out has a reverse tuple without the address that began it: that is `hidden`.
    """

    until: Mapping[Tuple, float] = field(default_factory=lambda: MappingProxyType({}))
    ends: Mapping[Address, Holder | None] = field(default_factory=lambda: MappingProxyType({}))
    hidden: Mapping[Tuple, Address] = field(default_factory=lambda: MappingProxyType({}))

    def after(self, cut: Iterable[Cut], owners: Mapping[Address, Owner], now: float) -> Fence:
        """Without those whose time is over, and with those of the connections that policy cuts, of `owners`."""
        until = {each: end for each, end in self.until.items() if end > now}
        ends, hidden = dict(self.ends), dict(self.hidden)
        for each in cut:
            reverse = each.flow.reply
            if each.fenced and reverse.protocol in FENCED_S:
                until.pop(reverse, None)
                until[reverse] = now + FENCED_S[reverse.protocol]
                hidden.pop(reverse, None)
                if reverse.destination != each.flow.original.source:
                    hidden[reverse] = each.flow.original.source
                for end in _ends(reverse, hidden):
                    owner = owners.get(end)
                    ends[end] = Holder.of(owner) if owner else ends.get(end)
        return _made(dict(list(until.items())[-MOST_FENCED:]), ends, hidden)

    def under(self, ruling: Ruling) -> Fence:
        """Without those of which an end has gone or is another pod's now; the same object if none has."""
        if not self.ends:
            return self
        over = {end for end, holder in self.ends.items() if holder and _has_ended(ruling, end, holder)}
        over.update(end for end in ruling.owners if end in self.ends and not self.ends[end])
        if not over:
            return self
        left = {each: end for each, end in self.until.items() if over.isdisjoint(_ends(each, self.hidden))}
        return _made(left, self.ends, self.hidden)

    def of_pods(self, ruling: Ruling) -> Fence:
        """As `under`, of one that was found, where those of no pod that is known may be of one that ended long ago.

        They stand if a host's interface may have cut them: then both ends may be anywhere, but for the host's blocks.
        """
        kept = self.under(ruling)
        left = {each: end for each, end in kept.until.items() if _may_be(ruling, kept, each)}
        return kept if len(left) == len(kept.until) else _made(left, kept.ends, kept.hidden)

    @classmethod
    def found(cls, elements: Mapping[Element, str], now: float) -> Fence:
        """The fence that an earlier felix left standing; its age is not known, so its time begins anew."""
        tuples: list[Tuple] = []
        ends: dict[Address, Holder | None] = {}
        numbers: dict[Tuple, int] = {}
        for each, value in elements.items():
            if each.set in _SETS.values():
                tuples.append(_read(each.key))
            elif each.set in _PODS.values():
                interface, address, high, low = each.key.split(" . ")
                ends[ip_address(address)] = Holder(interface.strip('"'), int(high) << 16 | int(low))
            elif each.set in _HIDDEN.values():
                numbers[_read(each.key)] = int(value)
        known = {(holder.number, end.version): end for end, holder in ends.items() if holder}
        hidden = {
            each: known[number, each.source.version]
            for each, number in numbers.items()
            if (number, each.source.version) in known
        }
        return _made({each: now + FENCED_S.get(each.protocol, 0) for each in tuples}, ends, hidden)

    @property
    def over_at(self) -> float | None:
        """When the first one's time is over."""
        return min(self.until.values(), default=None)

    @property
    def interfaces(self) -> frozenset[str]:
        """Of the pods that it is for."""
        return frozenset(each.interface for each in self.ends.values() if each)

    @property
    def rules(self) -> Ruleset:
        """Its part of our table; nothing at all while nothing is fenced."""
        if not self.until:
            return Ruleset()
        asked = tuple(
            f"ct state new {word} saddr . meta l4proto . th sport . {word} daddr . th dport @{_SETS[version]} goto cut"
            for version, word in ((4, "ip"), (6, "ip6"))
        )
        chains = {
            # A base chain of its own: it is in nobody's way while there is none, and nobody's accept ends it.
            "cut-forward": Chain(hook=Hook(type="filter", hook="forward", priority=-10), rules=asked),
            "cut-input": Chain(hook=Hook(type="filter", hook="input", priority=-10), rules=asked),
            "cut-output": Chain(hook=Hook(type="filter", hook="output", priority=-10), rules=asked),
            "cut": Chain(rules=("meta l4proto 6 tcp flags & (syn | ack) == syn return", "counter drop")),
        }
        sets = {
            _SETS[version]: Set(key=(kind, "inet_proto", "inet_service", kind, "inet_service"))
            for version, kind in _KINDS.items()
        }
        hidden = {
            _HIDDEN[end.version]: Set(key=sets[_SETS[end.version]].key, value="mark") for end in self.hidden.values()
        }
        pods = {
            _PODS[version]: Set(key=("ifname", kind, "inet_service", "inet_service"))
            for version, kind in _KINDS.items()
        }
        return Ruleset(
            chains=MappingProxyType(chains),
            sets=MappingProxyType({**sets, **pods, **hidden}),
            elements=MappingProxyType(dict(self._elements())),
        )

    def _elements(self) -> Iterator[tuple[Element, str]]:
        for each in self.until:
            yield Element(_SETS[each.source.version], _spell(each)), ""
        for each, end in self.hidden.items():
            if of := self.ends[end]:
                yield Element(_HIDDEN[end.version], _spell(each)), str(of.number)
        for end, holder in self.ends.items():
            if holder:
                number = f"{holder.number >> 16} . {holder.number & 0xFFFF}"
                yield Element(_PODS[end.version], f'"{holder.interface}" . {end} . {number}'), ""


def _made(
    until: Mapping[Tuple, float], ends: Mapping[Address, Holder | None], hidden: Mapping[Tuple, Address]
) -> Fence:
    """With those of `ends` and `hidden` that are some tuple's."""
    own = {end: ends.get(end) for each in until for end in _ends(each, hidden)}
    left = {each: end for each, end in hidden.items() if each in until}
    return Fence(MappingProxyType(until), MappingProxyType(own), MappingProxyType(left))


def _ends(fenced: Tuple, hidden: Mapping[Tuple, Address]) -> tuple[Address, ...]:
    """The addresses that a fence is about."""
    ends = (fenced.source, fenced.destination)
    return (*ends, hidden[fenced]) if fenced in hidden else ends


def _has_ended(ruling: Ruling, end: Address, holder: Holder) -> bool:
    """Whether the pod that had the address then has it no more, nor ever again."""
    owner = ruling.owners.get(end)
    return holder.interface not in ruling.interfaces if owner is None else Holder.of(owner) != holder


def _may_be(ruling: Ruling, fence: Fence, fenced: Tuple) -> bool:
    both = _ends(fenced, fence.hidden)
    if any(fence.ends[end] for end in both):
        return True
    return bool(ruling.guard.hosts) and not any(
        contains(block, end) for block in ruling.blocks for end in both if end not in ruling.host
    )


def _spell(each: Tuple) -> str:
    return f"{each.source} . {each.protocol} . {each.sport} . {each.destination} . {each.dport}"


def _read(key: str) -> Tuple:
    source, protocol, sport, destination, dport = key.split(" . ")
    return Tuple(ip_address(source), ip_address(destination), int(protocol), int(sport), int(dport))
