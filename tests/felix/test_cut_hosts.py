"""Which connections end because of a host's own interfaces: whose they are, and by which way they came."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from msgspec import structs

from core.addr import Address
from core.resources import EncapMode, Metadata, Resource
from core.resources.network import ProtoPort
from core.resources.policy import Action, Direction, EntityRule, Rule
from felix.cut import TCP, UDP, Cut, Look, Ruling, cuts, look
from felix.desired import desired
from felix.failsafe import covers, covers_either
from felix.fence import Fence
from felix.guard import covering
from linux.conntrack import Flow, Tuple
from tests.felix.cluster import CONFIG, block, facts, felix, link, namespace, node, pod, pool, snapshot
from tests.felix.guarded import ANY, hep, open_profile, policy, tcp
from tests.felix.test_cut import flow

HERE = facts(link("lo", 1, "127.0.0.1/8"), link("eth0", 2, "10.1.0.1/24"), link("eth1", 3, "10.2.0.1/24"))
HOST, OUTSIDE, FAR, WEB, BOTH, AWAY = ("10.1.0.1", "10.1.0.9", "10.2.0.9", "10.0.0.1", "10.3.0.9", "10.0.9.9")
ROUTES = {
    OUTSIDE: ("eth0",),
    FAR: ("eth1",),
    BOTH: ("eth0", "eth1"),
    AWAY: ("muslin.ipip",),
    "10.1.0.2": ("eth0",),
    "224.0.0.5": ("eth0",),
}
BASE: tuple[Resource, ...] = (
    node("a", "10.1.0.1/24", tunnel="10.0.0.3"),
    node("b", "10.1.0.2/24"),
    namespace("shop"),
    pool("pods", "10.0.0.0/16"),
    block("10.0.0.0/30", "a"),
    pod("web", WEB, profiles=("open",)),
    open_profile("open"),
    hep("up", "eth0"),
)
DENY = Rule(action=Action.DENY)
FORWARD = policy("fw", "host == 'up'", [tcp(81)], [tcp(82)], apply_on_forward=True)


def ways(address: Address) -> tuple[str, ...]:
    return ROUTES[str(address)]


def ruling(*changes: Resource) -> Ruling:
    resources = {each.key: each for each in (*BASE, *changes)}
    found = desired(snapshot(resources.values()), HERE, CONFIG).ruling
    assert found is not None
    return found


def cut(given: Flow, *changes: Resource) -> Cut | None:
    now = ruling(*changes)
    return next(cuts(look(None, now), now, [given], ways), None)


def behind(source: str, asked: str, port: int, destination: str, own: int) -> Flow:
    """What a service's address led elsewhere."""
    reply = Tuple(ip_address(destination), ip_address(source), TCP, own, 40000)
    return flow(source, asked, port, reply=reply)


EARLY = policy("early", "host == 'up'", [tcp(8080), DENY], pre_dnat=True, apply_on_forward=True, types=["Ingress"])
UNTRACKED = policy("raw", "host == 'up'", [tcp(80)], [tcp(80)], do_not_track=True, apply_on_forward=True)
REST = hep("rest", "*")
RAW_REST = policy("raw", "host == 'rest'", [ANY], do_not_track=True, apply_on_forward=True)
CASES: list[tuple[str, Flow, tuple[Resource, ...], bool]] = [
    ("taken by the host, with no rule", flow(OUTSIDE, HOST), (), True),
    ("by a rule", flow(OUTSIDE, HOST), (policy("in", "host == 'up'", [tcp(80)]),), False),
    ("at a failsafe port", flow(OUTSIDE, HOST, 22), (), False),
    ("at one that is none any more", flow(OUTSIDE, HOST, 22), (felix(failsafe_inbound_host_ports=[]),), True),
    (
        "at one for others",
        flow(OUTSIDE, HOST, 22),
        (felix(failsafe_inbound_host_ports=[ProtoPort(port=22, net="10.9.0.0/16")]),),
        True,
    ),
    ("from another interface", flow(FAR, HOST), (), False),
    ("of the rest", flow(FAR, HOST), (REST,), True),
    ("from either of two, one open", flow(BOTH, HOST), (), False),
    ("from either of two, none open", flow(BOTH, HOST), (REST,), True),
    ("sent", flow(HOST, OUTSIDE), (), True),
    ("sent to a failsafe port", flow(HOST, OUTSIDE, 179), (), False),
    ("sent with a rule", flow(HOST, OUTSIDE), (policy("out", "host == 'up'", egress=[ANY]),), False),
    ("sent to itself", flow(HOST, HOST), (REST,), False),
    ("sent to its own pod", flow(HOST, WEB), (REST,), False),
    ("sent where NAT leads it", behind(HOST, FAR, 80, OUTSIDE, 80), (), True),
    ("sent elsewhere by NAT", behind(HOST, OUTSIDE, 80, FAR, 80), (), False),
    ("heard by the host among others", flow(OUTSIDE, "224.0.0.5", 0, 89), (), True),
    ("said by the host to others", flow(HOST, "224.0.0.5", 0, 89), (), True),
    (
        "said by the host to others, by a rule",
        flow(HOST, "224.0.0.5", 0, 89),
        (policy("o", "all()", egress=[ANY]),),
        False,
    ),
    ("forwarded, where no rule asks for that", flow(OUTSIDE, FAR), (), False),
    ("forwarded in", flow(OUTSIDE, FAR), (FORWARD,), True),
    ("forwarded in, allowed", flow(OUTSIDE, FAR, 81), (FORWARD,), False),
    ("forwarded in: no port is failsafe", flow(OUTSIDE, FAR, 22), (FORWARD,), True),
    ("forwarded to a pod", flow(OUTSIDE, WEB), (FORWARD,), True),
    ("forwarded out", flow(FAR, OUTSIDE, 81), (FORWARD,), True),
    ("forwarded out, allowed", flow(FAR, OUTSIDE, 82), (FORWARD,), False),
    ("a pod's, forwarded out", flow(WEB, OUTSIDE, 81), (FORWARD,), True),
    ("a pod's, forwarded out, allowed", flow(WEB, OUTSIDE, 82), (FORWARD,), False),
    ("a pod's, by another interface", flow(WEB, FAR), (FORWARD,), False),
    ("through the tunnel", flow(WEB, AWAY), (FORWARD,), False),
    ("before NAT, by what was asked for", behind(OUTSIDE, HOST, 8080, WEB, 80), (EARLY, FORWARD), False),
    ("before NAT, not by where it went", behind(OUTSIDE, HOST, 81, WEB, 8080), (EARLY, FORWARD), True),
    ("before NAT, let in for the host, too", flow(OUTSIDE, HOST, 8080), (EARLY,), False),
    ("before NAT, a failsafe port", flow(OUTSIDE, HOST, 22), (EARLY,), False),
    ("before NAT, not from elsewhere", behind(FAR, HOST, 81, WEB, 80), (EARLY,), False),
    ("before NAT, not what is sent", flow(HOST, OUTSIDE, 179), (EARLY,), False),
    ("let be by the untracked plane", flow(OUTSIDE, HOST), (UNTRACKED,), False),
    ("sent and let be by the untracked plane", flow(HOST, OUTSIDE), (UNTRACKED,), False),
    ("of the untracked plane's other ports", flow(OUTSIDE, HOST, 81), (UNTRACKED,), True),
    ("from a pod to the host", flow(WEB, HOST), (), True),
    ("from a pod, accepted", flow(WEB, HOST), (felix(default_endpoint_to_host_action="Accept"), REST), False),
    ("from a pod, to the rest", flow(WEB, HOST), (felix(default_endpoint_to_host_action="Return"), REST), True),
    ("from a pod, to no endpoint", flow(WEB, HOST), (felix(default_endpoint_to_host_action="Return"),), False),
    ("wrapped, of no node", flow("10.1.0.2", HOST, 0, 4), (), True),
    (
        "wrapped, of a node",
        flow("10.1.0.2", HOST, 0, 4),
        (pool("pods", "10.0.0.0/16", ipip_mode=EncapMode.ALWAYS),),
        False,
    ),
    (
        "wrapped, of a node, before NAT",
        flow("10.1.0.2", HOST, 0, 4),
        (pool("pods", "10.0.0.0/16", ipip_mode=EncapMode.ALWAYS), EARLY),
        True,
    ),
    ("of the rest, which has no untracked plane", flow(FAR, HOST), (REST, RAW_REST), True),
    ("switched off", flow(OUTSIDE, HOST), (felix(policy_cut_connections="Disabled"),), False),
]


@pytest.mark.parametrize(("given", "changes", "ends"), [each[1:] for each in CASES], ids=[each[0] for each in CASES])
def test_what_ends(given: Flow, changes: tuple[Resource, ...], ends: bool) -> None:
    assert (cut(given, *changes) is not None) is ends


def test_a_reason_names_plane_endpoint_and_rule_and_its_reverse_is_fenced() -> None:
    found = cut(behind(OUTSIDE, HOST, 81, WEB, 80), EARLY)
    assert found is not None
    assert found.why.startswith("preDNAT ingress of HostEndpoint up: GlobalNetworkPolicy early in tier default")
    fence = Fence().after([found], {}, 0)
    assert set(fence.until) == {found.flow.reply}
    assert {"cut-forward", "cut-input", "cut-output"} <= fence.rules.chains.keys()


def test_loopback_is_nobodys() -> None:
    every = ruling(REST).guard.hosts
    assert covering(every, "eth9") is not None
    assert covering(every, "lo") is covering(every, "") is None


def test_failsafe_ports_of_a_packet_whoever_began_it() -> None:
    other = ip_address(OUTSIDE)
    given = ruling().guard.failsafes
    assert covers(given, Direction.INGRESS, TCP, 22, other)
    assert not covers(given, Direction.EGRESS, TCP, 22, other)
    assert covers_either(given, Direction.EGRESS, TCP, (22, 40000), other), "the answer of one that is let in"
    assert covers_either(given, Direction.INGRESS, UDP, (53, 40000), other)
    assert not covers_either(given, Direction.INGRESS, TCP, (22, 40000), other)


def test_without_a_way_nothing_is_known_of_an_interface() -> None:
    now = ruling(REST)
    assert not list(cuts(look(None, now), now, [flow(OUTSIDE, HOST)]))


def test_everything_is_looked_at_when_an_interface_is_judged_by_something_else_and_only_then() -> None:
    before = ruling()
    assert look(None, before).everything
    assert not look(None, ruling(felix(policy_cut_connections="Disabled"))).everything
    assert not look(before, ruling())
    assert not look(before, ruling(namespace("elsewhere")))
    for change in (FORWARD, EARLY, REST, hep("up", "eth1"), felix(failsafe_outbound_host_ports=[])):
        found = look(before, ruling(change))
        assert found.everything, change
        assert (Look() | found).everything
    waiting = replace(before.guard, hosts=tuple(replace(each, pending="x is down") for each in before.guard.hosts))
    assert not look(before, replace(before, guard=waiting)), "a link that goes down is judged as before"
    pods = policy("pods", "projectcalico.org/namespace == 'shop'", [DENY])
    assert not look(before, ruling(pods)).everything, "what judges pods judges no interface"


def test_who_comes_to_be_denied_by_a_selector_is_looked_at() -> None:
    friends = policy("in", "host == 'up'", [Rule(action=Action.ALLOW, source=EntityRule(selector="role == 'friend'"))])
    friend = hep("friend", "eth0", OUTSIDE, node="b")
    labelled = structs.replace(friend, metadata=Metadata(name="friend", labels={"role": "friend"}))
    before, after = ruling(friends, labelled), ruling(friends, friend)
    assert not list(cuts(look(None, before), before, [flow(OUTSIDE, HOST)], ways))
    found = look(before, after)
    assert ip_address(OUTSIDE) in found.judged
    assert list(cuts(found, after, [flow(OUTSIDE, HOST)], ways))


def test_what_pods_may_send_their_host_is_looked_at_when_that_changes() -> None:
    open_ = ruling(felix(default_endpoint_to_host_action="Accept"))
    assert ip_address(WEB) in look(open_, ruling()).judged
    assert not look(replace(open_, enabled=False), replace(ruling(), enabled=False))
