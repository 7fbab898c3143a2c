"""What an account earns by a block."""

from __future__ import annotations

from collections.abc import Collection

from pocqueue.pouw.chain.apply import COMMITTEE_SHARE, MINER_SHARE
from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.wire.blocks import Block, Trained


def rewards_of(genesis: Genesis, block: Block, account: bytes, members: Collection[bytes]) -> int:
    """Return what mining a block and being in the committee of its time bring an account, in µPAI."""
    parameters, earned = genesis.parameters, 0
    subsidy = parameters.subsidy >> (block.header.height // parameters.halving_blocks)
    if not isinstance(block.proof, Trained):
        subsidy = 0
    if block.header.miner == account:
        earned += subsidy * MINER_SHARE // 100 + sum(one.fee for one in block.transactions)
    if account in members:
        earned += subsidy * COMMITTEE_SHARE // 100 // len(members)
    return earned
