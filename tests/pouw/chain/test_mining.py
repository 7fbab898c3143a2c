"""What a miner may do at a state: lanes by stake, the task's own model, draws by its size."""

from __future__ import annotations

import msgspec
import pytest

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.mining import allowed_draws, lanes_of, spec_of
from pocqueue.pouw.chain.records import MINER, SUPERVISOR
from pocqueue.pouw.chain.tasks import TaskModel
from pocqueue.pouw.errors import UnknownTask
from pocqueue.pouw.wire.codec import decode
from pocqueue.pouw.wire.data import DataShape
from pocqueue.pouw.wire.transactions import Faucet, Release
from tests.pouw.support import GENESIS, account, after, founded, funded, order, signed, ticket

FILLER = GENESIS.filler_task(7)


@pytest.mark.parametrize(("stake", "lanes"), [(100, 1), (199, 1), (200, 2), (1999, 16)])
def test_lanes_are_what_the_stake_is_worth(stake: int, lanes: int) -> None:
    """One for each 100 PAI, 16 at most; a supervisor has them as a miner does, others have none."""
    for role in (MINER, SUPERVISOR):
        state = after(funded("a"), signed("a", ticket(role, stake * PAI, of="a"), 1))
        assert lanes_of(state, account("a")) == lanes
    assert lanes_of(funded("a"), account("a")) == 0


def test_a_released_ticket_has_no_lanes() -> None:
    """From the block on that gives it back."""
    taken = signed("a", ticket(MINER), 1)
    state = after(after(GENESIS.state, signed("a", Faucet())), taken)
    assert lanes_of(state, account("a")) == 1
    assert lanes_of(after(state, signed("a", Release(taken.id), 2)), account("a")) == 0


def test_a_clients_task_is_trained_as_ordered() -> None:
    """One of the network's own as the genesis says; each has its id."""
    body = order()
    ordered = decode(body.requirements, TaskModel)
    sent = signed("client", body, 1)
    state = after(founded("client"), sent)
    spec = spec_of(GENESIS, state, sent.id)
    assert (spec.id, spec.data, spec.architecture) == (sent.id, "digits", ordered.architecture)
    assert spec.learning_rate * 1_000_000 == ordered.learning_rate
    assert spec.shape is None
    filler = spec_of(GENESIS, state, FILLER)
    assert filler.id == FILLER
    assert filler.batch_size == GENESIS.filler.batch_size == 64


def test_a_clients_own_data_have_the_ordered_shape() -> None:
    """So a task's draws and sizes follow without the data."""
    shape = DataShape(features=10, num_classes=3, num_train=600, side=0, num_buckets=0)
    body = msgspec.structs.replace(
        order(), task_type="classification", data="0x" + "a" * 64, shape=shape
    )
    sent = signed("client", body, 1)
    spec = spec_of(GENESIS, after(founded("client"), sent), sent.id)
    assert (spec.data, spec.data_shape) == (body.data, shape)
    assert spec.num_weights == 10 * 128 + 128 + 128 * 64 + 64 + 64 * 3 + 3


def test_a_task_that_nobody_knows_yet_is_trained_by_nobody() -> None:
    """Neither as a filler before its order is in a block, nor by an id that is made up: weights would differ."""
    sent = signed("client", order(), 1)
    state = founded("client")
    for task in (sent.id, b"f" * 32):
        with pytest.raises(UnknownTask, match=task.hex()) as refused:
            spec_of(GENESIS, state, task)
        assert refused.value.task == task
    assert spec_of(GENESIS, after(state, sent), sent.id).id == sent.id


def test_draws_go_by_samples_and_weights() -> None:
    """`dev`: one a KiB of samples and one for 65,536 weights; digits have 256 bytes a sample."""
    spec = spec_of(GENESIS, GENESIS.state, FILLER)
    assert [allowed_draws(GENESIS, spec, parts, 128) for parts in (1, 2, 8)] == [16, 32, 128]
    small = msgspec.structs.replace(spec, batch_size=1)
    assert allowed_draws(GENESIS, small, 1, 128) == 1


def test_a_map_has_no_more_draws_than_entries() -> None:
    """An empty one, which needs no gradient, draws nothing."""
    spec = spec_of(GENESIS, GENESIS.state, FILLER)
    assert [allowed_draws(GENESIS, spec, 8, entries) for entries in (0, 3, 127)] == [0, 3, 127]
