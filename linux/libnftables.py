"""nft without starting a process: libnftables by ctypes. A transaction costs 0.1 ms here, 3-4 ms by forking `nft`."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Final

from core.errors import MuslinError, Unsupported

_LIBRARY: Final = "libnftables.so.1"
_JSON: Final = 1 << 4
_NUMERIC: Final = 1 << 7 | 1 << 8 | 1 << 9 | 1 << 10  # protocols, priorities, symbols, times


class NftRefused(MuslinError):
    """nft did not do what it was told, and so did nothing of it; the message is nft's own."""


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as missing:
        raise Unsupported(f"there is no {_LIBRARY} on this machine; install the package nftables") from missing
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    library.nft_run_cmd_from_filename.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for function in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, function).argtypes = [ctypes.c_void_p]
    for function in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, function).argtypes = [ctypes.c_void_p]
        getattr(library, function).restype = ctypes.c_char_p
    return library


class Nft:
    """A context of libnftables, bound to the network namespace of the thread that makes it.

    One call at a time: the library releases Python's lock while it works, so ours is held meanwhile. A call that
    its awaiting task has given up still runs in its thread, and `close` waits for it.
    """

    def __init__(self) -> None:
        self._library = _load()
        self._busy = threading.Lock()
        self._context = self._library.nft_ctx_new(0)
        if not self._context:
            raise Unsupported("libnftables could not open a netlink socket; run as root")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def close(self) -> None:
        """Free the context; doing so twice is harmless."""
        with self._busy:
            if self._context:
                self._library.nft_ctx_free(self._context)
                self._context = None

    def ask(self, command: str) -> str:
        """The JSON that one command prints. Raises `NftRefused` if it fails."""
        with self._busy:
            self._library.nft_ctx_output_set_flags(self._open(), _NUMERIC | _JSON)
            return self._outcome(self._library.nft_run_cmd_from_buffer(self._context, command.encode()))

    def run(self, script: str) -> None:
        """Run a script as one transaction. Raises `NftRefused`, having changed nothing.

        It goes by way of a file in memory, because of a script given as text nft can only name the first line:
        from a file, its complaints begin with `FILE:LINE:FIRST-LAST COLUMN: Error: `.
        """
        with self._busy, os.fdopen(os.memfd_create("muslin.nft", os.MFD_CLOEXEC), "wb") as file:
            self._library.nft_ctx_output_set_flags(self._open(), _NUMERIC)
            file.write(script.encode())
            file.flush()
            name = f"/proc/self/fd/{file.fileno()}".encode()
            self._outcome(self._library.nft_run_cmd_from_filename(self._context, name))

    def _open(self) -> object:
        if not self._context:
            raise NftRefused("nft was closed before it could do this")
        return self._context

    def _outcome(self, failed: int) -> str:
        said = str(self._library.nft_ctx_get_output_buffer(self._context).decode())
        complaint = str(self._library.nft_ctx_get_error_buffer(self._context).decode())
        if failed:
            raise NftRefused(complaint.strip() or "nft gave no reason")
        return said
