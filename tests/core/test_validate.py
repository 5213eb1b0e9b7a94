"""One object at a time: Calico's own verdicts, and that what is accepted reads back as it was."""

from pathlib import Path

import msgspec
import pytest
import yaml

from core.errors import Invalid
from core.manifest import decode, encode, load, render, to_yaml

CASES = yaml.safe_load((Path(__file__).parents[1] / "conformance" / "resources.yaml").read_text())


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES["invalid"]])
def test_calico_refuses(case: dict) -> None:
    manifest = case["manifest"]
    with pytest.raises(Invalid) as caught:
        load(yaml.safe_dump(manifest), "given.yaml")
    for problem in caught.value.problems:
        assert problem.where.startswith("given.yaml line ")
        assert problem.what.startswith(f"{manifest['kind']}/")
        assert problem.what.endswith(f"/{manifest['metadata']['name']}")
        assert problem.path.split(".")[0] in ("spec", "metadata")
        assert problem.why


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES["valid"]])
def test_calico_accepts(case: dict) -> None:
    (resource,) = load(yaml.safe_dump(case["manifest"]), "given.yaml")
    kept = encode(resource)
    assert decode(resource.key, kept) == msgspec.structs.replace(resource)
    assert encode(decode(resource.key, kept)) == kept
    (again,) = load(to_yaml([render(resource, revision=7)]), "printed.yaml")
    assert encode(again) == kept


def pool(**spec: object) -> dict:
    return {"apiVersion": "projectcalico.org/v3", "kind": "IPPool", "metadata": {"name": "p"}, "spec": spec}


def policy(kind: str = "NetworkPolicy", **spec: object) -> dict:
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": "p"}, "spec": spec}


def rule(**fields: object) -> dict:
    return policy(ingress=[{"action": "Allow", **fields}])


def kubernetes(**spec: object) -> dict:
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": spec}


def problems_of(manifest: dict) -> list[str]:
    try:
        load(yaml.safe_dump(manifest), "f")
    except Invalid as invalid:
        return [f"{problem.path}: {problem.why}" for problem in invalid.problems]
    return []


@pytest.mark.parametrize(
    ("manifest", "says"),
    [
        (
            pool(cidr="10.0.0.0/255.255.0.0"),
            "spec.cidr: '10.0.0.0/255.255.0.0' is not a prefix: address/length",
        ),
        (pool(cidr="10.0.0.0"), "spec.cidr: '10.0.0.0' has no prefix length; write it as address/length"),
        (pool(cidr="fe80::1%eth0/64"), "spec.cidr: 'fe80::1%eth0/64' is not a prefix: address/length"),
        (
            pool(cidr="fd00::/64", ipipMode="Fallback"),
            "spec.ipipMode: IP-in-IP carries IPv4 only; an IPv6 pool has ipipMode Never",
        ),
        (
            pool(cidr="10.0.0.0/16", vxlanMode="Fallback"),
            "spec.vxlanMode: 'Fallback' is a mode of ipipMode; one of Never, Always, CrossSubnet",
        ),
        (
            rule(http={"methods": ["GET"]}),
            "spec.ingress[0].http: needs a proxy beside every pod, which muslin does not run",
        ),
        (
            policy(egress=[{"action": "Deny", "protocol": "tcp"}]),
            "spec.egress[0].protocol: unknown protocol 'tcp'; one of ICMP, TCP, UDP, ICMPv6, SCTP, UDPLite or a number",
        ),
        (
            rule(protocol="TCP", destination={"ports": ["90:80"]}),
            "spec.ingress[0].destination.ports[0]: port range '90:80' ends before it begins",
        ),
        (
            rule(source={"namespaceSelector": "global() && has(a)"}),
            "spec.ingress[0].source.namespaceSelector: global() stands alone; it cannot be combined with other tests",
        ),
        (rule(icmp={"code": 3}, protocol="ICMP"), "spec.ingress[0].icmp.type: is required with code"),
        (rule(ipVersion=5), "spec.ingress[0].ipVersion: 5 is not 4 or 6"),
        (
            rule(ipVersion=6, source={"nets": ["10.0.0.0/8"]}),
            "spec.ingress[0].source.nets[0]: 10.0.0.0/8 is IPv4; the rule is for IPv6",
        ),
        (policy(types=["Ingress", "Ingress"]), "spec.types[1]: 'Ingress' is given twice"),
        (policy(order=float("inf")), "spec.order: expected a number, found '.inf'"),
        (
            policy("GlobalNetworkPolicy", preDNAT=True, doNotTrack=True, applyOnForward=True),
            "spec.preDNAT: cannot be set together with doNotTrack",
        ),
        (
            kubernetes(podSelector={"matchExpressions": [{"key": "a", "operator": "Is"}]}),
            "spec.podSelector.matchExpressions[0].operator: 'Is' is not one of In, NotIn, Exists, DoesNotExist",
        ),
        (
            kubernetes(podSelector={}, ingress=[{"from": [{}]}]),
            "spec.ingress[0].from[0]: is empty: a podSelector, a namespaceSelector or an ipBlock is wanted",
        ),
        (
            kubernetes(
                podSelector={}, egress=[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"]}}]}]
            ),
            "spec.egress[0].to[0].ipBlock.except[0]: 11.0.0.0/9 is not a part of 10.0.0.0/8",
        ),
        (
            kubernetes(podSelector={}, egress=[{"ports": [{"port": 80, "endPort": 70}]}]),
            "spec.egress[0].ports[0].endPort: 70 is below port 80",
        ),
        (
            {
                "apiVersion": "policy.networking.k8s.io/v1alpha1",
                "kind": "BaselineAdminNetworkPolicy",
                "metadata": {"name": "default"},
                "spec": {"subject": {"namespaces": {}}, "egress": [{"action": "Pass", "to": [{"namespaces": {}}]}]},
            },
            "spec.egress[0].action: 'Pass' is not one of Allow, Deny",
        ),
    ],
)
def test_refused_with_field_and_reason(manifest: dict, says: str) -> None:
    assert problems_of(manifest) == [says]


@pytest.mark.parametrize(
    "manifest",
    [
        pool(cidr="10.0.0.0/16", ipipMode="Fallback"),
        pool(cidr="10.0.0.0/16", vxlanMode="CrossSubnet"),
        pool(cidr="10.0.0.0/16", allowedUses=["LoadBalancer"], nodeSelector="all()"),
        rule(protocol=6, destination={"ports": [80, "90:100", "http", "8080"]}),
        rule(protocol=58, icmp={"type": 128}),
        rule(source={"namespaceSelector": "global()", "selector": "role == 'db'"}),
        kubernetes(podSelector=None),
        kubernetes(podSelector={}, ingress=[{"ports": [{"port": "http"}, {"protocol": "SCTP"}]}]),
    ],
)
def test_accepted(manifest: dict) -> None:
    assert problems_of(manifest) == []


def test_every_problem_is_told_at_once() -> None:
    manifest = pool(cidr="10.0.0.1/16", blockSize=8, ipipMode="Always", vxlanMode="Always", nodeSelector="has(")
    manifest["metadata"]["labels"] = {"a b": "c", "d": "e f"}
    assert [text.split(": ")[0] for text in problems_of(manifest)] == [
        "metadata.labels.a b",
        "metadata.labels.d",
        "spec.cidr",
        "spec.vxlanMode",
        "spec.nodeSelector",
    ]
