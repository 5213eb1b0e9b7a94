"""BGPPeer, BGPConfiguration, BGPFilter and a node's BGP fields: what is refused, field by field, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from core.errors import Invalid
from core.manifest import load

SECRET = {"secretKeyRef": {"name": "bgp", "key": "rack"}}
IN = {"cidr": "10.0.0.0/8", "matchOperator": "In"}


def problems(kind: str, spec: dict[str, Any], name: str = "x") -> list[str]:
    given = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec}
    try:
        load(yaml.safe_dump(given), "f")
    except Invalid as invalid:
        return [f"{problem.path}: {problem.why}" for problem in invalid.problems]
    return []


def only(said: list[str]) -> str:
    assert len(said) == 1, said
    return said[0]


ROUTER = {"peerIP": "10.0.0.1", "asNumber": 64512}
NODES = {"peerSelector": "has(rr)"}
WORKLOADS = {"localWorkloadSelector": "has(bgp)", "asNumber": 64512}


@pytest.mark.parametrize(
    "spec",
    [
        ROUTER,
        NODES,
        WORKLOADS,
        ROUTER | {"node": "n1"},
        ROUTER | {"nodeSelector": "rack == '1'"},
        {"peerIP": "10.0.0.1:1790", "asNumber": "1.10"},
        {"peerIP": "[fd00::1]:1790", "asNumber": 4294967295},
        ROUTER | {"localASNumber": "65535.65535"},
        *(ROUTER | {"nextHopMode": mode} for mode in ("Auto", "Self", "Keep")),
        ROUTER | {"keepOriginalNextHop": True},
        *(ROUTER | {"sourceAddress": source} for source in ("UseNodeIP", "None")),
        *(NODES | {"reversePeering": mode} for mode in ("Auto", "Manual")),
        ROUTER | {"password": SECRET},
        *(ROUTER | {"maxRestartTime": time} for time in ("0s", "90s", "1h30m", "2h")),
        ROUTER | {"keepaliveTime": "1s"},
        ROUTER | {"keepaliveTime": "21845s"},
        ROUTER | {"holdTime": "3s"},
        ROUTER | {"holdTime": "65535s"},
        ROUTER | {"holdTime": "30s", "keepaliveTime": "10s"},
        ROUTER | {"longLivedRestartTime": "24h"},
        *(ROUTER | {"numAllowedLocalASNumbers": count} for count in (0, 3)),
        *(ROUTER | {"ttlSecurity": hops} for hops in (0, 255)),
        ROUTER | {"reachableBy": "10.1.0.254"},
        {"peerIP": "[fd00::1]:1790", "asNumber": 1, "reachableBy": "fd01::1"},
        ROUTER | {"filters": ["a", "b.c"]},
        ROUTER | {"passive": True},
        NODES | {"passive": True, "reversePeering": "Manual"},
        NODES | {"localASNumber": 64999, "reversePeering": "Manual"},
        ROUTER | {"maxPrefixesIn": 1, "maxPrefixesOut": 2147483647},
        ROUTER | {"bfd": {}},
        ROUTER | {"bfd": {"minimumSendInterval": "10ms", "minimumRecvInterval": "1m", "multiplier": 255}},
        *(ROUTER | {"failureDetectionMode": mode} for mode in ("None", "BFDIfDirectlyConnected")),
        ROUTER | {"failureDetectionMode": "BFDIfDirectlyConnected", "bfd": {"multiplier": 1}},
    ],
)
def test_a_peer_that_is_accepted(spec: dict[str, Any]) -> None:
    assert problems("BGPPeer", spec) == []


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (ROUTER | {"node": "n1", "nodeSelector": "all()"}, "spec.node: cannot be set together with nodeSelector"),
        (ROUTER | {"nodeSelector": "has("}, "spec.nodeSelector: "),
        ({"peerSelector": "has("}, "spec.peerSelector: "),
        (WORKLOADS | {"localWorkloadSelector": "has("}, "spec.localWorkloadSelector: "),
        ({"peerIP": "10.0.0.1/32", "asNumber": 1}, "spec.peerIP: "),
        ({"peerIP": "10.0.0.1:0", "asNumber": 1}, "spec.peerIP: port 0 is not within 1 to 65535"),
        ({"peerIP": "10.0.0.1:65536", "asNumber": 1}, "spec.peerIP: port 65536 is not within 1 to 65535"),
        ({"peerIP": "[10.0.0.1]:179", "asNumber": 1}, "spec.peerIP: '10.0.0.1' is IPv4; IPv6 is wanted"),
        ({"peerIP": "fe80::1%eth0", "asNumber": 1}, "spec.peerIP: "),
        (ROUTER | {"asNumber": "1.65536"}, "spec.asNumber: "),
        (ROUTER | {"asNumber": -1}, "spec.asNumber: "),
        (ROUTER | {"localASNumber": 4294967296}, "spec.localASNumber: "),
        (ROUTER | NODES | {"asNumber": None}, "spec.peerIP: cannot be set together with peerSelector"),
        (NODES | {"asNumber": 64512}, "spec.asNumber: cannot be set together with peerSelector"),
        (WORKLOADS | {"asNumber": None}, "spec.asNumber: is required with localWorkloadSelector"),
        (WORKLOADS | {"peerIP": "10.0.0.1"}, "spec.peerIP: cannot be set together with localWorkloadSelector"),
        (
            {"localWorkloadSelector": "all()", "peerSelector": "all()"},
            "spec.asNumber: is required with localWorkloadSelector",
        ),
        (ROUTER | {"nextHopMode": "self"}, "spec.nextHopMode: 'self' is not one of Auto, Self, Keep"),
        (
            ROUTER | {"nextHopMode": "Self", "keepOriginalNextHop": True},
            "spec.keepOriginalNextHop: cannot be set together with nextHopMode",
        ),
        (ROUTER | {"sourceAddress": "Loopback"}, "spec.sourceAddress: "),
        (ROUTER | {"reversePeering": "auto"}, "spec.reversePeering: "),
        (ROUTER | {"password": {"secretKeyRef": {"name": "s"}}}, "spec.password.secretKeyRef.key: is required"),
        (ROUTER | {"password": {"secretKeyRef": {"name": "S_", "key": "k"}}}, "spec.password.secretKeyRef.name: "),
        (ROUTER | {"maxRestartTime": "90"}, "spec.maxRestartTime: '90' is not a duration"),
        (ROUTER | {"maxRestartTime": "-1s"}, "spec.maxRestartTime: '-1s' is not a duration"),
        (ROUTER | {"keepaliveTime": "0s"}, "spec.keepaliveTime: 0s is not within 1s to 21845s"),
        (ROUTER | {"keepaliveTime": "500ms"}, "spec.keepaliveTime: 500ms is not within 1s to 21845s"),
        (ROUTER | {"keepaliveTime": "7h"}, "spec.keepaliveTime: 7h is not within 1s to 21845s"),
        (ROUTER | {"holdTime": "0s"}, "spec.holdTime: 0s is not within 3s to 65535s"),
        (ROUTER | {"holdTime": "2s"}, "spec.holdTime: 2s is not within 3s to 65535s"),
        (ROUTER | {"holdTime": "65536s"}, "spec.holdTime: 65536s is not within 3s to 65535s"),
        (ROUTER | {"holdTime": "3500ms"}, "spec.holdTime: 3500ms is not a whole number of seconds"),
        (
            ROUTER | {"holdTime": "29s", "keepaliveTime": "10s"},
            "spec.holdTime: 29s is less than three times keepaliveTime",
        ),
        (
            ROUTER | {"holdTime": "90s", "keepaliveTime": "5s"},
            "spec.keepaliveTime: the speaker sends a keepalive every third of holdTime 90s",
        ),
        ({"peerIP": "10.0.0.1"}, "spec.asNumber: is required with peerIP"),
        ({"asNumber": 64512}, "spec: names nobody: peerIP, peerSelector or localWorkloadSelector is needed"),
        (ROUTER | {"password": {"secretKeyRef": {"key": "k"}}}, "spec.password.secretKeyRef.name: is required"),
        (ROUTER | {"longLivedRestartTime": "16777216s"}, "spec.longLivedRestartTime: "),
        (ROUTER | {"numAllowedLocalASNumbers": -1}, "spec.numAllowedLocalASNumbers: "),
        (ROUTER | {"ttlSecurity": 256}, "spec.ttlSecurity: 256 is not within 0 to 255"),
        (ROUTER | {"reachableBy": "fd00::1"}, "spec.reachableBy: 'fd00::1' is IPv6; IPv4 is wanted"),
        (NODES | {"reachableBy": "10.0.0.254"}, "spec.reachableBy: needs a peerIP"),
        (ROUTER | {"filters": ["a", "B_"]}, "spec.filters[1]: "),
        (NODES | {"passive": True}, "spec.passive: cannot be set together with peerSelector"),
        (NODES | {"localASNumber": 64999}, "spec.localASNumber: cannot be set together with peerSelector"),
        (ROUTER | {"maxPrefixesIn": 0}, "spec.maxPrefixesIn: 0 is not within 1 to "),
        (ROUTER | {"maxPrefixesOut": -5}, "spec.maxPrefixesOut: -5 is not within 1 to "),
        (ROUTER | {"failureDetectionMode": "BFD"}, "spec.failureDetectionMode: 'BFD' is not one of None, BFDIf"),
        (ROUTER | {"failureDetectionMode": "None", "bfd": {}}, "spec.bfd: cannot be set together with failureDet"),
        (ROUTER | {"bfd": {"minimumSendInterval": "9ms"}}, "spec.bfd.minimumSendInterval: 9ms is not within 0.01s to"),
        (ROUTER | {"bfd": {"minimumRecvInterval": "61s"}}, "spec.bfd.minimumRecvInterval: 61s is not within 0.01s to"),
        (ROUTER | {"bfd": {"minimumRecvInterval": ""}}, "spec.bfd.minimumRecvInterval: is empty"),
        (ROUTER | {"bfd": {"minimumSendInterval": "often"}}, "spec.bfd.minimumSendInterval: 'often' is not a duration"),
        (ROUTER | {"bfd": {"multiplier": 0}}, "spec.bfd.multiplier: 0 is not within 1 to 255"),
        (ROUTER | {"bfd": {"multiplier": 256}}, "spec.bfd.multiplier: 256 is not within 1 to 255"),
        (ROUTER | {"holdtime": "9s"}, "spec: unknown field 'holdtime'; did you mean 'holdTime'?"),
    ],
)
def test_a_peer_that_is_refused(spec: dict[str, Any], says: str) -> None:
    said = problems("BGPPeer", {key: value for key, value in spec.items() if value is not None})
    assert said[0].startswith(says)
    assert len(said) == 1 or "peerSelector" in spec


ONE = {"communities": [{"name": "a", "value": "1:1"}]}
ADVERT = {"cidr": "10.0.0.0/16", "communities": ["65000:1"]}


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"asNumber": "1.10", "listenPort": 65535, "bindMode": "NodeIP", "logSeverityScreen": "Warning"},
        {"nodeToNodeMeshEnabled": True, "nodeMeshPassword": SECRET, "nodeMeshMaxRestartTime": "1m"},
        {"nodeMeshPassword": SECRET},
        {"serviceClusterIPs": [{"cidr": "10.96.0.0/12"}, {"cidr": "fd96::/108"}], "serviceExternalIPs": []},
        {"serviceLoadBalancerIPs": [{"cidr": "10.7.0.1/32"}], "serviceLoadBalancerAggregation": "Disabled"},
        {"prefixAdvertisements": [ADVERT | {"communities": ["65535:65535", "4294967295:0:1"]}]},
        ONE | {"prefixAdvertisements": [ADVERT | {"communities": ["a", "2:2"]}]},
        {"prefixAdvertisements": [ADVERT] * 500},
        {"prefixAdvertisements": [ADVERT | {"communities": ["1:1"] * 50}]},
        {"ignoredInterfaces": ["eth*", "docker0"]},
        {"localWorkloadPeeringIPV4": "169.254.1.2", "localWorkloadPeeringIPV6": "fd00::2"},
        *({"programClusterRoutes": word} for word in ("Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly")),
        {"ipv4NormalRoutePriority": 1, "ipv6NormalRoutePriority": 2147483646},
    ],
)
def test_a_configuration_that_is_accepted(spec: dict[str, Any]) -> None:
    assert problems("BGPConfiguration", spec, "default") == []


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"asNumber": "0.65536"}, "spec.asNumber: "),
        ({"listenPort": 0}, "spec.listenPort: 0 is not within 1 to 65535"),
        ({"listenPort": 65536}, "spec.listenPort: 65536 is not within 1 to 65535"),
        ({"bindMode": "All"}, "spec.bindMode: 'All' is not one of None, NodeIP"),
        ({"logSeverityScreen": "Trace"}, "spec.logSeverityScreen: "),
        ({"nodeToNodeMeshEnabled": False, "nodeMeshPassword": SECRET}, "spec.nodeMeshPassword: cannot be set"),
        ({"nodeToNodeMeshEnabled": False, "nodeMeshMaxRestartTime": "1m"}, "spec.nodeMeshMaxRestartTime: cannot be"),
        ({"nodeMeshMaxRestartTime": "1"}, "spec.nodeMeshMaxRestartTime: '1' is not a duration"),
        ({"nodeMeshPassword": {"secretKeyRef": {"name": "s"}}}, "spec.nodeMeshPassword.secretKeyRef.key: "),
        *(
            ({field: [{"cidr": "10.0.0.1/8"}]}, f"spec.{field}[0].cidr: '10.0.0.1/8' has host bits set")
            for field in ("serviceClusterIPs", "serviceExternalIPs", "serviceLoadBalancerIPs")
        ),
        ({"serviceLoadBalancerAggregation": "On"}, "spec.serviceLoadBalancerAggregation: "),
        (ONE, "spec.communities: are named but not used by any of prefixAdvertisements"),
        ({"communities": [{"value": "1:1"}], "prefixAdvertisements": [ADVERT]}, "spec.communities[0].name: is req"),
        (
            {"communities": [{"name": "a", "value": "1"}], "prefixAdvertisements": [ADVERT]},
            "spec.communities[0].value: ",
        ),
        (
            {"communities": [{"name": "a", "value": "1:65536"}], "prefixAdvertisements": [ADVERT]},
            "spec.communities[0].value: '1:65536' has a part that does not fit into 16 bits",
        ),
        (
            {"communities": [{"name": "a", "value": "1:1:4294967296"}], "prefixAdvertisements": [ADVERT]},
            "spec.communities[0].value: '1:1:4294967296' has a part that does not fit into 32 bits",
        ),
        ({"prefixAdvertisements": [{"communities": ["1:1"]}]}, "spec.prefixAdvertisements[0].cidr: is required"),
        ({"prefixAdvertisements": [{"cidr": "10.0.0.0/8"}]}, "spec.prefixAdvertisements[0].communities: is required"),
        (
            {"prefixAdvertisements": [ADVERT | {"communities": ["gold"]}]},
            "spec.prefixAdvertisements[0].communities[0]: 'gold' is neither",
        ),
        (
            {"prefixAdvertisements": [ADVERT | {"communities": ["1:1"] * 51}]},
            "spec.prefixAdvertisements[0].communities: has 51 items; at most 50",
        ),
        ({"prefixAdvertisements": [ADVERT] * 501}, "spec.prefixAdvertisements: has 501 items; at most 500"),
        (
            {"communities": ONE["communities"] * 501, "prefixAdvertisements": [ADVERT]},
            "spec.communities: has 501 items; at most 500",
        ),
        ({"ignoredInterfaces": ["*"]}, "spec.ignoredInterfaces[0]: '*' would ignore every interface"),
        ({"ignoredInterfaces": ["eth 0"]}, "spec.ignoredInterfaces[0]: "),
        ({"localWorkloadPeeringIPV4": "fd00::1"}, "spec.localWorkloadPeeringIPV4: 'fd00::1' is IPv6; IPv4 is wanted"),
        ({"localWorkloadPeeringIPV6": "10.0.0.1"}, "spec.localWorkloadPeeringIPV6: '10.0.0.1' is IPv4; IPv6 is wanted"),
        ({"programClusterRoutes": "On"}, "spec.programClusterRoutes: "),
        ({"ipv4NormalRoutePriority": 0}, "spec.ipv4NormalRoutePriority: 0 is not within 1 to 2147483646"),
        ({"ipv6NormalRoutePriority": 2147483647}, "spec.ipv6NormalRoutePriority: 2147483647 is not within 1 to"),
    ],
)
def test_a_configuration_that_is_refused(spec: dict[str, Any], says: str) -> None:
    assert only(problems("BGPConfiguration", spec, "default")).startswith(says)


def rule(**fields: Any) -> dict[str, Any]:
    return {"exportV4": [{"action": "Accept", **fields}]}


def operation(**fields: Any) -> dict[str, Any]:
    return rule(operations=[fields])


@pytest.mark.parametrize(
    "spec",
    [
        {},
        *({field: [{"action": "Reject"}]} for field in ("importV4", "exportV4", "importV6", "exportV6")),
        *(rule(cidr="10.0.0.0/8", matchOperator=word) for word in ("Equal", "NotEqual", "In", "NotIn")),
        rule(**IN, prefixLength={"min": 0, "max": 32}),
        {"importV6": [{"action": "Accept", "cidr": "fd00::/8", "matchOperator": "In", "prefixLength": {"max": 128}}]},
        rule(source="RemotePeers", interface="eth*", peerType="eBGP", communities={"values": ["1:1:1"]}),
        rule(asPathPrefix=[65000, "1.10"], priority=512),
        operation(addCommunity={"value": "65000:1"}),
        operation(prependASPath={"prefix": [65000] * 10}),
        operation(setPriority={"value": 1}),
        *(operation(setLocalPreference={"value": value}) for value in (0, 4294967295)),
        rule(operations=[{"addCommunity": {"value": "1:1"}}] * 10),
    ],
)
def test_a_filter_that_is_accepted(spec: dict[str, Any]) -> None:
    assert problems("BGPFilter", spec) == []


OPERATION = "spec.exportV4[0].operations[0]"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"exportV4": [{"action": "Allow"}]}, "spec.exportV4[0].action: 'Allow' is not one of Accept, Reject"),
        ({"exportV4": [{}]}, "spec.exportV4[0].action: is required"),
        (rule(cidr="10.0.0.0/8"), "spec.exportV4[0].matchOperator: is required with cidr"),
        (rule(matchOperator="In"), "spec.exportV4[0].cidr: is required with matchOperator"),
        (rule(cidr="10.0.0.0/8", matchOperator="Within"), "spec.exportV4[0].matchOperator: "),
        (rule(cidr="fd00::/8", matchOperator="In"), "spec.exportV4[0].cidr: 'fd00::/8' is IPv6; IPv4 is wanted"),
        (rule(cidr="10.0.0.1/8", matchOperator="In"), "spec.exportV4[0].cidr: '10.0.0.1/8' has host bits set"),
        (rule(prefixLength={"max": 8}), "spec.exportV4[0].cidr: is required with prefixLength"),
        (rule(**IN, prefixLength={"max": 33}), "spec.exportV4[0].prefixLength.max: 33 is not within 0 to 32"),
        (rule(**IN, prefixLength={"max": 7}), "spec.exportV4[0].prefixLength.max: nothing inside 10.0.0.0/8 is as"),
        (
            rule(cidr="10.0.0.0/8", matchOperator="Equal", prefixLength={"min": 9}),
            "spec.exportV4[0].prefixLength: bounds In and NotIn; Equal has the cidr's own length",
        ),
        (rule(**IN, prefixLength={"min": -1}), "spec.exportV4[0].prefixLength.min: -1 is not within 0 to 32"),
        (rule(**IN, prefixLength={"min": 25, "max": 24}), "spec.exportV4[0].prefixLength.min: 25 is above max 24"),
        (rule(source="Anyone"), "spec.exportV4[0].source: "),
        (rule(interface="eth 0"), "spec.exportV4[0].interface: "),
        (rule(peerType="ebgp"), "spec.exportV4[0].peerType: 'ebgp' is not one of eBGP, iBGP"),
        (rule(communities={"values": []}), "spec.exportV4[0].communities.values: holds exactly one community"),
        (rule(communities={"values": ["1:1", "2:2"]}), "spec.exportV4[0].communities.values: holds exactly one"),
        (rule(communities={"values": ["1"]}), "spec.exportV4[0].communities.values[0]: "),
        (rule(asPathPrefix=[4294967296]), "spec.exportV4[0].asPathPrefix[0]: "),
        (rule(priority=0), "spec.exportV4[0].priority: "),
        (
            {"importV4": [{"action": "Reject", "operations": [{"addCommunity": {"value": "1:1"}}]}]},
            "spec.importV4[0].operations: are for rules that Accept",
        ),
        (rule(operations=[{"addCommunity": {"value": "1:1"}}] * 11), "spec.exportV4[0].operations: has 11 items"),
        (operation(), f"{OPERATION}: sets exactly one of"),
        (operation(addCommunity={"value": "1:1"}, setPriority={"value": 1}), f"{OPERATION}: sets exactly one of"),
        (operation(addCommunity={"value": "70000:1"}), f"{OPERATION}.addCommunity.value: "),
        (operation(prependASPath={"prefix": []}), f"{OPERATION}.prependASPath.prefix: names no AS number"),
        (operation(prependASPath={"prefix": [1] * 11}), f"{OPERATION}.prependASPath.prefix: has 11 items"),
        (operation(prependASPath={"prefix": [1, 0]}), f"{OPERATION}.prependASPath.prefix[1]: AS 0 must not"),
        (operation(setPriority={"value": 0}), f"{OPERATION}.setPriority.value: "),
        (operation(setLocalPreference={"value": -1}), f"{OPERATION}.setLocalPreference.value: -1 is not within"),
        (operation(setLocalPreference={"value": 4294967296}), f"{OPERATION}.setLocalPreference.value: "),
    ],
)
def test_a_filter_that_is_refused(spec: dict[str, Any], says: str) -> None:
    assert only(problems("BGPFilter", spec)).startswith(says)


@pytest.mark.parametrize(
    ("bgp", "says"),
    [
        ({}, "spec.bgp: is empty"),
        ({"ipv4Address": "fd00::1/64"}, "spec.bgp.ipv4Address: 'fd00::1/64' is IPv6; IPv4 is wanted"),
        ({"ipv6Address": "10.0.0.1/24"}, "spec.bgp.ipv6Address: '10.0.0.1/24' is IPv4; IPv6 is wanted"),
        ({"asNumber": "x"}, "spec.bgp.asNumber: "),
        ({"routeReflectorClusterID": "7"}, "spec.bgp.routeReflectorClusterID: '7' is not an IP address"),
        ({"routeReflectorClusterID": "fd00::1"}, "spec.bgp.routeReflectorClusterID: 'fd00::1' is IPv6"),
        ({"maintenance": "Drained"}, "spec.bgp.maintenance: 'Drained' is not one of GracefulShutdown, Withdrawn"),
    ],
)
def test_a_nodes_fields_that_are_refused(bgp: dict[str, Any], says: str) -> None:
    assert only(problems("Node", {"bgp": bgp})).startswith(says)


@pytest.mark.parametrize(
    "bgp",
    [
        {"ipv4Address": "10.0.0.1", "ipv6Address": "fd00::1/64", "asNumber": "1.1"},
        {"ipv4Address": "10.100.0.1/32", "routeReflectorClusterID": "224.0.0.1"},
        *({"ipv4Address": "10.0.0.1/24", "maintenance": word} for word in ("GracefulShutdown", "Withdrawn")),
    ],
)
def test_a_nodes_fields_that_are_accepted(bgp: dict[str, Any]) -> None:
    assert problems("Node", {"bgp": bgp}) == []


@pytest.mark.parametrize(
    ("borrowers", "path"),
    [({"10.0.0.1": "n2"}, None), ({"x": "n2"}, "spec.borrowers.x"), ({"10.0.0.1": "N_2"}, "spec.borrowers")],
)
def test_who_borrows_is_a_node(borrowers: dict[str, str], path: str | None) -> None:
    spec = {"cidr": "10.0.0.0/26", "affinity": "host:n1", "allocations": {"10.0.0.1": "h"}, "borrowers": borrowers}
    said = problems("IPAMBlock", spec)
    assert said == [] if path is None else only(said).startswith(path)
