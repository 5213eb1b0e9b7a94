"""What a speaker keeps of what it follows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bgp.thrift import thrifty
from core.manifest import decode, encode
from core.resources import CalicoNodeStatus, EndpointSlice, IPPool, R, Secret, Service, WorkloadEndpoint


def kept(cls: type[R], name: str, namespace: str = "", **fields: Any) -> R:
    metadata = {"name": name, "namespace": namespace, "annotations": {"a": "b"}}
    metadata["labels"] = fields.pop("labels", {})
    given = msgspec.convert({"metadata": metadata, **fields}, cls)
    found = thrifty(decode, "here")(given.key, encode(given))
    assert found.key == given.key
    assert isinstance(found, cls)
    return found


def endpoint(address: str, node: str, ready: bool = True) -> dict[str, Any]:
    return {"addresses": [address], "nodeName": node, "conditions": {"ready": ready}, "targetRef": {"name": "p"}}


@pytest.mark.parametrize(
    ("endpoints", "nodes"),
    [
        ([], []),
        ([endpoint("10.0.0.1", "here", ready=False), endpoint("10.0.0.2", "there", ready=False)], []),
        ([endpoint("10.0.0.1", "there"), endpoint("10.0.0.2", "far"), endpoint("10.0.0.3", "there")], [None]),
        ([endpoint("10.0.0.1", "there"), endpoint("10.0.0.2", "here"), endpoint("10.0.0.3", "here")], ["here", None]),
        ([{"addresses": ["10.0.0.1"]}], [None]),
    ],
)
def test_of_a_slice_whether_any_is_ready_here_and_elsewhere(endpoints: list[Any], nodes: list[str | None]) -> None:
    labels = {"kubernetes.io/service-name": "web", "app": "x"}
    found = kept(EndpointSlice, "web-1", "shop", addressType="IPv4", endpoints=endpoints, labels=labels)
    assert [each.node_name for each in found.endpoints] == nodes
    assert all(each.ready for each in found.endpoints)
    assert (found.service, found.address_type) == ("web", "IPv4")


def test_pods_that_come_and_go_elsewhere_change_nothing() -> None:
    def of(count: int) -> EndpointSlice:
        endpoints = [endpoint(f"10.0.0.{last}", "there") for last in range(1, count)]
        return kept(EndpointSlice, "web-1", "shop", addressType="IPv4", endpoints=endpoints)

    assert of(2) == of(90)


def test_of_a_service_its_addresses_and_how_traffic_comes_to_it() -> None:
    spec = {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local", "ports": [{"port": 1}]}
    status = {"loadBalancer": {"ingress": [{"ip": "10.7.0.1"}]}}
    found = kept(Service, "web", "shop", spec=spec, status=status)
    assert (found.spec.type, found.spec.cluster_ip) == ("LoadBalancer", "10.96.0.1")
    assert (found.spec.external_traffic_policy, found.status, found.spec.ports) == ("Local", status, [])


@pytest.mark.parametrize(("namespace", "there"), [("kube-system", b"x"), ("calico-system", b"x"), ("shop", None)])
def test_secrets_of_others_are_not_kept(namespace: str, there: bytes | None) -> None:
    assert kept(Secret, "bgp", namespace, data={"rack": "eA=="}).value("rack") == there


@pytest.mark.parametrize(("node", "updated"), [("here", "2026-01-02T03:04:05Z"), ("there", None)])
def test_of_an_answer_when_it_was_given_here(node: str, updated: str | None) -> None:
    status = {"lastUpdated": "2026-01-02T03:04:05Z", "routes": {"routesV4": [{"type": "FIB", "destination": "::/0"}]}}
    found = kept(CalicoNodeStatus, "q", spec={"node": node, "classes": ["BGP"]}, status=status)
    assert (found.spec.node, found.spec.classes) == (node, ["BGP"])
    assert (found.status.last_updated if found.status else None) == updated
    assert found.status is None or found.status.routes is None


@pytest.mark.parametrize(("node", "there"), [("here", True), ("there", False)])
def test_pods_of_others_are_not_kept(node: str, there: bool) -> None:
    given = msgspec.convert({"metadata": {"name": "p", "namespace": "shop"}, "spec": {"node": node}}, WorkloadEndpoint)
    assert (thrifty(decode, "here")(given.key, encode(given)) is not None) is there


def test_what_it_goes_by_whole_is_kept_whole() -> None:
    found = kept(IPPool, "p", spec={"cidr": "10.0.0.0/16"})
    assert found.metadata.annotations == {"a": "b"}
