"""datastore, felix, bgp, node: the processes that run on servers and nodes, and what keeps them alive."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from cli import options, store
from core import manifest
from core.errors import MuslinError, NotFound, Unsupported
from core.names import Key
from core.resources import Node
from datastore.api import Put

node = typer.Typer(help="Both agents of a node, kept alive; and what to do about a node.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.command("datastore")(datastore)
    app.command("felix")(felix)
    app.command("bgp")(bgp)
    app.add_typer(node, name="node")


def datastore(
    backend: Annotated[str, typer.Option(help="sqlite:PATH, or etcd:HOST:PORT[,HOST:PORT...].")],
    listen: Annotated[
        list[str] | None,
        typer.Option(help=f"Where to listen: unix:PATH or 127.0.0.1:PORT; repeatable.  [default: {options.DATASTORE}]"),
    ] = None,
    log_level: options.LogLevelOption = "info",
) -> None:
    """Run the datastore's server until it is told to end."""
    import structlog

    from core import log, supervise
    from datastore.serve import serve

    log.configure(log_level)

    def on_ready(addresses: Sequence[str]) -> None:
        structlog.get_logger().info("datastore.listening", addresses=list(addresses), backend=backend)

    addresses = listen or [options.DATASTORE]
    services = {"datastore": lambda: serve(backend, addresses, on_ready=on_ready)}
    raise typer.Exit(asyncio.run(supervise.run(services)))


def felix(
    node: options.NodeOption,
    datastore: options.DatastoreOption = options.DATASTORE,
    run_dir: options.RunDirOption = options.RUN_DIR,
    log_level: options.LogLevelOption = "info",
) -> None:
    """Run felix, the agent that programs this host's routes, tunnel and policy."""
    from core import log, supervise
    from felix import agent
    from felix.model import Config

    log.configure(log_level)
    _make(run_dir)
    config = Config(node=node, datastore=datastore, run_dir=run_dir)
    raise typer.Exit(asyncio.run(supervise.run({"felix": lambda: agent.run(config)})))


def bgp(
    node: options.NodeOption,
    datastore: options.DatastoreOption = options.DATASTORE,
    run_dir: options.RunDirOption = options.RUN_DIR,
    log_level: options.LogLevelOption = "info",
) -> None:
    """Run bgp, the agent that speaks with the racks' routers and programs what they say."""
    from bgp import agent
    from bgp.model import Config
    from core import log, supervise

    log.configure(log_level)
    _make(run_dir)
    config = Config(node=node, datastore=datastore, run_dir=run_dir)
    raise typer.Exit(asyncio.run(supervise.run({"bgp": lambda: agent.run(config)})))


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unsupported(
            f"cannot make {run_dir} ({error.strerror}); run as root, or give another --run-dir"
        ) from error


@node.callback()
def both(
    context: typer.Context,
    name: Annotated[str | None, typer.Option("--node", help="The name of this host's Node object.")] = None,
    datastore: options.DatastoreOption = options.DATASTORE,
    run_dir: options.RunDirOption = options.RUN_DIR,
    log_level: options.LogLevelOption = "info",
) -> None:
    """Run felix and bgp, start again the one that dies, and end both, bgp first, when told to."""
    if context.invoked_subcommand is not None:
        return
    if name is None:
        raise typer.BadParameter("the name of this host's Node object is needed", param_hint="--node")
    from cli.children import kept, muslin
    from core import log, supervise

    log.configure(log_level)
    common = ("--node", name, "--datastore", datastore, "--run-dir", str(run_dir), "--log-level", log_level)
    services = {agent: kept(agent, muslin(agent, *common)) for agent in ("felix", "bgp")}
    raise typer.Exit(asyncio.run(supervise.run(services, grace_s=15.0)))


@node.command()
def cleanup() -> None:
    """Remove what muslin owns in this kernel: its routes, its nftables table, its tunnel. End the agents first."""
    asyncio.run(_cleanup())


@node.command()
def release(
    name: Annotated[str, typer.Argument(metavar="NODE", help="The node's name.")],
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Let a node remove what its breaker holds back, because you have looked and it is meant."""
    asyncio.run(_release(name, datastore))


async def _release(name: str, target: str) -> None:
    from felix.status import RELEASE

    async with store.opened(target) as opened:
        state = await store.read(opened, {Node.KIND})
        found = state.objects.get(Key(Node.KIND, "", name))
        if found is None:
            raise NotFound(f"there is no node {name}; `muslin get nodes` lists them")
        metadata = found.resource.metadata
        stamp = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        metadata = msgspec.structs.replace(metadata, annotations={**metadata.annotations, RELEASE: stamp})
        after = msgspec.structs.replace(found.resource, metadata=metadata)
        await opened.txn([Put(after.key, manifest.encode(after), found.revision)])


async def _cleanup() -> None:
    from core.reconcile import Plan
    from core.routing import RouteProtocol
    from felix import agent
    from linux import rights
    from linux.routes import RouteDriver

    rights.require_net_admin()
    with closing(RouteDriver(RouteProtocol.BGP)) as routes:
        errors = await routes.apply(Plan(upsert={}, delete=await routes.read()))
    await agent.cleanup()
    if errors:
        raise MuslinError("; ".join(f"{key.destination}: {error}" for key, error in errors.items()))
