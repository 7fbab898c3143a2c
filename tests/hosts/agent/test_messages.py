"""The agent's own messages are those of `hosts.wire`: what it says is read there, and what comes from there is read here."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from pocqueue.hosts import wire
from pocqueue.hosts.agent import messages

ROWS = (
    messages.TestRow(
        name="gpu_xid",
        state="fail",
        measured="measured",
        wanted="wanted",
        remedy="remedy",
        gpu="GPU-a",
    ),
)
GPU = messages.HostGpu(
    name="H200",
    memory="143771 MiB",
    uuid="GPU-a",
    index=0,
    vram_mib=143_771,
    compute_capability="9.0",
    healthy=False,
    reason="too hot",
)
WHO: dict[str, Any] = {
    "host_info": messages.HostInfo(hostname="rig", os="Debian 12", gpus=(GPU,)),
    "node_key": 32 * "ab",
    "signature": 64 * "cd",
    "isolation": "bubblewrap",
    "kinds": ("test", "command"),
    "agent_version": "0.1.0",
}
LOAD = messages.GpuLoad(uuid="GPU-a", load=97.0, memory_mib=1024, temperature=61.0)
REFS = (messages.JobRef(id="job-1", attempt=2),)
SAID: list[messages.Message] = [
    messages.Hello(node_key=32 * "ab", node_id="node-1"),
    messages.Register(token="t", **WHO),
    messages.Resume(node_id="node-1", jobs=REFS, next_signature=64 * "ef", **WHO),
    messages.NewKey(node_key=32 * "ab", signature=64 * "cd"),
    messages.Heartbeat(node_id="node-1", jobs=REFS, gpus=(LOAD,), clock_ms=5),
    messages.JobStarted(id="job-1", attempt=2),
    messages.JobRefused(id="job-1", attempt=2, reason="no room"),
    messages.JobResult(
        id="job-1",
        attempt=2,
        status="completed",
        logs="out\n\u20ac",
        exit_code=0,
        seconds=1.5,
        truncated=True,
    ),
    messages.SelfTest(rows=ROWS),
    messages.Draining(),
    messages.Bye(),
]


@pytest.mark.parametrize("said", SAID, ids=lambda said: said.type)
def test_what_the_agent_says_is_understood(said: messages.Message) -> None:
    """Every field, under its name."""
    heard = wire.read_from_agent(said.to_json())
    assert heard.type == said.type
    _same(said, heard)


def test_everything_that_an_agent_can_say_was_said() -> None:
    """But for the log of a running job, which this one does not send."""
    known = {kind.model_fields["type"].default for kind in get_args(get_args(wire.FromAgent)[0])}
    assert {said.type for said in SAID} == known - {"job_log"}


@pytest.mark.parametrize(
    "said",
    [
        wire.Challenge(nonce="n"),
        wire.Registered(
            node_id="node-1", message="Successfully registered", server_ms=5, node_key=32 * "ab"
        ),
        wire.RotateKey(),
        wire.Key(node_key=32 * "ab"),
        wire.Upgrade(version="9", message="Install it."),
        wire.Job(
            id="job-1",
            command="sleep 5",
            kind="container",
            argv=("sleep", "5"),
            image="x@sha256:0",
            limits=wire.Limits(
                seconds=1.5,
                memory_mib=1,
                cpus=2.5,
                processes=3,
                disk_mib=4,
                output_kib=5,
                network=True,
            ),
            gpus=("GPU-a",),
            attempt=3,
        ),
        wire.JobCancel(id="job-1", attempt=3),
        wire.Ack(message=wire.RESULT_RECEIVED, id="job-1", attempt=3),
        wire.Error(message="Job not found", id="job-1", attempt=3),
        wire.Drain(),
    ],
    ids=lambda said: str(said.type),
)
def test_what_the_gateway_says_is_understood(said: wire.Message) -> None:
    """Every field that an agent has a use for; those that it has none for are passed over."""
    heard = messages.read_message(said.to_json())
    assert type(heard).__name__ == type(said).__name__
    _same(heard, said)


def test_what_is_left_out_is_as_the_gateway_means_it() -> None:
    """A bare job is a test; a bare acknowledgement is a heartbeat's; limits have the gateway's defaults."""
    job = messages.read_message(wire.Job(id="j", limits=wire.Limits(seconds=1)).to_json())
    assert isinstance(job, messages.Job)
    assert (job.attempt, job.kind, job.argv, job.gpus, job.image) == (1, "test", (), (), None)
    _same(job.limits, wire.Limits(seconds=1))
    assert messages.read_message(wire.Ack().to_json()) == messages.Ack()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "5", '"job"', "{}", b"\xff", "[" * 100_000),
        *('{"type": ["job"]}', '{"type": "new"}', '{"type": "job"}', '{"type": "job", "id": 5}'),
        *('{"type": "challenge"}', '{"type": "job_cancel", "id": "j", "attempt": {}}'),
        '{"type": "job", "id": "j", "argv": "sleep 5"}',
        '{"type": "job", "id": "j", "argv": [5]}',
        '{"type": "job", "id": "j", "limits": {"memoryMib": 5}}',
        '{"type": "job", "id": "j", "limits": {"seconds": -5}}',
        '{"type": "job", "id": "j", "limits": {"seconds": NaN}}',
        '{"type": "job", "id": "j", "limits": [5]}',
    ],
)
def test_what_is_no_message_is_nothing(text: str | bytes) -> None:
    """Whatever it is: the connection goes on."""
    assert messages.read_message(text) is None


def test_long_texts_are_cut_to_what_is_taken() -> None:
    """A row is never a reason for the gateway to refuse the whole self-test."""
    row = messages.TestRow(
        name="sandbox", state="fail", measured="m" * 5000, wanted="w" * 5000, remedy="r" * 5000
    )
    odd = messages.TestRow(
        name="disk_speed", state="fail", measured="/home/\udcff", wanted="w", remedy="r"
    )
    assert isinstance(
        wire.read_from_agent(messages.SelfTest(rows=(row, odd)).to_json()), wire.SelfTest
    )


def _same(one: Any, other: Any) -> None:
    """Compare the fields that the agent's value has."""
    for name, mine in one.fields().items():
        theirs = getattr(other, name)
        if isinstance(mine, messages.Value):
            _same(mine, theirs)
        elif isinstance(mine, tuple) and mine and isinstance(mine[0], messages.Value):
            assert len(mine) == len(theirs)
            for a, b in zip(mine, theirs, strict=True):
                _same(a, b)
        else:
            assert json.dumps(mine) == json.dumps(theirs), name
