"""Small numbers for things, that depend on the set of things alone and change little when it does.

A number comes from a hash. Two things that hash to one number are told apart by the order of their digests: the later
takes the next free one. So one that comes may take over the number of one that is there, and that is done in two steps:

    state     A: 7                A comes first in the order of digests only when B does not
    step 1    A: 8    B: 9123     nobody has 7: a packet that was told 7 a moment ago still means A by it
    step 2    A: 8    B: 7        what depends on the set alone
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Generic, TypeVar

_T = TypeVar("_T")


def numbered(digests: Mapping[_T, bytes], most: int) -> dict[_T, int]:
    """A number from 1 to `most` for each thing, by its digest (at least 8 bytes).

    The same set gives the same numbers, and most survive a change of the set. What finds no number is left out.
    """
    numbers: dict[_T, int] = {}
    taken: set[int] = set()
    for thing, digest in sorted(digests.items(), key=lambda item: item[1]):
        if len(taken) >= most:
            break
        number = int.from_bytes(digest[:8], "big") % most + 1
        while number in taken:
            number = number % most + 1
        taken.add(number)
        numbers[thing] = number
    return numbers


class Numbers(Generic[_T]):
    """The numbers of `numbered`, kept while things come and go.

    A thing takes its number from one whose digest is greater, which moves on to the next: so the numbers do not depend
    on who came first, and what leaves moves only those that stand right behind it.
    """

    def __init__(self, most: int) -> None:
        self.of: dict[_T, int] = {}
        self._most = most
        self._digests: dict[_T, bytes] = {}
        self._there: dict[int, _T] = {}

    def change(self, gone: Iterable[_T], come: Mapping[_T, bytes]) -> set[_T]:
        """Things leave and things come; returns those that have another number now, or none any more or at last."""
        leaving = set(gone)
        before = {thing: self.of.get(thing) for thing in leaving}
        full = max(len(self._digests), len(self._digests) - len(leaving) + len(come)) > self._most
        if full:
            self._forget(leaving)
            self._digests.update(come)
            old, self.of = self.of, numbered(self._digests, self._most)
            self._there = {number: thing for thing, number in self.of.items()}
            return {thing for thing in old.keys() | self.of.keys() if old.get(thing) != self.of.get(thing)}
        for thing in leaving:
            self._leave(thing, leaving, before)
        self._forget(leaving)
        self._digests.update(come)
        for thing in come:
            before.setdefault(thing, None)
            self._enter(thing, before)
        return {thing for thing, number in before.items() if self.of.get(thing) != number}

    def holds(self, number: int) -> bool:
        """Whether it is somebody's."""
        return number in self._there

    def _forget(self, things: Iterable[_T]) -> None:
        for thing in things:
            del self._digests[thing]

    def _enter(self, thing: _T, before: dict[_T, int | None]) -> None:
        number = int.from_bytes(self._digests[thing][:8], "big") % self._most + 1
        while (other := self._there.get(number)) is not None:
            if self._digests[other] > self._digests[thing]:
                before.setdefault(other, number)
                self._there[number], self.of[thing] = thing, number
                thing = other
            number = number % self._most + 1
        self._there[number], self.of[thing] = thing, number

    def _leave(self, thing: _T, leaving: AbstractSet[_T], before: dict[_T, int | None]) -> None:
        if thing not in self.of:
            return  # it stood behind one that left before
        number = self.of.pop(thing)
        del self._there[number]
        behind: list[_T] = []
        number = number % self._most + 1
        while (other := self._there.pop(number, None)) is not None:
            before.setdefault(other, self.of.pop(other))
            behind.append(other)
            number = number % self._most + 1
        for other in behind:
            if other not in leaving:
                self._enter(other, before)


class Handed(Generic[_T]):
    """The numbers of `Numbers`, but that none means one thing in one state and another in the next.

    What takes over a number that another had borrows a free one for one state; `settled` is false as long, and the next
    `change`, if only of nothing, gives it its own.
    """

    def __init__(self, most: int) -> None:
        self.of: dict[_T, int] = {}
        self._most = most
        self._own: Numbers[_T] = Numbers(most)
        self._held: dict[int, _T] = {}
        self._borrowing: set[_T] = set()

    @property
    def settled(self) -> bool:
        """Whether everything has its own number."""
        return not self._borrowing

    def change(self, gone: Iterable[_T], come: Mapping[_T, bytes]) -> set[_T]:
        """Things leave and things come; returns those that have another number now, or none any more or at last."""
        leaving = set(gone)
        stirred = self._own.change(leaving, come) | self._borrowing | leaving
        before = {thing: self.of.pop(thing, None) for thing in stirred}
        held = {number: thing for number, thing in self._held.items() if thing not in stirred}
        self._borrowing = set()
        for thing in stirred:
            number = self._own.of.get(thing)
            if number is None:
                continue
            if self._held.get(number, thing) == thing:
                self.of[thing], held[number] = number, thing
            else:
                self._borrowing.add(thing)
        for thing in self._borrowing:
            number = self._free(self._own.of[thing], held)
            if number:
                self.of[thing], held[number] = number, thing
        self._held = held
        return {thing for thing, number in before.items() if self.of.get(thing) != number}

    def _free(self, number: int, held: Mapping[int, _T]) -> int:
        """A number that nobody has, has had in the last state, or is to have in the next; 0 when there is none."""
        for _ in range(self._most):
            number = number % self._most + 1
            if number not in held and number not in self._held and not self._own.holds(number):
                return number
        return 0
