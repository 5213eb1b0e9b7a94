"""Host endpoints whose policy a change concerns. What they decide is not compared: it depends on nodes' interfaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from core.names import Key
from core.resources import HostEndpoint
from core.resources.policy import Action, Direction
from core.snapshot import Snapshot
from policy.convert import convert
from policy.doubt import Doubt
from policy.model import Match, Plane, Reason
from policy.resolve import Resolver

Said: TypeAlias = tuple[Action, Match | None, Reason]
Steps: TypeAlias = Mapping[tuple[Direction, Plane], tuple[Said, ...]]


def concerned(before: Snapshot, after: Snapshot) -> tuple[Key, ...]:
    """Those that are new, that go, that are others themselves, or to which other rules would apply."""
    was, becomes = _steps(before), _steps(after)
    then, now = before.of(HostEndpoint), after.of(HostEndpoint)
    return tuple(
        sorted(
            key
            for key in was.keys() | becomes.keys()
            if was.get(key) != becomes.get(key) or then[key].spec != now[key].spec
        )
    )


def _steps(snapshot: Snapshot) -> dict[Key, Steps]:
    """The steps of every host endpoint that are in force, in the order asked."""
    hosts = snapshot.of(HostEndpoint)
    if not hosts:
        return {}
    resolver = Resolver(in_doubt=False)
    resolver.follow(snapshot, convert(snapshot, Doubt((), ports=False)), hosts)
    return {
        key: {
            place: tuple((step.action, step.match, step.reason) for step in program.steps if not step.staged)
            for place, program in resolver.programs(key).items()
        }
        for key in hosts
    }
