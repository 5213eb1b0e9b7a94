"""`python -m cni --node NAME --datastore unix:PATH --run-dir DIR`: one node's CNI agent, until a signal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cni.agent import run
from cni.model import Config
from core import log, supervise


def main() -> int:
    """Parse the arguments and run; the process's exit code."""
    parser = argparse.ArgumentParser(prog="cni", description="Join this host's pods when a container runtime asks.")
    parser.add_argument("--node", required=True, help="the name of this host's Node object")
    parser.add_argument("--datastore", required=True, help="unix:PATH or HOST:PORT of the datastore")
    parser.add_argument("--run-dir", required=True, type=Path, help="where its socket is, and felix's")
    parser.add_argument("--log-level", default="info", choices=sorted(log.LEVELS))
    given = parser.parse_args()
    log.configure(given.log_level)
    config = Config(node=given.node, datastore=given.datastore, run_dir=given.run_dir)
    return supervise.main({"cni": lambda: run(config)})


if __name__ == "__main__":
    sys.exit(main())
