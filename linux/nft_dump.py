"""Elements of nftables sets out of the kernel's bytes, spelt as in core.nftables: `linux.nft_wire` the other way.

A map of 100,000 elements takes 0.1 s here and no more memory than its elements; through libnftables and JSON 0.8 s
and some hundreds of MiB. Where all elements of a message are of one shape, as in maps of addresses to marks, they are
cut by that shape; else they are taken apart one by one.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Final, Literal

from core.nftables import Set
from linux.netlink import ATTRIBUTE, attributes
from linux.nfnetlink import Nfnetlink
from linux.nft_wire import (
    BYTES,
    DATA,
    DATA_VALUE,
    DATA_VERDICT,
    FLAGS,
    GET_ELEMENT,
    KEY,
    KEY_END,
    LIST_ELEMENTS,
    OBJECT,
    SUBSYSTEM,
    VERDICT_CHAIN,
    VERDICT_CODE,
    VERDICTS,
    list_head,
)

_WORDS: Final = {code: word for word, code in VERDICTS.items()}
_END: Final = b"\0\0\0\1"


def elements(netlink: Nfnetlink, table: str, name: str, made: Set) -> Iterator[tuple[str, str]]:
    """Key and value of each element of a set that `linux.nft_wire` speaks; OSError when the kernel does not say."""
    bodies = netlink.dump(SUBSYSTEM << 8 | GET_ELEMENT, list_head(table, name))
    lists = (blob for body in bodies if (blob := attributes(body, 4).get(LIST_ELEMENTS)))
    if made.interval and len(made.key) == 1:
        yield from _intervals(made, lists)
        return
    spell, say = _speller(made), _sayer(made)
    for blob in lists:
        for low, high, value in _uniform(made, blob) or _each(blob):
            yield spell(low, high), say(value)


def _each(blob: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Lowest key, highest key and value of each element: a mark, an object's name, or a verdict's attributes."""
    for found in _parts(blob):
        low = _value_of(found[KEY])
        yield low, _value_of(found[KEY_END]) if KEY_END in found else low, _data(found)


def _parts(blob: bytes) -> Iterator[dict[int, bytes]]:
    at = 0
    while at + 4 <= len(blob):
        length, _ = ATTRIBUTE.unpack_from(blob, at)
        yield attributes(blob[at + 4 : at + length])
        at += (length + 3) & ~3


def _value_of(nested: bytes) -> bytes:
    return attributes(nested)[DATA_VALUE]


def _data(found: dict[int, bytes]) -> bytes:
    if OBJECT in found:
        return found[OBJECT]
    nested = attributes(found[DATA]) if DATA in found else {}
    return nested.get(DATA_VERDICT, nested.get(DATA_VALUE, b""))


def _uniform(made: Set, blob: bytes) -> list[tuple[bytes, bytes, bytes]] | None:
    """The same at a tenth of the cost, if every element is a key, or a key and a mark, and nothing else."""
    if made.counter or made.interval or made.value not in ("", "mark"):
        return None
    length, _ = ATTRIBUTE.unpack_from(blob)
    size = len(_value_of(attributes(blob[4:length])[KEY]))
    filled = size + 3 & ~3
    shape = struct.Struct(f"12s{size}s{filled - size}x" + ("8s4s" if made.value else ""))
    if shape.size != length or len(blob) % length:
        return None
    cut = list(shape.iter_unpack(blob))
    if len({row[0::2] for row in cut}) != 1:  # their headers
        return None
    return [(row[1], row[1], row[3] if made.value else b"") for row in cut]


def _intervals(made: Set, lists: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Beginnings and ends, joined. A beginning ends where the next element is, or never."""
    size = BYTES[made.key[0]]
    spell, say = _speller(made), _sayer(made)
    found = [
        (_value_of(each[KEY]), each.get(FLAGS, b"") != _END, _data(each)) for blob in lists for each in _parts(blob)
    ]
    found.sort(key=lambda each: each[:2])
    highest = b"\xff" * size
    for index, (low, begins, value) in enumerate(found):
        if begins:
            after = found[index + 1][0] if index + 1 < len(found) else None
            high = highest if after is None else (int.from_bytes(after, "big") - 1).to_bytes(size, "big")
            yield spell(low, high), say(value)


def _sayer(made: Set) -> Callable[[bytes], str]:
    if made.value == "mark":
        return _mark
    if made.value == "verdict":
        return _verdict
    return _text


@lru_cache(maxsize=4096)
def _mark(data: bytes) -> str:
    return str(struct.unpack("=I", data)[0])


@lru_cache(maxsize=4096)
def _verdict(data: bytes) -> str:
    found = attributes(data)
    word = _WORDS[struct.unpack("!i", found[VERDICT_CODE])[0]]
    return f"{word} {_text(found[VERDICT_CHAIN])}" if VERDICT_CHAIN in found else word


@lru_cache(maxsize=4096)
def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode()


def _speller(made: Set) -> Callable[[bytes, bytes], str]:
    """From the lowest and highest bytes of a key to its spelling."""
    spellers = [_part_speller(kind, interval=made.interval) for kind in made.key]
    if len(spellers) == 1:
        return spellers[0]
    slices, at = [], 0
    for kind in made.key:
        slices.append(slice(at, at + BYTES[kind]))
        at += BYTES[kind] + 3 & ~3

    def spell(low: bytes, high: bytes) -> str:
        return " . ".join(say(low[cut], high[cut]) for say, cut in zip(spellers, slices, strict=True))

    return spell


def _part_speller(kind: str, *, interval: bool) -> Callable[[bytes, bytes], str]:
    if kind == "ifname":
        return lambda low, _: f'"{_text(low)}"'
    if kind in ("ipv4_addr", "ipv6_addr"):
        family = socket.AF_INET if kind == "ipv4_addr" else socket.AF_INET6
        return _addresses if interval else lambda low, _: _address(family, low)
    order: Literal["little", "big"] = sys.byteorder if kind == "mark" and not interval else "big"

    def number(low: bytes, high: bytes) -> str:
        first = int.from_bytes(low, order)
        return str(first) if low == high else f"{first}-{int.from_bytes(high, order)}"

    return number


def _address(family: int, packed: bytes) -> str:
    text = socket.inet_ntop(family, packed)
    return text if family == socket.AF_INET or "." not in text else str(ip_address(packed))


def _addresses(low: bytes, high: bytes) -> str:
    first, last = ip_address(low), ip_address(high)
    if first == last:
        return str(first)
    length = first.max_prefixlen - (int(first) ^ int(last)).bit_length()
    network = ip_network((first, length), strict=False)
    return str(network) if (network[0], network[-1]) == (first, last) else f"{first}-{last}"
