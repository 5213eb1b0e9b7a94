"""A prefix as BGP writes it, for tables of a hundred thousand: its length in bits, then its whole address.

    10.1.2.0/26    1a 0a 01 02 00                      2001:db8::/64    40 20 01 0d b8 00 ...

It is bytes, so that it is made, hashed and compared without a line of Python; `ipaddress` takes 1.3 us to make a
network and 0.4 us for each look-up of one. The same prefix is always the same bytes: bits beyond the length are zero.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from core.addr import Network

_LENGTHS: Final = tuple(bytes((length,)) for length in range(129))
_V4: Final = 5
_MOST_V4: Final = 32
_BITS: Final = {4: _MOST_V4, 6: 128}
_SIZES: Final = tuple(1 + (length + 7 >> 3) for length in range(256))
"""Bytes that a prefix of that length takes in an UPDATE."""
_SPARE: Final = tuple((1 << -length % 8) - 1 for length in range(129))
"""The bits of the last of them that do not count."""
_FILL: Final = {
    version: tuple(bytes(1 + bits // 8 - _SIZES[length]) for length in range(bits + 1))
    for version, bits in _BITS.items()
}
_BEYOND: Final = tuple((1 << _MOST_V4 - length) - 1 for length in range(_MOST_V4 + 1))


class Prefix(bytes):
    """One prefix. Made by `of` or `parse`, never from bytes that may not be one."""

    __slots__ = ()

    @classmethod
    def of(cls, network: Network) -> Prefix:
        """From its usual form."""
        return cls(_LENGTHS[network.prefixlen] + network.network_address.packed)

    @classmethod
    def parse(cls, text: str) -> Prefix:
        """From `10.1.2.0/26`; bits beyond the length become zero. Raises ValueError."""
        if ":" in text:
            return cls.of(ip_network(text, strict=False))
        a, b, c, d, length = map(int, text.replace("/", ".").split("."))
        if length > _MOST_V4:
            raise ValueError(f"{text!r} is no IPv4 prefix")
        made = cls((length, a, b, c, d))
        return made.cut(length) if (a << 24 | b << 16 | c << 8 | d) & _BEYOND[length] else made

    @classmethod
    def unpack(cls, field: bytes, version: int) -> list[Prefix]:
        """From a field of an UPDATE (RFC 4271, 4.3): each with the bytes it needs; bits beyond the length become zero.
        Raises ValueError."""
        bits = _BITS[version]
        found: list[Prefix] = []
        at, end = 0, len(field)
        while at < end:
            length = field[at]
            after = at + _SIZES[length]
            if length > bits or after > end:
                raise ValueError(f"no IPv{version} prefixes: {field.hex()}")
            made = cls(field[at:after] + _FILL[version][length])
            found.append(made.cut(length) if field[after - 1] & _SPARE[length] else made)
            at = after
        return found

    @property
    def network(self) -> Network:
        """Its usual form."""
        make = IPv4Network if len(self) == _V4 else IPv6Network
        return make((self[1:], self[0]))

    @property
    def version(self) -> int:
        """The IP version."""
        return 4 if len(self) == _V4 else 6

    @property
    def length(self) -> int:
        """Bits."""
        return self[0]

    @property
    def packed(self) -> bytes:
        """The address."""
        return self[1:]

    def __str__(self) -> str:
        return str(self.network)

    def __repr__(self) -> str:
        return f"Prefix({self.network})"

    def cut(self, length: int) -> Prefix:
        """The prefix of that length, at most our own, that holds us."""
        bits = 8 * (len(self) - 1)
        kept = int.from_bytes(self[1:], "big") >> (bits - length) << (bits - length)
        return Prefix(_LENGTHS[length] + kept.to_bytes(bits // 8, "big"))
