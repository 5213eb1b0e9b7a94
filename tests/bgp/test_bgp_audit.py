"""What counts as a difference, and since when: the audit's own judgement, without a kernel."""

from __future__ import annotations

import itertools
import time
from ipaddress import ip_address, ip_network

import pytest
from bgp_world import block, node, pool

from bgp.attributes import Attributes
from bgp.reporting.audit import HEARD, KERNEL, MOVING_S, STANDING_S, TOLD, Standing, View, differences, expected
from bgp.reporting.auditor import calm
from bgp.telling.adverts import Advert, Telling, Told
from core.prefix import Prefix
from core.resources import Resource
from core.resources.status import Difference
from core.snapshot import Snapshot
from linux.model import NextHop, Route

PEER = ip_address("10.9.1.1")
VIA = Route(next_hops=(NextHop(2, PEER),))
ELSEWHERE = Route(next_hops=(NextHop(2, ip_address("10.9.1.9")),))


def net(text: str) -> Prefix:
    return Prefix.of(ip_network(text))


def snapshot(*resources: Resource) -> Snapshot:
    return Snapshot().apply(1, [(each.key, each) for each in resources])


def spelt(view: View) -> list[tuple[str, str, str]]:
    found = differences(view, lambda hop: f"{hop.gateway} on eth0")
    return sorted((each.stage, each.prefix, each.why) for each in found)


NODES = (node("a", "10.9.1.2/24"), node("b", "10.9.2.2/24"))


@pytest.mark.parametrize(
    ("resources", "missed"),
    [
        ([pool("p", "10.244.0.0/16"), block("10.244.1.0/26", "b")], {"10.244.1.0/26": "b"}),
        ([pool("p", "10.244.0.0/16"), block("10.244.1.0/26", "a")], {}),
        ([pool("p", "10.244.0.0/16", blockSize=32), block("10.244.1.7/32", "b")], {}),
        (
            [pool("p", "10.244.0.0/16", blockSize=32), block("10.244.1.7/32", "b", allocations={"10.244.1.7": "pod"})],
            {"10.244.1.7/32": "b"},
        ),
        ([pool("p", "10.244.0.0/16"), block("10.244.1.0/26", "gone")], {}),
        ([pool("p", "10.244.0.0/16", ipipMode="Always"), block("10.244.1.0/26", "b")], {}),
        ([pool("p", "10.244.0.0/16", ipipMode="Fallback"), block("10.244.1.0/26", "b")], {}),
        ([pool("p", "10.244.0.0/16", disabled=True), block("10.244.1.0/26", "b")], {}),
        ([pool("p", "10.244.0.0/16", disableBGPExport=True), block("10.244.1.0/26", "b")], {}),
        ([pool("p", "fd00::/48"), block("fd00::/122", "b")], {}),
        ([block("10.244.1.0/26", "b")], {}),
    ],
    ids=[
        "remote",
        "own",
        "one free address",
        "one address",
        "no owner",
        "tunnel",
        "fallback",
        "disabled",
        "not exported",
        "v6",
        "no pool",
    ],
)
def test_what_a_node_should_hear(resources: list[Resource], missed: dict[str, str]) -> None:
    found = expected(snapshot(*NODES, *resources), "a")
    assert {str(prefix): owner for prefix, owner in found.items()} == missed


def test_what_a_drained_node_does_not_tell_is_not_missed() -> None:
    drained = node("b", "10.9.2.2/24", maintenance="Withdrawn")
    leaving = node("c", "10.9.3.2/24", maintenance="GracefulShutdown")
    blocks = (block("10.244.1.0/26", "b"), block("10.244.2.0/26", "c"))
    found = expected(snapshot(NODES[0], drained, leaving, pool("p", "10.244.0.0/16"), *blocks), "a")
    assert [str(prefix) for prefix in found] == ["10.244.2.0/26"]


def test_each_stage_is_held_against_the_one_before_it() -> None:
    telling, prefix = Telling(1, 1), ip_network
    why = {net("10.244.3.0/26"): "BGPFilter strict rejects it"}
    view = View(
        wanted={Advert(PEER, prefix("10.244.1.0/26")): Told(telling, Attributes()), Advert(PEER, None): Told(telling)},
        acknowledged={Advert(PEER, prefix("10.244.1.0/26")): Told(telling, Attributes(med=1))},
        expected={net(f"10.244.{number}.0/26"): "b" for number in (2, 3, 4, 5)},
        refused=lambda prefix: why.get(prefix, ""),
        routes={net(f"10.244.{number}.0/26"): VIA for number in (4, 5, 6)},
        kernel={
            net("10.244.4.0/26"): VIA,
            net("10.244.5.0/26"): ELSEWHERE,
            net("10.244.7.0/26"): VIA,
        },
        errors={net("10.244.6.0/26"): "Network is unreachable"},
    )
    assert spelt(view) == [
        (HEARD, "10.244.2.0/26", ""),
        (HEARD, "10.244.3.0/26", "BGPFilter strict rejects it"),
        (
            KERNEL,
            "10.244.5.0/26",
            "the kernel's route goes through 10.9.1.9 on eth0; it should go through 10.9.1.1 on eth0",
        ),
        (
            KERNEL,
            "10.244.6.0/26",
            "the kernel has no route; it should go through 10.9.1.1 on eth0: Network is unreachable",
        ),
        (KERNEL, "10.244.7.0/26", "the kernel has it through 10.9.1.1 on eth0, and nothing asks for it"),
        (TOLD, "10.244.1.0/26", "ExaBGP has not acknowledged it"),
    ]


def test_a_wider_prefix_stands_for_the_blocks_within() -> None:
    wide = {net("10.244.0.0/16"): VIA}
    view = View(expected={net("10.244.9.0/26"): "b"}, routes=wide, kernel=wide)
    assert spelt(view) == []


def lost(number: int, stage: str = HEARD) -> Difference:
    return Difference(stage=stage, prefix=f"10.244.{number}.0/26")


def test_a_difference_counts_once_it_has_stood() -> None:
    standing = Standing()
    assert not standing.look([lost(1)], frozenset(), 100.0)
    assert not standing.look([lost(1)], frozenset(), 100.0 + STANDING_S - 0.1)
    assert standing.look([lost(1), lost(2)], frozenset(), 100.0 + STANDING_S)
    assert standing.found == (lost(1),)
    assert standing.look([lost(2)], frozenset(), 100.0 + STANDING_S + 1)
    assert standing.found == ()


def test_one_that_comes_and_goes_does_not_count() -> None:
    standing = Standing()
    for second in range(20):
        assert not standing.look([lost(1)] if second % 2 else [], frozenset(), float(second))


def test_a_rolling_change_does_not_count_while_it_rolls() -> None:
    """Fifty blocks move, one a second; each is on its way for two."""
    standing = Standing()
    for second in range(60):
        moving = [lost(number) for number in range(50) if number <= second < number + 2]
        standing.look(moving, frozenset(), float(second))
        assert standing.found == ()


def test_what_is_worked_off_does_not_count_and_what_stays_does() -> None:
    """Twenty thousand adverts take ten seconds; the one that is refused is named when the others are through."""
    standing = Standing()
    for second in range(10):
        left = [lost(number % 250, TOLD) for number in range(250 - 25 * second)]
        standing.look(left, frozenset(), float(second))
        assert standing.found == ()
    for second in range(10, 14):
        standing.look([lost(0, TOLD)], frozenset(), float(second))
    assert standing.found == (lost(0, TOLD),)


def test_younger_ones_that_go_do_not_hide_an_older_one() -> None:
    standing = Standing()
    for second in range(5):
        passing = [lost(100 + second)] if second else []
        standing.look([lost(1), *passing], frozenset(), float(second))
    assert standing.found == (lost(1),)


def test_a_stage_that_is_known_to_move_is_given_more_time() -> None:
    standing = Standing()
    for second in (0.0, STANDING_S, MOVING_S - 1):
        standing.look([lost(1), lost(2, KERNEL)], frozenset({HEARD}), second)
    assert standing.found == (lost(2, KERNEL),)
    standing.look([lost(1), lost(2, KERNEL)], frozenset({HEARD}), MOVING_S)
    assert standing.found == (lost(1), lost(2, KERNEL))


async def test_it_looks_once_nothing_is_written_any_more() -> None:
    counted = [1, 1, 2, 2, 3, 3]
    await calm(lambda: counted.pop(0) if counted else 3, calm_s=0.001, patience_s=60.0)
    assert not counted


async def test_it_does_not_wait_for_ever() -> None:
    begun = time.monotonic()
    await calm(itertools.count().__next__, calm_s=0.001, patience_s=0.05)
    assert time.monotonic() - begun >= 0.05
