"""Who is matched to a task: the same on every node, by preferences, reputation and a beacon that nobody chooses."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings, strategies as st

from pocqueue.pouw.chain.amounts import PAI
from pocqueue.pouw.chain.records import EVALUATOR, MINER, TaskRecord
from pocqueue.pouw.chain.tasks import Privacy, TaskModel
from pocqueue.pouw.committee.matching import (
    DIMENSIONS,
    NEUTRAL,
    Vector,
    matched,
    preference_vector,
    takes_part,
    task_vector,
)
from pocqueue.pouw.slots.task import TaskSpec
from pocqueue.pouw.wire.codec import decode, encode
from pocqueue.pouw.wire.hashes import tagged
from tests.pouw.support import account, after, founded, order, signed, ticket

_MOST = 2**256 - 1
_SMALL = TaskSpec(bytes(32), "MLP", (128, 64), "digits", 64, 0.3, 0.02)
_VECTORS = st.tuples(*[st.sampled_from([1, 5])] * len(DIMENSIONS))


def _wants(**said: Any) -> Vector:
    return preference_vector(json.dumps(said).encode())


def _wanted(vector: Vector) -> set[str]:
    return {name for name, number in zip(DIMENSIONS, vector, strict=True) if number > 1}


def test_preferences_of_the_seed_are_understood() -> None:
    """Units, lists and switches; what is not known is passed over."""
    found = _wants(
        gpu_memory="32GB",
        cpu_cores=64,
        bandwidth="10Gbps",
        uptime_guarantee=0.99,
        coordination=True,
    )
    assert _wanted(found) == {
        *("memory of 32 GB and more", "cores of 8 and more", "bandwidth of 1 Gbps and more"),
    }
    assert _wanted(_wants(gpu_available=True)) == {"gpu"}
    assert _wanted(_wants(task_types=["image_classification", "speech", 3])) == {
        *("image_classification", "classification", "other tasks"),
    }
    assert _wanted(_wants(task_types=["nlp"], model_size="large", memory=16)) == {
        *("nlp", "text_classification", "large models", "memory below 32 GB"),
    }


@settings(max_examples=200, deadline=None)
@example(b"{")
@example(b"[1]")
@example(b"[" * 100_000)
@example(json.dumps({"gpu_memory": "9" * 400, "cpu_cores": 10**30, "bandwidth": []}).encode())
@given(
    st.binary(max_size=64)
    | st.dictionaries(
        st.sampled_from(["task_types", "gpu_memory", "cpu_cores", "bandwidth", "model_size"]),
        st.none() | st.text() | st.integers() | st.lists(st.text()),
    ).map(lambda said: json.dumps(said).encode())
)
def test_whatever_a_ticket_says_is_a_vector(preferences: bytes) -> None:
    """Nobody is refused for it, and nothing is raised."""
    found = preference_vector(preferences)
    assert len(found) == len(DIMENSIONS) == 16
    assert set(found) <= {1, 5}


def test_no_preferences_are_neutral() -> None:
    """So is what is no object."""
    for said in (b"{}", b"", b"null", b'"gpu"', b"\xff", b'{"uptime": 1}'):
        assert preference_vector(said) == NEUTRAL


@pytest.mark.parametrize(("nested", "is_read"), [(15, True), (16, False), (900, False)])
def test_what_no_preference_needs_is_not_parsed(nested: int, is_read: bool) -> None:
    """How deep a parser gets depends on its caller, and all members have to match alike."""
    inner = b"[" * nested + b"]" * nested
    found = preference_vector(b'{"gpu_available":true,"a":' + inner + b"}")
    assert (_wanted(found) == {"gpu"}) is is_read
    assert (found == NEUTRAL) is not is_read


def test_a_task_wants_what_its_size_says() -> None:
    """Small ones a small machine, large ones a large one."""
    assert _wanted(task_vector("image_classification", _SMALL)) == {
        *("image_classification", "classification", "no gpu", "memory below 8 GB"),
        *("cores below 8", "bandwidth below 1 Gbps", "small models"),
    }
    large = msgspec.structs.replace(_SMALL, hidden=(900, 900), batch_size=100)
    assert _wanted(task_vector("nlp", large)) == {
        *("nlp", "text_classification", "gpu", "memory of 32 GB and more"),
        *("cores of 8 and more", "bandwidth of 1 Gbps and more", "large models"),
    }


@given(_VECTORS, _VECTORS, st.integers(0, 1_000_000), st.integers(0, _MOST))
def test_the_inequality_is_the_one_of_the_design(
    own: Vector, wanted: Vector, standing: int, drawn: int
) -> None:
    """Compared with the same in floats, where those can tell."""
    dot = sum(a * b for a, b in zip(own, wanted, strict=True))
    cos = dot / math.sqrt(sum(a * a for a in own) * sum(b * b for b in wanted))
    left, right = cos * (0.5 + standing / 2_000_000), drawn / 2**256
    if abs(left - right) > 1e-9:
        assert takes_part(own, wanted, standing, drawn) is (left > right)


def test_equal_vectors_take_part_up_to_their_reputation() -> None:
    """Exactly: at half a reputation three of four draws."""
    at = 3 << 254
    assert takes_part(NEUTRAL, NEUTRAL, 500_000, at)
    assert not takes_part(NEUTRAL, NEUTRAL, 500_000, at + 1)
    assert takes_part(NEUTRAL, NEUTRAL, 0, 0)


def replace_model(record: TaskRecord, **changed: Any) -> TaskRecord:
    """Return the order of a task whose model has other fields."""
    model = msgspec.structs.replace(decode(record.requirements, TaskModel), **changed)
    return msgspec.structs.replace(record, requirements=encode(model))


def test_who_is_matched_follows_from_the_state_and_the_beacon() -> None:
    """About three of five with no preferences, those that fit more often; evaluators never. Of a private task as many as a
    slot may have messages.
    """
    names = [f"m{number}" for number in range(40)]
    fits = json.dumps({"task_types": ["image_classification"], "gpu_available": False, "cpu_cores": 2,
                       "memory": 4, "bandwidth": "100Mbps", "model_size": "small"}).encode()  # fmt: skip
    other = json.dumps({"task_types": ["nlp"], "gpu_available": True, "cpu_cores": 64}).encode()
    state = founded(*names)
    for number, name in enumerate(names):
        role = EVALUATOR if number >= 30 else MINER
        said = {0: fits, 1: other}.get(number // 10, b"{}")
        taken = msgspec.structs.replace(ticket(role), preferences=said)
        state = after(state, signed(name, taken, 1))
    body = order()
    record = TaskRecord(
        client=account("client"),
        name="mine",
        task_type=body.task_type,
        data=body.data,
        requirements=body.requirements,
        reward=PAI,
        training_fee=0,
        deadline_ms=1,
        height=1,
    )
    task = tagged("test")
    private = replace_model(record, privacy=Privacy(10**9, 10**6, 10**8, 10**6, 3))
    counts = [0, 0, 0, 0]
    for number in range(40):
        beacon = number.to_bytes(96, "big")
        found = matched(state, beacon, task, record)
        assert found == matched(state, beacon, task, record)
        assert len(few := matched(state, beacon, task, private)) == 3
        assert few < found
        for place, name in enumerate(names):
            counts[place // 10] += account(name) in found
    assert counts[3] == 0
    assert counts[0] == pytest.approx(0.75 * 400, abs=40)
    assert counts[2] == pytest.approx(0.58 * 400, abs=45)
    assert counts[1] < counts[2] < counts[0]
