"""A node that tells a ToR of 10,000 prefixes: muslin's speaker, from its desired state on, and BIRD; the ToR is BIRD.

Both nodes have a session of their own with a ToR of their own. Ours is the speaker's telling half, as the agent wires
it: desired adverts, the reconciler, its driver, ExaBGP. A turn is timed until the ToR's own table has the prefixes, or
has none of them.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from bench.rack import Bird, Rack, until
from bgp.attributes import Attributes
from bgp.exabgp.line import Ack, Other, PeerUp, decode
from bgp.exabgp.process import ExaBGP
from bgp.model import Session, Speaker
from bgp.telling.adverts import Advert, AdvertDriver, Telling, Told, desired_adverts
from core.addr import Address, Network
from core.reconcile import Reconciler
from linux import netns
from linux.rights import require_net_admin

PREFIXES: Final = 10_000
_FIRST: Final = int(IPv4Network("10.0.0.0/8").network_address)
_BLOCKS: Final = tuple(IPv4Network((_FIRST + (n << 6), 26)) for n in range(PREFIXES))
_POLL_S: Final = 0.005

_TOR: Final = """
protocol bgp node {{
  local 192.168.{rack}.1 as 65001; neighbor 192.168.{rack}.2 as 64512; hold time 90;
  connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import all; export none; }};
}}
"""
_NODE: Final = """
protocol static own {{ disabled; ipv4; {routes} }}
protocol bgp tor {{
  local 192.168.{rack}.2 as 64512; neighbor 192.168.{rack}.1 as 65001; hold time 90;
  connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import none; export all; next hop self; }};
}}
"""


@dataclass(frozen=True, slots=True)
class Announcing:
    """Two sides that do the same: seconds until the ToR has everything, and until it has nothing again."""

    ours: Callable[[], tuple[float, float]]
    peer: Callable[[], tuple[float, float]]


@contextmanager
def announcing() -> Iterator[Announcing]:
    """Both racks, their sessions established, nothing told."""
    require_net_admin()
    with ExitStack() as stack:
        rack = Rack(stack)
        tors = [_tor(rack, number) for number in (1, 2)]
        routes = " ".join(f"route {block} blackhole;" for block in _BLOCKS)
        bird = Bird(rack, "node2", "192.168.2.2", _NODE.format(rack=2, routes=routes))
        until("BIRD's session is up", lambda: tors[1].up("node"), 0.2)
        told = stack.enter_context(_speaker(rack))
        yield Announcing(_timed(tors[0], told), _timed(tors[1], lambda many: _enable(bird, many)))


def _tor(rack: Rack, number: int) -> Bird:
    rack.wire(f"tor{number}", f"192.168.{number}.1/24", f"node{number}", f"192.168.{number}.2/24")
    return Bird(rack, f"tor{number}", f"192.168.{number}.1", _TOR.format(rack=number))


def _enable(bird: Bird, many: Sequence[IPv4Network]) -> None:
    bird.ask("enable" if many else "disable", "own")


def _timed(tor: Bird, tell: Callable[[Sequence[IPv4Network]], None]) -> Callable[[], tuple[float, float]]:
    def count() -> int:
        found = re.search(r"(\d+) of \d+ routes", tor.ask("show", "route", "protocol", "node", "count"))
        return int(found[1]) if found else 0

    def turn() -> tuple[float, float]:
        begun = time.perf_counter()
        tell(_BLOCKS)
        there = until("the ToR has all", lambda: count() == PREFIXES, _POLL_S)
        again = time.perf_counter()
        tell(())
        return there - begun, until("the ToR has none", lambda: count() == 0, _POLL_S) - again

    return turn


@contextmanager
def _speaker(rack: Rack) -> Iterator[Callable[[Sequence[IPv4Network]], None]]:
    """ExaBGP in the first rack's node; gives what tells the ToR of exactly those prefixes."""
    with asyncio.Runner() as runner, netns.inside(rack.place("node1")):
        made = runner.run(_Speaker.start(rack))
        try:
            yield lambda many: runner.run(made.tell(many))
        finally:
            runner.run(made.stop())


class _Speaker:
    """The half of the agent that tells."""

    def __init__(self, exabgp: ExaBGP, session: Session) -> None:
        self._exabgp, self._session = exabgp, session
        self._driver = AdvertDriver(exabgp.send)
        self._driver.configured = frozenset({session.peer})
        self._reconciler: Reconciler[Advert, Told] = Reconciler(self._driver)
        self._task = asyncio.create_task(exabgp.run())

    @classmethod
    async def start(cls, rack: Rack) -> _Speaker:
        up = asyncio.Event()

        def hear(lines: Sequence[str]) -> None:
            for line in lines:
                event = decode(line)
                if not isinstance(event, (Ack, Other)) and isinstance(event, PeerUp):
                    up.set()

        exabgp = ExaBGP(rack.folder / "run", on_line=hear, on_start=lambda: None, on_loss=lambda: None)
        tor, local = IPv4Address("192.168.1.1"), IPv4Address("192.168.1.2")
        session = Session(
            name="tor", peer=tor, port=179, local=local, local_as=64512, remote_as=65001, hold_s=90, restart_s=120
        )
        exabgp.configure(Speaker(router_id=local, as_number=64512, port=179, listen=(local,), sessions=(session,)))
        made = cls(exabgp, session)
        async with asyncio.timeout(60):
            await up.wait()
        return made

    async def tell(self, many: Sequence[IPv4Network]) -> None:
        """From the desired state to ExaBGP's last acknowledgement."""
        peer: Address = self._session.peer
        exported: Mapping[Address, Mapping[Network, Attributes]] = {peer: {block: Attributes() for block in many}}
        wanted = desired_adverts([self._session], exported, {peer: Telling(1, 1)}, {peer}, self._driver.told)
        self._reconciler.set_desired(wanted, 1)
        progress = await self._reconciler.step()
        assert progress.healthy, progress

    async def stop(self) -> None:
        """End ExaBGP."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
