"""Effective labels: who wins, what cannot be forged, and what namespace and account selectors mean."""

import pytest

from core import labels
from core.resources import (
    GlobalNetworkSet,
    HostEndpoint,
    Metadata,
    Namespace,
    NetworkSet,
    Profile,
    Resource,
    ServiceAccount,
    WorkloadEndpoint,
)
from core.resources.network import HostEndpointSpec, WorkloadEndpointSpec
from core.resources.policy import ProfileSpec
from core.selector import parse
from core.snapshot import Snapshot


def snapshot(*resources: Resource) -> Snapshot:
    return Snapshot().apply(1, [(resource.key, resource) for resource in resources])


def pod(own: dict[str, str], account: str = "", profiles: tuple[str, ...] = ()) -> WorkloadEndpoint:
    return WorkloadEndpoint(
        metadata=Metadata(name="n-k8s-a-eth0", namespace="shop", labels=own),
        spec=WorkloadEndpointSpec(service_account_name=account, profiles=list(profiles), orchestrator="k8s"),
    )


SHOP = Namespace(metadata=Metadata(name="shop", labels={"env": "prod"}))
TILL = ServiceAccount(metadata=Metadata(name="till", namespace="shop", labels={"role": "pay"}))


def test_a_pod_inherits_from_where_it_belongs() -> None:
    assert labels.workload(snapshot(SHOP, TILL), pod({"app": "web"}, "till")) == {
        "app": "web",
        "projectcalico.org/namespace": "shop",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "till",
        "pcns.env": "prod",
        "pcns.kubernetes.io/metadata.name": "shop",
        "pcns.projectcalico.org/name": "shop",
        "pcsa.role": "pay",
        "pcsa.projectcalico.org/name": "till",
    }


def test_names_are_inherited_though_the_objects_are_missing() -> None:
    found = labels.workload(snapshot(), pod({}))
    assert found["pcns.projectcalico.org/name"] == found["pcns.kubernetes.io/metadata.name"] == "shop"
    assert found["pcsa.projectcalico.org/name"] == found["projectcalico.org/serviceaccount"] == "default"


def test_own_labels_win_over_profiles_and_the_first_profile_over_the_second() -> None:
    first = Profile(metadata=Metadata(name="p1"), spec=ProfileSpec(labels_to_apply={"a": "1", "b": "1", "c": "1"}))
    second = Profile(metadata=Metadata(name="p2"), spec=ProfileSpec(labels_to_apply={"b": "2", "d": "2"}))
    found = labels.workload(snapshot(first, second), pod({"a": "own"}, profiles=("p1", "gone", "p2")))
    assert {key: found[key] for key in "abcd"} == {"a": "own", "b": "1", "c": "1", "d": "2"}


def test_a_pod_cannot_claim_another_namespace_or_account() -> None:
    forged = {
        "pcns.env": "prod",
        "pcns.projectcalico.org/name": "kube-system",
        "pcsa.role": "pay",
        "projectcalico.org/namespace": "kube-system",
        "projectcalico.org/serviceaccount": "till",
    }
    found = labels.workload(snapshot(), pod(forged))
    assert "pcns.env" not in found
    assert "pcsa.role" not in found
    assert found["pcns.projectcalico.org/name"] == found["projectcalico.org/namespace"] == "shop"
    assert found["projectcalico.org/serviceaccount"] == "default"


def test_hosts_and_sets() -> None:
    state = snapshot(SHOP)
    of_shop = NetworkSet(metadata=Metadata(name="partners", namespace="shop", labels={"x": "1"}))
    found = labels.network_set(state, of_shop)
    assert (found["x"], found["pcns.env"], found["projectcalico.org/namespace"]) == ("1", "prod", "shop")


def test_hosts_and_sets_cannot_pass_for_pods() -> None:
    forged = {
        "projectcalico.org/namespace": "shop",
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "till",
    }
    claims = Profile(metadata=Metadata(name="p"), spec=ProfileSpec(labels_to_apply=forged))
    state = snapshot(SHOP, claims)
    own = {"x": "1", "pcns.env": "prod", "pcsa.role": "pay", **forged}
    assert labels.network_set(state, GlobalNetworkSet(metadata=Metadata(name="world", labels=own))) == {"x": "1"}
    interface = HostEndpoint(
        metadata=Metadata(name="h", labels=own),
        spec=HostEndpointSpec(node="n", interface_name="eth0", profiles=["p"]),
    )
    assert labels.host(state, interface) == {"x": "1"}
    found = labels.network_set(state, NetworkSet(metadata=Metadata(name="s", namespace="other", labels=own)))
    assert found == {
        "x": "1",
        "projectcalico.org/namespace": "other",
        "pcns.kubernetes.io/metadata.name": "other",
        "pcns.projectcalico.org/name": "other",
    }


@pytest.mark.parametrize(
    ("text", "pod_in_shop", "world"),
    [
        ("env == 'prod'", True, False),
        ("env in {'dev'} || has(env)", True, False),
        ("kubernetes.io/metadata.name == 'shop'", True, False),
        ("projectcalico.org/name == 'shop'", True, False),
        ("all()", True, False),
        ("", True, False),
        ("global()", False, True),
        ("app == 'web'", False, False),
        ("env != 'dev'", True, True),
    ],
)
def test_namespace_selectors(text: str, pod_in_shop: bool, world: bool) -> None:
    state = snapshot(SHOP)
    selector = labels.in_namespaces(parse(text))
    assert selector.matches(labels.workload(state, pod({"app": "web"}))) is pod_in_shop
    outside = GlobalNetworkSet(metadata=Metadata(name="world", labels={"app": "web"}))
    assert selector.matches(labels.network_set(state, outside)) is world


def test_service_account_selectors() -> None:
    state = snapshot(TILL)
    selector = labels.of_service_accounts(parse("role == 'pay' && projectcalico.org/name in {'till'}"))
    assert selector.matches(labels.workload(state, pod({}, "till")))
    assert not selector.matches(labels.workload(state, pod({}, "other")))
    assert labels.of_service_accounts(parse("all()")).matches(labels.workload(state, pod({})))
