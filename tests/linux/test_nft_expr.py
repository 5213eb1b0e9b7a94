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

from core.nftables import Chain, Element, Hook, Ruleset, Set
from core.reconcile import diff
from linux.netlink import Attributes, attributes
from linux.nfnetlink import Nfnetlink, generic
from linux.nft import NftDriver
from linux.nft_batch import requests
from linux.nft_objects import Object, Value, flatten
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


def listed(table: str) -> list[object]:
    """All that nft says of a table, but for its name and handles."""
    argv = ["nft", "-n", "-j", "list", "table", "inet", table]
    said = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)["nftables"][2:]
    for entry in said:
        for described in entry.values():
            described.pop("handle", None)
            described.pop("table", None)
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


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(sets(), min_size=1, max_size=5), other=st.lists(sets(), max_size=3))
def test_a_set_is_the_same_whoever_made_it(
    drivers: tuple[NftDriver, NftDriver], made: list[Set], other: list[Set]
) -> None:
    one = replace(FRAME, sets={f"one-{number}": each for number, each in enumerate(made)})
    two = replace(FRAME, sets={f"two/{number}": each for number, each in enumerate(other)})
    asyncio.run(written_alike(drivers, FRAME, one, two))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.lists(rules(), min_size=1, max_size=8), second=st.lists(rules(), max_size=4))
def test_a_rule_is_the_same_whoever_wrote_it(
    drivers: tuple[NftDriver, NftDriver], first: list[str], second: list[str]
) -> None:
    frame = replace(FRAME, sets=ASKED)
    new = Chain(rules=tuple(first))
    one = replace(frame, chains={**FRAME.chains, "in-one": new})
    two = replace(frame, chains={**FRAME.chains, "in-one": Chain(rules=tuple(second)), "out/two": new})
    asyncio.run(written_alike(drivers, frame, one, two))
