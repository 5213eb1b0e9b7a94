"""datastore, felix, bgp, node: the processes that run on servers and nodes, and what keeps them alive.

The CNI agent, which `node` keeps too, is in `cli.cni`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import msgspec
import typer

from cli import options, store, terminal
from cli.node_drain import drain, uncordon
from cli.node_remove import remove
from cni.model import LEAK_GRACE_S
from core import clock, manifest
from core.errors import MuslinError, NotFound
from core.names import Key
from core.resources import Node
from datastore.api import Put

if TYPE_CHECKING:
    from core.health import Exposition, Health
    from core.supervise import Service

node = typer.Typer(help="The agents of a node, kept alive; and what to do about a node.", invoke_without_command=True)

AGENTS: Final = ("felix", "bgp", "cni")
"""What a node runs, as it is started. It ends the other way round: first no pod begins here any more, while felix
programs those whose ADD is under way; then routers are told; and policy is kept up to the last."""


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.command("datastore")(datastore)
    app.command("felix")(felix)
    node.command("drain")(drain)
    node.command("uncordon")(uncordon)
    node.command("remove")(remove)
    app.add_typer(node, name="node")


def datastore(
    backend: Annotated[str, typer.Option(help="sqlite:PATH, or etcd:HOST:PORT[,HOST:PORT...].")],
    listen: Annotated[
        list[str] | None,
        typer.Option(help=f"Where to listen: unix:PATH or 127.0.0.1:PORT; repeatable.  [default: {options.DATASTORE}]"),
    ] = None,
    health: options.HealthOption = None,
    log_level: options.LogLevelOption = "info",
) -> None:
    """Run the datastore's server until it is told to end."""
    import structlog

    from cli import health as asking
    from core import log
    from core.health import Health
    from datastore.serve import serve

    log.configure(log_level)
    addresses = listen or [options.DATASTORE]
    state = Health([asking.STORE])
    bound: asyncio.Queue[str] = asyncio.Queue()

    def on_ready(found: Sequence[str]) -> None:
        structlog.get_logger().info("datastore.listening", addresses=list(found), backend=backend)
        bound.put_nowait(found[0])

    async def ask() -> None:
        await asking.datastore(state, await bound.get())

    services: dict[str, Service] = {"datastore": lambda: serve(backend, addresses, on_ready=on_ready)}
    run({**services, "health questions": ask} if health else services, state, health)


def felix(
    node: options.NodeOption,
    datastore: options.DatastoreOption = options.DATASTORE,
    run_dir: options.RunDirOption = options.RUN_DIR,
    health: options.HealthOption = None,
    log_level: options.LogLevelOption = "info",
) -> None:
    """Run felix, the agent that programs this host's routes, tunnel and policy."""
    from core import log
    from core.health import Health
    from core.metrics import exposed
    from felix import agent
    from felix.metrics import Metrics
    from felix.model import Config

    log.configure(log_level)
    config, state = Config(node=node, datastore=datastore, run_dir=run_dir), Health(agent.COMPONENTS)
    measured = Metrics()

    async def exposition() -> bytes:
        return await asyncio.to_thread(lambda: exposed(measured.families()))

    run({"felix": lambda: agent.run(config, state, measured)}, state, health, run_dir=run_dir, metrics=exposition)


def bgp(
    node: options.NodeOption,
    datastore: options.DatastoreOption = options.DATASTORE,
    run_dir: options.RunDirOption = options.RUN_DIR,
    health: options.HealthOption = None,
    log_level: options.LogLevelOption = "info",
) -> None:
    """Run bgp, the agent that speaks with the racks' routers and programs what they say."""
    from bgp import agent
    from bgp.model import Config
    from bgp.reporting.metrics import Metrics
    from core import log
    from core.health import Health
    from core.metrics import exposed

    log.configure(log_level)
    config, state = Config(node=node, datastore=datastore, run_dir=run_dir), Health(agent.COMPONENTS)
    measured = Metrics()

    async def exposition() -> bytes:
        return exposed(measured.families())

    run({"bgp": lambda: agent.run(config, state, measured)}, state, health, run_dir=run_dir, metrics=exposition)


def run(
    services: Mapping[str, Service],
    state: Health,
    address: str | None,
    *,
    run_dir: Path | None = None,
    grace_s: float = 5.0,
    metrics: Exposition | None = None,
) -> NoReturn:
    """Be a process of these services until a signal, and answer for their health when there is an address for it."""
    from core import health, supervise

    try:
        if run_dir:
            run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        terminal.tell(f"cannot make {run_dir} ({error.strerror}); run as root, or give another --run-dir")
        raise typer.Exit(supervise.CANNOT_RUN) from error
    if address:  # it starts first and ends last
        services = {"health": lambda: health.serve(state, address, metrics or health.nothing), **services}
    raise typer.Exit(supervise.main(services, grace_s=grace_s))


@node.callback()
def every(
    context: typer.Context,
    name: Annotated[str | None, typer.Option("--node", help="The name of this host's Node object.")] = None,
    datastore: options.DatastoreOption = options.DATASTORE,
    run_dir: options.RunDirOption = options.RUN_DIR,
    leak_grace: options.LeakGraceOption = LEAK_GRACE_S,
    health: options.HealthOption = None,
    log_level: options.LogLevelOption = "info",
) -> None:
    """Run felix, bgp and the CNI agent, start again the one that dies, and end them, cni first, when told to."""
    if context.invoked_subcommand is not None:
        return
    if name is None:
        raise typer.BadParameter("the name of this host's Node object is needed", param_hint="--node")
    from cli import health as asking
    from cli.children import kept, muslin
    from core import log
    from core.health import Health

    log.configure(log_level)
    sockets = {agent: run_dir / f"{agent}.health" for agent in AGENTS} if health else {}
    state = Health(AGENTS)
    services: dict[str, Service] = {}
    for agent in AGENTS:
        words = [agent, "--node", name, "--datastore", datastore, "--run-dir", str(run_dir), "--log-level", log_level]
        words += ["--health", f"unix:{sockets[agent]}"] if health else []
        words += ["--leak-grace", str(leak_grace)] if agent == "cni" else []
        services[agent] = kept(agent, muslin(*words))
    if health:
        services["health questions"] = lambda: asking.agents(state, sockets)
    run(services, state, health, run_dir=run_dir, grace_s=15.0, metrics=lambda: asking.metrics(sockets))


@node.command()
def cleanup() -> None:
    """Remove what muslin owns in this kernel: routes, nftables table, tunnel, addresses. End the agents first."""
    asyncio.run(_cleanup())


@node.command()
def release(
    name: Annotated[str, typer.Argument(metavar="NODE", help="The node's name.")],
    datastore: options.DatastoreOption = options.DATASTORE,
) -> None:
    """Let a node remove what its breaker holds back, because you have looked and it is meant."""
    asyncio.run(_release(name, datastore))


async def _release(name: str, target: str) -> None:
    from core.breaker import RELEASE

    async with store.opened(target) as opened:
        state = await store.read(opened, {Node.KIND})
        found = state.objects.get(Key(Node.KIND, "", name))
        if found is None:
            raise NotFound(f"there is no node {name}; `muslin get nodes` lists them")
        metadata = found.resource.metadata
        metadata = msgspec.structs.replace(metadata, annotations={**metadata.annotations, RELEASE: clock.now()})
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
