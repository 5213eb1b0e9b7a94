"""Named states of a cluster and what node `a` makes of them, however the state was arrived at."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from itertools import permutations

import pytest

from core.addr import Network
from core.names import IPIP_DEVICE, Key, workload_interface
from core.nftables import Element, Ruleset, join
from core.resources import EncapMode, Resource
from core.snapshot import Snapshot
from felix.desired import desired
from felix.model import Desired
from linux.model import Facts, NextHop, Route, RouteKey, RouteType
from tests.felix.cluster import (
    CONFIG,
    REVISION,
    allow_from,
    block,
    deny,
    facts,
    felix,
    global_deny,
    link,
    namespace,
    node,
    pod,
    pool,
    snapshot,
)
from tests.felix.guarded import ANY, hep, policy

WEB, DB = workload_interface("shop", "web"), workload_interface("shop", "db")
UPLINK = link("eth0", 2, "10.1.0.1/24", mtu=9000)
NODES = (
    node("a", "10.1.0.1/24", tunnel="10.0.0.3"),
    node("b", "10.1.0.2/24"),
    node("c", "10.2.0.3/24"),
    namespace("shop"),
)
BLOCKS = (block("10.0.0.0/26", "a"), block("10.0.0.64/26", "b"), block("10.0.0.128/26", "c"))
LENT = (
    block("10.0.0.0/26", "a", borrowers={"10.0.0.9": "b", "10.0.0.10": "c", "10.0.0.11": "a", "10.0.0.130": "b"}),
    block("10.0.0.64/26", "b", borrowers={"10.0.0.70": "c", "10.0.0.71": "a", "10.0.0.72": "gone"}),
)
FOUR, SIX = pool("pods", "10.0.0.0/16"), pool("six", "fd00::/64")
PODS = (SIX, pod("web", "10.0.0.1", "fd00::1"), pod("db", "10.0.0.2"), pod("far", "10.0.0.65", on="b"))
HOME = (UPLINK, link(WEB, 5), link(DB, 6, up=False))
TUNNEL = link(IPIP_DEVICE, 9, "10.0.0.3/32")

BLACKHOLE = Route(type=RouteType.BLACKHOLE)


def via(device: int, gateway: str | None = None, *, onlink: bool = False) -> Route:
    return Route(next_hops=(NextHop(device, ip_address(gateway) if gateway else None, onlink),))


def routes(**written: Route) -> dict[RouteKey, Route]:
    """`{"10.0.0.64/26 400": route}` as the model spells it."""
    return {
        RouteKey(prefix, int(metric)): route
        for text, route in written.items()
        for prefix, metric in [(network(text.split()[0]), text.split()[1])]
    }


def network(text: str) -> Network:
    return ip_network(text)


@dataclass(frozen=True)
class Scenario:
    """A state, and what must be desired of it; `checks` are further facts about the outcome."""

    state: tuple[Resource, ...]
    facts: Facts
    routes: Mapping[RouteKey, Route]
    elements: Mapping[Element, str] = field(default_factory=dict)
    tunnels: frozenset[str] = frozenset()
    check: Callable[[Desired], bool] = lambda _: True


OWN = {"10.0.0.0/26 1000": BLACKHOLE}
BORROWED = {**OWN, "10.0.0.71/32 1000": BLACKHOLE}
WEB_UP = {"10.0.0.1/32 100": via(5), "fd00::1/128 100": via(5)}

SCENARIOS = {
    "nothing": Scenario((), facts(UPLINK), {}, check=lambda d: d.sysctls == {"net/ipv4/ip_forward": "1"}),
    "pods, one link up, one down": Scenario(
        (*NODES, *BLOCKS, *PODS, FOUR),
        facts(*HOME),
        routes(**OWN, **WEB_UP),
        {
            Element("sources4", f'"{WEB}" . 10.0.0.1'): "",
            Element("sources6", f'"{WEB}" . fd00::1'): "",
            Element("sources4", f'"{DB}" . 10.0.0.2'): "",
            Element("nat-exempt4", "10.0.0.0/16"): "",
        },
        check=lambda d: (
            d.sysctls[f"net/ipv4/conf/{DB}/proxy_arp"] == "1"
            and d.sysctls["net/ipv6/conf/all/forwarding"] == "1"
            and [each.pending for each in d.endpoints] == [f"interface {DB} is down", ""]
        ),
    ),
    "rules do not wait for links": Scenario(
        (*NODES, *PODS, FOUR),
        facts(),
        {},
        {Element("sources4", f'"{DB}" . 10.0.0.2'): ""},
        check=lambda d: f"net/ipv4/conf/{DB}/proxy_arp" not in d.sysctls and len(_dispatched(d)) == 2,
    ),
    "Always": Scenario(
        (*NODES, *BLOCKS, pool("pods", "10.0.0.0/16", ipip_mode=EncapMode.ALWAYS, nat_outgoing=True)),
        facts(UPLINK, TUNNEL),
        routes(
            **OWN,
            **{
                "10.0.0.64/26 400": via(9, "10.1.0.2", onlink=True),
                "10.0.0.128/26 400": via(9, "10.2.0.3", onlink=True),
            },
        ),
        {
            Element("nodes4", "10.1.0.2"): "",
            Element("nodes4", "10.2.0.3"): "",
            Element("nat-outgoing4", "10.0.0.0/16"): "",
        },
        frozenset({IPIP_DEVICE}),
        check=lambda d: (
            d.tunnels[IPIP_DEVICE].mtu == 8980
            and str(d.tunnels[IPIP_DEVICE].local) == "10.1.0.1"
            and [str(each) for each in d.tunnels[IPIP_DEVICE].addresses] == ["10.0.0.3/32"]
            and any("snat ip to 10.0.0.3" in rule for rule in table(d).chains["nat-postrouting"].rules)
            and not d.awaited
        ),
    ),
    "Fallback": Scenario(
        (*NODES, block("10.0.0.64/26", "b"), pool("pods", "10.0.0.0/16", ipip_mode=EncapMode.FALLBACK)),
        facts(UPLINK, TUNNEL),
        routes(**{"10.0.0.64/26 400": via(9, "10.1.0.2", onlink=True)}),
        tunnels=frozenset({IPIP_DEVICE}),
    ),
    "CrossSubnet": Scenario(
        (*NODES, *BLOCKS, pool("pods", "10.0.0.0/16", ipip_mode=EncapMode.CROSS_SUBNET), felix(ipip_mtu=1400)),
        facts(UPLINK, TUNNEL),
        routes(**OWN, **{"10.0.0.64/26 300": via(2, "10.1.0.2"), "10.0.0.128/26 400": via(9, "10.2.0.3", onlink=True)}),
        tunnels=frozenset({IPIP_DEVICE}),
        check=lambda d: d.tunnels[IPIP_DEVICE].mtu == 1400,
    ),
    "borrowed addresses go to their borrower through the tunnel": Scenario(
        (*NODES, *LENT, pool("pods", "10.0.0.0/16", ipip_mode=EncapMode.ALWAYS)),
        facts(UPLINK, TUNNEL),
        routes(
            **BORROWED,
            **{
                "10.0.0.9/32 400": via(9, "10.1.0.2", onlink=True),
                "10.0.0.10/32 400": via(9, "10.2.0.3", onlink=True),
                "10.0.0.64/26 400": via(9, "10.1.0.2", onlink=True),
                "10.0.0.70/32 400": via(9, "10.2.0.3", onlink=True),
            },
        ),
        tunnels=frozenset({IPIP_DEVICE}),
        check=lambda d: any("10.0.0.72/32 belongs to node gone" in each for each in d.problems),
    ),
    "borrowed addresses go to a neighbour directly": Scenario(
        (*NODES, *LENT, pool("pods", "10.0.0.0/16", ipip_mode=EncapMode.CROSS_SUBNET)),
        facts(UPLINK, TUNNEL),
        routes(
            **BORROWED,
            **{
                "10.0.0.9/32 300": via(2, "10.1.0.2"),
                "10.0.0.10/32 400": via(9, "10.2.0.3", onlink=True),
                "10.0.0.64/26 300": via(2, "10.1.0.2"),
                "10.0.0.70/32 400": via(9, "10.2.0.3", onlink=True),
            },
        ),
        tunnels=frozenset({IPIP_DEVICE}),
    ),
    "borrowed addresses of a pool that does not tunnel are BGP's": Scenario(
        (*NODES, *LENT, block("fd00::/122", "a", borrowers={"fd00::9": "b"}), FOUR, SIX),
        facts(UPLINK),
        routes(**BORROWED, **{"fd00::/122 1000": BLACKHOLE}),
    ),
    "a kernel without ipip": Scenario(
        (*NODES, *BLOCKS, *PODS, pool("pods", "10.0.0.0/16", ipip_mode=EncapMode.ALWAYS)),
        facts(*HOME),
        routes(**OWN, **WEB_UP),
        tunnels=frozenset({IPIP_DEVICE}),
        check=lambda d: d.awaited and d.tunnelled == ("pods",),
    ),
    "blocks of one address have no blackhole": Scenario(
        (*NODES, block("10.0.0.9/32", "a"), pool("pods", "10.0.0.0/16", block_size=32)), facts(UPLINK), {}
    ),
    "a node that nobody knows, and one without address": Scenario(
        (
            *NODES,
            node("d"),
            block("10.0.0.64/26", "ghost"),
            block("10.0.0.192/26", "d"),
            pool("pods", "10.0.0.0/16", ipip_mode=EncapMode.ALWAYS),
        ),
        facts(UPLINK, TUNNEL),
        {},
        tunnels=frozenset({IPIP_DEVICE}),
        check=lambda d: len(d.problems) == 2 and "ghost" in d.problems[1] and "node d has no" in d.problems[0],
    ),
    "VXLAN is not carried, and says so": Scenario(
        (*NODES, *BLOCKS, pool("pods", "10.0.0.0/16", vxlan_mode=EncapMode.ALWAYS)),
        facts(UPLINK),
        routes(**OWN),
        check=lambda d: d.problems[0].startswith("IPPool pods: spec.vxlanMode Always is not carried"),
    ),
    "IPv6 pools are never tunnelled": Scenario(
        (
            *NODES,
            block("fd00::/122", "a"),
            block("fd00::40/122", "b"),
            pool("v6", "fd00::/112", ipip_mode=EncapMode.ALWAYS, nat_outgoing=True),
        ),
        facts(UPLINK),
        routes(**{"fd00::/122 1000": BLACKHOLE}),
        {Element("nat-outgoing6", "fd00::/112"): ""},
    ),
    "host addresses spared from NAT": Scenario(
        (*NODES, pool("pods", "10.0.0.0/16", nat_outgoing=True), felix(nat_outgoing_exclusions="IPPoolsAndHostIPs")),
        facts(UPLINK),
        {},
        {Element("nat-exempt4", "10.1.0.2"): "", Element("nat-exempt4", "10.2.0.3"): ""},
    ),
    "the node's own FelixConfiguration wins": Scenario(
        (
            *NODES,
            felix(default_endpoint_to_host_action="Accept", ipip_mtu=1300),
            felix("node.a", default_endpoint_to_host_action="Drop"),
            felix("node.b", default_endpoint_to_host_action="Return"),
            pool("pods", "10.0.0.0/16", ipip_mode=EncapMode.ALWAYS),
        ),
        facts(UPLINK, TUNNEL),
        {},
        tunnels=frozenset({IPIP_DEVICE}),
        check=lambda d: (
            table(d).chains["workload-to-host"].rules[-1] == "counter drop" and d.tunnels[IPIP_DEVICE].mtu == 1300
        ),
    ),
    "two pods that claim one address": Scenario(
        (*NODES, FOUR, pod("db", "10.0.0.1"), pod("web", "10.0.0.1")),
        facts(*HOME),
        {},
        {Element("sources4", f'"{DB}" . 10.0.0.1'): ""},
        check=lambda d: (
            [each.interface for each in d.endpoints] == [DB]
            and list(d.rejected.values()) == ["10.0.0.1 belongs to WorkloadEndpoint shop/a-k8s-db-eth0"]
        ),
    ),
    "an interface the filter would not see": Scenario(
        (*NODES, FOUR, pod("web", "10.0.0.1", interface="eth1"), pod("db", "10.0.0.2", interface='mus"; drop')),
        facts(UPLINK, link("eth1", 7)),
        {},
        check=lambda d: len(d.rejected) == 2 and not d.endpoints and not _dispatched(d),
    ),
    "host endpoints": Scenario(
        (
            *NODES,
            *PODS,
            FOUR,
            hep("up", "eth0"),
            hep("same", "", "10.1.0.1"),
            hep("rest", "*"),
            hep("far", "eth0", node="b"),
            policy("raw", "all()", [ANY], [ANY], do_not_track=True, apply_on_forward=True),
            policy("pre", "all()", [ANY], pre_dnat=True, apply_on_forward=True, types=["Ingress"]),
            policy("fw", "host == 'rest'", [ANY], [ANY], apply_on_forward=True),
        ),
        facts(*HOME),
        routes(**WEB_UP),
        {Element("host-interfaces", '"eth0"'): "", Element("host-forward-in", '"eth0"'): "goto host-not-asked"},
        check=lambda d: (
            [each.key.name for each in d.hosts] == ["rest", "up"]
            and list(d.rejected.values()) == ["eth0 belongs to HostEndpoint up"]
            and len(d.problems) == 1
            and "doNotTrack" in d.problems[0]
        ),
    ),
    "policies": Scenario(
        (
            *NODES,
            *PODS,
            FOUR,
            deny("all", "shop"),
            allow_from("web", "shop", "app == 'web'", "app == 'db'", 80, "TCP"),
            global_deny("quarantine", "bad == 'yes'"),
        ),
        facts(*HOME),
        routes(**WEB_UP),
        check=lambda d: len(_dispatched(d)) == 2,
    ),
}


def table(wanted: Desired) -> Ruleset:
    return join(*wanted.nft.values())


def _dispatched(wanted: Desired) -> set[str]:
    to = {e.key for e in table(wanted).elements if e.set == "to-workload"}
    assert to == {e.key for e in table(wanted).elements if e.set == "from-workload"}
    return to


@pytest.mark.parametrize("name", SCENARIOS)
def test_what_is_desired(name: str) -> None:
    scenario = SCENARIOS[name]
    wanted = desired(snapshot(scenario.state), scenario.facts, CONFIG)
    assert dict(wanted.routes) == dict(scenario.routes)
    assert {e: v for e, v in table(wanted).elements.items() if e in scenario.elements} == scenario.elements
    assert wanted.tunnels.keys() == scenario.tunnels
    assert scenario.check(wanted), wanted


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_name_in_the_table_is_defined(name: str) -> None:
    nft = table(desired(snapshot(SCENARIOS[name].state), SCENARIOS[name].facts, CONFIG))
    for element, value in nft.elements.items():
        match nft.sets[element.set].value:
            case "verdict":
                assert value.split()[0] not in ("goto", "jump") or value.split()[1] in nft.chains
            case "mark":
                assert int(value) & 0xFFFF == 0
            case "counter":
                assert value in nft.counters
            case _:
                assert not value
    for rule in (rule for chain in nft.chains.values() for rule in chain.rules):
        assert set(re.findall(r"(?:goto|jump) ([\w-]+)", rule)) <= nft.chains.keys()
        assert set(re.findall(r"@(?!th)([\w-]+)", rule)) <= nft.sets.keys()
        assert set(re.findall(r'counter name "([^"]+)"', rule)) <= nft.counters


Change = tuple[Key, Resource | str | None]


def ways(state: tuple[Resource, ...], noise: tuple[Resource, ...]) -> Iterator[Snapshot]:
    """The same state, arrived at differently."""
    changes: list[Change] = [(each.key, each) for each in state]
    yield Snapshot().apply(REVISION, reversed(changes))
    one_by_one = Snapshot()
    for change in changes:
        one_by_one = one_by_one.apply(REVISION - 1, [change]).apply(REVISION - 1, [])
    yield one_by_one.apply(REVISION, [])
    yield Snapshot().apply(REVISION - 1, [*changes, *changes]).apply(REVISION, changes)
    yield Snapshot().apply(
        REVISION, [*((key, None) for key, _ in changes), *((key, "broken") for key, _ in changes), *changes]
    )
    strange = [each for each in noise if each.key not in {key for key, _ in changes}]
    detour = Snapshot().apply(REVISION - 2, [(each.key, each) for each in strange]).apply(REVISION - 1, changes)
    yield detour.apply(REVISION, [(each.key, None) for each in strange])


@pytest.mark.parametrize("name", SCENARIOS)
def test_only_the_state_counts_not_the_way_to_it(name: str) -> None:
    scenario = SCENARIOS[name]
    direct = desired(snapshot(scenario.state), scenario.facts, CONFIG)
    noise = tuple(each for other in SCENARIOS.values() for each in other.state)
    for arrived in ways(scenario.state, noise):
        assert desired(arrived, scenario.facts, CONFIG) == direct


def test_one_state_after_another() -> None:
    """Through every ordered pair of a choice of states: the second looks as if the first had never been."""
    chosen = ["pods, one link up, one down", "Always", "CrossSubnet", "policies", "two pods that claim one address"]
    for first, second in permutations(chosen, 2):
        before = snapshot(SCENARIOS[first].state, REVISION - 1)
        kept = {each.key for each in SCENARIOS[second].state}
        gone: list[Change] = [(key, None) for table in before.tables.values() for key in table if key not in kept]
        after = before.apply(REVISION, [*gone, *((each.key, each) for each in SCENARIOS[second].state)])
        direct = snapshot(SCENARIOS[second].state)
        assert desired(after, SCENARIOS[second].facts, CONFIG) == desired(direct, SCENARIOS[second].facts, CONFIG)
