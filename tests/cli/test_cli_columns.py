"""Every kind of policy is listed by a name people use, with columns that say what it is about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.columns import COLUMNS
from cli.kinds import kind_of, reference
from core.manifest import load

DATA = yaml.safe_load((Path(__file__).parents[1] / "conformance" / "resources_of_policy.yaml").read_text())
MANIFESTS = [
    {
        "apiVersion": DATA["kinds"][case["kind"]]["apiVersion"],
        "kind": DATA["kinds"][case["kind"]]["kind"],
        "metadata": {"name": case.get("name", "x")},
        **({"spec": case["spec"]} if "spec" in case else case["fields"]),
    }
    for case in DATA["accepted"]
]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=[case["id"] for case in DATA["accepted"]])
def test_every_column_has_a_text(manifest: dict[str, Any]) -> None:
    (resource,) = load(yaml.safe_dump(manifest), "given.yaml")
    columns = COLUMNS.get(resource.KIND, ())
    assert len({column.title for column in columns}) == len(columns)
    assert all(isinstance(column.text(resource), str) for column in columns)
    assert kind_of(reference(resource.key).split("/")[0]) == resource.KIND


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("anp", "AdminNetworkPolicy"),
        ("banp", "BaselineAdminNetworkPolicy"),
        ("cnp", "ClusterNetworkPolicy"),
        ("snp", "StagedNetworkPolicy"),
        ("sgnp", "StagedGlobalNetworkPolicy"),
        ("sknp", "StagedKubernetesNetworkPolicy"),
        ("svc", "Service"),
        ("endpointslices", "EndpointSlice"),
        ("clusternetworkpolicies.policy.networking.k8s.io", "ClusterNetworkPolicy"),
    ],
)
def test_short_names(name: str, kind: str) -> None:
    assert kind_of(name).name == kind


UPSTREAM = """
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: cluster-control, annotations: {note: as upstream writes it}}
spec:
  tier: Admin
  priority: 10
  subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}
  ingress:
  - name: monitoring
    action: Accept
    from: [{namespaces: {matchLabels: {team: ops}}}]
    protocols: [{tcp: {destinationPort: {number: 9100}}}]
  - {name: rest, action: Pass, from: [{namespaces: {}}]}
status: {conditions: []}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-abc, namespace: shop, generateName: web-, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- addresses: [10.0.0.1]
  conditions: {ready: true, serving: true, terminating: false}
  targetRef: {kind: Pod, name: web-0, namespace: shop, uid: 1-2}
  nodeName: n1
- {addresses: [10.0.0.2], conditions: {ready: false}, hints: null}
ports: [{name: http, port: 8080, protocol: TCP, appProtocol: null}]
---
apiVersion: projectcalico.org/v3
kind: StagedNetworkPolicy
metadata: {name: default.lock, namespace: shop}
spec: {stagedAction: Delete, tier: default}
"""


def test_upstream_manifests_are_taken_and_shown(muslin: Callable[[str], Any], tmp_path: Path) -> None:
    (tmp_path / "given.yaml").write_text(UPSTREAM)
    applied = muslin(f"apply -f {tmp_path / 'given.yaml'}")
    assert (applied.code, applied.err) == (0, "")
    shown = {name: muslin(f"get {name} -A").out.split() for name in ("endpointslices", "snp")}
    shown["cnp"] = muslin("get cnp").out.split()
    assert {"Admin", "10", "kubernetes.io/metadata.name=shop"} <= set(shown["cnp"])
    assert {"web", "1", "8080/TCP"} <= set(shown["endpointslices"])
    assert {"Delete", "default"} <= set(shown["snp"])
    again = muslin("get cnp cluster-control -o yaml")
    (kept,) = load(again.out, "printed.yaml")
    assert kept.metadata.name == "cluster-control"
