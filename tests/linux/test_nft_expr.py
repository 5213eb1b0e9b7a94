"""Sets, chains and rules written without libnftables: the kernel holds what it would have held of libnftables."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.nftables import Chain, Element, Hook, Ruleset, Set, join
from core.reconcile import Plan, Reconciler, diff
from linux.netlink import Attributes, attributes
from linux.nfnetlink import Nfnetlink, generic
from linux.nft import NftDriver
from linux.nft_batch import requests
from linux.nft_objects import ChainName, Object, SetName, Value, flatten
from linux.nft_wire import INET, SUBSYSTEM

pytestmark = pytest.mark.kernel

ASKED = {
    "in-port": Set(key=("mark", "inet_proto", "inet_service"), value="mark"),
    "in-range": Set(key=("mark", "inet_proto", "inet_service"), value="mark", interval=True),
    "in-proto": Set(key=("mark", "inet_proto"), value="mark"),
    "in-protos": Set(key=("mark", "inet_proto"), value="mark", interval=True),
    "in-any": Set(key=("mark",), value="mark"),
    "in-span": Set(key=("mark",), value="mark", interval=True),
    "identity4": Set(key=("ipv4_addr",), value="mark"),
    "identity6": Set(key=("ipv6_addr",), value="mark"),
    "cidr4": Set(key=("ipv4_addr",), value="mark", interval=True),
    "cidr6": Set(key=("ipv6_addr",), value="mark", interval=True),
    "pair4": Set(key=("ipv4_addr", "inet_service"), value="mark"),
    "pair6": Set(key=("ipv6_addr", "mark", "ipv6_addr"), value="mark"),
    "counters": Set(key=("mark",), value="counter"),
    "verdicts": Set(key=("mark",), value="verdict"),
}
FRAME = Ruleset(
    chains={
        "identify-source": Chain(rules=("return",)),
        "decided": Chain(rules=("drop",)),
        "forward": Chain(hook=Hook(type="filter", hook="forward", priority=0)),
    },
    counters=frozenset({"deny/one", "two"}),
)
VALUES = {"": "", "mark": "65536", "counter": "two", "verdict": "goto decided"}
KINDS = ["mark", "inet_proto", "inet_service", "ipv4_addr", "ipv6_addr"]

numbers = st.one_of(st.sampled_from([0, 1, 0xFFFE0000, 0xFFFFFFFF]), st.integers(0, 0xFFFFFFFF))
marks = numbers.map(lambda number: f"{number:#010x}")
masks = st.sampled_from(["0xffff0000", "0x0000ffff", "0x0000000f"])
ends = st.sampled_from(["accept", "drop", "return", "jump identify-source", "goto decided"])
asking = st.sampled_from(
    [
        "meta mark . meta l4proto . th dport map @in-port",
        "meta mark . meta l4proto . th dport map @in-range",
        "meta mark . meta l4proto map @in-proto",
        "meta mark . meta l4proto map @in-protos",
        "meta mark map @in-any",
        "meta mark map @in-span",
        "ip saddr map @identity4",
        "ip6 daddr map @identity6",
        "ip daddr map @cidr4",
        "ip6 saddr map @cidr6",
        "ip saddr . th sport map @pair4",
        "ip6 saddr . meta mark . ip6 daddr map @pair6",
    ]
)


@st.composite
def spans(draw: st.DrawFn, most: int) -> str:
    """A number, or a range of them."""
    first, last = sorted(draw(st.tuples(st.integers(0, most), st.integers(0, most))))
    return str(first) if first == last or draw(st.booleans()) else f"{first}-{last}"


@st.composite
def nets(draw: st.DrawFn, bits: int) -> str:
    """An address or a prefix of a header."""
    length = draw(st.one_of(st.just(bits), st.integers(1, bits)))
    number = draw(st.integers(0, (1 << bits) - 1)) >> bits - length << bits - length
    net = IPv4Network((number, length)) if bits == 32 else IPv6Network((number, length))
    field = f"{'ip' if bits == 32 else 'ip6'} {draw(st.sampled_from(['saddr', 'daddr']))}"
    return f"{field} {net.network_address if length == bits else net}"


@st.composite
def icmps(draw: st.DrawFn, word: str) -> str:
    kind = draw(st.integers(0, 255))
    match draw(st.sampled_from(["type", "not", "code"])):
        case "not":
            return f"{word} type != {kind}"
        case "code":
            return f"{word} type {kind} {word} code {draw(st.integers(0, 255))}"
    return f"{word} type {kind}"


@st.composite
def rules(draw: st.DrawFn) -> str:
    """A rule as policy writes them: what it is about, what it does, and where it goes."""
    family = draw(st.sampled_from([4, 6]))
    about = {
        "family": st.sampled_from(["meta nfproto ipv4", "meta nfproto ipv6"]),
        "local": nets(32 if family == 4 else 128),
        "ports": st.builds("{} {}".format, st.sampled_from(["th sport", "th dport"]), spans(65535)),
        "icmp": icmps("icmp" if family == 4 else "icmpv6"),
        "local icmp": st.builds(
            "{} {}".format, nets(32 if family == 4 else 128), icmps("icmp" if family == 4 else "icmpv6")
        ),
        "local ports": st.builds("{} th sport {}".format, nets(32 if family == 4 else 128), spans(65535)),
        "protocol": spans(255).map("meta l4proto {}".format),
        "mark": marks.map("meta mark {}".format),
        "half": st.builds("meta mark & {} {} {}".format, masks, st.sampled_from(["==", "!="]), marks),
    }
    does = [
        marks.map("meta mark set {}".format),
        st.builds("meta mark set meta mark & {} | {}".format, masks, marks),
        st.sampled_from(['counter name "two"', "counter name deny/one"]),
        masks.map("counter name meta mark & {} map @counters".format),
        st.just('log prefix "muslin default/one/a-policy: "'),
    ]
    first = draw(st.sampled_from(["", *about]))
    if first == "":
        does.append(asking.map("meta mark set {}".format))
        does.append(st.just("meta l4proto 0-255 meta mark set meta mark map @in-any"))
    words = [draw(about[first])] if first else []
    words += [draw(st.one_of(does))] if draw(st.booleans()) else []
    if not words and draw(st.booleans()):
        return f"meta mark & {draw(masks)} vmap @verdicts"
    words += [draw(ends)] if not words or draw(st.booleans()) else []
    said = draw(st.sampled_from(["", "", ' comment "tier/policy"']))
    return " ".join(words) + said


@st.composite
def sets(draw: st.DrawFn) -> Set:
    interval = draw(st.booleans())
    kinds = KINDS if interval else [*KINDS, "ifname"]
    key = tuple(draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4)))
    return Set(key=key, value=draw(st.sampled_from(sorted(VALUES))), interval=interval)


def held(table: str) -> list[tuple[int, Attributes]]:
    """All sets, chains and rules of a table as the kernel has them, but for its name and what is numbered."""
    found = []
    with Nfnetlink() as netlink:
        for kind, numbered in ((10, {16}), (4, {2}), (7, {3, 6})):  # sets, chains, rules: their handles, places
            for body in netlink.dump(SUBSYSTEM << 8 | kind, generic(INET)):
                said = attributes(body, 4)
                if said[1] == table.encode() + b"\0":
                    found.append((kind, {k: v for k, v in said.items() if k not in {1, *numbered}}))
    return sorted(found, key=repr)


def nft(*words: str) -> bytes:
    return subprocess.run(["nft", *words], check=True, capture_output=True).stdout


def listed(table: str) -> list[object]:
    """All that nft says of a table, but for its name and handles."""
    said = json.loads(nft("-n", "-j", "list", "table", "inet", table))["nftables"][2:]
    for entry in said:
        for described in entry.values():
            described.pop("handle", None)
            described.pop("table", None)
            described.get("elem", []).sort(key=repr)
    return sorted(said, key=repr)


@pytest.fixture
def drivers() -> Iterator[tuple[NftDriver, NftDriver]]:
    """Of two tables: `raw` is there before, `lib` comes with everything by libnftables."""
    made = NftDriver("raw"), NftDriver("lib")
    yield made
    for driver in made:
        driver.close()


async def written_alike(drivers: tuple[NftDriver, NftDriver], frame: Ruleset, *states: Ruleset) -> None:
    """Lead a table raw from `frame` through `states` and back; each time it is as libnftables makes it."""
    raw, lib = drivers
    await raw.remove()
    assert await raw.apply(diff(flatten(frame), {})) == {}
    now: Mapping[Object, Value] = flatten(frame)
    for state in (*states, frame):
        then = flatten(state)
        plan = diff(then, now)
        assert requests("raw", plan, {k: v for k, v in now.items() if not isinstance(k, Element)}) is not None
        assert await raw.apply(plan) == {}
        assert await raw.read() == then
        await lib.remove()
        assert await lib.apply(diff(then, {})) == {}
        assert held("raw") == held("lib")
        assert listed("raw") == listed("lib")
        now = then


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(sets(), min_size=1, max_size=5), other=st.lists(sets(), max_size=3))
def test_a_set_is_the_same_whoever_made_it(
    drivers: tuple[NftDriver, NftDriver], made: list[Set], other: list[Set]
) -> None:
    one = replace(FRAME, sets={f"one-{number}": each for number, each in enumerate(made)})
    two = replace(FRAME, sets={f"two/{number}": each for number, each in enumerate(other)})
    asyncio.run(written_alike(drivers, FRAME, one, two))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.lists(rules(), min_size=1, max_size=8), second=st.lists(rules(), max_size=4))
def test_a_rule_is_the_same_whoever_wrote_it(
    drivers: tuple[NftDriver, NftDriver], first: list[str], second: list[str]
) -> None:
    frame = replace(FRAME, sets=ASKED)
    new = Chain(rules=tuple(first))
    one = replace(frame, chains={**FRAME.chains, "in-one": new})
    two = replace(frame, chains={**FRAME.chains, "in-one": Chain(rules=tuple(second)), "out/two": new})
    asyncio.run(written_alike(drivers, frame, one, two))


MANY = 4000


async def test_many_elements_are_held_alike_in_sets_of_either_making(drivers: tuple[NftDriver, NftDriver]) -> None:
    elements = {
        **{Element("in-port", f"{n << 16} . 6 . {n}"): "65536" for n in range(MANY)},
        **{Element("in-range", f"{n << 16} . 6 . {n}-{n + 9}"): "65536" for n in range(MANY)},
        **{Element("in-span", f"{n * 16}-{n * 16 + 5}"): "65536" for n in range(MANY)},
        **{Element("cidr6", f"fd00:{n + 1:x}::/32"): "65536" for n in range(MANY)},
        **{Element("pair6", f"fd00::{n + 1:x} . 7 . fd00::1"): "65536" for n in range(MANY)},
        **{Element("counters", str(n)): "two" for n in range(MANY)},
        **{Element("verdicts", str(n)): "goto decided" for n in range(MANY)},
    }
    await written_alike(drivers, FRAME, replace(FRAME, sets=ASKED, elements=elements))


def stack(name: str, *, ports: int) -> Ruleset:
    """What a content of a stack is: a chain, and maps of its own."""
    maps = {"port": ASKED["in-port"], "range": ASKED["in-range"], "any": ASKED["in-any"]}
    return Ruleset(
        chains={
            name: Chain(
                rules=(
                    "jump identify-source",
                    f"meta mark set meta mark . meta l4proto . th dport map @{name}-port return",
                    f"meta mark set meta mark . meta l4proto . th dport map @{name}-range return",
                    f"meta l4proto 0-255 meta mark set meta mark map @{name}-any return",
                    "meta mark set 0x00020000",
                )
            )
        },
        sets={f"{name}-{suffix}": made for suffix, made in maps.items()},
        elements={
            **{Element(f"{name}-port", f"65536 . 6 . {port}"): "65536" for port in range(ports)},
            Element(f"{name}-range", "65536 . 17 . 80-90"): "65536",
            Element(f"{name}-any", "65536"): "131072",
        },
    )


GOES = Ruleset(
    chains={**FRAME.chains, "forward": Chain(hook=FRAME.chains["forward"].hook, rules=("iifname vmap @goes",))},
    sets={"goes": Set(key=("ifname",), value="verdict")},
    counters=FRAME.counters,
)


def dispatched(to: Ruleset) -> Ruleset:
    (chain,) = to.chains
    return join(GOES, to, Ruleset(elements={Element("goes", '"mus0"'): f"goto {chain}"}))


async def test_another_content_of_a_stack_is_built_switched_to_and_taken_away(
    drivers: tuple[NftDriver, NftDriver],
) -> None:
    old, new = dispatched(stack("in-a.1", ports=50)), dispatched(stack("in-a.2", ports=60))
    await written_alike(drivers, GOES, old, new, old)


@pytest.fixture
def driver() -> Iterator[NftDriver]:
    made = NftDriver()
    yield made
    made.close()


TOO_LONG = Set(key=("ipv6_addr",) * 5)


@pytest.mark.parametrize(
    ("bad", "key", "said"),
    [
        (Ruleset(chains={"bad": Chain(rules=("return", "jump nowhere"))}), ChainName("bad"), "chain bad: jump nowhere"),
        (Ruleset(chains={"bad": Chain(rules=("counter name three",))}), ChainName("bad"), "counter name three"),
        (Ruleset(sets={"bad": TOO_LONG}), SetName("bad"), "set bad"),
    ],
)
async def test_what_the_kernel_refuses_is_named_and_nothing_is_changed(
    driver: NftDriver, bad: Ruleset, key: Object, said: str
) -> None:
    assert await driver.apply(diff(flatten(dispatched(stack("in-a", ports=5))), {})) == {}
    before = await driver.read()
    plan = Plan({**flatten(stack("in-b", ports=5)), **flatten(bad)}, {})
    assert requests("muslin", plan, {k: v for k, v in before.items() if not isinstance(k, Element)}) is not None
    failed = await driver.apply(plan)
    assert failed.keys() == plan.upsert.keys()
    assert [each for each, error in failed.items() if "held back" not in str(error)] == [key]
    assert said in str(failed[key])
    assert {k: v for k, v in (await driver.read()).items() if k in before} == before


async def test_a_chain_or_set_that_is_in_use_is_not_deleted(driver: NftDriver) -> None:
    whole = flatten(dispatched(stack("in-a", ports=5)))
    assert await driver.apply(diff(whole, {})) == {}
    for key in (ChainName("in-a"), SetName("in-a-port")):
        failed = await driver.apply(Plan({}, {key: whole[key]}))
        assert "busy" in str(failed[key])
        assert key.name in str(failed[key])
    assert await driver.read() == whole


@pytest.mark.parametrize(
    "lines",
    [
        ["delete table inet muslin"],
        ["delete element inet muslin goes { mus0 }", "flush chain inet muslin in-a", "delete chain inet muslin in-a"],
        ["add chain inet muslin in-b", "add rule inet muslin in-b drop"],
        ["add map inet muslin in-b-any { type mark : verdict; }"],
        ["flush chain inet muslin in-a", "delete map inet muslin in-a-any"],
    ],
)
async def test_what_others_change_before_a_stack_does_is_healed(driver: NftDriver, lines: list[str]) -> None:
    reconciler: Reconciler[Object, Value] = Reconciler(driver)
    reconciler.set_desired(flatten(dispatched(stack("in-a", ports=5))), 1)
    assert (await reconciler.step()).healthy
    for line in lines:
        nft(*line.split())
    wanted = flatten(dispatched(stack("in-b", ports=5)))
    reconciler.set_desired(wanted, 2)
    for _ in range(3):
        await reconciler.step()
        reconciler.distrust()
    assert (await reconciler.step()).healthy
    assert await driver.read() == wanted


@pytest.mark.parametrize(
    "change",
    [
        Ruleset(chains={"new": Chain(hook=Hook(type="filter", hook="input", priority=0))}),
        Ruleset(chains={"forward": Chain(rules=("drop",))}),
        Ruleset(chains={"new": Chain(rules=("return", "th sport { 1, 2 } return"))}),
        Ruleset(chains={"new": Chain(rules=("meta mark set meta mark map @nowhere return",))}),
        Ruleset(chains={"new": Chain(rules=("meta mark set meta l4proto map @in-any return",))}),
        Ruleset(chains={"new": Chain(rules=("meta mark set 0x100000000",))}),
        Ruleset(chains={"new": Chain(rules=("th sport 65536 drop",))}),
        Ruleset(chains={"new": Chain(rules=("ip saddr 10.0.0.1 ip6 saddr fd00::1 drop",))}),
        Ruleset(sets={"in-any": Set(key=("mark",), value="mark", interval=True)}),
        Ruleset(sets={"new": Set(key=("mark",), counter=True)}),
    ],
)
def test_what_is_not_understood_is_left_to_libnftables(change: Ruleset) -> None:
    shape = flatten(replace(FRAME, sets=ASKED))
    plan: Plan[Object, Value] = Plan(flatten(change), {})
    assert requests("muslin", plan, shape) is None
    assert requests("muslin", Plan(flatten(stack("in-b", ports=5)), {}), {}) is None, "the table may not be there"
