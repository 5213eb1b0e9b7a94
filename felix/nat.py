"""Source NAT, all of it for packets that leave the pod network's own addresses behind.

natOutgoing    from a natOutgoing pool, to outside every pool (and, if asked, every node): the host's address
tunnel         the host's own packet with another of its addresses, leaving by the tunnel: the tunnel's address,
               so that the answer comes back through the tunnel too
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from types import MappingProxyType

from core.addr import Address, Network, host_prefix
from core.names import IPIP_DEVICE
from core.nftables import Chain, Element, Hook, Ruleset, Set
from core.resources import IPPool

_TYPES = {4: ("ip", "ipv4_addr"), 6: ("ip6", "ipv6_addr")}


def nat(pools: Iterable[IPPool], exempt: Iterable[Address], tunnel: Address | None) -> Ruleset:
    """The NAT chain and its sets. `exempt` are destinations outside the pools that see the pod's own address.

    A disabled pool counts: its pods still run. `tunnel` is the IP-in-IP device's address, None without one.
    """
    pools = list(pools)
    outgoing = [pool.spec.network for pool in pools if pool.spec.nat_outgoing]
    spared = [*(pool.spec.network for pool in pools), *map(host_prefix, exempt)]
    rules = [
        f"{word} saddr @nat-outgoing{version} {word} daddr != @nat-exempt{version} masquerade fully-random"
        for version, (word, _) in _TYPES.items()
    ]
    if tunnel:
        rules.insert(0, f'oifname "{IPIP_DEVICE}" ip saddr != {tunnel} fib saddr type local snat ip to {tunnel}')
    sets = {
        f"{name}{version}": Set(key=(type_,), interval=True)
        for version, (_, type_) in _TYPES.items()
        for name in ("nat-outgoing", "nat-exempt")
    }
    elements = {
        Element(f"{name}{network.version}", spell(network)): ""
        for name, networks in (("nat-outgoing", outgoing), ("nat-exempt", spared))
        for network in collapse(networks)
    }
    chain = Chain(hook=Hook(type="nat", hook="postrouting", priority=100), rules=tuple(rules))
    return Ruleset(
        chains=MappingProxyType({"nat-postrouting": chain}),
        sets=MappingProxyType(sets),
        elements=MappingProxyType(elements),
    )


def collapse(networks: Iterable[Network]) -> Iterator[Network]:
    """The fewest prefixes that cover the same addresses; an interval set refuses overlaps."""
    networks = list(networks)
    yield from collapse_addresses(each for each in networks if isinstance(each, IPv4Network))
    yield from collapse_addresses(each for each in networks if isinstance(each, IPv6Network))


def spell(network: Network) -> str:
    """An interval in nft's canonical spelling: a single address stands without its length."""
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)
