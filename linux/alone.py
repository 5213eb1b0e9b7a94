"""One process of a kind in a network namespace.

Two that write the same table or routes would undo each other's work for ever, and each would call itself ready. A
socket under an abstract name stands for the right to work: such names are the network namespace's own, so each of
several namespaces on one machine may have its process; the kernel frees the name when its holder ends, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from core.errors import Unavailable


@contextlib.contextmanager
def alone(name: str) -> Iterator[None]:
    """Be the only `name` in the network namespace of the calling thread. Raises `Unavailable` while there is another.

    Awaiting inside is fine: the socket stays in the namespace it was opened in.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as held:
        try:
            held.bind(f"\0muslin-{name}")
        except OSError as refusal:
            if refusal.errno != errno.EADDRINUSE:
                raise
            raise Unavailable(
                f"another {name} runs in this network namespace, and two would undo each other's work; end it first "
                f"(`ss -xap | grep @muslin-{name}` shows which process it is)"
            ) from refusal
        yield
