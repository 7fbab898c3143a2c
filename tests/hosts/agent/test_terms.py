"""What the owner of a machine lets jobs have."""

from __future__ import annotations

import pytest

from pocqueue.hosts.agent.messages import Job, JobLimits
from pocqueue.hosts.agent.sandbox.base import Command
from pocqueue.hosts.agent.sandbox.none import NoSandbox
from pocqueue.hosts.agent.terms import Terms

DIGEST = "registry.example.com/x@sha256:" + 64 * "0"


class _Containers(NoSandbox):
    name, takes_images = "docker", True


SANDBOX = _Containers("")
TERMS = Terms(frozenset({"sleep"}), memory_mib=512, gpus={"GPU-a": 3})


def test_a_job_gets_what_both_sides_allow() -> None:
    """The smaller of its own limits and the owner's; GPUs by their index; CPU time by the clock's and the CPUs."""
    limits = JobLimits(seconds=10, memory_mib=4096, disk_mib=100, cpus=2, output_kib=10_000)
    job = Job(
        id="1", attempt=1, kind="command", argv=("sleep", "5"), gpus=("GPU-a",), limits=limits
    )
    command = TERMS.command(job, SANDBOX)
    assert isinstance(command, Command)
    assert (command.argv, command.gpus) == (("sleep", "5"), ((3, "GPU-a"),))
    found = command.limits
    assert (found.wall_s, found.cpu_s, found.memory_mib) == (10, 20, 512)
    assert (found.disk_mib, found.kept_kib) == (100, 256)


@pytest.mark.parametrize(
    ("image", "is_taken"),
    [(DIGEST, True), ("x:latest", False), (None, False), (f"--privileged{DIGEST}", False)],
)
def test_an_image_is_named_by_its_digest(image: str | None, is_taken: bool) -> None:
    """Anything else could be something else tomorrow, or an option."""
    job = Job(id="1", attempt=1, kind="container", image=image, argv=("anything",))
    assert isinstance(TERMS.command(job, SANDBOX), Command) == is_taken


def test_kinds_follow_the_sandbox() -> None:
    """And the owner, who may not want images; slots follow the GPUs."""
    assert TERMS.kinds(SANDBOX) == ("test", "command", "container")
    assert Terms(frozenset(), 1, containers=False).kinds(SANDBOX) == ("test", "command")
    assert TERMS.kinds(NoSandbox("why")) == ("test",)
    assert (TERMS.slots, Terms(frozenset(), 1).slots) == (1, 1)
    assert Terms(frozenset(), 1, {"a": 0, "b": 1}).slots == 2
