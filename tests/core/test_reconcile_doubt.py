"""A distrust that comes while a round is under way holds: what the round wrote is read again, not believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from core.parts import Parts
from core.reconcile import Plan, Reconciler


class Shelf:
    """A driver over a dict, whose writes somebody may interrupt."""

    name = "shelf"

    def __init__(self) -> None:
        self.things: dict[str, int] = {}
        self.meanwhile: Callable[[], None] = lambda: None

    async def read(self) -> Mapping[str, int]:
        return dict(self.things)

    async def apply(self, plan: Plan[str, int]) -> Mapping[str, Exception]:
        self.things.update(plan.upsert)
        for key in plan.delete:
            self.things.pop(key)
        self.meanwhile()
        return {}


async def test_drift_during_a_round_is_repaired_in_the_next() -> None:
    shelf = Shelf()
    reconciler: Reconciler[str, int] = Reconciler(shelf)

    def drift() -> None:
        shelf.things.clear()
        reconciler.distrust()

    shelf.meanwhile = drift
    reconciler.set_desired({"a": 1}, 1)
    await reconciler.step()
    assert shelf.things == {}
    shelf.meanwhile = lambda: None
    await reconciler.step()
    assert shelf.things == {"a": 1}


async def test_what_was_seen_is_not_forgotten_with_what_is_believed() -> None:
    shelf = Shelf()
    reconciler: Reconciler[str, int] = Reconciler(shelf)
    reconciler.set_desired({"a": 1}, 1)
    await reconciler.step()
    reconciler.distrust()
    assert reconciler.seen == {"a": 1}
    shelf.things.clear()
    reconciler.set_desired({}, 2)
    await reconciler.step()
    assert reconciler.seen == {}


@pytest.mark.parametrize("wanted", [{"a": 1, "b": 2}, Parts({"one": {"a": 1}, "two": {"b": 2}})])
async def test_what_may_be_gone_is_written_again_and_nothing_else(wanted: Mapping[str, int]) -> None:
    shelf = Shelf()
    reconciler: Reconciler[str, int] = Reconciler(shelf)
    reconciler.set_desired(wanted, 1)
    await reconciler.step()
    del shelf.things["a"]
    shelf.things["b"] = 3  # by another hand, of which we are told nothing
    reconciler.forget(["a", "never there"])
    await reconciler.step()
    assert shelf.things == {"a": 1, "b": 3}
    assert reconciler.progress.writes == 3
    await reconciler.step()
    assert reconciler.progress.writes == 3


async def test_what_may_be_gone_and_is_not_wanted_any_more_is_deleted_all_the_same() -> None:
    shelf = Shelf()
    reconciler: Reconciler[str, int] = Reconciler(shelf)
    reconciler.set_desired({"a": 1}, 1)
    await reconciler.step()
    reconciler.forget(["a"])
    reconciler.set_desired({}, 2)
    await reconciler.step()
    assert shelf.things == {}


async def test_what_may_be_gone_while_nobody_wants_it_is_written_when_somebody_does() -> None:
    shelf = Shelf()
    reconciler: Reconciler[str, int] = Reconciler(shelf)
    reconciler.set_desired({"a": 1}, 1, prune=False)
    await reconciler.step()
    reconciler.set_desired({}, 2, prune=False)
    shelf.things.clear()
    reconciler.forget(["a"])
    await reconciler.step()
    reconciler.set_desired({"a": 1}, 3, prune=False)
    await reconciler.step()
    assert shelf.things == {"a": 1}
