"""What a runtime asks for, as a long-lived agent answers it: any number of questions at once, one at a time for a pod.

    Question ── spec, arguments, conf ──> Call ── the pod's turn ──> add | remove | check ──> Answer
                          │                └── no pod: status, collect, versions ─────────────┘
                          └── whatever goes wrong: a code and a sentence, exit status 1

A pod's name decides the name of its host interface and of its endpoint; its container's id, what IPAM knows it by. So
DEL finds everything that an ADD made, also one that was killed between two steps, and nothing of the container
that has taken the pod's place meanwhile. A question that is cancelled is undone before the cancellation is raised.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

import structlog

from cni import arguments, conf, endpoint, result, spec, wiring
from cni.add import add
from cni.arguments import Attachment
from cni.call import Call, Means
from cni.check import check
from cni.conf import Conf
from cni.flows import Flows
from cni.follow_pods import follow_pods
from cni.model import Answer, Config, Question
from cni.remove import remove
from cni.spec import Code, Command, Failure
from cni.status import status
from cni.thread import Threads
from core.endpoint_feed import NotProgrammed, Outcomes
from core.errors import Conflict, Invalid, MuslinError, Unavailable, on_purpose
from core.latest import Latest
from core.resources import IPAMHandle
from datastore import objects
from datastore.api import Store
from datastore.ipam.books import handle_name
from datastore.ipam.ledger import Ledger
from datastore.ipam.model import Exhausted

THREADS: Final = 16
"""Wires that are removed at once: the kernel waits some 30 ms over each, and can do so for many together."""

MAKERS: Final = 4
"""Wires that are made at once: that is done under one lock of the kernel's, and whoever waits for it keeps a processor
busy. With 16 a wire costs the kernel twice the time that it does with 4, and no more are made a second."""

log = structlog.get_logger()


class Collecting(Protocol):
    """Who takes back what a runtime has forgotten."""

    async def valid(self, network: str, containers: Iterable[str]) -> None:
        """Remove all that containers of `network` have on this node, but for those named."""


class Plugin:
    """The node's. Its calls may be made at once."""

    def __init__(
        self, config: Config, store: Store, ledger: Ledger, outcomes: Outcomes, collector: Collecting | None = None
    ) -> None:
        self._config, self._collector = config, collector
        self._means = Means(
            node=config.node,
            store=store,
            ledger=ledger,
            outcomes=outcomes,
            pods=Latest(),
            flows=Flows(),
            threads=Threads(THREADS, "cni"),
            makers=Threads(MAKERS, "cni-make"),
        )
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._busy: Counter[str] = Counter()

    def collect_with(self, collector: Collecting) -> None:
        """Who does what GC asks; it may need `busy`, and so come later."""
        self._collector = collector

    async def follow_pods(self) -> None:
        """Bring later changes of Pods to this node's endpoints, until cancelled."""
        await follow_pods(self._means.store, self._means.node, self._means.pods)

    def busy(self) -> frozenset[str]:
        """The ids of the containers that are worked on now."""
        return frozenset(self._busy)

    async def answer(self, question: Question) -> Answer:
        """The answer; never raises, but for a cancellation, which is raised when what was begun has been undone."""
        version = spec.VERSIONS[-1]
        try:
            document = spec.document(question.stdin)
            version = spec.answering(document)
            said = await self._do(document, question)
        except Exception as error:  # a runtime is always answered
            failure = _failure(error)
            command = question.environment.get("CNI_COMMAND", "")
            if failure.code is Code.INTERNAL:
                log.exception("cni.bug", command=command)
            else:
                log.warning("cni.failed", command=command, code=int(failure.code), why=str(failure))
            return _answer(1, spec.error(failure, version))
        return _answer(0, said)

    async def _do(self, document: Mapping[str, Any], question: Question) -> Mapping[str, Any] | None:
        command = spec.command(question.environment)
        if command is Command.VERSION:
            return spec.versions(spec.answering(document))
        version = spec.version(document, command)
        network = conf.read(document, version, command, self._config.node, self._config.datastore)
        at = arguments.attachment(command, question.environment)
        if at is None:
            await (status(self._means, network) if command is Command.STATUS else self._collect(network))
            return None
        if command is not Command.ADD and not at.named:
            at = await self._as_added(at, network)
        call = Call(self._means, network, at, question.netns)
        async with self._turn(at):
            return await _about_pod(command, call)

    async def _as_added(self, at: Attachment, network: Conf) -> Attachment:
        """What ADD was told and this call is not: CNI_ARGS is a runtime's own business, and IPAM knows whose it was."""
        found = await objects.read(self._means.store, IPAMHandle, handle_name(endpoint.handle(network.name, at)))
        owner = found[0].spec if found else None
        return replace(at, namespace=owner.namespace, pod=owner.pod) if owner and owner.pod else at

    async def _collect(self, network: Conf) -> None:
        if not network.collect:
            return
        if self._collector is None:
            raise Failure(Code.TRY_AGAIN, "the agent does not collect yet")
        await self._collector.valid(network.name, frozenset(container for container, _ in network.valid))

    @asynccontextmanager
    async def _turn(self, at: Attachment) -> AsyncIterator[None]:
        """The pod's turn, in order of asking; its container is busy from the question on."""
        lock = self._turns.setdefault((at.namespace, at.pod), asyncio.Lock())
        self._busy[at.container] += 1
        try:
            async with lock:
                yield
        finally:
            self._busy[at.container] -= 1
            if not self._busy[at.container]:
                del self._busy[at.container]


async def _about_pod(command: Command, call: Call) -> Mapping[str, Any] | None:
    match command:
        case Command.ADD:
            wiring.require(call.place)
            joined = await add(call)
            return result.told(joined, call.conf.previous, call.conf.dns, call.conf.version)
        case Command.DEL:
            await remove(call)
        case _:
            wiring.require(call.place)
            await check(call)
    return None


def _answer(status: int, said: Mapping[str, Any] | None) -> Answer:
    return Answer(status=status, stdout=b"" if said is None else json.dumps(said).encode() + b"\n")


def _failure(error: Exception) -> Failure:
    """What went wrong, as the specification numbers it. Of several things, the first: the others follow from it."""
    match error:
        case ExceptionGroup():
            found = on_purpose(error) or _io(error)
            return _failure(found[0]) if found else _bug(error)
        case Failure():
            return error
        case Unavailable() | Conflict() | NotProgrammed():
            code = Code.TRY_AGAIN
        case Exhausted():
            code = Code.NO_ADDRESS
        case wiring.NoNamespace():
            code = Code.CONTAINER
        case wiring.Joined():
            code = Code.ENVIRONMENT
        case wiring.OwnNamespace():
            code = Code.NAMESPACE
        case Invalid():
            code = Code.CONFIG
        case MuslinError() | OSError():
            code = Code.IO
        case _:
            return _bug(error)
    return Failure(code, str(error))


def _io(error: ExceptionGroup[Exception]) -> tuple[Exception, ...]:
    known, others = error.split((MuslinError, OSError))
    if known is None or others is not None:
        return ()
    return tuple(_leaves(known))


def _leaves(group: ExceptionGroup[Any]) -> Iterable[Exception]:
    for each in group.exceptions:
        if isinstance(each, ExceptionGroup):
            yield from _leaves(each)
        else:
            yield each


def _bug(error: BaseException) -> Failure:
    return Failure(Code.INTERNAL, f"a bug in muslin's CNI agent: {error!r}; its log says where")
