"""`muslin ipam` and the end of a pool, over states that the test itself put into a real datastore."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cli.ipam_read import Scene
from cli.ipam_show import tell_unread
from core.addr import Family
from core.errors import Invalid
from core.manifest import decode, encode
from core.names import Key
from core.resources import IPAMBlock, IPAMConfiguration, IPAMHandle, IPPool, Node, Resource, WorkloadEndpoint
from datastore.api import Delete, Entry, Listing, Operation, Put
from datastore.client import GrpcStore
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Exhausted, Owner, Request
from tests.datastore.ipam import ipam_audit_world as w

Muslin = Callable[[str], Any]
KINDS = frozenset({IPAMBlock.KIND, IPAMHandle.KIND, WorkloadEndpoint.KIND, Node.KIND})


async def _write(address: str, operations: list[Operation]) -> None:
    store = GrpcStore(address)
    try:
        await store.txn(operations)
    finally:
        await store.close()


def put(address: str, *resources: Resource) -> None:
    """Write objects as they are, past `apply`."""
    asyncio.run(_write(address, [Put(each.key, encode(each)) for each in resources]))


def read(address: str, key: Key) -> Any:
    """An object; None when there is none."""

    async def get() -> Any:
        store = GrpcStore(address)
        try:
            entry = await store.get(key)
        finally:
            await store.close()
        return entry and decode(entry.key, entry.value)

    return asyncio.run(get())


def free_everything(address: str) -> None:
    """Nothing is held any more, so that the next test's datastore can be emptied."""

    async def free() -> None:
        store = GrpcStore(address)
        try:
            listing = await store.list(KINDS)
            blocks: Any = [decode(e.key, e.value) for e in listing.entries if e.key.kind == IPAMBlock.KIND]
            emptied = [replace(each, spec=replace(each.spec, allocations={}, borrowers={})) for each in blocks]
            gone = [Delete(e.key) for e in listing.entries if e.key.kind != IPAMBlock.KIND]
            if emptied or gone:
                await store.txn([*gone, *(Put(each.key, encode(each)) for each in emptied)])
        finally:
            await store.close()

    asyncio.run(free())


@pytest.fixture
def cluster(muslin: Muslin, datastore: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Muslin]:
    """`muslin`, in the sound state of the audits' tests."""
    monkeypatch.setattr("cli.ipam_check.SECOND_LOOK_S", 0.0)
    put(datastore, *w.sound().values())
    yield muslin
    free_everything(datastore)


@pytest.fixture
def bare(muslin: Muslin, datastore: str) -> Iterator[Muslin]:
    """`muslin`, in a cluster without anything."""
    yield muslin
    free_everything(datastore)


def rows(text: str) -> list[list[str]]:
    """The cells of a table, split at two blanks or more."""
    return [[cell for cell in line.split("  ") if cell] for line in text.splitlines()]


def stripped(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row] for row in rows(text)]


def test_show_says_how_full_pools_and_blocks_are(cluster: Muslin, datastore: str) -> None:
    put(datastore, w.reservation("10.244.0.0/31", "10.244.0.0/30", "10.244.255.255", "192.168.0.0/16"))
    said = cluster("ipam show --show-blocks")
    assert said.code == 0
    assert stripped(said.out) == [
        ["GROUPING", "CIDR", "IPS TOTAL", "IN USE", "RESERVED", "FREE", "NAME"],
        ["IP Pool", "10.244.0.0/16", "65536", "3 (0%)", "2 (0%)", "65531 (99%)", "pods"],
        ["Block", "10.244.0.0/26", "64", "3 (4%)", "1 (1%)", "60 (93%)", "a"],
        ["Block", "10.244.0.64/26", "64", "0 (0%)", "0 (0%)", "64 (100%)", "b"],
        ["IP Pool", "fd00:10::/64", "1.845e+19", "1 (0%)", "0 (0%)", "1.845e+19 (99%)", "six"],
        ["Block", "fd00:10::/122", "64", "1 (1%)", "0 (0%)", "63 (98%)", "a"],
    ]
    document = json.loads(cluster("ipam show -o json").out)
    assert document["pools"][0] == {
        "name": "pods",
        "terminating": False,
        "cidr": "10.244.0.0/16",
        "total": 65536,
        "inUse": 3,
        "reserved": 2,
        "free": 65531,
    }
    assert set(document) == {"pools"}


def test_show_says_what_is_borrowed_and_how_addresses_are_given(cluster: Muslin) -> None:
    assert stripped(cluster("ipam show --borrowed").out) == [
        ["IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"],
        ["10.244.0.3", "b", "10.244.0.0/26", "a", "pod", "shop/pod-c3"],
    ]
    assert stripped(cluster("ipam show --show-configuration").out) == [
        ["PROPERTY", "VALUE"],
        ["StrictAffinity", "false"],
        ["AutoAllocateBlocks", "true"],
        ["MaxBlocksPerHost", "20"],
        ["IPCooldownSeconds", "0"],
        ["KubeVirtVMAddressPersistence", "Enabled"],
    ]


def test_show_of_one_address(cluster: Muslin, datastore: str) -> None:
    said = dict(stripped(cluster("ipam show --ip=10.244.0.3").out)[1:])
    assert said == {
        "ADDRESS": "10.244.0.3",
        "STATE": "in use",
        "HANDLE": "k8s.c3",
        "NODE": "b",
        "POD": "shop/pod-c3",
        "CONTAINER": "c3",
        "SINCE": w.LONG_AGO,
        "USED BY": "WorkloadEndpoint shop/b-k8s-pod--c3-eth0",
        "POOL": "pods (10.244.0.0/16)",
        "BLOCK": "10.244.0.0/26",
        "AFFINITY": "host:a",
        "CLAIM": "a confirmed",
        "BORROWED": "yes",
    }
    assert dict(stripped(cluster("ipam show --ip 10.244.0.70").out))["STATE"] == f"free since {w.LONG_AGO}"
    put(datastore, w.reservation("10.244.0.9"))
    states = {ip: dict(stripped(cluster(f"ipam show --ip {ip}").out))["STATE"] for ip in ("10.244.0.9", "10.99.0.1")}
    assert states == {"10.244.0.9": "reserved", "10.99.0.1": "in no IPPool"}
    wrong = cluster("ipam show --ip 10.244.0.300")
    assert (wrong.code, wrong.err) == (1, "10.244.0.300: '10.244.0.300' is not an IP address\n")
    assert cluster("ipam show --ip 10.244.0.9 --blocks").code == 1


def test_an_address_that_rests_says_until_when(cluster: Muslin, datastore: str) -> None:
    put(datastore, w.block(w.B, "b", freed={"10.244.0.70": "2999-01-01T00:00:00Z"}))
    assert cluster("ipam configure --ip-cooldown-seconds 60").code == 0
    said = dict(stripped(cluster("ipam show --ip 10.244.0.70").out))
    assert said["STATE"] == "resting until 2999-01-01T00:01:00+00:00"


def test_check_of_a_sound_state(cluster: Muslin) -> None:
    said = cluster("ipam check")
    assert (said.code, said.err) == (0, "nothing is wrong\n")
    lines = said.out.splitlines()
    assert lines[0].startswith("addresses: 4, handles: 3, blocks: 3, pools: 2, revision: ")
    assert stripped("\n".join(lines[2:])) == [
        ["NODE", "ADDRESSES"],
        ["a", "3"],
        ["b", "1"],
        ["(median of 2)", "2"],
    ]
    every = cluster("ipam check --show-all-ips").out
    assert ["10.244.0.3", "yes", "b", "10.244.0.0/26", "k8s.c3"] in stripped(every)
    document = json.loads(cluster("ipam check -o json").out)
    assert (document["clean"], document["findings"], document["leaks"]) == (True, [], [])


def test_check_finds_and_fix_mends_what_is_certain(cluster: Muslin, datastore: str) -> None:
    put(datastore, w.claim("a", "10.244.1.0/26"), w.endpoint("pod-x", "a", "cx", "10.244.0.9"))
    said = cluster("ipam check")
    assert said.code == 1
    assert said.err == "2 found; `muslin ipam check --fix` mends 1 of them\n"
    table = stripped(said.out.split("\n\n")[1])
    assert [row[:2] for row in table[1:]] == [
        ["used-not-allocated", "10.244.0.9"],
        ["affinity-without-block", "BlockAffinity a-10-244-1-0-26"],
    ]
    assert table[2][-1] == "--fix: the claim is removed"
    fixed = cluster("ipam check --fix")
    assert (fixed.code, fixed.err) == (1, "1 mended, 1 left\n")
    assert read(datastore, w.claim("a", "10.244.1.0/26").key) is None
    assert cluster("delete wep a-k8s-pod--x-eth0 -n shop").code == 0
    put(datastore, w.claim("a", "10.244.1.0/26"))
    document = json.loads(cluster("ipam check --fix -o json").out)
    assert document["clean"]
    assert document["mended"]["done"] == [
        {"fault": "affinity-without-block", "what": "BlockAffinity a-10-244-1-0-26", "who": "a"}
    ]


def test_check_shows_the_first_of_many(cluster: Muslin, datastore: str) -> None:
    put(datastore, *(w.claim("a", f"10.244.{number}.0/26") for number in range(1, 24)))
    shown = stripped(cluster("ipam check").out.split("\n\n")[1])
    assert len(shown) == 1 + 20 + 1
    assert shown[-1][1:] == ["3 more", "--show-problem-ips shows all"]
    assert len(stripped(cluster("ipam check --show-problem-ips").out.split("\n\n")[1])) == 1 + 23


def leak(datastore: str, address: str = "10.244.0.66", container: str = "c9") -> None:
    """An address of node b's block that nobody uses."""
    text = f"k8s.{container}"
    put(datastore, w.block(w.B, "b", {address: text}), w.handle(text, "b", {address: w.B}))


def test_release_of_an_address_leaves_a_record(cluster: Muslin, datastore: str) -> None:
    leak(datastore)
    assert cluster("ipam check").code == 1
    said = cluster("ipam release --ip=10.244.0.66")
    assert (said.code, said.out) == (0, "10.244.0.66 released from k8s.c9\n")
    assert read(datastore, Key(IPAMHandle.KIND, "", "k8s.c9")) is None
    assert cluster("ipam check").code == 0
    again = cluster("ipam release --ip 10.244.0.66")
    assert (again.code, again.out) == (0, "10.244.0.66 is free already\n")
    (past,) = json.loads(cluster("ipam history 10.244.0.66 -o json").out)["holders"]
    assert (past["handleID"], past["pod"], past["since"], past["why"]) == (
        "k8s.c9",
        "pod-c9",
        w.LONG_AGO,
        "ipam release",
    )
    table = stripped(cluster("ipam history 10.244.0.66").out)
    assert table[0] == ["SINCE", "UNTIL", "NODE", "POD", "CONTAINER", "HANDLE", "WHY"]
    assert table[1][2:] == ["b", "shop/pod-c9", "c9", "k8s.c9", "ipam release"]
    assert "ipam release" in cluster("ipam show --ip 10.244.0.66").out


def test_history_begins_with_who_holds_it_now(cluster: Muslin) -> None:
    table = stripped(cluster("ipam history 10.244.0.2").out)
    assert table[1] == [w.LONG_AGO, "now", "a", "shop/pod-c2", "c2", "k8s.c2"]
    nobody = cluster("ipam history 10.244.0.99")
    assert (nobody.code, nobody.out) == (0, "")
    assert nobody.err == "nobody holds 10.244.0.99, and no record says that anybody did\n"


def test_what_is_used_is_released_by_force_only(cluster: Muslin, datastore: str) -> None:
    for address, user in (("10.244.0.2", "WorkloadEndpoint shop/a-k8s-pod--c2-eth0"), ("10.244.0.1", "Node a")):
        said = cluster(f"ipam release --ip {address}")
        assert (said.code, said.out) == (1, "")
        assert said.err.startswith(f"{address} stays: {user} uses it; remove that first.")
    assert cluster("ipam release --ip 10.244.0.2 --force").code == 0
    kept = read(datastore, Key(IPAMHandle.KIND, "", "k8s.c2"))
    assert set(kept.spec.addresses) == {"fd00:10::2"}


def test_release_from_a_report(cluster: Muslin, datastore: str, tmp_path: Path) -> None:
    leak(datastore)
    report = tmp_path / "report.json"
    assert cluster(f"ipam check -o {report}").code == 1
    said = cluster(f"ipam release --from-report {report}")
    assert (said.code, said.out) == (0, "10.244.0.66 released from k8s.c9\n")
    assert cluster(f"ipam release --from-report {report}").out == "10.244.0.66 is free already\n"


def test_a_report_holds_only_for_what_it_saw(cluster: Muslin, datastore: str, tmp_path: Path) -> None:
    leak(datastore)
    report = tmp_path / "report.json"
    assert cluster(f"ipam check --output-file {report}").code == 1
    put(datastore, w.handle("k8s.c9", "b", {"10.244.0.66": w.B}))
    said = cluster(f"ipam release --from-report {report}")
    assert (said.code, said.out) == (1, "")
    assert said.err == "10.244.0.66 stays: it has been given anew since the report was made\n"
    given = json.loads(report.read_text())
    given["leaks"][0]["poolUid"] = "another"
    report.write_text(json.dumps(given))
    other = cluster(f"ipam release --from-report {report}")
    assert (other.code, "another cluster" in other.err) == (1, True)
    report.write_text("[]")
    assert "is no report of `muslin ipam check -o FILE`" in cluster(f"ipam release --from-report {report}").err
    assert "cannot be read" in cluster(f"ipam release --from-report {tmp_path}/none").err
    assert cluster("ipam release").code == cluster(f"ipam release --ip 10.244.0.66 --from-report {report}").code == 1


def test_split_replaces_a_pool_in_one_revision(cluster: Muslin, datastore: str) -> None:
    before = json.loads(cluster("ipam check -o json").out)["revision"]
    said = cluster("ipam split 2 --name=pods")
    assert said.code == 0
    assert said.out.splitlines() == [
        "ippool/pods deleted (10.244.0.0/16)",
        "ippool/split-pods-0 created (10.244.0.0/17)",
        "ippool/split-pods-1 created (10.244.128.0/17)",
    ]
    after = json.loads(cluster("ipam check -o json").out)
    assert (after["clean"], after["revision"]) == (True, before + 1)
    document = json.loads(cluster("ipam split 2 --cidr 10.244.128.0/17 -o json").out)
    assert document["created"][0] == {"name": "split-split-pods-1-0", "cidr": "10.244.128.0/18"}
    assert cluster("ipam split 2 --name none").err == "there is no IPPool none; `muslin get ippools` lists them\n"
    assert "say a power of two" in cluster("ipam split 3 --name six").err
    assert "and not both" in cluster("ipam split 2").err


def test_configure_changes_what_is_named(cluster: Muslin, datastore: str) -> None:
    said = cluster("ipam configure --strictaffinity=true --max-blocks-per-host 4")
    assert said.code == 0
    assert stripped(said.out)[1:4] == [
        ["StrictAffinity", "true"],
        ["AutoAllocateBlocks", "true"],
        ["MaxBlocksPerHost", "4"],
    ]
    assert said.err == "one address is borrowed and stays so until the pod goes: muslin ipam show --borrowed\n"
    assert cluster("ipam configure --ip-cooldown-seconds 30").code == 0
    spec = read(datastore, Key(IPAMConfiguration.KIND, "", "default")).spec
    assert (spec.strict_affinity, spec.max_blocks_per_host, spec.ip_cooldown_seconds) == (True, 4, 30)
    loose = cluster("ipam configure --strictaffinity false")
    assert (loose.code, "--max-blocks-per-host: needs --strictaffinity true" in loose.err) == (1, True)
    assert "is not within 0 to 1200" in cluster("ipam configure --ip-cooldown-seconds 1201").err
    assert cluster("ipam configure --strictaffinity false --max-blocks-per-host 0").code == 0
    assert "say what to change" in cluster("ipam configure").err


def test_a_pool_in_use_ends_with_its_last_address(cluster: Muslin, datastore: str, tmp_path: Path) -> None:
    manifest = cluster("get ippool pods -o yaml").out
    (tmp_path / "pool.yaml").write_text(
        "\n".join(line for line in manifest.splitlines() if "resourceVersion" not in line)
    )
    said = cluster("delete ippool pods")
    assert (said.code, said.out.splitlines()[0]) == (0, "ippool/pods terminating")
    assert said.err == (
        "ippool/pods gives no address any more, and goes with its last: 3 of its addresses are in use"
        " (10.244.0.1 by ipip-tunnel-addr-a)\n"
    )
    pool = read(datastore, Key(IPPool.KIND, "", "pods"))
    assert pool.terminating
    assert pool.metadata.finalizers == [IPPool.FINALIZER]
    assert "Terminating" in cluster("get ippools").out
    assert "pods (Terminating)" in cluster("ipam show").out
    again = cluster(f"apply -f {tmp_path}/pool.yaml")
    assert again.code == 1
    assert "it is being deleted since" in again.err
    assert "that cannot be taken back" in again.err
    with pytest.raises(Invalid, match="3 of its addresses are in use"):
        asyncio.run(_write(datastore, [Delete(pool.key)]))
    assert cluster("delete ippool pods").out.splitlines()[0] == "ippool/pods terminating", "as often as one likes"
    assert read(datastore, pool.key) == pool
    free_everything(datastore)
    gone = cluster("delete ippool pods")
    assert gone.out.splitlines()[:-1] == [
        "ippool/pods deleted",
        "ipamblock/10-244-0-0-26 deleted",
        "ipamblock/10-244-0-64-26 deleted",
        "blockaffinity/a-10-244-0-0-26 deleted",
        "blockaffinity/b-10-244-0-64-26 deleted",
    ]
    assert read(datastore, pool.key) is None
    assert cluster("get blocks -o name").out == "ipamblock/fd00-10---122\n"


def test_nothing_is_given_from_a_pool_that_ends_and_what_it_gave_stays(bare: Muslin, datastore: str) -> None:
    """The ledger that nodes use, another process's `delete`, and the end."""
    put(datastore, w.pool(), w.node("a"))

    async def used(handle: str, *, release: bool = False) -> str:
        store = GrpcStore(datastore)
        try:
            ledger = Ledger(store)
            if release:
                return ",".join(map(str, (await ledger.release(handle, "DEL")).addresses))
            grant, _ = await ledger.assign(Request(handle=handle, owner=Owner(node="a"), families=(Family.V4,)))
            return ",".join(map(str, grant.addresses))
        finally:
            await store.close()

    first = asyncio.run(used("k8s.c1"))
    assert bare("delete ippool pods").out.splitlines()[0] == "ippool/pods terminating"
    assert asyncio.run(used("k8s.c1")) == first
    with pytest.raises(Exhausted, match="pods is being deleted"):
        asyncio.run(used("k8s.c2"))
    assert asyncio.run(used("k8s.c1", release=True)) == first
    assert bare("delete ippool pods").out.splitlines()[0] == "ippool/pods deleted"
    assert bare("get blocks -o name").out == bare("get handles -o name").out == ""


def test_an_empty_pool_goes_at_once_with_what_is_left_of_it(muslin: Muslin, datastore: str) -> None:
    put(datastore, w.pool(), w.node("a"), w.block(w.A, "a"), w.claim("a", w.A))
    said = muslin("delete ippool pods -o json")
    document = json.loads(said.out)
    assert {each["outcome"] for each in document["objects"]} == {"deleted"}
    assert sorted(each["kind"] for each in document["objects"]) == ["BlockAffinity", "IPAMBlock", "IPPool"]
    assert muslin("get blocks -o name").out == muslin("get affinities -o name").out == ""


def test_a_pool_of_many_blocks_waits_for_its_nodes(muslin: Muslin, datastore: str) -> None:
    cidrs = [f"10.244.{number // 4}.{number % 4 * 64}/26" for number in range(120)]
    put(datastore, w.pool(), w.node("a"), *(w.block(cidr, "a") for cidr in cidrs))
    said = muslin("delete ippool pods")
    assert said.out.splitlines()[0] == "ippool/pods terminating"
    assert said.err == (
        "ippool/pods gives no address any more, and goes later: its nodes give back their 120 blocks and claims first\n"
    )


def test_every_new_kind_is_shown(cluster: Muslin, datastore: str) -> None:
    put(datastore, w.reservation("10.244.0.9", "10.244.1.0/24"))
    cluster("ipam configure --strictaffinity true")
    assert stripped(cluster("get affinities").out)[1] == ["a-10-244-0-0-26", "a", "10.244.0.0/26", "confirmed"]
    assert stripped(cluster("get handles").out)[2] == [
        "k8s.c2",
        "a",
        "shop/pod-c2",
        "10.244.0.2,fd00:10::2",
        w.LONG_AGO,
    ]
    assert stripped(cluster("get reservations").out)[1] == ["kept", "10.244.0.9,10.244.1.0/24"]
    assert stripped(cluster("get ipamconfig").out)[1][:5] == ["default", "yes", "yes", "20", "0s"]


def test_show_says_what_it_could_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    broken = w.block(w.A, "a"), w.pool("six", "fd00:10::/64"), w.reservation("10.0.0.0/8"), w.handle("k8s.c3", "b", {})
    entries = [Entry(each.key, encode(each), 1) for each in w.changed(gone=broken).values()]
    tell_unread(Scene.of(Listing(1, (*entries, *(Entry(each.key, b"{", 1) for each in broken)))))
    assert capsys.readouterr().err.splitlines() == [
        f"{kind} cannot be read, and is not counted; `muslin ipam check` says why"
        for kind in ("IPAMBlock 10-244-0-0-26", "IPPool six", "IPReservation kept")
    ]


def test_check_takes_no_other_commands_format_for_a_file(bare: Muslin, tmp_path: Path) -> None:
    said = bare("ipam check -o yaml")
    assert (said.code, said.out) == (1, "")
    assert "--output: 'yaml' is not one of text, json; for a report in a file of that name, give ./yaml" in said.err
    assert not Path("yaml").exists()
