"""What is told of an order while it is watched: each thing once, when it has happened, and in the end who got what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pocqueue.cli.output import percent
from pocqueue.words import counted


class Story:
    """The lines of one order. Give it what `PoUWNode.views.task` says, again and again."""

    def __init__(self) -> None:
        self._told: set[object] = set()

    def lines(self, found: dict[str, Any]) -> list[str]:
        """Return what is new, each line with the order's name before it."""
        new = []
        for key, line in _happened(found):
            if key not in self._told:
                self._told.add(key)
                new.append(f"{found['name']}: {line}")
        return new


def now(found: dict[str, Any]) -> str:
    """Return how an order stands, in one line."""
    accuracy = "" if found["accuracy"] is None else f", accuracy {percent(found['accuracy'])}"
    return f"{found['name']}: {found['state']}, {counted(found['slots'], 'slot')}{accuracy}"


def _happened(found: dict[str, Any]) -> Iterator[tuple[object, str]]:
    """Yield what has happened up to now, with a key each, in its order."""
    if found["state"] == "sent":
        yield "sent", "sent; no block has it yet"
        return
    if found["state"] == "refused":
        yield "refused", f"refused: {found['reason']} Nothing went into escrow."
        return
    yield "waiting", "in a block; it is trained when it is final and its turn comes"
    if matched := found["matched"]:
        term, accounts = matched["term"], [account[:12] for account in matched["accounts"]]
        yield (
            ("matched", term),
            f"slots {term} to {term + matched['slots'] - 1} are matched to {', '.join(accounts)}",
        )
    if found["state"] == "past its deadline":
        yield (
            "late",
            "its deadline has passed: it is closed or paid back by a later block, and none comes without a committee",
        )
    closing = found["closing"]
    if closing and not found["reason"]:
        said = f"closed by the committee of epoch {closing['epoch']} after {counted(found['slots'], 'slot')}"
        yield "closed", f"trained: {said}; it counts {_share(closing)} right"
        if closing["asks_until"]:
            yield "asked", f"its hidden test part is to be shown by block {closing['asks_until']}"
        if closing["is_revealed"]:
            yield "revealed", "its hidden test part is shown"
        yield (
            ("opens", closing["opens_at"]),
            f"results are taken from block {closing['opens_at']} on, it is paid out in block {closing['pays_at']}",
        )
    for result in found["results"]:
        account = result["account"]
        yield ("result", account), f"evaluator {account[:12]} finds {_share(result)} right"
    if found["state"] == "settled":
        right, quality = percent(found["accuracy"] or 0.0), percent(found["quality"])
        yield "settled", f"settled: the median is {right} right, so quality is {quality}"
    elif found["state"] == "refunded":
        yield "refunded", f"refunded: {found['reason']}"
    for line in found["payouts"]:
        paid = (line["account"], line["for"])
        yield ("paid", paid), f"{line['amount']:,.6f} PAI to {line['account']} for {line['for']}"


def _share(count: dict[str, Any]) -> str:
    return f"{count['correct']:,} of {count['total']:,}" if count["total"] else "none"
