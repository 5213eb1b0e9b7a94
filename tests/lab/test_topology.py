"""What a topology may say, what is refused and where, and what follows from it."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.errors import Invalid
from core.names import workload_interface
from lab import manifests
from lab.topology import RouterKind, load, parse
from lab.wiring import wire

EXAMPLES = Path(__file__).parents[2] / "examples"


def small(**changes: Any) -> dict[str, Any]:
    """A topology of one node, with parts replaced."""
    return {
        "name": "small",
        "pools": ["10.9.0.0/16"],
        "routers": [{"name": "tor", "kind": "bird", "asNumber": 65001}],
        "racks": [{"name": "r", "router": "tor"}],
        "nodes": [{"name": "n1", "rack": "r", "asNumber": 65101}],
        **changes,
    }


def problems(document: Any) -> set[tuple[str, str]]:
    """Path and reason of all that is refused."""
    with pytest.raises(Invalid) as caught:
        parse(document)
    return {(problem.path, problem.why) for problem in caught.value.problems}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/topology.yaml")), ids=lambda path: path.parent.name)
def test_every_example_is_a_topology_whose_manifests_exist(path: Path) -> None:
    topology = load(path)
    assert topology.manifests
    for each in topology.manifests:
        assert (path.parent / each).exists()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/topology.yaml")), ids=lambda path: path.parent.name)
def test_examples_peer_with_the_routers_that_the_wiring_makes(path: Path) -> None:
    routers = wire(load(path)).routers
    speaking = [router for router in routers.values() if router.kind is not RouterKind.KERNEL]
    offered = {(str(n.local), r.as_number) for r in speaking for n in r.neighbours if n.node}
    documents = [doc for file in path.parent.rglob("bgp.yaml") for doc in yaml.safe_load_all(file.read_text())]
    specs = [doc["spec"] for doc in documents if doc["kind"] == "BGPPeer"]
    asked = {(spec["peerIP"], spec["asNumber"]) for spec in specs if "peerIP" in spec}
    assert asked == offered


def test_an_unknown_field_is_refused_with_its_path() -> None:
    document = small(nodes=[{"name": "n1", "rack": "r", "asNumber": 1, "color": "red"}])
    assert problems(document) == {("nodes[0]", "Object contains unknown field `color`")}


def test_an_unknown_kind_of_router_is_refused() -> None:
    ((path, why),) = problems(small(routers=[{"name": "tor", "kind": "quagga", "asNumber": 1}]))
    assert path == "routers[0].kind"
    assert "quagga" in why


def test_every_fault_is_reported_at_once() -> None:
    document = small(
        nodes=[{"name": "n1", "rack": "nowhere", "asNumber": 1}, {"name": "n1", "rack": "r"}],
        pods=[{"name": "no-slash", "node": "n9", "ports": [70000]}],
        pools=["10.0.0.1/8"],
        external=[{"name": "Out", "router": "tor"}],
    )
    assert {path for path, _ in problems(document)} == {
        "nodes[0].rack",
        "nodes[0].name",
        "nodes[1].name",
        "nodes[1].asNumber",
        "pods[0].name",
        "pods[0].node",
        "pods[0].ports[0]",
        "pools[0]",
        "external[0].name",
    }


def test_a_kernel_router_has_no_uplink() -> None:
    routers = [{"name": "tor", "kind": "kernel", "uplinks": ["up"]}, {"name": "up", "kind": "bird", "asNumber": 1}]
    assert {path for path, _ in problems(small(routers=routers))} == {"routers[0].uplinks[0]"}


def test_a_racks_routers_are_one_or_several_and_can_do_what_it_asks() -> None:
    gobgp = {"name": "go", "kind": "gobgp", "asNumber": 65002, "bfd": {}}
    tor = {"name": "tor", "kind": "bird", "asNumber": 65001}
    racks = [
        {"name": "r", "router": "tor", "routers": ["go"]},
        {"name": "s", "routers": ["tor", "tor"]},
        {"name": "t", "routers": ["tor", "go"], "loopbacks": True},
        {"name": "u", "routers": ["tor", "none"]},
        {"name": "v"},
    ]
    assert {path for path, _ in problems(small(routers=[tor, gobgp], racks=racks))} == {
        "routers[1].bfd",
        "racks[0].routers",
        "racks[1].routers",
        "racks[2].loopbacks",
        "racks[3].routers[1]",
        "racks[4].router",
    }


def test_what_is_no_yaml_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("name: [")
    with pytest.raises(Invalid, match="is no YAML"):
        load(tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(Invalid, match="object"):
        load(tmp_path / "empty.yaml")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/topology.yaml")), ids=lambda path: path.parent.name)
def test_no_address_or_device_is_used_twice(path: Path) -> None:
    wiring = wire(load(path))
    ports = [port for each in wiring.wires for port in (each.a, each.b)]
    addresses = [address.ip for port in ports for address in port.addresses]
    addresses += [each.ip for router in wiring.routers.values() for own in router.bridges.values() for each in own]
    assert len(addresses) == len(set(addresses))
    devices = [(port.host, port.device) for port in ports]
    assert len(devices) == len(set(devices))
    assert all(len(device) <= 15 for _, device in devices)


def test_a_lab_of_both_families_has_both_on_every_link_and_session() -> None:
    topology = parse(small(pools=["10.9.0.0/16", "fd09::/48"]))
    wiring = wire(topology)
    assert wiring.addresses["n1"] == (ip_interface("172.16.1.11/24"), ip_interface("fd16:1::11/64"))
    assert [str(each.address) for each in wiring.routers["tor"].neighbours] == ["172.16.1.11", "fd16:1::11"]
    (node,) = manifests.nodes(topology, wiring)
    assert node.spec.bgp is not None
    assert node.spec.bgp.interfaces == wiring.addresses["n1"]
    assert node.metadata.labels["rack"] == "r"


def test_a_nodes_as_is_its_own_or_its_racks() -> None:
    racks = [{"name": "r", "router": "tor", "asNumber": 64512}]
    nodes = [{"name": "a", "rack": "r"}, {"name": "b", "rack": "r"}, {"name": "c", "rack": "r", "asNumber": 65103}]
    neighbours = wire(parse(small(racks=racks, nodes=nodes))).routers["tor"].neighbours
    assert [(each.name, each.as_number, each.shared_as) for each in neighbours] == [
        ("a", 64512, True),
        ("b", 64512, True),
        ("c", 65103, False),
    ]


def test_an_endpoint_is_what_the_cni_plugin_would_write() -> None:
    ports = [8080, {"name": "http", "port": 80}]
    pod = parse(small(pods=[{"name": "shop/web", "node": "n1", "labels": {"app": "web"}, "ports": ports}])).pods[0]
    endpoint = manifests.endpoint(pod, [ip_address("10.9.0.1")])
    assert endpoint.metadata.name == "n1-k8s-web-eth0"
    assert endpoint.spec.interface_name == workload_interface("shop", "web")
    assert endpoint.spec.profiles == ["kns.shop", "ksa.shop.default"]
    assert endpoint.spec.ip_networks == ["10.9.0.1/32"]
    assert [(each.name, each.port) for each in endpoint.spec.ports] == [("http", 80)]
