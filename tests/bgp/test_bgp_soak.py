"""A block that comes and goes every 500 ms, and a learnt one that does: seconds in the suite, ten minutes with
MUSLIN_SOAK=long (`make soak`).

    [ BIRD ]  far pod 10.244.5.1, steady; 10.244.6.0/26 flaps          replies to a ping every 10 ms go both ways:
       │                                                               through what stays, while others come and go
    [ agent, ExaBGP ]  own pod 10.244.1.1, steady; 10.244.2.0/26 flaps

From time to time the flapping stops, in the one state or the other. A second later that state must stand everywhere,
and nobody may have been restarted, have lost a reply, or have grown.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from bgp_world import AgentProcess, Bird, World, block, defaults, node, peer, pool, until

pytestmark = pytest.mark.kernel

LONG = os.environ.get("MUSLIN_SOAK") == "long"
LASTS_S, LOOKS_EVERY_S = (600.0, 30.0) if LONG else (16.0, 4.0)
WARM_S = 60.0 if LONG else 4.0
"""After which nothing may grow: by then everything has happened that will happen."""

FLAP_S = 0.5
CALM_S = 1.0
GROWTH_MIB = 3.0
"""Python's heap breathes by a mebibyte or two; a leak of 1 KiB a flap would come to more in ten minutes."""

SEED = 20_261_121
STEADY, FLAPPING = "10.244.1.0/26", "10.244.2.0/26"
FAR_STEADY, FAR_FLAPPING = "10.244.5.0/26", "10.244.6.0/26"
POD, FAR_POD = "10.244.1.1", "10.244.5.1"

TOR = f"""
protocol kernel {{ scan time 1; ipv4 {{ import none; export where source = RTS_BGP; }}; }}
protocol static steady {{ ipv4; route {FAR_STEADY} blackhole; }}
protocol static flapping {{ ipv4; route {FAR_FLAPPING} blackhole; }}
protocol bgp n1 {{
  local 10.9.1.1 as 65001; neighbor 10.9.1.2 as 64512; hold time 30;
  connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
}}
"""

RESOURCES = (
    node("n1", "10.9.1.2/24"),
    node("n2", "10.9.2.2/24"),
    pool("main", "10.244.0.0/16"),
    block(STEADY, "n1"),
    block(FAR_STEADY, "n2"),
    block(FAR_FLAPPING, "n2"),
    peer("tor", "10.9.1.1", asNumber=65001),
    defaults(nodeToNodeMeshEnabled=False),
)


@dataclass
class Soak:
    """The node and its router, what flaps between them, and what was seen of it."""

    world: World
    bird: Bird
    agent: AgentProcess
    flaps: int = 0
    resident: list[tuple[float, float, float]] = field(default_factory=list)
    """Seconds since the start, and the MiB of agent and ExaBGP."""

    def flap(self, there: bool) -> None:
        """Both blocks come, or go."""
        self.agent.apply(*RESOURCES, *([block(FLAPPING, "n1")] if there else []))
        self.bird.ask("enable" if there else "disable", "flapping")
        self.flaps += 1

    def check(self, there: bool) -> None:
        """That what there is, is what was said last."""
        assert self.bird.prefixes("n1") == ({STEADY, FLAPPING} if there else {STEADY})
        assert set(self.world.routes("tor", protocol="bird")) == ({STEADY, FLAPPING} if there else {STEADY})
        learnt = set(self.world.routes("n1"))
        assert learnt == ({FAR_STEADY, FAR_FLAPPING} if there else {FAR_STEADY})
        session = self.agent.session("10.9.1.1")
        assert (session.state, session.flaps) == ("Established", 0)

    def weigh(self, at_s: float) -> None:
        """Note the memory of agent and ExaBGP."""
        self.resident.append((at_s, _resident(self.agent.process.pid), _resident(self.agent.exabgp())))


def _resident(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@contextmanager
def pinging(world: World) -> Iterator[list[int]]:
    """The numbers of the replies that came so far, one every 10 ms."""
    seen: list[int] = []
    argv = ("ping", "-n", "-i", "0.01", "-I", POD, FAR_POD)
    process = world.start("n1", *argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            seen.extend(map(int, re.findall(r"bytes from .*icmp_seq=(\d+)", line)))

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        until("the first reply", lambda: seen)
        yield seen
    finally:
        process.kill()
        process.wait(timeout=10)
        thread.join(timeout=10)


def flap_until(soak: Soak, begun: float, dice: random.Random) -> None:
    """Flap until `LASTS_S` after `begun`, and look every `LOOKS_EVERY_S`."""
    look_at = begun + LOOKS_EVERY_S
    there = False
    while (now := time.monotonic()) < begun + LASTS_S:
        there = not there
        soak.flap(there)
        if now >= look_at:
            look_at += LOOKS_EVERY_S
            if dice.random() < 0.5:  # the last state may also be one that comes right after the one before
                there = not there
                soak.flap(there)
            time.sleep(CALM_S)
            soak.check(there)
            soak.weigh(time.monotonic() - begun)
        else:
            time.sleep(max(0.0, now + FLAP_S - time.monotonic()))


def test_what_stays_is_not_shaken_by_what_flaps(world: World) -> None:
    world.wire("tor", ["10.9.1.1/24"], "n1", ["10.9.1.2/24"])
    for place, pod in (("tor", FAR_POD), ("n1", POD)):
        world.run("ip", "-n", world.namespace(place), "addr", "add", f"{pod}/32", "dev", "lo")
    bird = Bird(world, "tor", "10.9.1.1")
    bird.start(TOR)
    soak = Soak(world, bird, AgentProcess(world, "n1"))
    soak.agent.apply(*RESOURCES)
    until("both are told and settled", lambda: soak.agent.state.ready and len(world.routes("n1")) == 2)
    exabgp = soak.agent.exabgp()
    with pinging(world) as replies:
        flap_until(soak, time.monotonic(), random.Random(SEED))
        lost = max(replies) - len(set(replies))
    for at_s, agent, speaker in soak.resident:
        print(f"after {at_s:3.0f} s: agent {agent:.1f} MiB, ExaBGP {speaker:.1f} MiB")
    print(f"{soak.flaps} flaps, {len(replies)} replies, {lost} lost")
    assert soak.agent.exabgp() == exabgp
    assert lost == 0
    warm = [each for each in soak.resident if each[0] >= WARM_S]
    (_, agent, speaker), (_, agent_after, speaker_after) = warm[0], warm[-1]
    assert agent_after - agent < GROWTH_MIB
    assert speaker_after - speaker < GROWTH_MIB
