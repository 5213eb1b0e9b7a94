"""Large new sets are filled before the batch that puts them to use, and nobody can tell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from core.nftables import Chain, Element, Hook, Ruleset, Set
from core.reconcile import Plan, diff
from linux import nft_ahead
from linux.nft import NftDriver
from linux.nft_objects import ChainName, CounterName, Object, SetName, Value, flatten

pytestmark = pytest.mark.kernel

FRAME = Ruleset(chains={"forward": Chain(hook=Hook(type="filter", hook="forward", priority=0), rules=("drop",))})

FULL = Ruleset(
    chains={
        "forward": Chain(
            hook=Hook(type="filter", hook="forward", priority=0),
            rules=(
                "meta mark set ip saddr map @identity",
                "counter name meta mark map @counters",
                "ip daddr vmap @ways",
            ),
        ),
        "way": Chain(rules=("drop",)),
    },
    sets={
        "identity": Set(key=("ipv4_addr",), value="mark"),
        "counters": Set(key=("mark",), value="counter"),
        "ways": Set(key=("ipv4_addr",), value="verdict"),
        "few": Set(key=("ipv4_addr",)),
    },
    elements={
        Element("few", "10.0.0.1"): "",
        **{Element("identity", f"10.0.{n >> 8}.{n & 255}"): str(n % 7) for n in range(nft_ahead.LARGE)},
        **{Element("counters", str(n)): f"c{n % 5}" for n in range(nft_ahead.LARGE)},
        **{Element("ways", f"10.0.{n >> 8}.{n & 255}"): "goto way" for n in range(nft_ahead.LARGE)},
    },
    counters=frozenset(f"c{n}" for n in range(6)),
)


@pytest.fixture
def driver() -> Iterator[NftDriver]:
    made = NftDriver()
    yield made
    made.close()


async def test_a_large_new_table_ends_as_it_should_and_is_nobody_elses_doing(driver: NftDriver) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def listen() -> None:
        async for who in driver.foreign_changes():
            heard.put_nowait(who)

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    for state in (FRAME, FULL, FRAME, FULL):
        assert await driver.apply(diff(flatten(state), await driver.read())) == {}
        assert await driver.read() == flatten(state)
    await asyncio.sleep(0)
    assert heard.empty()
    task.cancel()


def test_what_is_done_ahead_is_new_data_on_a_table_that_has_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    plan: Plan[Object, Value] = diff(flatten(FULL), flatten(FRAME))
    frame = dict(flatten(FRAME))
    monkeypatch.setattr(nft_ahead, "PART", 900)
    made, *parts = nft_ahead.ahead(plan, frame)
    assert [len(part.upsert) for part in parts] == [900, 900, 200]
    filled = Plan({key: value for part in parts for key, value in part.upsert.items()}, {})
    assert set(made.upsert) == {SetName("identity"), SetName("counters"), *(CounterName(f"c{n}") for n in range(5))}
    assert {key.set for key in filled.upsert if isinstance(key, Element)} == {"identity", "counters"}
    rest = nft_ahead.without(plan, {*made.upsert, *filled.upsert})
    assert set(rest.upsert) == plan.upsert.keys() - made.upsert.keys() - filled.upsert.keys()
    assert list(nft_ahead.ahead(plan, {})) == [], "a table without chains closes nothing yet"
    there = frame | {SetName("identity"): FULL.sets["identity"], SetName("counters"): FULL.sets["counters"]}
    assert list(nft_ahead.ahead(plan, there)) == [], "what rules may ask is changed with everything else"


async def test_when_the_rest_is_refused_packets_see_no_change_and_the_next_round_goes_on(driver: NftDriver) -> None:
    assert await driver.apply(diff(flatten(FRAME), {})) == {}
    bad = replace(FULL, chains={**FULL.chains, "bad": Chain(rules=("ip saddr @nowhere drop",))})
    plan = diff(flatten(bad), await driver.read())
    failed = await driver.apply(plan)
    assert failed.keys() >= {key for key in plan.upsert if isinstance(key, ChainName)}
    assert "nowhere" in str(failed[ChainName("bad")])
    found = await driver.read()
    assert found[ChainName("forward")] == flatten(FRAME)[ChainName("forward")]
    assert Element("few", "10.0.0.1") not in found
    assert await driver.apply(diff(flatten(FULL), found)) == {}
    assert await driver.read() == flatten(FULL)
