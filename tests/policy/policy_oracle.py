"""Policy by the book: a slow evaluator that walks manifests rule by rule, packet by packet.

Written from Calico's description of what its objects mean, sharing no code with `policy`: not the selectors, not the
labels, not the order of things. It is what the compiled tables are held against.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from core.resources import (
    GlobalNetworkPolicy,
    GlobalNetworkSet,
    HostEndpoint,
    KubernetesNetworkPolicy,
    Namespace,
    NetworkPolicy,
    NetworkSet,
    Profile,
    Resource,
    ServiceAccount,
    Tier,
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


@dataclass(frozen=True)
class Flow:
    """The first packet of a flow."""

    source: str
    destination: str
    protocol: int
    sport: int | None = None
    dport: int | None = None
    icmp: tuple[int, int] | None = None

    @property
    def version(self) -> int:
        return ip_address(self.source).version


@dataclass(frozen=True)
class Answer:
    allowed: bool
    why: str


@dataclass(frozen=True)
class Thing:
    """Whatever has labels and addresses."""

    labels: Mapping[str, str]
    nets: tuple[str, ...]
    ports: tuple[tuple[str, int, int], ...] = ()

    def has(self, address: str) -> bool:
        return any(ip_address(address) in ip_network(net) for net in self.nets)


def selected(selector: str, labels: Mapping[str, str]) -> bool:
    """A selector by turning it into a Python expression."""
    if not selector.strip():
        return True
    words, at = [], 0
    while at < len(selector):
        token = TEST.match(selector, at)
        assert token, f"{selector!r} at {at}"
        at = token.end()
        if token["has"]:
            words.append(str(token["there"] in labels))
        elif token["all"] or token["global"]:
            words.append("True")
        elif token["label"]:
            words.append(str(tested(labels.get(token["label"]), " ".join(token["op"].split()), token["value"])))
        else:
            signs = {"and": " and ", "or": " or ", "not": " not ", "paren": token["paren"], "space": " "}
            words.append(signs[str(token.lastgroup)])
    return bool(eval("".join(words)))


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


class Oracle:
    """All manifests of a cluster, and the question `answer`."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self.resources = list(resources)
        self.things = [self.thing(each) for each in self.resources if hasattr(each, "spec")]

    def of(self, cls: type[Any]) -> list[Any]:
        return [each for each in self.resources if type(each) is cls]

    def named(self, cls: type[Any], name: str, namespace: str = "") -> Any:
        found = [
            each
            for each in self.of(cls)
            if each.metadata.name == name and (not namespace or each.metadata.namespace == namespace)
        ]
        return found[0] if found else None

    # Who is who

    def inherited(self, namespace: str, account: str) -> dict[str, str]:
        labels = {
            "projectcalico.org/namespace": namespace,
            "pcns.projectcalico.org/name": namespace,
            "pcns.kubernetes.io/metadata.name": namespace,
        }
        if found := self.named(Namespace, namespace):
            labels |= {f"pcns.{key}": value for key, value in found.metadata.labels.items()}
        if account:
            labels |= {"projectcalico.org/serviceaccount": account, "pcsa.projectcalico.org/name": account}
            if found := self.named(ServiceAccount, account, namespace):
                labels |= {f"pcsa.{key}": value for key, value in found.metadata.labels.items()}
        return labels

    def thing(self, each: Any) -> Thing:
        spec = each.spec
        # What a thing says of its own namespace, account or kind is no news: only muslin says that.
        claims = ("pcns.", "pcsa.", "projectcalico.org/")
        labels = {key: value for key, value in each.metadata.labels.items() if not key.startswith(claims)}
        if isinstance(each, WorkloadEndpoint):
            own = labels
            labels = self.inherited(each.metadata.namespace, spec.service_account_name or "default")
            labels["projectcalico.org/orchestrator"] = spec.orchestrator
            for name in reversed(spec.profiles):
                if profile := self.named(Profile, name):
                    labels |= profile.spec.labels_to_apply
            ports = tuple((port.name, PROTOCOLS[port.protocol], port.port) for port in spec.ports)
            return Thing(labels | own, tuple(spec.ip_networks), ports)
        if isinstance(each, NetworkSet):
            return Thing(self.inherited(each.metadata.namespace, "") | labels, tuple(spec.nets))
        if isinstance(each, GlobalNetworkSet):
            return Thing(labels, tuple(spec.nets))
        if isinstance(each, HostEndpoint):
            return Thing(labels, tuple(spec.expected_ips))
        return Thing({}, ())

    # Rules

    def scope(self, selector: str, namespaces: str, accounts: Any, own: str) -> str:
        """Everything an entity says about labels, as one selector; blank when it says nothing."""
        terms = []
        if selector or namespaces or accounts is not None:
            if namespaces == "global()":
                terms.append("!has(projectcalico.org/namespace)")
            elif namespaces:
                terms.append(prefixed(namespaces, "pcns."))
            elif own:
                terms.append(f"projectcalico.org/namespace == '{own}'")
            else:
                terms.append("all()")
        if selector:
            terms.append(selector)
        if accounts is not None and accounts.names:
            names = ", ".join(f"'{name}'" for name in accounts.names)
            terms.append(f"pcsa.projectcalico.org/name in {{{names}}}")
        if accounts is not None and accounts.selector:
            terms.append(prefixed(accounts.selector, "pcsa."))
        return " && ".join(f"({term})" for term in terms)

    def side_matches(self, side: Any, rule: Any, address: str, port: int | None, own: str) -> bool:
        here = [thing for thing in self.things if thing.has(address)]
        about = self.scope(side.selector, side.namespace_selector, side.service_accounts, own)
        meant = [thing for thing in here if selected(about, thing.labels)]
        if about and not meant:
            return False
        if side.not_selector and any(selected(side.not_selector, thing.labels) for thing in here):
            return False
        within = [ip_address(address) in ip_network(net) for net in side.nets]
        if side.nets and not any(within):
            return False
        if any(ip_address(address) in ip_network(net) for net in side.not_nets):
            return False
        if side.ports and not self.port_in(side.ports, rule, port, meant):
            return False
        return not (side.not_ports and self.port_in(side.not_ports, rule, port, here))

    def port_in(self, ports: list[int | str], rule: Any, port: int | None, things: list[Thing]) -> bool:
        protocol = PROTOCOLS.get(rule.protocol, rule.protocol)
        for each in ports:
            numbers = re.fullmatch(r"(\d+)(?::(\d+))?", str(each))
            if numbers:
                if port is not None and int(numbers[1]) <= port <= int(numbers[2] or numbers[1]):
                    return True
            elif any(found == (each, protocol, port) for thing in things for found in thing.ports):
                return True
        return False

    def matches(self, rule: Any, flow: Flow, own: str) -> bool:
        if rule.ip_version is not None and rule.ip_version != flow.version:
            return False
        if rule.protocol is not None and PROTOCOLS.get(rule.protocol, rule.protocol) != flow.protocol:
            return False
        if rule.not_protocol is not None and PROTOCOLS.get(rule.not_protocol, rule.not_protocol) == flow.protocol:
            return False
        real = flow.icmp if flow.protocol == {4: 1, 6: 58}[flow.version] else None
        if rule.icmp is not None and rule.icmp.type is not None and not same_icmp(rule.icmp, real):
            return False
        if rule.not_icmp is not None and rule.not_icmp.type is not None and same_icmp(rule.not_icmp, real):
            return False
        return self.side_matches(rule.source, rule, flow.source, flow.sport, own) and self.side_matches(
            rule.destination, rule, flow.destination, flow.dport, own
        )

    def verdict(self, rule: Any, flow: Flow, own: str) -> str:
        """Allow, Deny, Pass, or "" to go on; a rule about Services is one nobody enforces yet."""
        unsaid = rule.source.services is not None or rule.destination.services is not None
        if not self.matches(rule, flow, own) or rule.action == "Log" or (unsaid and rule.action == "Allow"):
            return ""
        return "Deny" if unsaid else str(rule.action)

    # Policies

    def policies(self, endpoint: Any, direction: str) -> list[tuple[str, float, str, Any, list[Any]]]:
        """Tier, order, tie-breaker, manifest and rules of all that apply."""
        labels, namespace = self.thing(endpoint).labels, endpoint.metadata.namespace
        found = []
        for each in self.of(NetworkPolicy) + self.of(GlobalNetworkPolicy):
            spec = each.spec
            namespaced = type(each) is NetworkPolicy
            if namespaced and each.metadata.namespace != namespace:
                continue
            if not namespaced and (spec.do_not_track or spec.pre_dnat):
                continue
            about = [spec.selector or "all()"]
            if not namespaced and spec.namespace_selector:
                about.append(prefixed(spec.namespace_selector, "pcns."))
            if spec.service_account_selector:
                about.append(prefixed(spec.service_account_selector, "pcsa."))
            if not all(selected(each_about, labels) for each_about in about):
                continue
            types = spec.types or (
                ["Ingress", "Egress"] if spec.ingress and spec.egress else ["Egress"] if spec.egress else ["Ingress"]
            )
            if direction not in types:
                continue
            rules = (spec.ingress if direction == "Ingress" else spec.egress) or []
            tie = f"{each.metadata.name}/{each.metadata.namespace}/{type(each).__name__}"
            order = math.inf if spec.order is None else spec.order
            found.append((spec.tier or "default", order, tie, each, rules))
        return found

    def kubernetes(self, endpoint: Any, direction: str) -> list[tuple[Any, list[Any]]]:
        labels, namespace = self.thing(endpoint).labels, endpoint.metadata.namespace
        found = []
        for each in self.of(KubernetesNetworkPolicy):
            spec = each.spec
            types = spec.policy_types or (["Ingress", "Egress"] if spec.egress else ["Ingress"])
            if each.metadata.namespace == namespace and direction in types and kube_selects(spec.pod_selector, labels):
                found.append((each, (spec.ingress if direction == "Ingress" else spec.egress) or []))
        return found

    def kube_matches(self, rule: Any, flow: Flow, direction: str, namespace: str) -> bool:
        peers = rule.from_ if direction == "Ingress" else rule.to
        address = flow.source if direction == "Ingress" else flow.destination
        pods = [each for each in self.of(WorkloadEndpoint) if f"{address}" in addresses(each)]
        if peers and not any(self.kube_peer(peer, address, pods, namespace) for peer in peers):
            return False
        if not rule.ports:
            return True
        servers = [each for each in self.of(WorkloadEndpoint) if flow.destination in addresses(each)]
        if direction == "Egress":
            servers = [each for each in servers if not peers or self.meant_by(peers, each, namespace)]
        for port in rule.ports:
            if PROTOCOLS[port.protocol or "TCP"] != flow.protocol:
                continue
            if port.port is None:
                return True
            if isinstance(port.port, int):
                if flow.dport is not None and port.port <= flow.dport <= (port.end_port or port.port):
                    return True
            elif any(
                (each.name, PROTOCOLS[each.protocol], each.port) == (port.port, flow.protocol, flow.dport)
                for server in servers
                for each in server.spec.ports
            ):
                return True
        return False

    def meant_by(self, peers: list[Any], pod: Any, namespace: str) -> bool:
        return any(self.kube_peer(peer, address, [pod], namespace) for peer in peers for address in addresses(pod))

    def kube_peer(self, peer: Any, address: str, pods: list[Any], namespace: str) -> bool:
        if peer.ip_block is not None:
            inside = ip_address(address) in ip_network(peer.ip_block.cidr)
            return inside and not any(ip_address(address) in ip_network(net) for net in peer.ip_block.except_)
        for pod in pods:
            if peer.namespace_selector is None:
                near = pod.metadata.namespace == namespace
            else:
                home = self.named(Namespace, pod.metadata.namespace)
                near = kube_selects(peer.namespace_selector, home.metadata.labels if home else {})
            if near and (peer.pod_selector is None or kube_selects(peer.pod_selector, self.thing(pod).labels)):
                return True
        return False

    # The algorithm

    def tier(self, name: str) -> tuple[bool, float, str, str]:
        """Where a tier stands and what its end does."""
        built_in = {"kube-admin": (1e3, "Pass"), "default": (1e6, "Deny"), "kube-baseline": (1e7, "Pass")}
        order, default = built_in.get(name, (math.inf, "Deny"))
        manifest = self.named(Tier, name)
        if manifest is not None:
            order = order if manifest.spec.order is None else manifest.spec.order
            default = manifest.spec.default_action or default
        return manifest is None and name not in built_in, order, name, default

    def answer(self, endpoint: Any, direction: str, flow: Flow) -> Answer:
        """What happens to the flow at one endpoint."""
        applying = self.policies(endpoint, direction)
        for each, rules in self.kubernetes(endpoint, direction):
            tie = f"{each.metadata.name}/{each.metadata.namespace}/KubernetesNetworkPolicy"
            applying.append(("default", 1000.0, tie, each, rules))
        for _, _, tier, default in sorted({self.tier(each[0]) for each in applying}):
            mine = sorted((each for each in applying if each[0] == tier), key=lambda each: (each[1], each[2]))
            verdict, why = self.ask(mine, flow, direction)
            if verdict in ("Allow", "Deny"):
                return Answer(verdict == "Allow", why)
            if not verdict and default == "Deny":
                return Answer(False, f"end of {tier}: {', '.join(each[2] for each in mine)}")
        return self.ask_profiles(endpoint, direction, flow)

    def ask(self, policies: list[Any], flow: Flow, direction: str) -> tuple[str, str]:
        for _, _, tie, policy, rules in policies:
            for place, rule in enumerate(rules):
                if isinstance(policy, KubernetesNetworkPolicy):
                    if self.kube_matches(rule, flow, direction, policy.metadata.namespace):
                        return "Allow", f"{tie} rule {place}"
                elif verdict := self.verdict(rule, flow, policy.metadata.namespace):
                    return verdict, f"{tie} rule {place}"
        return "", ""

    def ask_profiles(self, endpoint: Any, direction: str, flow: Flow) -> Answer:
        for name in endpoint.spec.profiles:
            profile = self.named(Profile, name)
            if profile is None:
                if name == "projectcalico-default-allow" or self.namespace_of(name):
                    return Answer(True, name)
                if self.account_of(name):
                    continue
                return Answer(False, f"no {name}")
            for rule in profile.spec.ingress if direction == "Ingress" else profile.spec.egress:
                verdict = self.verdict(rule, flow, "")
                if verdict:
                    return Answer(verdict == "Allow", name if verdict != "Pass" else "no profile rule")
        return Answer(False, "no profile rule")

    def namespace_of(self, profile: str) -> bool:
        return profile.startswith("kns.") and self.named(Namespace, profile[4:]) is not None

    def account_of(self, profile: str) -> bool:
        parts = profile.split(".", 2)
        return parts[0] == "ksa" and len(parts) == 3 and self.named(ServiceAccount, parts[2], parts[1]) is not None


def same_icmp(wanted: Any, real: tuple[int, int] | None) -> bool:
    return real is not None and real[0] == wanted.type and wanted.code in (None, real[1])


def kube_selects(selector: Any, labels: Mapping[str, str]) -> bool:
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


def addresses(pod: Any) -> list[str]:
    return [net.split("/")[0] for net in pod.spec.ip_networks]
