"""Prefixes as bytes say the same as `ipaddress` does."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.prefix import Prefix

V4 = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda each: ip_network(each, strict=False))
V6 = st.tuples(st.integers(2**32, 2**128 - 1), st.integers(0, 128)).map(lambda each: ip_network(each, strict=False))


@given(st.one_of(V4, V6))
def test_there_and_back(network) -> None:
    prefix = Prefix.of(network)
    assert prefix.network == network
    assert (prefix.version, prefix.length, prefix.packed) == (
        network.version,
        network.prefixlen,
        network.network_address.packed,
    )
    assert str(prefix) == str(network)
    assert Prefix.parse(str(network)) == prefix
    assert hash(Prefix.parse(str(network))) == hash(prefix)


@given(st.one_of(V4, V6), st.data())
def test_cut_is_the_supernet(network, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, network.prefixlen))
    assert Prefix.of(network).cut(length).network == network.supernet(new_prefix=length)


def test_bits_beyond_the_length_are_of_no_value() -> None:
    assert str(Prefix.parse("10.1.2.77/26")) == "10.1.2.64/26"
    assert str(Prefix.parse("10.255.255.255/0")) == "0.0.0.0/0"
    assert str(Prefix.parse("10.1.255.1/20")) == "10.1.240.0/20"
    assert str(Prefix.parse("fd00::1/64")) == "fd00::/64"


@pytest.mark.parametrize("text", ["", "10.0.0.0", "10.0.0/24", "10.0.0.0.0/24", "10.0.0.0/33", "10.0.256.0/24", "x/8"])
def test_what_is_no_prefix_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever its words: the caller names the line
        Prefix.parse(text)


def field(*networks, ones: bool = False) -> bytes:
    """As an UPDATE has them (RFC 4271, 4.3): length, and no more bytes than it takes; with `ones` in the spare bits."""
    said = b""
    for network in networks:
        address = network.broadcast_address if ones else network.network_address
        said += bytes((network.prefixlen,)) + address.packed[: -(-network.prefixlen // 8)]
    return said


@given(st.one_of(st.tuples(st.just(4), st.lists(V4)), st.tuples(st.just(6), st.lists(V6))), st.booleans())
def test_unpacked_from_an_update(said, ones: bool) -> None:
    version, networks = said
    assert Prefix.unpack(field(*networks, ones=ones), version) == [Prefix.of(each) for each in networks]


@pytest.mark.parametrize(
    ("hexadecimal", "version"),
    [("21 0a00000000", 4), ("18 0a00", 4), ("08 0a 18", 4), ("81" + 17 * "20", 6), ("ff", 6), ("40 2001", 6)],
)
def test_a_field_of_something_else_is_refused(hexadecimal: str, version: int) -> None:
    with pytest.raises(ValueError, match=f"no IPv{version} prefixes"):
        Prefix.unpack(bytes.fromhex(hexadecimal), version)
