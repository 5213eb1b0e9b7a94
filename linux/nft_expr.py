"""The rules that a policy's chains are made of, as expressions in the kernel's bytes; others are libnftables' to write.

    meta mark set meta mark . meta l4proto . th dport map @in-1-port return
    └─────┬─────┘ └────────────────┬────────────────┘ └──────┬─────┘ └──┬─┘
          3 meta      1 meta, meta, payload           2 lookup      4 immediate
    the key is put together from register 1 on, and the answer takes its place there

A rule is a row of phrases; each is known by a pattern and stands for the expressions that libnftables makes of it. Also
for what it adds unasked: that who reads an IPv4 header has IPv4, and that bytes are swapped where a set of intervals
wants them in the network's order.
Formats: linux/netfilter/nf_tables.h; nftables' src/netlink_linearize.c; libnftnl/udata.h.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_network
from types import MappingProxyType
from typing import Final, TypeAlias

from core.nftables import Set
from linux.netlink import attribute
from linux.nft_wire import BYTES, VERDICTS

Find: TypeAlias = Callable[[str], Set | None]
"""Finds a set of the table by its name."""

_NESTED: Final = 0x8000
_EXPRESSIONS, _USERDATA = 4, 7
_COMMENT: Final = 0  # NFTNL_UDATA_RULE_COMMENT
_COMMENTED: Final = re.compile(r'(.*?)(?: *comment "([^"]*)")? *', re.DOTALL)

_MARK, _NFPROTO, _L4PROTO = 3, 15, 16  # NFT_META_*
_NETWORK, _TRANSPORT = 1, 2  # NFT_PAYLOAD_*_HEADER
_EQUAL, _NOT_EQUAL, _AT_MOST, _AT_LEAST = 0, 1, 3, 5  # NFT_CMP_*
_COUNTER: Final = 1  # NFT_OBJECT_COUNTER
_TO_NETWORK: Final = 1  # NFT_BYTEORDER_HTON
_LOG_PREFIX: Final = 2  # NFTA_LOG_PREFIX
_VERDICT_REGISTER, _FIRST = 0, 1
_FAMILY: Final = MappingProxyType({"ip": 2, "ipv4": 2, "icmp": 2, "ip6": 10, "ipv6": 10, "icmpv6": 10})
_ICMP: Final = MappingProxyType({"icmp": 1, "icmpv6": 58})
_KINDS: Final = MappingProxyType(
    {
        "meta mark": "mark",
        "meta l4proto": "inet_proto",
        "th sport": "inet_service",
        "th dport": "inet_service",
        "ip saddr": "ipv4_addr",
        "ip daddr": "ipv4_addr",
        "ip6 saddr": "ipv6_addr",
        "ip6 daddr": "ipv6_addr",
    }
)
_PAYLOADS: Final = MappingProxyType(
    {
        "th sport": (_TRANSPORT, 0),
        "th dport": (_TRANSPORT, 2),
        "ip saddr": (_NETWORK, 12),
        "ip daddr": (_NETWORK, 16),
        "ip6 saddr": (_NETWORK, 8),
        "ip6 daddr": (_NETWORK, 24),
    }
)


def encode(rule: str, find: Find) -> bytes | None:
    """A rule's expressions and its comment, for `linux.nft_wire.add_rule`; None when it is not in the vocabulary.

    `find` knows the sets of the table: how a key is asked for depends on the type.
    """
    parted = _COMMENTED.fullmatch(rule)
    assert parted is not None, "the pattern takes any text"
    try:
        encoded = _nested(_EXPRESSIONS, _Rule(find).encode(parted[1]))
    except _Unknown:
        return None
    if parted[2]:
        comment = parted[2].encode() + b"\0"
        encoded += attribute(_USERDATA, bytes((_COMMENT, len(comment))) + comment)
    return encoded


class _Unknown(Exception):
    """Something that is not in the vocabulary."""


class _Rule:
    """One rule, read from left to right."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._family: int | None = None  # what the rule has made sure of
        self._transport = False  # whether it has asked for a protocol

    def encode(self, text: str) -> bytes:
        found: list[bytes] = []
        at = 0
        while at < len(text):
            make, said = next(
                ((make, said) for pattern, make in _PHRASES if (said := pattern.match(text, at))), (None, None)
            )
            if make is None or said is None:
                raise _Unknown
            found += make(self, *said.groups())
            at = said.end()
        return b"".join(found)

    def verdict(self, word: str) -> Iterator[bytes]:
        yield _verdict(word)

    def go(self, verb: str, chain: str) -> Iterator[bytes]:
        yield _verdict(verb, chain)

    def set_mark(self, mark: str) -> Iterator[bytes]:
        yield _expression("immediate", _number(1, _FIRST) + _nested(2, attribute(1, _mark(int(mark, 0)))))
        yield _write_mark()

    def change_mark(self, kept: str, more: str) -> Iterator[bytes]:
        added = int(more, 0)
        yield _meta(_MARK)
        yield _bitwise(_mark(int(kept, 0) & ~added), _mark(added))
        yield _write_mark()

    def mark_from(self, key: str, name: str) -> Iterator[bytes]:
        yield from self._key(key.split(" . "), self._asked(name, "mark", key))
        yield _lookup(name, _FIRST)
        yield _write_mark()

    def verdict_from(self, mask: str, name: str) -> Iterator[bytes]:
        self._asked(name, "verdict", "meta mark")
        yield from _masked_mark(mask)
        yield _lookup(name, _VERDICT_REGISTER)

    def count(self, name: str) -> Iterator[bytes]:
        yield _expression("objref", _number(1, _COUNTER) + attribute(2, name.encode() + b"\0"))

    def count_by(self, mask: str, name: str) -> Iterator[bytes]:
        self._asked(name, "counter", "meta mark")
        yield from _masked_mark(mask)
        yield _expression("objref", _number(3, _FIRST) + attribute(4, name.encode() + b"\0"))

    def log(self, prefix: str) -> Iterator[bytes]:
        yield _expression("log", attribute(_LOG_PREFIX, prefix.encode() + b"\0"))

    def mark_is(self, mask: str | None, unlike: str | None, mark: str) -> Iterator[bytes]:
        yield from _masked_mark(mask)
        yield _compare(_NOT_EQUAL if unlike else _EQUAL, _mark(int(mark, 0)))

    def protocol_is(self, first: str, last: str | None) -> Iterator[bytes]:
        self._transport = True
        yield _meta(_L4PROTO)
        yield from _between("B", first, last)

    def family_is(self, word: str) -> Iterator[bytes]:
        yield from self._of_family(word)

    def port_is(self, field: str, first: str, last: str | None) -> Iterator[bytes]:
        yield _payload(*_PAYLOADS[field], 2)
        yield from _between("!H", first, last)

    def address_is(self, field: str, text: str) -> Iterator[bytes]:
        net = ip_network(text)
        base, offset = _PAYLOADS[field]
        yield from self._of_family(field.split()[0])
        whole, odd = divmod(net.prefixlen, 8)
        if not odd:
            yield _payload(base, offset, whole)
            yield _compare(_EQUAL, net.network_address.packed[:whole])
            return
        yield _payload(base, offset, net.max_prefixlen // 8)
        yield _bitwise(net.netmask.packed, bytes(net.max_prefixlen // 8))
        yield _compare(_EQUAL, net.network_address.packed)

    def icmp_is(self, word: str, unlike: str | None, kind: str, code: str | None) -> Iterator[bytes]:
        if self._transport or (unlike and code):
            raise _Unknown
        self._transport = True
        yield from self._of_family(word)
        yield _meta(_L4PROTO)
        yield _compare(_EQUAL, bytes((_ICMP[word],)))
        wanted = bytes((_within(kind, 0xFF), *(() if code is None else (_within(code, 0xFF),))))
        yield _payload(_TRANSPORT, 0, len(wanted))
        yield _compare(_NOT_EQUAL if unlike else _EQUAL, wanted)

    def _of_family(self, word: str) -> Iterator[bytes]:
        """That a packet is of a family, unless the rule has asked already."""
        if self._family not in (None, _FAMILY[word]):
            raise _Unknown
        if self._family is None:
            self._family = _FAMILY[word]
            yield _meta(_NFPROTO)
            yield _compare(_EQUAL, bytes((self._family,)))

    def _asked(self, name: str, value: str, key: str) -> Set:
        """The set that a rule asks for `value`, if it is of that type."""
        made = self._find(name)
        if made is None or made.value != value or made.key != tuple(_KINDS[part] for part in key.split(" . ")):
            raise _Unknown
        return made

    def _key(self, parts: Sequence[str], made: Set) -> Iterator[bytes]:
        """A key, put together from the first register on."""
        for part in parts:
            if part.startswith("ip"):
                yield from self._of_family(part.split()[0])
        word = 0
        for part in parts:
            size = BYTES[_KINDS[part]]
            register = word // 4 + _FIRST if word % 4 == 0 else word + 8  # NFT_REG32_00
            if part in _PAYLOADS:
                yield _payload(*_PAYLOADS[part], size, register)
            else:
                yield _meta(_MARK if part == "meta mark" else _L4PROTO, register)
                if made.interval:
                    yield _swapped(register, size)
            word += size + 3 >> 2


_N: Final = r"(0x[0-9a-f]{1,8}|\d+)"
_D: Final = r"(\d+)"
_NAME: Final = r"([A-Za-z][A-Za-z0-9_./\-]*)"
_PART: Final = f"(?:{'|'.join(_KINDS)})"

_PHRASES: Final[tuple[tuple[re.Pattern[str], Callable[..., Iterable[bytes]]], ...]] = tuple(
    (re.compile(f"{pattern}(?: +|$)"), make)
    for pattern, make in (
        ("(accept|drop|return)", _Rule.verdict),
        (f"(jump|goto) {_NAME}", _Rule.go),
        (f"meta mark set {_N}", _Rule.set_mark),
        (rf"meta mark set meta mark & {_N} \| {_N}", _Rule.change_mark),
        (rf"meta mark set ({_PART}(?: \. {_PART})*) map @{_NAME}", _Rule.mark_from),
        (f"meta mark & {_N} vmap @{_NAME}", _Rule.verdict_from),
        (f"meta mark (?:& {_N} )?(?:== |(!= ))?{_N}", _Rule.mark_is),
        (f'counter name (?!meta )"?{_NAME}"?', _Rule.count),
        (r'log prefix "([^"]*)"', _Rule.log),
        (f"counter name meta mark & {_N} map @{_NAME}", _Rule.count_by),
        (f"meta l4proto {_D}(?:-{_D})?", _Rule.protocol_is),
        ("meta nfproto (ipv4|ipv6)", _Rule.family_is),
        (f"(th [sd]port) {_D}(?:-{_D})?", _Rule.port_is),
        (r"(ip6? [sd]addr) ([0-9a-f.:]+(?:/\d+)?)", _Rule.address_is),
        (rf"(icmp(?:v6)?) type (!= )?{_D}(?: \1 code {_D})?", _Rule.icmp_is),
    )
)


def _number(kind: int, number: int) -> bytes:
    return attribute(kind, struct.pack("!I", number & 0xFFFFFFFF))


def _nested(kind: int, payload: bytes) -> bytes:
    return attribute(kind | _NESTED, payload)


def _expression(name: str, data: bytes) -> bytes:
    return _nested(1, attribute(1, name.encode() + b"\0") + _nested(2, data))


def _mark(mark: int) -> bytes:
    if mark >> 32:
        raise _Unknown
    return struct.pack("=I", mark)


def _within(text: str, most: int) -> int:
    number = int(text)
    if number > most:
        raise _Unknown
    return number


def _verdict(word: str, chain: str = "") -> bytes:
    verdict = _number(1, VERDICTS[word]) + (attribute(2, chain.encode() + b"\0") if chain else b"")
    return _expression("immediate", _number(1, _VERDICT_REGISTER) + _nested(2, _nested(2, verdict)))


def _meta(key: int, register: int = _FIRST) -> bytes:
    return _expression("meta", _number(2, key) + _number(1, register))


def _write_mark() -> bytes:
    return _expression("meta", _number(2, _MARK) + _number(3, _FIRST))


def _masked_mark(mask: str | None) -> Iterator[bytes]:
    yield _meta(_MARK)
    if mask is not None:
        yield _bitwise(_mark(int(mask, 0)), _mark(0))


def _payload(base: int, offset: int, size: int, register: int = _FIRST) -> bytes:
    return _expression("payload", _number(1, register) + _number(2, base) + _number(3, offset) + _number(4, size))


def _lookup(name: str, to: int) -> bytes:
    return _expression("lookup", attribute(1, name.encode() + b"\0") + _number(2, _FIRST) + _number(3, to))


def _compare(how: int, data: bytes) -> bytes:
    return _expression("cmp", _number(1, _FIRST) + _number(2, how) + _nested(3, attribute(1, data)))


def _between(form: str, first: str, last: str | None) -> Iterator[bytes]:
    try:
        ends = [struct.pack(form, int(each)) for each in (first, last) if each is not None]
    except struct.error as error:
        raise _Unknown from error
    if len(ends) == 1:
        yield _compare(_EQUAL, ends[0])
        return
    yield _compare(_AT_LEAST, ends[0])
    yield _compare(_AT_MOST, ends[1])


def _bitwise(mask: bytes, flipped: bytes) -> bytes:
    """The register, masked, and then with some bits turned over."""
    registers = _number(1, _FIRST) + _number(2, _FIRST) + _number(3, len(mask))
    return _expression("bitwise", registers + _nested(4, attribute(1, mask)) + _nested(5, attribute(1, flipped)))


def _swapped(register: int, size: int) -> bytes:
    """A register in the network's order of bytes."""
    registers = _number(1, register) + _number(2, register) + _number(3, _TO_NETWORK)
    return _expression("byteorder", registers + _number(4, size) + _number(5, max(size, 2)))
