"""The words of a call, without a node: what is understood, what is refused with which code and path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from cni import conf, endpoint
from cni.annotations import PREFIX, Wish, wish
from cni.arguments import Attachment, attachment
from cni.conf import Asked, Conf, Ipam
from cni.spec import Code, Command, Failure
from core.addr import Family
from core.names import Key
from core.resources import Metadata, Pod, WorkloadEndpoint
from core.resources.network import EndpointPort

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "f00d",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1",
    "CNI_PATH": "/opt/cni/bin",
}
STORE = "unix:/run/muslin/datastore.sock"
AT = Attachment(container="f00d", netns="/run/netns/x", interface="eth0", namespace="shop", pod="web-1")


def read(command: Command = Command.ADD, **given: Any) -> Conf:
    document = {"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "muslin", **given}
    return conf.read(document, "1.0.0", command, "n1", STORE)


def at(arguments: str) -> Attachment:
    found = attachment(Command.ADD, ENVIRONMENT | {"CNI_ARGS": arguments})
    assert found
    return found


def test_who_is_asked_about() -> None:
    assert at(ENVIRONMENT["CNI_ARGS"]) == AT
    nobody = at("")
    assert (nobody.namespace, nobody.pod) == ("default", "f00d")
    asked = at("IgnoreUnknown=true;IP=10.0.0.9/24,fd00::9;MAC=02:00:00:00:00:AA")
    assert asked.addresses == (ip_address("10.0.0.9"), ip_address("fd00::9"))
    assert asked.mac == "02:00:00:00:00:aa"


def test_containers_whose_names_differ_a_little_are_not_one_pod() -> None:
    names = {at(f"K8S_POD_NAME={name}").pod for name in ("Lucid_Fox", "lucid-fox", "lucid_fox")}
    assert names == {"lucid-fox-f00d", "lucid-fox"}
    with pytest.raises(Failure, match="K8S_POD_NAME 'Lucid_Fox'"):
        at("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=Lucid_Fox")


CALICO: Mapping[str, Any] = {
    "type": "calico",
    "log_level": "info",
    "log_file_path": "/var/log/calico/cni/cni.log",
    "datastore_type": "kubernetes",
    "nodename": "n1",
    "nodename_file_optional": True,
    "mtu": 0,
    "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"},
    "container_settings": {"allow_ip_forwarding": True},
    "policy": {"type": "k8s"},
    "policy_setup_timeout_seconds": 0,
    "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"},
    "feature_control": {"floating_ips": True},
    "capabilities": {"portMappings": True},
}


def test_a_calico_conflist_is_taken() -> None:
    assert read(**CALICO) == Conf(
        version="1.0.0",
        name="k8s-pod-network",
        wait_s=0.0,
        ip_forward=True,
        features=frozenset({"floating_ips"}),
        ipam=Ipam(families=(Family.V4, Family.V6)),
    )


def test_what_is_not_said() -> None:
    assert read() == Conf(version="1.0.0", name="k8s-pod-network")
    assert (read().mtu, read().wait_s) == (1480, 10.0)


FAMILIES: list[tuple[Mapping[str, Any], tuple[Family, ...] | None]] = [
    ({}, None),
    ({"type": "calico-ipam"}, (Family.V4,)),
    ({"type": "calico-ipam", "assign_ipv6": True}, (Family.V4, Family.V6)),
    ({"type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "true"}, (Family.V6,)),
    ({"assign_ipv6": "false"}, (Family.V4,)),
    ({"assign_ipv4": False}, (Family.V6,)),
    ({"assign_ipv4": "true"}, None),
    ({"assign_ipv4": "true", "assign_ipv6": "true"}, (Family.V4, Family.V6)),
]


@pytest.mark.parametrize(("ipam", "families"), FAMILIES)
def test_families(ipam: Mapping[str, Any], families: tuple[Family, ...] | None) -> None:
    assert read(ipam=ipam).ipam.families == families


def test_pools_and_routes() -> None:
    some = read(ipam={"ipv4_pools": ["rack-1", "10.0.0.0/16"], "routes": [{"dst": "10.0.0.0/8"}]})
    assert some.ipam.pools == {Family.V4: ("rack-1", "10.0.0.0/16")}
    assert some.ipam.routes == (ip_network("10.0.0.0/8"),)
    both = read(ipam={"routes": [{"dst": "10.0.0.0/8"}]}, include_default_routes=True)
    assert both.ipam.routes == tuple(map(ip_network, ("0.0.0.0/0", "::/0", "10.0.0.0/8")))
    assert read(include_default_routes=False).ipam.routes == ()


def test_what_a_runtime_asks() -> None:
    asked = read(
        runtimeConfig={
            "ips": ["10.0.0.9/16", "fd00::9"],
            "mac": "02-00-00-00-00-AA",
            "dns": {"searches": ["shop"]},
            "io.kubernetes.cri.pod-annotations": {"a": "b"},
        },
        args={"cni": {"labels": [{"key": "app", "value": "web"}], "ips": ["fd00::9", "10.0.0.9"], "others": 1}},
        dns={"nameservers": ["10.0.0.2"]},
        **{"cni.dev/anything": []},
    )
    assert asked.asked == Asked(
        addresses=(ip_address("10.0.0.9"), ip_address("fd00::9")),
        mac="02:00:00:00:00:aa",
        labels={"app": "web"},
        annotations={"a": "b"},
    )
    assert asked.dns == {"nameservers": ["10.0.0.2"], "searches": ["shop"]}


REFUSED: list[tuple[Mapping[str, Any], Code, str]] = [
    ({"name": ""}, Code.CONFIG, "name: "),
    ({"name": "a b"}, Code.CONFIG, "name: 'a b'"),
    ({"name": 1}, Code.CONFIG, "name: 1: not a text"),
    ({"node": "n2"}, Code.CONFIG, "node: 'n2': the agent of this node has 'n1'"),
    ({"nodename": "n2"}, Code.CONFIG, "nodename: 'n2'"),
    ({"datastore": "10.0.0.1:7000"}, Code.CONFIG, "datastore: '10.0.0.1:7000'"),
    ({"etcd_endpoints": "http://10.0.0.1:2379"}, Code.FIELD, "etcd_endpoints"),
    ({"mtu": 1279}, Code.CONFIG, "mtu: 1279"),
    ({"mtu": True}, Code.CONFIG, "mtu: True"),
    ({"policy_setup_timeout_seconds": 301}, Code.CONFIG, "policy_setup_timeout_seconds"),
    ({"policy_setup_timeout_seconds": -1}, Code.CONFIG, "policy_setup_timeout_seconds"),
    ({"ipMasq": True}, Code.CONFIG, "ipMasq"),
    ({"policy": {"type": "none"}}, Code.CONFIG, "policy.type"),
    ({"policy": []}, Code.CONFIG, "policy: not an object"),
    ({"ipam": {"type": "host-local"}}, Code.CONFIG, "ipam.type: 'host-local'"),
    ({"ipam": {"assign_ipv4": "maybe"}}, Code.CONFIG, "ipam.assign_ipv4"),
    ({"ipam": {"assign_ipv4": "false", "assign_ipv6": "false"}}, Code.CONFIG, "both false"),
    ({"ipam": {"ipv4_pools": "rack-1"}}, Code.CONFIG, "ipam.ipv4_pools: not a list"),
    ({"ipam": {"routes": [{"dst": "10.0.0.1/8"}]}}, Code.CONFIG, "ipam.routes[0].dst"),
    ({"ipam": {"routes": [{"dst": "10.0.0.0/8", "gw": "10.0.0.1"}]}}, Code.FIELD, "ipam.routes[0].gw"),
    ({"ipam": {"ranges": []}}, Code.FIELD, "ipam.ranges"),
    ({"container_settings": {"sysctl": {}}}, Code.FIELD, "container_settings.sysctl"),
    ({"feature_control": {"magic": True}}, Code.FIELD, "feature_control.magic"),
    ({"readiness_gates": ["https://localhost/"]}, Code.CONFIG, "readiness_gates[0]"),
    ({"runtimeConfig": {"ips": ["10.0.0.1", "10.0.0.2"]}}, Code.CONFIG, "runtimeConfig.ips: two addresses"),
    ({"runtimeConfig": {"ips": ["x"]}}, Code.CONFIG, "runtimeConfig.ips[0]"),
    ({"runtimeConfig": {"mac": "x"}}, Code.CONFIG, "runtimeConfig.mac"),
    ({"runtimeConfig": {"aliases": ["db"]}}, Code.CONFIG, "runtimeConfig.aliases"),
    ({"runtimeConfig": {"ips": ["10.0.0.1"]}, "args": {"cni": {"ips": ["10.0.0.2"]}}}, Code.CONFIG, "other addresses"),
    ({"args": {"cni": {"labels": {"app": "web"}}}}, Code.CONFIG, "args.cni.labels"),
    ({"args": {"cni": {"labels": [{"key": "app", "value": 1}]}}}, Code.CONFIG, "args.cni.labels"),
]


@pytest.mark.parametrize(("given", "code", "said"), REFUSED)
def test_what_is_refused(given: Mapping[str, Any], code: Code, said: str) -> None:
    with pytest.raises(Failure) as refusal:
        read(**given)
    assert refusal.value.code is code
    assert said in str(refusal.value)


def noted(**values: Any) -> dict[str, str]:
    return {PREFIX + key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def test_a_pods_wish_goes_over_its_namespaces_and_that_over_the_configurations() -> None:
    given = read(ipam={"type": "calico-ipam", "ipv4_pools": ["conf"], "ipv6_pools": ["conf-6"]})
    assert wish(given, AT, {}, {}).pools == {Family.V4: ("conf",), Family.V6: ("conf-6",)}
    around = noted(ipv4pools=["around"], ipAddrs=["10.0.0.1"], hwAddr="x")  # a namespace's pods are many
    assert wish(given, AT, {}, around) == Wish(
        families=(Family.V4,), pools={Family.V4: ("around",), Family.V6: ("conf-6",)}
    )
    own = noted(ipv4pools=["own"], ipFamilies=["IPv6", "IPv4"])
    assert wish(given, AT, own, around) == Wish(
        families=(Family.V4, Family.V6), pools={Family.V4: ("own",), Family.V6: ("conf-6",)}
    )


def test_a_pods_own_wishes() -> None:
    own = noted(ipAddrs=["fd00::7", "10.0.0.7"], hwAddr="02:00:00:00:00:AA")
    assert wish(read(), AT, own, {}) == Wish(
        addresses=(ip_address("10.0.0.7"), ip_address("fd00::7")), mac="02:00:00:00:00:aa"
    )
    gated = read(feature_control={"allowed_source_prefixes": True})
    sources = wish(gated, AT, noted(allowedSourcePrefixes=["192.0.2.0/24", "192.0.2.9"]), {}).sources
    assert sources == (ip_network("192.0.2.0/24"), ip_network("192.0.2.9/32"))
    same = read(runtimeConfig={"ips": ["10.0.0.7", "fd00::7"], "mac": "02:00:00:00:00:aa"})
    assert wish(same, AT, own, {}) == wish(read(), AT, own, {})


UNGRANTED: list[tuple[Mapping[str, str], str]] = [
    (noted(ipAddrs="10.0.0.7"), "ipAddrs: '10.0.0.7' is not a JSON list of texts"),
    (noted(ipAddrs=["10.0.0.7/32"]), "ipAddrs: '10.0.0.7/32' is a prefix"),
    (noted(ipAddrs=["10.0.0.7", "10.0.0.8"]), "ipAddrs: two addresses of one family"),
    (noted(ipv4pools=[1]), "ipv4pools: '[1]' is not a JSON list of texts"),
    (noted(ipFamilies=["IPv5"]), "ipFamilies: 'ipv5' is not IPv4 or IPv6"),
    (noted(hwAddr="x"), "hwAddr: 'x' is not a MAC address"),
    (noted(floatingIPs=["192.0.2.1"]), "floatingIPs: feature_control.floating_ips is not true"),
    (noted(ipAddrsNoIpam=["192.0.2.1"]), "ipAddrsNoIpam: feature_control.ip_addrs_no_ipam is not true"),
    (noted(allowedSourcePrefixes=["192.0.2.0/24"]), "feature_control.allowed_source_prefixes is not true"),
    ({"qos.projectcalico.org/egressPacketRate": "10"}, "egressPacketRate: muslin keeps pods to no such limit"),
]


@pytest.mark.parametrize(("own", "said"), UNGRANTED)
def test_a_wish_that_is_not_granted(own: Mapping[str, str], said: str) -> None:
    with pytest.raises(Failure) as refusal:
        wish(read(), AT, own, {})
    assert refusal.value.code is Code.CONFIG
    assert said in str(refusal.value)
    assert "two addresses" in said or "Pod shop/web-1: " in str(refusal.value)


def test_wishes_that_muslin_never_grants() -> None:
    every = {"floating_ips": True, "ip_addrs_no_ipam": True, "allowed_source_prefixes": True}
    for own in (noted(floatingIPs=["192.0.2.1"]), noted(ipAddrsNoIpam=["192.0.2.1"])):
        with pytest.raises(Failure, match=r"Pod shop/web-1: cni\.projectcalico\.org/"):
            wish(read(feature_control=every), AT, own, {})


def test_two_that_ask_for_different_things() -> None:
    own = noted(ipAddrs=["10.0.0.7"], hwAddr="02:00:00:00:00:01")
    for asked in ({"ips": ["10.0.0.8"]}, {"mac": "02:00:00:00:00:02"}):
        with pytest.raises(Failure, match="asked for twice, and not the same"):
            wish(read(runtimeConfig=asked), AT, own, {})


def pod(**metadata: Any) -> Pod:
    ports = [
        {"name": "http", "containerPort": 8080},
        {"containerPort": 53, "protocol": "UDP", "hostPort": 53, "hostIP": "192.0.2.1"},
        {"containerPort": 9},
        {"name": "odd", "containerPort": "x"},
    ]
    spec = {"serviceAccountName": "builder", "containers": [{"name": "web", "ports": ports}, {"name": "bare"}]}
    return Pod(metadata=Metadata(name="web-1", namespace="shop", **metadata), spec=spec)


def made(of: Pod | None, **labels: str) -> WorkloadEndpoint:
    return endpoint.endpoint(
        "n-1", AT, [ip_address("10.0.0.7")], network="net", mac="02:00:00:00:00:01", pod=of, runtime_labels=labels
    )


def test_the_endpoint_of_a_pod() -> None:
    found = made(pod(labels={"app": "web", "projectcalico.org/namespace": "lies"}, generate_name="web-"), tier="front")
    assert found.key == Key(WorkloadEndpoint.KIND, "shop", "n--1-k8s-web--1-eth0")
    assert found.metadata.labels == {
        "app": "web",
        "tier": "front",
        "projectcalico.org/namespace": "shop",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "builder",
    }
    assert found.metadata.generate_name == "web-"
    assert found.spec.profiles == ["kns.shop", "ksa.shop.builder"]
    assert found.spec.ports == [
        EndpointPort(name="http", port=8080, protocol="TCP"),
        EndpointPort(port=53, protocol="UDP", host_port=53, host_ip="192.0.2.1"),
    ]
    assert found.spec.ip_networks == ["10.0.0.7/32"]


def test_later_labels_of_the_pod_replace_its_former_ones_and_leave_the_runtimes() -> None:
    before = made(pod(labels={"app": "web", "old": "yes"}), tier="front")
    after = endpoint.as_pod_says(before, pod(labels={"app": "db"}))
    assert {"app": "db", "tier": "front"}.items() <= after.metadata.labels.items()
    assert "old" not in after.metadata.labels
    assert endpoint.same(after, endpoint.as_pod_says(after, pod(labels={"app": "db"})))
    assert not endpoint.same(before, after)


def test_a_containers_own_mac_is_its_own_and_local() -> None:
    macs = {endpoint.own_mac(f"net.c{number}") for number in range(1000)}
    assert len(macs) == 1000
    assert all(int(mac[:2], 16) & 3 == 2 for mac in macs)
    assert endpoint.own_mac("net.c1") == endpoint.own_mac("net.c1")
