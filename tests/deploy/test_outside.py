"""What this machine sees of a server: real sockets, and one that never answers."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from typing_extensions import override

from pocqueue.deploy.facts.http import Answer
from pocqueue.deploy.outside import FromHere
from tests.support.ports import free_port


@contextmanager
def answering(answer: bytes | None) -> Iterator[int]:
    """Listen on a port that says this to everybody, or nothing ever."""
    over = threading.Event()

    class Talk(socketserver.BaseRequestHandler):
        @override
        def handle(self) -> None:
            with suppress(OSError):
                self.request.recv(1)
                if answer is None:
                    over.wait()
                else:
                    self.request.sendall(answer)

    # In threads, which are waited for at its end.
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Talk) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            over.set()
            server.shutdown()
            thread.join()


async def test_pages_and_ports_are_seen_as_they_are() -> None:
    """One that is not there, or says what is no HTTP, is not reached; no certificate is none."""
    here = FromHere()
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
    with answering(said) as port:
        assert await here.get(f"http://127.0.0.1:{port}/") == Answer(200, "hi")
        assert await here.is_open("127.0.0.1", port)
        assert await here.certificate_days(f"https://127.0.0.1:{port}") is None
    with answering(b"SSH-2.0-x\r\n") as port:
        assert await here.get(f"http://127.0.0.1:{port}/") == Answer(0)
    port = free_port()
    assert await here.get(f"http://127.0.0.1:{port}/") == Answer(0)
    assert not await here.is_open("127.0.0.1", port)
    assert await here.certificate_days(f"https://127.0.0.1:{port}") is None


async def test_one_that_never_answers_is_not_waited_for() -> None:
    """It is not reached within the time."""
    with answering(None) as port:
        assert await FromHere(timeout_s=0.05).get(f"http://127.0.0.1:{port}/") == Answer(0)
