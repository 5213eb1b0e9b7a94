"""Which of the questions in force each address answers: marks, kept up to date where something changed.

    readings of selectors ── Group.marks ──┐
                                           ├──> Cell: addresses of one family with the same marks and named ports
    lists of nets ── flattened ranges ─────┘

A *mark* is one reading of a selector, or one list of nets of a rule. Nets that overlap are flattened into disjoint
ranges that carry the marks of every net around them. What carries no mark is world.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

from core.addr import Family, Network
from core.selector import Selector
from policy.entities import Placement
from policy.identity import NO_CLASS, NamedPort, Signature
from policy.index import NO_MARKS, Group, Marks, readings
from policy.model import Peer, Range
from policy.place import BEYOND_V4, Place, family_of, number_of

Numbers: TypeAlias = frozenset[tuple[str, int]]
"""Numbers of named ports, by the text of what asks for them."""

NO_NUMBERS: Final[Numbers] = frozenset()
NEVER: Final = 0
"""A mark that nothing carries."""


@dataclass(eq=False, slots=True)
class Cell:
    """Addresses of one family that carry the same marks and named ports: `size` of them, or of ranges of them."""

    family: Family
    marks: Marks
    ports: Numbers
    size: int = 0
    signature: Signature | None = None
    number: int = NO_CLASS


@dataclass(slots=True)
class _Nets:
    mark: int
    uses: int = 0


class Marking:
    """Marks for the peers and named ports in use, on everything that lives in `placement`.

    With `in_doubt` the two readings of a selector are two; otherwise they are one (`policy.doubt`).
    """

    def __init__(self, placement: Placement, *, in_doubt: bool) -> None:
        self.at: dict[Place, Cell] = {}
        self.cells: dict[tuple[Family, Marks, Numbers], Cell] = {}
        self.ranges: dict[Family, list[tuple[Range, Cell]]] = {family: [] for family in Family}
        self.fresh: set[Cell] = set()
        self.world = {family: self._cell(family, NO_MARKS, NO_NUMBERS) for family in Family}
        self._placement, self._index, self._in_doubt = placement, placement.index, in_doubt
        self._nets: dict[tuple[Network, ...], _Nets] = {}
        self._next = NEVER
        self._flat: dict[Family, list[tuple[Range, Marks]]] = {family: [] for family in Family}
        self._starts: dict[Family, list[int]] = {family: [] for family in Family}
        self._nets_changed = True
        self._named: dict[str, NamedPort] = {}
        self._renamed = False
        self._told: dict[tuple[Marks, object], Numbers] = {}
        self._joined: dict[tuple[Marks, ...], Marks] = {}
        self._places: list[Place] | None = None
        self._all = True

    # What is asked

    def use(self, peer: Peer) -> None:
        """Mark what `peer` asks about."""
        for selector, possibly in self._readings(peer):
            self._index.use(selector, possibly=possibly)
        for nets in filter(None, (peer.nets, peer.not_nets)):
            found = self._nets.get(nets)
            if found is None:
                self._next -= 1
                self._nets_changed = True
                found = self._nets[nets] = _Nets(self._next)
            found.uses += 1

    def drop(self, peer: Peer) -> None:
        """Undo one `use`."""
        for selector, possibly in self._readings(peer):
            self._index.drop(selector, possibly=possibly)
        for nets in filter(None, (peer.nets, peer.not_nets)):
            self._nets[nets].uses -= 1
            if not self._nets[nets].uses:
                del self._nets[nets]
                self._nets_changed = True

    def use_port(self, port: NamedPort) -> None:
        """Note which number each address has for `port`."""
        if port.selector is not None:
            self._index.use(port.selector)
        self._named[port.text] = port
        self._renamed = True

    def drop_port(self, port: NamedPort) -> None:
        """Undo `use_port`."""
        if port.selector is not None:
            self._index.drop(port.selector)
        del self._named[port.text]
        self._renamed = True

    def _readings(self, peer: Peer) -> list[tuple[Selector, bool]]:
        both = ((peer.selector, peer.possibly), (peer.not_selector, not peer.possibly))
        return [(selector, possibly and self._in_doubt) for selector, possibly in both if selector is not None]

    # What is answered

    def holds(self, peer: Peer, marks: Marks) -> bool:
        """Whether an address with these marks is one that `peer` means."""
        if peer.selector is not None and self._mark(peer.selector, possibly=peer.possibly) not in marks:
            return False
        if peer.not_selector is not None and self._mark(peer.not_selector, possibly=not peer.possibly) in marks:
            return False
        if peer.nets is not None and (not peer.nets or self._nets[peer.nets].mark not in marks):
            return False
        return not peer.not_nets or self._nets[peer.not_nets].mark not in marks

    def anchor(self, peer: Peer) -> int | None:
        """A mark that must be there for `peer` to hold; None when it can hold without any."""
        if peer.selector is not None:
            return self._mark(peer.selector, possibly=peer.possibly)
        if peer.nets is None:
            return None
        return self._nets[peer.nets].mark if peer.nets else NEVER

    def _mark(self, selector: Selector, *, possibly: bool) -> int:
        return self._index.mark(selector, possibly=possibly and self._in_doubt)

    def told_of(self, group: Group) -> Numbers:
        """The same of a group of another index, as far as labels tell."""
        return frozenset(
            (port.text, number)
            for port in self._named.values()
            for name, protocol, number in group.ports
            if (name, protocol) == (port.name, port.protocol)
            and (port.selector is None or readings(port.selector, group.labels, group.unknown)[0])
        )

    def told(self, group: Group) -> Numbers:
        """The numbers of the named ports that somebody asks for, of what is in `group`."""
        if not (self._named and group.ports and group.sure):
            return NO_NUMBERS
        found = self._told.get((group.marks, group.ports))
        if found is None:
            found = self._told[group.marks, group.ports] = frozenset(
                (port.text, number)
                for port in self._named.values()
                for name, protocol, number in group.ports
                if (name, protocol) == (port.name, port.protocol)
                and (port.selector is None or self._index.mark(port.selector) in group.marks)
            )
        return found

    def within(self, net: Network) -> list[tuple[Range, Marks]]:
        """The marks on a whole prefix, in disjoint ranges that cover it."""
        family, base = Family(net.version), 0 if net.version == 4 else BEYOND_V4
        first, last = int(net.network_address), int(net.broadcast_address)
        if first == last:
            cell = self.at.get(first + base)
            return [((first, last), cell.marks if cell else self._around(family, first))]
        cuts = {first, last + 1}
        for (low, high), _ in self._flat[family]:
            cuts.update(edge for edge in (low, high + 1) if first < edge <= last)
        for place in self.between(first + base, last + base):
            cuts.update((place - base, place - base + 1))
        found = []
        for low, end in pairwise(sorted(cuts)):
            cell = self.at.get(low + base)
            found.append(((low, end - 1), cell.marks if cell else self._around(family, low)))
        return found

    def _around(self, family: Family, number: int) -> Marks:
        at = bisect_right(self._starts[family], number) - 1
        if at >= 0:
            span, marks = self._flat[family][at]
            if span[1] >= number:
                return marks
        return NO_MARKS

    def between(self, first: Place, last: Place) -> Sequence[Place]:
        """The addresses that things have, from one to another, in order."""
        if self._places is None:
            self._places = sorted(self.at)
        return self._places[bisect_left(self._places, first) : bisect_right(self._places, last)]

    # What changed

    def refresh(self) -> set[Place]:
        """Bring cells up to date; the addresses that are in another one, or in none, now. New cells are in `fresh`."""
        placement = self._placement
        touched = self._retouched()
        moved = set(placement.placed) if self._all else set(placement.moved)
        if placement.nets_moved or self._nets_changed or any(group in touched for group, _ in placement.nets.values()):
            for family, spans in self._flatten().items():
                base = 0 if family is Family.V4 else BEYOND_V4
                for first, last in spans:
                    moved.update(self.between(first + base, last + base))
        if touched and not self._all:
            moved.update(
                place
                for place, groups in placement.placed.items()
                if groups[0] in touched or (len(groups) > 1 and not touched.isdisjoint(groups))
            )
        self._all = self._nets_changed = self._renamed = False
        placement.settle()
        if len(self._joined) > 4 * len(self.cells) + 1000:
            self._joined.clear()
        return {place for place in moved if self._move(place)}

    def _retouched(self) -> set[Group]:
        touched = set(self._index.touched)
        if self._renamed or len(self._told) > 4 * len(self._index.groups) + 1000:
            self._told.clear()
        if self._renamed:
            touched.update(group for group in self._index.groups if group.ports)
        return touched

    def _move(self, place: Place) -> bool:
        before = self.at.get(place)
        groups = self._placement.placed.get(place)
        if groups is None:
            if before is None:
                return False
            del self.at[place]
            self._places = None
            before.size -= 1
            return True
        family = family_of(place)
        around = self._around(family, number_of(place)) if self._flat[family] else NO_MARKS
        now = self._cell(family, self._join(groups, around), self._numbers(groups))
        if now is before:
            return False
        now.size += 1
        if before is None:
            self._places = None
        else:
            before.size -= 1
        self.at[place] = now
        return True

    def _join(self, groups: tuple[Group, ...], around: Marks) -> Marks:
        if not around and len(groups) == 1:
            return groups[0].marks
        parts = (*(group.marks for group in groups), around)
        found = self._joined.get(parts)
        if found is None:
            found = self._joined[parts] = NO_MARKS.union(*parts)
        return found

    def _numbers(self, groups: tuple[Group, ...]) -> Numbers:
        if len(groups) == 1:
            return self.told(groups[0])
        return NO_NUMBERS.union(*map(self.told, groups))

    def _cell(self, family: Family, marks: Marks, ports: Numbers) -> Cell:
        found = self.cells.get((family, marks, ports))
        if found is None:
            found = self.cells[family, marks, ports] = Cell(family, marks, ports)
            self.fresh.add(found)
        return found

    def prune(self) -> list[Cell]:
        """Forget the cells that nothing lies in any more, and return them."""
        kept = set(self.world.values())
        empty = [cell for cell in self.cells.values() if not cell.size and cell not in kept]
        for cell in empty:
            del self.cells[cell.family, cell.marks, cell.ports]
            self.fresh.discard(cell)
        return empty

    def _flatten(self) -> Mapping[Family, Iterable[Range]]:
        """Work out the ranges anew; those that carry other marks now."""
        on_nets: dict[Network, set[int]] = defaultdict(set)
        for group, nets in self._placement.nets.values():
            for net in nets if group.marks else ():
                on_nets[net].update(group.marks)
        for nets, found in self._nets.items():
            for net in nets:
                on_nets[net].add(found.mark)
        changed: dict[Family, Iterable[Range]] = {}
        for family in Family:
            before, now = self._flat[family], flatten(family, on_nets)
            if now == before:
                continue
            changed[family] = [span for span, _ in set(before) ^ set(now)]
            self._flat[family] = now
            self._starts[family] = [span[0] for span, _ in now]
            for _, cell in self.ranges[family]:
                cell.size -= 1
            self.ranges[family] = [(span, self._cell(family, marks, NO_NUMBERS)) for span, marks in now]
            for _, cell in self.ranges[family]:
                cell.size += 1
        return changed


def flatten(family: Family, on_nets: Mapping[Network, set[int]]) -> list[tuple[Range, Marks]]:
    """Overlapping nets as disjoint ranges in order, each with the marks of all the nets around it."""
    starts: dict[int, list[int]] = defaultdict(list)
    ends: dict[int, list[int]] = defaultdict(list)
    for net, marks in on_nets.items():
        if net.version == family:
            starts[int(net.network_address)].extend(marks)
            ends[int(net.broadcast_address) + 1].extend(marks)
    depth: dict[int, int] = {}
    pieces: list[tuple[Range, Marks]] = []
    for here, after in pairwise(sorted({*starts, *ends})):
        for mark in starts.get(here, ()):
            depth[mark] = depth.get(mark, 0) + 1
        for mark in ends.get(here, ()):
            depth[mark] -= 1
            if not depth[mark]:
                del depth[mark]
        if depth:
            pieces.append(((here, after - 1), frozenset(depth)))
    return pieces
