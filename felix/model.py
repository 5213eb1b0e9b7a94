"""What felix is told and what it decides, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from core.names import Key
from core.nftables import Ruleset
from core.resources.policy import Direction
from felix.cut import Ruling
from felix.endpoints import Claims, Endpoint
from felix.hosts import Host
from felix.peering_address import Peering
from linux.model import Route, RouteKey
from linux.tunnels import Tunnel
from policy.compile import Compiled
from policy.model import Plane


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Who this felix is: its node, the datastore's address (`unix:PATH` or `HOST:PORT`), and where it keeps files."""

    node: str
    datastore: str
    run_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Policy for this node's endpoints: the stacks' tables in parts, and each endpoint's chains, ingress and egress.

    `problems` says per policy what was closed because it could not be enforced as written; `lost` counts the kinds of
    address that found no class number and are denied, `unnumbered` the outcomes. While it is not `settled`, judging the
    same again changes numbers and no verdict. `compiled` is what all of it was made from. `claims` are this
    node's endpoints, `hosts` the names of host endpoints' stacks.
    """

    rules: Mapping[str, Ruleset]
    chains: Mapping[Key, tuple[str, str]]
    problems: Mapping[Key, str]
    compiled: Compiled
    claims: Claims
    lost: int = 0
    unnumbered: int = 0
    settled: bool = True
    hosts: Mapping[tuple[Key, Plane, Direction], str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What this host's kernel should hold as of `revision`, and whom it serves.

    `rejected` endpoints stay cut off, for the reason given. `problems` are sentences about what else could not be
    carried out. `stale` says that the snapshot came from disk because the datastore is away. `tunnelled` names the
    pools that need the tunnel; with `awaited` its device is wanted and not there yet, so neither are its routes. `held`
    says what the breaker keeps from being followed. `peering` is how pods reach this node's speaker, `ruling` what
    live connections are judged by (`felix.cut`).
    """

    revision: int
    stale: bool
    sysctls: Mapping[str, str]
    tunnels: Mapping[str, Tunnel]
    nft: Mapping[str, Ruleset]
    routes: Mapping[RouteKey, Route]
    endpoints: tuple[Endpoint, ...]
    rejected: Mapping[Key, str]
    problems: tuple[str, ...]
    tunnelled: tuple[str, ...] = ()
    awaited: bool = False
    held: tuple[str, ...] = ()
    hosts: tuple[Host, ...] = ()
    peering: Peering = field(default_factory=Peering)
    ruling: Ruling | None = field(default=None, compare=False, repr=False)
