"""Rendered rulesets through the nft driver: written, read back and turned into one another without a difference."""

from __future__ import annotations

from random import Random

import pytest
from policy_cluster import snapshot
from policy_worlds import World, worlds

from core.reconcile import diff
from felix.filter import base
from linux.netns import scratch_namespace
from linux.nft import NftDriver
from linux.nft_parts import Flattener
from policy.compile import compile
from policy.render import render


@pytest.mark.kernel
async def test_each_ruleset_replaces_the_one_before_and_reads_back_as_written() -> None:
    with scratch_namespace():
        driver, flattener = NftDriver(), Flattener()
        try:
            for seed in range(200, 215):
                world: World = worlds().draw(Random(seed))
                wanted = flattener.flatten(
                    {"frame": base("drop", ipip=False), **render(compile(snapshot(world.resources), world.local))}
                ).flat()
                assert not await driver.apply(diff(wanted, await driver.read()))
                assert await driver.read() == wanted
        finally:
            driver.close()
