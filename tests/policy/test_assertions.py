"""Policy tests: what is kept, what fails and why, and what is no sound test."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_cluster import key, packet, snapshot
from policy_worlds import HOSTS, LOCAL, PODS, flows, worlds

from core import manifest
from core.resources.policy import Direction
from policy.compile import compile
from policy.evaluate import lookup
from policy.model import Verdict
from policy.whatif.assertions import Failure, check
from policy.whatif.plan import cause
from policy.whatif.suite import API_VERSION, KIND, asked, cluster, read
from policy.whatif.traffic import summary

POLICIES = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-to-db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: sql}, {port: 8000, endPort: 8010}]
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: pings}
spec:
  order: 1
  types: [Ingress]
  ingress:
    - {action: Deny, protocol: ICMP, icmp: {type: 8}}
    - {action: Allow, protocol: ICMP}
    - {action: Allow, protocol: ICMPv6}
"""

CLUSTER = """
families: [4, 6]
namespaces:
  office: {labels: {team: staff}}
pods:
  shop/web: {labels: {app: web}}
  shop/db: {labels: {app: db}, ports: {sql: tcp/5432}}
  office/desk: {}
"""


def broken(assertions: str, policies: str = POLICIES, pods: str = CLUSTER) -> list[Failure]:
    """Each failure."""
    given = {"apiVersion": API_VERSION, "kind": KIND, **yaml.safe_load(pods), "assert": yaml.safe_load(assertions)}
    test, problems = read(given)
    assert test is not None, problems
    state, wrong = cluster(test, manifest.load(policies, "policies.yaml"))
    checked, unsound = check(test, state)
    assert [*problems, *wrong, *unsound] == []
    return [each for one in checked for each in one.failures]


def failures(assertions: str, policies: str = POLICIES, pods: str = CLUSTER) -> list[str]:
    """Each failure in words."""
    return [
        f"{each.source} -> {each.destination} {summary(each.traffic)}: {each.decision.verdict} "
        f"by {cause(each.decision.reason)}{f' not {each.because}' if each.because else ''}"
        for each in broken(assertions, policies, pods)
    ]


@pytest.mark.parametrize(
    "kept",
    [
        "{from: shop/web, to: shop/db, ports: [tcp/5432, tcp/8000-8010], verdict: Allow}",
        "{from: shop/web, to: shop/db, ports: [tcp/5432], verdict: Allow, because: web-to-db}",
        "{from: shop/web, to: shop/db, ports: [tcp/1-5431, tcp/8011-65535, udp, sctp, '47'], verdict: Deny}",
        "{from: shop/web, to: shop/db, ports: [udp/53], verdict: Deny, because: tier default}",
        "{from: [office/*, 192.0.2.1, '2001:db8::1'], to: shop/*, ports: [tcp], verdict: Deny}",
        "{from: shop/web, to: shop/db, ports: [icmp/8], verdict: Deny, because: pings}",
    ],
)
def test_what_policy_keeps_is_kept(kept: str) -> None:
    pods = CLUSTER if "icmp" not in kept else CLUSTER.replace("[4, 6]", "[4]")
    assert failures(f"[{kept}]", pods=pods) == []


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (
            "{from: shop/web, to: shop/db, ports: [tcp/5431-5433], verdict: Allow}",
            ["tcp/5431", "tcp/5433"],
        ),
        ("{from: office/desk, to: shop/db, ports: [tcp/5432], verdict: Allow}", ["tcp/5432"]),
    ],
)
def test_what_fails_says_for_which_traffic_and_why(broken: str, said: list[str]) -> None:
    found = failures(f"[{broken}]")
    source = broken.removeprefix("{from: ").partition(",")[0]
    end = "Deny by the end of tier default, ingress (of default/pings, default/shop/default-deny and 1 more)"
    assert found == [f"{source} -> shop/db {', '.join(said)}: {end}"]


def test_all_traffic_is_all_of_it() -> None:
    found = failures("[{from: office/desk, to: shop/db, verdict: Deny}]")
    assert any("icmp other types: Allow by default/pings ingress rule 1" in each for each in found)
    assert any("icmpv6: Allow by default/pings ingress rule 2" in each for each in found)


def test_the_right_verdict_for_the_wrong_reason_fails() -> None:
    found = failures("[{from: office/desk, to: shop/web, ports: [tcp/80], verdict: Deny, because: web-to-db}]")
    (only,) = found
    assert only.endswith("not web-to-db")


def test_a_policy_that_allows_is_named_before_a_profile_that_does() -> None:
    (found,) = failures("[{from: shop/web, to: shop/db, ports: [tcp/5432], verdict: Allow, because: web}]")
    assert found.endswith("Allow by default/shop/web-to-db ingress rule 0 not web")


def test_what_fails_in_one_family_alone_says_in_which() -> None:
    to_four = """
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: four}
spec: {order: 0, types: [Ingress], ingress: [{action: Deny, ipVersion: 4}]}
"""
    asked = "[{from: shop/web, to: shop/db, ports: [tcp/5432], verdict: Allow}]"
    assert [each.only for each in broken(asked, POLICIES + to_four)] == [4]
    assert [each.only for each in broken(asked, POLICIES + to_four.replace(", ipVersion: 4", ""))] == [None]


def test_icmp_between_ipv6_ends_is_icmpv6() -> None:
    assert failures("[{from: office/desk, to: shop/db, ports: [icmp/128], verdict: Allow}]") == []
    assert len(failures("[{from: office/desk, to: shop/db, ports: [icmp/8], verdict: Deny}]")) == 1


@settings(max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_assertions_say_what_look_ups_say(seed: int) -> None:
    rng = Random(seed)
    state = snapshot(worlds().draw(rng).resources)
    compiled = compile(state, [key(*each) for each in LOCAL])
    owners = {address: name for name, addresses in PODS.items() for address in addresses}
    for home in LOCAL:
        for flow in [flows(key(*home), Direction.INGRESS).draw(rng) for _ in range(8)]:
            mine, other = owners[flow.destination], owners.get(flow.source)
            if (
                flow.dport is None
                or mine == other
                or flow.source in [each for addresses in HOSTS.values() for each in addresses]
            ):
                continue
            ends = [(key(*mine), Direction.INGRESS)]
            ends += [(key(*other), Direction.EGRESS)] if other in LOCAL else []
            if other is not None and other not in LOCAL:
                continue
            found = [
                lookup(
                    compiled,
                    end,
                    direction,
                    packet(
                        PODS[other][0 if "." in flow.source else -1] if other else flow.source,
                        PODS[mine][0 if "." in flow.destination else -1],
                        flow.protocol,
                        ingress=direction is Direction.INGRESS,
                        sport=50_000,
                        dport=flow.dport,
                    ),
                ).verdict
                for end, direction in ends
            ]
            verdict = Verdict.DENY if Verdict.DENY in found else Verdict.ALLOW
            asserted = {
                "from": "/".join(other) if other else flow.source,
                "to": "/".join(mine),
                "ports": [f"{flow.protocol}/{flow.dport}"],
                "verdict": verdict.value,
            }
            family = 4 if "." in flow.source else 6
            test, _ = read({"apiVersion": API_VERSION, "kind": KIND, "families": [family], "assert": [asserted]})
            assert test is not None
            checked, problems = check(test, state)
            assert not problems
            # A rule about source ports decides for some of them: then no assertion about all of them is kept.
            assert checked[0].kept or any("from port" in str(t) for f in checked[0].failures for t in f.traffic)


@pytest.mark.parametrize("text", ["tcp/0", "TCP/65535", "udp/1-2", "icmp", "icmp/255", "icmpv6/128", "sctp", "255"])
def test_traffic_is_read(text: str) -> None:
    assert asked(text).protocol is not None


@pytest.mark.parametrize(
    "text", ["", "tcp/", "tcp/65536", "tcp/2-1", "gre", "256", "47/80", "icmp/256", "tcp 80", "80-90"]
)
def test_what_is_no_traffic_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not|is no|ports"):
        asked(text)


GOOD: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "pods": {"a/b": {}},
    "assert": [{"from": "a/b", "to": "192.0.2.1", "verdict": "Allow"}],
}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"kind": "Policy"}, ""),
        ({"assert": []}, "assert"),
        ({"families": []}, "families"),
        ({"families": [5]}, "families"),
        ({"pods": {"b": {}}}, 'pods["b"]'),
        ({"pods": {"a/b": {"addresses": ["10.0.0.0/8"]}}}, 'pods["a/b"].addresses[0]'),
        ({"pods": {"a/b": {"ports": {"http": "80"}}}}, 'pods["a/b"].ports.http'),
        ({"pods": {"a/b": {"label": {}}}}, "pods.a/b"),
        ({"assert": [{"from": "a/b", "to": [], "verdict": "Allow"}]}, "assert[0]"),
        ({"assert": [{"from": "a/b", "to": "a/b", "verdict": "Perhaps"}]}, "assert[0].verdict"),
        ({"assert": [{"from": "a/b", "to": "a/c", "verdict": "Deny", "ports": ["tcp/x"]}]}, "assert[0].ports[0]"),
        ({"assert": [{"from": "a/b", "verdict": "Deny"}]}, "assert[0].to"),
    ],
)
def test_what_is_no_sound_test_is_refused_with_its_path(change: dict[str, Any], path: str) -> None:
    assert read(GOOD)[1] == []
    found = [problem.path for problem in read(GOOD | change)[1]]
    assert [path] == [each.replace('["a/b"]', ".a/b") if "label" in str(change) else each for each in found]


@pytest.mark.parametrize("ends", [("a/x", "a/b"), ("a/b", "a/b"), ("192.0.2.1", "192.0.2.2"), ("a/b", "2001:db8::1")])
def test_an_assertion_about_nothing_is_refused(ends: tuple[str, str]) -> None:
    test, problems = read(GOOD | {"assert": [{"from": ends[0], "to": ends[1], "verdict": "Deny"}]})
    assert test is not None
    assert not problems
    _, unsound = check(test, cluster(test, [])[0])
    assert [each.path.partition(".")[0] for each in unsound] == ["assert[0]"]


def test_manifests_that_apply_would_refuse_are_refused() -> None:
    test, _ = read(GOOD)
    assert test is not None
    astray = POLICIES.replace("order: 1", "tier: nowhere")
    assert [problem.path for problem in cluster(test, manifest.load(astray, "x.yaml"))[1]] == ["spec.tier"]


def test_pods_get_addresses_that_nobody_has_and_a_namespace() -> None:
    test, _ = read(GOOD | {"families": [4, 6], "pods": {"a/b": {"addresses": ["198.18.0.1"]}, "a/c": {}, "a/d": {}}})
    assert test is not None
    state, problems = cluster(test, [])
    assert not problems
    given = [
        each.spec.addresses for table in state.tables.values() for each in table.values() if hasattr(each.spec, "pod")
    ]
    assert [list(map(str, each)) for each in given] == [
        ["198.18.0.1"],
        ["198.18.0.2", "2001:db8:18::1"],
        ["198.18.0.3", "2001:db8:18::2"],
    ]
