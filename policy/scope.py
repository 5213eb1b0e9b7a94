"""Labels things have in effect, and selectors told in terms of them."""

from __future__ import annotations

from collections.abc import Mapping

from core.resources.network import Namespace, ServiceAccount, WorkloadEndpoint
from core.resources.policy import EntityRule, Profile
from core.selector import All, Compare, Global, Has, In, Node, Selector, conjunction, everything, parse, rewrite
from core.snapshot import Snapshot

NAMESPACE = "projectcalico.org/namespace"


def prefixed(text: str, prefix: str) -> Selector:
    def change(node: Node) -> Node:
        if isinstance(node, Has):
            return Has(prefix + node.label)
        if isinstance(node, Compare):
            return Compare(prefix + node.label, node.operator, node.value)
        if isinstance(node, In):
            return In(prefix + node.label, node.values, node.negated)
        return node

    return rewrite(parse(text), change)


def namespaces(text: str) -> Selector:
    root = parse(text).root
    if isinstance(root, Global):
        return parse(f"!has({NAMESPACE})")
    if isinstance(root, All):
        return parse(f"has({NAMESPACE})")
    return parse(f"has({NAMESPACE})") & prefixed(text, "pcns.")


def endpoint_selector(
    text: str, namespace: str, *, namespace_selector: str = "", service_account_selector: str = ""
) -> Selector:
    terms = [parse(f"{NAMESPACE} == '{namespace}'")] if namespace else []
    if namespace_selector:
        terms.append(namespaces(namespace_selector))
    terms.append(parse(text))
    if service_account_selector:
        terms.append(prefixed(service_account_selector, "pcsa."))
    return conjunction(terms)


def rule_selector(entity: EntityRule, namespace: str) -> Selector | None:
    accounts = entity.service_accounts
    if not (entity.selector or entity.namespace_selector or accounts is not None):
        return None
    terms: list[Selector] = []
    if entity.namespace_selector:
        terms.append(namespaces(entity.namespace_selector))
    elif namespace:
        terms.append(parse(f"{NAMESPACE} == '{namespace}'"))
    if entity.selector:
        terms.append(parse(entity.selector))
    if accounts is not None and accounts.names:
        terms.append(Selector(In("pcsa.projectcalico.org/name", frozenset(accounts.names))))
    if accounts is not None and accounts.selector:
        terms.append(prefixed(accounts.selector, "pcsa."))
    return conjunction(terms) if terms else everything()


def inherited(snapshot: Snapshot, namespace: str, account: str) -> dict[str, str]:
    labels = {NAMESPACE: namespace, "pcns.projectcalico.org/name": namespace}
    home = snapshot.get(Namespace, namespace)
    if home is not None:
        labels |= {f"pcns.{key}": value for key, value in home.metadata.labels.items()}
    if account:
        labels |= {"projectcalico.org/serviceaccount": account, "pcsa.projectcalico.org/name": account}
        found = snapshot.get(ServiceAccount, account, namespace)
        if found is not None:
            labels |= {f"pcsa.{key}": value for key, value in found.metadata.labels.items()}
    return labels


def effective(snapshot: Snapshot, endpoint: WorkloadEndpoint) -> Mapping[str, str]:
    spec = endpoint.spec
    labels = inherited(snapshot, endpoint.metadata.namespace, spec.service_account_name)
    labels["projectcalico.org/orchestrator"] = spec.orchestrator
    for name in reversed(spec.profiles):
        profile = snapshot.get(Profile, name)
        if profile is not None:
            labels |= profile.spec.labels_to_apply
    return {**labels, **endpoint.metadata.labels}
