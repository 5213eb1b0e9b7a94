"""cni: the agent that container runtimes ask through their plugin, and what they need on disk to find it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options, terminal
from cni.install import BIN_DIR, CONF_DIR, NETWORK, TYPE, Plan
from cni.model import LEAK_GRACE_S

cni = typer.Typer(
    help="The CNI agent of a node; and what container runtimes need to find it.", invoke_without_command=True
)

END_S = 15.0
"""How long the agent may take to end, in seconds: calls under way finish, or are taken back."""

BinDirOption = Annotated[Path, typer.Option("--bin-dir", help="Where runtimes look for plugins.")]
ConfDirOption = Annotated[Path, typer.Option("--conf-dir", help="Where runtimes look for networks.")]
TypeOption = Annotated[str, typer.Option("--type", help="The executable's name, and the plugin's `type`.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Even if somebody else's files are there.")]


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    app.add_typer(cni, name="cni")


@cni.callback()
def agent(
    context: typer.Context,
    node: Annotated[str | None, typer.Option("--node", help="The name of this host's Node object.")] = None,
    datastore: options.DatastoreOption = options.DATASTORE,
    run_dir: options.RunDirOption = options.RUN_DIR,
    leak_grace: options.LeakGraceOption = LEAK_GRACE_S,
    health: options.HealthOption = None,
    log_level: options.LogLevelOption = "info",
) -> None:
    """Run the CNI agent, which joins this host's pods when a container runtime asks."""
    if context.invoked_subcommand is not None:
        return
    if node is None:
        raise typer.BadParameter("the name of this host's Node object is needed", param_hint="--node")
    from cli import agents
    from cni.agent import COMPONENTS, run
    from cni.metrics import Metrics
    from cni.model import Config
    from core import log
    from core.health import Health
    from core.metrics import exposed

    log.configure(log_level)
    config = Config(node=node, datastore=datastore, run_dir=run_dir, leak_grace_s=leak_grace)
    state = Health(COMPONENTS)
    measured = Metrics()

    async def exposition() -> bytes:
        return exposed(measured.families())

    services = {"cni": lambda: run(config, state, measured)}
    agents.run(services, state, health, run_dir=run_dir, grace_s=END_S, metrics=exposition)


@cni.command()
def install(
    bin_dir: BinDirOption = BIN_DIR,
    conf_dir: ConfDirOption = CONF_DIR,
    name: Annotated[str, typer.Option(help="The network's name.")] = NETWORK,
    kind: TypeOption = TYPE,
    run_dir: options.RunDirOption = options.RUN_DIR,
    mtu: Annotated[int | None, typer.Option(help="The pods' MTU.  [default: 1480]", show_default=False)] = None,
    chain: Annotated[
        str | None,
        typer.Option(
            help="Plugins to chain: portmap, bandwidth, both with a comma, or none.  [default: what is there]",
            show_default=False,
        ),
    ] = None,
    force: ForceOption = False,
    output: options.ResultOption = options.ResultFormat.TEXT,
) -> None:
    """Write the executable and the network configuration that make container runtimes ask this node's agent."""
    from cni import server
    from cni.install import install

    chained = None if chain is None else [each for each in chain.split(",") if each and chain != "none"]
    plan = Plan(
        bin_dir=bin_dir,
        conf_dir=conf_dir,
        socket=run_dir / server.SOCKET,
        name=name,
        kind=kind,
        mtu=mtu,
        chain=chained,
    )
    done = install(plan, force=force)
    if output is options.ResultFormat.JSON:
        terminal.show_json(
            {
                "executable": str(done.executable),
                "conflist": str(done.conflist),
                "socket": str(plan.socket),
                "chained": list(done.chained),
                "notes": list(done.notes),
            }
        )
        return
    chain_said = f", chained with {' and '.join(done.chained)}" if done.chained else ""
    terminal.show_lines(
        [f"{done.executable} asks the agent at {plan.socket}", f"{done.conflist} is network {name}{chain_said}"]
    )
    for note in done.notes:
        terminal.tell(note)


@cni.command()
def uninstall(
    bin_dir: BinDirOption = BIN_DIR,
    conf_dir: ConfDirOption = CONF_DIR,
    kind: TypeOption = TYPE,
    force: ForceOption = False,
    output: options.ResultOption = options.ResultFormat.TEXT,
) -> None:
    """Remove what `install` wrote. Pods that run keep their network, and their runtime can no longer take it away."""
    from cni.install import uninstall

    gone = uninstall(bin_dir, conf_dir, kind=kind, force=force)
    if output is options.ResultFormat.JSON:
        terminal.show_json({"removed": [str(path) for path in gone]})
        return
    terminal.show_lines([f"{path} removed" for path in gone] or ["there is nothing to remove"])
