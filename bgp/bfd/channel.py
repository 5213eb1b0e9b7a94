"""The child's end of the UNIX socket to its agent. One agent at a time: a new connection takes the place of the old.

Never waits: what the agent does not read is kept up to a bound, and an agent beyond it is let go. It comes back and
hears every session's state anew.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterator
from typing import Final

from bgp.bfd.lines import Message, Order, decode_order, encode, split

BOUND: Final = 1024 * 1024
CHUNK: Final = 65536


class Channel:
    """Orders in, messages out."""

    def __init__(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        self._listener, self._selector = listener, selector
        self._agent: socket.socket | None = None
        self._heard, self._unsent = b"", b""
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)

    @property
    def connected(self) -> bool:
        """Whether there is an agent."""
        return self._agent is not None

    def accept(self) -> bool:
        """Take a new agent, if one calls; whether there is one."""
        try:
            agent, _ = self._listener.accept()
        except BlockingIOError:
            return False
        self.drop()
        agent.setblocking(False)
        self._agent = agent
        self._selector.register(agent, selectors.EVENT_READ)
        return True

    def orders(self) -> Iterator[Order]:
        """What the agent has said since; an agent that is gone, or that we do not understand, is dropped."""
        if self._agent is None:
            return
        try:
            data = self._agent.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop()
            return
        lines, self._heard = split(self._heard + data)
        for line in lines:
            try:
                yield decode_order(line)
            except ValueError:
                self.drop()
                return

    def tell(self, message: Message) -> None:
        """Say something to the agent, if there is one."""
        if self._agent is not None:
            self._unsent += encode(message)
            self.flush()

    def flush(self) -> None:
        """Write what the agent takes, and wait for room only while there is something left."""
        if self._agent is None:
            return
        try:
            self._unsent = self._unsent[self._agent.send(self._unsent) :] if self._unsent else b""
        except BlockingIOError:
            pass  # the rest goes when there is room
        except OSError:
            self.drop()
            return
        if len(self._unsent) > BOUND:
            self.drop()
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        self._selector.modify(self._agent, wanted)

    def drop(self) -> None:
        """Let the agent go."""
        if self._agent is not None:
            self._selector.unregister(self._agent)
            self._agent.close()
            self._agent = None
            self._heard, self._unsent = b"", b""
