"""What cannot be told is closed: objects that cannot be read, addresses that two pods claim, words without effect."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from random import Random
from typing import Any

import policy_draw as draw
import pytest
from hypothesis import given
from policy_cluster import key, namespace, packet, pod, resource, snapshot
from policy_worlds import PODS, World, flows, worlds
from test_policy_properties import SEEDS, SETTINGS

from core.names import Key
from core.resources import (
    GlobalNetworkPolicy,
    IPAMBlock,
    KubernetesNetworkPolicy,
    Metadata,
    Namespace,
    NetworkPolicy,
    Node,
    Profile,
    Resource,
    ServiceAccount,
    WorkloadEndpoint,
)
from core.resources.ipam import BlockSpec
from core.resources.policy import Direction
from core.snapshot import Snapshot
from policy.compile import Compiled, compile
from policy.evaluate import lookup
from policy.explain import explain
from policy.model import Cause, Verdict

FLOWS = 16
WEB, DB, FAR = "10.0.0.1", "10.0.0.2", "203.0.113.5"
ENDS = [key("shop", "web"), key("shop", "db")]
ENDS_OF = ("source", "destination")
POLICIES = (GlobalNetworkPolicy, KubernetesNetworkPolicy, NetworkPolicy)


def calico(kind: str, name: str, home: str = "", labels: dict[str, str] | None = None, **spec: Any) -> Resource:
    metadata = {"name": name, "labels": labels or {}, **({"namespace": home} if home else {})}
    return resource({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})


def cluster(*more: Resource) -> list[Resource]:
    return [
        namespace("shop"),
        pod("shop", "web", [WEB], {"app": "web"}),
        pod("shop", "db", [DB], {"app": "db"}),
        *more,
    ]


def unreadable(state: Snapshot, *keys: Key) -> Snapshot:
    assert all(key in state.tables[key.kind] for key in keys)
    return state.apply(2, [(key, "spec: something is wrong") for key in keys])


def into(state: Snapshot, source: str, destination: Key, port: int = 80) -> Verdict:
    return explain(state, ip_address(source), destination, 6, port).verdict


# Nothing opens, whatever cannot be read


def block(rng: Random, claimed: Iterable[tuple[str, str, str]]) -> IPAMBlock:
    """IPAM's word on some addresses: mostly right, sometimes missing, of another or nobody's."""
    allocations: dict[str, str] = {}
    for address, home, name in claimed:
        handles = [f"k8s-pod-network.{home}.{name}", f"net.container-{name}", "k8s-pod-network.b.p2", "net.nobody"]
        if rng.random() < 0.6:
            allocations[address] = rng.choice([*handles[:2], *handles])
    return IPAMBlock(metadata=Metadata(name="block"), spec=BlockSpec(cidr="10.0.0.0/16", allocations=allocations))


def crowded(rng: Random) -> World:
    """A random cluster with few policies, most of them about labels, where pods may claim the addresses of others."""
    world: World = worlds().draw(rng)
    found = [each for each in world.resources if type(each) not in POLICIES or rng.random() < 0.3]
    found += [telling(rng, number) for number in range(rng.randint(1, 3))]
    claimed = [(address, home, name) for (home, name), own in PODS.items() for address in own]
    for number in range(rng.choice([0, 0, 1, 2])):
        home = rng.choice("ab")
        addresses = rng.sample([address for address, _, _ in claimed], rng.randint(1, 2))
        container = rng.choice(["", "container-p1"])
        found.append(pod(home, f"q{number}", addresses, {"app": rng.choice(["web", "db"])}, container_id=container))
    return World([*found, block(rng, claimed)], world.local)


def telling(rng: Random, number: int) -> Resource:
    """A policy that tells peers, or those it applies to, apart by their labels, and is quiet about the rest."""
    told = draw.sampled_from(["app == 'web'", "app == 'db'", "has(env)", "has(pcns.env)", "has(pcsa.app)", "!has(app)"])

    def rule() -> dict[str, Any]:
        word = rng.choice(["selector", "selector", "notSelector"])
        return {"action": rng.choice(["Allow", "Deny", "Deny", "Pass"]), rng.choice(ENDS_OF): {word: told.draw(rng)}}

    last = {"action": rng.choice(["Allow", "Allow", "Pass"])}
    rules = [*(rule() for _ in range(rng.randint(1, 2))), last]
    return calico(
        "GlobalNetworkPolicy",
        f"t{number}",
        tier=rng.choice(["default", "first", "second"]),
        selector=rng.choice(["", told.draw(rng)]),
        order=number,
        ingress=rules,
        egress=rules,
    )


@SETTINGS
@given(seed=SEEDS)
def test_what_cannot_be_read_opens_nothing(seed: int) -> None:
    rng = Random(seed)
    world = crowded(rng)
    before = snapshot(world.resources)
    kinds = sorted({each.key.kind for each in world.resources})
    gone = {
        rng.choice([each.key for each in world.resources if each.key.kind == kind]) for kind in rng.sample(kinds, 2)
    }
    gone = set(sorted(gone)[: rng.randint(1, 2)])
    after = unreadable(before, *gone)
    whole, closed = compile(before, world.local), compile(after, world.local)
    for endpoint in closed.chains:
        for direction in Direction:
            for flow in [flows(endpoint, direction).draw(rng) for _ in range(FLOWS)]:
                asked = packet(
                    flow.source,
                    flow.destination,
                    flow.protocol,
                    ingress=direction is Direction.INGRESS,
                    sport=flow.sport,
                    dport=flow.dport,
                    icmp=flow.icmp,
                )
                if lookup(closed, endpoint, direction, asked).verdict is Verdict.ALLOW:
                    assert lookup(whole, endpoint, direction, asked).verdict is Verdict.ALLOW, (gone, flow)
    for each in gone:
        assert each.kind in (IPAMBlock.KIND, Node.KIND) or "cannot be read: spec" in closed.problems[each]


@pytest.mark.parametrize("seed", range(6))
def test_what_nobody_asks_about_closes_nothing(seed: int) -> None:
    """While a set of another namespace cannot be read, policies of this one decide as before."""
    rng = Random(seed)
    only = {"source": {"selector": f"app == '{rng.choice(['web', 'db'])}'"}}
    guard = calico("NetworkPolicy", "p", "shop", selector="all()", ingress=[{"action": "Allow", **only}])
    other = calico("NetworkSet", "s", "elsewhere", nets=["203.0.113.0/24"])
    before = snapshot(cluster(guard, namespace("elsewhere"), other))
    after = unreadable(before, other.key)
    assert compile(before, ENDS).tables == compile(after, ENDS).tables


# Policies and tiers


@pytest.mark.parametrize(
    ("policy", "reach"),
    [
        (calico("NetworkPolicy", "x", "shop", order=1, selector="app == 'db'", ingress=[{"action": "Allow"}]), ENDS),
        (calico("GlobalNetworkPolicy", "x", selector="app == 'db'", ingress=[{"action": "Allow"}]), [*ENDS, None]),
        (
            resource(
                {
                    "apiVersion": "networking.k8s.io/v1",
                    "kind": "NetworkPolicy",
                    "metadata": {"name": "x", "namespace": "shop"},
                    "spec": {"podSelector": {"matchLabels": {"app": "db"}}},
                }
            ),
            ENDS,
        ),
    ],
)
def test_an_unreadable_policy_denies_all_in_its_reach(policy: Resource, reach: list[Key | None]) -> None:
    elsewhere = pod("other", "pod", ["10.0.1.1"])
    first = calico("Tier", "first", order=1)
    opens = calico("GlobalNetworkPolicy", "first.all", tier="first", selector="all()", ingress=[{"action": "Allow"}])
    state = unreadable(
        snapshot(cluster(namespace("other"), elsewhere, first, opens, policy)),
        policy.key,
    )
    compiled = compile(state, [*ENDS, elsewhere.key])
    for endpoint in ENDS:
        for direction in Direction:
            own = state.of(WorkloadEndpoint)[endpoint].spec.addresses[0]
            ends = (FAR, str(own)) if direction is Direction.INGRESS else (str(own), FAR)
            asked = packet(*ends, 6, ingress=direction is Direction.INGRESS, sport=9, dport=80)
            decision = lookup(compiled, endpoint, direction, asked)
            assert (decision.verdict, decision.reason.cause) == (Verdict.DENY, Cause.UNREADABLE_POLICY)
            assert f"{policy.key} cannot be read: spec: something is wrong" in str(decision.reason)
    assert (into(state, FAR, elsewhere.key) is Verdict.DENY) == (None in reach)
    assert compiled.problems[policy.key].startswith("cannot be read: spec: something is wrong; until it can, every")


def test_what_an_unreadable_tier_allows_the_others_decide() -> None:
    tier = calico("Tier", "second", order=2, defaultAction="Pass")
    rules = [{"action": "Deny", "source": {"nets": ["192.0.2.0/24"]}}, {"action": "Allow"}]
    second = calico("GlobalNetworkPolicy", "second.p", tier="second", selector="all()", ingress=rules)
    first = calico("Tier", "first", order=1, defaultAction="Pass")
    guard = [{"action": "Deny", "source": {"nets": ["203.0.113.0/24"]}}]
    quarantine = calico("GlobalNetworkPolicy", "first.q", tier="first", selector="all()", ingress=guard)
    before = snapshot(cluster(tier, second, first, quarantine))
    after = unreadable(before, tier.key)
    verdicts = {FAR: Verdict.DENY, "192.0.2.1": Verdict.DENY, WEB: Verdict.ALLOW}
    for state in (before, after):
        assert {source: into(state, source, ENDS[1]) for source in verdicts} == verdicts
    assert "can only deny" in compile(after, ENDS).problems[tier.key]


def test_a_policy_in_a_tier_that_is_not_there_is_asked_last_and_said() -> None:
    lost = calico("GlobalNetworkPolicy", "nope.p", tier="nope", selector="all()", ingress=[{"action": "Pass"}])
    state = snapshot(cluster(lost))
    said = "there is no tier nope: it is asked after all tiers that are there, and its end denies"
    assert compile(state, ENDS).problems == {lost.key: said}


# Labels


def denies_bad(**source: Any) -> Resource:
    rules = [{"action": "Deny", "source": source}, {"action": "Allow"}]
    return calico("GlobalNetworkPolicy", "deny-bad", order=1, selector="app == 'db'", ingress=rules)


BAD = {"bad": "1"}
SETS: list[tuple[Resource, str]] = [
    (calico("GlobalNetworkSet", "bad", labels=BAD, nets=["203.0.113.0/24"]), FAR),
    (calico("NetworkSet", "bad", "shop", labels=BAD, nets=["203.0.113.0/24"]), FAR),
    (calico("HostEndpoint", "bad", labels=BAD, node="n2", expectedIPs=[FAR]), FAR),
    (pod("shop", "bad", [FAR], BAD), FAR),
]


@pytest.mark.parametrize(("thing", "source"), SETS, ids=lambda each: each.key.kind.name if each != FAR else "")
def test_a_deny_outlives_what_it_denies(thing: Resource, source: str) -> None:
    before = snapshot(cluster(thing, denies_bad(selector="bad == '1'")))
    after = unreadable(before, thing.key)
    assert into(before, source, ENDS[1]) is Verdict.DENY
    assert into(after, source, ENDS[1]) is Verdict.DENY
    assert "could mean what it says deny" in compile(after, ENDS).problems[thing.key]


def test_an_allow_by_exclusion_does_not_outlive_what_it_excludes() -> None:
    shut = calico("GlobalNetworkSet", "bad", labels=BAD, nets=["203.0.113.0/24"])
    rules = [{"action": "Allow", "source": {"notSelector": "bad == '1'"}}]
    guard = calico("NetworkPolicy", "p", "shop", selector="app == 'db'", ingress=rules)
    before = snapshot(cluster(shut, guard))
    assert (into(before, FAR, ENDS[1]), into(before, WEB, ENDS[1])) == (Verdict.DENY, Verdict.ALLOW)
    assert into(unreadable(before, shut.key), FAR, ENDS[1]) is Verdict.DENY


@pytest.mark.parametrize("cls", [Namespace, ServiceAccount, Profile])
def test_a_policy_that_perhaps_applies_denies(cls: type[Resource]) -> None:
    secret = {"secret": "1"}
    home = Namespace(metadata=Metadata(name="shop", labels=secret))
    account = ServiceAccount(metadata=Metadata(name="default", namespace="shop", labels=secret))
    custom = calico("Profile", "custom", labelsToApply=secret)
    selectors = {
        Namespace: {"namespaceSelector": "has(secret)"},
        ServiceAccount: {"serviceAccountSelector": "has(secret)"},
        Profile: {"selector": "has(secret)"},
    }
    guard = calico("GlobalNetworkPolicy", "guard", order=1, **selectors[cls], ingress=[{"action": "Deny"}])
    opens = calico("GlobalNetworkPolicy", "opens", order=2, selector="all()", ingress=[{"action": "Allow"}])
    web = pod("shop", "web", [WEB], profiles=["custom", "kns.shop"])
    before = snapshot([home, account, custom, web, guard, opens])
    (gone,) = (each.key for each in (home, account, custom) if type(each) is cls)
    for state in (before, unreadable(before, gone)):
        assert into(state, FAR, web.key) is Verdict.DENY
    assert into(snapshot([home, account, custom, web, opens]), FAR, web.key) is Verdict.ALLOW


def test_an_unreadable_profile_is_not_the_one_that_a_namespace_stands_for() -> None:
    shut = calico("Profile", "kns.shop", ingress=[{"action": "Deny"}])
    before = snapshot(cluster(shut))
    for state in (before, unreadable(before, shut.key)):
        assert into(state, FAR, ENDS[1]) is Verdict.DENY


# Addresses that two claim


FOR_ADMIN = calico(
    "NetworkPolicy",
    "only-admin",
    "shop",
    selector="app == 'db'",
    ingress=[{"action": "Allow", "source": {"selector": "app == 'admin'"}}],
)


def contested(handle: str, *, labels: dict[str, str], name: str = "zevil", **spec: Any) -> Compiled:
    evil = pod("shop", name, [WEB], labels, **spec)
    allocations = {WEB: handle} if handle else {}
    ipam = IPAMBlock(metadata=Metadata(name="b"), spec=BlockSpec(cidr="10.0.0.0/24", allocations=allocations))
    not_bad = calico(
        "NetworkPolicy",
        "not-bad",
        "shop",
        order=1,
        selector="app == 'db'",
        ingress=[{"action": "Deny", "source": {"selector": "app == 'bad'"}}],
    )
    return compile(snapshot(cluster(FOR_ADMIN, not_bad, evil, ipam)), [ENDS[1]])


def from_web(compiled: Compiled) -> tuple[Verdict, Cause]:
    decision = lookup(compiled, ENDS[1], Direction.INGRESS, packet(WEB, DB, 6, ingress=True, sport=9, dport=80))
    return decision.verdict, decision.reason.cause


@pytest.mark.parametrize("name", ["zevil", "aevil"])
@pytest.mark.parametrize("handle", ["", "net.another", "k8s-pod-network.shop.web"])
def test_a_second_claimant_lends_no_labels(handle: str, name: str) -> None:
    assert from_web(contested(handle, labels={"app": "admin"}, name=name)) == (Verdict.DENY, Cause.END_OF_TIER)


def test_the_holder_that_ipam_names_lends_its_labels() -> None:
    for handle in ("k8s-pod-network.shop.zevil", "k8s-pod-network.c0ffee"):
        compiled = contested(handle, labels={"app": "admin"}, container_id="c0ffee")
        assert from_web(compiled) == (Verdict.ALLOW, Cause.RULE)
        assert list(compiled.problems) == [ENDS[0]]
        assert compiled.problems[ENDS[0]] == (
            f"{WEB} is {key('shop', 'zevil')}'s, says IPAM: this endpoint's labels do not count for it"
        )


@pytest.mark.parametrize(
    ("handle", "verdict"),
    [("", Verdict.DENY), ("net.another", Verdict.DENY), ("k8s-pod-network.shop.zevil", Verdict.ALLOW)],
)
def test_who_cannot_be_read_may_claim_any_address(handle: str, verdict: Verdict) -> None:
    evil = pod("shop", "zevil", [WEB], {"app": "admin"})
    ipam = IPAMBlock(
        metadata=Metadata(name="b"), spec=BlockSpec(cidr="10.0.0.0/24", allocations={WEB: handle} if handle else {})
    )
    state = unreadable(snapshot(cluster(FOR_ADMIN, evil, ipam)), ENDS[0])
    assert from_web(compile(state, [ENDS[1]]))[0] is verdict


def test_a_deny_means_each_who_may_hold_a_contested_address() -> None:
    compiled = contested("", labels={"app": "bad"})
    assert from_web(compiled) == (Verdict.DENY, Cause.RULE)
    assert set(compiled.problems) == {ENDS[0], key("shop", "zevil")}
    assert f"{WEB} is claimed by {ENDS[0]} too" in compiled.problems[key("shop", "zevil")]


# What has no effect is said


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (
            calico(
                "WorkloadEndpoint",
                "n1-k8s-x-eth0",
                "shop",
                ipNetworks=["10.0.0.9/32"],
                ipNATs=[{"internalIP": "10.0.0.9", "externalIP": "192.0.2.9"}],
            ),
            "ipNATs is not programmed yet",
        ),
        (
            resource(
                {
                    "apiVersion": "policy.networking.k8s.io/v1alpha2",
                    "kind": "ClusterNetworkPolicy",
                    "metadata": {"name": "x"},
                    "spec": {
                        "tier": "Admin",
                        "priority": 1,
                        "subject": {"namespaces": {}},
                        "egress": [{"action": "Accept", "to": [{"domainNames": ["example.com"]}]}],
                    },
                }
            ),
            "egress rule 0 (Accept): domain names are not resolved",
        ),
    ],
)
def test_what_has_no_effect_is_said(thing: Resource, says: str) -> None:
    assert not compile(snapshot(cluster()), ENDS).problems
    assert says in compile(snapshot(cluster(thing)), ENDS).problems[thing.key]
