"""What comes of a command on a server: its exit code, and of what it prints the beginning and the end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace

import asyncssh

from pocqueue.deploy.errors import OutcomeUnknown
from pocqueue.deploy.words import Command

Session = asyncssh.SSHClientProcess[bytes]

#: Of what a command prints: so much of its beginning and of its end is kept, each of two streams.
HEAD_BYTES = 1024 * 1024
TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a command.

    Attributes:
        exit_code: 128 and the signal's number is not known by SSH, so a signal is -1.
        stdout: text; what is no UTF-8 has U+FFFD instead.
        stderr: the same, with a line for the signal.
        is_cut: it printed more than is kept.
    """

    exit_code: int
    stdout: str
    stderr: str
    is_cut: bool = False

    @property
    def tail(self) -> tuple[str, ...]:
        """Return its last lines, for people: 20 at most."""
        lines = [*self.stdout.splitlines(), *self.stderr.splitlines()]
        return tuple(line for line in lines if line.strip())[-20:]

    def behind(self, mark: str) -> Result:
        """Return it without all that was printed before a line."""

        def rest(text: str) -> str:
            before, found, after = text.partition(f"{mark}\n")
            return after if found else before

        return replace(self, stdout=rest(self.stdout), stderr=rest(self.stderr))


class _Kept:
    """The beginning and the end of a stream that may be endless."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = 0

    def add(self, data: bytes) -> None:
        """Take more of it."""
        room = HEAD_BYTES - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if (over := len(self._tail) - TAIL_BYTES) > TAIL_BYTES:
            self._left_out += over
            del self._tail[:over]

    @property
    def is_cut(self) -> bool:
        """Say whether something is missing."""
        return self._left_out > 0

    def text(self) -> str:
        """Return what there is, with a line for what is missing."""
        between = f"\n… {self._left_out:,} bytes left out …\n".encode() if self._left_out else b""
        return (self._head + between + self._tail).decode("utf-8", "replace")


async def result_of(process: Session, given: bytes, command: Command) -> Result:
    """Give a command that was started what it reads, and wait for its end.

    Raises:
        OutcomeUnknown: the connection broke before its exit status arrived.
    """
    out, err = _Kept(), _Kept()

    async def pump(stream: asyncssh.SSHReader[bytes], kept: _Kept) -> None:
        while data := await stream.read(64 * 1024):
            kept.add(data)

    try:
        # It may end before it has read all, or any.
        with suppress(BrokenPipeError):
            process.stdin.write(given)
            process.stdin.write_eof()
        await asyncio.gather(pump(process.stdout, out), pump(process.stderr, err))
        await process.wait_closed()
    except (OSError, asyncssh.Error):
        raise OutcomeUnknown(command.shown()) from None
    said = err.text()
    code = process.exit_status
    if process.exit_signal is not None:
        code, said = -1, f"{said}\nended by signal {process.exit_signal[0]}"
    if code is None:
        raise OutcomeUnknown(command.shown())
    return Result(code, out.text(), said, out.is_cut or err.is_cut)
