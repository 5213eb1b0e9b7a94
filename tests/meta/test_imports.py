"""The house has doors, and these are all of them: who may import whom, and who may touch the outside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
ROOMS = ("core", "linux", "policy", "felix", "bgp", "datastore", "proto", "cni", "cli", "lab", "bench")

MAY_IMPORT = {
    "core": {"core"},
    "linux": {"core", "linux"},
    "policy": {"core", "policy"},
    "felix": {"core", "linux", "policy", "datastore", "felix"},
    "bgp": {"core", "linux", "datastore", "bgp"},
    "cni": {"core", "linux", "datastore", "cni"},
    "datastore": {"core", "datastore", "proto"},
    "proto": {"proto"},
    "cli": set(ROOMS) - {"bench", "proto"},
    "lab": set(ROOMS) - {"bench", "proto"},
    "bench": set(ROOMS) - {"proto"},
}

STORE_DOORS = {"datastore.api", "datastore.client", "datastore.follow", "datastore.ipam", "datastore.objects"}
"""What agents may see of the datastore: never a backend, never the wire."""

OUTSIDE = {"socket", "_socket", "subprocess", "grpc", "pyroute2", "ctypes"}
MAY_TOUCH_OUTSIDE = {
    "linux",
    "lab",
    "bench",
    "cli",
    "bgp.exabgp.process",
    "bgp.exabgp.bridge",
    "bgp.bfd.channel",
    "bgp.bfd.keeper",
    "bgp.bfd.sockets",
    "cni.executable",
    "cni.server",
    "core.log",
    "core.health",
    "core.config",
    "datastore.client",
    "datastore.codec",
    "datastore.etcd",
    "datastore.server",
    "datastore.serve",
    "datastore.sqlite",
    "proto",
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the house by dotted name."""
    for room in ROOMS:
        for path in sorted((HOUSE / room).rglob("*.py")):
            parts = path.relative_to(HOUSE).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def imports(path: Path) -> Iterator[str]:
    """Every absolute module name that `path` imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the direction"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


ALL = [pytest.param(name, path, id=name) for name, path in modules()]


@pytest.mark.parametrize(("name", "path"), ALL)
def test_import_direction(name: str, path: Path) -> None:
    room = name.split(".")[0]
    for imported in imports(path):
        target = imported.split(".")[0]
        assert target not in ROOMS or target in MAY_IMPORT[room], f"{name} imports {imported}"


@pytest.mark.parametrize(("name", "path"), [each for each in ALL if each.values[0].startswith(("felix", "bgp", "cni"))])
def test_agents_see_only_the_stores_contract(name: str, path: Path) -> None:
    for imported in imports(path):
        if imported.startswith("datastore."):
            assert ".".join(imported.split(".")[:2]) in STORE_DOORS, f"{name} imports {imported}"


@pytest.mark.parametrize(("name", "path"), ALL)
def test_only_the_edges_touch_the_outside(name: str, path: Path) -> None:
    edges = {name, name.split(".")[0]} & MAY_TOUCH_OUTSIDE
    if edges or name.endswith("__main__"):
        return
    touched = {imported.split(".")[0] for imported in imports(path)} & OUTSIDE
    assert not touched, f"{name} imports {touched}; only the edges may"


@pytest.mark.parametrize(("name", "path"), ALL)
def test_the_wire_stops_at_the_codec(name: str, path: Path) -> None:
    if name.startswith("proto") or name in {"datastore.codec", "datastore.server", "datastore.client"}:
        return
    assert not [imported for imported in imports(path) if imported.split(".")[0] == "proto"]
