"""Large new sets are filled before the batch that puts them to use, and nobody can tell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from core.nftables import Chain, Element, Hook, Ruleset, Set
from core.reconcile import Plan, diff
from linux import nft_phases
from linux.nft import NftDriver
from linux.nft_objects import ChainName, CounterName, Object, SetName, Value, flatten
from linux.nft_phases import Marks, phases

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
        **{Element("identity", f"10.0.{n >> 8}.{n & 255}"): str(n % 7) for n in range(nft_phases.LARGE)},
        **{Element("counters", str(n)): f"c{n % 5}" for n in range(nft_phases.LARGE)},
        **{Element("ways", f"10.0.{n >> 8}.{n & 255}"): "goto way" for n in range(nft_phases.LARGE)},
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


def test_large_new_sets_are_filled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    plan: Plan[Object, Value] = diff(flatten(FULL), flatten(FRAME))
    frame = dict(flatten(FRAME))
    monkeypatch.setattr(nft_phases, "PART", 900)
    made, *parts, rest, switch, after = phases(plan, frame, Marks())
    assert [len(part.upsert) for part in parts] == [900, 900, 200]
    filled = {key: value for part in parts for key, value in part.upsert.items()}
    assert set(made.upsert) == {SetName("identity"), SetName("counters"), *(CounterName(f"c{n}") for n in range(5))}
    assert {key.set for key in filled if isinstance(key, Element)} == {"identity", "counters"}
    assert ChainName("way") in rest.upsert
    assert {key.set for key in rest.upsert if isinstance(key, Element)} == {"ways", "few"}
    assert set(switch.upsert) == {ChainName("forward")}
    assert not after
    assert list(phases(plan, {}, Marks())) == [plan], "a table without chains closes nothing yet"


TABLE = Ruleset(
    chains={
        **FRAME.chains,
        "judge": Chain(rules=("meta mark set ip saddr map @identity", "meta mark set meta mark map @answers")),
    },
    sets={
        "identity": Set(key=("ipv4_addr",), value="mark"),
        "answers": Set(key=("mark",), value="mark"),
        "verdicts": Set(key=("mark",), value="verdict"),
    },
    elements={
        Element("identity", "10.0.0.1"): "1",
        Element("answers", "1"): "9",
        Element("verdicts", "9"): "accept",
    },
)
"""10.0.0.1 is of class 1, whose outcome is 9."""


def phased(before: Ruleset, after: Ruleset) -> tuple[set[Object], set[Object], set[Object]]:
    """What is done ahead, in the switch and after it."""
    plan, marks = diff(flatten(after), flatten(before)), Marks()
    marks.learn(flatten(before))
    shape = {key: value for key, value in flatten(before).items() if not isinstance(key, Element)}
    *ahead, switch, last = phases(plan, shape, marks)
    first = {key for each in ahead for key in (*each.upsert, *each.delete)}
    return first, {*switch.upsert, *switch.delete}, {*last.upsert, *last.delete}


def test_what_is_said_of_a_mark_that_is_new_comes_first_and_of_one_that_is_gone_goes_last() -> None:
    elements = {
        Element("identity", "10.0.0.1"): "2",
        Element("answers", "2"): "8",
        Element("verdicts", "8"): "accept",
    }
    ahead, switch, last = phased(TABLE, replace(TABLE, elements=elements))
    assert ahead == {Element("answers", "2"), Element("verdicts", "8")}
    assert switch == {Element("identity", "10.0.0.1")}
    assert last == {Element("answers", "1"), Element("verdicts", "9")}


def test_what_is_said_of_a_mark_that_packets_have_changes_with_everything_else() -> None:
    elements = {
        Element("identity", "10.0.0.1"): "1",
        Element("identity", "10.0.0.2"): "2",
        Element("answers", "1"): "7",
        Element("answers", "2"): "9",
        Element("verdicts", "9"): "accept",
    }
    gone = replace(TABLE, elements=elements)
    assert phased(TABLE, gone) == (
        {Element("answers", "2")},
        {Element("identity", "10.0.0.2"), Element("answers", "1")},
        set(),
    )
    ahead, switch, last = phased(gone, TABLE)
    assert not ahead
    assert switch == {Element("identity", "10.0.0.2"), Element("answers", "1")}
    assert last == {Element("answers", "2")}


def test_a_set_whose_type_changes_changes_with_everything_else() -> None:
    wider = {**TABLE.sets, "answers": Set(key=("mark",), value="mark", interval=True), "new": Set(key=("mark",))}
    plan = diff(flatten(replace(TABLE, sets=wider)), flatten(TABLE))
    assert list(phases(plan, flatten(TABLE), Marks())) == [plan]


def test_a_base_chain_comes_and_goes_in_the_switch_and_others_around_it() -> None:
    hooked = Chain(hook=Hook(type="filter", hook="input", priority=0), rules=("jump asked",))
    more = replace(TABLE, chains={**TABLE.chains, "input": hooked, "asked": Chain(rules=("drop",))})
    assert phased(TABLE, more) == ({ChainName("asked")}, {ChainName("input")}, set())
    assert phased(more, TABLE) == (set(), {ChainName("input")}, {ChainName("asked")})


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
