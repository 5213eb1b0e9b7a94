"""Policies and what belongs to them, one object at a time: refused at the field that is wrong, or read back."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import Invalid
from core.manifest import decode, encode, load, render, to_yaml

DATA = yaml.safe_load((Path(__file__).parents[1] / "conformance" / "resources_of_policy.yaml").read_text())


def manifest(case: dict[str, Any]) -> dict[str, Any]:
    kind = DATA["kinds"][case["kind"]]
    metadata = {"name": case.get("name", "x")}
    if kind.get("namespaced") or "namespace" in case:
        metadata["namespace"] = case.get("namespace", "shop")
    head = {"apiVersion": kind["apiVersion"], "kind": kind["kind"], "metadata": metadata}
    return head | ({"spec": case["spec"]} if "spec" in case else case["fields"])


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in DATA["refused"]])
def test_refused_where_it_is_wrong(case: dict[str, Any]) -> None:
    given = manifest(case)
    with pytest.raises(Invalid) as caught:
        load(yaml.safe_dump(given), "given.yaml")
    (problem,) = caught.value.problems
    assert problem.path == case["path"]
    assert problem.what.split("/")[0] == given["kind"]
    assert problem.what.split("/")[-1] == given["metadata"]["name"]
    assert problem.where.startswith("given.yaml line ")
    assert problem.why


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in DATA["accepted"]])
def test_accepted_and_read_back(case: dict[str, Any]) -> None:
    (resource,) = load(yaml.safe_dump(manifest(case)), "given.yaml")
    kept = encode(resource)
    assert encode(decode(resource.key, kept)) == kept
    (again,) = load(to_yaml([render(resource, revision=7)]), "printed.yaml")
    assert encode(again) == kept


LIMITS: list[tuple[str, dict[str, Any], str]] = [
    ("np", {"ingress": [{"action": "Allow"}] * 1025}, "spec.ingress"),
    ("gnp", {"egress": [{"action": "Allow"}] * 1025}, "spec.egress"),
    ("np", {"selector": f"a == '{'x' * 1018}'"}, "spec.selector"),
    ("anp", {"egress": [{"action": "Deny", "to": [{"namespaces": {}}]}] * 101}, "spec.egress"),
    ("anp", {"egress": [{"action": "Deny", "to": [{"namespaces": {}}] * 101}]}, "spec.egress[0].to"),
    ("cnp", {"ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}] * 26}, "spec.ingress"),
    ("cnp", {"ingress": [{"action": "Deny", "from": [{"namespaces": {}}] * 26}]}, "spec.ingress[0].from"),
    ("cnp", {"ingress": [{"action": "Deny", "name": "x" * 101, "from": [{"namespaces": {}}]}]}, "spec.ingress[0].name"),
    (
        "cnp",
        {"egress": [{"action": "Deny", "to": [{"networks": [f"10.{n}.0.0/16" for n in range(26)]}]}]},
        "spec.egress[0].to[0].networks",
    ),
    (
        "np",
        {
            "ingress": [
                {"action": "Allow", "source": {"nets": [f"10.0.{n}.0/24" for n in range(256)] + ["10.1.0.0/16"]}}
            ]
        },
        "spec.ingress[0].source.nets",
    ),
    (
        "np",
        {"ingress": [{"action": "Allow", "protocol": "TCP", "source": {"ports": list(range(1, 52))}}]},
        "spec.ingress[0].source.ports",
    ),
]
NEEDED = {
    "anp": {"priority": 1, "subject": {"namespaces": {}}},
    "cnp": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
}


@pytest.mark.parametrize(("kind", "spec", "path"), LIMITS)
def test_too_many_are_refused(kind: str, spec: dict[str, Any], path: str) -> None:
    given = manifest({"kind": kind, "spec": NEEDED.get(kind, {}) | spec})
    with pytest.raises(Invalid) as caught:
        load(yaml.safe_dump(given), "given.yaml")
    assert [problem.path for problem in caught.value.problems] == [path]
