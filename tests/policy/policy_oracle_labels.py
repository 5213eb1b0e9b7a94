"""Labels and selectors by the book: who carries what, and what a selector says. Shares no code with `policy`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address, ip_network
from types import CodeType
from typing import Any

from core.resources import (
    GlobalNetworkSet,
    HostEndpoint,
    Namespace,
    NetworkSet,
    Profile,
    Resource,
    ServiceAccount,
    WorkloadEndpoint,
)

PROTOCOLS = {"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136}
TEST = re.compile(
    r"""(?P<has>has\((?P<there>[\w./-]+)\))
      | (?P<all>all\(\)) | (?P<global>global\(\))
      | (?P<label>[\w./-]+)\s*(?P<op>==|!=|contains|starts\s+with|ends\s+with|not\s+in|in)\s*
        (?P<value>'[^']*'|"[^"]*"|\{[^}]*\})
      | (?P<and>&&) | (?P<or>\|\|) | (?P<not>!) | (?P<paren>[()]) | (?P<space>\s+)""",
    re.VERBOSE,
)


@dataclass(frozen=True, eq=False)
class Thing:
    """Whatever has labels and addresses."""

    labels: Mapping[str, str]
    nets: tuple[str, ...]
    ports: tuple[tuple[str, int, int], ...] = ()

    def has(self, address: str) -> bool:
        return any(within(address, net) for net in self.nets)


@cache
def within(address: str, net: str) -> bool:
    return ip_address(address) in ip_network(net, strict=False)


@cache
def expression(selector: str) -> CodeType:
    """A selector as a Python expression about `labels`."""
    words, at = [], 0
    while at < len(selector):
        token = TEST.match(selector, at)
        assert token, f"{selector!r} at {at}"
        at = token.end()
        if token["has"]:
            words.append(f"({token['there']!r} in labels)")
        elif token["all"] or token["global"]:
            words.append("True")
        elif token["label"]:
            operator = " ".join(token["op"].split())
            words.append(f"tested(labels.get({token['label']!r}), {operator!r}, {token['value']!r})")
        else:
            signs = {"and": " and ", "or": " or ", "not": " not ", "paren": token["paren"], "space": " "}
            words.append(signs[str(token.lastgroup)])
    return compile("".join(words).strip() or "True", selector, "eval")


def selected(selector: str, labels: Mapping[str, str]) -> bool:
    """Whether the selector means a thing with these labels; a blank one means everything."""
    return bool(eval(expression(selector), {"labels": labels, "tested": tested}))


def tested(found: str | None, operator: str, text: str) -> bool:
    if operator in ("in", "not in"):
        values = [single or double for single, double in re.findall(r"'([^']*)'|\"([^\"]*)\"", text)]
        return (found in values) == (operator == "in")
    value = text[1:-1]
    if operator == "!=":
        return found != value
    if found is None:
        return False
    return {
        "==": found == value,
        "contains": value in found,
        "starts with": found.startswith(value),
        "ends with": found.endswith(value),
    }[operator]


@cache
def prefixed(selector: str, prefix: str) -> str:
    """A selector about a namespace's or a service account's labels, told of the endpoint's."""
    text = re.sub(
        r"([\w./-]+)(\s*(?:==|!=|contains|starts\s+with|ends\s+with|not\s+in|in)\s*['\"{])",
        lambda found: prefix + found[1] + found[2],
        selector,
    )
    text = re.sub(r"has\(([\w./-]+)\)", lambda found: f"has({prefix}{found[1]})", text)
    there = f"has({prefix}projectcalico.org/name)"
    return text.replace("all()", there).replace("global()", "!has(projectcalico.org/namespace)")


def kube_selects(selector: Any, labels: Mapping[str, str]) -> bool:
    """Kubernetes' own selectors."""
    if any(labels.get(key) != value for key, value in selector.match_labels.items()):
        return False
    for each in selector.match_expressions:
        found = labels.get(each.key)
        holds = {
            "In": found in each.values,
            "NotIn": found not in each.values,
            "Exists": found is not None,
            "DoesNotExist": found is None,
        }
        if not holds[each.operator]:
            return False
    return True


class Cluster:
    """All manifests, and who is who in them."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self.resources = list(resources)
        self._of: dict[type[Any], list[Any]] = {}
        for each in self.resources:
            self._of.setdefault(type(each), []).append(each)
        self._things = {id(each): self._thing(each) for each in self.resources if hasattr(each, "spec")}
        self._here: dict[str, list[Thing]] = {}

    def of(self, cls: type[Any]) -> list[Any]:
        return self._of.get(cls, [])

    def named(self, cls: type[Any], name: str, namespace: str = "") -> Any:
        found = [
            each
            for each in self.of(cls)
            if each.metadata.name == name and (not namespace or each.metadata.namespace == namespace)
        ]
        return found[0] if found else None

    def thing(self, each: Any) -> Thing:
        found = self._things.get(id(each))
        if found is not None:
            return found
        same = [other for other in self.of(type(each)) if other.key == each.key]
        return self._things[id(same[0])]

    def here(self, address: str) -> list[Thing]:
        """Who has the address."""
        if address not in self._here:
            self._here[address] = [thing for thing in self._things.values() if thing.has(address)]
        return self._here[address]

    def namespace_labels(self, name: str) -> dict[str, str]:
        found = self.named(Namespace, name)
        return {"kubernetes.io/metadata.name": name} | (found.metadata.labels if found else {})

    def _inherited(self, namespace: str, account: str) -> dict[str, str]:
        labels = {"projectcalico.org/namespace": namespace, "pcns.projectcalico.org/name": namespace}
        labels |= {f"pcns.{key}": value for key, value in self.namespace_labels(namespace).items()}
        if account:
            labels |= {"projectcalico.org/serviceaccount": account, "pcsa.projectcalico.org/name": account}
            if found := self.named(ServiceAccount, account, namespace):
                labels |= {f"pcsa.{key}": value for key, value in found.metadata.labels.items()}
        return labels

    def _of_profiles(self, names: list[str]) -> dict[str, str]:
        labels: dict[str, str] = {}
        for name in reversed(names):
            if profile := self.named(Profile, name):
                labels |= profile.spec.labels_to_apply
        return labels

    def _thing(self, each: Any) -> Thing:
        spec = each.spec
        # What a thing says of its own namespace, account or kind is no news: only muslin says that.
        claims = ("pcns.", "pcsa.", "projectcalico.org/")
        own = {key: value for key, value in each.metadata.labels.items() if not key.startswith(claims)}
        if isinstance(each, WorkloadEndpoint):
            labels = self._inherited(each.metadata.namespace, spec.service_account_name or "default")
            labels["projectcalico.org/orchestrator"] = spec.orchestrator
            return Thing(labels | self._of_profiles(spec.profiles) | own, tuple(spec.ip_networks), named_ports(spec))
        if isinstance(each, NetworkSet):
            return Thing(self._inherited(each.metadata.namespace, "") | own, tuple(spec.nets))
        if isinstance(each, GlobalNetworkSet):
            return Thing(own, tuple(spec.nets))
        if isinstance(each, HostEndpoint):
            return Thing(self._of_profiles(spec.profiles) | own, tuple(spec.expected_ips), named_ports(spec))
        return Thing({}, ())


def named_ports(spec: Any) -> tuple[tuple[str, int, int], ...]:
    return tuple((port.name, PROTOCOLS.get(port.protocol, port.protocol), port.port) for port in spec.ports)


def addresses(pod: Any) -> list[str]:
    return [net.split("/")[0] for net in pod.spec.ip_networks]
