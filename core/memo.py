"""What was made of values, remembered by the values' identity.

Everything here is frozen, and a snapshot shares with the one before what did not change. So that two things are one
object is all one has to ask to know that what was made of them still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from core.changes import Changes, changes

_K = TypeVar("_K")
_T = TypeVar("_T")
_V = TypeVar("_V")


class _Made(NamedTuple):
    """A result; what it was made of, whose identity is the key: it must not be freed, and its id used again; and the
    keys that were asked for meanwhile."""

    result: Any
    given: tuple[object, ...]
    asked: Sequence[tuple[object, ...]]


class Memo:
    """Results of pure functions by the identity of what they were given, for as long as they are asked for.

    `forget` ends a round: what nobody asked for since the one before is let go. What was asked for to make something
    stays with it.
    """

    def __init__(self) -> None:
        self._now: dict[tuple[object, ...], _Made] = {}
        self._before: dict[tuple[object, ...], _Made] = {}
        self._making: list[list[tuple[object, ...]]] = []
        self._last: dict[Callable[..., Any], Any] = {}
        self._tables: dict[tuple[Hashable, ...], tuple[Mapping[Any, Any], Mapping[Any, Any]]] = {}

    def __call__(self, make: Callable[..., _T], *given: object) -> _T:
        """`make(*given)`, made anew only when one of `given` is another object than before."""
        key = (make, *map(id, given))
        if self._making:
            self._making[-1].append(key)
        found = self._now.get(key)
        if found is None:
            found = self._kept(key) or self._made(key, make, given)
        result: _T = found.result
        return result

    def _kept(self, key: tuple[object, ...]) -> _Made | None:
        """What the round before had, with all that it was made of: that was as good as asked for."""
        keys = [key]
        while keys:
            each = keys.pop()
            if each not in self._now and (found := self._before.get(each)) is not None:
                self._now[each] = found
                keys += found.asked
        return self._now.get(key)

    def _made(self, key: tuple[object, ...], make: Callable[..., Any], given: tuple[object, ...]) -> _Made:
        asked: list[tuple[object, ...]] = []
        self._making.append(asked)
        try:
            made = self._now[key] = _Made(make(*given), given, asked)
        finally:
            self._making.pop()
        return made

    def steady(self, make: Callable[..., _T], *given: object) -> _T:
        """As `memo(make, *given)`; and when it equals what `make` made last, that very object.

        So what is made of a part of something is not made again because another part of it changed.
        """
        made = self(make, *given)
        last: _T | None = self._last.get(make)
        if last is not None and last == made:
            return last
        self._last[make] = made
        return made

    def each(self, make: Callable[..., _T | None], table: Mapping[_K, _V], *given: Hashable) -> Mapping[_K, _T]:
        """`make(value, *given)` of every value of `table` of which it is not None; costs what changed in `table`.

        The same mapping as before while nothing in it is another. A value stands under one key (`core.changes`).
        """
        before, made = self._tables.get((make, *given), ({}, MappingProxyType[Any, Any]({})))
        if before is not table:
            found = changes(before, table) if before else Changes({}, table)
            come = {key: each for key, value in found.come.items() if (each := make(value, *given)) is not None}
            gone = [key for key in found.gone if key in made and key not in come]
            if gone or any(key not in made or made[key] != each for key, each in come.items()):
                after = {**made, **come}
                for key in gone:
                    del after[key]
                made = MappingProxyType(after)
            self._tables[make, *given] = (table, made)
        return made

    def forget(self) -> None:
        """Begin a round."""
        self._before, self._now = self._now, {}
