"""What the policy benchmarks measure: the rules they write, and that both ways to write them judge packets alike."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from bench.datagrams import Path, arrives, looked_up, walked, wired
from bench.many_policies import NODE, cluster
from bench.policy_connect import serving
from bench.rule_walking import render
from bench.two_pods import TwoPods
from core.names import Key
from core.resources import GlobalNetworkPolicy, Metadata, Resource, Tier
from core.resources.policy import Action, Direction, EntityRule, GlobalNetworkPolicySpec, Rule, TierSpec
from core.snapshot import Snapshot

WEB = EntityRule(selector="app == 'web'")
FARAWAY = ["10.9.0.0/16", "10.8.0.0/16"]


def udp(action: Action, source: EntityRule, *ports: int | str) -> Rule:
    return Rule(action=action, protocol="UDP", source=source, destination=EntityRule(ports=list(ports)))


def policy(name: str, order: float, *rules: Rule, tier: str = "default") -> tuple[Key, Resource]:
    spec = GlobalNetworkPolicySpec(
        tier=tier, order=order, selector="app == 'db'", types=[Direction.INGRESS], ingress=list(rules)
    )
    made = GlobalNetworkPolicy(metadata=Metadata(name=name), spec=spec)
    return made.key, made


def tiers() -> Snapshot:
    """Nets one by one, first matches, Pass, the ends of tiers, and a group of policies long enough to return early."""
    strict = Tier(metadata=Metadata(name="strict"), spec=TierSpec(order=200.0, default_action=Action.DENY))
    return cluster(0).apply(
        2,
        [
            (strict.key, strict),
            policy(
                "platform.guard",
                1.0,
                udp(Action.DENY, EntityRule(nets=[*FARAWAY, "10.0.0.1/32"]), 5000),
                udp(Action.DENY, EntityRule(nets=FARAWAY), 5001),
                udp(Action.PASS, WEB, "5001:5002"),
                udp(Action.DENY, WEB, 5002),
                tier="platform",
            ),
            policy(
                "strict.some",
                1.0,
                udp(Action.ALLOW, WEB, 5003),
                udp(Action.PASS, WEB, 5000, 5001, 5002, 5005),
                tier="strict",
            ),
            policy("early", 1.0, udp(Action.ALLOW, WEB, 5001)),
            *(policy(f"nothing-{n}", 2.0 + n, udp(Action.ALLOW, EntityRule(nets=FARAWAY))) for n in range(6)),
            policy("late", 9.0, udp(Action.ALLOW, WEB, 5000, "5002:5004")),
            policy("never", 10.0, udp(Action.DENY, WEB)),
        ],
    )


def look_up(node: TwoPods, snapshot: Snapshot) -> None:
    node.program(snapshot)


def walk(node: TwoPods, snapshot: Snapshot) -> None:
    node.program(cluster(0))
    node.load("delete table inet muslin")
    node.load(render(snapshot, NODE))


@pytest.mark.parametrize("written", [look_up, walk])
def test_looked_up_and_walked_rules_judge_alike(written: Callable[[TwoPods, Snapshot], None]) -> None:
    with wired(f"judge-{written.__name__}") as path:
        written(path.node, tiers())
        path.await_neighbours(5001)
        found = {port for port in range(5000, 5006) if arrives(path.node, "web", "db", port)}
    assert found == {5001, 5002, 5003}


@pytest.mark.parametrize("made", [looked_up, walked])
@pytest.mark.parametrize("rules", [10, 120])
def test_a_measured_path_carries_what_its_policies_allow(
    made: Callable[[int], AbstractContextManager[Path]], rules: int
) -> None:
    with made(rules) as path:
        assert path.cost(100) > 0


def test_a_path_that_loses_what_it_measures_says_so() -> None:
    with looked_up(10) as path:
        path.await_neighbours()
        path.node.load(
            "table inet bench { chain lossy { type filter hook forward priority 5; numgen inc mod 2 0 drop; }; }"
        )
        with pytest.raises(AssertionError, match="of 100 packets arrived"):
            path.cost(100)


@pytest.mark.parametrize("rules", [10, 100, 1000])
def test_as_many_rules_apply_each_way_as_asked_for(rules: int) -> None:
    specs = [each.spec for each in cluster(rules).of(GlobalNetworkPolicy).values()]
    assert sum(len(spec.ingress or ()) for spec in specs) == rules
    assert sum(len(spec.egress or ()) for spec in specs) == rules


def test_the_walked_rendering_has_both_families_and_two_lines_a_rule() -> None:
    def lines(family: int) -> list[str]:
        chain = next(line for line in render(tiers(), NODE, family).splitlines() if "pi-strict/some " in line)
        return chain.partition("{")[2].rstrip("} ").rstrip(";").split("; ")

    assert len(lines(4)) == len(lines(6)) == 4
    assert "ip saddr @cali40s-" in lines(4)[0]
    assert "ip6 saddr @cali60s-" in lines(6)[0]


def test_the_kernel_takes_the_walked_rendering_of_ipv6_where_nets_of_ipv4_match_nothing() -> None:
    rendered = render(tiers(), NODE, 6)
    assert "10.9.0.0" not in rendered
    with wired("ipv6") as path:
        path.node.load(rendered)


@pytest.mark.parametrize(
    "rule",
    [
        udp(Action.LOG, WEB, 1),
        udp(Action.ALLOW, EntityRule(not_nets=FARAWAY), 1),
        udp(Action.ALLOW, WEB, *range(16)),
        Rule(action=Action.ALLOW, not_protocol="UDP"),
    ],
)
def test_what_the_walked_rendering_has_no_words_for_is_refused(rule: Rule) -> None:
    with pytest.raises(ValueError, match="walked rendering"):
        render(cluster(0).apply(2, [policy("odd", 1.0, rule)]), NODE)


def test_every_connection_that_is_measured_is_made() -> None:
    with serving(100) as served:
        before = served.node.counted("db", "Tcp", "PassiveOpens")
        figures = served.connect(50)
        assert served.node.counted("db", "Tcp", "PassiveOpens") - before == 50
    assert figures.figure > figures.others["p99 us"] / 50 > 0
