"""What the owner of a machine lets jobs have, and why a job is refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pocqueue.hosts.agent.messages import Job, JobLimits
from pocqueue.hosts.agent.sandbox.base import Command, Limits, Sandbox


@dataclass(frozen=True, slots=True)
class Terms:
    """What jobs may have on this machine."""

    programs: frozenset[str]  #: names of programs that may be started, as in `argv[0]`
    memory_mib: int  #: most of one job
    gpus: dict[str, int] = field(default_factory=dict)  #: healthy ones: index by UUID
    containers: bool = True  #: jobs may bring an image

    @property
    def slots(self) -> int:
        """Jobs at a time: one for each GPU."""
        return max(1, len(self.gpus))

    def kinds(self, sandbox: Sandbox) -> tuple[str, ...]:
        """Return the kinds of jobs that are taken with a sandbox."""
        if sandbox.name == "none":
            return ("test",)
        has_images = sandbox.takes_images and self.containers
        return ("test", "command", "container") if has_images else ("test", "command")

    def command(self, job: Job, sandbox: Sandbox) -> Command | str:
        """Return what is to be run for a job; or in one sentence why it is refused."""
        if job.kind not in self.kinds(sandbox):
            return f"This machine takes no jobs of kind {job.kind}."
        limits = Limits() if job.limits is None else _limits(job.limits)
        most_mib = self.memory_mib
        limits = replace(
            limits,
            memory_mib=min(limits.memory_mib, most_mib),
            disk_mib=min(limits.disk_mib, most_mib),
        )
        if job.limits is not None and job.limits.network:
            return "Jobs have no network on this machine."
        if unknown := [uuid for uuid in job.gpus if uuid not in self.gpus]:
            return f"There is no healthy GPU {unknown[0]} here."
        gpus = tuple((self.gpus[uuid], uuid) for uuid in job.gpus)
        argv = job.argv
        if job.kind == "container":
            if job.image is None or "@sha256:" not in job.image or job.image.startswith("-"):
                return "A container's image is to be named by its digest."
            return Command(argv, limits, gpus, job.image)
        if not argv or argv[0] not in self.programs:
            return f"The owner of this machine does not allow {argv[0] if argv else 'a command without a name'}."
        return Command(argv, limits, gpus)


def _limits(asked: JobLimits) -> Limits:
    return Limits(
        wall_s=asked.seconds,
        cpu_s=asked.seconds * max(asked.cpus, 1.0),
        memory_mib=max(1, asked.memory_mib),
        disk_mib=max(1, asked.disk_mib),
        processes=max(1, asked.processes),
        kept_kib=min(256, max(2, asked.output_kib)),
    )
