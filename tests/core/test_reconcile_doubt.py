"""A distrust that comes while a round is under way holds: what the round wrote is read again, not believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
