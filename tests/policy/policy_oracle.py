"""Policy by the book: a slow evaluator that walks manifests rule by rule, packet by packet.

Written from Calico's and Kubernetes' descriptions of what their objects mean, sharing no code with `policy`: not the
selectors, not the labels, not the order of things. It is what the compiled tables are held against.

    answer      what one endpoint says of a flow, in one plane and direction
    pending     true: what it would say if the staged policies were in force
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from policy_oracle_labels import Cluster, kube_selects, prefixed, selected
from policy_oracle_rules import Flow, Rules

from core.resources import (
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
    ClusterNetworkPolicy,
    GlobalNetworkPolicy,
    HostEndpoint,
    KubernetesNetworkPolicy,
    Namespace,
    NetworkPolicy,
    Profile,
    Resource,
    ServiceAccount,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
    Tier,
)

__all__ = ["EARLY", "PLANES", "Answer", "Flow", "Oracle"]

PLANES = ("workload", "host", "forward", "preDNAT", "untracked")
EARLY = ("preDNAT", "untracked")

BUILT_IN = {
    "adminnetworkpolicy": (1e3, "Pass"),
    "kube-admin": (1e3, "Pass"),
    "default": (1e6, "Deny"),
    "baselineadminnetworkpolicy": (1e7, "Pass"),
    "kube-baseline": (1e7, "Pass"),
}
STAGED = {
    StagedNetworkPolicy: NetworkPolicy,
    StagedGlobalNetworkPolicy: GlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy: KubernetesNetworkPolicy,
}
KUBERNETES = (KubernetesNetworkPolicy, StagedKubernetesNetworkPolicy)
ADMIN = (AdminNetworkPolicy, BaselineAdminNetworkPolicy, ClusterNetworkPolicy)


@dataclass(frozen=True)
class Answer:
    """`verdict` is Allow, Deny, or Continue where a plane leaves it to the next one."""

    verdict: str
    why: str

    @property
    def allowed(self) -> bool:
        return self.verdict == "Allow"


@dataclass(frozen=True)
class Applying:
    """A policy that is asked: where it stands, what it is called, its rules and what each says of a flow."""

    tier: str
    order: float
    tie: str
    name: str
    rules: list[Any]
    says: Callable[[Any, Flow], str]


class Oracle:
    """All manifests of a cluster, and the question `answer`."""

    def __init__(self, resources: Iterable[Resource]) -> None:
        self.cluster = Cluster(resources)
        self.rules = Rules(self.cluster)
        self._applying: dict[Any, list[Applying]] = {}

    def answer(
        self, endpoint: Any, direction: str, flow: Flow, *, plane: str = "workload", pending: bool = False
    ) -> Answer:
        """What happens to the flow at one endpoint, as far as one plane decides it."""
        applying = self.applying(endpoint, direction, plane, pending=pending)
        if plane == "preDNAT" and direction != "Ingress":
            return Answer("Continue", "")
        for _, _, tier, default in sorted({self.tier(each.tier) for each in applying}):
            mine = sorted((each for each in applying if each.tier == tier), key=lambda each: (each.order, each.tie))
            verdict, why = ask(mine, flow)
            if verdict in ("Allow", "Deny"):
                return Answer(verdict, why)
            if not verdict and default == "Deny" and plane not in EARLY:
                return Answer("Deny", f"end of {tier}: {', '.join(each.name for each in mine)}")
        if plane in EARLY:
            return Answer("Continue", "")
        return Answer("Allow", "") if plane == "forward" else self.profiles(endpoint, direction, flow)

    # Which policies apply

    def applying(self, endpoint: Any, direction: str, plane: str, *, pending: bool) -> list[Applying]:
        asked = (endpoint.key, direction, plane, pending)
        if asked not in self._applying:
            self._applying[asked] = [
                self.seen(each, direction)
                for each in self.cluster.resources
                if self.in_force(each, pending=pending)
                and plane in planes(each)
                and direction in types(each)
                and self.applies(each, endpoint)
            ]
        return self._applying[asked]

    def in_force(self, each: Any, *, pending: bool) -> bool:
        if type(each) in STAGED:
            return pending and each.spec.staged_action == "Set"
        if type(each) not in (*STAGED.values(), *ADMIN):
            return False
        if not pending:
            return True
        return not any(
            STAGED[type(other)] is type(each)
            and other.spec.staged_action in ("Set", "Delete")
            and (other.metadata.namespace, other.metadata.name) == (each.metadata.namespace, each.metadata.name)
            for cls in STAGED
            for other in self.cluster.of(cls)
        )

    def applies(self, each: Any, endpoint: Any) -> bool:
        spec, labels = each.spec, self.cluster.thing(endpoint).labels
        if isinstance(endpoint, HostEndpoint) and type(each) not in (GlobalNetworkPolicy, StagedGlobalNetworkPolicy):
            return False
        if each.metadata.namespace and each.metadata.namespace != endpoint.metadata.namespace:
            return False
        if isinstance(each, KUBERNETES):
            return kube_selects(spec.pod_selector, labels)
        if isinstance(each, ADMIN):
            return self.rules.subject(spec.subject, endpoint)
        about = [spec.selector or "all()"]
        if getattr(spec, "namespace_selector", ""):
            about.append(prefixed(spec.namespace_selector, "pcns."))
        if spec.service_account_selector:
            about.append(prefixed(spec.service_account_selector, "pcsa."))
        return all(selected(each_about, labels) for each_about in about)

    def seen(self, each: Any, direction: str) -> Applying:
        spec, own = each.spec, each.metadata.namespace
        kind = STAGED.get(type(each), type(each)).__name__
        tie = f"{each.metadata.name}/{own}/{kind}"
        name = f"{each.metadata.name}/{own}/{type(each).__name__}"
        rules = (spec.ingress if direction == "Ingress" else spec.egress) or []
        if isinstance(each, KUBERNETES):

            def kubernetes(rule: Any, flow: Flow) -> str:
                return "Allow" if self.rules.kubernetes(rule, flow, direction, own) else ""

            return Applying("default", 1000.0, tie, name, rules, kubernetes)
        if isinstance(each, ADMIN):

            def admin(rule: Any, flow: Flow) -> str:
                action = {"Accept": "Allow"}.get(rule.action, str(rule.action))
                return action if self.rules.admin(rule, flow, direction) else ""

            tier, order = admin_place(each)
            return Applying(tier, order, tie, name, rules, admin)

        def calico(rule: Any, flow: Flow) -> str:
            return "" if rule.action == "Log" or not self.rules.calico(rule, flow, own) else str(rule.action)

        order = math.inf if spec.order is None else spec.order
        return Applying(spec.tier or "default", order, tie, name, rules, calico)

    # The algorithm

    def tier(self, name: str) -> tuple[bool, float, str, str]:
        """Where a tier stands and what its end does."""
        order, default = BUILT_IN.get(name, (math.inf, "Deny"))
        manifest = self.cluster.named(Tier, name)
        if manifest is not None:
            order = order if manifest.spec.order is None else manifest.spec.order
            default = manifest.spec.default_action or default
        return manifest is None and name not in BUILT_IN, order, name, default

    def profiles(self, endpoint: Any, direction: str, flow: Flow) -> Answer:
        for name in endpoint.spec.profiles:
            profile = self.cluster.named(Profile, name)
            if profile is None:
                if name == "projectcalico-default-allow" or self.namespace_of(name):
                    return Answer("Allow", name)
                if self.account_of(name):
                    continue
                return Answer("Deny", f"no {name}")
            for rule in profile.spec.ingress if direction == "Ingress" else profile.spec.egress:
                if rule.action != "Log" and self.rules.calico(rule, flow, ""):
                    return Answer("Deny", "no profile rule") if rule.action == "Pass" else Answer(rule.action, name)
        return Answer("Deny", "no profile rule")

    def namespace_of(self, profile: str) -> bool:
        return profile.startswith("kns.") and self.cluster.named(Namespace, profile[4:]) is not None

    def account_of(self, profile: str) -> bool:
        parts = profile.split(".", 2)
        there = parts[0] == "ksa" and len(parts) == 3
        return there and self.cluster.named(ServiceAccount, parts[2], parts[1]) is not None


def ask(policies: list[Applying], flow: Flow) -> tuple[str, str]:
    for policy in policies:
        for place, rule in enumerate(policy.rules):
            if verdict := policy.says(rule, flow):
                return verdict, f"{policy.name} rule {place}"
    return "", ""


def types(each: Any) -> list[str]:
    """The directions a policy is about."""
    spec = each.spec
    if isinstance(each, ADMIN):
        return [word for word, rules in (("Ingress", spec.ingress), ("Egress", spec.egress)) if rules]
    if isinstance(each, KUBERNETES):
        return list(spec.policy_types or (["Ingress", "Egress"] if spec.egress else ["Ingress"]))
    if spec.types:
        return list(spec.types)
    return ["Ingress", "Egress"] if spec.ingress and spec.egress else ["Egress"] if spec.egress else ["Ingress"]


def planes(each: Any) -> list[str]:
    """Where a policy is asked."""
    if type(each) not in (GlobalNetworkPolicy, StagedGlobalNetworkPolicy):
        return ["workload"]
    if each.spec.do_not_track:
        return ["untracked"]
    if each.spec.pre_dnat:
        return ["preDNAT"]
    return ["workload", "host", *(["forward"] if each.spec.apply_on_forward else [])]


def admin_place(each: Any) -> tuple[str, float]:
    """The tier and the order of an administrator's policy."""
    if isinstance(each, ClusterNetworkPolicy):
        return {"Admin": "kube-admin", "Baseline": "kube-baseline"}[each.spec.tier], each.spec.priority
    if isinstance(each, BaselineAdminNetworkPolicy):
        return "baselineadminnetworkpolicy", 0
    return "adminnetworkpolicy", each.spec.priority
