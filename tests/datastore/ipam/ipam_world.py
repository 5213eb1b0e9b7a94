"""A store in a dict, as `datastore/api.py` says, and nodes that see it late: what the model test plays in."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from core.names import Key, Kind
from core.resources import Resource
from datastore.api import ABSENT, Present, Unchanged
from datastore.ipam.books import KINDS, Books
from datastore.ipam.model import Remove, Step, Write


class World:
    """Keys, values, one counter; transactions that compare. `log` is the history, for those who watch."""

    def __init__(self) -> None:
        self.revision = 1
        self.objects: dict[Key, tuple[Resource, int]] = {}
        self.log: list[tuple[int, Key, Resource | None]] = []
        self._last_put: dict[Kind, int] = {}
        self._kinds: dict[Kind, dict[str, Resource]] = {}

    def at(self, key: Key) -> int:
        return self.objects[key][1] if key in self.objects else ABSENT

    def of(self, kind: Kind) -> dict[str, Resource]:
        return self._kinds.setdefault(kind, {})

    def holds(self, step: Step) -> bool:
        """Whether every compare and every guard of a step holds now."""
        for change in step.changes:
            key = change.resource.key if isinstance(change, Write) else change.key
            if self.at(key) != change.if_revision:
                return False
        for guard in step.guards:
            match guard:
                case Present(key, revision) if self.at(key) != revision:
                    return False
                case Unchanged(kind, since) if self._last_put.get(kind, ABSENT) > since:
                    return False
        return True

    def txn(self, step: Step) -> bool:
        """All of a step or nothing."""
        keys = [change.resource.key if isinstance(change, Write) else change.key for change in step.changes]
        assert len(set(keys)) == len(keys)
        if not self.holds(step):
            return False
        self.write(
            *(change.resource for change in step.changes if isinstance(change, Write)),
            gone=[change.key for change in step.changes if isinstance(change, Remove)],
        )
        return True

    def write(self, *resources: Resource, gone: list[Key] | None = None) -> None:
        """What an administrator does: one transaction that compares nothing."""
        self.revision += 1
        for key in set(gone or []) - {resource.key for resource in resources}:
            if self.objects.pop(key, None) is not None:
                del self._kinds[key.kind][key.name]
                self._log(key, None)
        for resource in resources:
            self.objects[resource.key] = (resource, self.revision)
            self.of(resource.KIND)[resource.key.name] = resource
            self._log(resource.key, resource)
            self._last_put[resource.key.kind] = self.revision

    def _log(self, key: Key, resource: Resource | None) -> None:
        if key.kind in KINDS:
            self.log.append((self.revision, key, resource))


@dataclass(slots=True)
class Watcher:
    """One node's books, fed with the history in its order but late; with its own writes at once."""

    name: str
    world: World
    books: Books = field(default_factory=Books)
    seen: dict[Key, int] = field(default_factory=dict)
    position: int = 0

    def catch_up(self, random: Random | None = None) -> None:
        """See the history up to now, or up to some moment before."""
        log = self.world.log
        end = len(log)
        if random is not None:
            end = random.randint(self.position, end)
            while 0 < end < len(log) and log[end - 1][0] == log[end][0]:
                end += 1  # a revision is seen whole
        for revision, key, resource in log[self.position : end]:
            self._see(key, resource, revision)
        if end > self.position:
            self.books.caught_up(self.world.revision if end == len(log) else log[end - 1][0])
        self.position = end

    def carry_out(self, step: Step) -> bool:
        """Make a step, and know of it."""
        if not self.world.txn(step):
            return False
        for change in step.changes:
            if isinstance(change, Write):
                self._see(change.resource.key, change.resource, self.world.revision)
            else:
                self._see(change.key, None, self.world.revision)
        return True

    def _see(self, key: Key, resource: Resource | None, revision: int) -> None:
        if self.seen.get(key, ABSENT) < revision:
            self.seen[key] = revision
            self.books.see(key, resource, revision if resource is not None else ABSENT)
