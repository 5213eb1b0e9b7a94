"""A policy test as people write it, and as typed values: which cluster, and who may talk to whom in it.

    apiVersion: muslin.io/v1
    kind: PolicyTest
    manifests: [../policies/*.yaml]        what will be applied: paths and globs, relative to the file
    pods:                                  what there is to be protected, in short
      shop/web: {labels: {app: web}}
    assert:
      - {from: shop/web, to: shop/db, ports: [tcp/5432], verdict: Allow}

It never reaches a datastore. Pods get addresses that documents use (RFC 2544, RFC 3849) unless they say their own; a
namespace that nobody writes down has no labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address
from itertools import count
from typing import Any, Final

import msgspec
from msgspec import field

from core import admission, shape, values
from core.addr import Address, Family
from core.errors import Problem
from core.names import Key, workload_endpoint_name
from core.resources import Metadata, Namespace, Resource, WorkloadEndpoint
from core.resources.base import Base
from core.resources.network import EndpointPort, WorkloadEndpointSpec
from core.snapshot import Snapshot
from core.validate import validate
from policy.model import ALL_PORTS, Range, Verdict

API_VERSION: Final = "muslin.io/v1"
KIND: Final = "PolicyTest"
NODE: Final = "policy-test"

POOLS: Final[Mapping[int, IPv4Network | IPv6Network]] = {
    4: IPv4Network("198.18.0.0/15"),
    6: IPv6Network("2001:db8:18::/64"),
}
"""Where pods without an address of their own get one."""

_TRAFFIC: Final = re.compile(r"([A-Za-z0-9]+)(?:/([0-9]+)(?:-([0-9]+))?)?")
_PROTOCOLS: Final = {name.lower(): number for name, number in values.PROTOCOLS.items()}


class Wanted(StrEnum):
    """What is asserted."""

    ALLOW = "Allow"
    DENY = "Deny"

    @property
    def verdict(self) -> Verdict:
        """As policy says it."""
        return Verdict(self.value)


class Named(Base, frozen=True, kw_only=True):
    """What a test calls itself."""

    name: str = ""


class NamespaceForm(Base, frozen=True, kw_only=True):
    """A namespace in short."""

    labels: Mapping[str, str] = {}


class PodForm(Base, frozen=True, kw_only=True):
    """A pod in short. `ports`: name to PROTOCOL/NUMBER. Without `profiles`, its namespace's."""

    labels: Mapping[str, str] = {}
    ports: Mapping[str, str] = {}
    addresses: list[str] = []  # noqa: RUF012 - msgspec copies it
    service_account: str = ""
    profiles: list[str] | None = None


class Assertion(Base, frozen=True, kw_only=True):
    """From each of `from` to each of `to`, all of `ports` (absent: all traffic) has the verdict.

    Ends are pods (`NAMESPACE/POD`, `*` in it for any) and addresses. `because` names what has to decide.
    """

    name: str = ""
    from_: str | list[str] = field(name="from")
    to: str | list[str]
    ports: list[str] = []  # noqa: RUF012 - msgspec copies it
    verdict: Wanted
    because: str = ""

    @property
    def sources(self) -> list[str]:
        """`from` as a list."""
        return [self.from_] if isinstance(self.from_, str) else self.from_

    @property
    def destinations(self) -> list[str]:
        """`to` as a list."""
        return [self.to] if isinstance(self.to, str) else self.to


class PolicyTest(Base, frozen=True, kw_only=True):
    """One file's cluster and assertions. `families` are those in which pods get addresses and are asked about."""

    api_version: str
    kind: str
    metadata: Named = Named()
    manifests: list[str] = []  # noqa: RUF012 - msgspec copies it
    families: list[int] = field(default_factory=lambda: [4])
    namespaces: Mapping[str, NamespaceForm] = {}
    pods: Mapping[str, PodForm] = {}
    assert_: list[Assertion] = field(name="assert")


@dataclass(frozen=True, slots=True)
class Asked:
    """Traffic that an assertion is about. `protocol` None is all; ICMP of type `icmp` when that is set."""

    text: str
    protocol: int | None = None
    ports: Range = ALL_PORTS
    icmp: int | None = None


EVERYTHING: Final = Asked("all traffic")


def read(value: Any) -> tuple[PolicyTest | None, list[Problem]]:
    """A document as a test, or what is wrong with it."""
    if not isinstance(value, dict) or (value.get("apiVersion"), value.get("kind")) != (API_VERSION, KIND):
        return None, [Problem(why=f"a policy test begins with apiVersion: {API_VERSION} and kind: {KIND}")]
    value = shape.without_nulls(value, PolicyTest)
    try:
        test = msgspec.convert(value, PolicyTest)
    except msgspec.ValidationError as error:
        return None, list(shape.faults(value, PolicyTest)) or [Problem(why=str(error))]
    return test, list(_faults(test))


def _faults(test: PolicyTest) -> Iterator[Problem]:
    if not test.families or not set(test.families) <= set(Family):
        yield Problem(path="families", why="4, 6 or both")
    if not test.assert_:
        yield Problem(path="assert", why="is empty: nothing would be tested")
    for name, pod in test.pods.items():
        path = f'pods["{name}"]'
        if not re.fullmatch("[^/]+/[^/]+", name):
            yield Problem(path=path, why="a pod is named NAMESPACE/POD")
        for index, text in enumerate(pod.addresses):
            yield from _trying(values.address, text, f"{path}.addresses[{index}]")
        for port, text in pod.ports.items():
            yield from _trying(_named_port, text, f"{path}.ports.{port}")
    for index, each in enumerate(test.assert_):
        if not each.sources or not each.destinations:
            yield Problem(path=f"assert[{index}]", why="names no ends: nothing would be tested")
        for place, text in enumerate(each.ports):
            yield from _trying(asked, text, f"assert[{index}].ports[{place}]")


def _trying(reader: Any, text: str, path: str) -> Iterator[Problem]:
    try:
        reader(text)
    except ValueError as error:
        yield Problem(path=path, why=str(error))


def asked(text: str) -> Asked:
    """`tcp/5432`, `udp/8000-8010`, `sctp`, `icmp`, `icmp/8` (a type), `47`. Raises ValueError."""
    found = _TRAFFIC.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not PROTOCOL, PROTOCOL/PORT or PROTOCOL/FIRST-LAST")
    name, first, last = found.groups()
    protocol = _PROTOCOLS.get(name.lower())
    if protocol is None and name.isdecimal() and int(name) <= 255:
        protocol = int(name)
    if protocol is None:
        raise ValueError(f"{name!r} is no protocol: {', '.join(_PROTOCOLS)} or a number to 255")
    if first is None:
        return Asked(text, protocol)
    low, high = int(first), int(last or first)
    if protocol in (1, 58) and last is None and low <= 255:
        return Asked(text, protocol, icmp=low)
    if protocol not in values.WITH_PORTS:
        raise ValueError(f"{name} has no ports")
    if not low <= high <= ALL_PORTS[1]:
        raise ValueError(f"{text!r}: ports are 0 to {ALL_PORTS[1]}, the smaller one first")
    return Asked(text, protocol, (low, high))


def _named_port(text: str) -> tuple[int, int]:
    found = asked(text)
    if found.protocol not in values.WITH_PORTS or found.ports[0] != found.ports[1]:
        raise ValueError(f"{text!r} is not one port: tcp/8080")
    return found.protocol, found.ports[0]


def cluster(test: PolicyTest, resources: Sequence[Resource]) -> tuple[Snapshot, list[Problem]]:
    """What is tested: the manifests' resources and the short forms; and what is wrong with them together."""
    there = {each.key for each in resources}
    short = [*_namespaces(test, there), *_pods(test, resources)]
    problems = [problem for each in short for problem in validate(each)]
    problems += [
        Problem(what=str(each.key), why="is in the manifests and among the short forms")
        for each in short
        if each.key in there
    ]
    everything = {each.key: each for each in (*resources, *short)}
    kinds = admission.needs(everything)
    problems += admission.check(everything, {kind: {} for kind in kinds})
    return Snapshot().apply(1, everything.items()), problems


def _namespaces(test: PolicyTest, there: Iterable[Key]) -> Iterator[Namespace]:
    """Those written down, and those that pods are in and nobody writes down."""
    known = {key.name for key in there if key.kind == Namespace.KIND}
    implied = {name.partition("/")[0] for name in test.pods} - known
    for name in sorted(implied | test.namespaces.keys()):
        form = test.namespaces.get(name, NamespaceForm())
        yield Namespace(metadata=Metadata(name=name, labels=form.labels))


def _pods(test: PolicyTest, resources: Iterable[Resource]) -> Iterator[WorkloadEndpoint]:
    taken = {ip_address(text) for pod in test.pods.values() for text in pod.addresses}
    taken |= {found for each in resources if isinstance(each, WorkloadEndpoint) for found in each.spec.addresses}
    free = {family: _free(family, taken) for family in test.families}
    for name, pod in sorted(test.pods.items()):
        namespace, _, short = name.partition("/")
        own: list[Address] = [ip_address(text) for text in pod.addresses] or [
            next(free[each]) for each in test.families
        ]
        yield WorkloadEndpoint(
            metadata=Metadata(name=workload_endpoint_name(NODE, short), namespace=namespace, labels=pod.labels),
            spec=WorkloadEndpointSpec(
                orchestrator="k8s",
                node=NODE,
                pod=short,
                endpoint="eth0",
                service_account_name=pod.service_account,
                ip_networks=[f"{address}/{address.max_prefixlen}" for address in own],
                profiles=[f"kns.{namespace}"] if pod.profiles is None else pod.profiles,
                ports=[_port(port, text) for port, text in sorted(pod.ports.items())],
            ),
        )


def _free(family: int, taken: Set[Address]) -> Iterator[Address]:
    """Addresses of the pool that nobody has said to have, in order."""
    first = POOLS[family].network_address
    return (each for each in (first + offset for offset in count(1)) if each not in taken)


def _port(name: str, text: str) -> EndpointPort:
    protocol, number = _named_port(text)
    return EndpointPort(name=name, port=number, protocol=protocol)


def in_family(wanted: Asked, family: int) -> Asked:
    """`icmp` between IPv6 ends is ICMPv6."""
    return replace(wanted, protocol=58) if wanted.protocol == 1 and family == Family.V6 else wanted
