"""bgp router-config: the configuration that a rack's router needs, from what the datastore holds."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import Annotated

import typer

from bgp.router_config.bird import bird
from bgp.router_config.frr import frr
from bgp.router_config.gobgp import gobgp
from bgp.router_config.side import RouterKind, rack_router, router_side
from cli import options, store, terminal
from core.addr import Address
from core.resources import BGPConfiguration, BGPPeer, IPPool, Node
from core.snapshot import Snapshot

KINDS = frozenset(cls.KIND for cls in (BGPConfiguration, BGPPeer, IPPool, Node))
"""What it reads: no Secret, so that none can be printed."""

_TEXT = {RouterKind.BIRD: bird, RouterKind.FRR: frr, RouterKind.GOBGP: gobgp}


def router_config(
    kind: Annotated[RouterKind, typer.Option("--kind", help="What the router runs.")],
    rack: Annotated[str, typer.Option("--rack", help="The rack (label `rack` of its nodes) whose router it is.")] = "",
    router: Annotated[
        list[str] | None,
        typer.Option(
            "--router", metavar="ADDRESS", help="The router's address, as peerIP has it; again for the other family."
        ),
    ] = None,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Print the router's side of the sessions with its rack's nodes: neighbours, timers, filters, limits.

    It is a whole configuration for `--kind`. A password is never printed: a comment names the Secret that has it.
    """
    if bool(rack) == bool(router):
        raise typer.BadParameter("give either --rack or --router", param_hint="--rack")
    addresses = [_address(text) for text in router or []]
    snapshot = asyncio.run(_snapshot(datastore))
    side = router_side(snapshot, addresses or rack_router(snapshot, rack))
    terminal.show_lines(_TEXT[kind](side).splitlines())


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--router") from None


async def _snapshot(target: str) -> Snapshot:
    async with store.opened(target) as opened:
        state = await store.read(opened, KINDS)
    readable = ((key, stored.resource) for key, stored in state.objects.items())
    return Snapshot().apply(state.revision, [*readable, *state.unreadable.items()])
