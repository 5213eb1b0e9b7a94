"""`muslin-cni`: what a container runtime runs, once for each thing it asks. Its answer alone goes to standard output.

Everything that takes long to import is imported after the call has been found in order, so VERSION and mistakes are
answered at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from cni import spec
from cni.spec import Call, Code, Command, Failure


def main() -> int:
    """Answer one call; the process's exit code."""
    given = sys.stdin.buffer.read()
    try:
        call = spec.parse(os.environ, given, socket.gethostname())
        _say(spec.versions(call.config.version) if call.command is Command.VERSION else _do(call))
    except Failure as failure:
        _say(spec.error(failure, _version(given)))
        return 1
    return 0


def _say(answer: Mapping[str, Any] | None) -> None:
    if answer is not None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _version(given: bytes) -> str:
    try:
        document = json.loads(given)
    except ValueError:
        document = None
    return spec.version_of(document if isinstance(document, dict) else {})


def _do(call: Call) -> Mapping[str, Any] | None:
    import structlog

    from core import log

    with _log_file(call.config.log_file) as stream:
        log.configure(stream=stream)
        logger = structlog.get_logger()
        try:
            return asyncio.run(_answer(call))
        except Failure as failure:
            logger.warning("cni.failed", command=str(call.command), code=int(failure.code), why=str(failure))
            raise
        except asyncio.CancelledError:
            raise Failure(Code.TRY_AGAIN, f"{call.command} was told to end before it was done") from None
        except Exception as bug:
            logger.exception("cni.bug", command=str(call.command))
            raise Failure(Code.INTERNAL, f"a bug in muslin-cni: {bug!r}; its log says where") from bug


def _log_file(path: str) -> TextIO:
    """Where logs go; standard error when no file is named."""
    if not path:
        return os.fdopen(os.dup(2), "w")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a")
    except OSError as error:
        raise Failure(Code.IO, f"log_file: {path} cannot be written: {error.strerror}") from error


async def _answer(call: Call) -> Mapping[str, Any] | None:
    """Do it; a signal to end undoes what was begun, as any failure does."""
    from cni import plugin
    from datastore.client import GrpcStore

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    store = GrpcStore(call.config.datastore)
    try:
        return await plugin.run(call, store)
    finally:
        await store.close()


if __name__ == "__main__":
    sys.exit(main())
