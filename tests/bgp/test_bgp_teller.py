"""Sessions that come and go one by one lead to what telling everybody everything would lead to."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_network

from hypothesis import given
from hypothesis import strategies as st
from test_bgp_adverts import ONE, P1, P2, SIX, TWO, V6, Wire, session

from bgp.exabgp.line import Announce, PeerDown, PeerUp, SendEndOfRib
from bgp.model import Own, Speaker
from bgp.sessions import Sessions
from bgp.telling.teller import Teller
from core.addr import Address, Family, Network

PEERS, OURS = (P1, P2, SIX), (ONE, TWO, V6, ip_network("10.244.3.0/26"))


class Telling:
    """A teller with its sessions, as the agent wires them."""

    def __init__(self, *peers: Address) -> None:
        self.wire, self.sessions = Wire(), Sessions()
        self.teller = Teller(self.wire.send, self.sessions, {})
        self.own: set[Network] = {ONE}
        self.start()
        self.configure(*peers)

    def start(self) -> None:
        self.sessions.lose_speaker("then")
        self.wire.up.clear()
        self.wire.memory.clear()
        self.sessions.start_speaker()
        self.teller.start()

    def configure(self, *peers: Address) -> None:
        for gone in self.wire.knows - {*peers}:
            self.wire.up.discard(gone)
            self.wire.memory.pop(gone, None)
        self.wire.knows = {*peers}
        own = {prefix: Own(source="block") for prefix in self.own}
        wanted = tuple(map(session, peers))
        self.sessions.configure(wanted, "then")
        self.teller.configure(
            Speaker(router_id=IPv4Address(1), as_number=1, port=179, listen=(), sessions=wanted, own=own), 1
        )

    def flip(self, peer: Address) -> None:
        """Up when it was down, and the other way round."""
        went = peer in self.wire.up
        self.wire.up ^= {peer}
        self.sessions.hear(PeerDown(peer, "reset", False) if went else PeerUp(peer), "now")
        self.teller.tell({peer})

    async def step(self) -> None:
        await self.teller.reconciler.step()


async def test_a_session_that_comes_costs_what_it_is_told() -> None:
    telling = Telling(P1, P2)
    telling.flip(P1)
    await telling.step()
    telling.wire.take()
    telling.flip(P2)
    await telling.step()
    announced, ended = telling.wire.take()
    assert isinstance(announced, Announce)
    assert (announced.peers, announced.prefixes) == ((P2,), (ONE,))
    assert ended == SendEndOfRib(P2, Family.V4)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.sampled_from(PEERS)),
        st.tuples(st.just("own"), st.sampled_from(OURS)),
        st.tuples(st.just("peers"), st.sets(st.sampled_from(PEERS))),
        st.tuples(st.sampled_from(("start", "step")), st.none()),
    ),
    max_size=30,
)


@given(STEPS)
async def test_any_way_leads_to_what_everybody_should_be_told(steps: list[tuple[str, object]]) -> None:
    telling = Telling(*PEERS)
    for what, which in steps:
        knows = sorted(telling.wire.knows, key=str)
        if what == "flip" and which in knows:
            telling.flip(which)
        elif what == "own":
            telling.own ^= {which}
            telling.configure(*knows)
        elif what == "peers":
            telling.configure(*sorted(which, key=str))
        elif what == "start":
            telling.start()
        elif what == "step":
            await telling.step()
    for peer in telling.wire.knows - telling.wire.up:
        telling.flip(peer)
    await telling.step()
    for peer in telling.wire.knows:
        wanted = {prefix for prefix in telling.own if prefix.version == peer.version}
        assert telling.wire.memory.get(peer, {}).keys() == wanted
        assert telling.teller.driver.counts[peer] == len(wanted)
        assert telling.teller.pending(peer) == 0
