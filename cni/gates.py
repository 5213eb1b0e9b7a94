"""Readiness gates: URLs that must answer before an ADD ends. Calico's `readiness_gates`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from core.errors import Unavailable

_POLL_S: Final = 0.1
_ANSWER_S: Final = 2.0
LEAST_WAIT_S: Final = 1.0


async def until_open(urls: Sequence[str], wait_s: float) -> None:
    """Return when each of the http URLs has answered 2xx. Raises `Unavailable` after `wait_s` seconds."""
    if not urls:
        return
    wait_s = max(wait_s, LEAST_WAIT_S)
    said = dict.fromkeys(urls, "not asked yet")
    try:
        async with asyncio.timeout(wait_s), asyncio.TaskGroup() as group:
            for url in urls:
                group.create_task(_until_open(url, said), name="gate")
    except TimeoutError:
        closed = "; ".join(f"{url}: {why}" for url, why in said.items() if why)
        raise Unavailable(f"readiness_gates: not open after {wait_s:g} s: {closed}") from None


async def _until_open(url: str, said: dict[str, str]) -> None:
    while said[url]:
        try:
            async with asyncio.timeout(_ANSWER_S):
                status = await _status(url)
            said[url] = "" if 200 <= status < 300 else f"status {status}"
        except TimeoutError:
            said[url] = "no answer"
        except (OSError, ValueError) as error:
            said[url] = str(error)
        if said[url]:
            await asyncio.sleep(_POLL_S)


async def _status(url: str) -> int:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    try:
        where = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        writer.write(f"GET {where} HTTP/1.0\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
        line = (await reader.readline()).decode("latin-1").split(maxsplit=2)
        if len(line) < 2 or not line[0].startswith("HTTP/"):
            raise ValueError("no answer in HTTP")
        return int(line[1])
    finally:
        writer.close()
