"""What an account earns by a block."""

from __future__ import annotations

from pocqueue.pouw.chain.apply import COMMITTEE_SHARE, MINER_SHARE
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.records import CLIENT, due_key
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.wire.blocks import Block, Trained
from pocqueue.pouw.wire.transactions import Close, Evidence


def rewards_of(genesis: Genesis, before: State, after: State, block: Block, account: bytes) -> int:
    """Return what a block brings an account, in µPAI: for mining it, for certifying, for tasks that end in it, for
    cheats that it shows.

    Args:
        genesis: of the network.
        before, after: states of the chain, at the block's parent and at the block or a later one.
        block: of the chain.
        account: whose.
    """
    members, height = before.members, block.header.height
    parameters, earned = genesis.parameters, 0
    subsidy = parameters.subsidy >> (height // parameters.halving_blocks)
    if not isinstance(block.proof, Trained):
        subsidy = 0
    if block.header.miner == account:
        earned += subsidy * MINER_SHARE // 100 + sum(one.fee for one in block.transactions)
    if account in members:
        earned += subsidy * COMMITTEE_SHARE // 100 // len(members)
    closed = (one.body.task for one in block.transactions if isinstance(one.body, Close))
    for task in {*closed, *(key[-32:] for key, _ in before.scan(due_key(height)))}:
        record = after.task(task)
        if record and record.outcome and record.outcome.height == height:
            lines = after.payments(task).lines
            earned += sum(
                one.amount for one in lines if one.account == account and one.role != CLIENT
            )
    slashes = (
        after.slashes() if any(isinstance(one.body, Evidence) for one in block.transactions) else {}
    )
    return earned + sum(
        slash.bounty
        for of_account in slashes.values()
        for slash in of_account
        if slash.height == height and slash.finder == account
    )
