"""The oracle itself, on cases small enough to see what is right: planes of a host, and what is staged."""

from __future__ import annotations

from typing import Any

import pytest
from policy_cluster import namespace, pod, resource
from policy_oracle import Answer, Flow, Oracle

from core.resources import HostEndpoint, Resource

HOST, FAR = "192.0.2.1", "203.0.113.5"
COMING = Flow(FAR, HOST, 6, 40000, 22)
LEAVING = Flow(HOST, FAR, 6, 40000, 443)
THROUGH = Flow(FAR, "10.0.0.1", 6, 40000, 80)


def calico(kind: str, name: str, **spec: Any) -> Resource:
    metadata = {"name": name, "labels": spec.pop("labels", {})}
    return resource({"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": metadata, "spec": spec})


def policy(name: str, **spec: Any) -> Resource:
    return calico("GlobalNetworkPolicy", name, **{"selector": "role == 'host'", **spec})


def said(plane: str, flow: Flow, *manifests: Resource, profiles: list[str] | None = None, pending: bool = False) -> str:
    host = calico("HostEndpoint", "h", labels={"role": "host"}, node="n1", expectedIPs=[HOST], profiles=profiles or [])
    assert isinstance(host, HostEndpoint)
    oracle = Oracle([host, *manifests])
    direction = "Egress" if flow == LEAVING else "Ingress"
    return oracle.answer(host, direction, flow, plane=plane, pending=pending).verdict


DENY = [{"action": "Deny"}]
ALLOW = [{"action": "Allow"}]
PASS = [{"action": "Pass"}]


@pytest.mark.parametrize(
    ("plane", "spec", "verdict"),
    [
        ("host", None, "Deny"),
        ("host", {"ingress": ALLOW}, "Allow"),
        ("host", {"ingress": PASS}, "Deny"),
        ("host", {"ingress": ALLOW, "applyOnForward": True}, "Allow"),
        ("host", {"ingress": ALLOW, "applyOnForward": True, "preDNAT": True}, "Deny"),
        ("forward", None, "Allow"),
        ("forward", {"ingress": DENY}, "Allow"),
        ("forward", {"ingress": DENY, "applyOnForward": True}, "Deny"),
        ("forward", {"ingress": PASS, "applyOnForward": True}, "Allow"),
        ("forward", {"types": ["Ingress"], "applyOnForward": True}, "Deny"),
        ("forward", {"egress": DENY, "applyOnForward": True}, "Allow"),
        ("preDNAT", {"ingress": DENY, "applyOnForward": True}, "Continue"),
        ("preDNAT", {"ingress": DENY, "applyOnForward": True, "preDNAT": True}, "Deny"),
        ("preDNAT", {"types": ["Ingress"], "applyOnForward": True, "preDNAT": True}, "Continue"),
        ("preDNAT", {"ingress": PASS, "applyOnForward": True, "preDNAT": True}, "Continue"),
        ("untracked", {"ingress": ALLOW, "applyOnForward": True, "doNotTrack": True}, "Allow"),
        ("untracked", {"types": ["Ingress"], "applyOnForward": True, "doNotTrack": True}, "Continue"),
        ("untracked", {"ingress": ALLOW}, "Continue"),
    ],
)
def test_each_plane_asks_its_policies(plane: str, spec: dict[str, Any] | None, verdict: str) -> None:
    flow = THROUGH if plane == "forward" else COMING
    assert said(plane, flow, *([policy("p", **spec)] if spec is not None else [])) == verdict


def test_only_the_host_itself_falls_back_on_profiles() -> None:
    profiles = ["projectcalico-default-allow"]
    assert said("host", COMING, profiles=profiles) == "Allow"
    assert said("host", LEAVING, profiles=profiles) == "Allow"
    assert said("preDNAT", COMING, profiles=profiles) == "Continue"
    quiet = policy("p", types=["Ingress"], applyOnForward=True)
    assert said("host", COMING, quiet, profiles=profiles) == "Deny"
    assert said("host", LEAVING, quiet, profiles=profiles) == "Allow"


def test_policies_of_namespaces_and_other_selectors_mean_no_host() -> None:
    for other in (
        policy("p", selector="role == 'other'", ingress=ALLOW),
        policy("p", namespaceSelector="all()", ingress=ALLOW),
        resource(
            {
                "apiVersion": "policy.networking.k8s.io/v1alpha2",
                "kind": "ClusterNetworkPolicy",
                "metadata": {"name": "c"},
                "spec": {
                    "tier": "Admin",
                    "priority": 1,
                    "subject": {"namespaces": {}},
                    "ingress": [{"action": "Accept", "from": [{"namespaces": {}}]}],
                },
            }
        ),
    ):
        assert said("host", COMING, other) == "Deny"


def test_what_is_staged_counts_where_it_is_asked_for() -> None:
    def staged(name: str, **spec: Any) -> Resource:
        return calico("StagedGlobalNetworkPolicy", name, **spec)

    home, web = namespace("shop"), pod("shop", "web", ["10.0.0.1"])
    allow = calico("GlobalNetworkPolicy", "same", ingress=ALLOW)
    cases: list[tuple[list[Resource], str, str]] = [
        ([], "Allow", "Allow"),
        ([staged("new", ingress=DENY)], "Allow", "Deny"),
        ([allow, staged("same", ingress=DENY)], "Allow", "Deny"),
        ([allow, staged("a", ingress=DENY, order=1)], "Allow", "Deny"),
        ([allow, staged("z", ingress=DENY)], "Allow", "Allow"),
        ([calico("GlobalNetworkPolicy", "same", ingress=DENY), staged("same", stagedAction="Delete")], "Deny", "Allow"),
        ([staged("new", ingress=DENY, stagedAction="Learn")], "Allow", "Allow"),
        ([allow, staged("same", ingress=DENY, stagedAction="Ignore")], "Allow", "Allow"),
    ]
    for manifests, now, then in cases:
        oracle = Oracle([home, web, *manifests])
        assert oracle.answer(web, "Ingress", THROUGH).verdict == now
        assert oracle.answer(web, "Ingress", THROUGH, pending=True).verdict == then
    named = Oracle([home, web, allow, staged("a", ingress=DENY, order=1)]).answer(web, "Ingress", THROUGH, pending=True)
    assert named == Answer("Deny", "a//StagedGlobalNetworkPolicy rule 0")
