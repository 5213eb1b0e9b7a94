"""Kinds of policy beside Calico's two: administrators' and staged ones; services; and in which planes each is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from policy_cluster import key, namespace, packet, pod, resource, snapshot

from core.names import Key
from core.resources import BY_MANIFEST, EndpointSlice, Node, Resource
from core.resources.network import EndpointPort
from core.resources.policy import Action, Direction
from policy.compile import compile
from policy.convert import Converted, convert, convert_policy, known_to
from policy.doubt import Doubt
from policy.drafts import Needs, draft, needs, outgoing
from policy.evaluate import lookup
from policy.model import Plane, Policy, Verdict

WEB, DB, API, FAR, NODE = "10.0.0.1", "10.0.0.2", "10.1.0.1", "203.0.113.5", "192.0.2.10"
ADMIN = "policy.networking.k8s.io"
EVERYONE: dict[str, Any] = {"namespaces": {}}


def manifest(version: str, kind: str, name: str, home: str = "", labels: Any = None, **fields: Any) -> Resource:
    metadata = {"name": name, "labels": labels or {}, **({"namespace": home} if home else {})}
    return resource({"apiVersion": version, "kind": kind, "metadata": metadata, **fields})


def calico(kind: str, name: str, home: str = "", **spec: Any) -> Resource:
    return manifest("projectcalico.org/v3", kind, name, home, spec=spec)


def anp(name: str, priority: int, **rules: Any) -> Resource:
    spec = {"priority": priority, "subject": EVERYONE, **rules}
    return manifest(f"{ADMIN}/v1alpha1", "AdminNetworkPolicy", name, spec=spec)


def banp(**rules: Any) -> Resource:
    spec = {"subject": EVERYONE, **rules}
    return manifest(f"{ADMIN}/v1alpha1", "BaselineAdminNetworkPolicy", "default", spec=spec)


def cnp(name: str, tier: str, priority: int, subject: Any = None, **rules: Any) -> Resource:
    spec = {"tier": tier, "priority": priority, "subject": subject or EVERYONE, **rules}
    return manifest(f"{ADMIN}/v1alpha2", "ClusterNetworkPolicy", name, spec=spec)


def endpoints(name: str, service: str, addresses: Sequence[str], *, ready: bool | None = None, **port: Any) -> Resource:
    return manifest(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        name,
        "shop",
        {"kubernetes.io/service-name": service},
        addressType="IPv6" if ":" in addresses[0] else "IPv4",
        endpoints=[{"addresses": [each], "conditions": {"ready": ready}} for each in addresses],
        ports=[port] if port else [],
    )


BASE = [
    namespace("shop", {"team": "a"}),
    namespace("ops", {"team": "b"}),
    pod("shop", "web", [WEB], {"app": "web"}, [EndpointPort(name="http", port=8080, protocol="TCP")]),
    pod("shop", "db", [DB], {"app": "db"}, [EndpointPort(name="http", port=53, protocol="UDP")]),
    pod("ops", "api", [API], {"app": "api"}),
    resource(
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "Node",
            "metadata": {"name": "n1", "labels": {"role": "edge"}},
            "spec": {"bgp": {"ipv4Address": f"{NODE}/24"}},
        }
    ),
]


def asked(
    *more: Resource, source: str = WEB, to: str = DB, port: int = 80, protocol: int = 6, of: Direction | None = None
) -> Verdict:
    """What the pods at both ends say of a packet, or only the one that `of` is about."""
    names = {WEB: key("shop", "web"), DB: key("shop", "db"), API: key("ops", "api")}
    compiled = compile(snapshot([*BASE, *more]), names.values())
    ends = {Direction.EGRESS: source, Direction.INGRESS: to}
    said = [
        lookup(
            compiled,
            names[end],
            direction,
            packet(source, to, protocol, ingress=direction is Direction.INGRESS, sport=40000, dport=port),
        ).verdict
        for direction, end in ends.items()
        if end in names and of in (None, direction)
    ]
    return Verdict.DENY if Verdict.DENY in said else Verdict.ALLOW


DENY_ALL = calico("NetworkPolicy", "deny", "shop", types=["Ingress", "Egress"])
ALLOW_ALL = calico("NetworkPolicy", "allow", "shop", ingress=[{"action": "Allow"}], egress=[{"action": "Allow"}])


# Administrators' policies


def test_an_admin_comes_before_namespaces_and_a_baseline_after() -> None:
    rule = {"from": [{"namespaces": {}}]}
    assert asked() is Verdict.ALLOW
    assert asked(anp("x", 1, ingress=[{"action": "Deny", **rule}]), ALLOW_ALL) is Verdict.DENY
    assert asked(banp(ingress=[{"action": "Deny", **rule}])) is Verdict.DENY
    assert asked(banp(ingress=[{"action": "Deny", **rule}]), ALLOW_ALL) is Verdict.ALLOW
    assert asked(cnp("x", "Admin", 1, ingress=[{"action": "Deny", **rule}]), ALLOW_ALL) is Verdict.DENY
    assert asked(cnp("x", "Baseline", 1, ingress=[{"action": "Deny", **rule}]), ALLOW_ALL) is Verdict.ALLOW
    allow = anp("x", 1, ingress=[{"action": "Allow", **rule}], egress=[{"action": "Allow", "to": [EVERYONE]}])
    assert asked(allow, DENY_ALL) is Verdict.ALLOW
    accept = cnp(
        "x", "Admin", 1, ingress=[{"action": "Accept", **rule}], egress=[{"action": "Accept", "to": [EVERYONE]}]
    )
    assert asked(accept, DENY_ALL) is Verdict.ALLOW


def test_the_lower_priority_is_asked_first_and_pass_leaves_the_tier() -> None:
    def one(action: str, priority: int) -> Resource:
        return anp(f"p{priority}", priority, ingress=[{"action": action, "from": [EVERYONE]}])

    assert asked(one("Allow", 10), one("Deny", 9)) is Verdict.DENY
    assert asked(one("Deny", 10), one("Allow", 9)) is Verdict.ALLOW
    assert asked(one("Deny", 10), one("Pass", 9)) is Verdict.ALLOW
    assert asked(one("Deny", 10), one("Pass", 9), DENY_ALL) is Verdict.DENY


PEERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"namespaces": {"matchLabels": {"team": "a"}}}, {DB}),
    ({"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "api"}}}}, {API}),
    ({"pods": {"podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["db"]}]}}}, {API}),
    ({"networks": ["203.0.113.0/24", "fd00::/8"]}, {FAR}),
    ({"networks": ["0.0.0.0/0"]}, {DB, API, FAR, NODE}),
    ({"nodes": {"matchLabels": {"role": "edge"}}}, {NODE}),
    ({"nodes": {}}, {NODE}),
    ({"nodes": {"matchLabels": {"role": "gone"}}}, set()),
]


@pytest.mark.parametrize(("peer", "meant"), PEERS)
def test_who_the_peers_are(peer: dict[str, Any], meant: set[str]) -> None:
    for given in (
        anp("x", 1, egress=[{"action": "Deny", "to": [peer]}]),
        cnp("x", "Admin", 1, egress=[{"action": "Deny", "to": [peer]}]),
    ):
        denied = {to for to in (DB, API, FAR, NODE) if asked(given, to=to, of=Direction.EGRESS) is Verdict.DENY}
        assert denied == meant


PORTS: list[tuple[dict[str, Any], dict[str, Any], set[tuple[int, int]]]] = [
    ({"portNumber": {"protocol": "TCP", "port": 80}}, {"tcp": {"destinationPort": {"number": 80}}}, {(6, 80)}),
    (
        {"portRange": {"protocol": "UDP", "start": 80, "end": 90}},
        {"udp": {"destinationPort": {"range": {"start": 80, "end": 90}}}},
        {(17, 80)},
    ),
    ({"portNumber": {"protocol": "SCTP", "port": 53}}, {"sctp": {"destinationPort": {"number": 53}}}, {(132, 53)}),
    ({"namedPort": "http"}, {"destinationNamedPort": "http"}, {(17, 53)}),
]


@pytest.mark.parametrize(("first", "second", "meant"), PORTS)
def test_which_ports_are_meant(first: dict[str, Any], second: dict[str, Any], meant: set[tuple[int, int]]) -> None:
    for given in (
        anp("x", 1, egress=[{"action": "Deny", "to": [EVERYONE], "ports": [first]}]),
        cnp("x", "Admin", 1, egress=[{"action": "Deny", "to": [EVERYONE], "protocols": [second]}]),
    ):
        denied = {
            (protocol, port)
            for protocol in (6, 17, 132)
            for port in (53, 80, 8080)
            if asked(given, port=port, protocol=protocol) is Verdict.DENY
        }
        assert denied == meant


def test_the_subject_is_pods_only() -> None:
    subject = {"pods": {"namespaceSelector": {"matchLabels": {"team": "a"}}, "podSelector": {}}}
    given = cnp("x", "Admin", 1, subject, ingress=[{"action": "Deny", "from": [EVERYONE]}])
    assert asked(given, to=DB) is Verdict.DENY
    assert asked(given, to=API) is Verdict.ALLOW
    (policy,) = converted(given)
    assert policy.planes == {Plane.WORKLOAD}
    assert not policy.selector.matches({"projectcalico.org/orchestrator": "host", "pcns.team": "a"})


def test_a_rule_that_cannot_be_said_is_closed() -> None:
    names = [{"domainNames": ["example.com"]}]
    fallback = {"action": "Accept", "to": [{"networks": ["0.0.0.0/0"]}]}
    accept = cnp("x", "Admin", 1, egress=[{"action": "Accept", "to": names}, fallback])
    assert asked(accept, to=FAR) is Verdict.ALLOW
    for action in ("Deny", "Pass"):  # refused at apply, and closed where one is kept all the same
        assert asked(cnp("x", "Admin", 1, egress=[{"action": action, "to": names}, fallback]), to=FAR) is Verdict.DENY


def test_nodes_that_cannot_be_read_close_the_rules_that_mean_nodes() -> None:
    def verdict(action: str) -> Verdict:
        given = anp("x", 1, egress=[{"action": action, "to": [{"nodes": {}}]}])
        state = snapshot([*BASE, given]).apply(2, [(Key(Node.KIND, "", "n2"), "cannot be read")])
        compiled = compile(state, [key("shop", "web")])
        assert "there are nodes that cannot be read" in compiled.problems[given.key]
        asks = packet(WEB, FAR, 6, ingress=False, sport=1, dport=80)
        return lookup(compiled, key("shop", "web"), Direction.EGRESS, asks).verdict

    assert verdict("Deny") is verdict("Pass") is Verdict.DENY
    assert verdict("Allow") is Verdict.ALLOW


# Services

SERVICE = {"services": {"name": "s", "namespace": "shop"}}


def egress(action: str, **more: Any) -> Resource:
    return calico(
        "GlobalNetworkPolicy", "g", egress=[{"action": action, "destination": SERVICE, **more}, {"action": "Allow"}]
    )


def test_a_service_is_its_endpoints_and_their_ports() -> None:
    rest = [
        endpoints("s-1", "s", [DB], port=80, protocol="TCP"),
        endpoints("s-2", "s", [API], port=53, protocol="UDP"),
        endpoints("s-3", "s", [FAR], ready=False, port=80, protocol="TCP"),
        endpoints("other", "t", [FAR], port=80, protocol="TCP"),
        endpoints("v6", "s", ["fd00::9"], port=80, protocol="TCP"),
    ]
    deny = egress("Deny")

    def denied(given: Resource) -> set[tuple[str, int, int]]:
        return {
            (to, protocol, port)
            for to in (DB, API, FAR)
            for protocol in (6, 17, 132)
            for port in (53, 80)
            if asked(given, *rest, to=to, protocol=protocol, port=port, of=Direction.EGRESS) is Verdict.DENY
        }

    assert denied(deny) == {(DB, 6, 80), (API, 17, 53)}
    assert denied(egress("Deny", protocol="UDP")) == {(API, 17, 53)}
    assert denied(egress("Deny", notProtocol="UDP")) == {(DB, 6, 80)}
    assert denied(egress("Deny", ipVersion=6)) == set()


def test_as_a_source_a_service_is_its_addresses() -> None:
    slices = [endpoints("s-1", "s", [WEB], port=80), endpoints("s-2", "s", [API], ready=False, port=80)]
    given = calico("NetworkPolicy", "n", "shop", ingress=[{"action": "Deny", "source": {"services": {"name": "s"}}}])
    passing = calico("NetworkPolicy", "z", "shop", ingress=[{"action": "Allow"}])
    assert asked(given, passing, *slices, source=WEB, port=9999) is Verdict.DENY
    assert asked(given, passing, *slices, source=API, port=9999) is Verdict.ALLOW


def test_a_service_without_endpoints_is_nobody() -> None:
    assert asked(egress("Deny")) is Verdict.ALLOW
    allow = calico("GlobalNetworkPolicy", "g", egress=[{"action": "Allow", "destination": SERVICE}])
    assert asked(allow) is Verdict.DENY


@pytest.mark.parametrize(
    ("action", "known", "others"),
    [
        ("Allow", Verdict.ALLOW, Verdict.DENY),
        ("Deny", Verdict.DENY, Verdict.DENY),
        ("Pass", Verdict.ALLOW, Verdict.DENY),
    ],
)
def test_a_slice_that_cannot_be_read_closes_its_namespaces_services(
    action: str, known: Verdict, others: Verdict
) -> None:
    last = {"action": "Deny"} if action == "Allow" else {"action": "Allow"}
    given = calico("GlobalNetworkPolicy", "g", egress=[{"action": action, "destination": SERVICE}, last])
    state = snapshot([*BASE, given, endpoints("s-1", "s", [DB], port=80)])
    state = state.apply(2, [(Key(EndpointSlice.KIND, "shop", "s-2"), "cannot be read")])
    compiled = compile(state, [key("shop", "web")])
    for to, verdict in ((DB, known), (FAR, others)):
        asks = packet(WEB, to, 6, ingress=False, sport=1, dport=80)
        assert lookup(compiled, key("shop", "web"), Direction.EGRESS, asks).verdict is verdict


def test_a_profile_names_no_service() -> None:
    """Refused at apply, and closed where one is kept all the same."""
    deny = [{"action": "Deny", "destination": SERVICE}, {"action": "Allow"}]
    profile = calico("Profile", "kns.shop", ingress=[{"action": "Allow"}], egress=deny)
    assert asked(profile, endpoints("s-1", "s", [API], port=80), to=DB) is Verdict.DENY
    said = compile(snapshot([*BASE, profile]), []).problems[profile.key]
    assert said == "rule 0 (Deny): service s: only rules of policies may name services"


def test_what_a_policy_depends_on_is_said() -> None:
    given = egress("Deny")
    near = calico("NetworkPolicy", "n", "shop", ingress=[{"action": "Deny", "source": {"services": {"name": "s"}}}])
    nodes = anp("x", 1, egress=[{"action": "Deny", "to": [{"nodes": {}}]}])
    assert needs(given) == needs(near) == Needs(frozenset({("shop", "s")}))
    assert needs(nodes) == Needs(nodes=True)
    assert needs(banp()) == Needs()
    assert needs(DENY_ALL) == Needs()


# Named ports without a protocol


def test_a_named_port_of_no_protocol_is_of_the_one_the_endpoint_says() -> None:
    deny = {"action": "Deny", "destination": {"ports": ["http"]}}
    given = calico("GlobalNetworkPolicy", "g", ingress=[deny, {"action": "Allow"}])
    assert asked(given, port=53, protocol=17) is Verdict.DENY
    assert asked(given, port=53, protocol=6) is Verdict.ALLOW
    assert asked(given, source=DB, to=WEB, port=8080) is Verdict.DENY
    narrowed = calico("GlobalNetworkPolicy", "g", ingress=[{**deny, "notProtocol": "UDP"}, {"action": "Allow"}])
    assert asked(narrowed, port=53, protocol=17) is Verdict.ALLOW


# Planes, and what is staged


def whole(*manifests: Resource) -> Converted:
    return convert(snapshot(manifests), Doubt([], ports=False))


def converted(*manifests: Resource) -> list[Policy]:
    return [policy for _, policies in whole(*manifests).tiers for policy in policies]


@pytest.mark.parametrize(
    ("given", "planes"),
    [
        (DENY_ALL, {Plane.WORKLOAD}),
        (calico("GlobalNetworkPolicy", "g"), {Plane.WORKLOAD, Plane.HOST}),
        (calico("GlobalNetworkPolicy", "g", applyOnForward=True), {Plane.WORKLOAD, Plane.HOST, Plane.FORWARD}),
        (calico("GlobalNetworkPolicy", "g", applyOnForward=True, preDNAT=True), {Plane.PRE_DNAT}),
        (calico("GlobalNetworkPolicy", "g", applyOnForward=True, doNotTrack=True), {Plane.UNTRACKED}),
        (calico("StagedGlobalNetworkPolicy", "g", applyOnForward=True, preDNAT=True), {Plane.PRE_DNAT}),
        (calico("StagedNetworkPolicy", "n", "shop"), {Plane.WORKLOAD}),
    ],
)
def test_in_which_planes_a_policy_is_asked(given: Resource, planes: set[Plane]) -> None:
    (policy,) = converted(given)
    assert policy.planes == planes


def test_a_policy_that_cannot_be_read_denies_in_all_its_planes() -> None:
    given = calico("GlobalNetworkPolicy", "g")
    state = snapshot([given]).apply(2, [(given.key, "cannot be read")])
    ((_, (policy,)),) = convert(state, Doubt([], ports=False)).tiers
    assert policy.fault
    assert policy.planes == set(Plane)


def test_a_staged_policy_that_cannot_be_read_denies_nothing() -> None:
    given = calico("StagedGlobalNetworkPolicy", "g")
    state = snapshot([*BASE, given]).apply(2, [(given.key, "cannot be read")])
    assert not convert(state, Doubt([], ports=False)).tiers
    assert "what it would do is not told" in compile(state, []).problems[given.key]


STAGED_KINDS = ("StagedNetworkPolicy", "StagedGlobalNetworkPolicy", "StagedKubernetesNetworkPolicy")


@pytest.mark.parametrize("kind", STAGED_KINDS)
def test_what_is_staged_is_as_it_would_be_and_takes_what_it_replaces_out(kind: str) -> None:
    home = "" if kind == "StagedGlobalNetworkPolicy" else "shop"
    version = "networking.k8s.io/v1" if "Kubernetes" in kind else "projectcalico.org/v3"
    real = "NetworkPolicy" if "Kubernetes" in kind else kind.removeprefix("Staged")
    spec: dict[str, Any] = {"podSelector": {}} if "Kubernetes" in kind else {}
    assert (version, real) in BY_MANIFEST
    enforced = manifest(version, real, "same", home, spec=spec)
    other = manifest(version, real, "other", home, spec=spec)
    for action in ("Set", "Delete", "Learn", "Ignore"):
        given = calico(kind, "same", home, stagedAction=action)
        found = {policy.key: policy for policy in converted(enforced, other, given)}
        assert not found[other.key].outgoing
        assert found[enforced.key].outgoing is (action in ("Set", "Delete"))
        assert (given.key in found) is (action == "Set")
        assert outgoing(snapshot([given])) == ({enforced.key} if action in ("Set", "Delete") else set())
        if given.key in found:
            staged, real_one = found[given.key], found[enforced.key]
            assert staged.staged
            assert not real_one.staged
            assert (staged.tier, staged.sort_key) == (real_one.tier, real_one.sort_key)


@pytest.mark.parametrize("kind", ["StagedNetworkPolicy", "StagedKubernetesNetworkPolicy", "StagedGlobalNetworkPolicy"])
def test_what_is_staged_is_not_enforced(kind: str) -> None:
    home = "" if kind == "StagedGlobalNetworkPolicy" else "shop"
    given = calico(kind, "deny", home, **({"podSelector": {}} if "Kubernetes" in kind else {"types": ["Ingress"]}))
    assert asked(given) is Verdict.ALLOW
    assert asked(given, DENY_ALL) is Verdict.DENY


def test_a_draft_converts_the_same_alone_and_among_others() -> None:
    manifests: list[Any] = [egress("Deny"), anp("x", 1, egress=[{"action": "Deny", "to": [{"nodes": {}}]}]), ALLOW_ALL]
    state = snapshot([*BASE, *manifests, endpoints("s-1", "s", [DB], port=80)])
    together = {p.key: p for _, found in convert(state, Doubt([], ports=False)).tiers for p in found}
    for each in manifests:
        assert draft(each, known_to(state, [each]).nodes).tier == together[each.key].tier
        policy, closed = convert_policy(each, known_to(state, [each]))
        assert policy == together[each.key]
        assert not closed
    assert together[manifests[0].key].egress[0].action is Action.DENY
