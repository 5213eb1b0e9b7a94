"""A User-Mode Linux kernel for what the host's kernel lacks (IP-in-IP), built once and kept.

It is an ordinary program. It boots the host's own root file system (hostfs), so all that is installed here is
there too, with a /run, /tmp and /dev of its own. What lies below the host's /tmp or /run and is needed (the project,
its Python, the scratch directory) is mounted again at the same place.

    built from   Debian's linux-source-6.1 and lab/uml-kernel.config
    kept in      ${XDG_CACHE_HOME:-~/.cache}/muslin/uml/<hash of both>/linux

    python -m lab.uml build            build it, unless it is there or this kernel needs none
    python -m lab.uml run -- CMD...    run a command in it; exits as the command does
    python -m lab.uml needed           exit 0 when this host's kernel has no IP-in-IP
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from core.errors import MuslinError, Unsupported

PACKAGE: Final = "linux-source-6.1"
SOURCE: Final = Path(f"/usr/src/{PACKAGE}.tar.xz")
CONFIG: Final = Path(__file__).with_name("uml-kernel.config")
HOUSE: Final = Path(__file__).parents[1]
SCRATCH: Final = "MUSLIN_SCRATCH"
"""The variable that names, inside the machine, the directory that it shares with the host."""

STEPS: Final = 1150
"""About how many objects a build compiles, for the progress line."""

MEMORY_MB: Final = 3072
"""What a machine may use at most, in megabytes; taken from the host as it is touched."""

_BEGIN: Final = "muslin: the command begins"
_END: Final = "muslin: the command has ended"
Progress = Callable[[str], None]


def needed() -> bool:
    """Whether this host's kernel has no IP-in-IP, tried in a network namespace of its own."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    argv = [*unshare, "ip", "link", "add", "name", "try", "type", "ipip", "remote", "192.0.2.1", "local", "192.0.2.2"]
    return subprocess.run(argv, capture_output=True, check=False).returncode != 0


def home() -> Path:
    """Where kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "muslin" / "uml"


def kernel() -> Path:
    """Where the kernel of this configuration and source is kept, whether it is there or not."""
    query = ["dpkg-query", "--show", "--showformat", "${Version}", PACKAGE]
    try:
        version = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError as error:
        raise Unsupported("the User-Mode Linux kernel is built on Debian 12: there is no dpkg-query here") from error
    if not version or not SOURCE.exists():
        raise Unsupported(f"the User-Mode Linux kernel is built from the package {PACKAGE}: run deploy/install.sh")
    digest = hashlib.sha256(version.encode() + b"\0" + CONFIG.read_bytes()).hexdigest()[:16]
    return home() / digest / "linux"


def build(progress: Progress) -> Path:
    """The kernel, built now if it is not there (4 minutes on 2 idle cores). Of two builds at once, one waits."""
    target = kernel()
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.parent / "lock", progress):
        if not target.exists():
            for left in target.parent.glob("build-*"):
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as scratch:
                _compile(Path(scratch), progress).rename(target)
    return target


@contextlib.contextmanager
def _alone(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock on `path`; the kernel releases it however we end."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another build of the User-Mode Linux kernel is running; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(scratch: Path, progress: Progress) -> Path:
    log = scratch.parent / "build.log"
    log.write_text("")
    progress(f"building the User-Mode Linux kernel (once; 4 minutes or more on 2 cores; log: {log})")
    _step(["tar", "--extract", "--file", str(SOURCE), "--directory", str(scratch)], scratch, log)
    tree = next(path for path in scratch.iterdir() if path.is_dir())
    _step(["make", "ARCH=um", "defconfig"], tree, log)
    with (tree / ".config").open("ab") as config:
        config.write(CONFIG.read_bytes())
    _step(["make", "ARCH=um", "olddefconfig"], tree, log)
    _step(["make", "ARCH=um", f"-j{os.cpu_count() or 1}", "linux"], tree, log, _counter(progress))
    _step(["strip", "--strip-debug", "linux"], tree, log)
    return tree / "linux"


def _counter(progress: Progress) -> Progress:
    """Turns make's lines into a line of progress every few seconds."""
    began, shown, compiled = time.monotonic(), 0.0, 0

    def line(text: str) -> None:
        nonlocal shown, compiled
        compiled += text.lstrip().startswith(("CC ", "AS ", "HOSTCC "))
        now = time.monotonic()
        if now - shown > 5:
            shown = now
            share = min(99, 100 * compiled // STEPS)
            progress(f"building the User-Mode Linux kernel: {compiled} objects, {share} %, {now - began:.0f} s")

    return line


def _step(argv: Sequence[str], directory: Path, log: Path, on_line: Progress | None = None) -> None:
    """Run one step of the build, its output into `log`; ends it, with all its children, if we are interrupted."""
    environment = {**os.environ, "LC_ALL": "C", "KCONFIG_NOTIMESTAMP": "1"}
    environment.pop("MAKEFLAGS", None)  # we may run under make ourselves
    environment.pop("MAKELEVEL", None)
    try:
        child = subprocess.Popen(
            argv,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise Unsupported(f"building the User-Mode Linux kernel needs {argv[0]}: run deploy/install.sh") from error
    assert child.stdout is not None
    try:
        with child, log.open("a") as out:
            for text in child.stdout:
                out.write(text)
                if on_line:
                    on_line(text)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    if child.returncode:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise MuslinError(
            f"building the User-Mode Linux kernel failed at: {shlex.join(argv)}\n{tail}\nall of it: {log}"
        )


async def run(
    argv: Sequence[str],
    *,
    scratch: Path | None = None,
    memory_mb: int = MEMORY_MB,
    timeout: float = 600,
    on_line: Progress = print,
    env: Mapping[str, str] | None = None,
) -> int:
    """Run a command in a machine of its own, in the project's directory; its exit code.

    Every line it writes goes to `on_line` as it comes. `scratch` is shared with the host under the same path and
    named by $MUSLIN_SCRATCH inside; without one there is a new one, removed at the end. After `timeout` seconds, or
    when the caller is cancelled, the machine is killed. A machine that ends without an exit code raises.
    """
    linux = kernel()
    if not linux.exists():
        await _built(on_line)
    (home() / "runs").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=home() / "runs") as own:
        init, code = Path(own, "init"), Path(own, "code")
        init.write_text(_init(argv, code, scratch or Path(own), env or {}))
        init.chmod(0o755)
        last = await _boot(linux, init, memory_mb, timeout, on_line)
        if not code.exists():
            raise MuslinError("the User-Mode Linux machine ended without running its command:\n" + "\n".join(last))
        return int(code.read_text())


async def _built(on_line: Progress) -> None:
    """`build`, in a process of its own: so that we can be cancelled meanwhile, and end it as Ctrl-C would."""
    argv = [sys.executable, "-c", "from lab import uml; uml.build(uml.show)"]
    pipe, out = asyncio.subprocess.PIPE, asyncio.subprocess.STDOUT
    child = await asyncio.create_subprocess_exec(*argv, cwd=HOUSE, stdout=pipe, stderr=out, start_new_session=True)
    assert child.stdout is not None
    last = ""
    try:
        async for raw in child.stdout:
            last = raw.decode(errors="replace").rstrip("\n")
            on_line(last)
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)
        await child.wait()
    if child.returncode:
        raise MuslinError(f"the User-Mode Linux kernel was not built: {last}")


async def _boot(linux: Path, init: Path, memory_mb: int, timeout: float, on_line: Progress) -> list[str]:
    """Boot and see it through to its end; the last lines it wrote."""
    arguments = [f"mem={memory_mb}M", "rootfstype=hostfs", "rootflags=/", "rw", f"init={init}", "quiet"]
    child = await asyncio.create_subprocess_exec(
        str(linux),
        *arguments,
        "con=null",
        "con0=fd:0,fd:1",
        "panic=-1",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TMPDIR": _roomy(memory_mb)},
        start_new_session=True,
        limit=1 << 20,
    )
    try:
        async with asyncio.timeout(timeout):
            return await _listen(child, on_line)
    except TimeoutError:
        raise MuslinError(f"the User-Mode Linux machine was killed after {timeout:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


async def _listen(child: asyncio.subprocess.Process, on_line: Progress) -> list[str]:
    assert child.stdout is not None
    begun, ended, last = False, False, [""]
    async for raw in child.stdout:
        text = raw.decode(errors="replace").rstrip("\r\n")
        last = [*last[-20:], text]
        ends = text.endswith(_END)
        said = text.removesuffix(_END)
        if begun and not ended and (said or not ends):
            on_line(said)
        begun, ended = begun or text == _BEGIN, ended or ends
    return last


def _roomy(memory_mb: int) -> str:
    """A directory that can hold the machine's memory: /dev/shm, unless it is small, as in containers."""
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).free > memory_mb << 20:
        return str(shared)
    return "/var/tmp"


def _init(argv: Sequence[str], code: Path, scratch: Path, env: Mapping[str, str]) -> str:
    """What runs as process 1: mounts, the command, its exit code, the end."""
    kept = {HOUSE, Path(sys.prefix), Path(sys.base_prefix), code.parent, scratch}
    hidden = sorted(path.resolve() for path in kept if path.resolve().parts[1] in {"tmp", "run"})
    again = [f"mkdir -p {d} && mount -t hostfs -o {d} none {d}" for d in map(shlex.quote, map(str, hidden))]
    variables = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "HOME": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        SCRATCH: str(scratch),
        **env,
    }
    lines = [
        "#!/bin/sh",
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        "mount -t proc proc /proc; mount -t sysfs sysfs /sys",
        "mount -t tmpfs -o mode=1777 tmp /tmp; mount -t tmpfs -o mode=755 run /run; mkdir -p /run/lock",
        *again,
        "mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs -o mode=1777 shm /dev/shm",
        "ip link set lo up",
        f"cd {shlex.quote(str(HOUSE))}",
        f"echo '{_BEGIN}'",
        f"{shlex.join(argv)} </dev/null",
        f"echo $? > {shlex.quote(str(code))}.part && mv {shlex.quote(str(code))}.part {shlex.quote(str(code))}",
        f"echo '{_END}'",
        "sleep 0.1; echo o > /proc/sysrq-trigger; sleep 60",
    ]
    return "\n".join(lines) + "\n"


def show(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(argv: Sequence[str]) -> int:
    """The command line above."""
    match list(argv):
        case ["needed"]:
            return 0 if needed() else 1
        case ["build"]:
            if not needed():
                show("this host's kernel has IP-in-IP: no User-Mode Linux kernel is needed")
                return 0
            show(f"User-Mode Linux kernel: {build(show)}")
            return 0
        case ["run", "--", *command] if command:
            return asyncio.run(run(command, on_line=show))
    sys.stderr.write("usage: python -m lab.uml needed | build | run -- CMD...\n")
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MuslinError as problem:
        sys.stderr.write(f"{problem}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
