"""What is told to whom, and in which order, under the one reconciler."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from bgp.adverts import Advert, AdvertDriver, Told, desired_adverts
from bgp.line import Announce, Command, PeerDown, PeerUp, Ping, SendEndOfRib, Withdraw
from bgp.model import Attributes, Session
from bgp.sessions import Sessions
from core.addr import Address, Family, Network
from core.errors import Unavailable
from core.reconcile import Reconciler

P1, P2, SIX = ip_address("10.9.1.1"), ip_address("10.9.2.1"), ip_address("fd09::1")
ONE, TWO, V6 = ip_network("10.244.1.0/26"), ip_network("10.244.2.0/26"), ip_network("fd44::/122")
SELF = Attributes()


def session(peer: Address) -> Session:
    return Session(name=str(peer), peer=peer, port=179, local=None, local_as=1, remote_as=2, hold_s=90, restart_s=120)


class Wire:
    """The far end of the API: what was said, and a view of what each peer it knows holds."""

    def __init__(self, *knows: Address) -> None:
        self.knows = set(knows)
        self.away = False
        self.said: list[Command] = []

    async def send(self, command: Command) -> bool:
        if self.away:
            raise Unavailable("ExaBGP is not running")
        assert not isinstance(command, Ping)
        if command.peer not in self.knows:
            return False
        self.said.append(command)
        return True

    def take(self) -> list[Command]:
        said, self.said = self.said, []
        return said


class Teller:
    """Sessions, driver and reconciler as the agent wires them."""

    def __init__(self, wire: Wire, *peers: Address) -> None:
        self.sessions = Sessions()
        self.driver = AdvertDriver(wire.send)
        self.reconciler: Reconciler[Advert, Told] = Reconciler(self.driver)
        self.configure(*peers)

    def configure(self, *peers: Address) -> None:
        self.configured = [session(peer) for peer in peers]
        self.sessions.configure(self.configured, "then")
        self.driver.configured = frozenset(peers)

    async def tell(self, *prefixes: Network) -> bool:
        told = {
            each.peer: {prefix: SELF for prefix in prefixes if prefix.version == each.family}
            for each in self.configured
        }
        wanted = desired_adverts(self.configured, told, self.sessions.tellings, self.sessions.up)
        self.reconciler.set_desired(wanted, 1)
        return (await self.reconciler.step()).healthy


async def test_end_of_rib_comes_last_and_once() -> None:
    wire = Wire(P1)
    teller = Teller(wire, P1)
    assert await teller.tell(ONE)
    assert wire.take() == [Announce(P1, SELF, (ONE,))]
    teller.sessions.hear(PeerUp(P1), "now")
    assert await teller.tell(ONE, TWO)
    assert wire.take() == [Announce(P1, SELF, (ONE, TWO)), SendEndOfRib(P1, Family.V4)]
    assert await teller.tell(ONE, TWO)
    assert await teller.tell(TWO)
    assert wire.take() == [Withdraw(P1, (ONE,))]


async def test_a_node_without_blocks_still_sends_end_of_rib() -> None:
    wire = Wire(P1)
    teller = Teller(wire, P1)
    teller.sessions.hear(PeerUp(P1), "now")
    assert await teller.tell()
    assert wire.take() == [SendEndOfRib(P1, Family.V4)]


async def test_a_peer_that_comes_back_and_a_new_speaker_are_told_again() -> None:
    wire = Wire(P1, P2)
    teller = Teller(wire, P1, P2)
    for peer in (P1, P2):
        teller.sessions.hear(PeerUp(peer), "now")
    assert await teller.tell(ONE)
    wire.take()
    teller.sessions.hear(PeerDown(P1, "closing connection", False), "now")
    teller.sessions.hear(PeerUp(P1), "now")
    assert await teller.tell(ONE)
    assert wire.take() == [Announce(P1, SELF, (ONE,)), SendEndOfRib(P1, Family.V4)]
    teller.sessions.lose_speaker("now")
    teller.sessions.start_speaker()
    assert await teller.tell(ONE)
    assert wire.take() == [Announce(P1, SELF, (ONE,)), Announce(P2, SELF, (ONE,))]


async def test_what_is_withdrawn_while_a_peer_is_down_is_withdrawn_from_its_memory_too() -> None:
    wire = Wire(P1)
    teller = Teller(wire, P1)
    teller.sessions.hear(PeerUp(P1), "now")
    assert await teller.tell(ONE)
    teller.sessions.hear(PeerDown(P1, "closing connection", False), "now")
    wire.take()
    assert await teller.tell()
    assert wire.take() == [Withdraw(P1, (ONE,))]


async def test_end_of_rib_waits_for_what_could_not_be_announced() -> None:
    wire = Wire()
    teller = Teller(wire, P1)
    teller.sessions.hear(PeerUp(P1), "now")
    assert not await teller.tell(ONE)
    assert wire.take() == []
    wire.knows.add(P1)
    assert await teller.tell(ONE)
    assert wire.take() == [Announce(P1, SELF, (ONE,)), SendEndOfRib(P1, Family.V4)]


async def test_one_peers_refusal_does_not_hold_the_others() -> None:
    wire = Wire(P2)
    teller = Teller(wire, P1, P2)
    assert not await teller.tell(ONE)
    assert wire.take() == [Announce(P2, SELF, (ONE,))]
    assert set(teller.reconciler.progress.errors) == {Advert(P1, ONE)}


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
    assert wire.take() == [Announce(P1, SELF, (ONE,)), Announce(SIX, SELF, (V6,))]


async def test_no_speaker_is_an_error_that_is_retried() -> None:
    wire = Wire(P1)
    teller = Teller(wire, P1)
    wire.away = True
    assert not await teller.tell(ONE)
    assert "not running" in next(iter(teller.reconciler.progress.errors.values()))
    wire.away = False
    assert await teller.tell(ONE)
    assert wire.take() == [Announce(P1, SELF, (ONE,))]
