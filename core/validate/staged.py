"""Rules for staged policies: those of the policy that each stands for; one that deletes says nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec.structs import fields

from core.errors import Problem
from core.resources import StagedGlobalNetworkPolicy, StagedKubernetesNetworkPolicy, StagedNetworkPolicy
from core.resources.base import Base
from core.resources.policy import LabelSelector
from core.resources.staged import StagedAction
from core.validate import kubernetes, policy
from core.validate.checks import name, when_set

_NOTHING: Final[tuple[object, ...]] = (None, "", [], False, LabelSelector())


def network_policy(given: StagedNetworkPolicy) -> Iterator[Problem]:
    """A StagedNetworkPolicy."""
    if given.spec.staged_action is StagedAction.DELETE:
        yield from _deletes(given.spec)
        yield from when_set("spec.tier", given.spec.tier, name)
    else:
        yield from policy.policy_spec(given.spec)


def global_network_policy(given: StagedGlobalNetworkPolicy) -> Iterator[Problem]:
    """A StagedGlobalNetworkPolicy."""
    if given.spec.staged_action is StagedAction.DELETE:
        yield from _deletes(given.spec)
        yield from when_set("spec.tier", given.spec.tier, name)
    else:
        yield from policy.global_policy_spec(given.spec)


def kubernetes_network_policy(given: StagedKubernetesNetworkPolicy) -> Iterator[Problem]:
    """A StagedKubernetesNetworkPolicy."""
    if given.spec.staged_action is StagedAction.DELETE:
        yield from _deletes(given.spec)
    else:
        yield from kubernetes.policy_spec(given.spec)


def _deletes(spec: Base) -> Iterator[Problem]:
    for field in fields(spec):
        said = getattr(spec, field.name)
        given = isinstance(said, float) or said not in _NOTHING  # an order of 0 is one
        if field.name not in ("tier", "staged_action") and given:
            yield Problem(path=f"spec.{field.encode_name}", why="must be absent with stagedAction Delete")
