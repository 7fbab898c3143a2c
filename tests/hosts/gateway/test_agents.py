"""The agent that owners get, against the gateway that they get: what the two have to agree on."""

from __future__ import annotations

import pytest

from pocqueue.hosts.agent.identity import NEXT_KEY_NAME, Identity
from pocqueue.hosts.leases import JobState
from tests.hosts.gateway.conftest import Gateway, Machine
from tests.support.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def joined_node(gateway: Gateway) -> str:
    """Wait until a machine has joined and done its test job; return its node's id."""

    def is_done() -> bool:
        turns, _ = gateway.store.jobs.of_wallet(gateway.wallet)
        return any(turn.job.state is JobState.COMPLETED for turn in turns)

    wait_until(is_done, PATIENCE_S, "the test job's end")
    [node] = gateway.store.nodes.of_wallet(gateway.wallet)
    return node.id


def test_a_node_that_was_drained_takes_jobs_again(gateway: Gateway, machine: Machine) -> None:
    """As soon as it gets some: its agent does not go on refusing."""
    node_id = joined_node(gateway)
    assert gateway.admin("POST", f"/api/nodes/{node_id}/drain").json() == {"ok": True}
    wait_until(lambda: machine.said("nothing new"), PATIENCE_S, "the agent to know")
    job_id = gateway.submit(kind="test", only_node=node_id)
    wait_until(lambda: gateway.store.jobs.get(job_id).reason, PATIENCE_S, "the job to wait")
    assert gateway.admin("POST", f"/api/nodes/{node_id}/resume").json() == {"ok": True}
    wait_until(lambda: gateway.store.jobs.get(job_id).state.is_over, PATIENCE_S, "the job's end")
    [attempt] = gateway.store.jobs.attempts(job_id)
    assert str(attempt.outcome) == "completed"


def test_a_key_is_changed_whatever_ends_meanwhile(gateway: Gateway, machine: Machine) -> None:
    """Asked for by the owner on the machine or at the page; killed before the gateway has it, or before its answer."""
    node_id = joined_node(gateway)
    store = gateway.store

    def identity() -> Identity:
        return Identity.open(machine.state_dir, gateway.ws_url)

    def changed(old: str | None) -> str:
        """Wait until both sides have another key, the same one."""

        def is_changed() -> bool:
            is_over = not (folder / NEXT_KEY_NAME).exists()
            return is_over and old != store.nodes.get(node_id).key == identity().public_hex

        wait_until(is_changed, PATIENCE_S, "the new key")
        return identity().public_hex

    first, folder = identity().public_hex, identity().folder
    assert gateway.admin("POST", f"/api/nodes/{node_id}/rotate-key").json() == {"ok": True}
    second = changed(first)
    machine.kill()
    # The gateway has it, and the answer was lost.
    interrupted = identity()
    interrupted.make_next_key()
    made = interrupted.next_key()
    assert made is not None
    store.nodes.set_key(node_id, made[0], old=second)
    machine.start()
    third = changed(second)
    assert third == made[0]
    machine.kill()
    # It is on the disk before the gateway hears of it.
    machine.start("--new-key")
    changed(third)
    assert [node.id for node in store.nodes.of_wallet(gateway.wallet)] == [node_id]
    assert "PRIVATE" not in machine.log.read_text()
