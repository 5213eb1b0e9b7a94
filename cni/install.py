"""Puts the executable and its network configuration where container runtimes look, and takes them away again.

    install    executable, then configuration        a runtime never sees a configuration whose plugin is not there
    uninstall  configuration, then executable

Each file appears whole or not at all. What somebody else put there is left alone unless `force` says otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from cni import conf
from cni.spec import Command
from core.errors import Invalid, MuslinError, Problem, Unsupported

BIN_DIR: Final = Path("/opt/cni/bin")
CONF_DIR: Final = Path("/etc/cni/net.d")
NETWORK: Final = "k8s-pod-network"
TYPE: Final = "muslin"
CONFLIST: Final = "10-muslin.conflist"

VERSION: Final = "1.0.0"
"""Of the specification: runtimes and chained plugins of 2023 speak no newer one, and refuse a newer result."""

PLUGIN_DIRS: Final = (BIN_DIR, Path("/usr/lib/cni"), Path("/usr/libexec/cni"))
"""Where distributions put the CNI project's plugins."""

INTERPRETER: Final = Path("/usr/bin/python3")

ANNOTATIONS: Final = "io.kubernetes.cri.pod-annotations"
"""The capability by which containerd and CRI-O pass a pod's annotations."""

CAPABILITIES: Final = {"ips": True, "mac": True, ANNOTATIONS: True}
"""What a runtime may ask of us for one pod."""

CHAINABLE: Final[dict[str, dict[str, Any]]] = {
    "portmap": {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}},
    "bandwidth": {"type": "bandwidth", "capabilities": {"bandwidth": True}},
}
"""The plugins that may follow ours, as they are configured."""

_OURS: Final = b"muscni"
"""In the text of every executable of ours, of any version: how what it sends begins."""
_SOCKET_LINE: Final = 'SOCKET = "/run/muslin/cni.sock"\n'
_SEEN: Final = (".conf", ".conflist", ".json")
"""How the name of a file ends that a runtime takes for a network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to install: `kind` is the executable's name, `socket` the agent's; `chain` None is every plugin that is
    found, `mtu` None the plugin's own choice."""

    bin_dir: Path
    conf_dir: Path
    socket: Path
    name: str = NETWORK
    kind: str = TYPE
    version: str = VERSION
    mtu: int | None = None
    chain: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What was written, the plugins that are chained, and sentences about what may still be in the way."""

    executable: Path
    conflist: Path
    chained: Sequence[str]
    notes: Sequence[str]


def install(plan: Plan, *, force: bool = False) -> Installed:
    """Write both files. Raises `Invalid` or `Failure` for a plan that cannot be, `MuslinError` for files that are not
    ours."""
    if not INTERPRETER.exists():
        raise Unsupported(f"there is no {INTERPRETER} on this machine, which each pod needs; apt-get install python3")
    found = {name: folder for name in CHAINABLE if (folder := _folder(name, plan.bin_dir))}
    chained = [name for name in CHAINABLE if name in (found if plan.chain is None else plan.chain)]
    _refuse_unfit(plan, found)
    executable, conflist = plan.bin_dir / plan.kind, plan.conf_dir / CONFLIST
    if not force:
        _refuse_foreign(executable, conflist)
    _write(executable, executable_text(plan.socket).encode(), 0o755)
    _write(conflist, (json.dumps(configuration(plan, chained), indent=2) + "\n").encode(), 0o644)
    notes = [
        f"{name} lies in {found[name]}: the runtime has to look there, too"
        for name in chained
        if found[name] != plan.bin_dir
    ]
    return Installed(
        executable=executable, conflist=conflist, chained=chained, notes=[*notes, *_overshadowed(conflist)]
    )


def uninstall(bin_dir: Path, conf_dir: Path, *, kind: str = TYPE, force: bool = False) -> tuple[Path, ...]:
    """Remove both files; those that were there. Raises `MuslinError` for files that are not ours."""
    executable, conflist = bin_dir / kind, conf_dir / CONFLIST
    if not force:
        _refuse_foreign(executable, conflist)
    gone = []
    for path in (conflist, executable):
        try:
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise MuslinError(f"{path} cannot be removed: {error.strerror}") from error
        gone.append(path)
    return tuple(gone)


def executable_text(socket: Path) -> str:
    """The executable that asks the agent at `socket`."""
    text = resources.files("cni").joinpath("executable.py").read_text()
    before, line, after = text.partition(_SOCKET_LINE)
    assert line, "the executable names its socket"
    return f"#!{INTERPRETER} -IS\n{before}SOCKET = {str(socket)!r}\n{after}"


def configuration(plan: Plan, chained: Sequence[str]) -> dict[str, Any]:
    """The network configuration list."""
    own: dict[str, Any] = {"type": plan.kind, "capabilities": CAPABILITIES}
    if plan.mtu is not None:
        own["mtu"] = plan.mtu
    plugins = [own, *(CHAINABLE[name] for name in chained)]
    return {"cniVersion": plan.version, "name": plan.name, "plugins": plugins}


def _folder(plugin: str, bin_dir: Path) -> Path | None:
    folders = dict.fromkeys((bin_dir, *PLUGIN_DIRS))
    return next((folder for folder in folders if os.access(folder / plugin, os.X_OK)), None)


def _refuse_unfit(plan: Plan, found: dict[str, Path]) -> None:
    problems = []
    for name in plan.chain or ():
        if name not in CHAINABLE:
            problems.append(Problem(path="chain", why=f"{name!r} is none of {', '.join(CHAINABLE)}"))
        elif name not in found:
            looked = ", ".join(map(str, dict.fromkeys((plan.bin_dir, *PLUGIN_DIRS))))
            why = f"{name} is not in {looked}; apt-get install containernetworking-plugins, or leave it out"
            problems.append(Problem(path="chain", why=why))
    if not plan.kind or "/" in plan.kind:
        problems.append(Problem(path="type", why=f"{plan.kind!r} is no name of a file"))
    if not plan.socket.is_absolute():
        problems.append(Problem(path="run-dir", why=f"{plan.socket.parent} is not an absolute path"))
    if problems:
        raise Invalid(problems)
    network = configuration(plan, ())
    conf.read({**network["plugins"][0], "name": network["name"]}, plan.version, Command.ADD, "", "")


def _refuse_foreign(executable: Path, conflist: Path) -> None:
    for path, ours in ((executable, _is_our_executable), (conflist, _is_our_conflist)):
        try:
            known = ours(path.read_bytes())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise MuslinError(f"{path} cannot be read: {error.strerror}") from error
        if not known:
            raise MuslinError(f"{path} is not muslin's; nothing was changed. --force overwrites it")


def _is_our_executable(text: bytes) -> bool:
    return _OURS in text


def _is_our_conflist(text: bytes) -> bool:
    with suppress(ValueError, KeyError, TypeError, IndexError):
        return bool(json.loads(text)["plugins"][0]["capabilities"][ANNOTATIONS])
    return False


def _overshadowed(conflist: Path) -> list[str]:
    """Whether a runtime that takes the first network it finds would take another."""
    names = sorted(each.name for each in conflist.parent.iterdir() if each.suffix in _SEEN)
    first = names[0]
    if first == conflist.name:
        return []
    return [f"{conflist.parent / first} comes before ours, and runtimes take the first: remove it"]


def _write(path: Path, text: bytes, mode: int) -> None:
    """The whole file or none of it, whoever reads meanwhile, and whatever ends us."""
    aside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise MuslinError(f"{path} cannot be written: {error.strerror}; run as root") from error
