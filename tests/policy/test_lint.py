"""Each finding of lint: a cluster that shows it, the same mended, and nothing said of what is sound."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_cluster import resource, snapshot
from policy_worlds import worlds
from policy_worlds_rules import rule

from core import manifest
from core.resources import NetworkPolicy, Resource, WorkloadEndpoint
from core.resources.base import Metadata
from core.resources.policy import Action, Direction, NetworkPolicySpec
from core.snapshot import Snapshot
from policy.compile import compile
from policy.model import Cause
from policy.rules import convert_rules
from policy.whatif.findings import CODES, Finding, Severity
from policy.whatif.implies import matches
from policy.whatif.lint import lint
from policy.whatif.rows import reasons

PODS = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n1-k8s-web-eth0, namespace: shop, labels: {app: web}}
spec: {orchestrator: k8s, node: n1, pod: web, endpoint: eth0, ipNetworks: [10.0.0.1/32], profiles: [kns.shop],
  interfaceName: mus1, ports: [{name: http, port: 80, protocol: TCP}]}
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: n1-k8s-db-eth0, namespace: shop, labels: {app: db}}
spec: {orchestrator: k8s, node: n1, pod: db, endpoint: eth0, ipNetworks: [10.0.0.2/32], profiles: [kns.shop],
  interfaceName: mus2, ports: [{name: sql, port: 5432, protocol: TCP}]}
---
apiVersion: projectcalico.org/v3
kind: NetworkSet
metadata: {name: partners, namespace: shop, labels: {role: partner}}
spec: {nets: [192.0.2.0/24]}
"""


def policy(spec: str, name: str = "mine", kind: str = "NetworkPolicy") -> str:
    home = "" if kind.startswith("Global") else ", namespace: shop"
    return f"""
---
apiVersion: projectcalico.org/v3
kind: {kind}
metadata: {{name: {name}{home}}}
spec: {spec}
"""


TIER = """
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: security}
spec: {order: 10}
"""
POOL = """
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: pods}
spec: {cidr: 10.0.0.0/16}
"""
SLICE = """
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: sql-1, namespace: shop, labels: {kubernetes.io/service-name: sql}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.2]}]
ports: [{port: 5432}]
"""
TO_SQL = "destination: {services: {name: sql}}"
KUBERNETES = """
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: k, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from: [{podSelector: {}}]
    - from: [{podSelector: {matchLabels: {app: APP}}}, {ipBlock: {cidr: BLOCK}}]
"""

SHOWN = [
    (
        "no-such-tier",
        "spec.tier",
        policy("{tier: security, selector: all(), ingress: [{action: Allow}]}"),
        policy("{tier: security, selector: all(), ingress: [{action: Allow}]}") + TIER,
    ),
    (
        "only-logs",
        "spec.ingress",
        policy("{selector: app == 'db', ingress: [{action: Log}]}"),
        policy("{selector: app == 'db', ingress: [{action: Log}, {action: Pass}]}"),
    ),
    (
        "selects-nothing",
        "spec.selector",
        policy("{selector: app == 'dbs', ingress: [{action: Allow}]}"),
        policy("{selector: app == 'db', ingress: [{action: Allow}]}"),
    ),
    (
        "after-catch-all",
        "spec.ingress[1]",
        policy("{ingress: [{action: Deny}, {action: Allow, protocol: TCP}]}"),
        policy("{ingress: [{action: Allow, protocol: TCP}, {action: Deny}]}"),
    ),
    (
        "shadowed-rule",
        "spec.ingress[1]",
        policy(
            "{ingress: [{action: Deny, protocol: TCP, destination: {ports: ['1:1000']}},"
            " {action: Allow, protocol: TCP, destination: {ports: [80, 443]}}]}"
        ),
        policy(
            "{ingress: [{action: Deny, protocol: TCP, destination: {ports: ['1:100']}},"
            " {action: Allow, protocol: TCP, destination: {ports: [80, 443]}}]}"
        ),
    ),
    (
        "shadowed-rule",
        "spec.ingress[0]",
        policy("{order: 2, selector: app == 'db', ingress: [{action: Allow, protocol: TCP}]}")
        + policy("{order: 1, selector: has(app), ingress: [{action: Deny, protocol: TCP}]}", "first"),
        policy("{order: 1, selector: app == 'db', ingress: [{action: Allow, protocol: TCP}]}")
        + policy("{order: 2, selector: has(app), ingress: [{action: Deny, protocol: TCP}]}", "first"),
    ),
    (
        "repeated-rule",
        "spec.ingress[1]",
        KUBERNETES.replace("APP", "web")
        .replace("BLOCK", "192.0.2.0/24")
        .replace("{podSelector: {}}", "{}")
        .replace("from: [{}]", "ports: []"),
        KUBERNETES.replace("APP", "web").replace("BLOCK", "192.0.2.0/24"),
    ),
    (
        "never-decides",
        "spec.ingress[2]",
        policy(
            "{ingress: [{action: Allow, source: {selector: app == 'web'}},"
            " {action: Allow, source: {selector: app == 'db'}}, {action: Deny, source: {selector: has(app)}}]}"
        ),
        policy(
            "{ingress: [{action: Allow, source: {selector: app == 'web'}},"
            " {action: Deny, source: {selector: has(app)}}]}"
        ),
    ),
    (
        "peer-matches-nothing",
        "spec.ingress[0]",
        policy("{ingress: [{action: Allow, source: {selector: role == 'partners'}}]}"),
        policy("{ingress: [{action: Allow, source: {selector: role == 'partner'}}]}"),
    ),
    (
        "service-of-nobody",
        "spec.egress[1]",
        policy(f"{{egress: [{{action: Allow, {TO_SQL}}}, {{action: Allow, {TO_SQL.replace('sql', 'sqls')}}}]}}")
        + SLICE,
        policy(f"{{egress: [{{action: Allow, {TO_SQL}}}]}}") + SLICE,
    ),
    (
        "unknown-port-name",
        "spec.ingress[0]",
        policy("{selector: app == 'web', ingress: [{action: Allow, protocol: TCP, destination: {ports: [sql]}}]}"),
        policy("{selector: app == 'db', ingress: [{action: Allow, protocol: TCP, destination: {ports: [sql]}}]}"),
    ),
    (
        "unknown-port-name",
        "spec.egress[0]",
        policy("{egress: [{action: Allow, protocol: UDP, destination: {selector: all(), ports: [sql]}}]}"),
        policy("{egress: [{action: Allow, protocol: TCP, destination: {selector: all(), ports: [sql]}}]}"),
    ),
    (
        "prefix-of-pods",
        "spec.ingress[0]",
        policy("{ingress: [{action: Allow, source: {nets: [10.0.0.0/8]}}]}") + POOL,
        policy("{ingress: [{action: Allow, source: {nets: [10.1.0.0/16, 0.0.0.0/0]}}]}") + POOL,
    ),
    (
        "prefix-of-pods",
        "spec.egress[0]",
        policy("{egress: [{action: Allow, destination: {nets: [10.0.0.2/31]}}]}"),
        policy("{egress: [{action: Allow, destination: {nets: [10.0.0.4/31]}}]}"),
    ),
    ("isolates", "spec", policy("{types: [Ingress]}"), policy("{ingress: [{action: Allow, protocol: TCP}]}")),
    ("empty-tier", "", TIER, TIER + policy("{tier: security, ingress: [{action: Allow}]}")),
]


def findings(text: str) -> list[Finding]:
    return lint(snapshot(manifest.load(text, "cluster.yaml")))


@pytest.mark.parametrize(("code", "path", "wrong", "right"), SHOWN, ids=[f"{each[0]} {each[1]}" for each in SHOWN])
def test_a_finding_is_shown_where_it_is_and_gone_when_it_is_mended(
    code: str, path: str, wrong: str, right: str
) -> None:
    found = [(each.code, each.path) for each in findings(PODS + wrong)]
    assert (code, path) in found
    assert code not in [each.code for each in findings(PODS + right)]
    # One mistake is told once: nothing else as grave is said of the same place.
    assert len([each for each in found if each[1] == path]) == 1


def test_what_an_older_version_has_let_in_and_nobody_can_enforce_is_told() -> None:
    spec = {"ingress": [{"action": "Allow", "protocol": "TCP", "http": {"methods": ["GET"]}}]}
    old = resource(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "NetworkPolicy",
            "metadata": {"name": "old", "namespace": "shop"},
            "spec": spec,
        }
    )
    found = lint(snapshot([*manifest.load(PODS, "cluster.yaml"), old]))
    assert ("not-enforced", "") in [(each.code, each.path) for each in found]
    assert "http needs a proxy" in found[0].what


def test_every_other_code_has_a_cluster_that_shows_it() -> None:
    assert {code for code, *_ in SHOWN} == CODES.keys() - {"not-compared", "not-enforced"}


def test_rules_beyond_the_bound_are_told_and_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.whatif.shadows.MOST_COMPARED", 5_000)
    many = ", ".join(f"{{action: Deny, protocol: TCP, destination: {{ports: [{n}]}}}}" for n in range(1, 101))
    text = "".join(policy(f"{{order: {n}, ingress: [{many}]}}", f"many{n}") for n in range(1, 3))
    assert "not-compared" in {each.code for each in findings(text)}


def test_a_policy_whose_services_are_of_nobody_is_no_default_deny() -> None:
    text = policy(f"{{egress: [{{action: Allow, {TO_SQL}}}]}}")
    assert [(each.code, each.path) for each in findings(PODS + text)] == [("service-of-nobody", "spec.egress[0]")]
    assert findings(text) == []


def test_manifests_without_endpoints_are_judged_by_their_words_alone() -> None:
    text = policy("{tier: security, selector: app == 'dbs', ingress: [{action: Allow, source: {selector: has(a)}}]}")
    assert {each.code for each in findings(text)} == {"no-such-tier"}


def test_a_policy_of_pods_is_not_looked_for_among_hosts_alone() -> None:
    host = """
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: eth0, labels: {faces: world}}
spec: {node: n1, interfaceName: eth0}
"""
    rules = "ingress: [{action: Allow}]"
    for kind in ("NetworkPolicy", "GlobalNetworkPolicy"):
        assert findings(host + policy(f"{{selector: app == 'db', {rules}}}", kind=kind)) == []
    early = f"{{selector: faces == 'rack', doNotTrack: true, applyOnForward: true, {rules}}}"
    of_hosts = policy(early, kind="GlobalNetworkPolicy")
    assert [each.code for each in findings(host + of_hosts)] == ["selects-nothing"]
    assert findings(of_hosts) == []


def test_what_is_sound_is_left_alone() -> None:
    assert (
        findings(PODS + policy("{selector: app == 'db', ingress: [{action: Allow, source: {selector: app == 'web'}}]}"))
        == []
    )


def test_the_gravest_come_first() -> None:
    found = findings(PODS + "".join(SHOWN[0][2]) + TIER.replace("security", "other"))
    assert [each.severity for each in found] == sorted((e.severity for e in found), key=list(Severity).index)
    assert all(each.remedy for each in found)


SETTINGS = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@SETTINGS
@given(seed=st.integers(0, 2**32 - 1))
def test_a_rule_whose_match_an_earlier_one_covers_decides_nothing(seed: int) -> None:
    """Implication, held to the compiler: an outer rule first, the inner one never is a reason."""
    rng = Random(seed)
    world = [each for each in worlds().draw(rng).resources if not isinstance(each, NetworkPolicy)]
    for _ in range(200):
        outer, inner = (
            msgspec.structs.replace(rule().draw(rng), action=action) for action in (Action.ALLOW, Action.DENY)
        )
        rules, closed = convert_rules(list(enumerate([outer, inner])), "a")[:2]
        if closed or len(rules) != 2 or not matches(rules[1].match, rules[0].match):
            continue
        spec = NetworkPolicySpec(order=-1.0, tier="kube-admin", ingress=[outer, inner], types=list(Direction)[:1])
        mine = NetworkPolicy(metadata=Metadata(name="mine", namespace="a"), spec=spec)
        state = snapshot([*world, mine])
        assert not decides(state, mine, 1), f"{rules[1].match} => {rules[0].match}"
        return


def decides(state: Snapshot, policy: Resource, index: int) -> bool:
    compiled = compile(state, state.of(WorkloadEndpoint))
    return any(
        reason.cause is Cause.RULE and reason.policy == policy.key and reason.rule == index
        for reason in reasons(compiled.tables.values())
    )


COVERED = [
    ("app == 'web'", "app in {'web', 'db'}", True),
    ("app == 'web'", "has(app)", True),
    ("app in {'web', 'db'} && env == 'x'", "app in {'web', 'db', 'w'}", True),
    ("app == 'web' || app == 'db'", "app in {'web', 'db'}", True),
    ("app == 'web'", "app == 'db'", False),
    ("has(app)", "app == 'web'", False),
    ("app == 'web'", "app == 'web' && env == 'x'", False),
    ("app == 'web' && env == 'x'", "env == 'x' && app == 'web'", True),
]


@pytest.mark.parametrize(("later", "earlier", "covered"), COVERED)
@pytest.mark.parametrize("side", ["source", "destination"])
def test_an_earlier_rule_is_found_by_what_the_later_one_asks(
    later: str, earlier: str, covered: bool, side: str
) -> None:
    text = policy(
        f'{{egress: [{{action: Deny, {side}: {{selector: "{earlier}"}}}},'
        f' {{action: Allow, {side}: {{selector: "{later}"}}}}]}}'
    )
    assert ("shadowed-rule" in {each.code for each in findings(text)}) is covered
