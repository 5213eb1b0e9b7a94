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
