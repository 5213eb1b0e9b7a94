"""Rules for the settings of controllers."""

from __future__ import annotations

from collections.abc import Iterator

from core.errors import Problem
from core.resources.controllers import ALL_SERVICES, REQUESTED_ONLY, KubeControllersConfiguration
from core.validate.checks import one_of


def configuration(given: KubeControllersConfiguration) -> Iterator[Problem]:
    """A KubeControllersConfiguration."""
    if given.metadata.name != "default":
        why = f"{given.metadata.name!r} is not 'default': a cluster has one, of that name"
        yield Problem(path="metadata.name", why=why)
    balancer = given.spec.controllers.load_balancer
    if balancer is not None:
        path = "spec.controllers.loadBalancer.assignIPs"
        yield from one_of(path, balancer.assign_ips, (ALL_SERVICES, REQUESTED_ONLY))
