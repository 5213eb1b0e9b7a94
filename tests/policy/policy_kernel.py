"""A ruleset as nft text, and a network namespace to load it into."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address

from core.nftables import Ruleset, join


def run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def text_of(parts: Mapping[str, Ruleset], base: Iterable[str] = ()) -> str:
    """The parts as one nft script, `base` being more lines of the table."""
    ruleset = join(*parts.values())
    lines = ["table inet muslin {"]
    lines += [f"counter {name} {{ }}" for name in ruleset.counters]
    lines += [f"chain {name} {{ }}" for name in ruleset.chains]
    for name, each in ruleset.sets.items():
        flags = "flags interval;" if each.interval else ""
        value = f" : {each.value}" if each.value else ""
        counter = "counter;" if each.counter else ""
        kind = "map" if each.value else "set"
        lines.append(f"{kind} {name} {{ type {' . '.join(each.key)}{value}; {flags} {counter} }}")
    lines += [*base, "}"]
    for name, chain in ruleset.chains.items():
        lines += [f"add rule inet muslin {name} {rule}" for rule in chain.rules]
    for element, said in ruleset.elements.items():
        value = f'"{said}"' if ruleset.sets[element.set].value == "counter" else said
        lines.append(f"add element inet muslin {element.set} {{ {element.key}{f' : {value}' if value else ''} }}")
    return "\n".join(lines) + "\n"


@contextmanager
def namespace(addresses: Iterable[str] = ()) -> Iterator[str]:
    """A network namespace that owns `addresses`; gone afterwards."""
    name = f"mu-policy-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        for address in sorted(set(addresses)):
            run("ip", "-n", name, "addr", "add", f"{address}/{ip_address(address).max_prefixlen}", "dev", "lo")
        yield name
    finally:
        run("ip", "netns", "del", name)
