"""What is told to whom, and in which order, under the one reconciler."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from bgp.attributes import Attributes
from bgp.exabgp.line import Announce, Command, PeerDown, PeerUp, SendEndOfRib, Withdraw
from bgp.model import Session
from bgp.sessions import Sessions
from bgp.telling.adverts import Advert, AdvertDriver, Told, desired_adverts
from core.addr import Address, Family, Network
from core.errors import Unavailable
from core.reconcile import Reconciler

P1, P2, SIX = ip_address("10.9.1.1"), ip_address("10.9.2.1"), ip_address("fd09::1")
ONE, TWO, V6 = ip_network("10.244.1.0/26"), ip_network("10.244.2.0/26"), ip_network("fd44::/122")
SELF, FAR = Attributes(), Attributes(med=100)


def session(peer: Address) -> Session:
    return Session(name=str(peer), peer=peer, port=179, local=None, local_as=1, remote_as=2, hold_s=90, restart_s=120)


class Wire:
    """ExaBGP, as far as adverts go: `up` has the sessions, `memory` what it tells each peer it knows."""

    def __init__(self, *knows: Address) -> None:
        self.knows = set(knows)
        self.up = set(knows)
        self.away = False
        self.said: list[Command] = []
        self.memory: dict[Address, dict[Network, Attributes]] = {}
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, command: Command) -> bool:
        await self.gate.wait()
        if self.away:
            raise Unavailable("ExaBGP is not running")
        assert isinstance(command, (Announce, Withdraw, SendEndOfRib))
        peers = {command.peer} if isinstance(command, SendEndOfRib) else {*command.peers}
        if not peers <= (self.knows if isinstance(command, Withdraw) else self.knows & self.up):
            return False
        self.said.append(command)
        for peer in peers:
            table = self.memory.setdefault(peer, {})
            if isinstance(command, Announce):
                table.update(dict.fromkeys(command.prefixes, command.attributes))
            elif isinstance(command, Withdraw):
                for prefix in command.prefixes:
                    table.pop(prefix, None)
        return True

    def take(self) -> list[Command]:
        said, self.said = self.said, []
        return said


class Teller:
    """Sessions, driver and reconciler as the agent wires them."""

    def __init__(self, wire: Wire, *peers: Address) -> None:
        self.wire = wire
        self.sessions = Sessions()
        self.driver = AdvertDriver(wire.send)
        self.reconciler: Reconciler[Advert, Told] = Reconciler(self.driver)
        self.configure(*peers)
        for peer in peers:
            self.up(peer)

    def configure(self, *peers: Address) -> None:
        self.configured = [session(peer) for peer in peers]
        self.sessions.configure(self.configured, "then")
        self.driver.configured = frozenset(peers)

    def up(self, peer: Address) -> None:
        self.wire.up.add(peer)
        self.sessions.hear(PeerUp(peer), "now")

    def down(self, peer: Address) -> None:
        self.wire.up.discard(peer)
        self.sessions.hear(PeerDown(peer, "closing connection", False), "now")

    def restart(self) -> None:
        """Another ExaBGP, with a memory of its own."""
        self.wire.up.clear()
        self.wire.memory.clear()
        self.sessions.lose_speaker("now")
        self.sessions.start_speaker()
        self.driver.forget()
        self.reconciler.distrust()

    def want(self, *prefixes: Network, attributes: Attributes = SELF) -> None:
        told = {
            each.peer: {prefix: attributes for prefix in prefixes if prefix.version == each.family}
            for each in self.configured
        }
        sessions = self.sessions
        wanted = desired_adverts(self.configured, told, sessions.tellings, sessions.up, self.driver.told)
        self.reconciler.set_desired(wanted, 1)

    async def tell(self, *prefixes: Network, attributes: Attributes = SELF) -> bool:
        self.want(*prefixes, attributes=attributes)
        return (await self.reconciler.step()).healthy


async def test_end_of_rib_comes_last_and_once() -> None:
    wire = Wire(P1)
    teller = Teller(wire, P1)
    assert await teller.tell(ONE, TWO)
    assert wire.take() == [Announce((P1,), SELF, (ONE, TWO)), SendEndOfRib(P1, Family.V4)]
    assert await teller.tell(ONE, TWO)
    assert await teller.tell(TWO)
    assert wire.take() == [Withdraw((P1,), (ONE,))]


async def test_a_node_without_blocks_still_sends_end_of_rib() -> None:
    wire = Wire(P1)
    assert await Teller(wire, P1).tell()
    assert wire.take() == [SendEndOfRib(P1, Family.V4)]


async def test_end_of_rib_waits_until_all_there_is_to_tell_is_known() -> None:
    wire = Wire(P1)
    teller = Teller(wire, P1)
    for conclude, said in ((False, [Announce((P1,), SELF, (ONE,))]), (True, [SendEndOfRib(P1, Family.V4)])):
        sessions, told = teller.sessions, teller.driver.told
        wanted = desired_adverts(
            teller.configured, {P1: {ONE: SELF}}, sessions.tellings, sessions.up, told, conclude=conclude
        )
        teller.reconciler.set_desired(wanted, 1)
        assert (await teller.reconciler.step()).healthy
        assert wire.take() == said


async def test_one_command_tells_all_who_are_told_the_same() -> None:
    wire = Wire(P1, P2)
    assert await Teller(wire, P1, P2).tell(ONE, TWO)
    assert wire.take()[0] == Announce((P1, P2), SELF, (ONE, TWO))


async def test_a_peer_that_comes_back_and_a_new_speaker_are_told_again() -> None:
    wire = Wire(P1, P2)
    teller = Teller(wire, P1, P2)
    assert await teller.tell(ONE)
    wire.take()
    teller.down(P1)
    teller.up(P1)
    assert await teller.tell(ONE)
    assert wire.take() == [Announce((P1,), SELF, (ONE,)), SendEndOfRib(P1, Family.V4)]
    teller.restart()
    assert await teller.tell(ONE)
    assert not [each for each in wire.take() if isinstance(each, Announce)]
    teller.up(P2)
    assert await teller.tell(ONE)
    assert wire.take() == [Announce((P2,), SELF, (ONE,)), SendEndOfRib(P2, Family.V4)]


async def test_a_peer_without_a_session_is_told_when_it_has_one() -> None:
    wire = Wire(P1)
    teller = Teller(wire, P1)
    assert await teller.tell(ONE)
    teller.down(P1)
    wire.take()
    assert await teller.tell(ONE, TWO)
    assert await teller.tell(ONE, TWO, attributes=FAR)
    assert wire.take() == []
    teller.up(P1)
    assert await teller.tell(ONE, TWO, attributes=FAR)
    assert wire.take() == [Announce((P1,), FAR, (ONE, TWO)), SendEndOfRib(P1, Family.V4)]


async def test_a_peer_taken_out_and_put_back_between_two_rounds_is_told_again() -> None:
    wire = Wire(P1)
    teller = Teller(wire, P1)
    assert await teller.tell(ONE)
    wire.take()
    teller.configure()
    teller.want(ONE)
    teller.configure(P1)
    teller.want(ONE)
    teller.up(P1)
    assert await teller.tell(ONE)
    assert wire.take() == [Announce((P1,), SELF, (ONE,)), SendEndOfRib(P1, Family.V4)]


async def test_what_is_withdrawn_while_a_peer_is_down_is_withdrawn_from_its_memory_too() -> None:
    wire = Wire(P1)
    teller = Teller(wire, P1)
    assert await teller.tell(ONE)
    teller.down(P1)
    wire.take()
    assert await teller.tell()
    assert [each for each in wire.take() if isinstance(each, Withdraw)] == [Withdraw((P1,), (ONE,))]


async def test_end_of_rib_waits_for_what_could_not_be_announced() -> None:
    wire = Wire()
    teller = Teller(wire, P1)
    assert not await teller.tell(ONE)
    assert wire.take() == []
    wire.knows.add(P1)
    assert await teller.tell(ONE)
    assert wire.take() == [Announce((P1,), SELF, (ONE,)), SendEndOfRib(P1, Family.V4)]


async def test_one_peers_refusal_does_not_hold_the_others() -> None:
    wire = Wire(P2)
    teller = Teller(wire, P1, P2)
    assert not await teller.tell(ONE)
    assert wire.take() == [Announce((P2,), SELF, (ONE,)), SendEndOfRib(P2, Family.V4)]
    assert set(teller.reconciler.progress.errors) == {Advert(P1, ONE), Advert(P1, None)}


async def test_nothing_is_taken_back_from_a_peer_that_is_gone() -> None:
    wire = Wire(P1, P2)
    teller = Teller(wire, P1, P2)
    assert await teller.tell(ONE)
    wire.knows.remove(P2)
    wire.take()
    teller.configure(P1)
    assert await teller.tell(ONE)
    assert wire.take() == []


async def test_families_keep_to_their_sessions() -> None:
    wire = Wire(P1, SIX)
    assert await Teller(wire, P1, SIX).tell(ONE, V6)
    assert wire.take()[:2] == [Announce((P1,), SELF, (ONE,)), Announce((SIX,), SELF, (V6,))]


async def test_no_speaker_is_an_error_that_is_retried() -> None:
    wire = Wire(P1)
    teller = Teller(wire, P1)
    wire.away = True
    assert not await teller.tell(ONE)
    assert "not running" in next(iter(teller.reconciler.progress.errors.values()))
    wire.away = False
    assert await teller.tell(ONE)
    assert wire.take() == [Announce((P1,), SELF, (ONE,)), SendEndOfRib(P1, Family.V4)]


async def test_flaps_during_a_round_are_told_once_as_they_end() -> None:
    wire = Wire(P1)
    teller = Teller(wire, P1)
    assert await teller.tell(ONE)
    wire.take()
    wire.gate.clear()
    teller.want(ONE, TWO)
    round_one = asyncio.create_task(teller.reconciler.step())
    await asyncio.sleep(0)
    for _ in range(1000):
        teller.want(ONE, attributes=FAR)
        teller.want(TWO)
        teller.want()
    wire.gate.set()
    assert (await round_one).healthy
    assert (await teller.reconciler.step()).healthy
    assert wire.take() == [Announce((P1,), SELF, (TWO,)), Withdraw((P1,), (ONE, TWO))]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("want"), st.sets(st.sampled_from((ONE, TWO, V6))), st.sampled_from((SELF, FAR))),
        st.tuples(st.sampled_from(("up", "down")), st.sampled_from((P1, P2, SIX))),
        st.tuples(st.just("restart")),
        st.tuples(st.just("away"), st.booleans()),
        st.tuples(st.just("round")),
    ),
    max_size=30,
)


@given(steps)
async def test_whatever_happens_everyone_ends_with_the_last_state(steps: list[tuple[object, ...]]) -> None:
    wire = Wire(P1, P2, SIX)
    teller = Teller(wire, P1, P2, SIX)
    last: tuple[tuple[Network, ...], Attributes] = ((), SELF)
    for step in steps:
        match step:
            case "want", set(prefixes), Attributes() as attributes:
                last = (tuple(prefixes), attributes)
            case "up", peer:
                teller.up(peer)  # type: ignore[arg-type]
            case "down", peer:
                teller.down(peer)  # type: ignore[arg-type]
            case ("restart",):
                teller.restart()
            case "away", bool(away):
                wire.away = away
        teller.want(*last[0], attributes=last[1])
        if step == ("round",):
            await teller.reconciler.step()
    wire.away = False
    for peer in (P1, P2, SIX):
        teller.up(peer)
    assert await teller.tell(*last[0], attributes=last[1])
    for peer in (P1, P2, SIX):
        mine = {prefix: last[1] for prefix in last[0] if prefix.version == peer.version}
        assert wire.memory.get(peer, {}) == mine
