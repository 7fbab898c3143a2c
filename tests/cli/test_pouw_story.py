"""What is told of an order: each thing once, in the order in which it happens."""

from __future__ import annotations

from typing import Any

from pocqueue.cli.pouw_story import Story, now

_SENT: dict[str, Any] = {"name": "mine", "state": "sent", "slots": 0, "accuracy": None}
_WAITING = {
    **_SENT,
    **{"state": "waiting", "matched": None, "closing": None, "reason": None},
    **{"results": [], "payouts": [], "quality": None},
}
_MATCHED = {
    **_WAITING,
    "state": "training",
    "slots": 3,
    "matched": {"term": 0, "slots": 64, "accounts": ["02" + "a" * 64, "03" + "b" * 64]},
}
_CLOSING = {
    **{"epoch": 4, "correct": 240, "total": 256, "asks_until": 9, "is_revealed": False},
    **{"opens_at": 10, "pays_at": 13},
}
_CLOSED = {**_WAITING, "state": "asked for its test part", "slots": 48, "closing": _CLOSING}
_SHOWN = {**_CLOSED, "closing": {**_CLOSING, "is_revealed": True, "opens_at": 8, "pays_at": 11}}
_FOUND = {
    **_SHOWN,
    "results": [{"account": "02" + "e" * 64, "correct": 50, "total": 60, "majority": 9}],
}
_PAID = {
    **_SHOWN,
    **{"state": "settled", "accuracy": 5 / 6, "quality": 0.75},
    "payouts": [{"account": "02" + "e" * 64, "amount": 1.5, "for": "evaluating"}],
}


def test_everything_is_told_once() -> None:
    """From the sending to who got what; looked at again, nothing is new."""
    story, told = Story(), []
    for found in (_SENT, _WAITING, _MATCHED, _CLOSED, _SHOWN, _FOUND, _PAID):
        told += story.lines(found)
        assert story.lines(found) == []
    assert [line.removeprefix("mine: ") for line in told] == [
        "sent; no block has it yet",
        "in a block; it is trained when it is final and its turn comes",
        "slots 0 to 63 are matched to 02aaaaaaaaaa, 03bbbbbbbbbb",
        "trained: closed by the committee of epoch 4 after 48 slots; it counts 240 of 256 right",
        "its hidden test part is to be shown by block 9",
        "results are taken from block 10 on, it is paid out in block 13",
        "its hidden test part is shown",
        "results are taken from block 8 on, it is paid out in block 11",
        "evaluator 02eeeeeeeeee finds 50 of 60 right",
        "settled: the median is 83.33 % right, so quality is 75.00 %",
        f"1.500000 PAI to 02{'e' * 64} for evaluating",
    ]


def test_an_order_past_its_deadline_does_not_just_wait() -> None:
    """Without a committee there is no block that ends it, and that is said once."""
    story, late = Story(), {**_WAITING, "state": "past its deadline"}
    assert len(story.lines(_WAITING)) == 1
    assert story.lines(late) == [
        "mine: its deadline has passed: it is closed or paid back by a later block, and none comes without a committee"
    ]
    assert story.lines(late) == []


def test_a_refund_says_why() -> None:
    """And what comes back."""
    why = "nobody trained it"
    found = {
        **_CLOSED,
        **{"state": "refunded", "reason": why},
        "payouts": [{"account": "02" + "c" * 64, "amount": 55.0, "for": "what is left"}],
    }
    assert Story().lines(found)[1:] == [
        f"mine: refunded: {why}",
        f"mine: 55.000000 PAI to 02{'c' * 64} for what is left",
    ]


def test_how_an_order_stands_is_one_line() -> None:
    """With the share of right answers, where one is known."""
    assert now(_SENT) == "mine: sent, 0 slots"
    assert now({**_MATCHED, "accuracy": 0.5}) == "mine: training, 3 slots, accuracy 50.00 %"
