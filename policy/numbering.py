"""Small numbers for things, that depend on the set of things alone and change little when it does.

A number comes from a hash. Two things that hash to one number are told apart by the order of their digests: the later
takes the next free one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

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
