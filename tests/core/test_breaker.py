"""What vanishes in masses is held; what goes in ordinary numbers goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from core.breaker import RELEASE, hold, problems
from core.resources import (
    BGPConfiguration,
    BGPFilter,
    BGPPeer,
    GlobalNetworkPolicy,
    IPAMBlock,
    IPPool,
    KubernetesNetworkPolicy,
    Metadata,
    Namespace,
    NetworkPolicy,
    Node,
    Resource,
    Secret,
    Tier,
    WorkloadEndpoint,
)
from core.resources.ipam import BlockSpec
from core.resources.network import IPPoolSpec, NodeSpec, WorkloadEndpointSpec
from core.resources.policy import GlobalNetworkPolicySpec, KubernetesNetworkPolicySpec, NetworkPolicySpec, TierSpec
from core.snapshot import Snapshot


def snapshot(resources: Iterable[Resource], revision: int = 1) -> Snapshot:
    return Snapshot().apply(revision, [(each.key, each) for each in resources])


def node(name: str, release: str = "") -> Node:
    return Node(metadata=Metadata(name=name, annotations={RELEASE: release} if release else {}), spec=NodeSpec())


def policies(count: int, order: float = 0) -> list[Resource]:
    spec = NetworkPolicySpec(order=order)
    return [NetworkPolicy(metadata=Metadata(name=f"p{n}", namespace="shop"), spec=spec) for n in range(count)]


def pods(count: int) -> list[Resource]:
    spec = WorkloadEndpointSpec(orchestrator="k8s", node="a", pod="w", endpoint="eth0")
    return [WorkloadEndpoint(metadata=Metadata(name=f"w{n}", namespace="shop"), spec=spec) for n in range(count)]


def pools(count: int) -> list[Resource]:
    return [IPPool(metadata=Metadata(name=f"q{n}"), spec=IPPoolSpec(cidr=f"10.{n}.0.0/16")) for n in range(count)]


def tiers(count: int) -> list[Resource]:
    return [Tier(metadata=Metadata(name=f"t{n}"), spec=TierSpec()) for n in range(count)]


def blocks(count: int) -> list[Resource]:
    spec = [BlockSpec(cidr=f"10.0.{n}.0/26", affinity="host:a") for n in range(count)]
    return [IPAMBlock(metadata=Metadata(name=f"b{n}"), spec=each) for n, each in enumerate(spec)]


A, B, C = node("a"), node("b"), node("c")
SHOP = Namespace(metadata=Metadata(name="shop"))
FEW = [A, B, SHOP, *tiers(1), *pools(1), *blocks(2), *policies(3), *pods(12)]
"""A cluster in which no group reaches the floor."""


def held(before: Iterable[Resource], after: Iterable[Resource]) -> set[str]:
    return set(hold(snapshot(before), snapshot(after, 2), "a").held)


@pytest.mark.parametrize(("left", "stays"), [(0, True), (9, True), (10, False), (60, False)])
def test_most_of_the_policies_gone(left: int, stays: bool) -> None:
    before = snapshot([SHOP, *policies(60), *pods(60)])
    seen = hold(before, snapshot([SHOP, *policies(60)[:left], *pods(59)], 2), "a")
    assert len(seen.of(NetworkPolicy)) == (60 if stays else left)
    assert len(seen.of(WorkloadEndpoint)) == 59, "another group is not concerned"
    assert seen.revision == 2
    assert dict(seen.held) == ({"policies": f"{60 - left} of 60 policies vanished at once"} if stays else {})


def test_policies_of_all_kinds_are_counted_together() -> None:
    names = [Metadata(name=f"g{n}", namespace="shop") for n in range(20)]
    kubernetes = [KubernetesNetworkPolicy(metadata=each, spec=KubernetesNetworkPolicySpec()) for each in names]
    everywhere = [
        GlobalNetworkPolicy(metadata=Metadata(name=f"g{n}"), spec=GlobalNetworkPolicySpec()) for n in range(20)
    ]
    seen = hold(snapshot([*kubernetes, *everywhere, *policies(20)]), snapshot([], 2), "a")
    assert seen.held["policies"] == "60 of 60 policies vanished at once"
    assert [len(seen.of(cls)) for cls in (KubernetesNetworkPolicy, GlobalNetworkPolicy, NetworkPolicy)] == [20, 20, 20]


def test_half_of_many_is_not_too_much() -> None:
    assert held(policies(200), policies(100)) == set()
    assert held(policies(200), policies(99)) == {"policies"}


@pytest.mark.parametrize(
    ("before", "after", "groups"),
    [
        ([A, B, C], [A], {"nodes"}),
        ([A, B, C], [A, B], set()),
        ([A, B], [A], set()),
        (pools(3), [], {"pools"}),
        (pools(3), pools(1), set()),
        (pools(2), [], set()),
        (tiers(3), [], {"tiers"}),
        (policies(50), [], set()),
        (pods(50), [], set()),
    ],
)
def test_few_objects_on_which_everything_rests(
    before: Sequence[Resource], after: Sequence[Resource], groups: set[str]
) -> None:
    assert held(before, after) == groups


def test_an_emptied_datastore_is_held_however_small_the_cluster() -> None:
    seen = hold(snapshot(FEW), snapshot([], 2), "a")
    assert {kind: table for kind, table in seen.tables.items() if table} == snapshot(FEW).tables
    assert len(seen.held) == 7
    assert all(RELEASE in each and "vanished at once; held until" in each for each in problems(seen.held.values()))


@pytest.mark.parametrize("gone", [NetworkPolicy, WorkloadEndpoint, IPPool, IPAMBlock])
def test_who_deletes_all_of_one_kind_in_a_small_cluster_is_let(gone: type[Resource]) -> None:
    assert held(FEW, [each for each in FEW if not isinstance(each, gone)]) == set()


def test_who_deletes_an_application_is_let() -> None:
    application = (Namespace, NetworkPolicy, WorkloadEndpoint)
    assert held(FEW, [each for each in FEW if not isinstance(each, application)]) == set()


def test_what_comes_and_what_changes_goes_ahead() -> None:
    before = snapshot([A, *policies(60)])
    changed, new = (
        policies(1, order=5)[0],
        NetworkPolicy(metadata=Metadata(name="new", namespace="shop"), spec=NetworkPolicySpec()),
    )
    seen = hold(before, snapshot([A, changed, new], 2), "a").of(NetworkPolicy)
    assert len(seen) == 61
    assert seen[changed.key] == changed
    assert seen[new.key] == new


def test_held_stays_held_until_half_of_it_is_back() -> None:
    accepted = hold(snapshot(FEW), snapshot([], 2), "a")
    pods_first = [each for each in FEW if not isinstance(each, NetworkPolicy)]
    accepted = hold(accepted, snapshot(pods_first, 3), "a")
    assert set(accepted.held) == {"policies"}, "alone, three policies that vanish would not be held"
    assert len(accepted.of(NetworkPolicy)) == 3
    accepted = hold(accepted, snapshot([*pods_first, *policies(2)], 4), "a")
    assert (len(accepted.of(NetworkPolicy)), dict(accepted.held)) == (2, {})


def test_only_a_new_word_of_an_operator_who_has_seen_it_lets_go() -> None:
    before = snapshot([node("a", "tuesday"), *policies(60)])
    old = [node("a", "monday")]
    accepted = hold(before, snapshot(old, 2), "a")
    assert accepted.held, "an old backup brings an old annotation"
    accepted = hold(accepted, snapshot(old, 3), "a")
    assert accepted.held
    accepted = hold(accepted, snapshot([A], 4), "a")
    assert accepted.held, "taking the annotation away is no word"
    released = hold(accepted, snapshot([node("a", "wednesday")], 5), "a")
    assert (len(released.of(NetworkPolicy)), dict(released.held)) == (0, {})


def test_an_emptied_cluster_keeps_its_sessions_with_all_that_they_need() -> None:
    speaking: list[Resource] = [cls(metadata=Metadata(name="x")) for cls in (BGPConfiguration, BGPFilter, BGPPeer)]
    speaking.append(Secret(metadata=Metadata(name="x", namespace="kube-system")))
    found = hold(snapshot([A, *pools(1), *speaking]), snapshot([], 2), "a")
    assert set(found.held) >= {"BGP settings"}
    assert all(found.tables[each.KIND][each.key] == each for each in speaking)
    less = hold(snapshot([A, *pools(1), *speaking]), snapshot([A, *pools(1), *speaking[:1]], 2), "a")
    assert not less.held
