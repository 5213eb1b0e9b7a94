"""bgp: the speaker of a node, every question about the cluster's peering, and what the racks' routers need.

Alone it is the agent; each word after it is a command of a module of its own.
"""

from __future__ import annotations

from typing import Annotated

import typer

from cli import agents, options
from cli.bgp_diff import diff
from cli.bgp_routes import adverts, routes
from cli.bgp_status import status
from cli.router_config import router_config

bgp = typer.Typer(help="The speaker of a node; what all speakers say, heard and did.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    bgp.command("status")(status)
    bgp.command("routes")(routes)
    bgp.command("adverts")(adverts)
    bgp.command("diff")(diff)
    bgp.command("router-config")(router_config)
    app.add_typer(bgp, name="bgp")


@bgp.callback()
def speaker(
    context: typer.Context,
    node: Annotated[str | None, typer.Option("--node", help="The name of this host's Node object.")] = None,
    datastore: options.DatastoreOption = options.DATASTORE,
    run_dir: options.RunDirOption = options.RUN_DIR,
    health: options.HealthOption = None,
    log_level: options.LogLevelOption = "info",
) -> None:
    """Run bgp, the agent that speaks with the racks' routers and programs what they say."""
    if context.invoked_subcommand is not None:
        return
    if node is None:
        raise typer.BadParameter("the name of this host's Node object is needed", param_hint="--node")
    agents.bgp(node, datastore, run_dir, health, log_level)
