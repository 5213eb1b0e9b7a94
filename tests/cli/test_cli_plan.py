"""`muslin plan` against a real datastore: what it says, what it refuses, how it ends, and that it writes nothing."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.plan import connection
from core.names import workload_endpoint_name
from linux.conntrack import Flow, Status, Tuple
from linux.netns import scratch_namespace

Muslin = Callable[[str], Any]

NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
LOCKDOWN = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "NetworkPolicy",
    "metadata": {"name": "lockdown", "namespace": "shop"},
    "spec": {
        "selector": "app == 'db'",
        "ingress": [
            {
                "action": "Deny",
                "protocol": "TCP",
                "source": {"selector": "app == 'web'"},
                "destination": {"ports": [5432]},
            },
            {"action": "Allow"},
        ],
    },
}


def endpoint(name: str, app: str, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "WorkloadEndpoint",
        "metadata": {"name": workload_endpoint_name("n1", name), "namespace": "shop", "labels": {"app": app}},
        "spec": {
            "orchestrator": "k8s",
            "node": "n1",
            "pod": name,
            "endpoint": "eth0",
            "ipNetworks": [f"{address}/32"],
            "profiles": ["kns.shop"],
            "interfaceName": f"mus{name}",
        },
    }


@pytest.fixture
def shop(muslin: Muslin, tmp_path: Path) -> Path:
    """A folder to write manifests to, and a datastore with a small shop."""
    pods = [endpoint(f"web{n}", "web", f"10.0.0.{n}") for n in (1, 2)]
    said = muslin(f"apply -f {write(tmp_path, 'shop', NAMESPACE, *pods, endpoint('db', 'db', '10.0.0.9'))}")
    assert said.code == 0, said.err
    return tmp_path


def write(folder: Path, name: str, *manifests: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump_all(manifests))
    return path


def test_a_plan_says_what_flips_ends_with_2_and_writes_nothing(muslin: Muslin, shop: Path) -> None:
    policy = write(shop, "lockdown", LOCKDOWN)
    said = muslin(f"plan -f {policy}")
    assert said.code == 2, said.err
    assert said.out.splitlines()[:2] == [
        "2 pods of shop app=web -> shop/db tcp/5432: Allow -> Deny by default/shop/lockdown ingress rule 0",
        "    before: Allow by profile kns.* ingress rule 0",
    ]
    assert said.out.splitlines()[-1] == "pairs of ends that flip: 2"
    assert muslin("get np -A -o name").out == ""


def test_what_is_applied_already_flips_nothing(muslin: Muslin, shop: Path) -> None:
    policy = write(shop, "lockdown", LOCKDOWN)
    assert muslin(f"apply -f {policy}").code == 0
    said = muslin(f"plan -f {policy}")
    assert (said.code, said.out) == (0, "nothing flips\n")


def test_what_a_delete_would_open(muslin: Muslin, shop: Path) -> None:
    policy = write(shop, "lockdown", LOCKDOWN)
    missing = muslin(f"plan --delete -f {policy}")
    assert missing.code == 1
    assert "lockdown.yaml" in missing.err
    assert "there is none" in missing.err
    assert muslin(f"apply -f {policy}").code == 0
    said = muslin(f"plan --delete -f {policy}")
    assert said.code == 2
    assert "shop/db tcp/5432: Deny -> Allow by profile kns.* ingress rule 0" in said.out
    assert muslin("get np -A -o name").out == "networkpolicy/shop/lockdown\n"


def test_labels_of_pods_count_and_programs_get_it_in_parts(muslin: Muslin, shop: Path) -> None:
    assert muslin(f"apply -f {write(shop, 'lockdown', LOCKDOWN)}").code == 0
    changed = write(shop, "web2", endpoint("web2", "office", "10.0.0.2"))
    said = muslin(f"plan -f {changed} -o json")
    assert said.code == 2, said.err
    found = json.loads(said.out)
    assert [flip["text"] for flip in found["flips"]] == ["shop/web2 -> shop/db tcp/5432"]
    flip = found["flips"][0]
    assert flip["traffic"] == [{"text": "tcp/5432", "protocol": 6, "ports": [5432, 5432]}]
    assert [each["name"] for each in flip["from"]] == ["shop/web2"]
    assert flip["before"]["policy"] == "networkpolicy/shop/lockdown"
    assert (flip["before"]["rule"], flip["after"]["rule"]) == (0, 1)


def test_what_apply_refuses_is_refused(muslin: Muslin, shop: Path) -> None:
    astray = {**LOCKDOWN, "spec": {**LOCKDOWN["spec"], "tier": "security"}}  # type: ignore[dict-item]
    said = muslin(f"plan -f {write(shop, 'astray', astray)}")
    assert said.code == 1
    assert "astray.yaml" in said.err
    assert "spec.tier" in said.err
    wrong = {**LOCKDOWN, "spec": {"selector": "app ="}}
    said = muslin(f"plan -f {write(shop, 'wrong', wrong)}")
    assert said.code == 1
    assert "spec.selector" in said.err


@pytest.mark.kernel
def test_live_connections_of_this_host_that_would_be_cut_are_told(muslin: Muslin, shop: Path) -> None:
    policy = write(shop, "lockdown", LOCKDOWN)
    with scratch_namespace():
        rules = "table inet t { chain c { type filter hook output priority 0; ct state new accept; }; }"
        subprocess.run(["nft", rules], check=True)
        for address in ("10.0.0.1", "10.0.0.9"):
            subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], check=True)
        with (
            socket.create_server(("10.0.0.9", 5432)) as db,
            socket.create_connection(("10.0.0.9", 5432), source_address=("10.0.0.1", 0)) as web,
            socket.create_server(("10.0.0.9", 80)),
            socket.create_connection(("10.0.0.9", 80), source_address=("10.0.0.1", 0)),
        ):
            assert db.getsockname()[1] == 5432
            port = web.getsockname()[1]
            said = muslin(f"plan -f {policy}")
            found = json.loads(muslin(f"plan -f {policy} -o json").out)
    assert said.code == 2
    cut = f"10.0.0.1:{port} -> 10.0.0.9:5432 tcp"
    assert f"    {cut} by default/shop/lockdown ingress rule 0" in said.out.splitlines()
    assert "would be cut: 1 of this host's" in said.err
    assert [each["text"] for each in found["cuts"]] == [cut]
    assert found["connectionsUnread"] == ""


def test_a_connection_is_judged_by_where_its_packets_really_go() -> None:
    web, service, db, node = map(ip_address, ("10.0.0.1", "10.96.0.1", "10.0.0.9", "172.16.0.1"))
    flow = Flow(
        original=Tuple(web, service, 6, 40000, 80),
        reply=Tuple(db, node, 6, 5432, 61000),
        zone=0,
        status=Status.CONFIRMED,
        timeout_s=60,
        mark=0,
        state="ESTABLISHED",
        id=7,
    )
    assert str(connection(flow)) == "10.0.0.1:40000 -> 10.0.0.9:5432 tcp"


def test_host_endpoints_that_are_concerned_are_named(muslin: Muslin, tmp_path: Path) -> None:
    host = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "HostEndpoint",
        "metadata": {"name": "n1-eth0", "labels": {"faces": "world"}},
        "spec": {"node": "n1", "interfaceName": "eth0"},
    }
    policy = {
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": "world"},
        "spec": {"selector": "faces == 'world'", "applyOnForward": True, "ingress": [{"action": "Allow"}]},
    }
    staged = {**policy, "kind": "StagedGlobalNetworkPolicy"}
    other = {**policy, "metadata": {"name": "rack"}, "spec": {**policy["spec"], "selector": "faces == 'rack'"}}
    files = {}
    for name, each in (("host", host), ("policy", policy), ("staged", staged), ("other", other)):
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(each))
    concerned = "hostendpoint/n1-eth0: its policy would be another; what a host decides is not compared"
    assert muslin(f"plan -f {files['policy']}").code == 0
    for name in ("host", "policy"):
        said = muslin(f"plan -f {files[name]}")
        assert (said.code, said.out.splitlines()[0]) == (2, concerned)
        assert json.loads(muslin(f"plan -f {files[name]} -o json").out)["hosts"] == ["hostendpoint/n1-eth0"]
        assert muslin(f"apply -f {files[name]}").code == 0
    for name in ("host", "policy", "other", "staged"):
        assert muslin(f"plan -f {files[name]}").code == 0, name
    assert muslin(f"plan --delete -f {files['policy']}").code == 2
