"""A table that comes in parts flattens to what the whole does, at the cost of the parts that are new."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.nftables import Chain, Element, Ruleset, Set
from core.reconcile import Reconciler
from linux.nft import NftDriver
from linux.nft_objects import Object, Value, flatten
from linux.nft_parts import Flattener


def whole(parts: Mapping[str, Ruleset]) -> Mapping[Object, Value]:
    """All parts as one table, by the plain way."""
    sets, chains, elements, counters = {}, {}, {}, set()
    for part in parts.values():
        sets.update(part.sets)
        chains.update(part.chains)
        elements.update(part.elements)
        counters |= part.counters
    return flatten(Ruleset(sets=sets, chains=chains, elements=elements, counters=frozenset(counters)))


FRAME = Ruleset(
    sets={"verdicts": Set(key=("mark",), value="verdict"), "counters": Set(key=("mark",), value="counter")},
    chains={"main": Chain(rules=("meta mark vmap @verdicts",))},
)


def frame(*, counter: bool) -> Ruleset:
    return Ruleset(
        sets={**FRAME.sets, "verdicts": Set(key=("mark",), value="verdict", counter=counter)}, chains=FRAME.chains
    )


def stack(name: str, rules: int, port: int, *, shared: bool) -> Ruleset:
    asks = ("meta mark vmap @verdicts",) if shared else ()
    own = {name: Set(key=("inet_service",), value="mark")}
    return Ruleset(
        sets=own,
        elements={Element(name, str(port)): "65536", Element("counters", str(sum(name.encode()))): f"n-{name}"},
        chains={f"in-{name}": Chain(rules=(*asks, f"meta mark set tcp dport map @{name}", *("accept",) * rules))},
        counters=frozenset({f"n-{name}"}),
    )


stacks = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.tuples(st.integers(0, 1), st.integers(80, 81), st.booleans()),
)
states = st.tuples(st.booleans(), stacks)


def build(walk: list[tuple[bool, Mapping[str, tuple[int, int, bool]]]]) -> list[dict[str, Ruleset]]:
    """States that share every part that is equal."""
    seen: dict[object, Ruleset] = {}
    built = []
    for counter, wanted in walk:
        parts = {"frame": seen.setdefault(counter, frame(counter=counter))}
        for name, (rules, port, shared) in wanted.items():
            parts[name] = seen.setdefault((name, rules, port, shared), stack(name, rules, port, shared=shared))
        built.append(parts)
    return built


@given(st.lists(states, max_size=6))
def test_parts_flatten_to_what_the_whole_does(walk: list[tuple[bool, Mapping[str, tuple[int, int, bool]]]]) -> None:
    flattener = Flattener()
    for parts in build(walk):
        assert flattener.flatten(parts).flat() == whole(parts)


@pytest.mark.kernel
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(states, min_size=1, max_size=5))
def test_the_kernel_follows_states_in_parts(walk: list[tuple[bool, Mapping[str, tuple[int, int, bool]]]]) -> None:
    async def run() -> None:
        driver, flattener = NftDriver(), Flattener()
        reconciler: Reconciler[Object, Value] = Reconciler(driver)
        for revision, parts in enumerate(build(walk), 1):
            reconciler.set_desired(flattener.flatten(parts), revision)
            progress = await reconciler.step()
            assert progress.healthy, progress
            assert await driver.read() == whole(parts)
        driver.close()

    asyncio.run(run())


def test_what_is_the_same_is_the_same_object() -> None:
    flattener = Flattener()
    first, second = build(
        [(False, {"a": (0, 80, True), "b": (0, 80, False)}), (True, {"a": (0, 80, True), "b": (0, 80, False)})]
    )
    before, after = flattener.flatten(first), flattener.flatten(second)
    assert after.parts["b"] is before.parts["b"]
    assert after.parts["a"] is not before.parts["a"], "it asks a set of the frame, whose type is another now"
    again = flattener.flatten(dict(second))
    assert all(again.parts[name] is part for name, part in after.parts.items())
