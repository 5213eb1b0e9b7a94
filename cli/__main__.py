"""`muslin`: the app, and the one place where an error becomes a sentence and an exit code.

0    done
1    refused, failed, or (under --check) not right: each problem is a line on stderr, and nothing was changed
2    the command line itself was wrong; of `plan`, also: something flips
130  interrupted
"""

from __future__ import annotations

import os
import sys

import typer

from cli import agents, bgp, cni, decisions, explain, ipam, labs, lint, objects, plan, policy_test, status
from core.errors import on_purpose

app = typer.Typer(
    name="muslin",
    help="A BGP-routed pod network for Linux: host routes, nftables policy, IP-in-IP, peering with racks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for family in (agents, cni, bgp, objects, status, decisions, explain, ipam, plan, policy_test, lint, labs):
    family.register(app)


@app.command()
def version() -> None:
    """Print the version of this program."""
    from importlib.metadata import version as installed

    print(f"muslin {installed('muslin')}")


def main() -> None:
    """The console script; a MuslinError is its own explanation, anything else that escapes is a bug."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else gRPC tells of connections where only our own words belong
    try:
        app(prog_name="muslin")
    except Exception as error:
        sentences = on_purpose(error)
        if not sentences:
            raise
        print(*dict.fromkeys(map(str, sentences)), sep="\n", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
