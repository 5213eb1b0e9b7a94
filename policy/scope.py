"""Whom a policy applies to, and whom one side of a rule means, each as a single selector over effective labels."""

from __future__ import annotations

from core.labels import NAME, NAMESPACE, SERVICE_ACCOUNT_PREFIX, in_namespaces, of_service_accounts
from core.resources.policy import EntityRule
from core.selector import Compare, In, Selector, conjunction, parse


def endpoint_selector(
    text: str, namespace: str, *, namespace_selector: str = "", service_account_selector: str = ""
) -> Selector:
    """The endpoints a policy of `namespace` ("": of the cluster) applies to. Raises SelectorError."""
    terms = [_lies_in(namespace)] if namespace else []
    if namespace_selector:
        terms.append(in_namespaces(parse(namespace_selector)))
    terms.append(parse(text))
    if service_account_selector:
        terms.append(of_service_accounts(parse(service_account_selector)))
    return conjunction(terms)


def rule_selector(entity: EntityRule, namespace: str) -> Selector | None:
    """What one side of a rule says about labels, less its notSelector; None when it says nothing. Raises SelectorError.

    Without a namespaceSelector, a rule of a namespaced policy means its own namespace, with a notSelector too.
    """
    accounts = entity.service_accounts
    of_labels = entity.selector or entity.namespace_selector or accounts is not None
    if not of_labels and not (namespace and entity.not_selector):
        return None
    terms: list[Selector] = []
    if entity.namespace_selector:
        terms.append(in_namespaces(parse(entity.namespace_selector)))
    elif namespace:
        terms.append(_lies_in(namespace))
    terms.append(parse(entity.selector))
    if accounts is not None and accounts.names:
        terms.append(Selector(In(SERVICE_ACCOUNT_PREFIX + NAME, frozenset(accounts.names))))
    if accounts is not None and accounts.selector:
        terms.append(of_service_accounts(parse(accounts.selector)))
    return conjunction(terms)


def _lies_in(namespace: str) -> Selector:
    return Selector(Compare(NAMESPACE, "==", namespace))
