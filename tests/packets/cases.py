"""Cases of policy as data: what is written, changed and deleted, and who must reach whom after each step.

Two spellings, one meaning. `k8s_netpol.yaml` restates Kubernetes' own suite and explains itself at its top. The other
files are ours (`format: muslin-conformance/v1`):

    expect:
      tcp 80: [all, no * > x/a, yes x/b y/* > x/a]      all or none, then exceptions; of several the last counts
      icmp 8/0, udp4 81: [none]                         several probes with one answer

A case with `rows` is a table: each row is a case of its own, the words of its row put where the case says $word.

A probe is `tcp`, `udp` or `sctp` and a port, `icmp` or `icmpv6` and type/code, or `ip` and a protocol's
number; a 4 or 6 at the word's end asks one family alone. Every probe is a flow never seen before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec.structs import replace

from core.names import Key, workload_endpoint_name, workload_interface
from core.resources import BY_MANIFEST, Metadata, Namespace, Resource, ServiceAccount, WorkloadEndpoint
from core.resources.network import EndpointPort, WorkloadEndpointSpec

FOLDER = Path(__file__).parents[1] / "conformance"
OUTSIDE = "out/"
"""How the names of hosts begin that are in no cluster."""

NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
KINDS = {
    "k8s": ("networking.k8s.io/v1", "NetworkPolicy"),
    "calico": ("projectcalico.org/v3", "NetworkPolicy"),
    "global": ("projectcalico.org/v3", "GlobalNetworkPolicy"),
    "tier": ("projectcalico.org/v3", "Tier"),
    "networkset": ("projectcalico.org/v3", "NetworkSet"),
    "globalnetworkset": ("projectcalico.org/v3", "GlobalNetworkSet"),
    "profile": ("projectcalico.org/v3", "Profile"),
    "namespace": ("v1", "Namespace"),
    "serviceaccount": ("v1", "ServiceAccount"),
}

NOTHING = "nothing"
"""In a table, for a row without probes of some kind."""

NodeOf = Callable[[str], str]
State = Mapping[Key, Resource]


@dataclass(frozen=True, slots=True)
class Probe:
    """One question, put to every ordered pair: a protocol's number and a port, or ICMP's type and code."""

    protocol: int
    port: int | None = None
    icmp: tuple[int, int] | None = None
    families: tuple[int, ...] = (4, 6)


@dataclass(frozen=True, slots=True)
class Topology:
    """Namespaces, pods and outside hosts, as the file says; `addresses` are IPv4 then IPv6, by name."""

    namespaces: Mapping[str, Mapping[str, str]]
    pods: Mapping[str, Mapping[str, Any]]
    addresses: Mapping[str, tuple[str, str]]
    service_accounts: Mapping[str, Mapping[str, str]]
    ports: tuple[EndpointPort, ...]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Who asks whom: everyone everyone else, but for outside hosts among themselves."""
        for source, destination in product(self.addresses, repeat=2):
            inside = not (source.startswith(OUTSIDE) and destination.startswith(OUTSIDE))
            if source != destination and inside:
                yield source, destination


@dataclass(frozen=True, slots=True)
class Expectation:
    """Whether one reaches another: a default, and exceptions of which the last that fits counts."""

    default: bool
    exceptions: tuple[tuple[bool, str, str], ...] = ()

    def allows(self, source: str, destination: str) -> bool:
        answer = self.default
        for verdict, sources, destinations in self.exceptions:
            if _fits(source, sources) and _fits(destination, destinations):
                answer = verdict
        return answer


@dataclass(frozen=True, slots=True)
class Step:
    """A change, given and done at once, and what is asked after it."""

    change: Callable[[State, NodeOf], Mapping[Key, Resource | None]]
    expect: Mapping[Probe, Expectation]


@dataclass(frozen=True, slots=True)
class Case:
    """A story in steps, which begins with a cluster without policy."""

    id: str
    title: str
    topology: Topology
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return self.id


def resource(manifest: Mapping[str, Any]) -> Resource:
    """A manifest as its class."""
    return msgspec.convert(dict(manifest), BY_MANIFEST[manifest["apiVersion"], manifest["kind"]])


def endpoint_key(pod: str, node: str) -> Key:
    home, name = pod.split("/")
    return Key(WorkloadEndpoint.KIND, home, workload_endpoint_name(node, name))


def begin(topology: Topology, node_of: NodeOf) -> dict[Key, Resource]:
    """The cluster before any policy: namespaces, service accounts, pods."""
    found: list[Resource] = [_labelled(Namespace, name, "", labels) for name, labels in topology.namespaces.items()]
    for account, labels in topology.service_accounts.items():
        home, name = account.split("/")
        found.append(_labelled(ServiceAccount, name, home, labels))
    found += [_endpoint(topology, name, pod, node_of(name)) for name, pod in topology.pods.items()]
    return {each.key: each for each in found}


def change(state: State, step: Step, node_of: NodeOf) -> dict[Key, Resource]:
    """The cluster after a step."""
    return {key: each for key, each in {**state, **step.change(state, node_of)}.items() if each is not None}


@cache
def cases() -> tuple[Case, ...]:
    """Every case of every file, Kubernetes' own first."""
    files = sorted(FOLDER.glob("policy_*.yaml"))
    found = [*_kubernetes(), *(case for file in files for case in _ours(yaml.safe_load(file.read_text())))]
    assert len({case.id for case in found}) == len(found), "two cases have one name"
    return tuple(found)


# --- Kubernetes' own suite


def _kubernetes() -> Iterator[Case]:
    suite = yaml.safe_load((FOLDER / "k8s_netpol.yaml").read_text())
    topologies = {name: _topology(each) for name, each in suite["topologies"].items()}
    for case in suite["cases"]:
        # The suite writes its blocks for IPv4 alone: there IPv6 is not asked.
        families = (4,) if "ipBlock" in str(case) else (4, 6)
        steps = tuple(_kubernetes_step(step, families) for step in case["steps"])
        yield Case(case["id"], case["title"], topologies[case["topology"]], steps)


def _kubernetes_step(step: Mapping[str, Any], families: tuple[int, ...]) -> Step:
    relabelled = {}
    for verb, kind in (("label_pod", "pod"), ("label_namespace", "namespace")):
        if found := step.get(verb):
            relabelled[f"{kind} {found[kind]}"] = {**found.get("set", {}), **dict.fromkeys(found.get("remove", ()))}
    gone = []
    for each in step.get("delete", ()):
        kind = BY_MANIFEST[each.get("apiVersion", "networking.k8s.io/v1"), each["kind"]].KIND
        gone.append(Key(kind, each["namespace"], each["name"]))
    expect = {}
    if "probe" in step:
        probe = Probe(NUMBERS[step["probe"]["protocol"].lower()], step["probe"]["port"], families=families)
        said = step["expect"]
        exceptions = [
            (verdict == "allow", pair["from"], pair["to"])
            for verdict in ("deny", "allow")
            for pair in said.get(verdict, ())
        ]
        expect[probe] = Expectation(said["default"] == "allow", tuple(exceptions))
    return Step(_changes([resource(each) for each in step.get("apply", ())], gone, relabelled), expect)


# --- our own files


def _ours(suite: Mapping[str, Any]) -> Iterator[Case]:
    topology = _topology(yaml.safe_load((FOLDER / "nine_pods.yaml").read_text())["topology"])
    for case in chain.from_iterable(map(_rows, suite["cases"])):
        steps = case.get("steps") or [{each: case[each] for each in ("apply", "expect") if each in case}]
        yield Case(case["id"], case["title"], topology, tuple(_our_step(step) for step in steps))


def _rows(case: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "rows" not in case:
        yield case
        return
    pattern = {key: value for key, value in case.items() if key != "rows"}
    for number, row in enumerate(case["rows"], 1):
        yield {**_filled(pattern, row), "id": f"{case['id']}-{number:02}"}


def _filled(part: Any, row: Mapping[str, Any]) -> Any:
    """A part of a table's pattern with the words of one row."""
    if isinstance(part, dict):
        return {_filled(key, row): _filled(value, row) for key, value in part.items()}
    if isinstance(part, list):
        return [_filled(each, row) for each in part]
    if not isinstance(part, str):
        return part
    if part.startswith("$") and part[1:] in row:
        return row[part[1:]]
    return re.sub(r"\$(\w+)", lambda found: str(row[found[1]]), part)


def _our_step(step: Mapping[str, Any]) -> Step:
    unknown = step.keys() - {"apply", "delete", "label", "expect"}
    assert not unknown, f"a step knows no {unknown}"
    applied = [_written(*each.popitem()) for each in map(dict, step.get("apply", ()))]
    gone = [_named(each) for each in step.get("delete", ())]
    expect = {
        _probe(text.strip()): _expectation(words)
        for texts, words in step.get("expect", {}).items()
        for text in texts.split(",")
        if text != NOTHING
    }
    return Step(_changes(applied, gone, step.get("label", {})), expect)


def _written(named: str, body: Mapping[str, Any]) -> Resource:
    word, _, path = named.partition(" ")
    api_version, kind = KINDS[word]
    home, _, name = path.rpartition("/")
    metadata = {"name": name, **({"namespace": home} if home else {})}
    body = dict(body)
    if "labels" in body:
        metadata["labels"] = body.pop("labels")
    spec = {} if kind in ("Namespace", "ServiceAccount") else {"spec": body}
    return resource({"apiVersion": api_version, "kind": kind, "metadata": metadata, **spec})


def _named(named: str) -> Key:
    word, _, path = named.partition(" ")
    home, _, name = path.rpartition("/")
    return Key(BY_MANIFEST[KINDS[word]].KIND, home, name)


def _probe(text: str) -> Probe:
    found = re.fullmatch(r"(tcp|udp|sctp|icmpv6|icmp|ip)([46]?) (\d+)(?:/(\d+))?", text)
    assert found, f"{text!r} is no probe"
    word, family, number, code = found.groups()
    families = (int(family),) if family else {"icmp": (4,), "icmpv6": (6,)}.get(word, (4, 6))
    if word == "ip":
        return Probe(int(number), families=families)
    if code is not None:
        return Probe(NUMBERS[word], icmp=(int(number), int(code)), families=families)
    return Probe(NUMBERS[word], int(number), families=families)


def _expectation(words: list[str]) -> Expectation:
    default, *rest = words
    assert default in ("all", "none"), default
    exceptions = []
    for each in rest:
        found = re.fullmatch(r"(yes|no) (.+?) > (.+)", each)
        assert found, f"{each!r} is no exception"
        verdict, sources, destinations = found.groups()
        exceptions.append((verdict == "yes", sources, destinations))
    return Expectation(default == "all", tuple(exceptions))


# --- both


def _topology(document: Mapping[str, Any]) -> Topology:
    pods, outside = document["pods"], document.get("outside", {})
    addresses = {name: tuple(each["ips"]) for name, each in {**pods, **outside}.items()}
    return Topology(
        namespaces={name: each["labels"] for name, each in document["namespaces"].items()},
        pods=pods,
        addresses=addresses,
        service_accounts=document.get("serviceAccounts", {}),
        ports=tuple(EndpointPort(**each) for each in document.get("defaultPorts", ())),
    )


def _endpoint(topology: Topology, path: str, pod: Mapping[str, Any], node: str) -> WorkloadEndpoint:
    home, name = path.split("/")
    account = pod.get("serviceAccount", "")
    ports = [EndpointPort(**each) for each in pod["ports"]] if "ports" in pod else list(topology.ports)
    v4, v6 = topology.addresses[path]
    spec = WorkloadEndpointSpec(
        orchestrator="k8s",
        node=node,
        pod=name,
        endpoint="eth0",
        service_account_name=account,
        ip_networks=[f"{v4}/32", f"{v6}/128"],
        ports=ports,
        profiles=[f"kns.{home}", *([f"ksa.{home}.{account}"] if account else [])],
        interface_name=workload_interface(home, name),
    )
    own = {"projectcalico.org/namespace": home, "projectcalico.org/orchestrator": "k8s", **pod["labels"]}
    if account:
        own["projectcalico.org/serviceaccount"] = account
    metadata = Metadata(name=workload_endpoint_name(node, name), namespace=home, labels=own)
    kind = WorkloadEndpoint.KIND
    return WorkloadEndpoint(api_version=kind.api_version, kind=kind.name, metadata=metadata, spec=spec)


def _labelled(cls: type[Any], name: str, home: str, labels: Mapping[str, str]) -> Resource:
    metadata = Metadata(name=name, namespace=home, labels=labels)
    made: Resource = cls(api_version=cls.KIND.api_version, kind=cls.KIND.name, metadata=metadata)
    return made


def _changes(
    written: list[Resource], gone: list[Key], relabelled: Mapping[str, Mapping[str, str | None]]
) -> Callable[[State, NodeOf], Mapping[Key, Resource | None]]:
    def change(state: State, node_of: NodeOf) -> Mapping[Key, Resource | None]:
        changes: dict[Key, Resource | None] = {each.key: each for each in written}
        for key in gone:
            assert key in state, f"{key} is not there to be deleted"
            changes[key] = None
        for named, labels in relabelled.items():
            word, _, path = named.partition(" ")
            key = endpoint_key(path, node_of(path)) if word == "pod" else _named(named)
            old = state[key]
            merged = {**old.metadata.labels, **labels}
            kept = {label: value for label, value in merged.items() if value is not None}
            changes[key] = replace(old, metadata=replace(old.metadata, labels=kept))
        return changes

    return change


def _fits(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())
