"""BGPFilters: what compiles, what is refused, and who decides over a route."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from bgp_world import made
from hypothesis import given
from hypothesis import strategies as st

from bgp.attributes import Path
from bgp.paths.filters import Action, Context, Direction, Filter, Judgement, compiled, judge
from bgp.paths.priority import MAX_PRIORITY, local_pref, priority
from core.addr import Network
from core.resources import BGPFilter

PATH = Path(next_hop=ip_address("10.9.0.1"), as_path=(65001, 65002), as_path_length=2, communities=("65001:1",))
EXTERNAL = Context(internal=False)
INTERNAL = Context(internal=True, heard_internal=True)


def filter_of(name: str = "f", **spec: Any) -> Filter:
    return compiled(made(BGPFilter, name, spec))


def ask(
    *rules: dict[str, Any], prefix: str = "10.0.0.0/26", path: Path = PATH, context: Context = EXTERNAL
) -> Judgement:
    version = ip_network(prefix).version
    made_of = filter_of(**{f"importV{version}": list(rules)})
    return judge([made_of], Direction.IMPORT, ip_network(prefix), path, context)


def matches(rule: dict[str, Any], **options: Any) -> bool:
    return ask({"action": "Reject", **rule}, **options).action is Action.REJECT


def test_the_first_rule_that_matches_decides_and_says_who() -> None:
    inside = {"action": "Reject", "cidr": "10.0.0.0/8", "matchOperator": "In"}
    everything = {"action": "Accept"}
    found = ask(everything, inside)
    assert (found.action, found.path, found.reason) == (Action.ACCEPT, PATH, "BGPFilter/f importV4[0]")
    found = ask(inside, everything)
    assert (found.action, found.reason) == (Action.REJECT, "BGPFilter/f importV4[0]")
    found = ask(inside, everything, prefix="11.0.0.0/8")
    assert (found.action, found.reason) == (Action.ACCEPT, "BGPFilter/f importV4[1]")


def test_the_next_filter_is_asked_when_one_says_nothing_and_nobody_may_say_anything() -> None:
    silent = filter_of("silent", importV4=[{"action": "Reject", "cidr": "11.0.0.0/8", "matchOperator": "Equal"}])
    rejecting = filter_of("rejecting", importV4=[{"action": "Reject"}])
    prefix = ip_network("10.0.0.0/26")
    found = judge([silent, rejecting], Direction.IMPORT, prefix, PATH, EXTERNAL)
    assert (found.action, found.reason) == (Action.REJECT, "BGPFilter/rejecting importV4[0]")
    assert judge([silent], Direction.IMPORT, prefix, PATH, EXTERNAL) == Judgement(None, PATH)
    assert judge([], Direction.IMPORT, prefix, PATH, EXTERNAL) == Judgement(None, PATH)


def test_each_family_and_direction_has_rules_of_its_own() -> None:
    table = {"importV4": "10.0.0.0/26", "exportV4": "10.0.0.0/26", "importV6": "fd00::/64", "exportV6": "fd00::/64"}
    for field in table:
        only = filter_of(**{field: [{"action": "Reject"}]})
        for other, prefix in table.items():
            direction = Direction(other[:6])
            found = judge([only], direction, ip_network(prefix), PATH, EXTERNAL)
            assert (found.action is Action.REJECT) is (field == other)


@pytest.mark.parametrize(
    ("operator", "prefix", "expected"),
    [
        ("Equal", "10.0.0.0/16", True),
        ("Equal", "10.0.0.0/17", False),
        ("NotEqual", "10.0.0.0/16", False),
        ("NotEqual", "10.0.0.0/17", True),
        ("In", "10.0.0.0/16", True),
        ("In", "10.0.200.0/32", True),
        ("In", "10.0.0.0/15", False),
        ("In", "0.0.0.0/0", False),
        ("In", "10.1.0.0/17", False),
        ("NotIn", "10.0.0.0/16", False),
        ("NotIn", "10.0.0.0/15", True),
        ("NotIn", "0.0.0.0/0", True),
    ],
)
def test_operators(operator: str, prefix: str, expected: bool) -> None:
    assert matches({"cidr": "10.0.0.0/16", "matchOperator": operator}, prefix=prefix) is expected


def test_peer_type_source_and_device() -> None:
    assert matches({"peerType": "eBGP"})
    assert not matches({"peerType": "iBGP"})
    assert matches({"peerType": "iBGP"}, context=INTERNAL)
    assert not matches({"peerType": "eBGP"}, context=INTERNAL)
    own = Context(internal=False, learnt=False, heard_internal=True)
    assert matches({"source": "RemotePeers"})
    assert not matches({"source": "RemotePeers"}, context=own)
    assert not matches({"interface": "*"})  # nothing is known of the device
    through = replace(EXTERNAL, device="eth1.20")
    for pattern, expected in {
        "*": True,
        "eth*": True,
        "eth?.20": True,
        "eth": False,
        "eth1": False,
        "ETH*": False,
    }.items():
        assert matches({"interface": pattern}, context=through) is expected
    assert not matches({"interface": "eth1?20"}, context=replace(EXTERNAL, device="eth1220x"))
    assert matches({"interface": "[a].*"}, context=replace(EXTERNAL, device="[a].5"))


def test_communities_and_paths() -> None:
    both = replace(PATH, communities=("65001:1", "64512:1:2"))
    for value, expected in {
        "65001:1": True,
        "065001:01": True,
        "64512:1:2": True,
        "65001:2": False,
        "64512:1": False,
    }.items():
        assert matches({"communities": {"values": [value]}}, path=both) is expected
    cases: list[tuple[list[int | str], bool]] = [
        ([65001], True),
        ([65001, "65002"], True),
        ([65002], False),
        ([65001, 65002, 65003], False),
    ]
    for prefix, expected in cases:
        assert matches({"asPathPrefix": prefix}) is expected


def test_priority_is_read_from_local_preference() -> None:
    assert matches({"priority": 1024})  # eBGP: nobody said anything
    assert not matches({"priority": 512})
    assert matches({"priority": 512}, path=replace(PATH, local_pref=2147483647 - 512), context=INTERNAL)
    assert matches({"priority": 1024}, path=replace(PATH, local_pref=2147482623), context=INTERNAL)


def test_all_that_is_set_must_match() -> None:
    rule = {
        "cidr": "10.0.0.0/8",
        "matchOperator": "In",
        "prefixLength": {"min": 26, "max": 26},
        "source": "RemotePeers",
        "interface": "eth*",
        "peerType": "eBGP",
        "communities": {"values": ["65001:1"]},
        "asPathPrefix": [65001],
        "priority": 1024,
    }
    context = replace(EXTERNAL, device="eth0")
    assert matches(rule, context=context)
    spoilt: list[dict[str, Any]] = [
        {"prefix": "10.0.0.0/25"},
        {"prefix": "11.0.0.0/26"},
        {"context": replace(context, learnt=False)},
        {"context": replace(context, device="lo")},
        {"context": replace(context, internal=True)},
        {"path": replace(PATH, communities=())},
        {"path": replace(PATH, as_path=(65002, 65001))},
        {"path": replace(PATH, local_pref=99)},
    ]
    for each in spoilt:
        assert not matches(rule, **{"context": context, **each})


def test_operations_follow_each_other() -> None:
    found = ask(
        {
            "action": "Accept",
            "operations": [
                {"addCommunity": {"value": "65001:1"}},
                {"addCommunity": {"value": "64512:7"}},
                {"addCommunity": {"value": "1:2:3"}},
                {"prependASPath": {"prefix": [64512, "1.1"]}},
                {"prependASPath": {"prefix": [64999]}},
                {"setPriority": {"value": 7}},
                {"setLocalPreference": {"value": 250}},
            ],
        }
    )
    assert found.path == Path(
        next_hop=PATH.next_hop,
        as_path=(64999, 64512, 65537, 65001, 65002),
        as_path_length=5,
        communities=("65001:1", "64512:7", "1:2:3"),
        local_pref=250,
    )
    later = [{"setLocalPreference": {"value": 250}}, {"setPriority": {"value": 7}}]
    assert ask({"action": "Accept", "operations": later}).path.local_pref == 2147483640


def test_paths_changed_alike_are_one_value() -> None:
    rule = {"action": "Accept", "operations": [{"addCommunity": {"value": "64512:7"}}]}
    one, other = (ask(rule, prefix=prefix).path for prefix in ("10.0.0.0/26", "10.0.0.64/26"))
    assert one is other
    assert "64512:7" in one.communities


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ({"action": "Deny"}, "action"),
        ({"cidr": "10.0.0.0/8"}, "matchOperator"),
        ({"matchOperator": "In"}, "cidr"),
        ({"prefixLength": {"min": 8}}, "cidr"),
        ({"cidr": "10.0.0.0/8", "matchOperator": "Within"}, "matchOperator"),
        ({"cidr": "fd00::/8", "matchOperator": "In"}, "cidr"),
        ({"cidr": "10.0.0.1/8", "matchOperator": "In"}, "cidr"),
        ({"cidr": "10.0.0.0/8", "matchOperator": "Equal", "prefixLength": {"min": 8}}, "prefixLength"),
        ({"cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"min": 27, "max": 26}}, "prefixLength"),
        ({"cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"max": 33}}, "prefixLength"),
        ({"cidr": "10.0.0.0/8", "matchOperator": "NotIn", "prefixLength": {"max": 7}}, "prefixLength.max"),
        ({"source": "Local"}, "source"),
        ({"peerType": "EBGP"}, "peerType"),
        ({"communities": {"values": []}}, "communities.values"),
        ({"communities": {"values": ["1:1", "1:2"]}}, "communities.values"),
        ({"communities": {"values": ["65536:1"]}}, "communities.values[0]"),
        ({"asPathPrefix": [1, "x"]}, "asPathPrefix[1]"),
        ({"priority": 0}, "priority"),
        ({"action": "Reject", "operations": [{"setPriority": {"value": 1}}]}, "operations"),
        ({"operations": [{}]}, "operations[0]"),
        ({"operations": [{"setPriority": {"value": 1}, "addCommunity": {"value": "1:1"}}]}, "operations[0]"),
        ({"operations": [{"setPriority": {"value": 1}}] * 11}, "operations"),
        ({"operations": [{"setPriority": {"value": 0}}]}, "operations[0].setPriority.value"),
        ({"operations": [{"setLocalPreference": {"value": -1}}]}, "operations[0].setLocalPreference.value"),
        ({"operations": [{"addCommunity": {"value": "named"}}]}, "operations[0].addCommunity.value"),
        ({"operations": [{"prependASPath": {"prefix": []}}]}, "operations[0].prependASPath.prefix"),
        ({"operations": [{"prependASPath": {"prefix": [1] * 11}}]}, "operations[0].prependASPath.prefix"),
        ({"operations": [{"prependASPath": {"prefix": [0]}}]}, "operations[0].prependASPath.prefix[0]"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_with_its_place(rule: dict[str, Any], path: str) -> None:
    accepting = {"action": "Accept"}
    with pytest.raises(ValueError, match=re.escape(f"spec.exportV4[1].{path}: ")):
        filter_of(exportV4=[accepting, {**accepting, **rule}])


def test_a_filter_is_a_value() -> None:
    rule = {"action": "Accept", "cidr": "10.0.0.0/8", "matchOperator": "In", "interface": "eth*"}
    assert filter_of(importV4=[rule]) == filter_of(importV4=[rule])
    assert len({filter_of(importV4=[rule]), filter_of(importV4=[rule]), filter_of(exportV4=[rule])}) == 2


@given(st.integers(1, MAX_PRIORITY), st.integers(1, MAX_PRIORITY), st.booleans())
def test_a_lower_priority_never_loses(one: int, other: int, internal: bool) -> None:
    low, high = sorted((one, other))
    assert local_pref(low, internal=internal) >= local_pref(high, internal=internal) >= 0
    if internal or one <= 1124:
        assert priority(local_pref(one, internal=internal), internal=internal) == one


networks = st.one_of(
    st.builds(
        lambda bits, length: ip_network(((0x0A000000 | bits) >> (32 - length) << (32 - length), length)),
        st.integers(0, 0xFFFF),
        st.integers(12, 32),
    ),
    st.builds(
        lambda bits, length: ip_network((((0xFD << 120) | bits) >> (128 - length) << (128 - length), length)),
        st.integers(0, 0xFFFF),
        st.integers(108, 128),
    ),
)


@given(networks, networks, st.sampled_from(["Equal", "NotEqual", "In", "NotIn"]), st.data())
def test_prefixes_match_as_a_naive_reading_says(
    cidr: Network, prefix: Network, operator: str, data: st.DataObject
) -> None:
    rule: dict[str, Any] = {"cidr": str(cidr), "matchOperator": operator}
    low, high = cidr.prefixlen, cidr.max_prefixlen
    if operator in ("In", "NotIn") and data.draw(st.booleans()):
        most = data.draw(st.integers(cidr.prefixlen, cidr.max_prefixlen))
        least = data.draw(st.integers(0, most))
        rule["prefixLength"] = {"min": least, "max": most}
        low, high = max(low, least), min(high, most)
    resource = made(BGPFilter, "f", {f"importV{cidr.version}": [{"action": "Reject", **rule}]})
    found = judge([compiled(resource)], Direction.IMPORT, prefix, PATH, EXTERNAL)
    inside = prefix.version == cidr.version and prefix.subnet_of(cidr)  # type: ignore[arg-type]
    naive = {
        "Equal": prefix == cidr,
        "NotEqual": prefix != cidr,
        "In": inside and low <= prefix.prefixlen <= high,
        "NotIn": not (inside and low <= prefix.prefixlen <= high),
    }
    assert (found.action is Action.REJECT) is (naive[operator] and prefix.version == cidr.version)
