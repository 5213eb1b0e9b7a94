"""Rendering state after state: what comes out depends on the state alone, and what did not change is shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random

import pytest
from policy_cluster import snapshot
from policy_worlds import World, worlds

from core.nftables import Ruleset, join
from linux.nft_objects import flatten
from linux.nft_parts import Flattener
from policy import model, outcomes
from policy.compile import Compiled, compile
from policy.model import ALL_PORTS, Cause, Decision, Line, Reason, Residual, Table, Verdict, Watched
from policy.outcomes import Answer, answers, counter, reasons
from policy.render import Renderer, render
from policy.tally import tally


def compiled(seed: int) -> Compiled:
    world: World = worlds().draw(Random(seed))
    return compile(snapshot(world.resources), world.local)


def with_some_tables(state: Compiled, other: Compiled, rng: Random) -> Compiled:
    """The state with some of its tables gone, and some of another's: tables that are shared with what came before."""
    kept = {name: table for name, table in state.tables.items() if rng.random() < 0.8}
    more = {name: table for name, table in other.tables.items() if name not in kept and rng.random() < 0.3}
    return replace(state, tables={**kept, **more})


def settled(renderer: Renderer, state: Compiled) -> Mapping[str, Ruleset]:
    """What comes of a state once every outcome has its own number."""
    found = renderer.render(state)
    return found if renderer.settled else renderer.render(state)


def test_a_renderer_with_a_past_renders_as_one_without() -> None:
    rng = Random(1)
    states = [compiled(seed) for seed in range(300, 306)]
    renderer = Renderer()
    for _ in range(40):
        state = with_some_tables(rng.choice(states), rng.choice(states), rng)
        found, fresh = settled(renderer, state), render(state)
        assert {name: part for name, part in found.items() if part.elements or part.chains} == {
            name: part for name, part in fresh.items() if part.elements or part.chains
        }
        assert join(*found.values()).counters == join(*fresh.values()).counters


def test_what_does_not_change_is_the_same_object() -> None:
    state, renderer = compiled(300), Renderer()
    before, after = renderer.render(state), renderer.render(state)
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    one = next(iter(state.tables))
    fewer = renderer.render(replace(state, tables={name: t for name, t in state.tables.items() if name != one}))
    assert one not in fewer
    assert all(fewer[name] is before[name] for name in state.tables if name != one)


def test_every_answer_of_a_table_has_a_counter_or_leads_to_one() -> None:
    for seed in range(300, 310):
        for table in compiled(seed).tables.values():
            names = {name for name, _ in reasons(table)}
            for answer in answers(table):
                if isinstance(answer.outcome, Decision):
                    assert counter(answer.plane, answer.outcome) in names


def decision(verdict: Verdict, rule: int) -> Decision:
    return Decision(verdict, Reason(cause=Cause.RULE, direction=TABLE.direction, tier="default", rule=rule))


TABLE = next(iter(compiled(300).tables.values()))


def test_an_outcome_that_staged_policies_would_change_counts_both() -> None:
    """A residual that is only foreseen jumps, counts and returns; what is enforced follows."""
    allowed, denied = decision(Verdict.ALLOW, 0), decision(Verdict.DENY, 1)
    perhaps = Residual((Line(model.Tests(sports=(ALL_PORTS,)), denied),), allowed)
    table = Table(name="in-1", direction=TABLE.direction, otherwise=denied, constant=Watched(allowed, perhaps))
    state = replace(compiled(300), tables={"in-1": table})
    whole = join(*render(state).values())
    answer = Answer(table.plane, table.direction, Watched(allowed, perhaps))
    name = f"staged-{answer.digest().hex()[:12]}"
    assert whole.chains[name].rules[0] == f"jump {name}-p"
    assert whole.chains[name].rules[1].endswith("goto decided")
    foreseen = whole.chains[f"{name}-p"].rules
    assert foreseen[1].endswith("return")
    assert {counter(table.plane, each, pending=True) for each in (allowed, denied)} <= whole.counters


def test_an_outcome_that_loses_its_number_leaves_it_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more outcomes than there are numbers some are denied, and none keeps a number that is another's by now."""
    monkeypatch.setattr(outcomes, "MOST_OUTCOMES", 700)
    plain, denied = compiled(300), decision(Verdict.DENY, 0)
    one = Table(name="in-1", direction=TABLE.direction, otherwise=denied)
    many = {(1, 6, port): decision(Verdict.ALLOW, port + 1) for port in range(650)}
    crowd = {"in-0": replace(one, name="in-0", port=many)}
    for rule in range(651, 900):
        perhaps = Residual((Line(model.Tests(sports=(ALL_PORTS,)), denied),), decision(Verdict.ALLOW, rule))
        crowd[f"in-{rule}"] = replace(one, name=f"in-{rule}", constant=Watched(perhaps, denied))
    renderer = Renderer()
    renderer.render(replace(plain, tables=crowd))
    more = replace(one, any={number: decision(Verdict.ALLOW, 7_000 + number) for number in range(60)})
    state = replace(plain, tables={**crowd, "in-1": more})
    found, fresh = settled(renderer, state), render(state)
    assert not [name for name, part in fresh.items() if found[name] != part]
    chains = join(*fresh.values()).chains
    said = [rule.rpartition(" ")[2] for chain in chains.values() for rule in chain.rules if "goto residual-" in rule]
    assert said
    assert not [chain for chain in said if chain not in chains]


def test_names_that_look_like_our_own_words_are_counted_apart() -> None:
    """A tier and a profile may be called what they like; two reasons never share a counter."""
    direction = TABLE.direction
    reasons_of = {
        Reason(cause=Cause.MISSING_PROFILE, direction=direction, profile="end-of-tier"): ("", "profile/end-of-tier"),
        Reason(cause=Cause.END_OF_TIER, direction=direction, tier="missing-profile"): ("missing-profile", ""),
        Reason(cause=Cause.END_OF_TIER, direction=direction, tier="unreadable-policy"): ("unreadable-policy", ""),
        Reason(cause=Cause.END_OF_TIER, direction=direction, tier="profile"): ("profile", ""),
        Reason(cause=Cause.PROFILE_RULE, direction=direction, profile="end-of-tier", rule=0): ("", "end-of-tier"),
    }
    outcomes = {number: Decision(Verdict.DENY, each) for number, each in enumerate(reasons_of, 1)}
    table = Table(name="in-1", direction=direction, otherwise=decision(Verdict.DENY, 0), any=outcomes)
    parts = render(replace(compiled(300), tables={"in-1": table}))
    assert len(Flattener().flatten(parts).flat()) == sum(len(flatten(part)) for part in parts.values())
    for outcome in outcomes.values():
        tier, why = reasons_of[outcome.reason]
        told = tally(counter(table.plane, outcome))
        assert told.tier == tier
        assert why in told.why
