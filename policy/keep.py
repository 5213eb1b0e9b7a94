"""How a judgement is called, and how the low half of the mark, which is others', outlives it.

A judgement writes the whole mark: nft can set a mark from a map, but cannot set half of one so. Most packets have
nothing in the low half, and for them it is called as it is. For the others the low half is kept where nothing can
overwrite it, in the chain that is jumped from:

    keep-0 ── lowest hex digit 5 ──jump──> keep-0-5   1. jump keep-1      and so on, digit by digit, to the judgement
                                                      2. mark | 0x0005    the digit is back
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from core.names import MARK_MASK
from core.nftables import Chain

THEIRS: Final = f"{~MARK_MASK & 0xFFFFFFFF:#010x}"
OURS: Final = f"{MARK_MASK:#010x}"
SHIFT: Final = (MARK_MASK & -MARK_MASK).bit_length() - 1
"""How far a number of ours stands from the right in a mark."""

_DIGITS: Final = SHIFT // 4


def high(number: int) -> str:
    """A mark with `number` in our half and nothing in the other, as rules spell it."""
    return f"{number << SHIFT:#010x}"


def call(judgement: str) -> tuple[str, ...]:
    """Rules that call the chain `judgement`, which leaves its answer in the high half of the mark."""
    return (
        f"meta mark & {THEIRS} == 0x00000000 jump {judgement}",
        f"meta mark & {THEIRS} != 0x00000000 jump keep-{judgement}",
    )


def keep(judgements: Sequence[str]) -> dict[str, Chain]:
    """The chains that `call` needs for all `judgements`: each is known on the way by its place, in the high half."""
    places = {judgement: high(place) for place, judgement in enumerate(judgements, 1)}
    chains = {
        f"keep-{judgement}": Chain(rules=(f"meta mark set meta mark & {THEIRS} | {place}", "goto keep-0"))
        for judgement, place in places.items()
    }
    for digit in range(_DIGITS):
        values = {value: f"{value << 4 * digit:#010x}" for value in range(1, 16)}
        ways = ", ".join(f"{text} : jump keep-{digit}-{value:x}" for value, text in values.items())
        mask = f"{0xF << 4 * digit:#010x}"
        chains[f"keep-{digit}"] = Chain(
            rules=(f"meta mark & {mask} == 0x00000000 goto keep-{digit + 1}", f"meta mark & {mask} vmap {{ {ways} }}")
        )
        for value, text in values.items():
            chains[f"keep-{digit}-{value:x}"] = Chain(
                rules=(f"jump keep-{digit + 1}", f"meta mark set meta mark | {text}")
            )
    ways = ", ".join(f"{place} : goto {judgement}" for judgement, place in places.items())
    chains[f"keep-{_DIGITS}"] = Chain(rules=(f"meta mark & {OURS} vmap {{ {ways} }}",))
    return chains
