"""What a node lacks and what its owner does about it: functions from values to sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pocqueue.hosts.records import Node, NodeStatus

#: `bad`: it earns nothing or less until somebody does something; `warn`: somebody should look.
Tone = Literal["bad", "warn", "info"]


@dataclass(frozen=True, slots=True)
class Note:
    """Something about a node."""

    tone: Tone
    about: str  #: in a word: a row of the self-test, or ``offline``
    what: str
    remedy: str = ""
    gpu: str = ""  #: which of its GPUs: ``GPU 0``


def notes_of(
    node: Node, status: NodeStatus, test: Sequence[Any], until: str, *, is_owner: bool
) -> Iterator[Note]:
    """Yield what there is to say of a node, the most urgent first.

    Args:
        status: as it stands now.
        test: rows of its newest self-test.
        until: when its pause ends, as a person reads it.
        is_owner: it is read by its owner, signed in.
    """
    yield from _about_status(node, status, until)
    if not node.proven:
        yield Note(
            "warn",
            "held",
            "It joined with a token that was asked for without this wallet's signature: it gets its test job alone, "
            "and what it earns is held.",
            f"If it is yours, {'' if is_owner else 'sign in and '}adopt it under Manage; if not, revoke it.",
        )
    yield from _about_test(node, test)
    if node.protocol > 1 and node.isolation == "none" and not any(map(_is_sandbox, test)):
        yield Note(
            "bad",
            "sandbox",
            "It has nothing to run commands in, so it gets its test job alone.",
            "Install bubblewrap (`sudo apt-get install bubblewrap`), Docker or podman, and start the agent again.",
        )


def _about_status(node: Node, status: NodeStatus, until: str) -> Iterator[Note]:
    if status == "banned":
        yield Note("bad", "banned", "It is banned for good; what was not paid out is forfeited.")
    elif status == "offline" and node.key is None:
        yield Note(
            "bad",
            "offline",
            "Its agent is gone, and has no key with which to come back as this node.",
            "Start it with a new token, and revoke this node.",
        )
    elif status == "offline":
        yield Note(
            "bad",
            "offline",
            "Nothing is heard of it.",
            "Is the machine on, and the agent running? Start `pocqueue agent` again: it comes back with its key. If it "
            "runs, see what it prints, and whether a firewall lets it out.",
        )
    elif status == "paused":
        yield Note(
            "warn",
            "paused",
            f"It lost or refused three jobs within an hour, and gets none until {until}.",
            "See in Recent Jobs which, and why; then wait.",
        )
    if node.state == "draining" and node.drained_by == "admin":
        yield Note(
            "warn",
            "drained",
            "The operator of this server has drained it: it gets nothing new, and nobody else can take that back.",
            "Ask the operator what is wrong.",
        )
    elif node.state == "draining":
        yield Note(
            "info",
            "drained",
            "You have drained it: it finishes what it has and gets nothing new.",
            "Resume gives it jobs again.",
        )
    elif status in {"online", "busy"} and not node.kinds:
        yield Note("info", "ending", "Its agent was told to end: it finishes what it has.", "")


def _about_test(node: Node, test: Sequence[Any]) -> Iterator[Note]:
    names = {gpu.uuid: f"GPU {number}" for number, gpu in enumerate(node.gpus)}
    for state, tone in (("fail", "bad"), ("warn", "warn")):
        for row in test:
            if row.get("state") != state:
                continue
            wanted = row.get("wanted", "")
            what = row.get("measured", "") or "failed"
            gpu = row.get("gpu") or ""
            yield Note(
                "bad" if tone == "bad" else "warn",
                row.get("name", ""),
                f"{what}; wanted: {wanted}" if wanted else what,
                row.get("remedy", ""),
                names.get(gpu, gpu[:12]),
            )


def _is_sandbox(row: Any) -> bool:
    return (row.get("name"), row.get("state")) == ("sandbox", "fail")
