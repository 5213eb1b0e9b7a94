"""`python -m felix --node NAME --datastore unix:PATH --run-dir DIR`: one node's agent, until a signal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from core import log, supervise
from felix.agent import run
from felix.model import Config


def main() -> int:
    """Parse the arguments and run; the process's exit code."""
    parser = argparse.ArgumentParser(prog="felix", description="Make this host what the datastore says.")
    parser.add_argument("--node", required=True, help="the name of this host's Node object")
    parser.add_argument("--datastore", required=True, help="unix:PATH or HOST:PORT of the datastore")
    parser.add_argument("--run-dir", required=True, type=Path, help="where the last snapshot is kept")
    parser.add_argument("--log-level", default="info", choices=sorted(log.LEVELS))
    given = parser.parse_args()
    log.configure(given.log_level)
    given.run_dir.mkdir(parents=True, exist_ok=True)
    config = Config(node=given.node, datastore=given.datastore, run_dir=given.run_dir)
    return supervise.main({"felix": lambda: run(config)})


if __name__ == "__main__":
    sys.exit(main())
