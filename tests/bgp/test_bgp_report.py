"""A node's answers and its status, made from values: bounds, families, what became of each path, what is counted."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import msgspec
import pytest

from bgp.attributes import Attributes, Path
from bgp.bfd.watch import BfdState
from bgp.exabgp.line import PeerDown, PeerOpen, PeerUp
from bgp.model import Blocked, PeerType, Session, Speaker
from bgp.paths.bestpath import Candidate, Choice
from bgp.paths.decision import Decision, Explanation, Said, Standing
from bgp.reporting.report import MOST_BYTES, MOST_ROUTES, Outlook, first, report
from bgp.reporting.status import MOST_CAUSES, OTHER, Outcome, Taken, state, taken
from bgp.sessions import Sessions
from bgp.telling.adverts import Advert, Telling, Told
from core.prefix import Prefix
from core.reconcile import Progress
from core.resources.node_status import CalicoNodeStatusSpec, NodeStatus, RouteStatus
from core.resources.status import SessionState, SpeakerState
from core.snapshot import Snapshot
from linux.model import Facts, Link, NextHop, Route

TOR, OTHER_TOR = ip_address("10.9.1.1"), ip_address("10.9.1.2")
LINK = Link(name="eth0", index=2, up=True, mtu=1500)
FACTS = Facts(links={"eth0": LINK})


def session(peer: Any = TOR, **fields: Any) -> Session:
    fields = {"name": "BGPPeer/tor", "hold_s": 30, "restart_s": 120, **fields}
    return Session(peer=peer, port=179, local=None, local_as=65101, remote_as=65001, **fields)


SPEAKER = Speaker(
    router_id=IPv4Address("10.9.1.11"),
    as_number=65101,
    port=179,
    listen=(),
    addresses=(ip_address("10.9.1.11"),),
    sessions=(session(), session(OTHER_TOR, type=PeerType.MESH)),
)


def net(text: str) -> Prefix:
    return Prefix.of(ip_network(text))


def said(peer: Any, standing: Standing, **fields: Any) -> Said:
    path = Path(next_hop=peer, as_path=(65001, 65102), communities=("65001:7",), med=5)
    return Said(session="BGPPeer/tor", peer=peer, path=path, standing=standing, **fields)


def explained(text: str, *paths: Said, **fields: Any) -> dict[Prefix, Explanation]:
    fields = {"reason": "shorter AS path", "route": Route(next_hops=(NextHop(2, TOR),)), **fields}
    return {net(text): Explanation(prefix=ip_network(text), said=paths, **fields)}


def asks(*classes: str, prefix: str = "") -> CalicoNodeStatusSpec:
    return CalicoNodeStatusSpec(node="a", classes=list(classes), prefix=prefix)


def answer(spec: CalicoNodeStatusSpec, **fields: Any) -> NodeStatus:
    fields = {"speaker": SPEAKER, "state": SpeakerState(), "facts": FACTS, **fields}
    return report(spec, Outlook(**fields))


def routes(status: NodeStatus) -> list[RouteStatus]:
    assert status.routes is not None
    assert status.routes.routes_v6 == []
    return status.routes.routes_v4


def test_only_what_is_asked_for_is_told() -> None:
    status = answer(asks("Agent"))
    assert (status.bgp, status.routes, status.adverts) == (None, None, None)
    assert status.agent is not None
    assert status.agent.bird_v6 is None, "this node has no IPv6 address"
    assert status.agent.bird_v4 is not None
    assert (status.agent.bird_v4.state, status.agent.bird_v4.router_id) == ("NotReady", "10.9.1.11")
    assert status.agent.bird_v4.reason == "ExaBGP does not run"
    assert status.agent.bird_v4.version.startswith("ExaBGP 5.")


def test_sessions_are_told_by_family() -> None:
    sessions = [
        SessionState(peer="10.9.1.1", name="BGPPeer/tor", as_number=1, state="Established", type="GlobalPeer"),
        SessionState(peer="fd00::1", name="mesh/b", as_number=1, state="Down", type="NodeMesh", reason="refused"),
        SessionState(peer="", name="BGPPeer/odd", as_number=0, state="Blocked", reason="there is no Secret tor"),
    ]
    bgp = answer(asks("BGP"), state=SpeakerState(sessions=sessions)).bgp
    assert bgp is not None
    assert (bgp.number_established_v4, bgp.number_not_established_v4) == (1, 1)
    assert (bgp.number_established_v6, bgp.number_not_established_v6) == (0, 1)
    assert [(each.peer_ip, each.state) for each in bgp.peers_v4] == [("10.9.1.1", "Established"), ("", "Blocked")]
    assert [(each.type, each.state, each.reason) for each in bgp.peers_v6] == [("NodeMesh", "Active", "refused")]


def test_every_path_comes_with_what_became_of_it() -> None:
    paths = (
        said(TOR, Standing.BEST, ago_s=12.0, left_s=48.0),
        said(OTHER_TOR, Standing.NOT_USED, why="shorter AS path"),
        said(OTHER_TOR, Standing.REFUSED, why="BGPFilter strict rejects it"),
        said(OTHER_TOR, Standing.WITHDRAWN, why="withdrawn", ago_s=7.0),
    )
    told = explained("10.244.1.0/26", *paths)
    kernel = {net("10.244.1.0/26"): Route(next_hops=(NextHop(2, TOR),))}
    fib, *rib = routes(answer(asks("Routes"), explained=told, meant=1, kernel=kernel))
    assert (fib.type, fib.destination, fib.gateway, fib.interface) == ("FIB", "10.244.1.0/26", "10.9.1.1", "eth0")
    assert fib.learned_from is not None
    assert (fib.learned_from.source_type, fib.learned_from.peer_ip) == ("BGPPeer", "10.9.1.1")
    assert [(each.state, each.reason) for each in rib] == [
        ("best", "shorter AS path; stale for 12 s, dropped in 48 s unless the peer tells it again"),
        ("not used", "shorter AS path"),
        ("refused", "BGPFilter strict rejects it"),
        ("withdrawn", "withdrawn, 7 s ago"),
    ]
    assert rib[1].learned_from is not None
    assert rib[1].learned_from.source_type == "NodeMesh"
    assert rib[0].path is not None
    assert (rib[0].path.as_path, rib[0].path.med, rib[0].path.communities) == ([65001, 65102], 5, ["65001:7"])


def test_a_path_that_is_chosen_and_not_routed_says_why() -> None:
    told = explained("10.244.1.0/26", said(TOR, Standing.BEST), route=None, why_not="next hop 10.9.1.1 is on no link")
    (only,) = routes(answer(asks("Routes"), explained=told, meant=1))
    assert only.reason == "shorter AS path; next hop 10.9.1.1 is on no link"


def test_what_an_earlier_run_left_says_so() -> None:
    kept = Route(next_hops=(NextHop(2, TOR),))
    told = explained("10.244.1.0/26", route=kept, adopted=True)
    (only,) = routes(answer(asks("Routes"), explained=told, meant=1, kernel={net("10.244.1.0/26"): kept}))
    assert (only.type, only.learned_from) == ("FIB", None)
    assert only.reason == "kept from before bgp started, until the peers have told what they have"


def blocks(count: int) -> list[Prefix]:
    return [net(f"10.{100 + number // 1024}.{number // 4 % 256}.{64 * (number % 4)}/26") for number in range(count)]


def test_the_first_prefixes_are_told_and_of_how_many() -> None:
    chosen, meant = first(list(reversed(blocks(MOST_ROUTES + 9))), "")
    assert (list(chosen), meant) == (blocks(MOST_ROUTES), MOST_ROUTES + 9)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("10.244.1.5", ["10.244.0.0/16", "10.244.1.0/26"]),
        ("10.244.1.0/24", ["10.244.0.0/16", "10.244.1.0/26", "10.244.1.64/26"]),
        ("10.244.1.64/26", ["10.244.0.0/16", "10.244.1.64/26"]),
        ("10.245.0.0/16", []),
        ("fd00::/8", ["fd00::/122"]),
    ],
)
def test_a_prefix_narrows_to_what_holds_it_and_what_it_holds(asked: str, found: list[str]) -> None:
    known = [net(each) for each in ("fd00::/122", "10.244.1.64/26", "10.244.1.0/26", "10.244.2.0/26", "10.244.0.0/16")]
    chosen, meant = first(known, asked)
    assert ([str(each) for each in chosen], meant) == (found, len(found))


def test_an_answer_fits_into_the_datastore_and_says_what_is_missing() -> None:
    prefixes = blocks(MOST_ROUTES)
    paths = tuple(said(TOR, Standing.REFUSED, why="BGPFilter strict rejects it") for _ in range(3))
    told = {each: Explanation(prefix=each.network, said=paths, reason="", route=None) for each in prefixes}
    status = answer(asks("Routes"), explained=told, meant=20_000)
    assert MOST_BYTES / 4 < len(msgspec.json.encode(status)) <= MOST_BYTES
    count = len({each.destination for each in routes(status)})
    assert status.reason == f"these are the routes of the first {count} of 20000 prefixes"


def test_adverts_are_told_pending_or_withdrawing() -> None:
    telling = Telling(1, 1)
    adverts = [Advert(TOR, ip_network(f"10.244.{number}.0/26")) for number in (1, 2, 3)]
    new = Told(telling, Attributes(communities=("65535:0",)))
    wanted = {adverts[0]: new, adverts[1]: new, Advert(TOR, None): Told(telling)}
    acknowledged = {adverts[0]: new, adverts[1]: Told(telling, Attributes()), adverts[2]: new}
    status = answer(asks("Adverts"), wanted=wanted, acknowledged=acknowledged)
    assert [(each.destination, each.state) for each in status.adverts or ()] == [
        ("10.244.1.0/26", "told"),
        ("10.244.2.0/26", "pending"),
        ("10.244.3.0/26", "withdrawing"),
    ]
    narrow = answer(asks("Adverts", prefix="10.244.2.9"), wanted=wanted, acknowledged=acknowledged).adverts
    assert [each.destination for each in narrow or ()] == ["10.244.2.0/26"]
    assert narrow is not None
    assert narrow[0].path is not None
    assert (narrow[0].path.next_hop, narrow[0].path.communities) == ("self", ["65535:0"])


def test_what_waits_for_a_session_is_not_told() -> None:
    telling = Told(Telling(1, 0), Attributes())
    given = {Advert(peer, ip_network("10.244.1.0/26")): telling for peer in (TOR, OTHER_TOR)}
    sessions = [
        SessionState(peer=str(TOR), name="BGPPeer/tor", as_number=65001, state="Down"),
        SessionState(peer=str(OTHER_TOR), name="mesh/b", as_number=65001, state="Established"),
    ]
    state = SpeakerState(sessions=sessions)
    found = answer(asks("Adverts"), state=state, wanted=given, acknowledged=given).adverts
    assert [(each.peer_ip, each.state) for each in found or ()] == [(str(TOR), "waiting"), (str(OTHER_TOR), "told")]


def candidate(peer: Any) -> Candidate:
    return Candidate(session(peer), Path(next_hop=peer))


def test_what_is_taken_is_counted_by_peer_and_cause() -> None:
    route = Route(next_hops=(NextHop(2, TOR),))
    good = Decision(Choice(used=(candidate(TOR),), lost=((candidate(OTHER_TOR), "lower MED"),)), route, "")
    foreign = Decision(Choice(refused=((candidate(TOR), "in no IPPool"),)), None, "TOR: in no IPPool")
    unreached = Decision(Choice(used=(candidate(OTHER_TOR),)), None, "next hop is on no link")
    assert taken([good, good, good, foreign, foreign, unreached]) == {
        "10.9.1.1": Taken(3, {"in no IPPool": 2}),
        "10.9.1.2": Taken(3, {"next hop is on no link": 1}),
    }


def test_causes_are_bounded() -> None:
    many = [Decision(Choice(refused=((candidate(TOR), f"cause {number}"),)), None, "") for number in range(12)]
    refused = taken(many)["10.9.1.1"].refused
    assert len(refused) == MOST_CAUSES + 1
    assert refused[OTHER] == 12 - MOST_CAUSES


def states(sessions: Sessions, *blocked: Blocked) -> list[SessionState]:
    return sessions.states(blocked, lambda _: 4, lambda _: 3, lambda _: 2)


def test_flaps_and_the_last_error_outlive_the_session() -> None:
    sessions = Sessions()
    sessions.configure([session(hold_s=30, most_in=9, node="b")], "1")
    assert [(each.state, each.flaps, each.hold_s) for each in states(sessions)] == [("Down", 0, 0)]
    sessions.hear(PeerDown(TOR, "no route to host", notified=False), "2")
    (down,) = states(sessions)
    assert (down.flaps, down.reason, down.last_error) == (0, "no route to host", ""), "it never stood"
    for moment, reason in (("3", "Hold Timer Expired (4/0)"), ("6", "Cease (6/4)")):
        sessions.hear(PeerOpen(TOR, 0, frozenset(), hold_s=9), moment)
        sessions.hear(PeerUp(TOR), moment)
        (up,) = states(sessions)
        assert (up.state, up.hold_s, up.since, up.families, up.reason) == ("Established", 9, moment, ["ipv4"], "")
        sessions.hear(PeerDown(TOR, reason, notified=True), moment + "1")
    sessions.hear(PeerDown(TOR, "connection refused", notified=False), "8")
    sessions.configure([session(hold_s=60, most_in=9, node="b")], "9")
    (again,) = states(sessions, Blocked(name="BGPPeer/odd", peer="", remote_as=1, reason="no such filter"))[:1]
    assert (again.flaps, again.last_error, again.last_error_at) == (2, "Cease (6/4)", "61")
    assert again.reason == "connection refused; before that Cease (6/4)"
    assert (again.since, again.hold_s, again.families) == ("61", 0, [])
    assert (again.most_in, again.node, again.received, again.advertised, again.pending) == (9, "b", 4, 3, 2)


def test_why_a_peer_refused_outlives_the_calls_that_nobody_takes() -> None:
    sessions, why = Sessions(), "the peer sent OPEN Message Error, Bad Peer AS (2/2)"
    sessions.configure([session()], "1")
    sessions.hear(PeerDown(TOR, why, notified=True), "2")
    sessions.hear(PeerDown(TOR, "the TCP connection was lost", notified=False), "3")
    (down,) = states(sessions)
    assert down.reason == f"the TCP connection was lost; before that {why}"
    assert (down.last_error, down.last_error_at, down.flaps, down.since) == (why, "2", 0, "1")
    sessions.hear(PeerUp(TOR), "4")
    sessions.hear(PeerDown(TOR, "the TCP connection was lost", notified=False), "5")
    assert states(sessions)[0].reason == "the TCP connection was lost"


def test_a_peer_that_does_not_answer_may_have_another_password() -> None:
    """The kernel drops what is not signed alike before anybody sees it, so a wrong password looks like silence."""
    sessions, ask = Sessions(), "is the peer there, and has it the same password?"
    sessions.configure([session(password="one"), session(OTHER_TOR)], "1")
    assert [each.reason for each in states(sessions)] == [f"not connected yet; {ask}", "not connected yet"]
    sessions.hear(PeerOpen(TOR, 0, frozenset(), hold_s=9), "2")
    sessions.hear(PeerDown(TOR, "we sent OPEN Message Error, Bad Peer AS (2/2)", notified=True), "2")
    assert states(sessions)[0].reason == "we sent OPEN Message Error, Bad Peer AS (2/2)"
    sessions.hear(PeerOpen(TOR, 0, frozenset(), hold_s=9), "3")
    sessions.hear(PeerUp(TOR), "3")
    sessions.configure([session(password="two")], "4")
    sessions.hear(PeerDown(TOR, "we closed it", notified=False), "5")
    assert states(sessions)[0].reason == f"we closed it; {ask}"


def test_a_speaker_that_is_lost_counts_as_a_flap_of_what_stood() -> None:
    sessions = Sessions()
    sessions.configure([session(), session(OTHER_TOR)], "1")
    sessions.hear(PeerUp(TOR), "2")
    sessions.lose_speaker("3")
    assert [(each.flaps, each.last_error_at) for each in states(sessions)] == [(1, "3"), (0, "")]


@pytest.mark.parametrize(
    ("path", "bfd", "flaps", "warnings"),
    [
        (None, "", 0, []),
        (BfdState(up=True, state="Up", reason="", losses=2), "Up", 2, []),
        (BfdState(state="Down", reason="it has not spoken BFD yet"), "Down", 0, ["BFD: it has not spoken BFD yet"]),
    ],
)
def test_what_bfd_knows_stands_by_its_session(path: BfdState | None, bfd: str, flaps: int, warnings: list[str]) -> None:
    up = SessionState(peer=str(TOR), name="BGPPeer/tor", as_number=65001, state="Established")
    outcome = Outcome(
        told=Progress(revision=3),
        kernel=Progress(revision=2),
        running=True,
        settled=True,
        since="1",
        sessions=[up],
        own_told=[ip_network("10.244.1.0/26")],
        paths={str(TOR): path} if path else {},
    )
    found = state(SPEAKER, Snapshot(), outcome)
    assert (found.programmed, found.told, found.ready, found.routes_out) == (2, 3, True, ["10.244.1.0/26"])
    (only,) = found.sessions
    assert (only.bfd, only.bfd_flaps, only.warnings) == (bfd, flaps, warnings)
