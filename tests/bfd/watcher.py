"""The agent's side of BFD in a namespace: an event loop in a thread that lives there."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from bgp_world import Bird, World, until

from bgp.bfd.watch import Bfd, BfdState
from bgp.model import Bfd as Intervals
from core.addr import Address
from linux.netns import inside

Sessions = Mapping[str, tuple[str, Intervals]]
"""By the peer's address: our address and how the path is watched."""


def every(ms: int, multiplier: int = 3) -> Intervals:
    return Intervals(transmit_ms=ms, receive_ms=ms, multiplier=multiplier)


class Watcher:
    """A `Bfd` that runs from `start` to `stop`; `heard` is every change with its time on the monotonic clock."""

    def __init__(self, world: World, place: str, *, linger_s: float = 0.0) -> None:
        self._namespace = world.namespace(place)
        self._run_dir: Path = world.scratch / f"bfd-{place}"
        self._run_dir.mkdir()
        self._linger_s = linger_s
        self.heard: list[tuple[float, Address, BfdState]] = []

    def start(self, sessions: Sessions) -> None:
        ready: list[asyncio.AbstractEventLoop] = []
        self._thread = threading.Thread(target=self._live, args=(ready.append, sessions), daemon=True)
        self._thread.start()
        until("it runs", lambda: ready)
        self._loop = ready[0]

    def configure(self, sessions: Sessions) -> None:
        self._loop.call_soon_threadsafe(self.bfd.configure, _typed(sessions))
        until("it has heard so", lambda: self.bfd.states().keys() == _typed(sessions).keys())

    def stop(self) -> None:
        """End as an agent does; its child is gone too once `pids` says so."""
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def state(self, peer: str) -> BfdState:
        return self.bfd.states().get(ip_address(peer), BfdState())

    def up(self, peer: str) -> bool:
        return self.state(peer).up

    def lost_at(self, peer: str, since: float) -> float:
        """Wait until the peer is lost; when we heard of it."""
        found: list[float] = []

        def lost() -> bool:
            address = ip_address(peer)
            found.extend(at for at, who, state in list(self.heard) if who == address and state.lost and at >= since)
            return bool(found)

        until(f"{peer} is lost", lost, every_s=0.01)
        return found[0]

    def losses(self) -> int:
        return sum(state.losses for state in self.bfd.states().values())

    def _live(self, ready: Callable[[asyncio.AbstractEventLoop], None], sessions: Sessions) -> None:
        with inside(self._namespace):
            asyncio.run(self._run(ready, sessions))

    async def _run(self, ready: Callable[[asyncio.AbstractEventLoop], None], sessions: Sessions) -> None:
        self.bfd = Bfd(self._run_dir, self._hear, linger_s=self._linger_s)
        self.bfd.configure(_typed(sessions))
        self._task = asyncio.create_task(self.bfd.run())
        ready(asyncio.get_running_loop())
        await asyncio.gather(self._task, return_exceptions=True)

    def _hear(self, peer: Address, state: BfdState) -> None:
        self.heard.append((time.monotonic(), peer, state))


def _typed(sessions: Sessions) -> dict[Address, tuple[Address | None, Intervals]]:
    return {ip_address(peer): (ip_address(local) if local else None, how) for peer, (local, how) in sessions.items()}


@dataclass(frozen=True, slots=True)
class Said:
    """A session in `birdc show bfd sessions`: how often BIRD sends and after how long a silence it gives up, in
    seconds, and since what time of day, in seconds, it is in its state."""

    state: str = "none"
    interval: float = 0.0
    timeout: float = 0.0
    since: float = 0.0

    def stands_since(self, before: Said) -> bool:
        """Whether it has not moved in between. BIRD prints the same time a millisecond off now and then."""
        return self.state == before.state == "Up" and abs(self.since - before.since) < 0.05


def said(bird: Bird) -> dict[str, Said]:
    """Every session that BIRD has, by the peer's address."""
    found = {}
    for line in bird.ask("show", "bfd", "sessions").splitlines():
        words = line.split()
        if len(words) == 6 and ":" in words[3]:
            hours, minutes, seconds = words[3].split(":")
            since = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
            found[words[0]] = Said(words[2], float(words[4]), float(words[5]), since)
    return found


@contextlib.contextmanager
def silent(world: World, place: str, device: str) -> Iterator[None]:
    """Nothing leaves a namespace by a device any more, and nobody is told: the link stays up."""

    def nft(command: str) -> None:
        world.run("nsenter", f"--net=/run/netns/{world.namespace(place)}", "nft", command)

    nft("add table netdev mute")
    nft(f"add chain netdev mute out {{ type filter hook egress devices = {{ {device} }} priority 0; policy drop; }}")
    try:
        yield
    finally:
        nft("delete table netdev mute")
