"""A prefix as BGP writes it, for tables of a hundred thousand: its length in bits, then its whole address.

    10.1.2.0/26    1a 0a 01 02 00                      2001:db8::/64    40 20 01 0d b8 00 ...

It is bytes, so that it is made, hashed and compared without a line of Python; `ipaddress` takes 1.3 us to make a
network and 0.4 us for each look-up of one. The same prefix is always the same bytes: bits beyond the length are zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from core.addr import Network

_LENGTHS: Final = tuple(bytes((length,)) for length in range(129))
_V4: Final = 5
_V6: Final = 17


class Prefix(bytes):
    """One prefix. Made by `of` or `read`, never from bytes that may not be one."""

    __slots__ = ()

    @classmethod
    def of(cls, network: Network) -> Prefix:
        """From its usual form."""
        return cls(_LENGTHS[network.prefixlen] + network.network_address.packed)

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


def read(data: bytes, version: int) -> Iterator[Prefix]:
    """The prefixes of an UPDATE's field (RFC 4271, 4.3): each a length and as many bytes as it takes.

    Bits beyond the length are of no value and become zero. Raises ValueError when the field breaks off or names a
    length that no address has.
    """
    width, at, end = (4 if version == 4 else 16), 0, len(data)
    padding = bytes(width)
    while at < end:
        length = data[at]
        after = at + 1 + (length + 7 >> 3)
        if length > 8 * width or after > end:
            raise ValueError(f"a prefix of {length} bits in {end - at - 1} bytes")
        made = Prefix((data[at:after] + padding)[: width + 1])
        yield made if _clean(made, length) else made.cut(length)
        at = after


def _clean(prefix: bytes, length: int) -> bool:
    """Whether the bits beyond the length are zero; only the last byte that was read may have some."""
    loose = -length & 7
    return not loose or not prefix[length + 7 >> 3] & ((1 << loose) - 1)
