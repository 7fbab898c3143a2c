"""Messages of the WebSocket: what older agents send is read, what is no message gets one of the known texts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pocqueue.hosts import wire
from pocqueue.hosts.wire import BadMessage, ErrorText, read_from_agent


def read(**fields: Any) -> Any:
    """Read a message with these fields."""
    return read_from_agent(json.dumps(fields))


def test_what_older_agents_send() -> None:
    """The three messages of the seed are read, with fields that nobody knows ignored."""
    host = {
        "hostname": "gpu-rig-01",
        "gpus": [{"name": "NVIDIA RTX 4090", "memory": "24GB", "fans": 3}],
        "os": "Ubuntu 22.04",
    }
    message = read(type="register", token="t-1", hostInfo=host, extra={"a": []})
    assert isinstance(message, wire.Register)
    assert (message.token, message.protocol, message.node_key) == ("t-1", 1, None)
    assert message.host_info.hostname == "gpu-rig-01"
    assert message.host_info.gpus[0].memory == "24GB"
    assert read(type="heartbeat", nodeId="node-1") == wire.Heartbeat(node_id="node-1")
    result = read(type="job_result", id="job-1", status="completed", logs="out")
    assert result == wire.JobResult(id="job-1", status="completed", logs="out")


def test_what_is_missing_is_unknown() -> None:
    """A machine that says little of itself joins all the same; so does one with odd types."""
    bare = read(type="register", token="t")
    assert (bare.host_info.hostname, bare.host_info.os, bare.host_info.gpus) == (
        "unknown",
        "unknown",
        (),
    )
    odd = read(type="register", hostInfo={"hostname": None, "gpus": [{"memory": 24}], "os": ""})
    assert odd.token == ""
    assert odd.host_info.hostname == odd.host_info.os == odd.host_info.gpus[0].name == "unknown"
    assert odd.host_info.gpus[0].memory == "24"
    for engine in ("docker", "podman", "container"):
        assert wire.Register.model_validate({"isolation": engine}).isolation == "container"
    assert read(type="register", kinds=["test", "proof"]).kinds == ("test",)
    assert read(type="register", hostInfo=None).host_info == wire.HostInfo()
    assert read(type="heartbeat").node_id == ""


def test_texts_of_strangers_are_one_printable_line() -> None:
    """Nothing in a host name starts a second line in a log, or is refused by a database."""
    host = {"hostname": "a\nERROR b\x00\x1b[31m\u202ec", "os": "\x00"}
    message = read(type="register", hostInfo=host)
    assert message.host_info.hostname == "a ERROR b [31m c"
    assert message.host_info.os == "unknown"
    assert "\0" not in read(type="job_result", id="j", logs="a\0b").logs
    # What cannot be an id is nobody's.
    assert read(type="heartbeat", nodeId="a\0b").node_id == ""
    assert read(type="job_result", id="x" * 101).id == ""


def test_results_are_read_whatever_their_types() -> None:
    """What a job has written is kept; a status that is none is a failure."""
    assert read(type="job_result", id="j", status="done?", logs=["a", 1]).logs == '["a", 1]'
    assert read(type="job_result", id="j", status=None).status == "failed"
    assert read(type="job_result", id="j", status="timeout").status == "timeout"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "5",
        "[]",
        "[" * 100_000,
        '{"type": "heartbeat", "nodeId": 5}',
        '{"type": "heartbeat", "clockMs": NaN}',
        '{"type": "register", "token": "\\ud800"}',
        '{"type": "job_started", "id": "a", "attempt": 0}',
        '{"type": "job_started", "id": "a"}',
        json.dumps({"type": "register", "hostInfo": {"gpus": [{}] * 100_000}}),
        json.dumps({"type": "register", "hostInfo": {"hostname": "h" * 10_000}}),
        json.dumps({"type": "register", "token": "t" * 1000}),
        json.dumps({"type": "resume", "signature": "zz"}),
    ],
)
def test_no_message(text: str) -> None:
    """What cannot be read is said to be so, and nothing of it is repeated."""
    with pytest.raises(BadMessage, match=r"^Invalid message format$"):
        read_from_agent(text)


@pytest.mark.parametrize("text", ["{}", '{"type": "reg"}', '{"type": 5}', '{"type": ["a"]}'])
def test_unknown_types(text: str) -> None:
    """They have a text of their own."""
    with pytest.raises(BadMessage, match=r"^Unknown message type$"):
        read_from_agent(text)


def test_what_older_agents_are_told() -> None:
    """Exactly the fields that they know."""
    said = [
        wire.Registered(node_id="n"),
        wire.Job(id="j", command="sleep 5"),
        wire.Ack(),
        wire.Ack(message=wire.RESULT_RECEIVED),
        wire.Error(message=ErrorText.INVALID_TOKEN),
    ]
    assert [json.loads(message.to_json()) for message in said] == [
        {"type": "registered", "nodeId": "n", "message": "Successfully registered"},
        {"type": "job", "id": "j", "command": "sleep 5"},
        {"type": "ack"},
        {"type": "ack", "message": "Job result received"},
        {"type": "error", "message": "Invalid token"},
    ]


def test_every_message_comes_back_as_it_was_sent() -> None:
    """Both directions; the fields' names are the wire's."""
    ref = wire.JobRef(id="j", attempt=2)
    host = wire.HostInfo(
        hostname="h", gpus=(wire.HostGpu(uuid="GPU-1", vram_mib=1, compute_capability="9.0"),)
    )
    row = wire.TestRow(name="driver", state="fail", remedy="Install it.")
    of_agent = [
        wire.Hello(node_key="ab", node_id="n"),
        wire.Register(token="t", host_info=host, node_key="ab", signature="cd", protocol=2),
        wire.Resume(
            node_id="n", signature="cd", jobs=(ref,), isolation="container", kinds=("test",)
        ),
        wire.Heartbeat(node_id="n", jobs=(ref,), gpus=(wire.GpuLoad(load=1.5),), clock_ms=5),
        wire.JobStarted(id="j", attempt=2),
        wire.JobRefused(id="j", attempt=2, reason="no image"),
        wire.JobLog(id="j", attempt=2, text="a"),
        wire.JobResult(id="j", status="failed", attempt=2, exit_code=137, seconds=1.5),
        wire.SelfTest(rows=(row,)),
        wire.NewKey(node_key="ab", signature="cd"),
        wire.Draining(),
        wire.Bye(),
    ]
    assert [read_from_agent(message.to_json()) for message in of_agent] == of_agent
    limits = wire.Limits(seconds=60)
    of_gateway = [
        wire.Challenge(nonce="n"),
        wire.Job(id="j", kind="container", image="i", limits=limits, gpus=("GPU-1",), attempt=1),
        wire.JobCancel(id="j", attempt=1),
        wire.Drain(),
        wire.RotateKey(),
        wire.Key(node_key="ab"),
        wire.Upgrade(version="1.0", message="Install it."),
        wire.Replaced(),
    ]
    for message in of_gateway:
        assert type(message).model_validate_json(message.to_json()) == message
    assert '"hostInfo"' in of_agent[1].to_json()
    assert '"memoryMib"' in of_gateway[1].to_json()


def test_secrets_do_not_show() -> None:
    """A message in a log or a traceback has no token and no output of a job in it."""
    assert "geheim" not in repr(read(type="register", token="geheim"))
    assert "geheim" not in repr(read(type="job_result", id="j", logs="geheim"))
    with pytest.raises(BadMessage) as caught:
        read(type="register", token=["geheim"])
    assert caught.value.__context__ is None or "geheim" not in str(caught.value)


def test_what_is_signed_names_the_gateway() -> None:
    """However its name is written, and through whatever proxy."""
    for endpoint in ("ws://GPU.example.com:3002", "wss://gpu.example.com/ws", "//gpu.example.com."):
        assert wire.origin_of(endpoint) == "gpu.example.com"
    assert wire.origin_of("ws://[::1]:3002") == "::1"
    assert wire.signed_text("h", "n", "c") == b"pocqueue-node-1\nh\nn\nc"
    assert wire.rotation_text("h", "n", "ab") == b"pocqueue-node-key-1\nh\nn\nab"


def test_logs_that_are_too_long_keep_both_ends() -> None:
    """Of a text of any type; a short one is as it was."""
    long = read(type="job_result", id="j", logs="a" * wire.MAX_LOG + "b" * wire.MAX_LOG).logs
    assert len(long) < wire.MAX_LOG + 100
    assert (long[0], long[-1]) == ("a", "b")
    assert len(read(type="job_result", id="j", logs=["x" * 10] * 100_000).logs) < len(long) + 1
    assert read(type="job_result", id="j", logs="x" * wire.MAX_LOG).logs == "x" * wire.MAX_LOG
