"""The outbox: what is accepted once, sent in order, and still there after a crash at any point."""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocqueue.errors import OutboxError
from pocqueue.node.messages import NewMessage, OutboxStatus
from pocqueue.node.outbox import KEEP_ENDED_S, KEEP_NONCES_S, Outbox
from pocqueue.poc.callback import Kind
from tests.support.node import messages_in
from tests.support.waiting import Clock, wait_until

URL = "http://127.0.0.1:1/v1/poc-batches"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "outbox.sqlite3"


@pytest.fixture
def outbox(path: Path, clock: Clock) -> Iterator[Outbox]:
    with Outbox(path, clock=clock) as outbox:
        outbox.open_session("s", "delegation", "{}")
        yield outbox


def message(position: str, url: str = URL, kind: Kind = "generated", nonces: int = 2) -> NewMessage:
    return NewMessage(position, kind, url, {"position": position, "dist": [0.1]}, range(nonces))


def counts(**changes: Any) -> OutboxStatus:
    return OutboxStatus(**({"oldest_seconds": 0.0} | changes))


def positions(outbox: Outbox, session_id: str = "s") -> list[str]:
    return [kept.position for kept in messages_in(outbox, session_id)]


def heads(outbox: Outbox) -> list[str]:
    """Return the positions of the first waiting messages."""
    return [json.loads(head.body)["position"] for head in outbox.heads()]


def test_session_is_kept(path: Path, outbox: Outbox, clock: Clock) -> None:
    """As it was opened, also after a restart; a second opening changes nothing."""
    outbox.open_session("t", "engine", '{"a": 1}')
    outbox.open_session("t", "queue", "{}")
    session = outbox.session("t")
    assert session is not None
    assert (session.origin, session.state) == ("engine", "open")
    assert (session.cursor, session.request, session.created_s) == ("", '{"a": 1}', clock.now_s)
    outbox.close()
    with Outbox(path) as again:
        assert again.session("t") == session
        assert [open_.session_id for open_ in again.open_sessions()] == ["s", "t"]
        assert again.session("u") is None


def test_page_moves_the_cursor_with_its_messages(outbox: Outbox, clock: Clock) -> None:
    """And counts batches and nonces, though not verdicts."""
    assert outbox.accept("s", "", "1", [message("a"), message("b", nonces=3)])
    assert outbox.accept("s", "1", "2", [message("a", kind="validated")])
    assert outbox.accept("s", "2", "3", [])
    session = outbox.session("s")
    assert session is not None
    assert (session.cursor, session.batches, session.nonces) == ("3", 2, 5)
    first = messages_in(outbox, "s")[0]
    assert (first.position, first.kind, first.url, first.nonces) == ("a", "generated", URL, 2)
    assert json.loads(first.body) == {"position": "a", "dist": [0.1]}
    assert (first.created_s, first.attempts, first.state) == (clock.now_s, 0, "waiting")


def test_page_read_twice_is_kept_once(outbox: Outbox) -> None:
    """Whether the cursor or a message says so; then nothing of the page is kept."""
    assert outbox.accept("s", "", "1", [message("a")])
    assert not outbox.accept("s", "", "1", [message("a")])
    assert not outbox.accept("s", "", "2", [message("c")])
    assert not outbox.accept("s", "1", "2", [message("b"), message("a")])
    assert positions(outbox) == ["a"]
    session = outbox.session("s")
    assert session is not None
    assert (session.cursor, session.batches) == ("1", 1)


def test_nothing_more_of_a_session_that_is_over(outbox: Outbox) -> None:
    """Nor of one that was never opened."""
    outbox.close_session("s")
    assert not outbox.accept("s", "", "1", [message("a")])
    assert not outbox.accept("t", "", "1", [message("a")])
    assert outbox.open_sessions() == []
    assert outbox.counts() == counts()


def test_body_that_json_cannot_hold(outbox: Outbox) -> None:
    """The page is not taken."""
    bad = NewMessage("b", "generated", URL, {"dist": [float("nan")]}, [1])
    with pytest.raises(ValueError, match="JSON"):
        outbox.accept("s", "", "1", [message("a"), bad])
    assert positions(outbox) == []
    assert outbox.accept("s", "", "1", [message("a")])


def test_messages_of_a_closed_session_are_still_sent(outbox: Outbox) -> None:
    """Only fraud holds them."""
    outbox.accept("s", "", "1", [message("a")])
    outbox.close_session("s")
    assert heads(outbox) == ["a"]


def test_fraud_holds_what_waits(outbox: Outbox) -> None:
    """Of that session alone, also what was refused so far; and the session stays fraud."""
    outbox.open_session("t", "delegation", "{}")
    outbox.accept("t", "", "1", [message("x")])
    outbox.accept("s", "", "1", [message("a"), message("b"), message("c")])
    a, b, _ = messages_in(outbox, "s")
    outbox.refused(a.id, "HTTP 400")
    assert outbox.hold("s") == 3
    assert outbox.hold("s") == 0
    outbox.close_session("s")
    session = outbox.session("s")
    assert session is not None
    assert session.state == "fraud"
    assert heads(outbox) == ["x"]
    # One that was under way meanwhile: not sent again, and gone if it was taken.
    outbox.failed(b.id, "timeout", 0.0)
    outbox.refused(b.id, "HTTP 400")
    assert [kept.state for kept in messages_in(outbox, "s")] == ["held", "held", "held"]
    outbox.delivered([b.id])
    assert [kept.position for kept in messages_in(outbox, "s", "held")] == ["a", "c"]


def test_first_message_of_each_url(outbox: Outbox) -> None:
    """In order for each URL; a pause of the first one holds back the others of its URL."""
    other = "http://127.0.0.1:2/x"
    outbox.accept(
        "s", "", "1", [message("a"), message("b"), message("c", other), message("d", other)]
    )
    assert heads(outbox) == ["a", "c"]
    a, c = outbox.heads()
    outbox.failed(a.id, "HTTP 500", 5.0)
    outbox.delivered([c.id])
    a, d = outbox.heads()
    assert (a.attempts, a.next_s) == (1, 5.0)
    assert messages_in(outbox, "s")[0].error == "HTTP 500"
    assert heads(outbox) == ["a", "d"]
    outbox.refused(a.id, "HTTP 400")
    assert heads(outbox) == ["b", "d"]
    outbox.delivered([outbox.heads()[0].id])
    outbox.delivered([d.id])
    assert outbox.heads() == []


def test_counts(outbox: Outbox, clock: Clock) -> None:
    """By state, and how long the oldest waits."""
    assert outbox.counts() == counts()
    outbox.accept("s", "", "1", [message("a"), message("b")])
    clock.now_s += 10
    outbox.accept("s", "1", "2", [message("c")])
    assert outbox.counts() == counts(waiting=3, oldest_seconds=10)
    first, second, _ = messages_in(outbox, "s")
    outbox.refused(first.id, "HTTP 400")
    outbox.delivered([second.id])
    refused = (
        "Batches were refused by http://127.0.0.1:1: HTTP 400. "
        "`pocqueue node outbox list` shows them."
    )
    assert outbox.counts() == counts(waiting=1, refused=1, last_error=refused)
    outbox.hold("s")
    assert outbox.counts() == counts(held=2)


def test_what_waits_is_the_first_to_mend(outbox: Outbox) -> None:
    """The status has one sentence: of what still waits, if something waits in vain."""
    outbox.accept("s", "", "1", [message("a"), message("b", "https://user:pw@host/secret")])
    a, b = messages_in(outbox, "s")
    outbox.failed(b.id, "no answer", 0.0)
    outbox.refused(a.id, "HTTP 400")
    assert outbox.counts().last_error == "Batches wait for https://host: no answer."


def test_refused_messages_are_sent_again(outbox: Outbox) -> None:
    """All or some, in the order in which they came; held ones never, and nothing if one is not there."""
    outbox.accept("s", "", "1", [message(name) for name in "abcd"])
    outbox.open_session("t", "delegation", "{}")
    outbox.accept("t", "", "1", [message("x")])
    outbox.hold("t")
    a, b, c, d = messages_in(outbox, "s")
    [x] = messages_in(outbox, "t")
    for refused in (a, b, c):
        outbox.refused(refused.id, "HTTP 404")
    for ids, said in (
        ([a.id, x.id], f"Message {x.id} is held; allowed: one that is refused"),
        ([a.id, d.id], f"Message {d.id} is waiting; allowed"),
        ([a.id, 99], "Message 99 is not in the outbox; allowed"),
    ):
        with pytest.raises(OutboxError, match=said):
            outbox.resend(ids)
    assert heads(outbox) == ["d"]
    assert outbox.resend([b.id]) == 1
    assert heads(outbox) == ["b"]
    assert outbox.resend([]) == 2
    assert heads(outbox) == ["a"]
    assert outbox.counts() == counts(waiting=4, held=1)


def test_messages_are_dropped(outbox: Outbox) -> None:
    """By their ids, or all that are not sent any more."""
    outbox.accept("s", "", "1", [message(name) for name in "abcd"])
    a, b, c, _ = messages_in(outbox, "s")
    outbox.refused(a.id, "HTTP 404")
    outbox.refused(b.id, "HTTP 404")
    with pytest.raises(OutboxError, match="Message 99 is not in the outbox"):
        outbox.drop([a.id, 99])
    assert outbox.drop([a.id, c.id]) == 2
    assert positions(outbox) == ["b", "d"]
    outbox.open_session("t", "delegation", "{}")
    outbox.accept("t", "", "1", [message("x")])
    outbox.hold("t")
    assert outbox.drop([]) == 2
    assert outbox.drop([]) == 0
    assert positions(outbox) == ["d"]


def test_a_command_beside_the_node(path: Path, outbox: Outbox) -> None:
    """It sees and changes what the node has, without being in its way."""
    outbox.accept("s", "", "1", [message("a", "http://host/secret")])
    outbox.refused(messages_in(outbox, "s")[0].id, "HTTP 404")
    with Outbox(path, beside_owner=True) as command:
        [found] = command.listed()
        assert found["receiver"] == "http://host"
        assert (found["state"], found["error"], found["session_id"]) == ("refused", "HTTP 404", "s")
        assert "secret" not in str(found)
        command.resend([])
    assert heads(outbox) == ["a"]


def test_checks_add_up(outbox: Outbox) -> None:
    """For a verdict that goes on after a restart."""
    outbox.add_check("s", sampled=10, invalid=1)
    outbox.add_check("s", sampled=5, invalid=0)
    session = outbox.session("s")
    assert session is not None
    assert (session.sampled, session.invalid) == (15, 1)


def test_old_sessions_are_forgotten(outbox: Outbox, clock: Clock) -> None:
    """A day after their end, and not while they have messages of any kind."""
    for name in ("open", "new", "old", "messages"):
        outbox.open_session(name, "delegation", "{}")
    outbox.accept("messages", "", "1", [message("a")])
    outbox.refused(messages_in(outbox, "messages")[0].id, "HTTP 400")
    for name in ("old", "messages"):
        outbox.close_session(name)
    clock.now_s += KEEP_ENDED_S + 1
    outbox.close_session("new")
    assert outbox.session("old")
    outbox.forget()
    assert [n for n in ("open", "new", "old", "messages") if outbox.session(n)] == [
        "open",
        "new",
        "messages",
    ]


def test_a_token_is_forgotten_for_good(path: Path, outbox: Outbox, clock: Clock) -> None:
    """None of the files has it any more."""

    def files_with_it() -> list[str]:
        return [file.name for file in path.parent.iterdir() if b"a-token" in file.read_bytes()]

    outbox.open_session("t", "delegation", '{"delegation_auth_token": "a-token"}')
    outbox.close_session("t")
    assert files_with_it() != []
    clock.now_s += KEEP_ENDED_S + 1
    outbox.forget()
    assert files_with_it() == []


def test_nonces_of_old_sessions_are_forgotten(outbox: Outbox, clock: Clock) -> None:
    """An hour after its end no chain asks for a round again; those of an open session stay."""
    for name, nonces in (("s", [1]), ("t", [2, 3])):
        outbox.open_session(name, "engine", name)
        new = NewMessage("a", "generated", URL, {"nonces": nonces}, nonces)
        assert outbox.accept(name, "", "1", [new])
    outbox.close_session("t")
    clock.now_s += KEEP_NONCES_S - 1
    outbox.forget()
    assert outbox.nonces_kept(lambda _: True) == {1, 2, 3}
    clock.now_s += 2
    outbox.forget()
    assert outbox.nonces_kept(lambda _: True) == {1}


def test_nonces_that_are_held_were_not_sent(outbox: Outbox) -> None:
    """So another search of the round may send them; those that went out before stay."""
    for position, nonces in (("a", [1]), ("b", [2, 3]), ("c", [4])):
        new = NewMessage(position, "generated", URL, {"nonces": nonces}, nonces)
        session = outbox.session("s")
        assert session is not None
        assert outbox.accept("s", session.cursor, position, [new])
    outbox.delivered([outbox.heads()[0].id])
    outbox.refused(outbox.heads()[0].id, "HTTP 404")
    assert outbox.nonces_kept(lambda _: True) == {1, 2, 3, 4}
    outbox.hold("s")
    assert outbox.nonces_kept(lambda _: True) == {1}


def test_only_the_owner_can_read_it(path: Path, outbox: Outbox) -> None:
    """The file and what SQLite puts beside it; a session's request may hold a token."""
    outbox.accept("s", "", "1", [message("a")])
    modes = {found.name: found.stat().st_mode & 0o777 for found in path.parent.iterdir()}
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}


def test_one_process_at_a_time(path: Path, outbox: Outbox) -> None:
    """Two would send everything twice; when the first has closed it, it is free."""
    with pytest.raises(OutboxError, match="in use by another small node"):
        Outbox(path)
    outbox.close()
    outbox.close()
    with Outbox(path) as again:
        assert again.session("s") is not None
    with pytest.raises(OutboxError):
        outbox.counts()


def test_damaged_file_is_refused(path: Path, outbox: Outbox) -> None:
    """With what to do, both where it is no database and where a page of it is overwritten."""
    outbox.accept("s", "", "1", [message(str(n)) for n in range(500)])
    outbox.close()
    data = bytearray(path.read_bytes())
    data[8192:12288] = os.urandom(4096)
    path.write_bytes(data)
    with pytest.raises(OutboxError, match="The file is damaged: with the small node stopped"):
        Outbox(path)
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(OutboxError, match=r"not a database\. The file is damaged"):
        Outbox(path)


def test_place_that_cannot_be_used(tmp_path: Path) -> None:
    """A folder in the file's place, and a file in the folder's."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutboxError, match="has to be a file"):
        Outbox(tmp_path / "folder")
    (tmp_path / "file").touch()
    with pytest.raises(OutboxError, match="mend its folder"):
        Outbox(tmp_path / "file" / "outbox")


def test_threads_take_turns(outbox: Outbox) -> None:
    """One page is taken by one of many threads, and nothing is lost between them."""

    def turn(number: int) -> bool:
        taken = outbox.accept("s", "", "1", [message(f"page-{number}")])
        outbox.open_session(f"t{number}", "engine", "{}")
        outbox.accept(f"t{number}", "", "1", [message("a")])
        return taken

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(turn, range(40))) == 1
    assert outbox.counts().waiting == 41


def deliver_for_ever(path: Path, log: Path) -> None:
    """Take pages of three and deliver two messages of each, in a process of its own.

    What is delivered is written to the log just before it is removed, as a receiver would have it just before the 200.
    """
    with log.open("w", buffering=1) as said, Outbox(path) as outbox:
        outbox.open_session("s", "engine", "{}")
        said.write("ready\n")
        while True:
            session = outbox.session("s")
            assert session is not None
            cursor, page = session.cursor, int(session.cursor or 0)
            messages = [
                NewMessage(str(3 * page + n), "generated", "http://host", {"n": 3 * page + n}, [1])
                for n in range(3)
            ]
            assert outbox.accept("s", cursor, str(page + 1), messages)
            assert not outbox.accept("s", cursor, str(page + 1), messages)
            for _ in range(2):
                head = outbox.heads()[0]
                said.write(f"{json.loads(head.body)['n']}\n")
                outbox.delivered([head.id])


def test_killed_at_any_point(path: Path) -> None:
    """Nothing is lost, nothing repeated in the file, and at most one message is sent again a crash."""
    rng = random.Random(4)  # noqa: S311 - where to kill
    sent: list[int] = []
    rounds = 12
    # Forked from one that has imported everything.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    for number in range(rounds):
        # Files, not pipes: what a killed child has said is all there.
        log = path.parent.parent / f"log-{number}"
        log.touch()
        child = processes.Process(target=deliver_for_ever, args=(path, log))
        child.start()
        try:
            goal = rng.randrange(1, 60)
            wait_until(lambda log=log, goal=goal: log.read_bytes().count(b"\n") > goal)  # type: ignore[misc]
            time.sleep(rng.random() * 0.003)  # a point between two steps, not a wait for one
        finally:
            child.kill()
            child.join()
        lines = log.read_text().split("\n")[:-1]
        sent += [int(line) for line in lines if line != "ready"]
    with Outbox(path) as outbox:
        session = outbox.session("s")
        assert session is not None
        left = [int(position) for position in positions(outbox)]
        pages = int(session.cursor)
        assert session.batches == session.nonces == 3 * pages
    assert sorted({*sent, *left}) == list(range(3 * pages))
    assert left == sorted(set(left))
    # Only the message whose removal was cut off may be in both, and may have been sent twice.
    assert len(sent) - len(set(sent)) + len(set(sent) & set(left)) <= rounds
    assert sorted(set(sent)) == list(range(len(set(sent))))
