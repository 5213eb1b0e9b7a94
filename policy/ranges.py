"""Arithmetic on ranges of integers, both ends included: ports, and addresses as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from policy.model import Range

_T = TypeVar("_T")


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The same integers as sorted, disjoint ranges, joined where they touch."""
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def less(ranges: Iterable[Range], others: Iterable[Range]) -> tuple[Range, ...]:
    """What is in `ranges` and not in `others`: sorted, disjoint and joined where they touch."""
    left = joined(ranges)
    for first, last in joined(others):
        cut: list[Range] = []
        for low, high in left:
            if high < first or low > last:
                cut.append((low, high))
                continue
            if low < first:
                cut.append((low, first - 1))
            if high > last:
                cut.append((last + 1, high))
        left = cut
    return tuple(left)


def alike(pieces: Iterable[tuple[Range, _T]]) -> list[tuple[Range, _T]]:
    """Disjoint sorted pieces, those joined that touch and say the same."""
    found: list[tuple[Range, _T]] = []
    for (first, last), said in pieces:
        if found and found[-1][1] == said and found[-1][0][1] + 1 == first:
            found[-1] = ((found[-1][0][0], last), said)
        else:
            found.append(((first, last), said))
    return found
