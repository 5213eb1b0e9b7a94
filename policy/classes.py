"""From marks to classes and their numbers, recomputed only for what moved.

    Cell ── the peers that hold for its marks ──> Signature ── hash ──> number ──> Identity: exact, ranges, world

Programs say what they ask (`take`, `give`); `refresh` then brings everything up to date. Its result depends on what is
asked and on what lives where, never on what was before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from core.addr import Family
from policy import identity
from policy.demand import Asked, Counted
from policy.entities import Placement
from policy.identity import NO_CLASS, Bucket, Identity, NamedPort, Signature, bucket_of
from policy.marks import Cell, Marking
from policy.model import Peer, Range
from policy.numbering import Handed
from policy.place import BEYOND_V4, Place, family_of, number_of
from policy.ranges import alike

_EMPTY: Final[Mapping[int, int]] = {}


@dataclass(frozen=True, slots=True)
class Moved:
    """Signatures of classes that came, went or have another number since the last refresh."""

    gone: frozenset[Signature]
    come: frozenset[Signature]

    def __bool__(self) -> bool:
        return bool(self.gone or self.come)


class Classes:
    """The classes of one placement, for one set of questions."""

    def __init__(self, placement: Placement, *, in_doubt: bool) -> None:
        self.marking = Marking(placement, in_doubt=in_doubt)
        self.numbers: Handed[Signature] = Handed(identity.MOST_CLASSES)
        self.identity = Identity()
        self._peers: Counted[Peer] = Counted()
        self._own: Counted[Peer] = Counted()
        self._named: Counted[NamedPort] = Counted()
        self._own_named: Counted[NamedPort] = Counted()
        self._every_name: Counted[NamedPort] = Counted()
        self._anchored: dict[int | None, dict[str, Peer]] = defaultdict(dict)
        self._stirred: set[int | None] = set()
        self._resign = True
        self._signers: dict[Signature, int] = {}
        self._plain: dict[Family, list[tuple[Range, int]]] = {family: [] for family in Family}

    def take(self, asked: Asked) -> None:
        """A program asks this too."""
        for _, peer in self._own.take(asked.own):
            self.marking.use(peer)
        for text, peer in self._peers.take(asked.peers):
            self.marking.use(peer)
            anchor = self.marking.anchor(peer)
            self._anchored[anchor][text] = peer
            self._stirred.add(anchor)
        self._resign |= bool(self._named.take(asked.named))
        self._own_named.take(asked.own_named)
        for names in (asked.named, asked.own_named):
            for _, port in self._every_name.take(names):
                self.marking.use_port(port)

    def give(self, asked: Asked) -> None:
        """A program that asked this is gone."""
        for _, peer in self._own.give(asked.own):
            self.marking.drop(peer)
        for text, peer in self._peers.give(asked.peers):
            anchor = self.marking.anchor(peer)
            del self._anchored[anchor][text]
            self._stirred.add(anchor)
            self.marking.drop(peer)
        self._resign |= bool(self._named.give(asked.named))
        self._own_named.give(asked.own_named)
        for names in (asked.named, asked.own_named):
            for _, port in self._every_name.give(names):
                self.marking.drop_port(port)

    def close(self) -> None:
        """Ask nothing any more."""
        for peer in (*self._own.held.values(), *self._peers.held.values()):
            self.marking.drop(peer)
        for port in self._every_name.held.values():
            self.marking.drop_port(port)

    @property
    def world(self) -> Signature:
        """What IPv4's world is."""
        found = self.marking.world[Family.V4].signature
        assert found is not None  # `refresh` gave it one
        return found

    def refresh(self) -> Moved:
        """Bring `identity` up to date."""
        places = self.marking.refresh()
        gone, come, resigned = self._sign()
        renumbered = self.numbers.change(gone, {signature: signature.digest() for signature in come})
        places |= self._renumber(resigned, renumbered - gone - come)
        world = {int(family): cell.number for family, cell in self.marking.world.items()}
        ranges, unsettled = self._ranges(world)
        self._write(places | unsettled, world, ranges)
        others = renumbered - gone - come
        return Moved(frozenset(gone | others), frozenset(come | others))

    def _sign(self) -> tuple[set[Signature], set[Signature], list[Cell]]:
        """Work out the signatures that may be others: those that no cell has any more, and those that one has now.

        Then the cells that have another one.
        """
        count = _Count(self._signers)
        resigned: list[Cell] = []
        marking, stirred = self.marking, self._stirred
        everything = self._resign or None in stirred
        for cell in list(marking.cells.values() if everything or stirred else marking.fresh):
            if cell.signature is not None and not everything and stirred.isdisjoint(cell.marks):
                continue
            now = self._signature(cell)
            if now != cell.signature:
                count.less(cell.signature)
                count.more(now)
                cell.signature = now
                resigned.append(cell)
        for cell in marking.prune():
            count.less(cell.signature)
        marking.fresh.clear()
        self._stirred, self._resign = set(), False
        for anchor in [anchor for anchor, peers in self._anchored.items() if not peers]:
            del self._anchored[anchor]
        return count.gone, count.come, resigned

    def _signature(self, cell: Cell) -> Signature:
        holds, marks, anchored = self.marking.holds, cell.marks, self._anchored
        held = [
            text
            for mark in (None, *marks)
            if mark in anchored
            for text, peer in anchored[mark].items()
            if holds(peer, marks)
        ]
        ports = frozenset(port for port in cell.ports if port[0] in self._named.held) if cell.ports else cell.ports
        return Signature(int(cell.family), frozenset(held), ports)

    def _renumber(self, resigned: Iterable[Cell], renumbered: set[Signature]) -> set[Place]:
        """Give cells their numbers; the addresses in those that have another one now."""
        cells = list(resigned)
        if renumbered:
            cells += [cell for cell in self.marking.cells.values() if cell.signature in renumbered]
        stale: set[Cell] = set()
        for cell in cells:
            number = self.numbers.of.get(cell.signature, NO_CLASS) if cell.signature is not None else NO_CLASS
            if number != cell.number:
                cell.number = number
                stale.add(cell)
        if not any(cell.size for cell in stale):
            return set()
        return {place for place, cell in self.marking.at.items() if cell in stale}

    def _ranges(self, world: Mapping[int, int]) -> tuple[Mapping[int, Sequence[tuple[Range, int]]], set[Place]]:
        """The ranges' classes, and the addresses around which the class may be another now."""
        found = dict(self.identity.ranges)
        unsettled: set[Place] = set()
        for family, pieces in self.marking.ranges.items():
            before, now = self._plain[family], alike((span, cell.number) for span, cell in pieces)
            other_world = self.identity.world.get(family) != world[family]
            if now == before and not other_world and family in found:
                continue
            self._plain[family] = now
            kept = [(span, number) for span, number in now if number != world[family]]
            found[int(family)] = found[family] if found.get(family) == kept else kept
            base = 0 if family is Family.V4 else BEYOND_V4
            if other_world:
                unsettled.update(place for place in self.marking.at if family_of(place) is family)
            else:
                for (first, last), _ in set(before) ^ set(now):
                    unsettled.update(self.marking.between(first + base, last + base))
        return found, unsettled

    def _write(
        self, places: Iterable[Place], world: Mapping[int, int], ranges: Mapping[int, Sequence[tuple[Range, int]]]
    ) -> None:
        """Write down where the classes of `places` lie."""
        plain = Identity(ranges=ranges, world=world)
        exact, open_ = dict(self.identity.exact), dict[Bucket, dict[int, int]]()
        for place in places:
            family, address = family_of(place), number_of(place)
            name = bucket_of(int(family), address)
            bucket = open_.get(name)
            cell = self.marking.at.get(place)
            held = (exact if bucket is None else open_).get(name, _EMPTY).get(address)
            wanted = None if cell is None or cell.number == plain.around(int(family), address) else cell.number
            if held == wanted:
                continue
            if bucket is None:
                bucket = open_[name] = dict(exact.get(name, _EMPTY))
            if wanted is None:
                del bucket[address]
            else:
                bucket[address] = wanted
        exact.update(open_)
        for name in [name for name, bucket in open_.items() if not bucket]:
            del exact[name]
        self.identity = Identity(
            exact=exact if open_ else self.identity.exact,
            ranges=ranges,
            world=world,
            classes=len(self.numbers.of),
            lost=len(self._signers) - len(self.numbers.of),
        )


class _Count:
    """Counts who has which signature, and notes those that nobody has any more, or that somebody has now."""

    def __init__(self, holders: dict[Signature, int]) -> None:
        self._holders = holders
        self.gone: set[Signature] = set()
        self.come: set[Signature] = set()

    def more(self, signature: Signature) -> None:
        count = self._holders.get(signature, 0)
        self._holders[signature] = count + 1
        if not count:
            (self.gone.discard if signature in self.gone else self.come.add)(signature)

    def less(self, signature: Signature | None) -> None:
        if signature is None:
            return
        self._holders[signature] -= 1
        if not self._holders[signature]:
            del self._holders[signature]
            (self.come.discard if signature in self.come else self.gone.add)(signature)
