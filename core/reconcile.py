"""The only retry loop in muslin: make what is, what should be.

    desired ──┐                      ┌── upsert ──┐
              ├── diff ──> Plan ─────┤            ├──> driver.apply ──> {key: error}
    actual  ──┘  (pure)              └── delete ──┘          │
      ^                                                      │ all went well: actual := desired
      └──────── driver.read() <── actual is unknown <────────┘ any doubt: forget actual, back off, read again

A `Driver` is thin: it reads what we own and applies one batch. A `Reconciler` holds one driver's desired state
and what it believes is programmed. `run` drives several in the order given (tunnels before routes, say) and
wakes on a new desired state, on backoff after errors, and every `resync_s` seconds, when it distrusts its cache.

Nothing happens before the first `set_desired`: that is how "nothing before in-sync" holds. A failed read is never
an empty one: it raises, and the round ends there. What is desired is followed however much it removes: too much gone
at once is `core.breaker`'s to see, before anything is decided.

A desired state may come in `core.parts.Parts`, or change by change (`change_desired`): then a round costs what changed
since the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, Generic, Protocol, TypeVar

import structlog

from core.errors import MuslinError
from core.parts import Parts

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MOST_LOGGED: Final = 5
"""Keys that the log names when a round fails."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Plan(Generic[K, V]):
    """One batch. `delete` carries the old value, because the kernel wants to be told what it is removing; so does
    `replace` for the keys of `upsert` that are there with another value, as far as is known."""

    upsert: Mapping[K, V]
    delete: Mapping[K, V]
    replace: Mapping[K, V] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.upsert or self.delete)


def diff(desired: Mapping[K, V], actual: Mapping[K, V]) -> Plan[K, V]:
    """The least batch that turns `actual` into `desired`; values compare by equality.

    Of two that come in parts, the parts that they share are not looked into.
    """
    if isinstance(desired, Parts):
        desired, actual = desired.unlike(actual) if isinstance(actual, Parts) else (desired.flat(), actual)
    elif isinstance(actual, Parts):
        actual = actual.flat()
    upsert = {key: value for key, value in desired.items() if key not in actual or actual[key] != value}
    return Plan(
        upsert=upsert,
        delete={key: value for key, value in actual.items() if key not in desired},
        replace={key: actual[key] for key in upsert if key in actual},
    )


class Driver(Protocol[K, V]):
    """The edge to one kind of thing: kernel routes, an nft table, sysctls, tunnels, BGP adverts."""

    @property
    def name(self) -> str:
        """For logs and health, e.g. `routes`."""

    async def read(self) -> Mapping[K, V]:
        """Everything we own, in the terms of the desired state; raises (OSError, MuslinError) if it cannot tell."""

    async def apply(self, plan: Plan[K, V]) -> Mapping[K, Exception]:
        """Apply one batch; return what failed. Already there, or already gone, is success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one reconciler is. `revision` is the newest desired revision that is wholly programmed (0: none),
    `tried` the one that the last round was about.

    `errors` are per key, in the words of the driver; `failure` is why the whole round failed; `writes` counts objects
    written since start.
    """

    revision: int = 0
    tried: int = 0
    errors: Mapping[Any, str] = field(default_factory=dict)
    failure: str = ""
    writes: int = 0

    @property
    def healthy(self) -> bool:
        """Nothing failed."""
        return not (self.errors or self.failure)


class Reconciler(Generic[K, V]):
    """One driver, its desired state, and what we believe is programmed."""

    def __init__(self, driver: Driver[K, V]) -> None:
        self.driver = driver
        self.progress = Progress()
        self._desired: Mapping[K, V] | None = None
        self._revision = 0
        self._prune = True
        self._own: dict[K, V] | None = None  # the desired state, when it is told change by change
        self._changes: dict[K, V | None] | None = None  # to it since the last round; None: anything may have changed
        self._actual: dict[K, V] | Parts[K, V] | None = None
        self._seen: Mapping[K, V] = {}
        self._doubts = 0
        self._lost: set[K] = set()

    def set_desired(self, desired: Mapping[K, V], revision: int, *, prune: bool = True) -> None:
        """State what should be; cheap, no I/O. With `prune` false nothing is removed (not everything is known yet)."""
        self._desired, self._revision, self._prune = desired, revision, prune
        self._own = self._changes = None

    def change_desired(self, changes: Mapping[K, V | None], revision: int) -> None:
        """State what should be at some keys (None: nothing); at the others it stays what it was, and at first nothing.

        The next round costs what changed: for tables that are too large to be compared each time.
        """
        if self._own is None:
            self._own = dict(self._desired or {})
        self._desired, self._revision, self._prune = self._own, revision, True
        if self._changes is not None:
            self._changes.update(changes)
        for key, value in changes.items():
            if value is None:
                self._own.pop(key, None)
            else:
                self._own[key] = value

    @property
    def wanted(self) -> Mapping[K, V]:
        """What should be, as it was stated last; live after `change_desired`."""
        return self._desired or {}

    def distrust(self) -> None:
        """Forget what we believe is programmed; the next round reads it. Also during a round."""
        self._actual = None
        self._doubts += 1

    def forget(self, keys: Iterable[K]) -> None:
        """What stood at `keys` may be gone: where something is wanted there, the next round writes it again.

        Costs the keys, where `distrust` costs reading everything. Also during a round.
        """
        self._lost.update(keys)

    @property
    def seen(self) -> Mapping[K, V]:
        """What the last round that went well left programmed; for a status, which a doubt must not make empty."""
        return self._seen

    async def step(self) -> Progress:
        """One round: read if in doubt, diff, apply. Returns (and keeps) the new progress; never raises OSError."""
        if self._desired is None:
            return self.progress
        revision = self._revision
        try:
            self.progress = await self._round(self._desired, revision, prune=self._prune)
        except (OSError, MuslinError) as failure:
            self._actual = None
            self.progress = self._next(errors={}, failure=f"{self.driver.name}: {failure}")
        self.progress = replace(self.progress, tried=revision)
        return self.progress

    async def _round(self, desired: Mapping[K, V], revision: int, *, prune: bool) -> Progress:
        doubts = self._doubts
        actual = self._actual
        if actual is None:
            self._lost.clear()
            actual = dict(await self.driver.read())
            self._changes = None
        plan = await self._plan(desired, actual)
        if not prune:
            plan = replace(plan, delete={})
        if self._lost:
            plan = self._with_lost(plan, desired, actual)
        errors: Mapping[K, Exception] = {}
        if plan:
            errors = await self.driver.apply(plan)
        if errors or doubts != self._doubts:  # somebody distrusts what we believe, and may have while we wrote
            self._actual = None
        else:
            self._actual = self._seen = _after(actual, plan, desired, prune=prune)
        return self._next(
            errors={key: str(error) for key, error in errors.items()},
            writes=len(plan.upsert) + len(plan.delete) - len(errors),
            revision=None if errors else revision,
        )

    def _with_lost(self, plan: Plan[K, V], desired: Mapping[K, V], actual: dict[K, V] | Parts[K, V]) -> Plan[K, V]:
        """`plan`, and what is wanted where something may be gone. What is to be deleted there still is."""
        lost, self._lost = self._lost, set()
        if not isinstance(actual, Parts):
            for key in lost - plan.delete.keys():
                actual.pop(key, None)
        again = {key: desired[key] for key in lost if key in desired}
        return replace(plan, upsert={**plan.upsert, **again})

    async def _plan(self, desired: Mapping[K, V], actual: dict[K, V] | Parts[K, V]) -> Plan[K, V]:
        if self._own is None:
            return diff(desired, actual)
        changes, self._changes = self._changes, {}
        if changes is None or isinstance(actual, Parts):
            return await asyncio.to_thread(diff, dict(desired), actual)
        upsert = {
            key: new
            for key, new in changes.items()
            if new is not None and (key not in actual or actual[key] != new)  # `None != new` would ask `new`
        }
        return Plan(
            upsert=upsert,
            delete={key: actual[key] for key, new in changes.items() if new is None and key in actual},
            replace={key: actual[key] for key in upsert if key in actual},
        )

    def _next(
        self,
        *,
        errors: Mapping[K, str],
        failure: str = "",
        writes: int = 0,
        revision: int | None = None,
    ) -> Progress:
        return Progress(
            revision=self.progress.revision if revision is None else revision,
            errors=errors,
            failure=failure,
            writes=self.progress.writes + writes,
        )


def _after(
    actual: dict[K, V] | Parts[K, V], plan: Plan[K, V], desired: Mapping[K, V], *, prune: bool
) -> dict[K, V] | Parts[K, V]:
    """What is there once `plan` has been carried out; `actual` is used up."""
    if prune and isinstance(desired, Parts):
        return desired
    after = actual.flat() if isinstance(actual, Parts) else actual
    after.update(plan.upsert)
    for key in plan.delete:
        del after[key]
    return after


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When to try again. Seconds. Backoff doubles from `retry_s` to `retry_max_s`, with a quarter of jitter."""

    retry_s: float = 0.1
    retry_max_s: float = 10.0
    resync_s: float = 60.0

    def backoff(self, failures: int) -> float:
        """How long to wait after `failures` failed rounds in a row (at least 1)."""
        bound = min(self.retry_max_s, self.retry_s * 2.0 ** min(failures - 1, 30))
        return bound * (1 + random.random() / 4)  # noqa: S311 - jitter, not a secret


def _trouble(progress: Progress) -> str:
    """What failed, for a line of the log: of ten thousand keys with the same trouble a few are enough."""
    if progress.failure:
        return progress.failure
    more = len(progress.errors) - MOST_LOGGED
    return f"{dict(islice(progress.errors.items(), MOST_LOGGED))}" + (f" and {more} more" if more > 0 else "")


async def run(
    reconcilers: Sequence[Reconciler[Any, Any]],
    wake: asyncio.Event,
    on_progress: Callable[[Sequence[Progress]], Awaitable[None]],
    timing: Timing | None = None,
) -> None:
    """Drive `reconcilers` in order, for ever. Set `wake` after a `set_desired` or a `distrust`.

    One that fails does not keep the next from running: a closed pod stays closed without its neighbour's help.
    `on_progress` hears after every round.
    """
    timing = timing or Timing()
    failures = 0
    resync_at = time.monotonic() + timing.resync_s
    while True:
        wait = resync_at - time.monotonic()
        if failures:
            wait = min(wait, timing.backoff(failures))
        with contextlib.suppress(TimeoutError):  # backoff or resync is due
            async with asyncio.timeout(max(wait, 0)):  # wait_for loses a cancellation that comes with the wake
                await wake.wait()
        wake.clear()
        if time.monotonic() >= resync_at:
            resync_at = time.monotonic() + timing.resync_s
            for reconciler in reconcilers:
                reconciler.distrust()
        progress = [await reconciler.step() for reconciler in reconcilers]
        failed = [each for each in progress if not each.healthy]
        if failed and not failures:
            log.warning("reconcile.failed", why=list(map(_trouble, failed)))
        elif failures and not failed:
            log.info("reconcile.recovered", rounds=failures)
        failures = failures + 1 if failed else 0
        await on_progress(progress)
