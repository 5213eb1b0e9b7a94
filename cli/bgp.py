"""bgp: the speaker of a node, and every question about the cluster's peering.

Each subcommand lives in a module of its own, `cli/bgp_*.py`, and adds itself to `app` there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import agents, options

app = typer.Typer(help="The speaker of a node; and what all speakers say, heard and did.", invoke_without_command=True)


def register(root: typer.Typer) -> None:
    """Add this family's commands."""
    root.add_typer(app, name="bgp")


@app.callback()
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
    agents.bgp(node, datastore, Path(run_dir), health, log_level)
