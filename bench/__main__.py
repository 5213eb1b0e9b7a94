"""python -m bench [NAME ...] [--all] [--json]: run benchmarks; with no name, list them. Exits 1 on a missed target."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from bench import harness
from bench.model import Result
from core.errors import MuslinError


def main(argv: Sequence[str]) -> int:
    """The command line above."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="benchmarks, each beside a peer")
    parser.add_argument("name", nargs="*", help="which to run")
    parser.add_argument("--all", action="store_true", help="run every one")
    parser.add_argument("--json", action="store_true", help="one JSON line each")
    given = parser.parse_args(argv)
    known = harness.benches()
    unknown = [name for name in given.name if name not in known]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(known)}")
    wanted = list(known) if given.all else given.name
    if not wanted:
        for name, found in known.items():
            print(f"{name:<18} {found.bench.what} ({found.bench.target}; beside {found.bench.peer})")
        return 0
    results = [_run(known[name], as_json=given.json) for name in wanted]
    return 0 if all(result.met for result in results) else 1


def _run(found: harness.Found, *, as_json: bool) -> Result:
    if not as_json:
        print(f"{found.bench.name}: {found.bench.what}", flush=True)
    result = harness.run(found)
    if as_json:
        print(json.dumps(asdict(result)), flush=True)
    else:
        for who, figure, series in (
            ("muslin", result.figure, result.series),
            (result.peer, result.peer_figure, result.peer_series),
        ):
            others = "".join(f", {name} {value:,g}" for name, value in series.items())
            print(f"  {who} {figure:,.10g} {result.unit}{others}")
        print(f"  ratio {result.ratio:.3g}, target {result.target}: {'met' if result.met else 'MISSED'}", flush=True)
    return result


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MuslinError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
