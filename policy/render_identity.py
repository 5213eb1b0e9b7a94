"""The classes of addresses as nftables text: two maps for each family, and the chains that ask them.

identityF           exact addresses, in buckets, each a part that changes by itself
cidrF-DIGEST        prefixes; another content is another map, and another rule that asks it
identify-source     the mark becomes the class of the other side: exact, else by prefix, else world's
identify-destination
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from types import MappingProxyType
from typing import Final

from core.addr import Family
from core.nftables import Chain, Element, Ruleset, Set
from core.resources.policy import Direction
from policy.identity import Identity, bucket_of
from policy.keep import high
from policy.model import Range
from policy.outcomes import mark

IDENTIFY: Final = {Direction.INGRESS: "identify-source", Direction.EGRESS: "identify-destination"}

_NFPROTO: Final = {4: "ipv4", 6: "ipv6"}
_HEADER: Final = {4: "ip", 6: "ip6"}
_ADDRESS: Final = {4: "ipv4_addr", 6: "ipv6_addr"}


class Addresses:
    """The identity's parts, bucket by bucket."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, Ruleset]] = {}

    def parts(self, identity: Identity) -> dict[str, Ruleset]:
        """All of them; each is the one of before when what it says is."""
        before, self._known = self._known, {}

        def part(name: str, of: object, make: Callable[[], Ruleset]) -> Ruleset:
            known = before.get(name)
            self._known[name] = known if known and _same(known[0], of) else (of, make())
            return self._known[name][1]

        sets = [
            name
            for family, spans in sorted(identity.ranges.items())
            for name in part(f"cidr{family}", spans, partial(_spans, family, spans)).sets
        ]
        for (family, number), bucket in sorted(identity.exact.items()):
            part(f"identity{family}/{number}", bucket, partial(_exact, family, bucket))
        witnesses = {family: _somewhere(identity, family) for family in sorted(identity.world)}
        shared = (tuple(identity.world.items()), tuple(witnesses.items()), tuple(sets))
        part("identify", shared, partial(_identify, identity.world, witnesses, sets))
        return {name: made for name, (_, made) in self._known.items()}


def _same(one: object, other: object) -> bool:
    """Whether nothing has changed: of what may be large, only whether it is the same object."""
    return one == other if isinstance(one, tuple) else one is other


def _exact(family: int, bucket: Mapping[int, int]) -> Ruleset:
    make = IPv4Address if family == 4 else IPv6Address
    name = f"identity{family}"
    elements = {Element(name, str(make(address))): mark(number) for address, number in sorted(bucket.items())}
    return Ruleset(elements=MappingProxyType(elements))


def _spans(family: int, spans: Sequence[tuple[Range, int]]) -> Ruleset:
    """The map of prefixes; none when there is nothing to put in it."""
    if not spans:
        return Ruleset()
    texts = {_span(span, family): mark(number) for span, number in spans}
    name = of_content(f"cidr{family}", texts)
    made = Set(key=(_ADDRESS[family],), value="mark", interval=True)
    elements = {Element(name, text): value for text, value in texts.items()}
    return Ruleset(sets=MappingProxyType({name: made}), elements=MappingProxyType(elements))


def of_content(name: str, elements: Mapping[str, str]) -> str:
    """A set's name with a digest of what is in it: another content is another set.

    For sets of intervals. The kernel shows what a transaction changes in one somewhat later than the rest of it, so in
    between an old one would answer new rules. A new one is filled before any rule asks it (`linux.nft_phases`).
    """
    text = "\n".join(f"{key}={value}" for key, value in elements.items())
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _somewhere(identity: Identity, family: int) -> int | None:
    """The first address that is world's and stands in no map; None when the prefixes leave none."""
    most = (1 << (32 if family == 4 else 128)) - 1
    at = 0
    for (first, last), _ in identity.ranges.get(family, ()):
        while at < first:
            if at not in identity.exact.get(bucket_of(family, at), {}):
                return at
            at += 1
        at = last + 1
    while at <= most:
        if at not in identity.exact.get(bucket_of(family, at), {}):
            return at
        at += 1
    return None


def _identify(world: Mapping[int, int], witnesses: Mapping[int, int | None], prefixes: Sequence[str]) -> Ruleset:
    """The chains that ask. With an address of world in each map, so that the number of its class is in the table too:
    `linux.nft_phases` takes a number that no map mentions for one that no packet can have."""
    exact = {family: f"identity{int(family)}" for family in Family}
    chains = {}
    for direction, name in IDENTIFY.items():
        field = "saddr" if direction is Direction.INGRESS else "daddr"
        rules = [
            f"meta mark set {_HEADER[family]} {field} map @{asked} return"
            for family in Family
            for asked in (exact[family], *(each for each in prefixes if each.startswith(f"cidr{int(family)}-")))
        ]
        rules += [f"meta nfproto {_NFPROTO[family]} meta mark set {high(world[family])}" for family in Family]
        chains[name] = Chain(rules=tuple(rules))
    elements = {
        Element(exact[Family(family)], str(IPv4Address(at) if family == 4 else IPv6Address(at))): mark(world[family])
        for family, at in witnesses.items()
        if at is not None
    }
    sets = {name: Set(key=(_ADDRESS[family],), value="mark") for family, name in exact.items()}
    return Ruleset(chains=MappingProxyType(chains), sets=MappingProxyType(sets), elements=MappingProxyType(elements))


def _span(span: Range, family: int) -> str:
    """An interval's canonical spelling: an address, a prefix when it is one, else first-last."""
    make = IPv4Address if family == 4 else IPv6Address
    first, last = make(span[0]), make(span[1])
    if first == last:
        return str(first)
    nets = list(summarize_address_range(first, last))
    return str(nets[0]) if len(nets) == 1 else f"{first}-{last}"
