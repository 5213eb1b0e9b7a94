"""What each session is told: own prefixes, what is reflected, what filters pass on, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from itertools import product
from typing import Any

import pytest
from bgp_world import made
from hypothesis import given, settings
from hypothesis import strategies as st

from bgp.attributes import Attributes, Origin, Path
from bgp.model import Maintenance, NextHopMode, Own, Session, Speaker
from bgp.paths.bestpath import Candidate
from bgp.paths.filters import Filter, compiled
from bgp.paths.reflection import loop
from bgp.telling.export import Exporter, exports
from core.addr import Address, Network
from core.resources import BGPFilter

AS = 64512
CLUSTER = IPv4Address("9.9.9.9")
POOLS = (ip_network("10.0.0.0/16"), ip_network("fd10::/48"))
NORMAL = 2147483647 - 1024
"""The local preference of an own route of ordinary priority."""


def session(peer: str, remote_as: int = AS, **fields: Any) -> Session:
    needed = {"name": f"to-{peer}", "port": 179, "local": None, "local_as": AS, "hold_s": 30, "restart_s": 120}
    return Session(peer=ip_address(peer), remote_as=remote_as, **{**needed, **fields})


def speaker(*sessions: Session, own: Mapping[str, Own] | Sequence[str] = (), **fields: Any) -> Speaker:
    said = own if isinstance(own, Mapping) else dict.fromkeys(own, Own(source="block"))
    basics: dict[str, Any] = {"router_id": IPv4Address("10.1.0.1"), "as_number": AS, "port": 179, "listen": ()}
    return Speaker(
        sessions=sessions,
        own={ip_network(prefix): each for prefix, each in said.items()},
        **{"pools": POOLS, **basics, **fields},
    )


def heard(source: Session, next_hop: str = "", router_id: str | None = "7.7.7.7", **path: Any) -> Candidate:
    hop = ip_address(next_hop) if next_hop else source.peer
    return Candidate(source, Path(next_hop=hop, **path), IPv4Address(router_id) if router_id else None)


def filter_of(**spec: Any) -> tuple[Filter, ...]:
    return (compiled(made(BGPFilter, "f", spec)),)


def told(found: Speaker, peer: Session, best: Mapping[str, Candidate] | None = None) -> dict[str, Attributes]:
    by_prefix = {ip_network(prefix): each for prefix, each in (best or {}).items()}
    return {str(prefix): each for prefix, each in exports(found, by_prefix)[peer.peer].items()}


def refusal(found: Speaker, peer: Session, best: Mapping[str, Candidate], prefix: str) -> str:
    exporter = Exporter({ip_network(each): candidate for each, candidate in best.items()})
    exporter.configure(found)
    return exporter.refusals(peer.peer, [ip_network(prefix)])[ip_network(prefix)]


RACK = session("10.9.0.1", 65001)
RACK6 = session("fd09::1", 65001)
OTHER_RACK = session("10.9.0.2", 65002)
MESH = session("10.1.0.2")
CLIENT = session("10.1.0.3", client=True)
CLIENT2 = session("10.1.0.4", client=True)

ACCEPT_ALL = filter_of(exportV4=[{"action": "Accept"}], exportV6=[{"action": "Accept"}])


def test_own_prefixes_go_to_every_session_of_their_family() -> None:
    found = speaker(RACK, RACK6, MESH, own=["10.0.0.0/26", "fd10::/122"])
    assert told(found, RACK) == {"10.0.0.0/26": Attributes(as_path=(AS,))}
    assert told(found, RACK6) == {"fd10::/122": Attributes(as_path=(AS,))}
    assert told(found, MESH) == {"10.0.0.0/26": Attributes(local_pref=NORMAL)}


def test_what_is_said_of_an_own_prefix() -> None:
    own = {"10.0.0.0/26": Own(source="block", communities=("1:1", "1:2:3"), priority=512)}
    renumbered = replace(RACK, local_as=64999)
    found = speaker(renumbered, MESH, own=own)
    assert told(found, RACK) == {"10.0.0.0/26": Attributes(as_path=(64999,), communities=("1:1", "1:2:3"))}
    assert told(found, MESH)["10.0.0.0/26"].local_pref == 2147483647 - 512


def test_an_export_filter_rejects_or_changes_own_prefixes() -> None:
    rules = [
        {"action": "Reject", "cidr": "10.0.0.0/26", "matchOperator": "Equal"},
        {"action": "Accept", "source": "RemotePeers"},
        {
            "action": "Accept",
            "cidr": "10.0.0.64/26",
            "matchOperator": "Equal",
            "operations": [{"addCommunity": {"value": "1:1"}}, {"prependASPath": {"prefix": [AS, AS]}}],
        },
    ]
    filtered = replace(RACK, filters=filter_of(exportV4=rules))
    inner = replace(MESH, filters=filter_of(exportV4=rules))
    found = speaker(filtered, inner, own=["10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26"])
    assert told(found, RACK) == {
        "10.0.0.64/26": Attributes(as_path=(AS, AS, AS), communities=("1:1",)),
        "10.0.0.128/26": Attributes(as_path=(AS,)),
    }
    assert told(found, MESH)["10.0.0.64/26"] == Attributes(as_path=(AS, AS), communities=("1:1",), local_pref=NORMAL)
    assert refusal(found, RACK, {}, "10.0.0.0/26") == "BGPFilter/f exportV4[0] rejects it"


def test_filters_set_priority_and_local_preference_for_ibgp_only() -> None:
    for operation, expected in (({"setPriority": {"value": 7}}, 2147483640), ({"setLocalPreference": {"value": 7}}, 7)):
        filters = filter_of(exportV4=[{"action": "Accept", "operations": [operation]}])
        found = speaker(replace(RACK, filters=filters), replace(MESH, filters=filters), own=["10.0.0.0/26"])
        assert told(found, MESH)["10.0.0.0/26"].local_pref == expected
        assert told(found, RACK)["10.0.0.0/26"].local_pref is None


def test_nothing_learnt_is_told_unless_somebody_wrote_so() -> None:
    sources = (RACK, OTHER_RACK, MESH, session("10.1.0.9"))
    for source, target in product(sources, sources):
        found = speaker(*sources)
        assert told(found, target, {"10.0.1.0/26": heard(source)}) == {}
    assert refusal(speaker(*sources), RACK, {"10.0.1.0/26": heard(MESH)}, "10.0.1.0/26") == (
        "it was learnt, and no export filter accepts it"
    )
    assert refusal(speaker(*sources), MESH, {"10.0.1.0/26": heard(sources[3])}, "10.0.1.0/26") == (
        "it was learnt over iBGP, and this node is no route reflector"
    )


def test_a_reflector_passes_nothing_from_one_as_to_another_as_if_it_were_one() -> None:
    lent = session("10.1.0.9", 64999, local_as=64999, client=True, filters=ACCEPT_ALL)
    found = speaker(CLIENT, CLIENT2, lent, cluster_id=CLUSTER)
    for source, to in ((CLIENT, lent), (lent, CLIENT)):
        best = {"10.0.7.0/26": heard(source)}
        assert told(found, to, best) == {}, "its AS path would not say that it crossed a border"
        assert f"AS {source.local_as}" in refusal(found, to, best, "10.0.7.0/26")
    assert "10.0.7.0/26" in told(found, CLIENT2, {"10.0.7.0/26": heard(CLIENT)})


def test_a_filter_passes_on_what_it_accepts() -> None:
    open_rack, open_mesh = replace(OTHER_RACK, filters=ACCEPT_ALL), replace(MESH, filters=ACCEPT_ALL)
    other_mesh = session("10.1.0.9")
    found = speaker(RACK, open_rack, open_mesh, other_mesh)
    path: dict[str, Any] = {"as_path": (65001, 65009), "as_path_length": 2, "med": 50, "communities": ("1:1",)}
    learnt = {"192.0.2.0/24": heard(RACK, origin=Origin.EGP, **path)}
    assert told(found, open_rack, learnt) == {
        "192.0.2.0/24": Attributes(as_path=(AS, 65001, 65009), origin=Origin.EGP, communities=("1:1",))
    }
    assert told(found, open_mesh, learnt) == {
        "192.0.2.0/24": Attributes(
            next_hop=RACK.peer, as_path=(65001, 65009), origin=Origin.EGP, med=50, local_pref=100, communities=("1:1",)
        )
    }
    assert told(found, other_mesh, learnt) == {}
    internal = {"10.0.1.0/26": heard(other_mesh, local_pref=NORMAL)}
    assert told(found, open_rack, internal) == {"10.0.1.0/26": Attributes(as_path=(AS,))}
    assert told(found, open_mesh, internal) == {}  # iBGP to iBGP: by a reflector only


def test_filters_may_ask_for_the_device_of_a_learnt_route() -> None:
    rules = filter_of(exportV4=[{"action": "Accept", "interface": "eth*"}])
    found = speaker(RACK, replace(OTHER_RACK, filters=rules), own=["10.0.0.0/26"])
    learnt = heard(RACK)
    assert list(told(found, OTHER_RACK, {"10.0.1.0/26": learnt})) == ["10.0.0.0/26"]
    through = replace(learnt, device="eth0")
    assert list(told(found, OTHER_RACK, {"10.0.1.0/26": through})) == ["10.0.0.0/26", "10.0.1.0/26"]


@pytest.mark.parametrize(
    ("community", "external", "internal"),
    [("65535:65281", False, True), ("65535:65282", False, False), ("65535:65283", False, True), ("1:1", True, True)],
)
def test_well_known_communities_of_learnt_routes(community: str, external: bool, internal: bool) -> None:
    open_rack, open_mesh = replace(OTHER_RACK, filters=ACCEPT_ALL), replace(MESH, filters=ACCEPT_ALL)
    found = speaker(RACK, open_rack, open_mesh)
    learnt = {"10.0.1.0/26": heard(RACK, communities=("5:5", community))}
    assert (len(told(found, open_rack, learnt)), len(told(found, open_mesh, learnt))) == (external, internal)
    own = {"10.0.0.0/26": Own(source="block", communities=(community,))}
    assert told(speaker(RACK, own=own), RACK)["10.0.0.0/26"].communities == (community,)


@pytest.mark.parametrize(
    ("mode", "external", "reflected"),
    [
        (NextHopMode.AUTO, None, "10.1.0.3"),
        (NextHopMode.SELF, None, None),
        (NextHopMode.KEEP, "10.1.0.3", "10.1.0.3"),
    ],
)
def test_next_hops(mode: NextHopMode, external: str | None, reflected: str | None) -> None:
    rack = replace(RACK, filters=ACCEPT_ALL, next_hop_mode=mode)
    client = replace(CLIENT2, next_hop_mode=mode)
    found = speaker(rack, CLIENT, client, own=["10.0.0.0/26"], cluster_id=CLUSTER)
    learnt = {"10.0.1.0/26": heard(CLIENT)}
    for target, expected in ((rack, external), (client, reflected)):
        said = told(found, target, learnt)
        assert said["10.0.1.0/26"].next_hop == (ip_address(expected) if expected else None)
        assert said["10.0.0.0/26"].next_hop is None


def test_a_reflector_tells_by_the_book() -> None:
    other = session("10.1.0.9")
    everyone = (CLIENT, CLIENT2, MESH, other)
    found = speaker(*everyone, RACK, cluster_id=CLUSTER)
    for source, target in product(everyone, everyone):
        expected = source is not target and (source.client or target.client)
        assert bool(told(found, target, {"10.0.1.0/26": heard(source)})) is expected
    for source in everyone:
        assert told(found, RACK, {"10.0.1.0/26": heard(source)}) == {}
    for target in everyone:
        assert told(found, target, {"10.0.1.0/26": heard(RACK)}) == {}
        assert told(found, target, {"192.0.2.0/24": heard(CLIENT)}) == {}  # in no pool


def test_what_is_reflected_is_marked_and_otherwise_as_heard() -> None:
    found = speaker(CLIENT, CLIENT2, cluster_id=CLUSTER)
    path: dict[str, Any] = {
        "as_path": (65001,),
        "as_path_length": 1,
        "origin": Origin.INCOMPLETE,
        "med": 5,
        "local_pref": 300,
        "communities": ("1:1", "1:2:3"),
    }
    expected = Attributes(
        next_hop=CLIENT.peer,
        as_path=(65001,),
        origin=Origin.INCOMPLETE,
        med=5,
        local_pref=300,
        communities=("1:1", "1:2:3"),
        originator=IPv4Address("7.7.7.7"),
        clusters=(CLUSTER,),
    )
    assert told(found, CLIENT2, {"10.0.1.0/26": heard(CLIENT, **path)}) == {"10.0.1.0/26": expected}
    before, first = (IPv4Address("8.8.8.8"),), IPv4Address("6.6.6.6")
    again = told(found, CLIENT2, {"10.0.1.0/26": heard(CLIENT, originator=first, clusters=before, **path)})
    assert again == {"10.0.1.0/26": replace(expected, originator=first, clusters=(CLUSTER, *before))}


def test_nothing_goes_back_to_where_it_came_from() -> None:
    found = speaker(MESH, CLIENT, CLIENT2, cluster_id=CLUSTER)
    cases = {
        "the peer told it to us": heard(CLIENT),
        "the peer told it first (ORIGINATOR_ID)": heard(MESH, "10.1.0.99", originator=IPv4Address(int(CLIENT.peer))),
        "the peer itself is its next hop": heard(MESH, "10.1.0.3"),
    }
    for why, candidate in cases.items():
        best = {"10.0.1.0/26": candidate}
        assert told(found, CLIENT, best) == {}
        assert refusal(found, CLIENT, best, "10.0.1.0/26") == why
        assert list(told(found, CLIENT2, best)) == ["10.0.1.0/26"]


def test_one_kinds_next_hop_is_not_held_against_a_session_of_another() -> None:
    through_us = replace(CLIENT, next_hop_mode=NextHopMode.SELF)
    found = speaker(MESH, through_us, CLIENT2, cluster_id=CLUSTER)
    best = {"10.0.1.0/26": heard(MESH, str(CLIENT.peer))}
    assert told(found, through_us, best)["10.0.1.0/26"].next_hop is None
    assert told(found, CLIENT2, best)["10.0.1.0/26"].next_hop == CLIENT.peer


def test_without_its_router_id_nothing_of_a_peer_is_reflected() -> None:
    found = speaker(CLIENT, CLIENT2, cluster_id=CLUSTER)
    best = {"10.0.1.0/26": heard(CLIENT, router_id=None)}
    assert told(found, CLIENT2, best) == {}
    assert "the router id of 10.1.0.3" in refusal(found, CLIENT2, best, "10.0.1.0/26")


def test_loops_show_in_what_reflectors_wrote() -> None:
    path = Path(next_hop=ip_address("10.1.0.9"), originator=IPv4Address("6.6.6.6"), clusters=(CLUSTER,))
    assert loop(path, IPv4Address("6.6.6.6"), None)
    assert loop(path, IPv4Address("1.1.1.1"), CLUSTER)
    assert not loop(path, IPv4Address("1.1.1.1"), None)
    assert not loop(path, IPv4Address("1.1.1.1"), IPv4Address("8.8.8.8"))


def test_an_own_prefix_is_ours_whoever_else_tells_it() -> None:
    found = speaker(CLIENT, CLIENT2, own=["10.0.1.0/26"], cluster_id=CLUSTER)
    for target in (CLIENT, CLIENT2):
        assert told(found, target, {"10.0.1.0/26": heard(CLIENT)}) == {"10.0.1.0/26": Attributes(local_pref=NORMAL)}


def test_graceful_shutdown_says_so_and_prefers_others() -> None:
    own = {"10.0.0.0/26": Own(source="block", communities=("1:1",))}
    found = speaker(RACK, MESH, own=own, maintenance=Maintenance.GRACEFUL_SHUTDOWN)
    assert told(found, RACK)["10.0.0.0/26"] == Attributes(as_path=(AS,), communities=("1:1", "65535:0"))
    assert told(found, MESH)["10.0.0.0/26"] == Attributes(local_pref=0, communities=("1:1", "65535:0"))


def test_a_withdrawn_node_tells_nothing() -> None:
    found = speaker(RACK, CLIENT, CLIENT2, own=["10.0.0.0/26"], cluster_id=CLUSTER, maintenance=Maintenance.WITHDRAWN)
    best = {ip_network("10.0.1.0/26"): heard(CLIENT)}
    assert all(not prefixes for prefixes in exports(found, best).values())
    assert "Withdrawn" in refusal(found, RACK, {}, "10.0.0.0/26")


def test_a_maximum_keeps_own_blocks_first() -> None:
    own = {
        "10.0.9.0/26": Own(source="block"),
        "10.0.8.1/32": Own(source="borrowed"),
        "10.0.0.0/24": Own(source="service"),
        "10.0.7.0/26": Own(source="block"),
    }
    rack = replace(RACK, filters=ACCEPT_ALL)
    best = {"10.0.1.0/26": heard(MESH), "10.0.0.0/26": heard(MESH)}
    ranked = ["10.0.7.0/26", "10.0.9.0/26", "10.0.8.1/32", "10.0.0.0/24", "10.0.0.0/26", "10.0.1.0/26"]
    for most in range(8):
        found = speaker(replace(rack, most_out=most), MESH, own=own)
        assert set(told(found, rack, best)) == set(ranked[:most])
        exporter = Exporter({ip_network(prefix): each for prefix, each in best.items()})
        exporter.configure(found)
        assert set(map(str, exporter.refusals(rack.peer, list(map(ip_network, ranked))))) == set(ranked[most:])
        assert len(exporter.warnings) == (most <= 7)
    assert len(told(found, MESH)) == 4


def test_what_a_maximum_keeps_back_moves_with_what_comes_and_goes() -> None:
    best = {ip_network(f"10.0.{each}.0/26"): heard(MESH) for each in (2, 4, 6)}
    exporter = Exporter(best)
    peer = RACK.peer
    exporter.configure(speaker(replace(RACK, filters=ACCEPT_ALL, most_out=2), MESH))
    one, two, four, six = (ip_network(f"10.0.{each}.0/26") for each in (1, 2, 4, 6))
    said = Attributes(as_path=(AS,))
    assert exporter.exported[peer] == {two: said, four: said}
    best[one] = heard(MESH)
    assert exporter.change([one]) == {peer: {one: said, four: None}}
    del best[two]
    assert exporter.change([two]) == {peer: {two: None, four: said}}
    best[six] = heard(MESH, med=7)
    assert exporter.change([six]) == {}
    del best[one]
    assert exporter.change([one]) == {peer: {one: None, six: said}}
    best[six] = heard(RACK)
    assert exporter.change([six]) == {peer: {six: None}}
    assert exporter.exported[peer] == {four: said}
    assert exporter.warnings == ()


def test_warnings_name_the_session_and_the_numbers() -> None:
    def warned(most: int, count: int) -> tuple[str, ...]:
        exporter = Exporter({})
        own = [f"10.0.{each}.0/26" for each in range(count)]
        exporter.configure(speaker(replace(RACK, most_out=most), MESH, own=own))
        return exporter.warnings

    assert warned(10, 7) == ()
    assert warned(10, 8) == ("to-10.9.0.1 (10.9.0.1): 8 prefixes are told of at most 10 (maxPrefixesOut)",)
    assert warned(10, 12) == ("to-10.9.0.1 (10.9.0.1): maxPrefixesOut is 10, so 2 of 12 prefixes are not told",)


def test_who_passes_nothing_on_need_not_hear_of_paths() -> None:
    importing = filter_of(importV4=[{"action": "Reject"}], exportV6=[{"action": "Accept"}])
    for found, expected in (
        (speaker(RACK, MESH), False),
        (speaker(replace(RACK, filters=importing)), False),
        (speaker(replace(RACK, filters=ACCEPT_ALL)), True),
        (speaker(CLIENT, cluster_id=CLUSTER), True),
    ):
        exporter = Exporter({})
        exporter.configure(found)
        assert exporter.passes_on is expected


def test_sessions_told_alike_share_their_attributes() -> None:
    clients = [session(f"10.1.1.{each}", client=True) for each in range(3)]
    found = exports(speaker(*clients, cluster_id=CLUSTER), {ip_network("10.0.1.0/26"): heard(MESH)})
    said = [each[ip_network("10.0.1.0/26")] for each in found.values()]
    assert said[0] is said[1] is said[2]


OWN = st.dictionaries(
    st.sampled_from([ip_network(f"10.0.{each}.0/26") for each in range(6)] + [ip_network("fd10::/122")]),
    st.builds(
        Own, source=st.sampled_from(["block", "borrowed", "service"]), communities=st.sampled_from([(), ("1:1",)])
    ),
    max_size=5,
)
TARGETS = [
    RACK,
    RACK6,
    replace(RACK, filters=ACCEPT_ALL, most_out=2),
    replace(OTHER_RACK, filters=filter_of(exportV4=[{"action": "Reject", "source": "RemotePeers"}])),
    replace(OTHER_RACK, next_hop_mode=NextHopMode.KEEP, filters=ACCEPT_ALL),
    MESH,
    CLIENT,
    replace(CLIENT, most_out=2),
    replace(CLIENT2, most_out=1),
    session("fd01::7", client=True),
]
SPEAKERS = st.builds(
    lambda own, sessions, cluster, maintenance: speaker(
        *{each.peer: each for each in sessions}.values(),
        own={str(prefix): each for prefix, each in own.items()},
        cluster_id=cluster,
        maintenance=maintenance,
    ),
    OWN,
    st.lists(st.sampled_from(TARGETS), max_size=6),
    st.sampled_from([None, CLUSTER, CLUSTER]),
    st.sampled_from([Maintenance.NONE, Maintenance.NONE, Maintenance.GRACEFUL_SHUTDOWN, Maintenance.WITHDRAWN]),
)
PREFIXES = st.sampled_from(
    [ip_network(f"10.0.{each}.0/26") for each in range(8)]
    + [ip_network(each) for each in ("fd10::/122", "fd10::40/122", "192.0.2.0/24")]
)
CANDIDATES = st.sampled_from(
    [
        heard(CLIENT),
        heard(CLIENT2, "10.1.0.3"),
        heard(MESH, originator=IPv4Address("10.1.0.4")),
        heard(RACK, communities=("65535:65281",)),
        heard(OTHER_RACK, as_path=(65002,), as_path_length=1),
    ]
)
STEPS = st.lists(
    st.one_of(SPEAKERS, st.dictionaries(PREFIXES, st.one_of(st.none(), CANDIDATES), min_size=1, max_size=4)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=300)
@given(STEPS)
def test_any_sequence_of_changes_comes_to_the_same(steps: list[Speaker | dict[Network, Candidate | None]]) -> None:
    best: dict[Network, Candidate] = {}
    exporter = Exporter(best)
    last = speaker()
    exporter.configure(last)
    followed: dict[Address, dict[Network, Attributes]] = {}
    for step in steps:
        if isinstance(step, Speaker):
            last = step
            difference = exporter.configure(step)
        else:
            for prefix, candidate in step.items():
                if candidate is None:
                    best.pop(prefix, None)
                else:
                    best[prefix] = candidate
            difference = exporter.change(step)
        for peer, changes in difference.items():
            assert all(followed.get(peer, {}).get(prefix) != said for prefix, said in changes.items())
            table = followed.setdefault(peer, {})
            table.update({prefix: said for prefix, said in changes.items() if said is not None})
            for prefix in [prefix for prefix, said in changes.items() if said is None]:
                table.pop(prefix, None)
        expected = exports(last, best)
        assert exporter.exported == expected
        assert {peer: table for peer, table in followed.items() if table} == {
            peer: table for peer, table in expected.items() if table
        }
        for each in last.sessions:
            most = len(expected[each.peer]) if each.most_out is None else each.most_out
            assert len(expected[each.peer]) <= most
            assert not exporter.refusals(each.peer, [*last.own, *best]).keys() & expected[each.peer].keys()
