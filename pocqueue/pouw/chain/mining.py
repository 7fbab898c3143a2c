"""What a miner may do at a state of the chain: on which lanes, on what task, with how many draws."""

from __future__ import annotations

from pocqueue.pouw.chain.genesis import Genesis
from pocqueue.pouw.chain.records import MINER, SUPERVISOR
from pocqueue.pouw.chain.state import State
from pocqueue.pouw.chain.tasks import TaskModel
from pocqueue.pouw.chain.tickets import num_lanes
from pocqueue.pouw.errors import UnknownTask
from pocqueue.pouw.slots.draws import allowance
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.wire.codec import decode


def lanes_of(state: State, account: bytes) -> int:
    """Return how many lanes an account has by its live ticket of a miner or supervisor; 0: it has none."""
    ids = (state.live_ticket(account, role) for role in (MINER, SUPERVISOR))
    tickets = (state.ticket(ticket) for ticket in ids if ticket is not None)
    return max((num_lanes(ticket.stake) for ticket in tickets if ticket is not None), default=0)


def spec_of(genesis: Genesis, state: State, task: bytes) -> TaskSpec:
    """Return what a task trains: a client's by its order, or one of the network's fillers.

    Raises:
        UnknownTask: it is neither at this state.
    """
    if genesis.is_filler(task):
        return genesis.filler.spec(task, genesis.filler_data)
    record = state.task(task)
    if record is None:
        raise UnknownTask(task)
    return decode(record.requirements, TaskModel).spec(task, record.data, record.shape)


def allowed_draws(genesis: Genesis, spec: TaskSpec, parts: int, entries: int) -> int:
    """Return how many nonces an iteration of so many mini-batches may draw.

    Not more than its map has entries: what moves no weight may have been made without a gradient.
    """
    parameters = genesis.parameters
    worth = allowance(
        spec.sample_bytes(parts),
        spec.num_weights,
        spec.work(parts),
        per_byte=parameters.draws_per_sample_byte,
        per_weight=parameters.draws_per_weight,
    )
    return min(worth, entries)
