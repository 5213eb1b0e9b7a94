"""Our BFD against BIRD's, with what BIRD itself says of the session."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from bgp_world import Bird, World, until
from watcher import Said, Watcher, every, said, silent

pytestmark = pytest.mark.kernel

TOR4, NODE4, TOR6, NODE6 = "10.9.1.1", "10.9.1.2", "fd09::1", "fd09::2"
TOR3, NODE3 = "10.9.3.1", "10.9.3.2"

BODY = """
protocol bfd bfd1 {{ interface "*" {{ min rx interval {ms} ms; min tx interval {ms} ms; multiplier {multiplier}; }};
  neighbor {four}; neighbor {six}; neighbor {third}; }}
"""


def body(ms: int = 300, multiplier: int = 3) -> str:
    return BODY.format(ms=ms, multiplier=multiplier, four=NODE4, six=NODE6, third=NODE3)


def pace(bird: Bird, peer: str) -> tuple[str, float, float]:
    """What BIRD prints: state, how often it sends, after how long a silence it gives up."""
    found = said(bird).get(peer, Said())
    return found.state, found.interval, found.timeout


@pytest.fixture(scope="module")
def bird(world: World) -> Bird:
    world.wire("tor", [f"{TOR4}/24", f"{TOR6}/64"], "node", [f"{NODE4}/24", f"{NODE6}/64"])
    made = Bird(world, "tor", TOR4)
    made.start(body())
    return made


@pytest.fixture(scope="module")
def node(bird: Bird, world: World) -> Iterator[Watcher]:
    made = Watcher(world, "node")
    made.start({TOR4: (NODE4, every(300)), TOR6: ("", every(300))})
    try:
        yield made
    finally:
        made.stop()


def both_up(bird: Bird, node: Watcher) -> None:
    for here, there in ((TOR4, NODE4), (TOR6, NODE6)):
        until(f"{here} is up for both", lambda here=here, there=there: node.up(here) and pace(bird, there)[0] == "Up")


def test_up_in_both_families_at_the_pace_that_both_want(bird: Bird, node: Watcher) -> None:
    both_up(bird, node)
    for peer in (NODE4, NODE6):
        until(f"{peer} is at its pace", lambda peer=peer: pace(bird, peer) == ("Up", 0.3, 0.9))
    until("we are too", lambda: {node.state(each).detection_ms for each in (TOR4, TOR6)} == {900.0})
    assert node.state(TOR4).interval_ms == 300.0
    assert node.bfd.priority.startswith(("SCHED_FIFO", "nice"))


def test_other_intervals_are_negotiated_while_it_stays_up(bird: Bird, node: Watcher) -> None:
    both_up(bird, node)
    losses, since = node.losses(), [node.state(each).since for each in (TOR4, TOR6)]
    node.configure({TOR4: (NODE4, every(100)), TOR6: ("", every(700, 2))})
    until(
        "BIRD sends as it must", lambda: pace(bird, NODE4) == ("Up", 0.3, 0.9) and pace(bird, NODE6)[1:] == (0.7, 1.4)
    )
    bird.configure(body(50, 5))
    until("100 ms with us as the slower", lambda: pace(bird, NODE4) == ("Up", 0.1, 0.3))
    until("we wait for five of its packets", lambda: node.state(TOR4).detection_ms == 500.0)
    node.configure({TOR4: (NODE4, every(50)), TOR6: ("", every(300))})
    until("50 ms", lambda: pace(bird, NODE4) == ("Up", 0.05, 0.15) and node.state(TOR4).detection_ms == 250.0)
    bird.configure(body())
    node.configure({TOR4: (NODE4, every(300)), TOR6: ("", every(300))})
    until("the usual pace", lambda: pace(bird, NODE4) == pace(bird, NODE6) == ("Up", 0.3, 0.9))
    assert node.losses() == losses
    assert [node.state(each).since for each in (TOR4, TOR6)] == since


@pytest.mark.parametrize(("ms", "bound_s"), [(300, 1.0), (100, 0.4)])
def test_silence_is_noticed_in_time_by_us(bird: Bird, node: Watcher, world: World, ms: int, bound_s: float) -> None:
    bird.configure(body(ms))
    node.configure({TOR4: (NODE4, every(ms)), TOR6: ("", every(ms))})
    both_up(bird, node)
    until("at its pace", lambda: {node.state(each).detection_ms for each in (TOR4, TOR6)} == {3.0 * ms})
    with silent(world, "tor", "node"):
        begun = time.monotonic()
        took = [node.lost_at(each, begun) - begun for each in (TOR4, TOR6)]
        assert max(took) < bound_s
        assert min(took) > 1.9 * ms / 1000
        assert node.state(TOR4).reason.startswith("the path failed: time expired")
    both_up(bird, node)
    assert not node.state(TOR4).lost


def test_silence_is_noticed_in_time_by_the_router(bird: Bird, node: Watcher, world: World) -> None:
    bird.configure(body(100))
    node.configure({TOR4: (NODE4, every(100)), TOR6: ("", every(100))})
    both_up(bird, node)
    until("at its pace", lambda: pace(bird, NODE4) == ("Up", 0.1, 0.3))
    with silent(world, "node", "tor"):
        begun = time.monotonic()
        took = until("BIRD has lost us", lambda: pace(bird, NODE4)[0] != "Up", every_s=0.01)
        assert took < 0.6  # what birdc takes is in it
        assert node.lost_at(TOR4, begun) - begun < 0.6
        assert "the peer says so" in node.state(TOR4).reason
    both_up(bird, node)


def test_a_child_that_did_not_run_for_a_while_does_not_take_the_router_for_dead(bird: Bird, node: Watcher) -> None:
    bird.configure(body(300, 3))
    node.configure({TOR4: (NODE4, every(300, 20)), TOR6: ("", every(300, 20))})
    both_up(bird, node)
    until("BIRD waits longer for us", lambda: pace(bird, NODE4)[2] == pace(bird, NODE6)[2] == 6.0)
    until("we do not for it", lambda: {node.state(each).detection_ms for each in (TOR4, TOR6)} == {900.0})
    losses, before = node.losses(), said(bird)
    os.kill(node.bfd.pid, signal.SIGSTOP)
    time.sleep(2.0)  # twice as long as we would wait
    os.kill(node.bfd.pid, signal.SIGCONT)
    time.sleep(1.2)
    assert node.losses() == losses
    assert all(said(bird)[peer].stands_since(before[peer]) for peer in (NODE4, NODE6))
    node.configure({TOR4: (NODE4, every(300)), TOR6: ("", every(300))})


def test_a_router_that_restarts_comes_up_again(bird: Bird, node: Watcher) -> None:
    both_up(bird, node)
    assert bird.process is not None
    begun = time.monotonic()
    bird.process.kill()
    bird.process.wait()
    node.lost_at(TOR4, begun)
    bird.control.unlink()
    bird.start(body())
    both_up(bird, node)


def test_one_session_leaves_and_the_other_is_not_touched(bird: Bird, node: Watcher) -> None:
    both_up(bird, node)
    since = node.state(TOR6).since
    node.configure({TOR6: ("", every(300))})
    until("BIRD hears that we have left", lambda: pace(bird, NODE4)[0] == "Down", timeout_s=0.8)
    assert {str(peer) for peer in node.bfd.states()} == {TOR6}
    node.configure({TOR4: (NODE4, every(300)), TOR6: ("", every(300))})
    both_up(bird, node)
    assert node.state(TOR6).since == since


def test_a_bfd_that_starts_anew_on_the_router_is_not_a_dead_path(bird: Bird, node: Watcher) -> None:
    both_up(bird, node)
    losses, since = node.losses(), node.state(TOR4).since
    bird.ask("restart", "bfd1")
    until("a new session", lambda: node.state(TOR4).since != since)
    both_up(bird, node)
    assert node.losses() == losses


@pytest.fixture
def other(bird: Bird, world: World) -> Iterator[Watcher]:
    """Another node, whose child outlives it."""
    world.wire("tor", [f"{TOR3}/24"], "other", [f"{NODE3}/24"])
    made = Watcher(world, "other", linger_s=60.0)
    made.start({TOR3: (NODE3, every(300))})
    try:
        yield made
    finally:
        made.stop()


def test_the_session_stands_while_an_agent_restarts_and_when_the_child_dies(bird: Bird, other: Watcher) -> None:
    until(
        "it is up at its pace",
        lambda: pace(bird, NODE3) == ("Up", 0.3, 0.9) and other.state(TOR3).detection_ms == 900.0,
    )
    before, child, since = said(bird)[NODE3], other.bfd.pid, other.state(TOR3).since
    other.stop()
    time.sleep(1.5)  # longer than BIRD would wait for us
    assert said(bird)[NODE3].stands_since(before)
    other.start({TOR3: (NODE3, every(300))})
    until("the next agent takes it over", lambda: other.up(TOR3))
    assert (other.bfd.pid, other.state(TOR3).since) == (child, since)

    os.kill(child, signal.SIGKILL)
    until("another child goes on", lambda: other.bfd.pid not in (0, child) and other.up(TOR3), every_s=0.01)
    time.sleep(1.5)  # longer than BIRD would wait for us
    assert said(bird)[NODE3].stands_since(before)
    assert not other.state(TOR3).lost
    other.configure({})
    until("no session, no child", lambda: other.bfd.pid == 0)
    assert said(bird)[NODE3].state == "Down"
