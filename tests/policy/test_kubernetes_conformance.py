"""Kubernetes' own NetworkPolicy cases, asked of the compiled tables: every ordered pair of pods, both families."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace
from policy_cluster import key, namespace, packet, pod, resource, snapshot

from core.names import Key
from core.resources import BY_MANIFEST, Resource
from core.resources.network import EndpointPort
from core.resources.policy import Direction
from core.snapshot import Snapshot
from policy.compile import compile
from policy.evaluate import lookup
from policy.model import Verdict

SUITE = yaml.safe_load((Path(__file__).parents[1] / "conformance" / "k8s_netpol.yaml").read_text())
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}


def begin(topology: dict[str, Any]) -> Snapshot:
    resources: list[Resource] = [namespace(name, each["labels"]) for name, each in topology["namespaces"].items()]
    ports = [EndpointPort(**port) for port in topology["defaultPorts"]]
    for name, each in topology["pods"].items():
        resources.append(pod(*name.split("/"), each["ips"], each["labels"], each.get("ports") or ports))
    return snapshot(resources)


def change(state: Snapshot, step: dict[str, Any]) -> Snapshot:
    changes: list[tuple[Key, Resource | None]] = []
    for manifest in step.get("apply", ()):
        found = resource(manifest)
        changes.append((found.key, found))
    for gone in step.get("delete", ()):
        kind = BY_MANIFEST[gone.get("apiVersion", "networking.k8s.io/v1"), gone["kind"]].KIND
        changes.append((Key(kind, gone["namespace"], gone["name"]), None))
    for verb, named in (("label_pod", "pod"), ("label_namespace", "namespace")):
        if verb in step:
            what = step[verb]
            where = key(*what["pod"].split("/")) if named == "pod" else namespace(what["namespace"]).key
            old = state.tables[where.kind][where]
            labels = {**old.metadata.labels, **what.get("set", {})}
            for label in what.get("remove", ()):
                del labels[label]
            changes.append((where, replace(old, metadata=replace(old.metadata, labels=labels))))
    return state.apply(state.revision + 1, changes)


def expected(expect: dict[str, Any], source: str, destination: str) -> bool:
    allowed = bool(expect["default"] == "allow")
    for verdict in ("deny", "allow"):
        for pair in expect.get(verdict, ()):
            if fnmatchcase(source, pair["from"]) and fnmatchcase(destination, pair["to"]):
                allowed = verdict == "allow"
    return allowed


def probes(topology: dict[str, Any], case: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Pairs of pods with their addresses. The suite writes its blocks for IPv4 only: there IPv6 is not asked."""
    families = slice(0, 1) if "ipBlock" in str(case) else slice(None)
    for source, here in topology["pods"].items():
        for destination, there in topology["pods"].items():
            if source != destination:
                for address, other in zip(here["ips"][families], there["ips"][families], strict=True):
                    yield source, destination, address, other


@pytest.mark.parametrize("case", SUITE["cases"], ids=lambda case: case["id"])
def test_case(case: dict[str, Any]) -> None:
    topology = SUITE["topologies"][case["topology"]]
    state = begin(topology)
    asked = 0
    for step in case["steps"]:
        state = change(state, step)
        if "probe" not in step:
            continue
        compiled = compile(state, [key(*name.split("/")) for name in topology["pods"]])
        protocol, port = PROTOCOLS[step["probe"]["protocol"]], step["probe"]["port"]
        for source, destination, here, there in probes(topology, case):
            ends = (
                lookup(
                    compiled,
                    key(*end.split("/")),
                    direction,
                    packet(here, there, protocol, sport=40000, dport=port, ingress=direction is Direction.INGRESS),
                )
                for end, direction in ((source, Direction.EGRESS), (destination, Direction.INGRESS))
            )
            reached = all(decision.verdict is Verdict.ALLOW for decision in ends)
            assert reached == expected(step["expect"], source, destination), f"{here} to {there}"
            asked += 1
    assert asked
