"""Sets, elements, counters and chains of nftables in the kernel's bytes, as libnftables would have written them itself.

    number, address      big-endian, but a mark is in the host's order, except as (part of) the key of an interval set
    concatenation        its parts, each filled up to four bytes
    interval, one part   two elements: the first key, and the key after the last, marked as an end
                         (none after the highest key there is: then the first is marked, for nft's eyes only, as open)
    interval, more       one element with its lowest and its highest key
    type of a key        six bits for each part, the last in the lowest
    what nft remembers   beside a set: the order of bytes in keys and values, and that a concatenation was one

Rules are `linux.nft_expr`'s. Keys and values are spelt as core.nftables says.
Formats: linux/netfilter/nf_tables.h; nftables' src/intervals.c, src/mnl.c; libnftnl/udata.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from core.nftables import Set
from linux.netlink import NLM_F_CREATE, attribute, attributes, message
from linux.nfnetlink import generic

SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
INET: Final = 1  # NFPROTO_INET

_NEW_CHAIN, _DELETE_CHAIN, _NEW_RULE, _DELETE_RULE, _NEW_SET, _DELETE_SET = 3, 5, 6, 8, 9, 11
_NEW_ELEMENT, GET_ELEMENT, _DELETE_ELEMENT = 12, 13, 14
_NEW_OBJECT, _GET_OBJECT, _DELETE_OBJECT = 18, 19, 20
_NESTED: Final = 0x8000
_NLM_F_APPEND: Final = 0x800

_LIST_TABLE, _LIST_SET, LIST_ELEMENTS = 1, 2, 3
_LIST_ELEMENT: Final = 1
KEY, DATA, FLAGS, _USERDATA, OBJECT, KEY_END = 1, 2, 3, 6, 9, 10
DATA_VALUE, DATA_VERDICT = 1, 2
VERDICT_CODE, VERDICT_CHAIN = 1, 2
_INTERVAL_END: Final = attribute(FLAGS, b"\0\0\0\1")
_OPEN: Final = attribute(_USERDATA, b"\1\4" + struct.pack("=I", 1))  # type, length, and NFTNL_SET_ELEM_F_INTERVAL_OPEN

_OBJECT_TABLE, _OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA = 1, 2, 3, 4
_COUNTER_TYPE: Final = struct.pack("!I", 1)  # NFT_OBJECT_COUNTER
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2

_SET_TABLE, SET_NAME, SET_FLAGS, SET_KEY_TYPE, _SET_KEY_SIZE = 1, 2, 3, 4, 5
SET_DATA_TYPE, _SET_DATA_SIZE, _SET_DESCRIPTION, _SET_ID, _SET_USERDATA, SET_OBJECT_TYPE = 6, 7, 9, 10, 13, 15
INTERVAL, MAP, OBJECTS, CONCATENATION = 0x4, 0x8, 0x40, 0x80
TYPE_BITS: Final = 6
VERDICT_TYPE: Final = 0xFFFFFF00
_MOST_PARTS: Final = 32 // TYPE_BITS
_DESCRIBED_PARTS, _PART_SIZE = 2, 1
_KEY_ORDER, _DATA_ORDER, _KEY_IS, _DATA_INTERVAL = 0, 1, 3, 6
_A_CONCATENATION: Final = struct.pack("=BBIBB", 0, 4, 13, 1, 0)  # nft's number of that, and that no more is to say

_CHAIN_TABLE, _CHAIN_NAME = 1, 3
_RULE_TABLE, _RULE_CHAIN = 1, 2

VERDICTS: Final = MappingProxyType({"drop": 0, "accept": 1, "jump": -3, "goto": -4, "return": -5})
BYTES: Final = MappingProxyType(
    {"mark": 4, "inet_proto": 1, "inet_service": 2, "ipv4_addr": 4, "ipv6_addr": 16, "ifname": 16}
)
TYPES: Final = MappingProxyType(
    {"ipv4_addr": 7, "ipv6_addr": 8, "inet_proto": 12, "inet_service": 13, "mark": 19, "ifname": 41}
)
_ORDERS: Final = MappingProxyType({"mark": 1, "ifname": 1, "inet_service": 2, "ipv4_addr": 2, "ipv6_addr": 2})
"""What nft remembers of the order of bytes: 1 the host's, 2 big-endian, none for what is one byte or concatenated."""
_VALUES: Final = frozenset({"", "verdict", "mark", "counter"})
_LIST_BYTES: Final = 48_000
"""Bytes of elements a message: an attribute holds 65,535."""


def speaks(made: Set) -> bool:
    """Whether elements of such a set can be written here; else they are libnftables' to write."""
    known = bool(made.key) and all(part in BYTES for part in made.key) and made.value in _VALUES
    return known and not (made.interval and made.key == ("ifname",))  # there, nft's names end in wildcards


def makes(made: Set) -> bool:
    """Whether such a set can be made here; else it is libnftables' to make."""
    return speaks(made) and not made.counter and len(made.key) <= _MOST_PARTS


def elements(made: Set) -> Callable[[str, str | None], bytes]:
    """What turns keys and values of such a set into list entries for `add` (value given) or `delete` (None)."""
    parts = [_encoder(kind, made.interval) for kind in made.key]

    def ends(key: str) -> tuple[bytes, bytes]:
        if len(parts) == 1:
            return parts[0](key)
        both = [encode(part) for encode, part in zip(parts, key.split(" . "), strict=True)]
        return b"".join(_filled(low) for low, _ in both), b"".join(_filled(high) for _, high in both)

    def plain(key: str, value: str | None) -> bytes:
        return _entry(_key(ends(key)[0]) + _value(made.value, value))

    def concatenated(key: str, value: str | None) -> bytes:
        low, high = ends(key)
        return _entry(_key(low) + _key(high, KEY_END) + _value(made.value, value))

    def interval(key: str, value: str | None) -> bytes:
        low, high = ends(key)
        after = int.from_bytes(high, "big") + 1
        if after >> 8 * len(high):
            return _entry(_key(low) + _value(made.value, value) + (_OPEN if value is not None else b""))
        end = _entry(_key(after.to_bytes(len(high), "big")) + _INTERVAL_END)
        return _entry(_key(low) + _value(made.value, value)) + end

    if not made.interval:
        return plain
    return interval if len(made.key) == 1 else concatenated


def add_elements(table: str, name: str, entries: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Requests that add `entries` to a set, each with how many of them it carries."""
    return _lists(_NEW_ELEMENT, NLM_F_CREATE, table, name, entries)


def delete_elements(table: str, name: str, entries: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Requests that delete `entries` from a set, each with how many of them it carries."""
    return _lists(_DELETE_ELEMENT, 0, table, name, entries)


def list_start(table: str, name: str) -> int:
    """At which byte of such a request the first entry begins; for the place that an error points at."""
    return len(list_head(table, name)) + 16 + 4


def add_set(table: str, name: str, made: Set, number: int) -> bytes:
    """A request for a set that `makes` is true of. No two of a transaction have the same `number`."""
    kinds, flags = made.key, INTERVAL if made.interval else 0
    described = told = b""
    size, packed = BYTES[kinds[0]], TYPES[kinds[0]]
    remembered = _remember(_KEY_ORDER, _ORDERS.get(kinds[0], 0) if len(kinds) == 1 else 0)
    if len(kinds) > 1:
        size, packed = sum(BYTES[kind] + 3 & ~3 for kind in kinds), 0
        for kind in kinds:
            packed = packed << TYPE_BITS | TYPES[kind]
        told = bytes((_KEY_IS, len(_A_CONCATENATION))) + _A_CONCATENATION
        if made.interval:
            flags |= CONCATENATION
            parts = b"".join(_nested(1, _number(_PART_SIZE, BYTES[kind])) for kind in kinds)
            described = _nested(_SET_DESCRIPTION, _nested(_DESCRIBED_PARTS, parts))
    value = b""
    match made.value:
        case "counter":
            flags |= OBJECTS
            value = _number(SET_OBJECT_TYPE, 1)
        case "mark":
            flags |= MAP
            value = _number(SET_DATA_TYPE, TYPES["mark"]) + _number(_SET_DATA_SIZE, BYTES["mark"])
            remembered += _remember(_DATA_ORDER, _ORDERS["mark"])
        case "verdict":
            flags |= MAP
            value = _number(SET_DATA_TYPE, VERDICT_TYPE) + _number(_SET_DATA_SIZE, 0)
            remembered += _remember(_DATA_ORDER, 0)
    remembered += told + (_remember(_DATA_INTERVAL, 0) if made.value else b"")
    body = _set(table, name) + _number(SET_FLAGS, flags) + _number(SET_KEY_TYPE, packed) + _number(_SET_KEY_SIZE, size)
    body += value + _number(_SET_ID, number) + described + attribute(_SET_USERDATA, remembered)
    return message(SUBSYSTEM << 8 | _NEW_SET, NLM_F_CREATE, body)


def delete_set(table: str, name: str) -> bytes:
    """A request that deletes a set with all that is in it."""
    return message(SUBSYSTEM << 8 | _DELETE_SET, 0, _set(table, name))


def add_chain(table: str, name: str) -> bytes:
    """A request for a chain without a hook; one that is there is left as it is."""
    return message(SUBSYSTEM << 8 | _NEW_CHAIN, NLM_F_CREATE, _chain(table, name))


def delete_chain(table: str, name: str) -> bytes:
    """A request that deletes a chain."""
    return message(SUBSYSTEM << 8 | _DELETE_CHAIN, 0, _chain(table, name))


def add_rule(table: str, chain: str, encoded: bytes) -> bytes:
    """A request for a rule at the end of a chain, which `linux.nft_expr` has encoded."""
    return message(SUBSYSTEM << 8 | _NEW_RULE, NLM_F_CREATE | _NLM_F_APPEND, _rule(table, chain) + encoded)


def flush_chain(table: str, chain: str) -> bytes:
    """A request that deletes all rules of a chain."""
    return message(SUBSYSTEM << 8 | _DELETE_RULE, 0, _rule(table, chain))


def add_counter(table: str, name: str) -> bytes:
    """A request for a counter; one that is there is left as it is, with its counts."""
    return message(SUBSYSTEM << 8 | _NEW_OBJECT, NLM_F_CREATE, _object(table, name) + attribute(_OBJECT_DATA, b""))


def delete_counter(table: str, name: str) -> bytes:
    """A request that deletes a counter."""
    return message(SUBSYSTEM << 8 | _DELETE_OBJECT, 0, _object(table, name))


def dump_counters(table: str) -> tuple[int, bytes]:
    """Kind and body of the dump of a table's counters."""
    head = generic(INET) + attribute(_OBJECT_TABLE, _text(table)) + attribute(_OBJECT_TYPE, _COUNTER_TYPE)
    return SUBSYSTEM << 8 | _GET_OBJECT, head


def counted(body: bytes) -> tuple[str, int, int]:
    """Name, packets and bytes of one counter in that dump."""
    found = attributes(body, 4)
    counts = attributes(found[_OBJECT_DATA])
    name = found[_OBJECT_NAME].rstrip(b"\0").decode()
    return name, int.from_bytes(counts[_COUNTER_PACKETS], "big"), int.from_bytes(counts[_COUNTER_BYTES], "big")


def _lists(kind: int, flags: int, table: str, name: str, entries: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    head = list_head(table, name)
    start = 0
    while start < len(entries):
        size, end = 0, start
        while end < len(entries) and size < _LIST_BYTES:
            size += len(entries[end])
            end += 1
        listed = attribute(LIST_ELEMENTS | _NESTED, b"".join(entries[start:end]))
        yield end - start, message(SUBSYSTEM << 8 | kind, flags, head + listed)
        start = end


def list_head(table: str, name: str) -> bytes:
    """How a request about elements of a set begins."""
    return generic(INET) + attribute(_LIST_TABLE, _text(table)) + attribute(_LIST_SET, _text(name))


def _object(table: str, name: str) -> bytes:
    named = attribute(_OBJECT_TABLE, _text(table)) + attribute(_OBJECT_NAME, _text(name))
    return generic(INET) + named + attribute(_OBJECT_TYPE, _COUNTER_TYPE)


def _set(table: str, name: str) -> bytes:
    return generic(INET) + attribute(_SET_TABLE, _text(table)) + attribute(SET_NAME, _text(name))


def _chain(table: str, name: str) -> bytes:
    return generic(INET) + attribute(_CHAIN_TABLE, _text(table)) + attribute(_CHAIN_NAME, _text(name))


def _rule(table: str, chain: str) -> bytes:
    return generic(INET) + attribute(_RULE_TABLE, _text(table)) + attribute(_RULE_CHAIN, _text(chain))


def _number(kind: int, number: int) -> bytes:
    return attribute(kind, struct.pack("!I", number))


def _nested(kind: int, payload: bytes) -> bytes:
    return attribute(kind | _NESTED, payload)


def _remember(kind: int, number: int) -> bytes:
    return bytes((kind, 4)) + struct.pack("=I", number)


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _entry(payload: bytes) -> bytes:
    return attribute(_LIST_ELEMENT | _NESTED, payload)


def _key(key: bytes, kind: int = KEY) -> bytes:
    return attribute(kind | _NESTED, attribute(DATA_VALUE, key))


@lru_cache(maxsize=4096)
def _value(kind: str, value: str | None) -> bytes:
    if value is None or not kind:
        return b""
    if kind == "counter":
        return attribute(OBJECT, _text(value))
    if kind == "mark":
        return attribute(DATA | _NESTED, attribute(DATA_VALUE, struct.pack("=I", int(value))))
    verb, _, chain = value.partition(" ")
    verdict = attribute(VERDICT_CODE, struct.pack("!i", VERDICTS[verb]))
    if chain:
        verdict += attribute(VERDICT_CHAIN, _text(chain))
    return attribute(DATA | _NESTED, attribute(DATA_VERDICT | _NESTED, verdict))


def _filled(part: bytes) -> bytes:
    return part + b"\0" * (-len(part) % 4)


def _encoder(kind: str, interval: bool) -> Callable[[str], tuple[bytes, bytes]]:
    """From a part of a key to its lowest and highest bytes; the same unless it is a range."""
    if kind == "ifname":
        return _interface
    if kind == "ipv4_addr":
        return lambda text: _addresses(socket.AF_INET, text)
    if kind == "ipv6_addr":
        return lambda text: _addresses(socket.AF_INET6, text)
    size = BYTES[kind]
    order = "@" if kind == "mark" and not interval else "!"
    packer = struct.Struct(order + {1: "B", 2: "H", 4: "I"}[size])

    def number(text: str) -> tuple[bytes, bytes]:
        low, _, high = text.partition("-")
        first = packer.pack(int(low))
        return first, packer.pack(int(high)) if high else first

    return number


def _interface(text: str) -> tuple[bytes, bytes]:
    name = text.strip('"').encode().ljust(BYTES["ifname"], b"\0")
    return name, name


def _addresses(family: int, text: str) -> tuple[bytes, bytes]:
    if "/" in text:
        base, _, length = text.partition("/")
        first = socket.inet_pton(family, base)
        host = (1 << 8 * len(first) - int(length)) - 1
        return first, (int.from_bytes(first, "big") | host).to_bytes(len(first), "big")
    low, _, high = text.partition("-")
    first = socket.inet_pton(family, low)
    return first, socket.inet_pton(family, high) if high else first
