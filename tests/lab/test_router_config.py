"""The router's side, as `muslin bgp router-config` prints it: right by the book, taken by each router's own checker,
and good for sessions and traffic when the router starts with it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from bgp.router_config.bird import bird
from bgp.router_config.frr import frr
from bgp.router_config.gobgp import gobgp
from bgp.router_config.side import CHANGE_ME, RouterKind, RouterSide, rack_router, router_side
from core import manifest
from core.errors import Invalid, NotFound
from core.resources import Node, SpeakerStatus
from core.snapshot import Snapshot
from lab import cluster as clusters
from lab import ip, processes
from lab.cluster import Cluster
from lab.frr import Frr
from lab.gobgp import Gobgp
from lab.routers import Bird, Router
from lab.store import opened, read

pytestmark = pytest.mark.lab

RUN = Path("/run/muslin/tests")
"""Where FRR, which gives up root, can reach its files."""

PASSWORD = "rack-one"
TEXTS = {RouterKind.BIRD: bird, RouterKind.FRR: frr, RouterKind.GOBGP: gobgp}
every_kind = pytest.mark.parametrize("kind", list(RouterKind))


def node(name: str, number: int, *, rack: str = "rack1", **bgp: Any) -> dict[str, Any]:
    addresses = {"ipv4Address": f"172.16.1.{number}/24", "ipv6Address": f"fd16:1::{number}/64", "asNumber": 64512}
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"rack": rack}},
        "spec": {"bgp": {**addresses, **bgp}},
    }


def thing(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec}


def peer(name: str, address: str = "172.16.1.1", **spec: Any) -> dict[str, Any]:
    return thing("BGPPeer", name, **{"peerIP": address, "asNumber": 65001, "nodeSelector": "rack == 'rack1'", **spec})


POOLS = [
    thing("IPPool", "v4", cidr="10.9.0.0/16"),
    thing("IPPool", "v6", cidr="fd09::/48"),
    thing("IPPool", "kept", cidr="10.10.0.0/16", disableBGPExport=True),
]
NODES = [node("a", 11), node("b", 12), node("c", 13, rack="rack2", asNumber=65103)]
SECRET = {"secretKeyRef": {"name": "bgp-secrets", "key": "rack1"}}
RICH = [
    thing(
        "BGPConfiguration",
        "default",
        nodeToNodeMeshEnabled=True,
        listenPort=1790,
        serviceClusterIPs=[{"cidr": "10.96.0.0/12"}],
    ),
    peer(
        "v4",
        "172.16.1.1:1179",
        password=SECRET,
        ttlSecurity=1,
        holdTime="9s",
        bfd={"minimumSendInterval": "100ms", "minimumRecvInterval": "200ms", "multiplier": 4},
        maxPrefixesOut=50,
    ),
    peer("v6", "fd16:1::1", asNumber=64512, nodeSelector="rack == 'rack1'"),
    peer("far", "192.0.2.1", nodeSelector="rack == 'rack2'", filters=["not-there"], bfd={}),
]


def snapshot(*documents: dict[str, Any]) -> Snapshot:
    found = manifest.load(yaml.safe_dump_all([*POOLS, *documents]), "test")
    return Snapshot().apply(1, [(each.key, each) for each in found])


def side(*addresses: str, documents: list[dict[str, Any]] | None = None) -> RouterSide:
    return router_side(snapshot(*NODES, *(documents or RICH)), [ip_address(each) for each in addresses])


def test_a_router_is_told_what_the_nodes_that_name_it_want() -> None:
    found = side("172.16.1.1")
    assert (found.as_number, found.port, str(found.router_id)) == (65001, 1179, "172.16.1.1")
    assert [(each.node, str(each.address), each.port) for each in found.neighbours] == [
        ("a", "172.16.1.11", 1790),
        ("b", "172.16.1.12", 1790),
    ]
    a = found.neighbours[0]
    assert (a.peering, a.as_number, a.hold_s, a.keepalive_s) == ("BGPPeer/v4", 64512, 9, 3)
    assert (a.ttl_hops, a.most, a.far, a.hide) == (1, 50, False, True)
    assert a.bfd is not None
    assert (a.bfd.transmit_ms, a.bfd.receive_ms, a.bfd.multiplier) == (100, 200, 4)
    assert a.secret == "key rack1 of Secret bgp-secrets"
    assert list(map(str, found.taken)) == ["10.9.0.0/16", "10.96.0.0/12", "fd09::/48"]
    assert list(map(str, found.told)) == ["10.9.0.0/16", "fd09::/48"]


def test_nodes_of_the_routers_own_as_are_clients_and_a_far_one_takes_two_hops() -> None:
    internal = side("fd16:1::1")
    assert all(internal.internal(each) and not each.hide for each in internal.neighbours)
    (far,) = side("192.0.2.1").neighbours
    assert (far.node, far.far, far.distance, far.hide, far.bfd) == ("c", True, 2, False, None)


def test_an_as_that_a_bgppeer_lends_to_several_nodes_is_hidden_from_them() -> None:
    both, one = peer("v4", localASNumber=64999), peer("v4", localASNumber=64999, nodeSelector="", node="a")
    assert [each.hide for each in side("172.16.1.1", documents=[both]).neighbours] == [True, True]
    assert [each.hide for each in side("172.16.1.1", documents=[one]).neighbours] == [False]
    elsewhere = peer("far", "192.0.2.1", localASNumber=64999, nodeSelector="rack == 'rack2'")
    assert [each.hide for each in side("172.16.1.1", documents=[one, elsewhere]).neighbours] == [True]


@every_kind
def test_a_family_without_a_pool_is_closed_and_not_open(kind: RouterKind) -> None:
    found = dataclasses.replace(side("fd16:1::1", documents=[peer("v6", "fd16:1::1")]), taken=(), told=())
    text = TEXTS[kind](found)
    if kind is RouterKind.BIRD:
        assert "function muslin_told6() { return false; }" in text
        assert text.count("return false; }") == 2
    elif kind is RouterKind.FRR:
        assert "ipv6 prefix-list MUSLIN-TAKEN6 seq 5 deny any" in text
        assert "ipv6 prefix-list MUSLIN-TOLD6 seq 5 deny any" in text
    else:  # an empty set matches nothing in GoBGP, and neither does its inverse: it must not be asked
        policies = [each for each in tomllib.loads(text)["policy-definitions"] if each["name"] != "muslin-self"]
        statements = [each for policy in policies for each in policy["statements"]]
        assert [set(each["conditions"]) for each in statements] == [{"match-neighbor-set"}] * 2
        assert {each["actions"]["route-disposition"] for each in statements} == {"reject-route"}


def test_a_rack_has_one_router_or_says_which_there_are() -> None:
    known = snapshot(*NODES, *RICH)
    assert list(map(str, rack_router(known, "rack1"))) == ["172.16.1.1", "fd16:1::1"]
    with pytest.raises(NotFound, match=r"no Node has the label rack=rack9; there are rack1, rack2"):
        rack_router(known, "rack9")
    with pytest.raises(NotFound, match="no BGPPeer with a peerIP takes in the nodes of rack rack2"):
        rack_router(snapshot(*NODES, peer("v4")), "rack2")
    with pytest.raises(
        Invalid, match=r"rack rack1: its nodes peer with 172.16.1.1, 172.16.1.2; say which with --router"
    ):
        rack_router(snapshot(*NODES, peer("one"), peer("two", "172.16.1.2")), "rack1")


def test_peers_that_disagree_about_a_router_are_refused_by_name() -> None:
    with pytest.raises(
        Invalid, match=r"BGPPeers with 172.16.1.1: spec.asNumber: they differ: 65001 in BGPPeer/one, 7 in"
    ):
        side(
            "172.16.1.1",
            documents=[peer("one", node="a", nodeSelector=""), peer("two", asNumber=7, node="b", nodeSelector="")],
        )
    with pytest.raises(NotFound, match=r"no node has a session with 192.0.2.9"):
        side("192.0.2.9")


def test_one_nodes_mistake_leaves_the_others_and_is_said() -> None:
    known = snapshot(*NODES, peer("v4", nodeSelector=""))
    a = known.get(Node, "a")
    assert a is not None
    assert a.spec.bgp is not None
    bgp = msgspec.structs.replace(a.spec.bgp, as_number="nonsense")
    broken = msgspec.structs.replace(a, spec=msgspec.structs.replace(a.spec, bgp=bgp))
    found = router_side(known.apply(2, [(broken.key, broken)]), [ip_address("172.16.1.1")])
    assert [each.node for each in found.neighbours] == ["b", "c"]
    assert len(found.blocked) == 1
    assert "nonsense" in found.blocked[0]
    assert f"! held down by the node: {found.blocked[0]}" in frr(found).splitlines()


def checked(kind: RouterKind, text: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """The router's own check of a configuration."""
    file = directory / "config"
    file.write_text(text)
    argv = {
        RouterKind.BIRD: ["bird", "-p", "-c", str(file)],
        RouterKind.FRR: ["vtysh", "-C", "-f", str(file)],
        RouterKind.GOBGP: ["gobgpd", "-d", "-f", str(file)],
    }[kind]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)


@every_kind
@pytest.mark.parametrize("address", ["172.16.1.1", "fd16:1::1", "192.0.2.1"])
def test_each_routers_own_checker_takes_the_text(kind: RouterKind, address: str, tmp_path: Path) -> None:
    text = TEXTS[kind](side(address))
    assert checked(kind, text, tmp_path).returncode == 0
    right, wrong = {
        RouterKind.BIRD: ("hold time", "hold thyme"),
        RouterKind.FRR: ("remote-as", "remotely-as"),
        RouterKind.GOBGP: ("peer-as = ", 'peer-as = "x" # '),
    }[kind]
    assert checked(kind, text.replace(right, wrong), tmp_path).returncode, "what is wrong would be found"


@every_kind
def test_the_text_says_all_that_a_bgppeer_asks_for_and_no_secret(kind: RouterKind) -> None:
    text = TEXTS[kind](side("172.16.1.1"))
    assert PASSWORD not in text
    assert text.count("key rack1 of Secret bgp-secrets") == 2
    assert CHANGE_ME in text
    said = {
        RouterKind.BIRD: [
            "local 172.16.1.1 port 1179 as 65001;",
            "neighbor 172.16.1.11 port 1790 as 64512;",
            "hold time 9; keepalive time 3;",
            "graceful restart on;",
            "ttl security on;",
            "bfd { min tx interval 200 ms; min rx interval 100 ms; multiplier 4; };",
            "receive limit 50 action restart;",
            "bgp_path.delete(64512)",
            "net ~ [ 10.9.0.0/16+, 10.96.0.0/12+ ]",
        ],
        RouterKind.FRR: [
            "start it with -p 1179",
            "neighbor 172.16.1.11 remote-as 64512",
            "neighbor 172.16.1.11 port 1790",
            "neighbor 172.16.1.11 timers 3 9",
            "bgp graceful-restart",
            "neighbor 172.16.1.11 ttl-security hops 1",
            "neighbor 172.16.1.11 bfd 4 100 200",
            "neighbor 172.16.1.11 maximum-prefix 50 80 restart 1",
            "neighbor 172.16.1.11 as-override",
            "ip prefix-list MUSLIN-TAKEN4 seq 10 permit 10.96.0.0/12 le 32",
        ],
        RouterKind.GOBGP: ["BFD, which GoBGP does not speak"],
    }[kind]
    assert [each for each in said if each not in text] == []
    if kind is RouterKind.GOBGP:
        first = tomllib.loads(text)["neighbors"][0]
        assert first["config"] == {
            "neighbor-address": "172.16.1.11",
            "peer-as": 64512,
            "auth-password": CHANGE_ME,
        }
        assert first["transport"]["config"] == {"local-address": "172.16.1.1", "remote-port": 1790}
        assert (first["timers"]["config"]["hold-time"], first["timers"]["config"]["keepalive-interval"]) == (9, 3)
        assert first["ttl-security"]["config"] == {"enabled": True, "ttl-min": 255}
        assert first["afi-safis"][0]["prefix-limit"]["config"]["max-prefixes"] == 50
        assert first["as-path-options"]["config"] == {"replace-peer-as": True}
        assert first["graceful-restart"]["config"]["enabled"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A rack of two nodes of one AS, in both families, whose router forwards and does not speak yet."""
    home = tmp_path_factory.mktemp("router-config")
    off = thing("BGPConfiguration", "default", nodeToNodeMeshEnabled=False)
    (home / "pools.yaml").write_text(yaml.safe_dump_all([*POOLS[:2], off]))
    (home / "topology.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "router-config",
                "pools": ["10.9.0.0/16", "fd09::/48"],
                "routers": [{"name": "tor", "kind": "kernel"}],
                "racks": [{"name": "rack1", "router": "tor", "asNumber": 64512}],
                "nodes": [{"name": "node1", "rack": "rack1"}, {"name": "node2", "rack": "rack1"}],
                "pods": [{"name": "shop/a", "node": "node1"}, {"name": "shop/b", "node": "node2"}],
                "manifests": ["pools.yaml"],
            }
        )
    )
    secret = base64.b64encode(PASSWORD.encode()).decode()
    word = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "bgp-secrets", "namespace": "kube-system"},
        "data": {"rack1": secret},
    }
    peers = [
        peer(f"tor-{version}", address, password=SECRET, ttlSecurity=1, maxPrefixesOut=20, holdTime="9s")
        for version, address in (("v4", "172.16.1.1"), ("v6", "fd16:1::1"))
    ]
    (home / "peers.yaml").write_text(yaml.safe_dump_all([word, *peers]))
    name = f"c{os.getpid()}"
    made = asyncio.run(clusters.up(home / "topology.yaml", lambda _: None, name=name))
    try:
        asyncio.run(made.apply(home / "peers.yaml"))
        yield made
    finally:
        asyncio.run(clusters.down(name))
        shutil.rmtree(RUN / name, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process of the tests uses it
            RUN.rmdir()


def given(kind: RouterKind, text: str, lab: Cluster) -> Router:
    """A router in the rack's router's namespace that starts with `text`."""
    base: type[Router] = {RouterKind.BIRD: Bird, RouterKind.FRR: Frr, RouterKind.GOBGP: Gobgp}[kind]
    wiring = dataclasses.replace(lab.wiring.routers["tor"], name=str(kind))

    class Given(base):  # type: ignore[valid-type, misc]
        def config(self) -> str:
            return text

    return Given(wiring, lab.namespace("tor"), RUN / lab.name / kind)


@every_kind
async def test_a_router_that_starts_with_the_text_has_all_its_nodes_and_carries_their_pods(
    kind: RouterKind, lab: Cluster
) -> None:
    said = await lab.muslin("bgp", "router-config", "--kind", kind, "--rack", "rack1")
    assert (said.code, said.err) == (0, "")
    assert PASSWORD not in said.out
    router = given(kind, said.out.replace(CHANGE_ME, PASSWORD), lab)
    started = router.start()
    try:
        async with opened(lab.socket) as store:

            async def unestablished() -> str:
                found = {each.metadata.name: each.status.sessions for each in await read(store, SpeakerStatus)}
                states = [each for sessions in found.values() for each in sessions]
                # each node hears the other's block, and its own if its router echoes it; no subnet
                return "" if all(s.state == "Established" and 0 < s.received < 3 for s in states) else str(states)

            await lab.until(unestablished, f"the nodes to have {kind}'s blocks", 20)
        blocks = {ip_network(f"{lab.address(pod, 4)}/26", strict=False) for pod in ("shop/a", "shop/b")}
        blocks |= {ip_network(f"{lab.address(pod, 6)}/122", strict=False) for pod in ("shop/a", "shop/b")}
        await lab.until(lambda: str(blocks ^ router.routes().keys() or ""), f"{kind} to use the blocks", 20)
        await lab.until_routed(timeout=20)
        for version in (4, 6):
            (other,) = (net for net in blocks if lab.address("shop/b", version) in net)
            assert ip.routes(lab.namespace("node1"), version, "proto", "201").keys() == {other}
            found = await lab.matrix(version=version)
            assert {pair for pair, answer in found.items() if answer} == {("shop/a", "shop/b"), ("shop/b", "shop/a")}
    finally:
        processes.stop(started)


async def test_the_command_says_what_is_wrong_with_a_question(lab: Cluster) -> None:
    neither = await lab.muslin("bgp", "router-config", "--kind", "bird")
    assert (neither.code, "either --rack or --router" in neither.err) == (2, True)
    both = await lab.muslin("bgp", "router-config", "--kind", "bird", "--rack", "rack1", "--router", "172.16.1.1")
    assert both.code == 2
    nobody = await lab.muslin("bgp", "router-config", "--kind", "bird", "--router", "192.0.2.1")
    assert (nobody.code, nobody.err) == (1, "no node has a session with 192.0.2.1\n")
    one = await lab.muslin("bgp", "router-config", "--kind", "frr", "--router", "172.16.1.1")
    assert (one.code, "fd16:1::" in one.out) == (0, False)
