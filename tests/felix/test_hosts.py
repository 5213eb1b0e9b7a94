"""Host endpoints without a kernel: whose interface is whose, what stays open, and what the table then holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import permutations

import pytest
from msgspec import structs

from core.names import Key
from core.nftables import Chain, Element, Ruleset, join
from core.resources import GlobalNetworkPolicy, HostEndpoint, StagedGlobalNetworkPolicy
from core.resources.network import FelixConfigurationSpec, ProtoPort
from core.resources.policy import Direction
from core.validate import validate
from felix import host_frame
from felix.desired import desired, judge
from felix.failsafe import DEFAULT, failsafes, stateful, stateless
from felix.hosts import Host, hosts
from felix.model import Desired
from policy.model import Plane
from tests.felix.cluster import CONFIG, facts, felix, link, node, pod, pool, snapshot
from tests.felix.guarded import ANY, hep, policy, staged

IN, OUT = Direction.INGRESS, Direction.EGRESS
HOME = facts(
    link("lo", 1, "127.0.0.1/8", "10.9.9.9/32"),
    link("eth0", 2, "10.1.0.1/24", "fd01::1/64"),
    link("eth1", 3, "10.2.0.1/24", "10.2.0.2/24", up=False),
)


def key(name: str) -> Key:
    return hep(name).key


CASES: Mapping[str, tuple[tuple[HostEndpoint, ...], Mapping[str, Host], Mapping[str, str]]] = {
    "by name, by address of either family, and the rest": (
        (hep("b", "eth0"), hep("c", "", "10.2.0.2"), hep("a", "*")),
        {
            "a": Host(key=key("a"), everywhere=True),
            "b": Host(key=key("b"), interfaces=("eth0",)),
            "c": Host(key=key("c"), interfaces=("eth1",)),
        },
        {},
    ),
    "another node's": ((hep("a", "eth0", node="b"), hep("b", "*", node="c")), {}, {}),
    "an interface that is not there, one that is down, an address that nobody has": (
        (hep("a", "eth9"), hep("b", "eth1"), hep("c", "", "fd09::9")),
        {
            "a": Host(key=key("a"), interfaces=("eth9",), pending="there is no interface eth9 yet"),
            "b": Host(key=key("b"), interfaces=("eth1",), pending="interface eth1 is down"),
            "c": Host(key=key("c"), pending="no interface has fd09::9 yet"),
        },
        {},
    ),
    "an address names several interfaces": (
        (hep("a", "", "fd01::1", "10.2.0.1"),),
        {"a": Host(key=key("a"), interfaces=("eth0", "eth1"))},
        {},
    ),
    "two for one interface: a name before an address, else the first": (
        (hep("a", "", "10.1.0.1"), hep("b", "eth0"), hep("c", "eth0"), hep("d", "*"), hep("e", "*")),
        {"b": Host(key=key("b"), interfaces=("eth0",)), "d": Host(key=key("d"), everywhere=True)},
        {
            "a": "eth0 belongs to HostEndpoint b",
            "c": "eth0 belongs to HostEndpoint b",
            "e": "every other interface belongs to HostEndpoint d",
        },
    ),
    "what an address has left when a name took the other": (
        (hep("a", "", "10.1.0.1", "10.2.0.1"), hep("b", "eth1")),
        {
            "a": Host(key=key("a"), interfaces=("eth0",)),
            "b": Host(key=key("b"), interfaces=("eth1",), pending="interface eth1 is down"),
        },
        {},
    ),
    "never loopback, never a workload's, nothing that nft would read": (
        (hep("a", "lo"), hep("b", "mus0123456789a"), hep("c", "eth*"), hep("d", "", "10.9.9.9")),
        {"d": Host(key=key("d"), pending="no interface has 10.9.9.9 yet")},
        {
            "a": "the loopback interface is never policed",
            "b": "mus0123456789a is a workload's interface: policy for workloads judges it",
            "c": "'eth*' is not an interface name of 1 to 15 letters, digits, _ . or -",
        },
    ),
    "our tunnel is an interface like others": (
        (hep("a", "muslin.ipip"),),
        {"a": Host(key=key("a"), interfaces=("muslin.ipip",), pending="there is no interface muslin.ipip yet")},
        {},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_whose_interface_is_whose(name: str) -> None:
    given, local, rejected = CASES[name]
    for order in permutations(given):
        found = hosts(snapshot(order), HOME, "a")
        assert {host.key.name: host for host in found.local} == local
        assert {each.name: why for each, why in found.rejected.items()} == rejected


def test_what_stays_open() -> None:
    silent = failsafes(FelixConfigurationSpec(), "unix:/run/muslin/datastore.sock")
    assert silent == DEFAULT
    assert {(6, 22), (17, 68), (6, 179), (6, 5473)} <= {(each.protocol, each.port) for each in silent.inbound}
    assert {(17, 53), (17, 67), (6, 179), (6, 5473)} <= {(each.protocol, each.port) for each in silent.outbound}
    remote = failsafes(FelixConfigurationSpec(), "[fd00::1]:7443")
    assert (6, 7443) in {(each.protocol, each.port) for each in remote.outbound}
    nothing = FelixConfigurationSpec(failsafe_inbound_host_ports=[], failsafe_outbound_host_ports=[])
    assert failsafes(nothing, "db:7443").inbound == failsafes(nothing, "db:7443").outbound == ()
    assert stateful(failsafes(nothing, "db:7443"), IN, "accept") == []


def test_failsafe_ports_as_rules() -> None:
    given = failsafes(
        FelixConfigurationSpec(
            failsafe_inbound_host_ports=[
                ProtoPort(protocol="udp", port=68),
                ProtoPort(port=22, net="10.0.0.0/8"),
                ProtoPort(port=22, net="fd00::1"),
            ],
            failsafe_outbound_host_ports=[ProtoPort(port=179)],
        ),
        "unix:x",
    )
    inbound = [
        "meta l4proto . th dport { 17 . 68 } accept",
        "ip saddr 10.0.0.0/8 meta l4proto . th dport { 6 . 22 } accept",
        "ip6 saddr fd00::1/128 meta l4proto . th dport { 6 . 22 } accept",
    ]
    assert stateful(given, IN, "accept") == inbound
    assert stateful(given, OUT, "accept") == ["meta l4proto . th dport { 6 . 179 } accept"]
    assert stateless(given, IN, "accept") == [*inbound, "meta l4proto . th sport { 6 . 179 } accept"]
    answers = [rule.replace("saddr", "daddr").replace("dport", "sport") for rule in inbound]
    assert stateless(given, OUT, "accept") == ["meta l4proto . th dport { 6 . 179 } accept", *answers]


@pytest.mark.parametrize(
    ("port", "path"),
    [
        (ProtoPort(protocol="ICMP", port=1), "protocol"),
        (ProtoPort(port=65536), "port"),
        (ProtoPort(port=22, net="10.0.0.1/8"), "net"),
    ],
)
def test_a_failsafe_port_that_is_none_is_refused(port: ProtoPort, path: str) -> None:
    problems = validate(felix(failsafe_inbound_host_ports=[ProtoPort(protocol="tcp", port=22), port]))
    assert [each.path for each in problems] == [f"spec.failsafeInboundHostPorts[1].{path}"]


PLANES = [slot for slot in host_frame.NAMES if slot[0] is not Plane.HOST]


def wanted(*given: HostEndpoint, asked: frozenset[host_frame.Slot] = frozenset(), **settings: object) -> Desired:
    """What is desired of these, were there a stack for every endpoint and each of `asked`."""
    state = snapshot((node("a", "10.1.0.1/24"), pool("pods", "10.0.0.0/16"), pod("w", "10.0.0.1"), *given))
    slots = asked | {(Plane.HOST, IN), (Plane.HOST, OUT)} if given else frozenset()
    stacks = {(each.key, *slot): f"{slot[0]}-{slot[1]}-{each.key.name}".lower() for each in given for slot in slots}
    judged = replace(judge(state, "a"), hosts=stacks)
    chains = {name: Chain(rules=("meta mark set 0x10000",)) for name in stacks.values()}
    return desired(state, HOME, CONFIG, replace(judged, rules={**judged.rules, "stacks": Ruleset(chains=chains)}))


def test_a_node_without_host_endpoints_has_none_of_their_chains() -> None:
    bare = join(*wanted().nft.values())
    assert {name for name, chain in bare.chains.items() if chain.hook} == {
        "raw-prerouting",
        "filter-input",
        "filter-forward",
        "nat-postrouting",
    }
    assert not [name for name in (*bare.chains, *bare.sets) if "host-" in name]
    waiting = wanted(hep("a", "", "10.7.7.7"))
    assert waiting.nft["frame"] == wanted().nft["frame"]
    assert "hosts" not in waiting.nft, "one that has no interface yet is none"


def test_only_the_planes_that_are_asked_have_chains() -> None:
    for slot in PLANES:
        table = join(*wanted(hep("a", "eth0"), asked=frozenset({slot})).nft.values())
        made = {name for name in host_frame.NAMES.values() if name in table.chains}
        assert made == {"host-in", "host-out", host_frame.NAMES[slot]}
        assert ("mangle-prerouting" in table.chains) is (slot[0] is Plane.PRE_DNAT)
        stack = f"{slot[0]}-{slot[1]}-a".lower()
        assert table.elements[Element(host_frame.NAMES[slot], '"eth0"')] == f"goto {stack}"
        assert {each for each in table.elements if each.set == "host-interfaces"} == {
            Element("host-interfaces", '"eth0"')
        }


ASKING_REST = policy("p", "host == 'rest'", [ANY], [ANY], apply_on_forward=True)
EARLY: Mapping[str, object] = {"apply_on_forward": True}
ASKING: Mapping[str, tuple[GlobalNetworkPolicy | StagedGlobalNetworkPolicy, set[str]]] = {
    "nothing": (policy("p", "host == 'other'", [ANY], [ANY], do_not_track=True, **EARLY), set()),
    "normal": (policy("p", "all()", [ANY], [ANY]), set()),
    "forward": (policy("p", "all()", [ANY], [ANY], **EARLY), {"host-forward-in", "host-forward-out"}),
    "forward, one way": (policy("p", "all()", egress=[ANY], **EARLY), {"host-forward-out"}),
    "before NAT": (policy("p", "all()", [ANY], types=["Ingress"], pre_dnat=True, **EARLY), {"host-pre-dnat"}),
    "untracked": (policy("p", "all()", [ANY], do_not_track=True, **EARLY), {"host-untracked-in"}),
    "staged": (staged("p", "all()", [ANY], [ANY], **EARLY), {"host-forward-in", "host-forward-out"}),
}


@pytest.mark.parametrize("name", ASKING)
def test_planes_are_asked_for_by_policies(name: str) -> None:
    asking, chains = ASKING[name]
    found = desired(snapshot((node("a", "10.1.0.1/24"), hep("a", "eth0"), asking)), HOME, CONFIG)
    table = join(*found.nft.values())
    assert {each for each in host_frame.NAMES.values() if each in table.chains} == {"host-in", "host-out"} | chains
    everywhere = desired(snapshot((node("a", "10.1.0.1/24"), hep("a", "*"), asking)), HOME, CONFIG)
    assert any("doNotTrack" in problem for problem in everywhere.problems) is (name == "untracked")


def test_every_other_interface_is_a_rule_behind_the_map_and_has_no_untracked_plane() -> None:
    found = wanted(hep("a", "eth0"), hep("rest", "*"), asked=frozenset(PLANES))
    table = join(*found.nft.values())
    for slot, name in host_frame.NAMES.items():
        last = table.chains[f"judge-{name}"].rules[-1]
        assert (last == f"goto {slot[0]}-{slot[1]}-rest".lower()) is (slot[0] is not Plane.UNTRACKED)
    assert any("doNotTrack" in problem and "rest" in problem for problem in found.problems)
    assert "host-untracked-in" not in join(*wanted(hep("rest", "*"), asked=frozenset(PLANES)).nft.values()).chains


def test_what_a_named_endpoint_is_not_asked_is_not_asked_of_every_other() -> None:
    state = snapshot((node("a", "10.1.0.1/24"), hep("a", "eth0"), hep("rest", "*"), ASKING_REST))
    table = join(*desired(state, HOME, CONFIG).nft.values())
    for name in ("host-forward-in", "host-forward-out"):
        assert table.elements[Element(name, '"eth0"')] == "goto host-not-asked"
        assert table.chains[f"judge-{name}"].rules[-1] != "goto host-not-asked"


def test_an_endpoint_for_which_policy_made_nothing_is_closed() -> None:
    state = snapshot((node("a", "10.1.0.1/24"), hep("a", "eth0")))
    table = join(*desired(state, HOME, CONFIG, replace(judge(state, "a"), hosts={})).nft.values())
    assert Element("host-interfaces", '"eth0"') in table.elements
    for name in ("host-in", "host-out"):
        assert table.elements[Element(name, '"eth0"')] == "goto host-not-asked"
    assert table.chains["host-in"].rules[-1] == "goto settled"


def test_prefixes_that_a_pod_may_borrow() -> None:
    honest, borrower = pod("w", "10.0.0.1"), pod("x", "10.0.0.2")
    prefixes = ["10.3.0.0/16", "10.3.1.0/24", "fd03::/64", "10.4.0.1/32", "10.5.0.0/17", "10.5.128.0/17"]
    lender = structs.replace(borrower, spec=structs.replace(borrower.spec, allow_spoofed_source_prefixes=prefixes))
    base = (node("a", "10.1.0.1/24"), pool("pods", "10.0.0.0/16"), honest)
    without = join(*desired(snapshot((*base, borrower)), HOME, CONFIG).nft.values())
    assert not without.sets.keys() & {"spoofs4", "spoofs6"}
    table = join(*desired(snapshot((*base, lender)), HOME, CONFIG).nft.values())
    name = f'"{borrower.spec.interface_name}"'
    assert {element for element in table.elements if element.set.startswith("spoofs")} == {
        Element("spoofs4", f"{name} . 10.3.0.0/16"),
        Element("spoofs4", f"{name} . 10.4.0.1"),
        Element("spoofs4", f"{name} . 10.5.0.0/16"),
        Element("spoofs6", f"{name} . fd03::/64"),
    }
