"""The nft driver against the kernel's nf_tables: the table ends as it was told, whatever it held before."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.nftables import Chain, Element, Hook, Ruleset, Set
from core.reconcile import Plan, Reconciler, diff
from linux.nft import NftDriver
from linux.nft_objects import ChainBody, ChainName, CounterName, Object, SetName, Value, flatten

pytestmark = pytest.mark.kernel

DECISION = ("mark", "inet_proto", "inet_service")

EVERY_KIND = Ruleset(
    sets={
        "pods4": Set(key=("ipv4_addr",)),
        "pods6": Set(key=("ipv6_addr",), counter=True),
        "nets4": Set(key=("ipv4_addr",), interval=True),
        "nets6": Set(key=("ipv6_addr",), interval=True),
        "world": Set(key=("ipv6_addr",), interval=True),
        "ports": Set(key=("inet_service",), interval=True, counter=True),
        "marks": Set(key=("mark",), interval=True),
        "names": Set(key=("ifname",)),
        "pairs": Set(key=("ifname", "ipv4_addr")),
        "flows": Set(key=("inet_proto", "inet_service")),
        "identity": Set(key=("ipv4_addr",), value="verdict"),
        "classes": Set(key=("ipv4_addr",), value="mark", interval=True),
        "dispatch": Set(key=("ifname",), value="verdict", counter=True),
        "exact": Set(key=DECISION, value="verdict", counter=True),
        "ranges": Set(key=DECISION, value="verdict", interval=True, counter=True),
        "between": Set(key=("ipv4_addr", "ipv4_addr"), value="verdict", interval=True),
        "between6": Set(key=("ipv6_addr", "inet_service"), value="verdict", interval=True),
        "identity6": Set(key=("ipv6_addr",), value="mark"),
        "outcomes": Set(key=DECISION, value="mark", interval=True),
        "counters": Set(key=("mark",), value="counter"),
    },
    counters=frozenset({"deny-default/a.b", "allowed"}),
    elements={
        Element("pods4", "10.0.0.1"): "",
        Element("pods4", "0.0.0.0"): "",
        Element("pods6", "fd00::1"): "",
        Element("pods6", str(ip_address("::ffff:1.2.3.4"))): "",
        Element("nets4", "10.0.0.0/8"): "",
        Element("nets4", "11.0.0.1-11.0.0.6"): "",
        Element("nets4", "11.0.0.7"): "",
        Element("nets4", "192.168.0.0/24"): "",
        Element("nets4", "192.168.1.0/24"): "",
        Element("nets4", "240.0.0.0/4"): "",
        Element("nets6", "fd00::/8"): "",
        Element("nets6", "2001:db8::1-2001:db8::6"): "",
        Element("nets6", "2001:db8::7"): "",
        Element("world", "::/0"): "",
        Element("ports", "80"): "",
        Element("ports", "8080-8090"): "",
        Element("ports", "1024-2047"): "",
        Element("ports", "60000-65535"): "",
        Element("marks", "0-15"): "",
        Element("marks", "65536-131071"): "",
        Element("names", '"musab12cd34ef5"'): "",
        Element("names", '"eth0.100"'): "",
        Element("pairs", '"musab12cd34ef5" . 10.0.0.1'): "",
        Element("flows", "6 . 22"): "",
        Element("flows", "17 . 53"): "",
        Element("identity", "10.0.0.1"): "goto c1",
        Element("identity", "10.0.0.2"): "drop",
        Element("classes", "0.0.0.0/0"): "327680",
        Element("dispatch", '"musab12cd34ef5"'): "jump c1",
        Element("exact", "327680 . 6 . 80"): "accept",
        Element("exact", "327680 . 17 . 53"): "return",
        Element("ranges", "327680 . 6 . 80-90"): "accept",
        Element("ranges", "1-5 . 17 . 0-65535"): "drop",
        Element("ranges", "0-65535 . 0-255 . 1024-2047"): "goto c1",
        Element("ranges", "9 . 6 . 22"): "accept",
        Element("between", "10.0.0.0/8 . 11.0.0.1-11.0.0.6"): "drop",
        Element("between", "10.0.0.0/8 . 12.0.0.1"): "accept",
        Element("between6", "fd00::/8 . 80"): "accept",
        Element("between6", "2001:db8::1 . 0-1023"): "drop",
        Element("identity6", "fd00::1"): "65536",
        Element("outcomes", "327680 . 6 . 80-90"): "131072",
        Element("outcomes", "327680 . 17 . 53"): "0",
        Element("counters", "65536"): "allowed",
        Element("counters", "131072"): "deny-default/a.b",
    },
    chains={
        "c1": Chain(rules=("meta mark set meta mark & 0x0000ffff | 0x00050000",)),
        "empty": Chain(),
        "forward": Chain(
            hook=Hook(type="filter", hook="forward", priority=0),
            rules=(
                'ct state established,related accept comment "what was let in before"',
                "ip saddr vmap @identity",
                "meta mark & 0xffff0000 . meta l4proto . th dport vmap @exact",
                "iifname vmap @dispatch",
                "meta mark set meta mark & 0xffff0000 . meta l4proto . th dport map @outcomes",
                "counter name meta mark & 0xffff0000 map @counters",
                "drop",
            ),
        ),
        "nat": Chain(hook=Hook(type="nat", hook="postrouting", priority=100), rules=("ip saddr @pods4 masquerade",)),
        "early": Chain(hook=Hook(type="filter", hook="prerouting", priority=-300)),
    },
)


def nft(line: str) -> str:
    return subprocess.run(["nft", *line.split()], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def driver() -> Iterator[NftDriver]:
    made = NftDriver()
    yield made
    made.close()


async def make_so(driver: NftDriver, desired: Mapping[Object, Value]) -> None:
    plan = diff(desired, await driver.read())
    assert await driver.apply(plan) == {}
    assert await driver.read() == desired


async def test_every_kind_reads_back_as_written(driver: NftDriver) -> None:
    desired = flatten(EVERY_KIND)
    assert await driver.read() == {}, "no table is nothing, and no error"
    await make_so(driver, desired)
    assert not diff(desired, await driver.read()), "a second plan is empty"
    second = NftDriver()  # a restart, with no memory
    assert await second.read() == desired
    second.close()
    await make_so(driver, {})
    assert "chain" not in nft("list table inet muslin")


async def test_adding_a_pod_touches_nothing_else(driver: NftDriver) -> None:
    await make_so(driver, flatten(EVERY_KIND))
    before = nft("-a list chain inet muslin forward")
    pod = replace(
        EVERY_KIND,
        chains={**EVERY_KIND.chains, "pod": Chain(rules=("drop",))},
        elements={**EVERY_KIND.elements, Element("dispatch", '"mus1"'): "goto pod", Element("pods4", "10.0.0.9"): ""},
    )
    plan = diff(flatten(pod), await driver.read())
    assert set(plan.upsert) == {ChainName("pod"), Element("dispatch", '"mus1"'), Element("pods4", "10.0.0.9")}
    await make_so(driver, flatten(pod))
    assert nft("-a list chain inet muslin forward") == before, "same rules, same handles"


async def test_a_verdict_changes_in_place(driver: NftDriver) -> None:
    await make_so(driver, flatten(EVERY_KIND))
    for verdict in ("drop", "goto c1", "goto empty", "accept"):
        changed = {
            **EVERY_KIND.elements,
            Element("identity", "10.0.0.1"): verdict,
            Element("ranges", "327680 . 6 . 80-90"): verdict,
            Element("dispatch", '"musab12cd34ef5"'): verdict,
        }
        await make_so(driver, flatten(replace(EVERY_KIND, elements=changed)))


async def test_a_set_in_use_changes_type_and_keeps_its_elements(driver: NftDriver) -> None:
    await make_so(driver, flatten(EVERY_KIND))
    counted = Set(key=DECISION, value="verdict", counter=False)
    narrowed = Set(key=("ipv4_addr",), value="verdict", interval=True)
    changed = replace(EVERY_KIND, sets={**EVERY_KIND.sets, "exact": counted, "identity": narrowed})
    plan = diff(flatten(changed), await driver.read())
    assert Element("exact", "327680 . 6 . 80") not in plan.upsert, "its elements are the same by name and value"
    await make_so(driver, flatten(changed))


async def test_a_chain_moves_to_another_hook_and_back(driver: NftDriver) -> None:
    await make_so(driver, flatten(EVERY_KIND))
    for hook in (Hook(type="filter", hook="input", priority=5), None):
        moved = {**EVERY_KIND.chains, "forward": replace(EVERY_KIND.chains["forward"], hook=hook)}
        await make_so(driver, flatten(replace(EVERY_KIND, chains=moved)))
    await make_so(driver, flatten(EVERY_KIND))


def chosen(keep: Mapping[str, bool], verdict: str, hook: Hook | None, counter: bool, rules: int) -> Ruleset:
    """A table that is whole whatever is left out: chains name only what is there."""
    sets = {"m": Set(key=("ipv4_addr",), value="verdict", counter=counter), "r": EVERY_KIND.sets["ranges"]}
    sets = {name: each for name, each in sets.items() if keep[name]}
    targets = ["c"] if keep["c"] else []
    jump = f"goto {targets[0]}" if targets and verdict == "goto" else "drop"
    elements = {Element("m", "10.0.0.1"): jump, Element("m", "10.0.0.2"): "accept"} if keep["m"] else {}
    if keep["r"]:
        elements |= {Element("r", "1-5 . 6 . 80-90"): jump, Element("r", f"{rules + 6} . 6 . 80"): "accept"}
    chains = {"base": Chain(hook=hook, rules=("ip saddr vmap @m",) * keep["m"] + ("accept",) * rules)}
    chains |= {name: Chain(rules=("drop",) * rules) for name in targets}
    return Ruleset(sets=sets, elements=elements, chains=chains)


tables = st.builds(
    chosen,
    st.fixed_dictionaries({"m": st.booleans(), "r": st.booleans(), "c": st.booleans()}),
    st.sampled_from(["goto", "drop"]),
    st.sampled_from(
        [None, Hook(type="filter", hook="forward", priority=0), Hook(type="nat", hook="output", priority=7)]
    ),
    st.booleans(),
    st.integers(0, 2),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(states=st.lists(tables, min_size=1, max_size=4))
def test_any_table_follows_any_other(driver: NftDriver, states: list[Ruleset]) -> None:
    async def walk() -> None:
        for state in states:
            await make_so(driver, flatten(state))

    asyncio.run(walk())


@pytest.mark.parametrize(
    "line",
    [
        "delete table inet muslin",
        "flush chain inet muslin forward",
        "insert rule inet muslin forward accept",
        "delete element inet muslin pods4 { 10.0.0.1 }",
        "add element inet muslin pods4 { 10.0.0.77 }",
        "add chain inet muslin stranger",
        "add set inet muslin stranger { type ipv4_addr; flags timeout; }",
        "chain inet muslin forward { policy drop ; }",
    ],
)
async def test_drift_is_seen_and_healed(driver: NftDriver, line: str) -> None:
    desired = flatten(EVERY_KIND)
    reconciler = Reconciler(driver)
    reconciler.set_desired(desired, 1)
    assert (await reconciler.step()).healthy
    nft(line)
    assert await driver.read() != desired
    reconciler.distrust()
    assert (await reconciler.step()).healthy
    assert await driver.read() == desired


async def test_a_rule_swapped_behind_our_back_is_seen(driver: NftDriver) -> None:
    await make_so(driver, flatten(EVERY_KIND))
    handles = [
        line.rsplit(" ", 1)[1] for line in nft("-a list chain inet muslin forward").splitlines() if "rop " in line
    ]
    nft(f"replace rule inet muslin forward handle {handles[-1]} accept")
    assert await driver.read() != flatten(EVERY_KIND)
    await make_so(driver, flatten(EVERY_KIND))


async def test_what_went_meanwhile_is_no_error(driver: NftDriver) -> None:
    await make_so(driver, flatten(EVERY_KIND))
    nft("delete element inet muslin pods4 { 10.0.0.1 }")
    nft("add element inet muslin identity { 10.0.0.3 : accept }")
    wanted = {Element("identity", "10.0.0.3"): "drop"}
    assert await driver.apply(Plan(wanted, {Element("pods4", "10.0.0.1"): ""})) == {}
    actual = await driver.read()
    assert actual[Element("identity", "10.0.0.3")] == "drop"
    assert Element("pods4", "10.0.0.1") not in actual


async def test_a_bad_object_is_named_and_nothing_is_changed(driver: NftDriver) -> None:
    await make_so(driver, flatten(EVERY_KIND))
    before = await driver.read()
    bad = replace(EVERY_KIND, chains={**EVERY_KIND.chains, "c9": Chain(rules=("ip saddr @nowhere drop",))})
    failed = await driver.apply(diff({**flatten(bad), Element("pods4", "10.7.7.7"): ""}, before))
    assert "nowhere" in str(failed[ChainName("c9")])
    assert "held back" not in str(failed[ChainName("c9")])
    assert "held back" in str(failed[Element("pods4", "10.7.7.7")])
    assert await driver.read() == before


async def test_a_bad_element_is_named_among_many(driver: NftDriver) -> None:
    await make_so(driver, flatten(EVERY_KIND))
    good: dict[Object, Value] = {Element("identity", f"10.5.{n >> 8}.{n & 255}"): "accept" for n in range(1200)}
    bad = Element("identity", "10.5.3.7")
    failed = await driver.apply(Plan({**good, bad: "goto nowhere"}, {}))
    assert [key for key, error in failed.items() if "held back" not in str(error)] == [bad]
    assert len(str(failed[bad])) < 400


async def test_a_failed_read_is_not_an_empty_one(driver: NftDriver) -> None:
    await make_so(driver, flatten(EVERY_KIND))
    driver._netlink.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await driver.read()


async def test_other_tables_are_left_alone(driver: NftDriver) -> None:
    nft("add table inet theirs")
    nft("add table ip muslin")
    nft("add chain ip muslin theirs")
    await make_so(driver, flatten(EVERY_KIND))
    await make_so(driver, {})
    assert "inet theirs" in nft("list tables")
    assert "chain theirs" in nft("list table ip muslin")


async def test_what_an_element_has_counted_is_no_difference(driver: NftDriver) -> None:
    key = Element("hits", "17 . 9999")
    await make_so(
        driver,
        flatten(
            Ruleset(
                sets={"hits": Set(key=("inet_proto", "inet_service"), value="verdict", counter=True)},
                elements={key: "drop"},
                chains={
                    "in": Chain(
                        hook=Hook(type="filter", hook="input", priority=0),
                        rules=("meta l4proto . th dport vmap @hits",),
                    )
                },
            )
        ),
    )
    before = await driver.read()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(3):
            sender.sendto(b"muslin", ("127.0.0.1", 9999))
    assert "counter packets 3 bytes 102" in nft("list table inet muslin")
    assert await driver.read() == before
    assert before[key] == "drop"


def counting(**outcomes: str) -> Ruleset:
    """Counts datagrams to 127.0.0.1 under the counter that the mark 65536 stands for, and whatever `outcomes` hold."""
    return Ruleset(
        sets={"counters": Set(key=("mark",), value="counter")},
        elements={Element("counters", mark.removeprefix("m")): name for mark, name in outcomes.items()},
        counters=frozenset(outcomes.values()),
        chains={
            "in": Chain(
                hook=Hook(type="filter", hook="input", priority=0),
                rules=(
                    "udp dport 9999 meta mark set meta mark | 65536 counter name meta mark & 0xffff0000 map @counters",
                ),
            )
        },
    )


async def test_a_counter_keeps_its_counts_until_nobody_wants_it(driver: NftDriver) -> None:
    await make_so(driver, flatten(counting(m65536="one")))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"muslin", ("127.0.0.1", 9999))
    for other in ("two", "three"):
        await make_so(driver, flatten(counting(m65536="one", m131072=other)))
        assert await driver.apply(Plan({CounterName("one"): ""}, {})) == {}, "as after a foreign change"
    assert "packets 1 bytes 34" in nft("list counter inet muslin one")
    await make_so(driver, flatten(counting(m65536="two", m131072="four")))
    assert "packets 0" in nft("list counter inet muslin two")
    await make_so(driver, flatten(Ruleset()))


async def test_somebody_elses_transaction_is_heard_and_ours_is_not(driver: NftDriver) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def listen() -> None:
        async for who in driver.foreign_changes():
            heard.put_nowait(who)

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    await make_so(driver, flatten(EVERY_KIND))
    await make_so(driver, flatten(replace(EVERY_KIND, chains={**EVERY_KIND.chains, "z": Chain()})))
    nft("add table inet theirs")
    nft("add element inet muslin pods4 { 10.0.0.77 }")
    assert (await asyncio.wait_for(heard.get(), 5)).startswith("nft (process ")
    await make_so(driver, flatten(EVERY_KIND))
    nft("delete table inet muslin")
    await asyncio.wait_for(heard.get(), 5)
    assert heard.empty()
    task.cancel()


async def test_tens_of_thousands_of_elements(driver: NftDriver) -> None:
    ruleset = Ruleset(
        sets={"many": Set(key=("ipv4_addr",), value="verdict", counter=True)},
        elements={Element("many", f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"): "accept" for n in range(20_000)},
    )
    await make_so(driver, flatten(ruleset))


def test_a_digest_follows_the_rules_and_their_sets() -> None:
    chain = ChainName("forward")
    before = flatten(EVERY_KIND)[chain]
    assert isinstance(before, ChainBody)
    retyped = {**EVERY_KIND.sets, "identity": Set(key=("ipv4_addr",), value="verdict", counter=True)}
    assert flatten(replace(EVERY_KIND, sets=retyped))[chain] != before
    unrelated = {**EVERY_KIND.sets, "names": Set(key=("ifname",), counter=True)}
    assert flatten(replace(EVERY_KIND, sets=unrelated))[chain] == before
    assert SetName("names") in flatten(EVERY_KIND)
