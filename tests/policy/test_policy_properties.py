"""What the tables say is what the rules say: compiled look-ups against the naive oracle, on random clusters.

MUSLIN_FUZZ=deep asks many more, at random; otherwise the examples are the same in every run.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from itertools import pairwise
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_cluster import packet, snapshot
from policy_oracle import Answer, Oracle
from policy_worlds import World, flows, worlds

from core.names import Key
from core.nftables import join
from core.resources.network import WorkloadEndpoint
from core.resources.policy import Direction
from policy.compile import Compiled, compile
from policy.evaluate import lookup
from policy.model import Cause, Decision, Verdict
from policy.render import machinery, render

DEEP = os.environ.get("MUSLIN_FUZZ") == "deep"
FLOWS = 24
WORLDS = 20_000 if DEEP else 280
"""Times four pods, two directions and FLOWS: more than 50,000 packets in each ordinary run."""

JUDGEMENT = "judge"
"""A chain that is not policy's to make."""

SEEDS = st.integers(0, 2**32 - 1)
settings.register_profile(
    "policy",
    max_examples=20_000 if DEEP else 120,
    derandomize=not DEEP,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
SETTINGS = settings.get_profile("policy")


def full_name(policy: Key) -> str:
    kind = "KubernetesNetworkPolicy" if policy.kind.group == "networking.k8s.io" else policy.kind.name
    return f"{policy.name}/{policy.namespace}/{kind}"


def words(decision: Decision) -> str:
    """The decision's reason as the oracle words it."""
    reason = decision.reason
    if reason.cause is Cause.RULE:
        assert reason.policy is not None
        return f"{full_name(reason.policy)} rule {reason.rule}"
    return {
        Cause.END_OF_TIER: f"end of {reason.tier}: {', '.join(map(full_name, reason.policies))}",
        Cause.PROFILE_RULE: reason.profile,
        Cause.NO_PROFILE_RULE: "no profile rule",
        Cause.MISSING_PROFILE: f"no {reason.profile}",
    }[reason.cause]


@settings(SETTINGS, max_examples=WORLDS)
@given(seed=SEEDS)
def test_tables_decide_as_the_rules_do(seed: int) -> None:
    rng = Random(seed)
    world: World = worlds().draw(rng)
    state = snapshot(world.resources)
    compiled = compile(state, world.local)
    oracle = Oracle(world.resources)
    for endpoint in world.local:
        manifest = state.of(WorkloadEndpoint)[endpoint]
        for direction in Direction:
            ingress = direction is Direction.INGRESS
            for flow in [flows(endpoint, direction).draw(rng) for _ in range(FLOWS)]:
                asked = packet(
                    flow.source,
                    flow.destination,
                    flow.protocol,
                    ingress=ingress,
                    sport=flow.sport,
                    dport=flow.dport,
                    icmp=flow.icmp,
                )
                decision = lookup(compiled, endpoint, direction, asked)
                found = Answer(str(decision.verdict), words(decision))
                assert found == oracle.answer(manifest, str(direction), flow), flow


@SETTINGS
@given(seed=SEEDS)
def test_the_order_of_objects_does_not_matter(seed: int) -> None:
    rng = Random(seed)
    world: World = worlds().draw(rng)
    shuffled = rng.sample(world.resources, len(world.resources))
    one = render(compile(snapshot(world.resources), world.local))
    other = render(compile(snapshot(shuffled), reversed(world.local)))
    assert repr(one) == repr(other)


@SETTINGS
@given(seed=SEEDS)
def test_every_name_is_there(seed: int) -> None:
    world: World = worlds().draw(Random(seed))
    ruleset = join(machinery([JUDGEMENT]), *render(compile(snapshot(world.resources), world.local)).values())
    texts = [rule for chain in ruleset.chains.values() for rule in chain.rules] + list(ruleset.elements.values())
    for text in texts:
        for word, after in pairwise(text.replace(",", "").split()):
            if word in ("goto", "jump"):
                assert after in {JUDGEMENT, *ruleset.chains}
            if after.startswith("@"):
                assert after.removeprefix("@") in ruleset.sets
    assert {element.set for element in ruleset.elements} <= set(ruleset.sets)


@SETTINGS
@given(seed=SEEDS)
def test_a_truncated_packet_passes_only_where_no_port_matters(seed: int) -> None:
    """Whatever a cut-off packet may do, some whole packet of its protocol may do: nothing opens by hiding the ports."""
    rng = Random(seed)
    world: World = worlds().draw(rng)
    state = snapshot(world.resources)
    compiled: Compiled = compile(state, world.local)
    for endpoint in world.local:
        own = state.of(WorkloadEndpoint)[endpoint].spec.addresses[0]
        for direction in Direction:
            flow = flows(endpoint, direction).draw(rng)
            ingress = direction is Direction.INGRESS
            peer = flow.source if ingress else flow.destination
            if ip_address(peer).version != own.version:
                continue
            ends = (peer, str(own)) if ingress else (str(own), peer)
            short = lookup(compiled, endpoint, direction, packet(*ends, 6, ingress=ingress))
            if short.verdict is Verdict.ALLOW:
                for port in (0, 53, 80, 443, 65535):
                    whole = packet(*ends, 6, ingress=ingress, sport=port, dport=port)
                    assert lookup(compiled, endpoint, direction, whole).verdict is Verdict.ALLOW
