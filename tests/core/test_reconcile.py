"""The retry loop: least batches, nothing before the first desired state, no failed read taken for empty, and a
cache that is not believed for ever. The driver is a dict that can be broken."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from core.errors import Unavailable
from core.latest import Latest
from core.reconcile import Plan, Progress, Reconciler, Timing, diff, run

THINGS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2))


class Shelf:
    """A driver over a dict; `broken` makes reads fail, `refuses` are keys whose writes fail."""

    name = "shelf"

    def __init__(self, **things: int) -> None:
        self.things = dict(things)
        self.broken = False
        self.refuses: set[str] = set()
        self.reads = 0
        self.batches: list[Plan[str, int]] = []

    async def read(self) -> Mapping[str, int]:
        self.reads += 1
        if self.broken:
            raise OSError("no buffer space")
        return dict(self.things)

    async def apply(self, plan: Plan[str, int]) -> Mapping[str, Exception]:
        self.batches.append(plan)
        failed = {key: OSError(f"{key} is stuck") for key in {*plan.upsert, *plan.delete} & self.refuses}
        self.things.update({key: value for key, value in plan.upsert.items() if key not in failed})
        for key in plan.delete.keys() - failed.keys():
            del self.things[key]
        return failed


@given(THINGS, THINGS)
def test_diff_is_the_least_batch_that_leads_there(desired: dict, actual: dict) -> None:
    plan = diff(desired, actual)
    after = {key: value for key, value in actual.items() if key not in plan.delete} | dict(plan.upsert)
    assert after == desired
    assert not [key for key, value in plan.upsert.items() if actual.get(key) == value]
    assert all(actual[key] == value for key, value in plan.delete.items())
    assert plan.replace == {key: actual[key] for key in plan.upsert.keys() & actual.keys()}
    assert bool(plan) is (desired != actual)


def test_backoff_doubles_to_its_bound_with_a_quarter_of_jitter() -> None:
    timing = Timing(retry_s=0.1, retry_max_s=1.0)
    for failures, least in ((1, 0.1), (2, 0.2), (4, 0.8), (5, 1.0), (10_000, 1.0)):
        waits = {timing.backoff(failures) for _ in range(50)}
        assert all(least <= wait <= least * 1.25 for wait in waits)
        assert len(waits) > 1


async def test_nothing_is_touched_before_the_first_desired_state() -> None:
    shelf = Shelf(a=1)
    reconciler = Reconciler(shelf)
    assert (await reconciler.step()).revision == 0
    assert (shelf.reads, shelf.batches) == (0, [])
    reconciler.set_desired({}, 1)
    assert (await reconciler.step()).revision == 1
    assert shelf.things == {}


async def test_only_differences_are_written_and_then_nothing() -> None:
    shelf = Shelf(a=1, b=2, c=3)
    reconciler = Reconciler(shelf)
    reconciler.set_desired({"a": 1, "b": 9, "d": 4}, 5)
    progress = await reconciler.step()
    assert shelf.batches == [Plan({"b": 9, "d": 4}, {"c": 3}, {"b": 2})]
    assert (progress.revision, progress.writes, progress.healthy) == (5, 3, True)
    await reconciler.step()
    assert (len(shelf.batches), shelf.reads) == (1, 1)


async def test_a_failed_read_is_never_an_empty_one() -> None:
    shelf = Shelf(a=1)
    shelf.broken = True
    reconciler = Reconciler(shelf)
    reconciler.set_desired({"b": 2}, 3)
    progress = await reconciler.step()
    assert progress.failure == "shelf: no buffer space"
    assert (progress.revision, shelf.batches, shelf.things) == (0, [], {"a": 1})
    shelf.broken = False
    assert (await reconciler.step()).revision == 3
    assert shelf.things == {"b": 2}


async def test_a_key_that_fails_leaves_the_others_done_and_is_tried_on_fresh_knowledge() -> None:
    shelf = Shelf()
    shelf.refuses = {"b"}
    reconciler = Reconciler(shelf)
    reconciler.set_desired({"a": 1, "b": 2}, 7)
    progress = await reconciler.step()
    assert (progress.errors, progress.revision, progress.writes) == ({"b": "b is stuck"}, 0, 1)
    shelf.refuses = set()
    progress = await reconciler.step()
    assert (progress.errors, progress.revision, shelf.things) == ({}, 7, {"a": 1, "b": 2})
    assert shelf.reads == 2
    assert shelf.batches[1] == Plan({"b": 2}, {})


async def test_what_is_no_longer_wanted_goes_however_much_it_is() -> None:
    shelf = Shelf(**{f"k{number}": number for number in range(100)})
    reconciler = Reconciler(shelf)
    reconciler.set_desired({"new": 1}, 2)
    progress = await reconciler.step()
    assert (progress.revision, progress.healthy, shelf.things) == (2, True, {"new": 1})


async def test_without_prune_nothing_is_removed() -> None:
    shelf = Shelf(a=1)
    reconciler = Reconciler(shelf)
    reconciler.set_desired({"b": 2}, 1, prune=False)
    await reconciler.step()
    assert shelf.things == {"a": 1, "b": 2}
    reconciler.set_desired({"b": 2}, 2)
    await reconciler.step()
    assert shelf.things == {"b": 2}


async def test_distrust_finds_what_others_changed() -> None:
    shelf = Shelf()
    reconciler = Reconciler(shelf)
    reconciler.set_desired({"a": 1}, 1)
    await reconciler.step()
    shelf.things = {"a": 2, "x": 9}
    await reconciler.step()
    assert shelf.things == {"a": 2, "x": 9}, "the cache was believed"
    reconciler.distrust()
    await reconciler.step()
    assert shelf.things == {"a": 1}


class Running:
    """`run` over some shelves, with its progress in a Latest."""

    def __init__(self, shelves: Sequence[Shelf], timing: Timing) -> None:
        self.reconcilers = [Reconciler(shelf) for shelf in shelves]
        self.wake = asyncio.Event()
        self.heard: Latest[Sequence[Progress]] = Latest()
        self._timing = timing

    async def __aenter__(self) -> "Running":
        async def hear(progress: Sequence[Progress]) -> None:
            self.heard.put(progress)

        self._task = asyncio.create_task(run(self.reconcilers, self.wake, hear, self._timing))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._task

    def want(self, things: dict[str, int], revision: int) -> None:
        for reconciler in self.reconcilers:
            reconciler.set_desired(things, revision)
        self.wake.set()

    async def until(self, revision: int) -> None:
        async with asyncio.timeout(5):
            while not all(each.healthy and each.revision == revision for each in await self.heard.get()):
                pass


async def test_run_retries_by_itself_and_one_failure_stops_nobody_else() -> None:
    broken, whole = Shelf(), Shelf()
    broken.broken = True
    async with Running([broken, whole], Timing(retry_s=0.01, retry_max_s=0.02)) as running:
        running.want({"a": 1}, 1)
        async with asyncio.timeout(5):
            first = await running.heard.get()
        assert (first[0].failure, first[1].revision) == ("shelf: no buffer space", 1)
        assert whole.things == {"a": 1}
        broken.broken = False
        await running.until(1)
        assert broken.things == {"a": 1}


async def test_the_log_names_a_few_of_many_keys_that_fail() -> None:
    shelf = Shelf()
    many = {f"key {number}": number for number in range(10_000)}
    shelf.refuses = set(many)
    with capture_logs() as logs:
        async with Running([shelf], Timing(retry_s=5)) as running:
            running.want(many, 1)
            async with asyncio.timeout(5):
                await running.heard.get()
    (why,) = next(each["why"] for each in logs if each["event"] == "reconcile.failed")
    assert "is stuck" in why
    assert why.endswith("and 9995 more")
    assert len(why) < 1000


async def test_run_distrusts_its_cache_every_resync() -> None:
    shelf = Shelf()
    async with Running([shelf], Timing(resync_s=0.02)) as running:
        running.want({"a": 1}, 1)
        await running.until(1)
        shelf.things = {"x": 9}
        async with asyncio.timeout(5):
            while shelf.things != {"a": 1}:
                await running.heard.get()


async def test_run_ends_when_it_is_cancelled_as_it_is_woken() -> None:
    async with Running([Shelf()], Timing()) as running:
        running.want({"a": 1}, 1)
        await running.until(1)
        running.wake.set()
        running._task.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait([running._task])
        assert running._task.cancelled()


async def test_an_error_of_ours_counts_as_a_failed_round_and_a_bug_does_not() -> None:
    class Away(Shelf):
        async def read(self) -> Mapping[str, int]:
            raise Unavailable("the kernel is out")

    class Bug(Shelf):
        async def read(self) -> Mapping[str, int]:
            raise KeyError("bug")

    away, bug = Reconciler(Away()), Reconciler(Bug())
    for reconciler in (away, bug):
        reconciler.set_desired({}, 1)
    assert (await away.step()).failure == "shelf: the kernel is out"
    with pytest.raises(KeyError):
        await bug.step()
