"""Garbage collection: what nobody uses goes back. Safe by construction; pure.

    listing ──> Holdings ─┬─ unused ── containers, tunnels, handles of nodes that are gone ─┐
    kernel  ──> Live ─────┘                                                                 ├──> candidates
                            idle ──── blocks, affinities, pools at their end ───────────────┘        │
                                                                                                     v
    Collection: subject ── revisions, first seen ── the same revisions, `grace` later? ──────> due ──┤
                                                                                                     │ read all again
    step <── still a candidate at the same revisions ── confirm <────────────────────────────────────┘

1. *Two observations.* A candidate is due when it has been one at an earlier scan, `grace` ago or longer, at the same
   revisions of all that speaks of it, in each scan since. An ADD writes the handle anew each time, so an address that
   was given again in between begins again. Grace is of this process and its steady clock: a restart begins anew.
2. *A live check.* What is due is judged once more on a new listing and a new look into the kernel.
3. *Compare-and-swap.* The step compares with the revisions that the check saw, so whoever is faster wins, another
   collector too. Only of blocks that we have written ourselves since is it the revision that we made (`Written`).
4. *Unknown is in use.* A handle of a form that we do not make, one whose node or container is not known, one that any
   endpoint of any node speaks for, one that an unreadable object may have to do with: never a candidate. A kernel that
   has none of the Node's addresses is not the node's (`Scene.elsewhere`).

An endpoint is a user whatever its node, unless it is ours to judge: of this node, of a container, and its interface is
not in this kernel. So the endpoints of a node that is gone stay until somebody deletes them: nobody can look there, and
a Node that was deleted by mistake must not cost its pods their addresses. (The datastore refuses to delete a Node while
its blocks have pods' addresses.)

Who collects for a node that is gone, or what is nobody's: the nodes are put in an order by a hash of what it is about
and their names. The first one acts after one grace, each next one grace later: no clock of another host is read, and
one that is dead costs a grace. That two act at once is harmless (3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from ipaddress import ip_address, ip_interface
from typing import Final, NewType

from core.addr import Address
from core.names import Key
from core.resources import IPAMBlock, Node
from datastore.ipam.block import give_back, given_to
from datastore.ipam.listing.holders import Held, Holdings
from datastore.ipam.model import Change, Remove, Step, Write

MOST_PATIENCE: Final = 4
"""Graces after which all other nodes act for one that is gone, if those that were to act first are gone too."""

Subject = NewType("Subject", str)
"""What a candidate is about: `container c0ffee`, `block 10.0.0.0/26`."""

Witness = tuple[tuple[Key, int], ...]
"""The objects that speak of a subject, and their revisions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What is alive on this node: the names of all interfaces in its kernel, and their addresses; and containers that
    the CNI agent is working on just now, whose interfaces may be on their way."""

    interfaces: frozenset[str]
    addresses: frozenset[Address] = frozenset()
    busy: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What one scan judges: the store, the kernel, who looks (`node`), and the time of day."""

    holdings: Holdings
    live: Live
    node: str
    now: datetime

    @property
    def elsewhere(self) -> str:
        """Why this kernel may not be the node's, and so says nothing of its pods; "" when it is.

        Two hosts that were given one name, or an agent in the wrong network namespace, would take each other's pods
        for gone.
        """
        found = self.holdings.of(Node).get(Key(Node.KIND, "", self.node))
        if found is None:
            return f"there is no Node {self.node} that can be read"
        addresses = _addresses(found.resource)
        if addresses and not addresses & self.live.addresses:
            listed = ", ".join(sorted(map(str, addresses)))
            return f"Node {self.node} has {listed}, and this host has none of them; is it that node?"
        return ""

    def rank(self, about: str) -> int | None:
        """How many graces this node leaves others the first go at what no node owns; None: it has no say."""
        names = self.holdings.nodes
        if self.node not in names:
            return None
        mine = _weight(about, self.node)
        return min(sum(_weight(about, name) < mine for name in names), MOST_PATIENCE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Something that nobody seems to use. It goes by `step` after `patience` graces (0: as soon as it is seen)."""

    subject: Subject
    why: str
    witness: Witness
    patience: int
    step: Step


@dataclass(frozen=True, slots=True)
class Sighting:
    """Since when (seconds, steady clock) a candidate has been seen in each scan at these revisions."""

    witness: Witness
    since: float


@dataclass(frozen=True, slots=True)
class Collection:
    """The observations of the scans so far."""

    seen: Mapping[Subject, Sighting] = field(default_factory=dict)


def observe(
    before: Collection, candidates: Iterable[Candidate], now: float, grace: float
) -> tuple[Collection, tuple[Candidate, ...]]:
    """The observations with this scan's, and which candidates are due. Times are seconds of one steady clock."""
    seen: dict[Subject, Sighting] = {}
    due: list[Candidate] = []
    for each in candidates:
        last = before.seen.get(each.subject)
        again = last is not None and last.witness == each.witness
        seen[each.subject] = last if last is not None and again else Sighting(each.witness, now)
        if not each.patience or (again and now - seen[each.subject].since >= grace * each.patience):
            due.append(each)
    return Collection(seen), tuple(due)


def confirm(due: Iterable[Candidate], checked: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Of what is due, what a later look finds a candidate at the same revisions; as that look has it."""
    witnessed = {each.subject: each.witness for each in due}
    return tuple(each for each in checked if witnessed.get(each.subject) == each.witness)


class Written:
    """The blocks that one look's steps have written: the next step on the same block goes by them."""

    def __init__(self, seen: Holdings, now: datetime) -> None:
        self._seen, self._now = seen.of(IPAMBlock), now
        self._blocks: dict[Key, Held[IPAMBlock]] = {}

    def rebased(self, step: Step) -> Step:
        """What `step` does, to the blocks as they are now."""
        return replace(step, changes=tuple(map(self._rebased, step.changes)))

    def note(self, step: Step, revision: int) -> None:
        """A rebased step was made, at that revision."""
        for change in step.changes:
            if isinstance(change, Write) and isinstance(change.resource, IPAMBlock):
                self._blocks[change.resource.key] = Held(change.resource, revision)

    def _rebased(self, change: Change) -> Change:
        if not isinstance(change, Write):
            mine = self._blocks.get(change.key)
            return change if mine is None else Remove(change.key, mine.revision)
        wanted, mine = change.resource, self._blocks.get(change.resource.key)
        if mine is None or not isinstance(wanted, IPAMBlock):
            return change
        before, block = self._seen[wanted.key].resource.spec, mine.resource
        for text in sorted(before.allocations.keys() - wanted.spec.allocations.keys()):
            block = give_back(block, ip_address(text), self._now)
        if wanted.spec.affinity != before.affinity:
            block = given_to(block, wanted.spec.owner)
        return Write(block, mine.revision)


def _addresses(node: Node) -> frozenset[Address]:
    """Those that a Node says its interfaces have; one that another machine translates, or a range, says nothing."""
    found = {each.ip for each in (node.spec.bgp.interfaces if node.spec.bgp else ())}
    listed = (ip_interface(each.address) for each in node.spec.addresses if each.type != "ExternalIP")
    return frozenset(found | {each.ip for each in listed if each.network.num_addresses == 1})


def _weight(about: str, node: str) -> bytes:
    return sha256(f"{about}\n{node}".encode()).digest()
