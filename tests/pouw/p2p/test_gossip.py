"""What was seen, and who is asked for what; the clock is an argument."""

from __future__ import annotations

from pocqueue.pouw.p2p.frames import Kind
from pocqueue.pouw.p2p.gossip import (
    ASK_PUSHED_S,
    ASK_S,
    FORGET_PUSHED_S,
    FORGET_S,
    KEPT_S,
    MAX_KEPT_BYTES,
    MAX_WANTS_OF_PEER,
    Item,
    Kept,
    Seen,
    Wants,
)

A, B, C = b"a", b"b", b"c"


def _items(*names: str) -> list[Item]:
    return [Item(Kind.TX, name.encode()) for name in names]


def test_seen_forgets_the_oldest() -> None:
    """And nothing else; what is there is not added again."""
    seen = Seen(3)
    assert [seen.add(each) for each in (b"1", b"2", b"1", b"3")] == [True, True, False, True]
    assert seen.add(b"4")
    assert seen.add(b"1")
    assert not seen.add(b"3")


def test_pushed_messages_are_kept_for_a_while() -> None:
    """So many bytes of them, and so long."""
    kept = Kept()
    kept.add(b"1", Kind.VOTE, b"first", 0.0)
    kept.add(b"1", Kind.VOTE, b"first", 1.0)
    kept.add(b"2", Kind.RECORD, bytes(MAX_KEPT_BYTES - 5), 1.0)
    assert kept.get(b"1") == (Kind.VOTE, b"first")
    kept.add(b"3", Kind.VOTE, b"x", 1.0)
    assert kept.get(b"1") is None, "too much"
    assert kept.get(b"2") is not None
    kept.add(b"4", Kind.VOTE, b"", 1.0 + KEPT_S)
    assert [kept.get(each) for each in (b"2", b"3")] == [None, None], "too old"
    assert kept.get(b"4") == (Kind.VOTE, b"")


def test_what_is_pushed_is_soon_wanted_of_another() -> None:
    """If it does not come; nobody is asked any more once it came from anywhere."""
    wants, item = Wants(), Item(Kind.PUSHED, b"x")
    wants.announced(A, [item], 0.0)
    wants.announced(B, [item], 0.0)
    assert wants.overdue(ASK_PUSHED_S) == [(B, item)]
    wants.announced(C, [item], ASK_PUSHED_S)
    wants.found(item)
    assert wants.overdue(ASK_S) == []
    assert wants.announced(C, [item], ASK_S) == [item]


def test_one_peer_at_a_time_is_asked() -> None:
    """The next one that announced it, if it does not come in time; who is the last may take a minute."""
    wants = Wants()
    [x, y] = _items("x", "y")
    assert wants.announced(A, [x, y], 0.0) == [x, y]
    assert wants.announced(B, [x], 1.0) == []
    assert wants.announced(A, [x], 1.0) == []
    assert wants.overdue(ASK_S - 0.1) == []
    assert wants.overdue(ASK_S) == [(B, x)]
    assert wants.announced(C, [y], ASK_S) == []
    assert wants.overdue(ASK_S) == [(C, y)], "nobody else was left"
    assert wants.came(A, y), "it was asked first"
    assert wants.overdue(FORGET_S) == []
    assert wants.overdue(ASK_S + FORGET_S) == []
    assert not wants.came(B, x), "forgotten by now"
    assert wants.announced(B, [x], ASK_S + FORGET_S) == [x]


def test_only_who_was_asked_may_send() -> None:
    """Also late, when the next one is asked already; and once."""
    wants = Wants()
    [x] = _items("x")
    wants.announced(A, [x], 0.0)
    wants.announced(B, [x], 0.0)
    assert not wants.came(B, x)
    assert wants.overdue(ASK_S) == [(B, x)]
    assert wants.came(A, x)
    assert not wants.came(A, x)
    assert not wants.came(B, x)
    assert wants.announced(B, [x], ASK_S) == [x]


def test_of_a_peer_that_is_gone_nothing_is_awaited() -> None:
    """Others are asked at once."""
    wants = Wants()
    [x, y] = _items("x", "y")
    wants.announced(A, [x, y], 0.0)
    wants.announced(B, [x], 0.0)
    wants.announced(C, [x], 0.0)
    wants.gone(B)
    wants.gone(A)
    assert wants.overdue(0.1) == [(C, x)]
    assert wants.announced(C, [y], 0.2) == [y]


def _many(first: int, num: int, kind: Kind = Kind.TX) -> list[Item]:
    return [Item(kind, b"%d" % i) for i in range(first, first + num)]


def test_there_are_only_so_many_wants_of_a_peer() -> None:
    """They free their places."""
    wants = Wants()
    assert len(wants.announced(A, _many(0, 10_000), 0.0)) == MAX_WANTS_OF_PEER
    assert wants.came(A, _many(0, 1)[0])
    assert len(wants.announced(A, _many(9_000, 2), 0.0)) == 1
    wants.overdue(FORGET_S)
    assert len(wants.announced(A, _many(0, 10_000), FORGET_S)) == MAX_WANTS_OF_PEER


def test_what_many_peers_announce_and_do_not_have_keeps_nothing_else_out() -> None:
    """However many keys one has, what another peer announces is asked for."""
    wants, honest = Wants(), _items("x")
    for peer in range(64):
        wants.announced(b"%d" % peer, _many(10_000 * peer, MAX_WANTS_OF_PEER), 0.0)
    assert wants.announced(A, honest, 0.0) == honest


def test_what_was_pushed_is_soon_given_up() -> None:
    """As soon as nobody keeps it; what is announced may take its time."""
    wants = Wants()
    pushed, announced = _many(0, 1, Kind.PUSHED), _many(0, 1)
    wants.announced(A, [*pushed, *announced], 0.0)
    wants.overdue(FORGET_PUSHED_S)
    assert wants.announced(B, [*pushed, *announced], FORGET_PUSHED_S) == pushed


def test_an_answer_after_another_ones_is_late_and_not_unasked_for() -> None:
    """Once; and of whoever was asked alone."""
    wants = Wants()
    [x, y] = _items("x", "y")
    wants.announced(A, [x, y], 0.0)
    wants.announced(B, [x], 0.0)
    wants.overdue(ASK_S)
    assert wants.came(B, x)
    assert not wants.came(A, x)
    assert [wants.is_late(peer, x) for peer in (A, A, B, C)] == [True, False, False, False]
    wants.overdue(FORGET_S)
    assert not wants.came(A, y)
    assert wants.is_late(A, y), "nobody sent it"
