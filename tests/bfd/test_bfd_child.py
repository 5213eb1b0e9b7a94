"""The child as a process: whom it believes, how long it lives, and that a busy machine does not fool it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bgp_world import Bird, World, until
from watcher import Said, Watcher, every, said

from bgp.bfd.codec import encode
from bgp.bfd.model import Packet, State
from linux.netns import inside

pytestmark = pytest.mark.kernel

ONE, TWO, STRANGER = "10.9.5.1", "10.9.5.2", "10.9.5.3"
ONE6, TWO6 = "fd05::1", "fd05::2"
SEED = 5880
MUTATIONS = 3000


@pytest.fixture(scope="module")
def nodes(world: World) -> Iterator[tuple[Watcher, Watcher]]:
    world.wire("one", [f"{ONE}/24", f"{ONE6}/64"], "two", [f"{TWO}/24", f"{STRANGER}/24", f"{TWO6}/64"])
    one, two = Watcher(world, "one"), Watcher(world, "two")
    one.start({TWO: (ONE, every(50)), TWO6: (ONE6, every(50))})
    two.start({ONE: (TWO, every(50)), ONE6: ("", every(50))})
    try:
        yield one, two
    finally:
        one.stop()
        two.stop()


def all_up(nodes: tuple[Watcher, Watcher]) -> None:
    one, two = nodes
    until(
        "both are up", lambda: all(one.up(each) for each in (TWO, TWO6)) and all(two.up(each) for each in (ONE, ONE6))
    )


def sender(world: World, place: str, address: str, hops: int = 255) -> socket.socket:
    """A socket in a namespace, to speak to BFD's port with."""
    with inside(world.namespace(place)):
        opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
    opened.bind((address, 0))
    return opened


DOWN = Packet(state=State.DOWN, mine=77, yours=0, multiplier=3, transmit_us=1_000_000, receive_us=1_000_000)


def test_fifty_milliseconds_between_two_of_ours(nodes: tuple[Watcher, Watcher]) -> None:
    all_up(nodes)
    one, _ = nodes
    until("at its pace", lambda: {one.state(each).detection_ms for each in (TWO, TWO6)} == {150.0})


def test_who_is_more_than_a_hop_away_is_not_believed(nodes: tuple[Watcher, Watcher], world: World) -> None:
    all_up(nodes)
    one, _ = nodes
    one.configure({TWO: (ONE, every(50)), TWO6: (ONE6, every(50)), STRANGER: (ONE, every(300))})
    until("it is asked", lambda: "not spoken BFD" in one.state(STRANGER).reason)
    with sender(world, "two", STRANGER, 254) as far, sender(world, "two", STRANGER) as near:
        far.sendto(encode(DOWN), (ONE, 3784))
        until("status says why", lambda: "254 hops left instead of 255" in one.state(STRANGER).reason)
        assert one.state(STRANGER).state == "Down"
        near.sendto(encode(DOWN), (ONE, 3784))
        until("a neighbour is believed", lambda: one.state(STRANGER).state == "Init")
    one.configure({TWO: (ONE, every(50)), TWO6: (ONE6, every(50))})
    all_up(nodes)


def test_garbage_strangers_and_wrong_discriminators_change_nothing(
    nodes: tuple[Watcher, Watcher], world: World
) -> None:
    all_up(nodes)
    one, _ = nodes
    before = {peer: (state.since, state.losses) for peer, state in one.bfd.states().items()}
    chance = random.Random(SEED)
    with (
        sender(world, "two", TWO) as spoofed,
        sender(world, "two", STRANGER) as stranger,
        sender(world, "two", TWO6) as spoofed6,
    ):
        for _ in range(MUTATIONS):
            state = chance.choice(list(State))
            data = bytearray(encode(Packet(state=state, mine=7, yours=8, multiplier=1, transmit_us=9, receive_us=9)))
            for _ in range(chance.randrange(4)):
                data[chance.choice([0, 1, 2, 3, *range(12, 24)])] = chance.randrange(256)
            data = data[: chance.choice([24, 24, 24, 0, 1, 23])] + chance.randbytes(chance.choice([0, 0, 1, 300]))
            spoofed.sendto(data, (ONE, 3784))
            spoofed6.sendto(data, (ONE6, 3784))
            stranger.sendto(encode(DOWN), (ONE, 3784))
    time.sleep(0.3)  # two detection times: what was believed would show
    assert {peer: (state.since, state.losses) for peer, state in one.bfd.states().items()} == before
    all_up(nodes)


def test_sigterm_is_said_to_peers(nodes: tuple[Watcher, Watcher]) -> None:
    all_up(nodes)
    one, two = nodes
    losses, child = two.losses(), one.bfd.pid
    os.kill(child, signal.SIGTERM)
    until("the other hears AdminDown", lambda: "switched off" in two.state(ONE).reason, every_s=0.01)
    until("another child", lambda: one.bfd.pid not in (0, child))
    all_up(nodes)
    assert two.losses() == losses


def test_a_child_without_an_agent_ends_in_its_time(nodes: tuple[Watcher, Watcher], world: World) -> None:
    all_up(nodes)
    two = nodes[1]
    losses = two.losses()
    world.wire("three", ["10.9.7.3/24"], "two", ["10.9.7.2/24"])
    three = Watcher(world, "three", linger_s=1.0)
    both = {ONE: (TWO, every(50)), ONE6: ("", every(50)), "10.9.7.3": ("10.9.7.2", every(100))}
    two.configure(both)
    three.start({"10.9.7.2": ("10.9.7.3", every(100))})
    until("up", lambda: two.up("10.9.7.3"))
    child = three.bfd.pid
    three.stop()
    time.sleep(0.6)
    assert two.up("10.9.7.3")
    until("it is gone", lambda: os.waitpid(child, os.WNOHANG)[0] == child, timeout_s=3.0)
    assert two.state("10.9.7.3").reason == "BFD is switched off at the peer"
    assert two.losses() == losses
    two.configure({ONE: (TWO, every(50)), ONE6: ("", every(50))})


def test_an_address_that_comes_later(world: World) -> None:
    world.wire("late", ["10.9.8.1/24"], "two", ["10.9.8.2/24"])
    late = Watcher(world, "late")
    late.start({"10.9.8.2": ("10.9.8.7", every(100))})
    try:
        until("status says so", lambda: "10.9.8.7: Cannot assign" in late.state("10.9.8.2").reason)
        assert "not held back" in late.state("10.9.8.2").reason
        world.run("ip", "-n", world.namespace("late"), "addr", "add", "10.9.8.7/24", "dev", "two")
        until("it speaks", lambda: "Cannot assign" not in late.state("10.9.8.2").reason)
    finally:
        late.stop()


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Spinning processes, as many as say."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for each in spinning:
            each.kill()
            each.wait()


@pytest.fixture(scope="module")
def twenty(world: World) -> Iterator[tuple[Bird, Watcher, list[tuple[str, str]]]]:
    """BIRD and a node with twenty sessions between them."""
    pairs = [(f"10.9.6.{number}", f"10.9.6.{number + 100}") for number in range(1, 21)]
    world.wire("rack", [f"{each}/24" for each, _ in pairs], "full", [f"{each}/24" for _, each in pairs])
    bird = Bird(world, "rack", "10.9.6.1")
    neighbors = "".join(f'neighbor {mine} dev "full" local {theirs};' for theirs, mine in pairs)
    pace = 'interface "*" { min rx interval 100 ms; min tx interval 100 ms; multiplier 3; };'
    bird.start(f"protocol bfd {{ {pace} {neighbors} }}")
    node = Watcher(world, "full")
    node.start({theirs: (mine, every(100)) for theirs, mine in pairs})
    try:
        yield bird, node, pairs
    finally:
        node.stop()


def all_stand(bird: Bird, before: dict[str, Said]) -> bool:
    now = said(bird)
    return len(before) == 20 and all(now[peer].stands_since(each) for peer, each in before.items())


def test_twenty_sessions_at_once(twenty: tuple[Bird, Watcher, list[tuple[str, str]]]) -> None:
    bird, node, pairs = twenty
    until(
        "all are up",
        lambda: (
            [each.state for each in said(bird).values()] == ["Up"] * 20 and all(node.up(theirs) for theirs, _ in pairs)
        ),
    )
    until("at their pace", lambda: {node.state(theirs).detection_ms for theirs, _ in pairs} == {300.0})
    before = said(bird)
    time.sleep(2.0)  # seven detection times
    assert all_stand(bird, before)
    assert node.losses() == 0


def test_both_cores_busy_and_no_false_alarm(twenty: tuple[Bird, Watcher, list[tuple[str, str]]]) -> None:
    bird, node, pairs = twenty
    node.configure({theirs: (mine, every(300)) for theirs, mine in pairs})
    until("all are up", lambda: [each.state for each in said(bird).values()] == ["Up"] * 20)
    until("at their pace", lambda: {node.state(theirs).detection_ms for theirs, _ in pairs} == {900.0})
    before = said(bird)
    with busy(2 * (os.cpu_count() or 1)):
        time.sleep(10.0)  # the load itself is what is tried
    assert all_stand(bird, before)
    assert node.losses() == 0


def test_it_starts_fast_and_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    """What it imports is what an update of the environment could break while it runs."""
    source = (
        "import sys; sys.path.append('.'); before = set(sys.modules); import bgp.bfd.__main__; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    root = Path(__file__).parents[2]
    argv = [sys.executable, "-S", "-E", "-c", source]
    said = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    assert {each for each in said if each not in sys.stdlib_module_names} == {"bgp"}
