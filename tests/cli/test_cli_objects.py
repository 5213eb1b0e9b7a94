"""Objects through the command line, against a real datastore process."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.names import Key
from core.resources import IPPool
from datastore.api import Operation, Put, Store, Unchanged
from datastore.client import GrpcStore
from datastore.serve import serve

POOL = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "IPPool",
    "metadata": {"name": "pods"},
    "spec": {"cidr": "10.244.0.0/16", "natOutgoing": True},
}
SHOP = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"team": "shop"}}}
CALICO = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "NetworkPolicy",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {"order": 10, "selector": "app == 'web'", "ingress": [{"action": "Deny"}], "types": ["Ingress"]},
}
KUBERNETES = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "web", "namespace": "shop"},
    "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four good manifests in three files."""
    write(tmp_path / "1-pool.yaml", POOL)
    write(tmp_path / "2-shop.yml", SHOP, KUBERNETES)
    (tmp_path / "3-policy.json").write_text(json.dumps(CALICO))
    (tmp_path / "notes.txt").write_text("not a manifest")
    return tmp_path


def write(path: Path, *objects: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump_all(objects))
    return path


def changed(manifest: dict[str, Any], **spec: object) -> dict[str, Any]:
    return {**manifest, "spec": {**manifest["spec"], **spec}}


Muslin = Callable[[str], Any]


def test_a_folder_is_one_transaction_and_what_is_there_is_not_written_again(muslin: Muslin, folder: Path) -> None:
    said = muslin(f"apply -f {folder} -o json")
    assert said.code == 0, said.err
    first = json.loads(said.out)
    assert [(each["kind"], each["name"], each["outcome"]) for each in first["objects"]] == [
        ("IPPool", "pods", "created"),
        ("Namespace", "shop", "created"),
        ("NetworkPolicy", "web", "created"),
        ("NetworkPolicy", "web", "created"),
    ]
    stored = json.loads(muslin("get pools -o json").out)["items"] + json.loads(muslin("get ns -o json").out)["items"]
    assert {each["metadata"]["resourceVersion"] for each in stored} == {str(first["revision"])}

    write(folder / "1-pool.yaml", changed(POOL, ipipMode="Always"))
    said = muslin(f"apply -f {folder}")
    assert said.out.splitlines() == [
        "ippool/pods configured",
        "namespace/shop unchanged",
        "netpol/shop/web unchanged",
        "networkpolicy/shop/web unchanged",
        f"revision {first['revision'] + 1}",
    ]
    after = json.loads(muslin("get pool pods -o json").out)["metadata"]
    before = stored[0]["metadata"]
    assert (after["uid"], after["creationTimestamp"]) == (before["uid"], before["creationTimestamp"])
    assert len(after["uid"]) == 36
    assert after["creationTimestamp"].endswith("Z")


def test_one_wrong_manifest_stops_all_and_every_fault_is_named(muslin: Muslin, folder: Path) -> None:
    write(folder / "4-typo.yaml", changed(POOL, cidr="10.96.0.0/16", natOutgoin=True) | {"metadata": {"name": "b"}})
    write(folder / "5-kind.yaml", {**POOL, "kind": "IPPoool"})
    write(folder / "6-selector.yaml", changed(CALICO, selector="app ==") | {"metadata": {"name": "c"}})
    said = muslin(f"apply -f {folder}")
    assert (said.code, said.out) == (1, "")
    lines = said.err.splitlines()
    assert len(lines) == 3, said.err
    assert "4-typo.yaml" in lines[0]
    assert "IPPool/b" in lines[0]
    assert "spec" in lines[0]
    assert "'natOutgoin'" in lines[0]
    assert "'natOutgoing'" in lines[0]
    assert "5-kind.yaml" in lines[1]
    assert "IPPool" in lines[1].replace("IPPoool", "")
    assert "6-selector.yaml" in lines[2]
    assert "spec.selector" in lines[2]
    assert json.loads(muslin("get pools -o json").out)["items"] == []
    assert json.loads(muslin("get ns -o json").out)["items"] == []


def test_an_overlap_with_what_is_there_is_refused_whole(muslin: Muslin, folder: Path) -> None:
    assert muslin(f"apply -f {folder}").code == 0
    more = {**changed(POOL, cidr="10.244.128.0/17"), "metadata": {"name": "overlapping"}}
    said = muslin(f"apply -f {write(folder / 'more.yaml', {**SHOP, 'metadata': {'name': 'office'}}, more)}")
    assert said.code == 1
    assert "overlapping" in said.err
    assert "pods" in said.err
    assert muslin("get ns -o name").out.split() == ["namespace/shop"]
    assert said.err.startswith(f"{folder}/more.yaml[1] line "), said.err


def test_what_is_refused_for_an_object_names_its_file(muslin: Muslin, folder: Path, tmp_path: Path) -> None:
    two = write(tmp_path / "two.yaml", POOL, {**changed(POOL, cidr="10.244.64.0/18"), "metadata": {"name": "half"}})
    said = muslin(f"apply -f {two}")
    assert said.code == 1
    assert re.fullmatch(rf"{two}\[[01]\] line \d+: IPPool/\w+: spec\.cidr: .* overlaps .*\n", said.err), said.err
    assert muslin(f"apply -f {folder / '1-pool.yaml'}").code == 0
    said = muslin(f"create -f {folder / '2-shop.yml'} -f {folder / '1-pool.yaml'}")
    assert said.err == f"{folder}/1-pool.yaml line 1: IPPool pods: exists already; use apply or replace to change it\n"


def test_what_get_prints_apply_takes_back(muslin: Muslin, folder: Path) -> None:
    muslin(f"apply -f {folder}")
    for kind in ("pools", "ns", "np -A", "netpol -n shop", "np/shop/web"):
        (folder / "back.yaml").write_text(muslin(f"get {kind} -o yaml").out)
        said = muslin(f"apply -f {folder / 'back.yaml'}")
        assert said.code == 0, said.err
        assert [line.split()[-1] for line in said.out.splitlines()[:-1]] == ["unchanged"]


def test_a_stale_resource_version_is_a_conflict(muslin: Muslin, folder: Path) -> None:
    muslin(f"apply -f {folder}")
    edited = yaml.safe_load(muslin("get pool pods -o yaml").out)
    assert muslin(f"apply -f {write(folder / '1-pool.yaml', changed(POOL, ipipMode='Always'))}").code == 0
    edited["spec"]["natOutgoing"] = False
    said = muslin(f"apply -f {write(folder / 'edited.yaml', edited)}")
    assert said.code == 1
    assert said.err.startswith(f"{folder}/edited.yaml line 1: IPPool pods: expected revision"), said.err
    assert json.loads(muslin("get pool pods -o json").out)["spec"]["natOutgoing"] is True
    del edited["metadata"]["resourceVersion"]
    assert muslin(f"replace -f {write(folder / 'edited.yaml', edited)}").code == 0


def test_two_kinds_are_named_networkpolicy(muslin: Muslin, folder: Path) -> None:
    muslin(f"apply -f {folder}")
    for name in ("np", "networkpolicy", "NetworkPolicies", "networkpolicies.projectcalico.org"):
        assert muslin(f"get {name} -n shop -o name").out == "networkpolicy/shop/web\n"
    for name in ("netpol", "networkpolicies.networking.k8s.io"):
        assert muslin(f"get {name} -n shop -o name").out == "netpol/shop/web\n"
    assert muslin("delete netpol/shop/web").code == 0
    assert muslin("get np web -n shop -o name").out == "networkpolicy/shop/web\n"


def test_tables_show_what_matters(muslin: Muslin, folder: Path) -> None:
    muslin(f"apply -f {folder}")
    head, row = muslin("get pools").out.splitlines()
    assert head.split() == ["NAME", "CIDR", "ENCAPSULATION", "NAT", "STATE", "AGE"]
    assert row.split()[:4] == ["pods", "10.244.0.0/16", "Never", "yes"]
    assert "BLOCK" in muslin("get pools -o wide").out
    head, row = muslin("get np -A").out.splitlines()
    assert row.split()[:5] == ["shop", "web", "default", "10", "app"]
    assert muslin("get np").out == ""


def test_delete_is_all_or_nothing(muslin: Muslin, folder: Path) -> None:
    muslin(f"apply -f {folder}")
    muslin("delete ns shop")
    said = muslin(f"delete -f {folder}")
    assert said.code == 1
    assert said.err == f"{folder}/2-shop.yml[0] line 1: Namespace shop: there is none\n"
    assert muslin("get pools -o name").out == "ippool/pods\n"
    said = muslin(f"delete -f {folder} --ignore-not-found")
    assert said.code == 0
    assert muslin("get pools -o name").out == ""


REFUSALS = {
    "get ippol": "ippol: there is no kind of that name; did you mean ippool?",
    "get pool nope": "IPPool nope: there is none",
    "get np/web": "NetworkPolicy default/web: there is none",
    "get np/shop/web -n office": "np/shop/web: two namespaces are given: shop and office",
    "get pool/a/b": "pool/a/b: an object of this kind is written KIND/NAME",
    "get pool -n shop": "IPPool: objects of this kind have no namespace; leave -n away",
    "get np -A -n shop": "--all-namespaces goes with neither a name nor a namespace",
    "apply -f /nowhere.yaml": "/nowhere.yaml: no such file or folder",
    "replace -f POOL": "POOL line 1: IPPool pods: does not exist; use apply or create",
    "create -f POOL -f POOL": "POOL line 1: IPPool pods: is given more than once",
    "apply -f EMPTY": "no manifest in EMPTY",
    "apply -f POOL -f EMPTY": "no manifest in EMPTY",
    "delete -f EMPTY": "no manifest in EMPTY",
    "apply -f -": "no manifest in stdin",  # where tests run it brings nothing
    "apply -f /dev/stdin": "no manifest in /dev/stdin",
    "apply -f /dev/null": "/dev/null: is neither a file nor a pipe",
    "delete pool": "IPPool: the name of the object to delete is missing",
    "delete": "name one object (KIND NAME) or give manifests (-f), and not both",
    "node release nobody": "there is no node nobody; `muslin get nodes` lists them",
}


def test_refusals_are_one_sentence(muslin: Muslin, tmp_path: Path) -> None:
    pool = write(tmp_path / "pool.yaml", POOL)
    empty = tmp_path / "empty.yaml"
    empty.write_text("null\n---\n# nothing\n")

    def named(text: str) -> str:
        return text.replace("POOL", str(pool)).replace("EMPTY", str(empty))

    for words, sentence in REFUSALS.items():
        said = muslin(named(words))
        assert (said.code, said.out, said.err) == (1, "", named(sentence) + "\n"), words
    assert muslin("get pools").out == ""


def test_no_datastore_is_one_sentence(muslin: Muslin, tmp_path: Path) -> None:
    said = muslin(f"get pools --datastore unix:{tmp_path}/nobody.sock")
    assert said.code == 1
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert f"{tmp_path}/nobody.sock" in said.err
    assert "muslin datastore" in said.err


async def admit_anything(_store: Store, _operations: Sequence[Operation]) -> Sequence[Unchanged]:
    """What a server of another version may have let in."""
    return ()


async def test_an_object_that_cannot_be_read_is_named_and_can_be_written_over(muslin: Muslin, tmp_path: Path) -> None:
    address, ready = f"unix:{tmp_path}/s", asyncio.Event()
    server = asyncio.create_task(
        serve(f"sqlite:{tmp_path}/db", [address], admit=admit_anything, on_ready=lambda _: ready.set())
    )
    async with asyncio.timeout(30):
        await ready.wait()
        store = GrpcStore(address)
        await store.txn([Put(Key(IPPool.KIND, "", "pods"), b'{"metadata": {"name": "pods"}, "spec": {"cidr": 7}}')])
        await store.close()
        pool = write(tmp_path / "pool.yaml", POOL)

        async def run(words: str) -> Any:
            return await asyncio.to_thread(muslin, f"{words} --datastore {address}")

        said = await run("get pools")
        assert (said.code, said.out) == (0, "")
        assert "IPPool/pods: spec.cidr" in said.err
        assert (await run("get pool pods")).code == 1
        assert (await run(f"create -f {pool}")).code == 1
        assert (await run(f"apply -f {pool}")).out.splitlines()[0] == "ippool/pods configured"
        assert (await run("get pool pods -o name")).out == "ippool/pods\n"
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server


NODE = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "Node",
    "metadata": {"name": "node1"},
    "spec": {"bgp": {"ipv4Address": "10.1.0.5/24", "ipv4IPIPTunnelAddr": "10.244.0.1"}},
}


def test_apply_keeps_what_agents_wrote(muslin: Muslin, tmp_path: Path) -> None:
    assert muslin(f"apply -f {write(tmp_path / 'node.yaml', NODE)}").code == 0
    assert muslin("node release node1").code == 0
    plain = {
        **NODE,
        "metadata": {"name": "node1", "labels": {"rack": "a"}},
        "spec": {"bgp": {"ipv4Address": "10.1.0.6/24"}},
    }
    assert muslin(f"apply -f {write(tmp_path / 'node.yaml', plain)}").code == 0
    found = json.loads(muslin("get node node1 -o json").out)
    assert found["spec"]["bgp"] == {"ipv4Address": "10.1.0.6/24", "ipv4IPIPTunnelAddr": "10.244.0.1"}
    assert list(found["metadata"]["annotations"]) == ["muslin.io/release-breaker"]
    assert found["metadata"]["labels"] == {"rack": "a"}
