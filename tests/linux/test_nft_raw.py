"""Elements and counters written without libnftables: it lists the same as if it had written them itself."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, summarize_address_range

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.nftables import Chain, Element, Hook, Ruleset, Set
from core.reconcile import Plan, Reconciler, diff
from linux.nfnetlink import Nfnetlink
from linux.nft import NftDriver
from linux.nft_batch import requests
from linux.nft_counters import Counted, CounterReader, read_counters
from linux.nft_objects import CounterName, Object, SetName, Value, flatten
from linux.nft_wire import SUBSYSTEM, add_counter, delete_counter, speaks

pytestmark = pytest.mark.kernel

FRAME = Ruleset(chains={"c": Chain(rules=("drop",))}, counters=frozenset({"one", "two/b.c"}))
BITS = {"mark": 32, "inet_proto": 8, "inet_service": 16, "ipv4_addr": 32, "ipv6_addr": 128}
VALUES = {
    "": [""],
    "verdict": ["accept", "drop", "return", "goto c", "jump c"],
    "mark": ["0", "65536", "4294967295"],
    "counter": sorted(FRAME.counters),
}


def nft(line: str) -> str:
    return subprocess.run(["nft", *line.split()], check=True, capture_output=True, text=True).stdout


def listed(table: str) -> list[object]:
    """All that nft says of a table, but for its name and handles."""
    said = json.loads(nft(f"-n -j list table inet {table}"))["nftables"][2:]
    for entry in said:
        for described in entry.values():
            described.pop("handle", None)
            described.pop("table", None)
            if "elem" in described:
                described["elem"].sort(key=repr)
    return sorted(said, key=repr)


def spell(kind: str, low: int, high: int) -> str:
    """An interval in canonical spelling."""
    if kind in ("ipv4_addr", "ipv6_addr"):
        first, last = (ip_address(n.to_bytes(BITS[kind] // 8, "big")) for n in (low, high))
        nets = list(summarize_address_range(first, last))
        if low == high:
            return str(first)
        return str(nets[0]) if len(nets) == 1 else f"{first}-{last}"
    return str(low) if low == high else f"{low}-{high}"


@st.composite
def one_part(draw: st.DrawFn, kind: str, *, interval: bool) -> tuple[int, int] | str:
    if kind == "ifname":
        return draw(st.sampled_from(['"eth0"', '"mus0123456789ab"', '"eth0.100"', '"lo"']))
    top = (1 << BITS[kind]) - 1
    number = st.one_of(st.sampled_from([0, 1, 6, top, top - 1, top // 2]), st.integers(0, top))
    low = draw(number)
    if not interval:
        return low, low
    near = st.sampled_from([low, min(low + 1, top), low | 0xF, min(low + 5, top), top])
    return low, draw(near)


@st.composite
def sets(draw: st.DrawFn) -> tuple[Set, dict[str, str]]:
    """A set of any type that we use, and elements for it that do not overlap."""
    interval = draw(st.booleans())
    kinds = [*BITS, *([] if interval else ["ifname"])]
    key = tuple(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3)))
    value = draw(st.sampled_from(sorted(VALUES)))
    made = Set(key=key, value=value, interval=interval, counter=draw(st.booleans()))
    elements: dict[str, str] = {}
    taken: list[list[tuple[int, int] | str]] = []
    for _ in range(draw(st.integers(0, 5))):
        parts = [draw(one_part(kind, interval=interval)) for kind in key]
        if not any(all(meet(a, b) for a, b in zip(parts, other, strict=True)) for other in taken):
            taken.append(parts)
            spelt = [
                part if isinstance(part, str) else spell(kind, *part) for kind, part in zip(key, parts, strict=True)
            ]
            elements[" . ".join(spelt)] = draw(st.sampled_from(VALUES[value]))
    return made, elements


def meet(one: tuple[int, int] | str, other: tuple[int, int] | str) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return one[0] <= other[1] and other[0] <= one[1]


def table(made: Set, elements: Mapping[str, str]) -> dict[Object, Value]:
    whole = Ruleset(
        chains=FRAME.chains,
        counters=FRAME.counters,
        sets={"s": made},
        elements={Element("s", k): v for k, v in elements.items()},
    )
    return dict(flatten(whole))


@pytest.fixture
def drivers() -> Iterator[tuple[NftDriver, NftDriver]]:
    """Of two tables: `raw`, whose elements come in bytes, and `lib`, whose elements come with everything else."""
    made = NftDriver("raw"), NftDriver("lib")
    yield made
    for driver in made:
        driver.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=sets(), kept=st.integers(0, 5), data=st.data())
def test_nft_lists_the_same_whoever_wrote_it(
    drivers: tuple[NftDriver, NftDriver], case: tuple[Set, dict[str, str]], kept: int, data: st.DataObject
) -> None:
    made, elements = case
    revalued = {key: data.draw(st.sampled_from(VALUES[made.value])) for key in list(elements)[:kept]}
    assert speaks(made)

    async def run() -> None:
        raw, lib = drivers
        await lib.remove()
        await raw.remove()
        before, after, last = table(made, {}), table(made, elements), table(made, revalued)
        assert await raw.apply(diff(before, {})) == {}
        for state, then in ((before, after), (after, last), (last, after), (after, before)):
            plan = diff(then, state)
            assert requests("raw", plan, state) is not None
            assert await raw.apply(plan) == {}
            assert await raw.read() == then
            await lib.remove()
            assert await lib.apply(diff(then, {})) == {}
            assert listed("raw") == listed("lib")

    asyncio.run(run())


@pytest.fixture
def driver() -> Iterator[NftDriver]:
    made = NftDriver()
    yield made
    made.close()


POD = ("ifname", "ipv4_addr")


async def test_a_refused_element_is_named_among_many_and_nothing_that_packets_see_is_changed(driver: NftDriver) -> None:
    made = Ruleset(sets={"s": Set(key=("ipv4_addr",), value="verdict")}, chains=FRAME.chains, counters=FRAME.counters)
    await driver.apply(diff(flatten(made), {}))
    before = await driver.read()
    good: dict[Object, Value] = {Element("s", f"10.5.{n >> 8}.{n & 255}"): "accept" for n in range(3000)}
    bad = Element("s", "10.5.9.7")
    plan = Plan({**good, bad: "goto nowhere", CounterName("new"): ""}, {CounterName("one"): ""})
    failed = await driver.apply(plan)
    assert [key for key, error in failed.items() if "held back" not in str(error)] == [bad]
    assert failed.keys() == {*good, bad, CounterName("one")}, "a new counter is nobody's yet"
    assert "10.5.9.7 : goto nowhere" in str(failed[bad])
    assert await driver.read() == {**before, CounterName("new"): ""}


async def test_a_counter_that_is_referenced_goes_after_its_elements_and_not_before(driver: NftDriver) -> None:
    made = Ruleset(
        sets={"s": Set(key=("mark",), value="counter")},
        elements={Element("s", "1"): "one"},
        counters=frozenset({"one"}),
    )
    await driver.apply(diff(flatten(made), {}))
    failed = await driver.apply(Plan({}, {CounterName("one"): ""}))
    assert "busy" in str(failed[CounterName("one")])
    plan: Plan[Object, Value] = Plan(
        {CounterName("two"): "", Element("s", "1"): "two"}, {CounterName("one"): ""}, {Element("s", "1"): "one"}
    )
    assert await driver.apply(plan) == {}
    assert await driver.apply(Plan({}, {CounterName("two"): "", Element("s", "1"): "two"})) == {}
    assert set(await driver.read()) == {SetName("s")}


@pytest.mark.parametrize(
    "line",
    [
        "delete table inet muslin",
        "flush map inet muslin s",
        "delete element inet muslin s { 10.0.0.1 }",
        "add element inet muslin s { 10.0.0.9 : 7 }",
        "add element inet muslin s { 10.0.0.4 : 7 }",
    ],
)
async def test_what_others_change_between_two_rounds_is_healed(driver: NftDriver, line: str) -> None:
    def state(elements: Mapping[str, str]) -> Mapping[Object, Value]:
        return table(Set(key=("ipv4_addr",), value="mark"), elements)

    reconciler: Reconciler[Object, Value] = Reconciler(driver)
    reconciler.set_desired(state({"10.0.0.1": "1", "10.0.0.2": "2"}), 1)
    assert (await reconciler.step()).healthy
    nft(line)
    wanted = state({"10.0.0.2": "3", "10.0.0.4": "4"})
    reconciler.set_desired(wanted, 2)
    if not (await reconciler.step()).healthy:
        assert line.startswith("delete table"), "what is missing is not in this round's plan"
    reconciler.distrust()
    assert (await reconciler.step()).healthy
    assert await driver.read() == wanted


async def test_counters_are_read_with_their_counts(driver: NftDriver) -> None:
    assert read_counters() == {}, "no table, no counters"
    counting = Ruleset(
        chains={
            "in": Chain(
                hook=Hook(type="filter", hook="input", priority=0), rules=("udp dport 9999 counter name two/b.c",)
            )
        },
        counters=FRAME.counters,
    )
    assert await driver.apply(diff(flatten(counting), {})) == {}
    nft("add table inet theirs")
    nft("add counter inet theirs three")
    nft("add quota inet muslin four 5 mbytes")
    reader = CounterReader()
    assert reader.read() == {"one": Counted(0, 0), "two/b.c": Counted(0, 0)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(3):
            sender.sendto(b"muslin", ("127.0.0.1", 9999))
    assert reader.read() == {"one": Counted(0, 0), "two/b.c": Counted(3, 102)}
    reader.close()
    many: dict[Object, Value] = {CounterName(f"n-{number}"): "" for number in range(5000)}
    assert await driver.apply(Plan(many, {})) == {}
    assert len(read_counters()) == 5002


async def test_a_table_is_read_while_others_write_theirs_without_a_pause(driver: NftDriver) -> None:
    wanted = table(Set(key=("ipv4_addr",), value="mark"), {f"10.0.{n >> 8}.{n & 255}": "7" for n in range(200)})
    assert await driver.apply(diff(wanted, {})) == {}
    with Nfnetlink() as netlink:
        nft("add table inet theirs")
        nft("add counter inet theirs busy")
        begun, stop = threading.Event(), threading.Event()

        def write() -> None:
            while not stop.is_set():
                netlink.transaction(SUBSYSTEM, [delete_counter("theirs", "busy")])
                netlink.transaction(SUBSYSTEM, [add_counter("theirs", "busy")])
                begun.set()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            assert await asyncio.to_thread(begun.wait, 10)
            assert await driver.read() == wanted
        finally:
            stop.set()
            thread.join()


def test_a_transaction_on_no_table_is_refused_by_its_first_message() -> None:
    key = Element("s", "1")
    sent = requests("gone", Plan({key: ""}, {}), {SetName("s"): Set(key=("mark",))})
    assert sent is not None
    with Nfnetlink() as netlink:
        refused = netlink.transaction(SUBSYSTEM, [each.message for each in sent])
        assert list(refused) == [0]
        assert "No such file" in str(refused[0])
        with pytest.raises(OSError, match="Invalid argument"):
            netlink.transaction(99, [each.message for each in sent])
