"""One session as a fold, and two of them against each other (RFC 5880, 6.8)."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from two_sides import Channel, World

from bgp.bfd import session as fold
from bgp.bfd.model import Diagnostic, Packet, State, Wanted
from bgp.bfd.session import Session

FAST = Wanted(transmit_us=100_000, receive_us=100_000, multiplier=3)
USUAL = Wanted(transmit_us=300_000, receive_us=300_000, multiplier=3)
WANTED = st.builds(
    Wanted,
    transmit_us=st.sampled_from([10_000, 50_000, 100_000, 300_000, 1_000_000, 2_000_000]),
    receive_us=st.sampled_from([10_000, 50_000, 100_000, 300_000, 1_000_000, 2_000_000]),
    multiplier=st.integers(1, 10),
)


def packet(state: State, **more: int) -> Packet:
    said = {"mine": 7, "yours": 1, "multiplier": 3, "transmit_us": 300_000, "receive_us": 300_000, **more}
    return Packet(state=state, **said)  # type: ignore[arg-type]


def session_in(state: State) -> Session:
    fresh = fold.start(USUAL, 1, 0.0)
    for said in {State.DOWN: [], State.INIT: [State.DOWN], State.UP: [State.INIT]}.get(state, []):
        fresh = fold.hear(fresh, packet(said), 0.0)
    made = fold.leave(fresh, 0.0) if state is State.ADMIN_DOWN else fresh
    assert made.state is state
    return made


TABLE = {
    State.DOWN: {State.ADMIN_DOWN: State.DOWN, State.DOWN: State.INIT, State.INIT: State.UP, State.UP: State.DOWN},
    State.INIT: {State.ADMIN_DOWN: State.DOWN, State.DOWN: State.INIT, State.INIT: State.UP, State.UP: State.UP},
    State.UP: {State.ADMIN_DOWN: State.DOWN, State.DOWN: State.DOWN, State.INIT: State.UP, State.UP: State.UP},
    State.ADMIN_DOWN: dict.fromkeys(State, State.ADMIN_DOWN),
}


@pytest.mark.parametrize(("mine", "theirs"), [(mine, theirs) for mine in State for theirs in State])
def test_the_state_machine_is_the_rfcs(mine: State, theirs: State) -> None:
    after = fold.hear(session_in(mine), packet(theirs), 0.1)
    assert after.state is TABLE[mine][theirs]
    if mine is State.UP and after.state is State.DOWN:
        assert after.diagnostic is Diagnostic.NEIGHBOR_SIGNALED_DOWN


def test_silence_is_measured_by_the_peers_multiplier_and_the_slower_interval() -> None:
    up = fold.hear(session_in(State.UP), packet(State.UP, multiplier=5, transmit_us=400_000, final=1), 10.0)
    assert up.detection_s == pytest.approx(2.0)
    assert fold.expire(up, 11.99).state is State.UP
    lost = fold.expire(up, 12.0)
    assert (lost.state, lost.diagnostic) == (State.DOWN, Diagnostic.TIME_EXPIRED)
    assert lost.remote.discriminator == 0
    slower = fold.hear(up, packet(State.UP, multiplier=5, transmit_us=10_000), 10.0)
    assert slower.detection_s == pytest.approx(1.5)


def test_what_arrived_counts_from_its_arrival_and_never_backwards() -> None:
    up = fold.hear(session_in(State.UP), packet(State.UP), 10.0)
    assert fold.hear(up, packet(State.UP), 9.0).heard_at == 10.0
    assert fold.hear(up, packet(State.UP), 10.5).detect_at == pytest.approx(11.4)


def test_a_late_waking_gives_one_interval_more_and_only_one() -> None:
    up = fold.hear(session_in(State.UP), packet(State.UP), 10.0)
    woke = fold.pardon(up, 12.0)
    assert fold.expire(woke, 12.1).state is State.UP
    again = fold.pardon(woke, 12.2)
    assert fold.expire(again, 12.31).state is State.DOWN
    assert fold.pardon(fold.hear(woke, packet(State.UP), 12.2), 20.0).detect_at == pytest.approx(20.3)


def test_a_final_is_owed_at_once_and_never_polls() -> None:
    polled = fold.hear(session_in(State.UP), packet(State.UP, poll=1), 10.0)
    quiet, answer = fold.due(replace(polled, send_at=99.0), 10.0, 0.5)
    assert answer is not None
    assert (answer.final, answer.poll) == (True, False)
    assert fold.due(quiet, 10.0, 0.5)[1] is None


@pytest.mark.parametrize(("multiplier", "least", "most"), [(3, 0.75, 1.0), (1, 0.75, 0.9)])
def test_jitter(multiplier: int, least: float, most: float) -> None:
    up = fold.tune(session_in(State.UP), replace(USUAL, multiplier=multiplier), 0.0)
    up = fold.hear(up, packet(State.UP, final=1), 0.0)
    waits = [fold.due(replace(up, send_at=5.0), 5.0, chance)[0].send_at - 5.0 for chance in (0.0, 0.5, 1.0)]
    assert waits[0] == pytest.approx(0.3 * least)
    assert waits[2] == pytest.approx(0.3 * most)


def test_a_slower_pace_waits_for_the_final_and_a_faster_one_does_not() -> None:
    up = fold.hear(session_in(State.UP), packet(State.UP, final=1), 1.0)
    slower = fold.tune(up, Wanted(transmit_us=900_000, receive_us=900_000, multiplier=3), 2.0)
    assert slower.polling
    assert slower.interval_us == 300_000
    assert slower.detection_s == pytest.approx(2.7)  # a slower peer must be allowed for at once
    assert fold.hear(slower, packet(State.UP, final=1), 2.1).interval_us == 900_000
    faster = fold.tune(up, Wanted(transmit_us=50_000, receive_us=50_000, multiplier=3), 2.0)
    quick_peer = packet(State.UP, transmit_us=50_000, receive_us=50_000)
    heard = fold.hear(faster, quick_peer, 2.0)
    assert heard.interval_us == 50_000
    assert heard.detection_s == pytest.approx(0.9)  # the peer has not agreed to be faster yet
    agreed = fold.hear(heard, replace(quick_peer, final=True), 2.1)
    assert agreed.detection_s == pytest.approx(0.15)
    assert not agreed.polling


def test_one_change_at_a_time() -> None:
    up = fold.hear(session_in(State.UP), packet(State.UP, final=1), 1.0)
    first = fold.tune(up, FAST, 2.0)
    second = fold.tune(first, Wanted(transmit_us=700_000, receive_us=700_000, multiplier=3), 2.0)
    assert second.advertised.transmit_us == 100_000
    after = fold.hear(second, packet(State.UP, final=1), 2.1)
    assert after.polling
    assert after.advertised.transmit_us == 700_000
    assert fold.hear(after, packet(State.UP, final=1), 2.2).agreed.transmit_us == 700_000


def test_a_peer_that_wants_nothing_is_told_nothing() -> None:
    up = fold.hear(session_in(State.UP), packet(State.UP, final=1, receive_us=0), 1.0)
    assert fold.due(up, 50.0, 0.5)[1] is None
    demanding = fold.hear(session_in(State.UP), packet(State.UP, final=1, demand=1), 1.0)
    assert fold.due(demanding, 50.0, 0.5)[1] is None
    assert fold.due(fold.tune(demanding, FAST, 50.0), 50.0, 0.5)[1] is not None  # but for a poll


@given(seed=st.integers(0, 2**32), one=WANTED, other=WANTED, loss=st.floats(0, 0.9), delay_s=st.floats(0, 2.0))
@settings(max_examples=50, deadline=None)
def test_two_converge_after_any_chaos(seed: int, one: Wanted, other: Wanted, loss: float, delay_s: float) -> None:
    world = World.of(seed, FAST, USUAL)
    world.channel = Channel(loss, delay_s)
    world.run(world.random.uniform(0, 6))
    world.tune(0, one)
    world.run(world.random.uniform(0, 3))
    world.restart(1, other)
    world.run(world.random.uniform(0, 6))
    world.channel = Channel()
    world.run(delay_s + 25.0)  # the slowest detection is 20 s: 10 times 2 s
    for mine, theirs in (world.sides, reversed(world.sides)):
        assert mine.state is State.UP
        assert not mine.polling
        assert mine.agreed == mine.advertised
        assert mine.advertised.transmit_us == mine.wanted.transmit_us
        assert mine.interval_us == max(mine.wanted.transmit_us, theirs.wanted.receive_us)
        slower = max(mine.wanted.receive_us, theirs.wanted.transmit_us)
        assert mine.detection_s == pytest.approx(theirs.wanted.multiplier * slower / 1e6)
    world.sent.clear()
    world.run(30.0)
    assert all(side.state is State.UP for side in world.sides), "no false alarm on a good channel"
    for which, side in enumerate(world.sides):
        times = [at for at, who, _ in world.sent if who == which]
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        widest = 1.0 if side.wanted.multiplier > 1 else 0.9
        assert min(gaps) >= 0.75 * side.interval_us / 1e6 - 1e-6
        assert max(gaps) <= widest * side.interval_us / 1e6 + 1e-6
    world.channel = Channel(loss=1.0)
    slowest = max(side.detection_s for side in world.sides)
    world.run(slowest + 0.01)
    assert all(side.state is State.DOWN for side in world.sides), "a dead channel is noticed in time"


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_nobody_is_fast_before_both_are_up(seed: int) -> None:
    world = World.of(seed, FAST, FAST)
    world.channel = Channel(loss=1.0)
    world.run(20.0)
    for which in (0, 1):
        times = [at for at, who, _ in world.sent if who == which]
        assert 20 <= len(times) <= 28
        assert all(said.transmit_us >= 1_000_000 for _, _, said in world.sent)


def test_leaving_is_said_at_the_old_pace() -> None:
    world = World.of(1, FAST, FAST)
    world.run(5.0)
    world.sides[0] = fold.leave(world.sides[0], world.now)
    world.run(0.05)
    assert world.sides[1].state is State.DOWN
    assert world.sides[1].remote.state is State.ADMIN_DOWN
    world.sent.clear()
    world.run(0.3)
    assert len([1 for _, who, said in world.sent if who == 0 and said.state is State.ADMIN_DOWN]) >= 3


@given(seed=st.integers(0, 2**32), away_s=st.floats(0, 0.25))
@settings(max_examples=50, deadline=None)
def test_another_process_goes_on_and_the_peer_sees_nothing(seed: int, away_s: float) -> None:
    world = World.of(seed, FAST, FAST)
    world.run(5.0)
    standing = fold.standing(world.sides[0])
    assert standing is not None
    since = world.now
    world.sides[0] = replace(world.sides[0], send_at=float("inf"), heard_at=None)
    world.run(away_s / 2)
    before = world.sides[1]
    world.sides[0] = fold.resume(FAST, standing, world.now)
    world.run(3.0)
    assert world.sides[1].state is before.state is State.UP
    assert world.sides[0].state is State.UP
    assert not world.sides[0].polling
    assert all(said.state is State.UP for at, _, said in world.sent if at > since)
