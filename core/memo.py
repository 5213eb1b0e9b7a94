"""What was made of values, remembered by the values' identity.

Everything here is frozen, and a snapshot shares with the one before what did not change. So that two things are one
object is all one has to ask to know that what was made of them still holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


class Memo:
    """Results of pure functions by the identity of what they were given, for as long as they are asked for.

    `forget` ends a round: what nobody asked for since the one before is let go.
    """

    def __init__(self) -> None:
        self._now: dict[tuple[object, ...], tuple[Any, ...]] = {}
        self._before: dict[tuple[object, ...], tuple[Any, ...]] = {}

    def __call__(self, make: Callable[..., _T], *given: object) -> _T:
        """`make(*given)`, made anew only when one of `given` is another object than before."""
        key = (make, *map(id, given))
        found = self._now.get(key)
        if found is None:
            found = self._before.get(key)
            if found is None:
                found = (make(*given), given)  # whose identity is the key must not be freed, and its id used again
            self._now[key] = found
        result: _T = found[0]
        return result

    def forget(self) -> None:
        """Begin a round."""
        self._before, self._now = self._now, {}
