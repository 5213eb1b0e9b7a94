"""Staged policies: what a policy would do, told and never done.

A staged policy has the name of the policy it stands for: of the same namespace, and of the kind without `Staged`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from core.names import Kind
from core.resources.base import Resource, calico
from core.resources.policy import GlobalNetworkPolicySpec, KubernetesNetworkPolicySpec, NetworkPolicySpec


class StagedAction(StrEnum):
    """What is staged: that a policy is Set (added, or put in place of the one there is), or that it is Deleted.

    Learn and Ignore ask for nothing: such a policy is kept, and not evaluated.
    """

    SET = "Set"
    DELETE = "Delete"
    LEARN = "Learn"
    IGNORE = "Ignore"


class StagedNetworkPolicySpec(NetworkPolicySpec, frozen=True, kw_only=True):
    """As NetworkPolicy; with Delete, nothing but the tier."""

    staged_action: StagedAction = StagedAction.SET


class StagedGlobalNetworkPolicySpec(GlobalNetworkPolicySpec, frozen=True, kw_only=True):
    """As GlobalNetworkPolicy; with Delete, nothing but the tier."""

    staged_action: StagedAction = StagedAction.SET


class StagedKubernetesNetworkPolicySpec(KubernetesNetworkPolicySpec, frozen=True, kw_only=True):
    """As Kubernetes' NetworkPolicy; with Delete, nothing."""

    staged_action: StagedAction = StagedAction.SET


class StagedNetworkPolicy(Resource, frozen=True, kw_only=True):
    """A NetworkPolicy of Calico's, staged."""

    KIND: ClassVar[Kind] = calico("stagednetworkpolicies", "StagedNetworkPolicy", namespaced=True)
    spec: StagedNetworkPolicySpec


class StagedGlobalNetworkPolicy(Resource, frozen=True, kw_only=True):
    """A GlobalNetworkPolicy, staged."""

    KIND: ClassVar[Kind] = calico("stagedglobalnetworkpolicies", "StagedGlobalNetworkPolicy")
    spec: StagedGlobalNetworkPolicySpec


class StagedKubernetesNetworkPolicy(Resource, frozen=True, kw_only=True):
    """A NetworkPolicy of Kubernetes', staged."""

    KIND: ClassVar[Kind] = calico("stagedkubernetesnetworkpolicies", "StagedKubernetesNetworkPolicy", namespaced=True)
    spec: StagedKubernetesNetworkPolicySpec
