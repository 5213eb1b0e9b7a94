"""Every kind of policy is listed by a name people use, with columns that say what it is about."""

from __future__ import annotations

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
