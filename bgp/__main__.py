"""`python -m bgp`: the speaker alone, as `muslin bgp` runs it. SIGTERM ends it; kernel routes stay."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bgp import agent
from bgp.model import Config
from core import log, supervise


def main() -> int:
    """Run until a signal; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bgp", description="muslin's BGP speaker")
    parser.add_argument("--node", required=True, help="the name of this host's Node object")
    parser.add_argument("--datastore", required=True, help="unix:PATH or HOST:PORT")
    parser.add_argument("--run-dir", required=True, type=Path, help="where it keeps its files, its own for each node")
    options = parser.parse_args()
    log.configure()
    options.run_dir.mkdir(parents=True, exist_ok=True)
    config = Config(node=options.node, datastore=options.datastore, run_dir=options.run_dir)
    return supervise.main({"bgp": lambda: agent.run(config)})


if __name__ == "__main__":
    sys.exit(main())
