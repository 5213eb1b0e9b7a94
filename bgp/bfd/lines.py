"""What an agent and its BFD child say to each other: one JSON object a line, whole states and never differences.

agent   {"sessions": {"10.0.0.1": {"local": "", "transmit_us": 300000, ...}}, "linger_s": 120}   each time they change
        {"stop": true}                                                               say farewell to peers and end
child   {"version": 1, "pid": 4711, "priority": "SCHED_FIFO 10"}                     first of all
        {"peer": "10.0.0.1", "state": 3, ...}                                        each session, when it changes
        {"late_s": 0.4}                                                              it was not scheduled for so long
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeAlias

from bgp.bfd.model import Remote, Standing, State, Wanted

VERSION: Final = 1
"""Raised when a child of an older version cannot be told what to do: the agent then ends it and starts its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Every session there should be, by the peer's address: our address ("" any) and how it is kept.

    `linger_s` is how long they stay without an agent. `resume` has those that were up in a child that has just died.
    `stop` ends the child.
    """

    sessions: Mapping[str, tuple[str, Wanted]] = field(default_factory=dict)
    linger_s: float = 0.0
    resume: Mapping[str, Standing] = field(default_factory=dict)
    stop: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who the child is, and by what right it keeps its times."""

    version: int
    pid: int
    priority: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One session as it is. `since` is when its state last changed, in seconds of the wall clock; `lost` says that it
    was up and that the path failed, not that somebody switched it off; `problem` is why it cannot come up, as far as
    we can see; `losses` counts the failures; `standing` is for another child to go on with."""

    peer: str
    state: State
    remote_state: State
    diagnostic: int
    remote_diagnostic: int
    since: float
    interval_us: int
    detection_us: int
    came_up: bool
    lost: bool
    losses: int
    problem: str
    standing: Standing | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Late:
    """The child was not scheduled for `late_s` seconds when it should have worked."""

    late_s: float


Message: TypeAlias = Hello | Report | Late


def encode(said: Order | Message) -> bytes:
    """The line, with its end."""
    if isinstance(said, Order):
        sessions = {peer: {"local": local, **asdict(wanted)} for peer, (local, wanted) in said.sessions.items()}
        resume = {peer: asdict(each) for peer, each in said.resume.items()}
        return _line({"sessions": sessions, "linger_s": said.linger_s, "resume": resume, "stop": said.stop})
    return _line(asdict(said))


def decode_order(line: bytes) -> Order:
    """What the agent wants; ValueError when it cannot be understood."""
    try:
        read = json.loads(line)
        sessions = {
            peer: (
                str(each["local"]),
                Wanted(
                    transmit_us=int(each["transmit_us"]),
                    receive_us=int(each["receive_us"]),
                    multiplier=int(each["multiplier"]),
                ),
            )
            for peer, each in read["sessions"].items()
        }
        resume = {peer: _standing(each) for peer, each in read["resume"].items()}
        return Order(sessions=sessions, linger_s=float(read["linger_s"]), resume=resume, stop=bool(read["stop"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an order: {error!r}") from error


def decode_message(line: bytes) -> Message:
    """What the child says; ValueError when it cannot be understood."""
    try:
        read: dict[str, Any] = json.loads(line)
        if "peer" in read:
            read["state"], read["remote_state"] = State(read["state"]), State(read["remote_state"])
            read["standing"] = _standing(read["standing"]) if read["standing"] else None
            return Report(**read)
        return Late(**read) if "late_s" in read else Hello(**read)
    except TypeError as error:
        raise ValueError(f"not a message: {error!r}") from error


def split(data: bytes) -> tuple[Iterable[bytes], bytes]:
    """The whole lines in `data`, and what is left over."""
    *lines, rest = data.split(b"\n")
    return lines, rest


def _standing(read: Mapping[str, Any]) -> Standing:
    remote = {**read["remote"], "state": State(read["remote"]["state"])}
    return Standing(discriminator=int(read["discriminator"]), remote=Remote(**remote))


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
