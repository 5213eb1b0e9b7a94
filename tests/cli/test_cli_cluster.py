"""status, rollout and explain, over reports and policies that the test itself put into a real datastore."""

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from cli.explain import snapshot_of
from cli.watching import FOLLOWED
from core import clock, manifest
from core.names import Key
from core.resources import FelixStatus, HostEndpoint, Metadata, Node, R, Resource, SpeakerStatus, WorkloadEndpoint
from core.resources.status import EndpointState, FelixState, SessionState, SpeakerState
from core.snapshot import Snapshot
from datastore.api import Put
from datastore.client import GrpcStore
from felix.kinds import KINDS
from policy.compile import compile as compile_policy

Muslin = Callable[[str], Any]


def nodes(*names: str) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "projectcalico.org/v3",
            "kind": "Node",
            "metadata": {"name": name},
            "spec": {"bgp": {"ipv4Address": f"10.1.0.{number}/24"}},
        }
        for number, name in enumerate(names, 1)
    ]


def felix(node: str, programmed: int, **fields: Any) -> FelixStatus:
    fields = {"reported": clock.now(), **fields}
    state = FelixState(programmed=programmed, ready=True, since="2026-01-01T00:00:00Z", routes=9, **fields)
    return FelixStatus(metadata=Metadata(name=node), status=state)


def speaker(node: str, *sessions: SessionState, **fields: Any) -> SpeakerStatus:
    fields = {"reported": clock.now(), **fields}
    state = SpeakerState(
        ready=True, since="2026-01-01T00:00:00Z", as_number=65101, sessions=list(sessions), routes_in=3, **fields
    )
    return SpeakerStatus(metadata=Metadata(name=node), status=state)


def session(state: str = "Established", reason: str = "") -> SessionState:
    return SessionState(
        peer="10.1.0.254", name="tor1", as_number=65001, state=state, received=4, advertised=1, reason=reason
    )


def report(address: str, *resources: Resource) -> int:
    """Write reports as agents do; the revision."""

    async def write() -> int:
        store = GrpcStore(address)
        try:
            return await store.txn([Put(each.key, manifest.encode(each)) for each in resources])
        finally:
            await store.close()

    return asyncio.run(write())


def apply(muslin: Muslin, tmp_path: Path, *objects: dict[str, Any]) -> int:
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(objects))
    said = muslin(f"apply -f {tmp_path}/objects.yaml -o json")
    assert said.code == 0, said.err
    return int(json.loads(said.out)["revision"])


def test_status_of_a_cluster_where_all_is_right(muslin: Muslin, datastore: str, tmp_path: Path) -> None:
    revision = apply(muslin, tmp_path, *nodes("node1", "node2"))
    up = {"shop/web": EndpointState(state="up"), "shop/db": EndpointState(state="pending")}
    felixes = [felix(name, revision, endpoints=up) for name in ("node1", "node2")]
    report(
        datastore, *felixes, *(speaker(name, session(), routes_out=["10.244.0.0/26"]) for name in ("node1", "node2"))
    )
    said = muslin("status --check")
    assert said.code == 0, said.out
    lines = said.out.splitlines()
    assert lines[0].split() == ["NODE", "FELIX", "SINCE", "SEEN", "PROGRAMMED", "ENDPOINTS", "ROUTES"]
    assert lines[1].split()[:2] == ["node1", "ready"]
    assert lines[1].split()[4:] == [f"{revision}/{revision}", "1", "up,", "1", "pending", "9"]
    assert lines[4].split() == ["NODE", "BGP", "SINCE", "SEEN", "AS", "SESSIONS", "ROUTES", "IN", "ROUTES", "OUT"]
    assert lines[5].split()[:2] == ["node1", "ready"]
    assert lines[5].split()[4:] == ["65101", "1/1", "3", "1"]
    assert [line.split()[:5] for line in lines[-2:]] == [
        [name, "10.1.0.254", "tor1", "65001", "Established"] for name in ("node1", "node2")
    ]
    page = json.loads(muslin("status -o json").out)
    assert page["right"] is True
    assert page["revision"] == revision
    assert page["nodes"][0]["felix"]["endpoints"]["shop/web"] == {"state": "up"}
    assert page["nodes"][0]["felix"]["stale"] is False
    assert page["nodes"][0]["bgp"]["sessions"][0]["asNumber"] == 65001
    assert page["nodes"][0]["bgp"]["routesIn"] == 3


def test_status_says_what_is_not_right(muslin: Muslin, datastore: str, tmp_path: Path) -> None:
    revision = apply(muslin, tmp_path, *nodes("lagging", "new", "stale"))
    broken = {"shop/web": EndpointState(state="error", reason="10.244.0.9 is in no block of this node")}
    report(
        datastore,
        felix("lagging", revision - 1, endpoints=broken, problems=["IPPool pods: this kernel has no ipip"]),
        felix("stale", revision, stale=True),
        speaker("lagging", session("Down", "hold timer expired")),
        speaker("stale"),
    )
    said = muslin("status --check")
    assert said.code == 1
    assert muslin("status").code == 0
    wrong = {each["node"]: each["wrong"] for each in json.loads(muslin("status -o json").out)["nodes"]}
    assert wrong == {
        "lagging": [
            f"felix has programmed revision {revision - 1}, the datastore is at {revision}",
            "endpoint shop/web: 10.244.0.9 is in no block of this node",
            "felix: IPPool pods: this kernel has no ipip",
            "session with 10.1.0.254 (tor1) is Down: hold timer expired",
        ],
        "new": ["felix has never reported", "bgp has never reported"],
        "stale": ["felix cannot reach the datastore and works from its last snapshot"],
    }
    for sentence in (sentence for each in wrong.values() for sentence in each):
        assert sentence in said.out


def test_an_agent_that_says_nothing_any_more_is_silent(muslin: Muslin, datastore: str, tmp_path: Path) -> None:
    revision = apply(muslin, tmp_path, *nodes("dead", "live"))
    report(datastore, felix("dead", revision, reported="2026-01-01T00:00:00Z"))
    report(datastore, speaker("dead"), felix("live", revision), speaker("live"))
    said = muslin("status --check")
    assert said.code == 1
    assert said.out.splitlines()[1].split()[:2] == ["dead", "silent"]
    dead, live = json.loads(muslin("status -o json").out)["nodes"]
    assert dead["wrong"] == [each for each in dead["wrong"] if each.startswith("felix has been silent for ")] != []
    assert (dead["felix"]["silent"], dead["bgp"]["silent"], live["wrong"]) == (True, False, [])
    assert dead["felix"]["seenSecondsAgo"] > 60 > live["felix"]["seenSecondsAgo"]


def test_a_deletion_counts_as_the_newest_change_and_a_report_does_not(
    muslin: Muslin, datastore: str, tmp_path: Path
) -> None:
    revision = apply(muslin, tmp_path, *nodes("node1", "gone"))
    report(datastore, felix("node1", revision), speaker("node1"))
    assert json.loads(muslin("status -o json").out)["revision"] == revision
    deleted = json.loads(muslin("delete node gone -o json").out)["revision"]
    page = json.loads(muslin("status -o json").out)
    assert page["revision"] == deleted > revision
    assert page["right"] is False
    report(datastore, felix("node1", deleted))
    assert json.loads(muslin("status -o json").out)["right"] is True


def test_rollout_waits_for_the_last_node(muslin: Muslin, datastore: str, tmp_path: Path) -> None:
    revision = apply(muslin, tmp_path, *nodes("node1", "node2"))
    report(datastore, felix("node1", revision), felix("node2", revision - 1))
    late = muslin("rollout status --timeout 0.3")
    assert late.code == 1
    assert f"revision {revision} is not programmed on node2" in late.err
    writer = threading.Timer(0.5, report, (datastore, felix("node2", revision)))
    writer.start()
    done = muslin("rollout status --timeout 20")
    writer.join()
    assert (done.code, done.out) == (0, f"revision {revision} is programmed on 2 nodes\n")


def test_status_measures_felix_by_what_felix_follows() -> None:
    assert {cls.KIND for cls in KINDS} == FOLLOWED


class Watched(Snapshot):
    """Notes the classes that are asked of it."""

    asked: ClassVar[set[type[Resource]]] = set()

    def of(self, cls: type[R]) -> Mapping[Key, R]:
        self.asked.add(cls)
        return super().of(cls)


def test_felix_follows_all_that_policy_asks() -> None:
    (pod,) = manifest.load(yaml.safe_dump(endpoint("web", "10.244.0.1")), "web")
    compile_policy(Watched().apply(1, [(pod.key, pod)]), [pod.key])
    assert HostEndpoint in Watched.asked
    assert Watched.asked <= set(KINDS)


def test_explain_reads_what_felix_follows(datastore: str, muslin: Muslin, tmp_path: Path) -> None:
    revision = apply(muslin, tmp_path, *nodes("node1"), HOST, endpoint("web", "10.244.0.1"))
    report(datastore, felix("node1", revision))
    read = asyncio.run(snapshot_of(datastore))
    assert {kind for kind, table in read.tables.items() if table} == {
        HostEndpoint.KIND,
        Node.KIND,
        WorkloadEndpoint.KIND,
    }


def endpoint(pod: str, address: str) -> dict[str, Any]:
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "WorkloadEndpoint",
        "metadata": {
            "name": f"node1-k8s-{pod}-eth0",
            "namespace": "shop",
            "labels": {"app": pod, "projectcalico.org/orchestrator": "k8s", "projectcalico.org/namespace": "shop"},
        },
        "spec": {
            "orchestrator": "k8s",
            "node": "node1",
            "pod": pod,
            "endpoint": "eth0",
            "ipNetworks": [f"{address}/32"],
            "profiles": ["kns.shop"],
            "interfaceName": f"mus{pod}",
        },
    }


HOST = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "HostEndpoint",
    "metadata": {"name": "node1-eth0"},
    "spec": {"node": "node1", "interfaceName": "eth0", "expectedIPs": ["192.0.2.7"]},
}

DENY = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "NetworkPolicy",
    "metadata": {"name": "db-for-api-only", "namespace": "shop"},
    "spec": {
        "selector": "app == 'db'",
        "types": ["Ingress"],
        "ingress": [
            {"action": "Deny", "protocol": "TCP", "source": {"selector": "app == 'web'"}},
            {"action": "Allow"},
        ],
    },
}


@pytest.fixture
def shop(muslin: Muslin, tmp_path: Path) -> None:
    """Two pods, and a policy that keeps one from the other's TCP."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    apply(muslin, tmp_path, namespace, endpoint("web", "10.244.0.1"), endpoint("db", "10.244.0.2"), DENY)


@pytest.mark.usefixtures("shop")
def test_explain_names_the_policy_and_the_rule(muslin: Muslin) -> None:
    said = muslin("explain --from shop/web --to shop/db --tcp 5432")
    assert said.code == 0, said.err
    assert said.out.splitlines()[0] == "egress of shop/web: Allow: profile kns.shop, egress rule 0 (all traffic)"
    assert said.out.splitlines()[-1] == "Deny"
    assert "NetworkPolicy shop/db-for-api-only in tier default, ingress rule 0" in said.out
    found = json.loads(muslin("explain --from 10.244.0.1 --to shop/db --tcp 5432 -o json").out)
    assert (found["verdict"], found["from"], found["to"]) == ("Deny", "shop/web", "shop/db")
    assert found["ingress"] == {
        "verdict": "Deny",
        "cause": "rule",
        "tier": "default",
        "policy": "networkpolicy/shop/db-for-api-only",
        "profile": "",
        "rule": 0,
        "match": 'TCP from (projectcalico.org/namespace == "shop" && app == "web")',
        "policies": [],
        "why": "NetworkPolicy shop/db-for-api-only in tier default, ingress rule 0 "
        '(TCP from (projectcalico.org/namespace == "shop" && app == "web"))',
    }
    assert found["egress"]["verdict"] == "Allow"
    assert found["egress"]["profile"] == "kns.shop"
    for flow in ("--udp 53", "--icmp", "--sctp 7", "--protocol 47"):
        said = muslin(f"explain --from shop/web --to shop/db {flow}")
        assert said.out.splitlines()[-1] == "Allow", said.out
    outside = json.loads(muslin("explain --from 192.0.2.1 --to shop/db --tcp 5432 -o json").out)
    assert (outside["from"], outside["egress"]) == ("192.0.2.1", None)


@pytest.mark.usefixtures("shop")
def test_explain_refuses_what_it_cannot_know(muslin: Muslin) -> None:
    said = muslin("explain --from shop/nobody --to shop/db --tcp 1")
    assert (said.code, said.err) == (1, "--from: there is no pod shop/nobody; `muslin get wep -A` lists them\n")
    said = muslin("explain --from shop/web --to nonsense --tcp 1")
    assert (said.code, said.err) == (1, "--to: 'nonsense' is neither NAMESPACE/POD nor an address\n")
    said = muslin("explain --from shop/web --to 10.0.0.0/24 --tcp 1")
    wanted = "--to: '10.0.0.0/24' is a prefix; one address is wanted, or NAMESPACE/POD\n"
    assert (said.code, said.err) == (1, wanted)
    assert muslin("explain --from shop/web --to shop/db").code == 2
    assert muslin("explain --from shop/web --to shop/db --tcp 1 --udp 1").code == 2
    said = muslin("explain --from shop/web --to shop/db --protocol 6")
    assert said.code == 2
    assert "say --tcp PORT" in said.err
