"""What `pocqueue up` prints, and what it refuses before anything starts."""

from __future__ import annotations

import io
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner
from typing_extensions import override

from pocqueue import local_stack
from pocqueue.cli import app
from pocqueue.cli.up import PrefixedLines
from pocqueue.errors import PocqueueError, ProcessError, SettingsError
from pocqueue.processes.stack_lock import stack_lock, stack_pid
from pocqueue.settings import Settings
from pocqueue.web.listener import url_of


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    @override
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing from the shell of whoever runs the tests, and whatever a command sets is undone."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in [n for n in os.environ if n.startswith("POCQUEUE_") or n == "NO_COLOR"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("POCQUEUE_STATE_DIR", str(tmp_path / "state"))


def test_prefixes_are_aligned() -> None:
    """Names of any length up to `scheduler` end at the same bar; no colours off a terminal."""
    stream = io.StringIO()
    lines = PrefixedLines(stream)
    lines("gpu0", "text")
    lines("scheduler", "more")
    assert stream.getvalue() == "gpu0       | text\nscheduler  | more\n"


def test_one_colour_a_name_on_a_terminal() -> None:
    """A name keeps its colour, two names have two, and the text is left as it is."""
    stream = Terminal()
    lines = PrefixedLines(stream)
    for name in ("gpu0", "gpu1", "gpu0"):
        lines(name, "text")
    first, second, third = stream.getvalue().splitlines()
    assert first == third == "\x1b[36mgpu0       | \x1b[0mtext"
    assert second == "\x1b[33mgpu1       | \x1b[0mtext"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colours_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """In the two ways that other programs know."""
    monkeypatch.setenv(name, value)
    stream = Terminal()
    PrefixedLines(stream)("gpu0", "text")
    assert stream.getvalue() == "gpu0       | text\n"


def test_a_lost_terminal_is_no_error() -> None:
    """Lines go nowhere once nobody reads them."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as raw, io.TextIOWrapper(raw, write_through=True) as out:
        PrefixedLines(out)("gpu0", "text")


def test_letters_that_the_terminal_lacks_are_replaced() -> None:
    """An ASCII terminal gets a question mark, not an exception."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    PrefixedLines(stream)("gpu0", "10 µs")
    assert raw.getvalue() == b"gpu0       | 10 ?s\n"


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port of the loopback address that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def up(*arguments: str) -> BaseException | None:
    """Run `pocqueue up` in this process; return what ended it."""
    return CliRunner().invoke(app, ["up", *arguments]).exception


def test_a_taken_port_is_refused(taken_port: int, tmp_path: Path) -> None:
    """With the port, the option to change it, and nothing started or left behind."""
    error = up("--flower-port", str(taken_port))
    assert isinstance(error, SettingsError)
    assert f"POCQUEUE_FLOWER_PORT is {taken_port} on 127.0.0.1" in str(error)
    assert "--flower-port" in str(error)
    assert os.listdir(tmp_path / "state") == ["up.lock"]


def test_a_port_for_metrics_that_is_taken_is_refused(
    taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the scheduler finds it."""
    monkeypatch.setenv("POCQUEUE_METRICS_PORT", str(taken_port))
    error = up("--no-flower")
    assert isinstance(error, SettingsError)
    assert f"POCQUEUE_METRICS_PORT is {taken_port} on 127.0.0.1" in str(error)
    assert "or unset it" in str(error)


def test_what_the_delegation_lacks_is_found_before_anything_starts(
    taken_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its token, its files, its port: with what to do about them in words of `up`."""
    monkeypatch.delenv("DELEGATION_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("DELEGATION_HOST", "127.0.0.1")
    monkeypatch.setenv("DELEGATION_PORT", str(taken_port))
    error = up("--no-flower", "--delegation")
    assert isinstance(error, SettingsError)
    assert "DELEGATION_AUTH_TOKEN is not set" in str(error)
    monkeypatch.setenv("DELEGATION_AUTH_TOKEN", "long-enough-to-be-one")
    for name in ("DELEGATION_TLS_CERT", "DELEGATION_TLS_KEY"):
        monkeypatch.setenv(name, str(tmp_path / "none.pem"))
    assert "none.pem" in str(up("--no-flower", "--delegation"))
    for name in ("DELEGATION_TLS_CERT", "DELEGATION_TLS_KEY"):
        monkeypatch.delenv(name)
    error = up("--no-flower", "--delegation")
    assert f"DELEGATION_PORT is {taken_port} on 127.0.0.1" in str(error)
    assert "choose another with DELEGATION_PORT." in str(error)
    assert os.listdir(tmp_path / "state") == ["up.lock"]


def test_an_address_that_flower_cannot_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names address and variable."""
    for address, words in {
        "192.0.2.1": "POCQUEUE_FLOWER_PORT is 5555 on 192.0.2.1, which cannot be listened on",
        "no such host": "POCQUEUE_FLOWER_ADDRESS is 'no such host', which is no address",
    }.items():
        monkeypatch.setenv("POCQUEUE_FLOWER_ADDRESS", address)
        error = up()
        assert isinstance(error, SettingsError)
        assert words in str(error)


def test_a_second_one_on_the_state_folder_is_refused(taken_port: int, tmp_path: Path) -> None:
    """The sentence has the folder and the process that is there already, whose ports are taken as well."""
    with stack_lock(tmp_path / "state"):
        assert stack_pid(tmp_path / "state") == os.getpid()
        error = up("--flower-port", str(taken_port))
        assert isinstance(error, ProcessError)
        assert f"{tmp_path / 'state'} already (process {os.getpid()})" in str(error)
    assert stack_pid(tmp_path / "state") is None
    with stack_lock(tmp_path / "state"):
        pass


def test_a_state_folder_that_cannot_be_made_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The sentence has the folder and the variable."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("POCQUEUE_STATE_DIR", str(tmp_path / "file" / "state"))
    error = up("--no-flower")
    assert isinstance(error, ProcessError)
    assert "POCQUEUE_STATE_DIR" in str(error)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "tpu"], "POCQUEUE_DEVICE cannot be 'tpu'"),
        (["--model", ""], "POCQUEUE_MODEL cannot be ''"),
    ],
)
def test_options_are_judged_like_their_variables(arguments: list[str], words: str) -> None:
    """By name, value and rule."""
    error = up(*arguments)
    assert isinstance(error, SettingsError)
    assert words in str(error)


@pytest.mark.parametrize("arguments", [["--gpus", "0"], ["--flower-port", "65536"]])
def test_numbers_are_bounded(arguments: list[str]) -> None:
    """Click says what is allowed and leaves with code 2."""
    done = CliRunner().invoke(app, ["up", *arguments])
    assert done.exit_code == 2


def test_a_host_name_that_is_no_queue_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """--host-queues puts the host's name into the queues' names."""
    monkeypatch.setenv("POCQUEUE_HOST_NAME", "my host")
    error = up("--no-flower", "--host-queues", "--gpus", "1")
    assert isinstance(error, SettingsError)
    assert "POCQUEUE_HOST_NAME is 'my host'" in str(error)


def test_children_get_exactly_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each as the variable that makes it, so that reading them again gives the same settings."""
    monkeypatch.setenv("POCQUEUE_NUM_THREADS", "7")
    monkeypatch.setenv("POCQUEUE_UNKNOWN", "kept")
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    settings = Settings(
        model="a/b",
        num_threads=None,
        redis_url=SecretStr("redis://:secret@host/0"),
        flower_allow_open=True,
        state_dir=tmp_path / "other",
    )
    env = local_stack.environment(settings)
    assert env["POCQUEUE_REDIS_URL"] == "redis://:secret@host/0"
    assert env["POCQUEUE_UNKNOWN"] == "kept"
    assert env["PYTHONWARNINGS"].startswith("default,ignore:")
    monkeypatch.setattr(os, "environ", env)
    assert Settings() == settings


def test_gpus_are_counted_once_for_auto_and_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A named device is one; without any CUDA device there is the CPU."""

    def num_workers(num_gpus: int = 3, **fields: Any) -> int:
        monkeypatch.setattr(local_stack, "count_cuda_devices", lambda env: num_gpus)
        return local_stack.default_workers(Settings(**fields), {})

    assert [num_workers(device=d) for d in ("auto", "cuda", "cuda:1", "cpu")] == [3, 3, 1, 1]
    assert num_workers(tensor_parallel=2) == 1
    assert num_workers(tensor_parallel=4) == 1
    assert num_workers(engine="vllm-server") == 1
    assert num_workers(0) == 1


def test_no_driver_means_no_gpu_and_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started to find that out."""
    monkeypatch.setattr(subprocess, "run", None)
    monkeypatch.setattr(local_stack, "has_gpu_driver", lambda: False)
    assert local_stack.count_cuda_devices({}) == 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a driver of a GPU."""
    monkeypatch.setattr(local_stack, "has_gpu_driver", lambda: True)


@pytest.mark.usefixtures("driver")
def test_a_torch_that_cannot_be_asked_is_named(tmp_path: Path) -> None:
    """With its reason, and the way round it."""
    (tmp_path / "torch.py").write_text("raise ImportError('no such luck')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with pytest.raises(ProcessError, match=r"ImportError: no such luck.*--gpus"):
        local_stack.count_cuda_devices(env)


@pytest.mark.usefixtures("driver")
def test_torch_is_asked_where_there_is_a_driver(tmp_path: Path) -> None:
    """What it says on its last line counts, whatever a driver writes before."""
    (tmp_path / "torch.py").write_text(
        "class cuda:\n"
        "    is_available = staticmethod(lambda: print('chatter') or True)\n"
        "    device_count = staticmethod(lambda: 5)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert local_stack.count_cuda_devices(env) == 5


@pytest.mark.parametrize(
    ("fields", "num_workers", "threads"),
    [
        ({"device": "cpu"}, 3, "2"),
        ({"device": "cpu"}, 20, "1"),
        ({"device": "cpu"}, 1, None),
        ({"device": "cpu", "num_threads": 4}, 3, None),
        ({"device": "cuda"}, 3, None),
    ],
)
def test_workers_on_the_cpu_share_its_cores(
    fields: dict[str, Any], num_workers: int, threads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the number of threads is set, or there is one worker, or GPUs do the work."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    queues = [f"gpu{number}" for number in range(num_workers)]
    stages = local_stack.services(Settings(**fields), queues, delegation=False, flower_port=None)
    workers = [one for stage in stages for one in stage if one.name in queues]
    assert [one.env.get("POCQUEUE_NUM_THREADS") for one in workers] == [threads] * num_workers


def test_what_stands_on_others_starts_after_them() -> None:
    """Each stage is up before the next one begins, and ends after it."""
    stages = local_stack.services(Settings(), ["gpu0"], delegation=True, flower_port=5555)
    assert [[one.name for one in stage] for stage in stages] == [
        ["scheduler"],
        ["io", "gpu0"],
        ["delegation"],
        ["flower"],
    ]


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5555"),
        ("0.0.0.0", "http://127.0.0.1:5555"),  # noqa: S104 - the case under test
        ("", "http://127.0.0.1:5555"),
        ("::1", "http://[::1]:5555"),
        ("gpu-box", "http://gpu-box:5555"),
    ],
)
def test_the_url_of_a_service_can_be_opened(address: str, url: str) -> None:
    """An address that means every interface is shown as this machine's own."""
    assert url_of(address, 5555) == url


@pytest.mark.parametrize("gpus", [0, 1001])
def test_the_number_of_workers_is_bounded(gpus: int) -> None:
    """For callers other than the command line too."""
    with pytest.raises(PocqueueError, match=f"{gpus}; allowed: 1 to 1000"):
        local_stack.local_stack(Settings(), gpus=gpus).__enter__()
