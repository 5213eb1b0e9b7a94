"""The BFD child: `python -S -E -P bgp/bfd/__main__.py`, with its agent's listening UNIX socket as standard input.

    agent comes ──> hello, states ──> orders ──> agent goes ──> sessions go on ──> `linger_s` passed: farewell, end
                                                     └── the next agent comes: hello, states, ...

It outlives its agent on purpose. To a router a BFD that goes down with the agent would be a dead path, and it would
drop the routes that graceful restart keeps. As it is, the session stands while the agent restarts, and if it breaks
meanwhile, the path is broken indeed: that is what the C bit in our packets says (RFC 5882, 4.3).

SIGTERM, an order to stop, or nobody's coming back: AdminDown to every peer, which is no failure (RFC 5882, 3.2).
"""

from __future__ import annotations

import ctypes
import gc
import os
import selectors
import signal
import socket
import sys
import time

if __name__ == "__main__":  # started by path, so that no package of the environment is looked at
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from bgp.bfd.channel import Channel
from bgp.bfd.keeper import Keeper
from bgp.bfd.lines import VERSION, Hello, Late, Order

PRIORITY = 10
"""Among real-time processes: above what merely asked to be one, below the kernel's own interrupt threads (50)."""

FIRST_WORD_S = 10.0
"""How long to wait for the first agent's first order."""

LONGEST_WAIT_S = 10.0

_LOCK_AS_TOUCHED = 1 | 2 | 4  # MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT


def main() -> int:
    """Keep the sessions until there is nobody who wants them."""
    os.chdir("/")
    ended: list[int] = []
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(waker)  # without it a signal would not end a wait
    hello = Hello(version=VERSION, pid=os.getpid(), priority=take_priority())
    ctypes.CDLL(None).mlockall(_LOCK_AS_TOUCHED)  # without the right to it we work as well, but for swapping
    gc.collect()
    gc.freeze()
    gc.disable()  # nothing here makes cycles, and a collection is a pause
    with selectors.DefaultSelector() as selector, socket.socket(fileno=0) as listener:
        selector.register(woken, selectors.EVENT_READ, "signals")
        Child(Channel(listener, selector), selector, hello).run(ended)
    return 0


def take_priority() -> str:
    """Have the kernel prefer us to everything ordinary, by the best means allowed; which it was, for the status."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
        return f"SCHED_FIFO {PRIORITY}"
    except OSError:
        pass
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        return "nice -20"
    except OSError:
        return "none: neither SCHED_FIFO nor nice is allowed, so a busy machine may delay BFD (CAP_SYS_NICE is missing)"


class Child:
    """The loop: wait, read everything, then do what is due."""

    def __init__(self, channel: Channel, selector: selectors.BaseSelector, hello: Hello) -> None:
        self._channel, self._selector, self._hello = channel, selector, hello
        self._keeper = Keeper(channel.tell)
        self._linger_s = FIRST_WORD_S
        self._alone_since: float | None = time.monotonic()
        self._leaving = False

    def run(self, ended: list[int]) -> None:
        """Until there is nothing left to do. `ended` gets a signal's number when we are asked to end."""
        try:
            while not (self._leaving and self._keeper.empty):
                self._wait()
                self._keeper.drain()
                self._hear_agent()
                now = time.monotonic()
                if ended or self._forsaken(now):
                    self._leave(now)
                self._keeper.work(now)
                self._follow_sockets()
        finally:
            self._keeper.close()

    def _wait(self) -> None:
        """Wait for something to arrive or to be due."""
        due = min(self._keeper.wake_at, self._forsaken_at(), time.monotonic() + LONGEST_WAIT_S)
        for key, _ in self._selector.select(max(0.0, due - time.monotonic())):
            if key.data == "signals":
                os.read(key.fd, 64)
        now = time.monotonic()
        if now > due and self._keeper.pardon(now - due, now):
            self._channel.tell(Late(late_s=round(now - due, 3)))

    def _hear_agent(self) -> None:
        if self._channel.accept():
            self._channel.tell(self._hello)
            for report in self._keeper.reports():
                self._channel.tell(report)
        for order in self._channel.orders():
            self._obey(order)
        self._channel.flush()
        if self._channel.connected:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = time.monotonic()

    def _obey(self, order: Order) -> None:
        if order.stop or self._leaving:
            self._leave(time.monotonic())
            return
        self._linger_s = order.linger_s
        self._keeper.configure(order, time.monotonic())

    def _forsaken_at(self) -> float:
        return float("inf") if self._alone_since is None or self._leaving else self._alone_since + self._linger_s

    def _forsaken(self, now: float) -> bool:
        return now >= self._forsaken_at()

    def _leave(self, now: float) -> None:
        if not self._leaving:
            self._leaving = True
            self._keeper.leave(now)

    def _follow_sockets(self) -> None:
        """Wait on the sockets that there are now."""
        ours = {key.fileobj for key in self._selector.get_map().values() if key.data == "datagrams"}
        wanted = set(self._keeper.listening)
        for gone in ours - wanted:
            self._selector.unregister(gone)
        for new in wanted - ours:
            self._selector.register(new, selectors.EVENT_READ, "datagrams")


if __name__ == "__main__":
    sys.exit(main())
