"""What somebody can be shown to have done: messages, votes and proposals that contradict each other, and false ones."""

from __future__ import annotations

from typing import Any

import msgspec

from pocqueue.pouw.chain.signatures import sign
from pocqueue.pouw.wire.evidence import Fault
from pocqueue.pouw.wire.hashes import ZERO
from pocqueue.pouw.wire.slots import Certificate, Iteration
from pocqueue.pouw.wire.statements import UNSIGNED, statement_digest
from pocqueue.pouw.wire.votes import PREVOTE, ProposalHead, Vote
from tests.pouw.support import GENESIS, account, group_key, key

TASK = GENESIS.filler_task(0)


def message(
    name: str = "miner", *, by: str | None = None, network: bytes = GENESIS.network, **changed: Any
) -> Iteration:
    """Return a name's message of slot 9, signed; `by`: by another one."""
    fields: dict[str, Any] = {
        "version": 1,
        "network": network,
        "task": TASK,
        "slot": 9,
        "miner": account(name),
        "lane": 0,
        "parts": 1,
        "map_hash": ZERO,
        "entries": 100,
        "weights_end": ZERO,
        "loss": 0,
        "previous": b"p" * 32,
        "commitment": ZERO,
        "signature": bytes(64),
    }
    blank = Iteration(**{**fields, **changed})
    return msgspec.structs.replace(blank, signature=sign(key(by or name), blank.id))


def vote(name: str = "supervisor", **changed: Any) -> Vote:
    """Return a prevote of turn 5 by epoch 0's first member, signed with a name's key."""
    fields: dict[str, Any] = {
        "network": GENESIS.network,
        "epoch": 0,
        "turn": 5,
        "ballot": 0,
        "kind": PREVOTE,
        "value": None,
        "member": 0,
        "share": None,
        "signature": bytes(64),
    }
    blank = Vote(**{**fields, **changed})
    return msgspec.structs.replace(blank, signature=sign(key(name), blank.id))


def proposal(
    name: str = "supervisor", *, member: int = 0, valid_ballot: int | None = None, **changed: Any
) -> ProposalHead:
    """Return a proposal of turn 5 by epoch 0's first member, signed with a name's key."""
    fields: dict[str, Any] = {
        "network": GENESIS.network,
        "epoch": 0,
        "turn": 5,
        "parent": ZERO,
        "task": TASK,
        "slot": 9,
        "ballot": 0,
        "previous": ZERO,
        "root": ZERO,
        "count": 0,
        "theta": ZERO,
        "anchor": ZERO,
        "anchor_height": 0,
        "time_ms": 0,
    }
    certificate = Certificate(**{**fields, **changed})
    blank = ProposalHead(certificate, valid_ballot, member, bytes(64))
    return msgspec.structs.replace(blank, signature=sign(key(name), blank.id))


def found_false(
    name: str = "miner", *, finder: str = "finder", group: str = "group", **changed: Any
) -> Fault:
    """Return what the committee of a name's group key signs of a name's message of slot 9."""
    fields: dict[str, Any] = {
        "epoch": 0,
        "task": TASK,
        "slot": 9,
        "miner": account(name),
        "lane": 0,
        "message": message(name).id,
        "finder": account(finder),
        "signature": UNSIGNED,
    }
    blank = Fault(**{**fields, **changed})
    signature = group_key(group).sign(statement_digest(GENESIS.network, blank))
    return msgspec.structs.replace(blank, signature=signature)
