"""What an account earns by a block."""

from __future__ import annotations

from pocqueue.pouw.chain.apply import COMMITTEE_SHARE, MINER_SHARE
from pocqueue.pouw.chain.escrow import payouts
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.wire.blocks import Block, Trained
from pocqueue.pouw.wire.transactions import Settle


def rewards_of(genesis: Genesis, state: State, block: Block, account: bytes) -> int:
    """Return what a block brings an account, in µPAI: for mining it, for certifying, for tasks that it settles.

    Args:
        genesis: of the network.
        state: after the block or a later one.
        block: of the chain.
        account: whose.
    """
    members = state.members
    parameters, earned = genesis.parameters, 0
    subsidy = parameters.subsidy >> (block.header.height // parameters.halving_blocks)
    if not isinstance(block.proof, Trained):
        subsidy = 0
    if block.header.miner == account:
        earned += subsidy * MINER_SHARE // 100 + sum(one.fee for one in block.transactions)
    if account in members:
        earned += subsidy * COMMITTEE_SHARE // 100 // len(members)
    for settle in (one.body for one in block.transactions):
        if isinstance(settle, Settle) and (record := state.task(settle.task)) is not None:
            shares = payouts(record, settle, members)
            earned += sum(
                amount for who, amount in (*shares.miners, *shares.committee) if who == account
            )
    return earned
