"""A desired state told change by change comes to the same as one told whole, and costs what changed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from core.reconcile import Plan, Reconciler


class Shelf:
    """A driver over a dict; `meanwhile` happens during the next write, `refuses` are keys whose writes fail."""

    name = "shelf"

    def __init__(self) -> None:
        self.things: dict[str, int] = {"left": 1}
        self.reads = 0
        self.touched: list[set[str]] = []
        self.refuses: set[str] = set()
        self.meanwhile: Mapping[str, int | None] = {}
        self.reconciler = Reconciler(self)

    async def read(self) -> Mapping[str, int]:
        self.reads += 1
        return dict(self.things)

    async def apply(self, plan: Plan[str, int]) -> Mapping[str, Exception]:
        self.touched.append({*plan.upsert, *plan.delete})
        if self.meanwhile:
            self.reconciler.change_desired(self.meanwhile, 99)
            self.meanwhile = {}
        await asyncio.sleep(0)
        failed = {key: OSError("stuck") for key in {*plan.upsert, *plan.delete} & self.refuses}
        self.things.update({key: value for key, value in plan.upsert.items() if key not in failed})
        for key in plan.delete.keys() - failed.keys():
            del self.things[key]
        return failed


async def test_a_round_touches_what_changed_and_reads_once() -> None:
    shelf = Shelf()
    shelf.reconciler.change_desired({"a": 1, "b": 2}, 1)
    assert (await shelf.reconciler.step()).revision == 1
    assert shelf.things == {"a": 1, "b": 2}
    shelf.reconciler.change_desired({"a": None, "c": 3, "b": 2}, 2)
    await shelf.reconciler.step()
    assert (shelf.things, shelf.touched, shelf.reads) == ({"b": 2, "c": 3}, [{"a", "b", "left"}, {"a", "c"}], 1)
    await shelf.reconciler.step()
    assert len(shelf.touched) == 2


async def test_what_changes_during_a_round_is_done_in_the_next() -> None:
    shelf = Shelf()
    shelf.meanwhile = {"a": 9, "b": None, "c": 3}
    shelf.reconciler.change_desired({"a": 1, "b": 2}, 1)
    assert (await shelf.reconciler.step()).revision == 1
    assert (await shelf.reconciler.step()).revision == 99
    assert shelf.things == {"a": 9, "c": 3}


async def test_after_an_error_or_a_doubt_everything_is_compared() -> None:
    shelf = Shelf()
    shelf.refuses = {"b"}
    shelf.reconciler.change_desired({"a": 1, "b": 2}, 1)
    assert set((await shelf.reconciler.step()).errors) == {"b"}
    shelf.refuses = set()
    assert (await shelf.reconciler.step()).healthy
    assert shelf.things == {"a": 1, "b": 2}
    shelf.things = {"b": 7}
    shelf.reconciler.distrust()
    await shelf.reconciler.step()
    assert shelf.things == {"a": 1, "b": 2}


async def test_changes_go_on_from_a_state_told_whole() -> None:
    shelf, whole = Shelf(), {"a": 1, "b": 2}
    shelf.reconciler.set_desired(whole, 1)
    await shelf.reconciler.step()
    shelf.reconciler.change_desired({"b": None}, 2)
    await shelf.reconciler.step()
    assert (shelf.things, whole) == ({"a": 1}, {"a": 1, "b": 2})
    shelf.reconciler.set_desired({"c": 3}, 3)
    await shelf.reconciler.step()
    assert shelf.things == {"c": 3}


CHANGES = st.dictionaries(st.sampled_from("abcdef"), st.one_of(st.none(), st.integers(0, 2)))


@given(st.lists(st.tuples(CHANGES, CHANGES, st.sets(st.sampled_from("abcdef")), st.booleans())))
def test_any_history_comes_to_the_same(history: list) -> None:
    async def live() -> None:
        shelf, wanted = Shelf(), {}
        for changes, meanwhile, refuses, doubt in history:
            shelf.reconciler.change_desired(changes, 1)
            wanted |= changes
            shelf.refuses, shelf.meanwhile = refuses, meanwhile
            if doubt:
                shelf.reconciler.distrust()
            await shelf.reconciler.step()
            if not shelf.meanwhile:  # it was carried out
                wanted |= meanwhile
        shelf.refuses, shelf.meanwhile = set(), {}
        for _ in range(2):
            await shelf.reconciler.step()
        if history:
            assert shelf.things == {key: value for key, value in wanted.items() if value is not None}

    asyncio.run(live())
