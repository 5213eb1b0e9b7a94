"""Rules for CalicoNodeStatus."""

from __future__ import annotations

from collections.abc import Iterator

from core import values
from core.errors import Problem
from core.resources import CalicoNodeStatus
from core.resources.node_status import CLASSES, LONGEST_PERIOD_S
from core.validate.checks import name, once, one_of, when_set, within


def node_status(given: CalicoNodeStatus) -> Iterator[Problem]:
    """A CalicoNodeStatus: what is asked. The answer is a node's own."""
    spec = given.spec
    if not spec.node:
        yield Problem(path="spec.node", why="is required: the node that is asked")
    yield from when_set("spec.node", spec.node, name)
    for index, each in enumerate(spec.classes):
        yield from one_of(f"spec.classes[{index}]", each or "''", CLASSES)
    yield from once("spec.classes", spec.classes)
    yield from within("spec.updatePeriodSeconds", spec.update_period_seconds, 0, LONGEST_PERIOD_S)
    yield from when_set("spec.prefix", spec.prefix, values.network_or_address)
