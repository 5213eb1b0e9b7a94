"""What a set of manifests changes in the datastore: pure, so that `apply` is one read, this, and one transaction.

    manifests ──┐
                ├── plan ──> outcomes (created, configured, unchanged) and operations that compare on revision
    entries ────┘

`uid` and `creationTimestamp` belong to the datastore: they are given once, on creation, and kept from then on,
whatever a manifest says. `resourceVersion` is the revision of an object's last change; a manifest that carries
one (because it came from `get -o yaml`) applies only to exactly that revision. What agents write into an object (a
node's tunnel address) stays when a manifest does not speak of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypeVar
from uuid import uuid4

from msgspec.structs import replace

from core.errors import Conflict, Invalid, Problem
from core.manifest import encode
from core.names import Key
from core.resources import CalicoNodeStatus, Metadata, Node, Resource, Service
from datastore.api import ABSENT

R = TypeVar("R", bound=Resource)

OURS: Final = "muslin.io/"
"""Annotations that begin so are muslin's, and stay when a manifest leaves them out."""


class Verb(StrEnum):
    """How manifests meet what is there."""

    APPLY = "apply"  # create or change
    CREATE = "create"  # must not exist
    REPLACE = "replace"  # must exist


class Outcome(StrEnum):
    """What became of one object, in kubectl's words."""

    CREATED = "created"
    CONFIGURED = "configured"
    UNCHANGED = "unchanged"
    DELETED = "deleted"
    TERMINATING = "terminating"  # deleted, and there until nobody uses it


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as the datastore has it, and the revision of its last change."""

    resource: Resource
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """One object's future: the resource to write (with its server-owned metadata) if its revision is `compare`."""

    key: Key
    outcome: Outcome
    resource: Resource
    compare: int


def plan(
    verb: Verb, wanted: Sequence[Resource], stored: Mapping[Key, Stored], revisions: Mapping[Key, int], now: datetime
) -> list[Change]:
    """One Change per wanted object, in their order. Raises `Conflict` or `Invalid` when `verb` forbids one.

    `revisions` has every object that is there, `stored` those that can be read; one that cannot is written over.
    """
    _refuse_twins(wanted)
    _refuse_existence(verb, wanted, revisions)
    if verb is not Verb.CREATE:
        for resource in wanted:
            _refuse_stale(resource, revisions.get(resource.key))
    return [
        _change(resource, stored.get(resource.key), revisions.get(resource.key, ABSENT), now) for resource in wanted
    ]


def _change(wanted: Resource, before: Stored | None, revision: int, now: datetime) -> Change:
    key = wanted.key
    if before is None:
        stamp = now.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        outcome = Outcome.CREATED if revision == ABSENT else Outcome.CONFIGURED
        return Change(key, outcome, _owned(wanted, uid=str(uuid4()), created=stamp), revision)
    kept = before.resource.metadata
    after = _with_what_agents_wrote(_owned(wanted, uid=kept.uid, created=kept.creation_timestamp), before.resource)
    same = encode(after) == encode(before.resource)
    return Change(key, Outcome.UNCHANGED if same else Outcome.CONFIGURED, after, revision)


def _refuse_stale(wanted: Resource, revision: int | None) -> None:
    asked = wanted.metadata.resource_version
    if asked and asked != str(revision):
        raise Conflict(str(wanted.key), int(asked) if asked.isdecimal() else None, revision)


def _owned(resource: R, uid: str, created: str | None) -> R:
    """The resource with what the datastore says of it, and without what another server once said."""
    metadata = Metadata(
        name=resource.metadata.name,
        namespace=resource.metadata.namespace,
        labels=resource.metadata.labels,
        annotations=resource.metadata.annotations,
        finalizers=resource.metadata.finalizers,
        owner_references=resource.metadata.owner_references,
        uid=uid,
        creation_timestamp=created,
    )
    return replace(resource, metadata=metadata)


def _with_what_agents_wrote(after: Resource, before: Resource) -> Resource:
    """Keep what agents and `muslin` itself have put into an object and a person's manifest leaves out.

    That is a node's tunnel address and that it is drained, its answer to a CalicoNodeStatus that asks the same as
    before, which addresses a Service's load balancer has, and annotations under `muslin.io/`.
    """
    ours = {name: text for name, text in before.metadata.annotations.items() if name.startswith(OURS)}
    if ours.keys() - after.metadata.annotations.keys():
        metadata = replace(after.metadata, annotations=ours | dict(after.metadata.annotations))
        after = replace(after, metadata=metadata)
    if isinstance(after, Service) and isinstance(before, Service) and after.status is None:
        return replace(after, status=before.status)
    if isinstance(after, CalicoNodeStatus) and isinstance(before, CalicoNodeStatus):
        answered = after.status is None and after.spec == before.spec
        return replace(after, status=before.status) if answered else after
    if not isinstance(after, Node) or not isinstance(before, Node):
        return after
    had, has = before.spec.bgp, after.spec.bgp
    if had is None or has is None:
        return after
    bgp = replace(
        has,
        ipv4_ipip_tunnel_addr=has.ipv4_ipip_tunnel_addr or had.ipv4_ipip_tunnel_addr,
        maintenance=has.maintenance or had.maintenance,
    )
    return replace(after, spec=replace(after.spec, bgp=bgp))


def _refuse_twins(wanted: Sequence[Resource]) -> None:
    twins = [key for key, times in Counter(resource.key for resource in wanted).items() if times > 1]
    if twins:
        raise Invalid([Problem(why="is given more than once", what=str(key)) for key in twins])


def _refuse_existence(verb: Verb, wanted: Sequence[Resource], revisions: Mapping[Key, int]) -> None:
    if verb is Verb.CREATE:
        there = [str(resource.key) for resource in wanted if resource.key in revisions]
        if there:
            raise Invalid([Problem(why="exists already; use apply or replace to change it", what=it) for it in there])
    if verb is Verb.REPLACE:
        absent = [str(resource.key) for resource in wanted if resource.key not in revisions]
        if absent:
            raise Invalid([Problem(why="does not exist; use apply or create", what=it) for it in absent])
