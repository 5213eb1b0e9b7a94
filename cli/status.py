"""status and rollout: what the agents report, and waiting for it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Annotated

import typer

from cli import cluster, options, store, terminal, watching
from core.errors import NotFound, Unavailable

rollout = typer.Typer(help="Wait for changes to reach the kernels.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.command("status")(status)
    app.add_typer(rollout, name="rollout")


def status(
    output: options.ResultOption = options.ResultFormat.TEXT,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again whenever a report changes.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 when anything is not right.")] = False,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Every node: what felix has programmed, BGP sessions, routes in and out, and what is not right."""
    right = asyncio.run(_status(datastore, output, watch))
    if check and not right:
        raise typer.Exit(1)


@rollout.command("status")
def rollout_status(
    timeout: Annotated[float, typer.Option(help="How many seconds to wait.", min=0)] = 30.0,
    output: options.ResultOption = options.ResultFormat.TEXT,
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Wait until felix on every node has programmed the newest change; exit 1 when `--timeout` passes first."""
    page = asyncio.run(_rollout(datastore, timeout))
    nodes = [each.node for each in page.nodes]
    if output is options.ResultFormat.JSON:
        terminal.show_json({"revision": page.revision, "nodes": nodes, "waitingFor": list(page.behind())})
    elif page.nodes and not page.behind():
        terminal.show_lines([f"revision {page.revision} is programmed on {len(nodes)} nodes"])
    if not page.nodes:
        raise NotFound(cluster.NO_NODES)
    if page.behind():
        raise Unavailable(
            f"after {timeout:g} s revision {page.revision} is not programmed on {', '.join(page.behind())}; "
            "`muslin status` says why"
        )


async def _status(target: str, output: options.ResultFormat, watch: bool) -> bool:
    async with store.opened(target) as opened, aclosing(watching.pages(opened)) as pages:
        async for page in pages:
            if watch:
                terminal.clear()
            _show(page, output)
            if not watch:
                return page.right
    raise AssertionError("pages never ends by itself")


async def _rollout(target: str, timeout_s: float) -> cluster.Overview:
    async with store.opened(target) as opened:
        return await watching.rolled_out(opened, timeout_s)


def _show(page: cluster.Overview, output: options.ResultFormat) -> None:
    if output is options.ResultFormat.JSON:
        terminal.show_json(cluster.document(page))
    else:
        terminal.show(*cluster.tables(page))
