"""Two of our own sessions, and a channel between them that loses, delays and reorders; time is simulated."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from random import Random

from bgp.bfd import session as fold
from bgp.bfd.codec import decode, encode
from bgp.bfd.model import Packet, Wanted
from bgp.bfd.session import Session


@dataclass
class Channel:
    """`loss` is a share, `delay_s` the most that a packet takes; the least is a tenth of a millisecond."""

    loss: float = 0.0
    delay_s: float = 0.001


@dataclass
class World:
    """The two, the packets under way, and everything ever sent: when, by whom, what."""

    random: Random
    sides: list[Session]
    channel: Channel = field(default_factory=Channel)
    now: float = 100.0
    sent: list[tuple[float, int, Packet]] = field(default_factory=list)
    _flying: list[tuple[float, int, int, bytes]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def of(cls, seed: int, one: Wanted, other: Wanted) -> World:
        return cls(Random(seed), [fold.start(one, 1, 100.0), fold.start(other, 2, 100.0)])

    def run(self, seconds: float) -> None:
        """Let that much time pass."""
        end = self.now + seconds
        while True:
            due = min(self.sides[0].wake_at, self.sides[1].wake_at, self._flying[0][0] if self._flying else end)
            if due >= end:
                break
            self.now = max(self.now, due)
            while self._flying and self._flying[0][0] <= self.now:
                at, _, to, data = heapq.heappop(self._flying)
                packet = decode(data)
                if packet.yours in (0, self.sides[to].discriminator):
                    self.sides[to] = fold.hear(self.sides[to], packet, at)
            for which in (0, 1):
                self.sides[which] = fold.expire(self.sides[which], self.now)
                self._speak(which)
        self.now = end

    def tune(self, which: int, wanted: Wanted) -> None:
        self.sides[which] = fold.tune(self.sides[which], wanted, self.now)

    def restart(self, which: int, wanted: Wanted) -> None:
        """One side forgets everything."""
        self.sides[which] = fold.start(wanted, self.random.randrange(3, 2**32), self.now)

    def _speak(self, which: int) -> None:
        for _ in range(10):
            self.sides[which], packet = fold.due(self.sides[which], self.now, self.random.random())
            if packet is None:
                return
            self.sent.append((self.now, which, packet))
            if self.random.random() >= self.channel.loss:
                at = self.now + self.random.uniform(0.0001, max(0.0001, self.channel.delay_s))
                heapq.heappush(self._flying, (at, next(self._order), 1 - which, encode(packet)))
        raise AssertionError("it never stops speaking")
