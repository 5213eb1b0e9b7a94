"""Reading the cluster's page from a datastore, once and again whenever something in it changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from cli import store
from cli.cluster import Overview, overview
from core import resources
from core.resources import BY_KIND, FelixStatus, Node, SpeakerStatus
from datastore.api import Changes, Compacted, Store, Synced

AGAIN_S: Final = 10.0
"""The page is shown again after this long (seconds) without a change: silence is news too."""

REPORTS: Final = frozenset({FelixStatus.KIND, SpeakerStatus.KIND})

FOLLOWED: Final = frozenset(
    cls.KIND
    for cls in (
        resources.AdminNetworkPolicy,
        resources.BaselineAdminNetworkPolicy,
        resources.BGPConfiguration,
        resources.BGPPeer,
        resources.ClusterNetworkPolicy,
        resources.EndpointSlice,
        resources.FelixConfiguration,
        resources.GlobalNetworkPolicy,
        resources.GlobalNetworkSet,
        resources.HostEndpoint,
        resources.IPAMBlock,
        resources.IPPool,
        resources.KubernetesNetworkPolicy,
        resources.Namespace,
        resources.NetworkPolicy,
        resources.NetworkSet,
        resources.Node,
        resources.Profile,
        resources.ServiceAccount,
        resources.StagedGlobalNetworkPolicy,
        resources.StagedKubernetesNetworkPolicy,
        resources.StagedNetworkPolicy,
        resources.Tier,
        resources.WorkloadEndpoint,
    )
)
"""What felix follows (`felix.kinds.KINDS`, which takes too long to import here): it programs no change of others."""


async def page(opened: Store) -> tuple[Overview, int]:
    """The page as of now, and the revision it was read at."""
    state = await store.read(opened, REPORTS | {Node.KIND})
    found = state.objects.values()
    after = min(
        (each.resource.status.programmed for each in found if isinstance(each.resource, FelixStatus)), default=0
    )
    revision = await newest(opened, after) or after
    return overview(found, revision, datetime.now(UTC)), state.revision


async def newest(opened: Store, after: int) -> int:
    """The revision of the last change of anything felix follows after `after`, deletions too; 0 when there was none.

    A listing would not do: it does not say when something was deleted.
    """
    last = 0
    async with aclosing(opened.watch(after, FOLLOWED)) as items:
        async for item in items:
            match item:
                case Changes(events=(*_, event)):
                    last = event.revision
                case Synced():
                    break
                case Compacted():
                    entries = (await opened.list(FOLLOWED)).entries
                    return max((entry.revision for entry in entries), default=0)
    return last


async def pages(opened: Store) -> AsyncGenerator[Overview, None]:
    """The page, and the page anew after every change of it and as agents fall silent, for ever."""
    while True:
        shown, revision = await page(opened)
        yield shown
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_S), aclosing(opened.watch(revision, BY_KIND.keys())) as items:
                async for item in items:
                    if isinstance(item, Changes) and item.events:
                        break


async def rolled_out(opened: Store, timeout_s: float) -> Overview:
    """Wait until felix on every node of now has programmed what is newest now; the last page, done or not."""
    target: Overview | None = None
    reached = asyncio.timeout(timeout_s)
    try:
        async with reached, aclosing(pages(opened)) as shown_pages:
            async for shown in shown_pages:
                target = _towards(shown, target)
                if not target.behind():
                    break
    except TimeoutError:
        if not reached.expired() or target is None:
            raise
    assert target is not None
    return target


def _towards(shown: Overview, target: Overview | None) -> Overview:
    """`shown`, held to the revision and the nodes that `target` began with."""
    if target is None:
        return shown
    wanted = {each.node for each in target.nodes}
    return replace(shown, revision=target.revision, nodes=tuple(each for each in shown.nodes if each.node in wanted))
