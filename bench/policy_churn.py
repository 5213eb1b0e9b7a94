"""policy-churn: a pod more on a node of 250, an address more in a selector of 100,000, a policy's content more, in nft.

The table is as big as such a node's: a stack of chains and maps for each of 250 pods, 5,000 outcomes with a counter
each, 100,000 addresses of known identity. The pod shares a stack and brings its dispatch, source and identity; the
address brings its identity; a stack's content is a chain, three maps and 50 elements, which come and go. Timed is
`NftDriver.apply` from the plan to the kernel's word that it is done; the peer is the same transaction as text through
libnftables, which lists the table first. Pod and address are taken back untimed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from ipaddress import IPv4Address
from statistics import median
from typing import Final

from bench.model import Bench, Figures, Subjects, at_most
from core.nftables import Chain, Element, Hook, Ruleset, Set
from core.reconcile import Plan, diff
from linux.libnftables import Nft
from linux.netns import scratch_namespace
from linux.nft import NftDriver
from linux.nft_objects import Object, Value, flatten
from linux.nft_script import script
from linux.rights import require_net_admin

ADDRESS: Final = "address us"
STACK: Final = "stack us"

BENCH: Final = Bench(
    name="policy-churn",
    what="a pod more on a node of 250 (and an address more in a selector of 100,000) into the kernel",
    unit="us",
    peer="libnftables",
    targets=(
        at_most(3000, absolute=True),
        at_most(1000, of=ADDRESS, absolute=True),
        at_most(5000, of=STACK, absolute=True),
    ),
)

PODS: Final = 250
OUTCOMES: Final = 5000
ADDRESSES: Final = 100_000
CHANGES: Final = 20
_FIRST: Final = int(IPv4Address("10.0.0.0"))


def table() -> Ruleset:
    """A node's table, in the layout that policy.render and felix write."""
    chains = {
        "forward": Chain(
            hook=Hook(type="filter", hook="forward", priority=0),
            rules=("iifname . ip saddr != @sources4 drop", "iifname vmap @from-workload", "oifname vmap @to-workload"),
        ),
        "identify": Chain(rules=("meta mark set ip saddr map @identity4 return",)),
        "conclude": Chain(rules=("counter name meta mark & 0xffff0000 map @counters", "meta mark vmap @verdicts")),
    }
    sets = {
        "sources4": Set(key=("ifname", "ipv4_addr")),
        "from-workload": Set(key=("ifname",), value="verdict"),
        "to-workload": Set(key=("ifname",), value="verdict"),
        "identity4": Set(key=("ipv4_addr",), value="mark"),
        "counters": Set(key=("mark",), value="counter"),
        "verdicts": Set(key=("mark",), value="verdict"),
    }
    elements = {identity(number): str(number % 1000 << 16) for number in range(ADDRESSES)}
    for number in range(PODS):
        for stack in (f"in-{number}", f"out-{number}"):
            sets[f"{stack}-port"] = Set(key=("mark", "inet_proto", "inet_service"), value="mark")
            sets[f"{stack}-any"] = Set(key=("mark",), value="mark")
            chains[stack] = Chain(
                rules=(
                    "jump identify",
                    f"meta mark set meta mark . meta l4proto . th dport map @{stack}-port goto conclude",
                    f"meta mark set meta mark map @{stack}-any goto conclude",
                    "goto conclude",
                )
            )
            elements |= {Element(f"{stack}-port", f"{port << 16} . 6 . {port}"): "65536" for port in range(20)}
        elements |= pod(number, number)
    for number in range(OUTCOMES):
        elements[Element("counters", str(number << 16))] = f"reason-{number}"
        elements[Element("verdicts", str(number << 16))] = "accept"
    counters = frozenset(f"reason-{number}" for number in range(OUTCOMES))
    return Ruleset(chains=chains, sets=sets, elements=elements, counters=counters)


def identity(number: int) -> Element:
    """Where the class of the address of that number stands."""
    return Element("identity4", str(IPv4Address(_FIRST + number)))


def pod(number: int, stack: int) -> dict[Element, str]:
    """What makes a pod known: its source and its dispatch."""
    interface = f'"mus{number:011x}"'
    return {
        Element("from-workload", interface): f"goto out-{stack}",
        Element("to-workload", interface): f"goto in-{stack}",
        Element("sources4", f"{interface} . {IPv4Address(_FIRST + number)}"): "",
    }


def content(name: str) -> Ruleset:
    """What a stack is made of anew when its policies change."""
    sets = {
        f"{name}-port": Set(key=("mark", "inet_proto", "inet_service"), value="mark"),
        f"{name}-range": Set(key=("mark", "inet_proto", "inet_service"), value="mark", interval=True),
        f"{name}-any": Set(key=("mark",), value="mark"),
    }
    chain = Chain(
        rules=(
            "jump identify",
            f"meta mark set meta mark . meta l4proto . th dport map @{name}-port return",
            f"meta mark set meta mark . meta l4proto . th dport map @{name}-range return",
            "meta mark 0xfffe0000 return",
            f"meta l4proto 0-255 meta mark set meta mark map @{name}-any return",
            "meta mark set 0x00010000",
        )
    )
    elements = {Element(f"{name}-port", f"{port << 16} . 6 . {port}"): "65536" for port in range(40)}
    elements |= {Element(f"{name}-range", f"{port << 16} . 6 . 80-90"): "65536" for port in range(5)}
    elements |= {Element(f"{name}-any", str(port << 16)): "65536" for port in range(5)}
    return Ruleset(chains={name: chain}, sets=sets, elements=elements)


@contextmanager
def subjects() -> Iterator[Subjects]:
    """In a namespace of its own, which holds the table."""
    require_net_admin()
    with scratch_namespace(), closing(NftDriver()) as driver, closing(Nft()) as nft, asyncio.Runner() as runner:
        whole = flatten(table())
        failed = runner.run(driver.apply(diff(whole, {})))
        assert not failed, next(iter(failed.values()))

        def by_driver(plan: Plan[Object, Value]) -> float:
            async def timed() -> float:
                begun = time.perf_counter()
                failed = await driver.apply(plan)
                took = time.perf_counter() - begun
                assert not failed, next(iter(failed.values()))
                return took

            return runner.run(timed())

        def by_library(plan: Plan[Object, Value]) -> float:
            text = "\n".join(line.text for line in script("inet muslin", plan, whole)) + "\n"
            begun = time.perf_counter()
            nft.run(text)
            return time.perf_counter() - begun

        yield Subjects(lambda: _turn(by_driver, by_driver), lambda: _turn(by_library, by_driver))


def _turn(apply: Callable[[Plan[Object, Value]], float], undo: Callable[[Plan[Object, Value]], float]) -> Figures:
    """Median microseconds of `CHANGES` of each kind, each taken back; a stack's include that."""
    known = [{identity(ADDRESSES + number): "65536"} for number in range(CHANGES)]
    pods = [{**pod(PODS + number, number), **known[number]} for number in range(CHANGES)]
    found = []
    for changes in (pods, known):
        took = []
        for elements in changes:
            change = flatten(Ruleset(elements=elements))
            took.append(apply(Plan(change, {})))
            undo(Plan({}, change))
        found.append(median(took) * 1e6)
    contents = [flatten(content(f"in-new-{number}")) for number in range(CHANGES)]
    stacks = median([apply(Plan(each, {})) + apply(Plan({}, each)) for each in contents]) * 1e6
    return Figures(found[0], {ADDRESS: found[1], STACK: stacks})
