"""What a container runtime runs: it passes a question to the node's agent and the answer back, and knows nothing else.

    runtime ── CNI_*, stdin ──> this ── question, descriptor of the namespace ──> agent
            <── stdout, status ──    <──────────────── answer ──────────────────

`muslin cni install` copies this file's text to where runtimes look, with the agent's SOCKET in it. Each pod pays for
its start, so it runs on a bare interpreter (-IS) and imports what is built into that; json only when it has to speak
itself: for VERSION, and when the agent is away or ends in the middle.

    question    MAGIC, two lengths (4 bytes each, big-endian): CNI_* as NAME=VALUE with a NUL after each, then stdin;
                with the first byte comes a descriptor of CNI_NETNS, if that can be opened
    answer      MAGIC, exit status, length (4 bytes each, big-endian), then what to print

SIGTERM ends it as it ends any program, the agent sees that the connection is gone, and takes back what it began.
"""

import _socket
import posix
import sys
import time

SOCKET = "/run/muslin/cni.sock"

MAGIC = b"muscni1\n"

AGENT = f"muslin's CNI agent on {SOCKET}"

LIMIT_S = 90
"""Seconds of silence after which the agent counts as stuck."""

RESTART_S = 3
"""Seconds that an agent which is away is waited for: restarted, it listens again after half a second, and a runtime
that is told to try again may not."""

STDIN_BOUND = 4 << 20
"""Longest network configuration, in bytes: GC's, which lists every attachment of a node, is some hundred a pod."""

ENVIRONMENT_BOUND = 1 << 20
ANSWER_BOUND = 4 << 20

VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]

TRY_AGAIN = 11
NOT_AVAILABLE = 50
UNREADABLE = 6
IO = 5


class Broken(Exception):
    """No answer can be had: a code of the CNI specification, and why."""


def main() -> int:
    """Ask the agent what the runtime asks; the exit status."""
    given = b""
    try:
        given = stdin()
        if posix.environ.get(b"CNI_COMMAND") == b"VERSION":
            return version(given)
        status, answer = ask(given)
    except Broken as broken:
        return fail(given, *broken.args)
    return say(status, answer)


def stdin() -> bytes:
    """All of standard input."""
    parts: list[bytes] = []
    size = 0
    while size <= STDIN_BOUND:
        try:
            part = posix.read(0, 1 << 16)
        except OSError as error:
            raise Broken(IO, f"standard input cannot be read: {error.strerror}") from None
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
    raise Broken(UNREADABLE, f"the network configuration on standard input is longer than {STDIN_BOUND} bytes")


def ask(given: bytes) -> tuple[int, bytes]:
    """What the agent answers: exit status and output."""
    environment = b"".join([b"%b=%b\0" % pair for pair in posix.environ.items() if pair[0].startswith(b"CNI_")])
    if len(environment) > ENVIRONMENT_BOUND:
        raise Broken(UNREADABLE, f"the CNI_ variables are longer than {ENVIRONMENT_BOUND} bytes")
    head = MAGIC + len(environment).to_bytes(4, "big") + len(given).to_bytes(4, "big")
    connection = connected()
    failed, after = "has not read the question", ""
    try:
        send(connection, head + environment + given)
        failed, after = "has not answered", "; asked again, it finishes or takes back what it had begun"
        answer = receive(connection, len(MAGIC) + 8)
        status, size = int.from_bytes(answer[-8:-4], "big"), int.from_bytes(answer[-4:], "big")
        if not answer.startswith(MAGIC) or size > ANSWER_BOUND:
            raise Broken(IO, f"{AGENT} answers as another version does; run `muslin cni install` again")
        return status, receive(connection, size)
    except OSError as error:
        raise Broken(TRY_AGAIN, f"{AGENT} {failed} ({reason(error)}){after}") from None


def connected() -> _socket.socket:
    """A connection to the agent, which may be about to start again. Whether it is away is what STATUS asks."""
    asked_of_itself = posix.environ.get(b"CNI_COMMAND") == b"STATUS"
    deadline = time.monotonic() + (0 if asked_of_itself else RESTART_S)
    limit = LIMIT_S.to_bytes(8, sys.byteorder) + bytes(8)
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, limit)
    connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, limit)
    while True:
        try:
            connection.connect(SOCKET)
        except OSError as error:
            if not isinstance(error, ConnectionRefusedError | FileNotFoundError) or time.monotonic() > deadline:
                why = f"{AGENT} cannot be reached ({reason(error)}); `muslin node` runs it on each node"
                raise Broken(NOT_AVAILABLE if asked_of_itself else TRY_AGAIN, why) from None
            time.sleep(0.05)
        else:
            return connection


def send(connection: _socket.socket, question: bytes) -> None:
    """Send the question, with the namespace's descriptor."""
    try:
        path = posix.environ.get(b"CNI_NETNS", b"")
        namespace = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK)
    except OSError:
        connection.sendall(question)
        return
    passed = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, namespace.to_bytes(4, sys.byteorder))]
    sent = connection.sendmsg([question], passed)
    posix.close(namespace)
    if sent < len(question):  # sending nothing, too, fails when an agent that was quick has closed
        connection.sendall(question[sent:])


def receive(connection: _socket.socket, size: int) -> bytes:
    """So many bytes."""
    parts: list[bytes] = []
    while size:
        part = connection.recv(min(size, 1 << 16))
        if not part:
            raise OSError("it closed the connection")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def reason(error: OSError) -> str:
    """Why the agent does not answer."""
    stuck = isinstance(error, BlockingIOError)
    return f"nothing was heard of it for {LIMIT_S} s" if stuck else str(error.strerror or error)


def say(status: int, answer: bytes) -> int:
    """Print the answer; the exit status."""
    try:
        while answer:
            answer = answer[posix.write(1, answer) :]
    except OSError:  # whoever asked is gone
        return 1
    return status


def version(given: bytes) -> int:
    """Answer VERSION."""
    return say(0, document(cniVersion=asked(given), supportedVersions=VERSIONS))


def fail(given: bytes, code: int, why: str) -> int:
    """Answer that it failed."""
    return say(1, document(cniVersion=asked(given), code=code, msg=why))


def document(**said: object) -> bytes:
    """A JSON document."""
    import json

    return json.dumps(said).encode() + b"\n"


def asked(given: bytes) -> str:
    """The version of the specification that the runtime speaks, as far as that can be told."""
    import json

    try:
        found = json.loads(given)["cniVersion"]
    except (ValueError, KeyError, TypeError):
        found = ""
    return found if found and isinstance(found, str) else VERSIONS[-1]


if __name__ == "__main__":
    posix._exit(main())  # nothing is left to clean up, and each pod pays for it
