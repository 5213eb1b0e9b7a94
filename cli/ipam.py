"""ipam: who holds which address, what is wrong with that, and how addresses are given. Calico's words and options."""

from __future__ import annotations

import typer

from cli.ipam_change import configure, release, split
from cli.ipam_check import check
from cli.ipam_show import history, show

ipam = typer.Typer(help="Who holds which address, whether all is in order, and how addresses are given.")


def register(app: typer.Typer) -> None:
    """Add this family's commands."""
    ipam.command("show")(show)
    ipam.command("history")(history)
    ipam.command("check")(check)
    ipam.command("release")(release)
    ipam.command("split")(split)
    ipam.command("configure")(configure)
    app.add_typer(ipam, name="ipam")
