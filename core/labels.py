"""Which labels a thing has in effect, and selectors of namespaces and service accounts told in those labels.

A policy asks one set of labels for everything, so what an endpoint belongs to is written into its labels:

    projectcalico.org/namespace, /orchestrator, /serviceaccount    what it is        nobody can write these
    its own labels                                                 the pod's author
    labelsToApply of its profiles, the first listed winning        an administrator
    pcns.KEY    labels of its namespace, and pcns.projectcalico.org/name
    pcsa.KEY    labels of its service account, and pcsa.projectcalico.org/name

Own labels win over inherited ones, with one exception: an own label of the first kind, or under `pcns.` or `pcsa.`, is
not taken, or whoever may label a pod or a network set could give it any namespace's identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from core.names import Key
from core.resources import (
    GlobalNetworkSet,
    HostEndpoint,
    Namespace,
    NetworkSet,
    Profile,
    ServiceAccount,
    WorkloadEndpoint,
)
from core.selector import All, Compare, Global, Has, In, Node, Not, Selector, rewrite
from core.snapshot import Snapshot

NAMESPACE: Final = "projectcalico.org/namespace"
ORCHESTRATOR: Final = "projectcalico.org/orchestrator"
SERVICE_ACCOUNT: Final = "projectcalico.org/serviceaccount"

GIVEN: Final = frozenset({NAMESPACE, ORCHESTRATOR, SERVICE_ACCOUNT})
"""What a thing is. Nobody can write these: not on the thing, and not for hosts by a profile."""

NAMESPACE_PREFIX: Final = "pcns."
SERVICE_ACCOUNT_PREFIX: Final = "pcsa."
NAME: Final = "projectcalico.org/name"
"""After a prefix: the name of the namespace or service account itself."""

KUBERNETES_NAME: Final = "kubernetes.io/metadata.name"
"""The label Kubernetes puts on every namespace; added here where a manifest lacks it."""

DEFAULT_SERVICE_ACCOUNT: Final = "default"

RESERVED: Final = (NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX)

Labelled: TypeAlias = WorkloadEndpoint | HostEndpoint | NetworkSet | GlobalNetworkSet
"""What has labels and addresses."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Label keys of a thing that nobody can tell, since an object they come from cannot be read.

    Those under `prefixes` and, with `rest`, all that lie under no reserved prefix; never those in `known`.
    """

    prefixes: tuple[str, ...] = ()
    rest: bool = False
    known: frozenset[str] = GIVEN

    def __contains__(self, key: str) -> bool:
        if key in self.known:
            return False
        return key.startswith(self.prefixes) if key.startswith(RESERVED) else self.rest


def workload(snapshot: Snapshot, endpoint: WorkloadEndpoint) -> Mapping[str, str]:
    """The labels of a pod. A pod without a service account has its namespace's `default`, as in Kubernetes."""
    return {**inherited(snapshot, endpoint), **own(endpoint.metadata.labels)}


def host(snapshot: Snapshot, endpoint: HostEndpoint) -> Mapping[str, str]:
    """The labels of a host's interface: its own and its profiles'; it has no namespace."""
    return {**inherited(snapshot, endpoint), **own(endpoint.metadata.labels)}


def network_set(snapshot: Snapshot, given: NetworkSet | GlobalNetworkSet) -> Mapping[str, str]:
    """The labels of a set's addresses: its own, and its namespace's when it has one."""
    return {**inherited(snapshot, given), **own(given.metadata.labels)}


def inherited(snapshot: Snapshot, thing: Labelled) -> dict[str, str]:
    """All labels of a thing but its `own`, which win. Equal for things of equal `source`."""
    namespace = thing.metadata.namespace
    if isinstance(thing, WorkloadEndpoint):
        account = thing.spec.service_account_name or DEFAULT_SERVICE_ACCOUNT
        return {
            **of_service_account(snapshot.get(ServiceAccount, account, namespace), account),
            **of_namespace(snapshot.get(Namespace, namespace), namespace),
            **of_profiles(snapshot, thing.spec.profiles),
            NAMESPACE: namespace,
            ORCHESTRATOR: thing.spec.orchestrator or "k8s",
            SERVICE_ACCOUNT: account,
        }
    if isinstance(thing, HostEndpoint):
        return {key: value for key, value in of_profiles(snapshot, thing.spec.profiles).items() if key not in GIVEN}
    if isinstance(thing, GlobalNetworkSet):
        return {}
    return {**of_namespace(snapshot.get(Namespace, namespace), namespace), NAMESPACE: namespace}


def source(thing: Labelled) -> tuple[str, ...]:
    """Where a thing's inherited labels come from: kind, namespace, service account, orchestrator, profiles."""
    if isinstance(thing, WorkloadEndpoint):
        account = thing.spec.service_account_name or DEFAULT_SERVICE_ACCOUNT
        return (thing.KIND.name, thing.metadata.namespace, account, thing.spec.orchestrator, *thing.spec.profiles)
    if isinstance(thing, HostEndpoint):
        return (thing.KIND.name, "", "", "", *thing.spec.profiles)
    return (thing.KIND.name, thing.metadata.namespace if isinstance(thing, NetworkSet) else "", "", "")


def unknown(snapshot: Snapshot, thing: Labelled) -> Unknown | None:
    """The labels of a thing that nobody can tell; None when all are known."""
    problems = snapshot.problems
    namespace = thing.metadata.namespace
    if isinstance(thing, WorkloadEndpoint | HostEndpoint) and any(
        Key(Profile.KIND, "", name) in problems for name in thing.spec.profiles
    ):
        return Unknown(RESERVED, rest=True, known=GIVEN.union(own(thing.metadata.labels)))
    prefixes = []
    if namespace and Key(Namespace.KIND, "", namespace) in problems:
        prefixes.append(NAMESPACE_PREFIX)
    if isinstance(thing, WorkloadEndpoint):
        account = thing.spec.service_account_name or DEFAULT_SERVICE_ACCOUNT
        if Key(ServiceAccount.KIND, namespace, account) in problems:
            prefixes.append(SERVICE_ACCOUNT_PREFIX)
    return (
        Unknown(tuple(prefixes), known=GIVEN | {NAMESPACE_PREFIX + NAME, SERVICE_ACCOUNT_PREFIX + NAME})
        if prefixes
        else None
    )


def of_unreadable(snapshot: Snapshot, key: Key) -> tuple[Mapping[str, str], Unknown]:
    """What is known of the labels of an endpoint or network set that cannot be read itself, and what is not."""
    given = {NAMESPACE: key.namespace} if key.namespace else {}
    if key.kind == WorkloadEndpoint.KIND:
        return given, Unknown(RESERVED, rest=True, known=frozenset({NAMESPACE}))
    if key.kind == HostEndpoint.KIND:
        return given, Unknown(RESERVED, rest=True)
    namespace = Key(Namespace.KIND, "", key.namespace)
    inherited = of_namespace(snapshot.get(Namespace, key.namespace), key.namespace) if key.namespace else {}
    prefixes = (NAMESPACE_PREFIX,) if key.namespace and namespace in snapshot.problems else ()
    return inherited | given, Unknown(prefixes, rest=True, known=GIVEN | {NAMESPACE_PREFIX + NAME})


def of_namespace(namespace: Namespace | None, name: str) -> dict[str, str]:
    """What is inherited from a namespace; its name even when the object is not there."""
    labels = namespace_itself(namespace.metadata.labels if namespace else {}, name)
    return {f"{NAMESPACE_PREFIX}{key}": value for key, value in labels.items()}


def namespace_itself(labels: Mapping[str, str], name: str) -> dict[str, str]:
    """The labels by which a namespace itself is selected: those of its manifest, and its name."""
    return {KUBERNETES_NAME: name, **labels, NAME: name}


def of_service_account(account: ServiceAccount | None, name: str) -> dict[str, str]:
    """What is inherited from a service account; its name even when the object is not there."""
    labels = account.metadata.labels if account else {}
    inherited = {f"{SERVICE_ACCOUNT_PREFIX}{key}": value for key, value in labels.items()}
    return inherited | {SERVICE_ACCOUNT_PREFIX + NAME: name}


def of_profiles(snapshot: Snapshot, names: list[str]) -> dict[str, str]:
    """What is inherited from profiles that exist; the first listed wins."""
    labels: dict[str, str] = {}
    for name in reversed(names):
        profile = snapshot.get(Profile, name)
        if profile is not None:
            labels.update(profile.spec.labels_to_apply)
    return labels


def in_namespaces(selector: Selector) -> Selector:
    """A namespaceSelector, told in the labels of things: tests become `pcns.` ones, as Calico does it.

    `all()` is everything that lies in a namespace, `global()` everything that does not.
    """
    return rewrite(selector, lambda node: _under(NAMESPACE_PREFIX, node))


def of_service_accounts(selector: Selector) -> Selector:
    """A serviceAccountSelector, told in the labels of pods: tests become `pcsa.` ones; `all()`: has an account."""
    return rewrite(selector, lambda node: _under(SERVICE_ACCOUNT_PREFIX, node))


def _under(prefix: str, node: Node) -> Node:
    match node:
        case All():
            return Has(prefix + NAME)
        case Global():
            return Not(Has(NAMESPACE))
        case Has(label):
            return Has(prefix + label)
        case Compare(label, operator, value):
            return Compare(prefix + label, operator, value)
        case In(label, values, negated):
            return In(prefix + label, values, negated)
    return node


def own(labels: Mapping[str, str]) -> Mapping[str, str]:
    """What a thing may say of itself: neither what it is nor where it belongs."""
    if not any(key in GIVEN or key.startswith(RESERVED) for key in labels):
        return labels
    return {key: value for key, value in labels.items() if key not in GIVEN and not key.startswith(RESERVED)}
