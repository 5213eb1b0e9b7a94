"""The frame of table `inet muslin`: which packets are a workload's, and which compiled stack judges them.

    raw-prerouting ──> check-source            a workload sends from its own addresses or not at all

    filter-forward     established ── accept
                       from a workload ──> from-workload ── judge-from ── vmap: interface ─> goto out-STACK
                       to a workload ───> to-workload ──── judge-to ──── vmap: interface ─> goto in-STACK
    filter-input       IP-in-IP: only from nodes
                       from a workload ──> workload-to-host: from-workload as above, then the BGP of those that are
                                           asked for it, then defaultEndpointToHostAction

A stack leaves the number of an outcome in the mark, and `policy.outcomes` settles it: what is denied is dropped, what
a workload may send returns here, what one may receive is accepted. Both vmaps end in an outcome that is denied: a
workload interface that nobody has programmed is cut off, also while felix is down. The host to its own workloads is not
policed, and traffic that neither comes from nor goes to a workload is never judged, unless a host endpoint covers its
interface (`felix.host_frame`). An established flow costs one look at conntrack in forward, and its source check.

Packets are marked, in the high bits only. They lose the mark when they go on to the host or to another host; those
that enter a pod lose it as they enter its namespace.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from core.addr import Address, Network
from core.names import MARK_MASK, WORKLOAD_PREFIX
from core.nftables import Chain, Element, Hook, Ruleset, Set, join
from felix.peering_address import CALLS
from policy.outcomes import UNPROGRAMMED, ask, set_mark
from policy.render import machinery

SOURCES: Final = {4: "sources4", 6: "sources6"}
"""The sets of (interface, address) that may send."""

SPOOFS: Final = {4: "spoofs4", 6: "spoofs6"}
"""The sets of (interface, prefix) from which a workload may send besides."""

NODES: Final = "nodes4"
"""The set of nodes' IPv4 addresses: who may send us IP-in-IP."""

FROM_WORKLOAD: Final = "from-workload"
TO_WORKLOAD: Final = "to-workload"
JUDGE_FROM: Final = "judge-from"
JUDGE_TO: Final = "judge-to"

FROM: Final = f'iifname "{WORKLOAD_PREFIX}*" iifname != "muslin.*"'
TO: Final = f'oifname "{WORKLOAD_PREFIX}*" oifname != "muslin.*"'
UNMARK: Final = f"meta mark set meta mark & 0x{~MARK_MASK & 0xFFFFFFFF:08x}"
"""What comes from a workload, what goes to one, and the statement that wipes our half of the mark."""

NEIGHBOUR: Final = "nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert"
LISTENER: Final = "mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report"
"""ICMPv6 types without which no address is usable."""

_UNPROGRAMMED: Final = set_mark(UNPROGRAMMED)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRules:
    """What host endpoints add to the frame (`felix.host_frame`): nothing where there are none.

    `judgements` are their judges. The others are rules: for all that comes in, what goes to the host, what is forwarded
    (on its way in, on its way out), and what conntrack calls invalid.
    """

    judgements: tuple[str, ...] = ()
    unmark: tuple[str, ...] = ()
    prerouting: tuple[str, ...] = ()
    input: tuple[str, ...] = ()
    forward_in: tuple[str, ...] = ()
    forward_out: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()


NO_HOSTS: Final = HostRules()


@cache
def base(
    to_host: str, *, ipip: bool, spoofing: bool = False, peering: bool = False, hosts: HostRules = NO_HOSTS
) -> Ruleset:
    """The chains and empty sets. `to_host` is the verdict on what a workload may send the host by its policy.

    With `ipip`, IP-in-IP from anyone but a node is dropped before the tunnel opens it (CVE-2020-10136); without,
    it is not ours to judge. With `spoofing` some workload may send from prefixes besides its own addresses; with
    `peering` some may call this node's speaker (`felix.peering_address` has the sets).
    """
    sets = {
        SOURCES[4]: Set(key=("ifname", "ipv4_addr")),
        SOURCES[6]: Set(key=("ifname", "ipv6_addr")),
        FROM_WORKLOAD: Set(key=("ifname",), value="verdict"),
        TO_WORKLOAD: Set(key=("ifname",), value="verdict"),
        **({NODES: Set(key=("ipv4_addr",))} if ipip else {}),
        **({SPOOFS[4]: Set(key=("ifname", "ipv4_addr"), interval=True)} if spoofing else {}),
        **({SPOOFS[6]: Set(key=("ifname", "ipv6_addr"), interval=True)} if spoofing else {}),
    }
    chains = {
        **_source_chains(hosts, spoofing=spoofing),
        **_forward_chains(hosts),
        **_input_chains(to_host, hosts, ipip=ipip, peering=peering),
    }
    frame = Ruleset(chains=MappingProxyType(chains), sets=MappingProxyType(sets))
    return join(frame, machinery((JUDGE_FROM, JUDGE_TO, *hosts.judgements)))


def closed() -> Ruleset:
    """The frame while nothing is known of any workload: all of them are cut off."""
    return base(verdict_to_host(None), ipip=False)


def _source_chains(hosts: HostRules, *, spoofing: bool) -> dict[str, Chain]:
    more = (f"iifname . ip saddr @{SPOOFS[4]} return", f"iifname . ip6 saddr @{SPOOFS[6]} return")
    return {
        "raw-prerouting": Chain(
            hook=Hook(type="filter", hook="prerouting", priority=-300),
            rules=(*hosts.unmark, f"{FROM} jump check-source", *hosts.prerouting),
        ),
        "check-source": Chain(
            rules=(
                f"iifname . ip saddr @{SOURCES[4]} return",
                f"iifname . ip6 saddr @{SOURCES[6]} return",
                *(more if spoofing else ()),
                # Finding a neighbour and joining its multicast group come before any address is usable.
                f"ip6 saddr {{ ::, fe80::/10 }} icmpv6 type {{ {NEIGHBOUR}, {LISTENER} }} return",
                "counter drop",
            )
        ),
    }


def _forward_chains(hosts: HostRules) -> dict[str, Chain]:
    return {
        "filter-forward": Chain(
            hook=Hook(type="filter", hook="forward", priority=0),
            rules=(
                "ct state vmap { established : accept, related : accept, invalid : goto invalid }",
                f"{FROM} jump {FROM_WORKLOAD}",
                *hosts.forward_in,
                f"{TO} goto {TO_WORKLOAD}",
                *hosts.forward_out,
                *(hosts.unmark or (f"{FROM} {UNMARK}",)),
            ),
        ),
        "invalid": Chain(rules=(f"{FROM} counter drop", f"{TO} counter drop", *hosts.invalid, *hosts.unmark)),
        FROM_WORKLOAD: Chain(
            rules=(
                # A packet that a pod wraps itself would leave its wrapping on another node, past policy.
                "meta l4proto 4 counter drop",
                "udp dport 4789 counter drop",
                *ask(JUDGE_FROM),
            )
        ),
        TO_WORKLOAD: Chain(rules=ask(JUDGE_TO)),
        JUDGE_FROM: Chain(rules=(f"iifname vmap @{FROM_WORKLOAD}", _UNPROGRAMMED)),
        JUDGE_TO: Chain(rules=(f"oifname vmap @{TO_WORKLOAD}", _UNPROGRAMMED)),
    }


def _input_chains(to_host: str, hosts: HostRules, *, ipip: bool, peering: bool) -> dict[str, Chain]:
    guard = ("meta l4proto 4 goto tunnelled",) if ipip else ()
    calls = (
        f"iifname . ip saddr . ip daddr . tcp dport @{CALLS[4]} accept",
        f"iifname . ip6 saddr . ip6 daddr . tcp dport @{CALLS[6]} accept",
    )
    return {
        "filter-input": Chain(
            hook=Hook(type="filter", hook="input", priority=0),
            rules=(*guard, f"{FROM} jump workload-to-host", *hosts.input),
        ),
        "workload-to-host": Chain(
            rules=(
                "ct state vmap { established : accept, related : accept, invalid : drop }",
                f"icmpv6 type {{ {NEIGHBOUR}, {LISTENER} }} accept",
                "ct original ip daddr 127.0.0.0/8 counter drop",  # route_localnet is for what others DNAT there
                f"jump {FROM_WORKLOAD}",
                UNMARK,
                *(calls if peering else ()),
                to_host,
            )
        ),
        **({"tunnelled": Chain(rules=(f"ip saddr @{NODES} accept", "counter drop"))} if ipip else {}),
    }


def dispatch(
    interface: str, addresses: Iterable[Address], spoofs: Iterable[Network], ingress: str, egress: str
) -> dict[Element, str]:
    """What makes one endpoint known: its sources, and the chains that judge its two directions."""
    quoted = f'"{interface}"'
    return {
        Element(FROM_WORKLOAD, quoted): f"goto {egress}",
        Element(TO_WORKLOAD, quoted): f"goto {ingress}",
        **{Element(SOURCES[each.version], f"{quoted} . {each}"): "" for each in addresses},
        **{Element(SPOOFS[net.version], f"{quoted} . {_prefix(net)}"): "" for net in spoofs},
    }


def _prefix(net: Network) -> str:
    return str(net.network_address) if net.prefixlen == net.max_prefixlen else str(net)


def nodes(addresses: Iterable[Address]) -> dict[Element, str]:
    """The nodes that may send IP-in-IP."""
    return {Element(NODES, str(address)): "" for address in addresses}


def verdict_to_host(action: str | None) -> str:
    """nft's verdict for `defaultEndpointToHostAction`; anything unknown drops, as does none."""
    return {"Accept": "accept", "Return": "return"}.get(action or "", "counter drop")
