"""Random values from a seed, with the few words of Hypothesis' strategies that the worlds need.

Hypothesis gives the seed only: whole clusters are larger than the entropy it spends on one example, and it would
throw away all but the emptiest ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any


class Strategy:
    """Something to draw."""

    def __init__(self, draw: Callable[[Random], Any]) -> None:
        self.draw = draw

    def map(self, change: Callable[[Any], Any]) -> Strategy:
        return Strategy(lambda rng: change(self.draw(rng)))

    def flatmap(self, change: Callable[[Any], Strategy]) -> Strategy:
        return Strategy(lambda rng: change(self.draw(rng)).draw(rng))


DrawFn = Callable[[Strategy], Any]


def just(value: Any) -> Strategy:
    return Strategy(lambda rng: value)


def none() -> Strategy:
    return just(None)


def booleans() -> Strategy:
    return sampled_from([False, True])


def integers(low: int, high: int) -> Strategy:
    return Strategy(lambda rng: rng.randint(low, high))


def sampled_from(values: Sequence[Any]) -> Strategy:
    return Strategy(lambda rng: rng.choice(values))


def one_of(*strategies: Strategy) -> Strategy:
    return Strategy(lambda rng: rng.choice(strategies).draw(rng))


def builds(make: Callable[..., Any], *args: Strategy, **named: Strategy) -> Strategy:
    return Strategy(
        lambda rng: make(*(each.draw(rng) for each in args), **{name: each.draw(rng) for name, each in named.items()})
    )


def lists(
    element: Strategy,
    *,
    min_size: int = 0,
    max_size: int,
    unique: bool = False,
    unique_by: Callable[[Any], Any] | None = None,
) -> Strategy:
    def draw(rng: Random) -> list[Any]:
        found = [element.draw(rng) for _ in range(rng.randint(min_size, max_size))]
        if not unique and unique_by is None:
            return found
        return list({(unique_by(each) if unique_by else each): each for each in found}.values())

    return Strategy(draw)


def dictionaries(keys: Strategy, values: Strategy, *, max_size: int) -> Strategy:
    return lists(Strategy(lambda rng: (keys.draw(rng), values.draw(rng))), max_size=max_size).map(dict)


def permutations(values: Sequence[Any]) -> Strategy:
    return Strategy(lambda rng: rng.sample(values, len(values)))


def composite(make: Callable[..., Any]) -> Callable[..., Strategy]:
    def strategy(*args: Any, **named: Any) -> Strategy:
        return Strategy(lambda rng: make(lambda each: each.draw(rng), *args, **named))

    return strategy
