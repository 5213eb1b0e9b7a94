"""A host's clock jumps, there or back: nobody's address goes, no address is given twice or before it has rested.

Cool-down is by the time of day, which nodes share as well as they can. Grace is by each agent's steady clock.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta

import pytest

from datastore.ipam.model import Exhausted
from tests.datastore.ipam import ipam_collect_world as collected
from tests.datastore.ipam.ipam_world import Cluster, pool, settings

JUMPS = [timedelta(hours=-1), timedelta(days=-365), timedelta(hours=1), timedelta(days=365)]
YEAR = timedelta(days=365)


@pytest.mark.parametrize("jump", JUMPS)
def test_what_pods_hold_does_not_depend_on_the_time_of_day(jump: timedelta) -> None:
    cluster = Cluster(pool("pods", "10.0.0.0/30", block_size=30), settings(ip_cooldown_seconds=60))
    held = {each: cluster.give(each) for each in "abc"}
    cluster.now += jump
    assert {each: cluster.give(each) for each in "abc"} == held
    held["d"] = cluster.give("d")
    assert len({address for given in held.values() for address in given}) == 4
    for each in "abcd":
        assert cluster.take_back(each) == held[each]


def test_a_clock_that_goes_back_gives_nothing_before_it_has_rested() -> None:
    cluster = Cluster(pool("pods", "10.0.0.0/32", block_size=32), settings(ip_cooldown_seconds=60))
    given = cluster.give("first")
    freed = cluster.now
    cluster.take_back("first")
    for cluster.now in (freed - timedelta(hours=1), freed - timedelta(seconds=1), freed + timedelta(seconds=59)):
        with pytest.raises(Exhausted, match=r"the next has rested at 2026-01-01T12:01:00\.000000Z"):
            cluster.decide("second")
    cluster.now = freed + timedelta(seconds=60)
    assert cluster.give("second") == given


def test_what_was_freed_under_a_clock_that_was_far_ahead_is_had_back_without_a_cool_down() -> None:
    cluster = Cluster(pool("pods", "10.0.0.0/31", block_size=31), settings(ip_cooldown_seconds=60))
    given = [*cluster.give("a"), *cluster.give("b")]
    cluster.now += YEAR
    cluster.take_back("a")
    cluster.now -= YEAR
    with pytest.raises(Exhausted, match="2027"):
        cluster.decide("c")
    cluster.put(settings(ip_cooldown_seconds=0))
    assert cluster.give("c") == given[:1]


def test_a_clock_that_jumps_all_the_time_gives_nothing_twice_and_loses_nothing() -> None:
    chance = random.Random(20_261_130)
    cluster = Cluster(pool("pods", "10.0.0.0/28", block_size=30), settings(ip_cooldown_seconds=1))
    noon = cluster.now
    live: dict[str, str] = {}
    done: Counter[str] = Counter()
    for number in range(600):
        cluster.now = noon + timedelta(seconds=number / 10 + chance.uniform(-5, 5))
        if live and chance.random() < 0.5:
            handle = chance.choice(sorted(live))
            assert cluster.take_back(handle) == [live.pop(handle)]
            continue
        try:
            (address,) = cluster.give(f"h{number}", chance.choice("ab"))
        except Exhausted:
            done["refused"] += 1
            continue
        assert address not in live.values()
        live[f"h{number}"] = address
        done["given"] += 1
    assert done["given"] > 100
    assert done["refused"]
    for handle in sorted(live):
        cluster.take_back(handle)
    cluster.now += timedelta(days=1)
    assert len({cluster.give(f"end-{number}")[0] for number in range(16)}) == 16


@pytest.mark.parametrize("jump", JUMPS)
def test_grace_is_of_the_steady_clock(jump: timedelta) -> None:
    address = "10.0.0.7"
    seen = collected.world(
        collected.pool(),
        collected.node("n1"),
        collected.block(collected.B0, _7="net.c1"),
        collected.affinity(collected.B0),
        collected.handle("c1", address, collected.B0),
    )
    assert seen.scan(0.0) == set()
    seen.now += jump
    assert seen.scan(collected.GRACE / 2) == set()
    seen.now -= 2 * jump
    assert seen.scan(collected.GRACE - 0.001) == set()
    assert seen.scan(collected.GRACE) == {"container c1"}
