"""Which sandbox this machine has."""

from __future__ import annotations

from pocqueue.hosts.agent.errors import SandboxUnavailable
from pocqueue.hosts.agent.options import SandboxName
from pocqueue.hosts.agent.sandbox.base import Sandbox
from pocqueue.hosts.agent.sandbox.bubblewrap import Bubblewrap
from pocqueue.hosts.agent.sandbox.cgroup import Cgroups
from pocqueue.hosts.agent.sandbox.container import Containers

_NONE = (
    "There is no sandbox, so this machine gets no command jobs. Install one: `sudo apt-get install bubblewrap`, or "
    "Docker or podman."
)


def choose(name: SandboxName, owner: str) -> Sandbox:
    """Return the sandbox to use: that of the name, or the first of Docker, podman and bubblewrap that is there.

    It is not tried: the self-test runs it. What is there but does not work is never replaced by a weaker one.

    Args:
        name: of the sandbox; `auto` for the first.
        owner: mark of what is started, by which an agent finds what it has left behind when it was killed.

    Raises:
        SandboxUnavailable: there is none, or it is `none`.
    """
    if name == "none":
        raise SandboxUnavailable(
            "The owner of this machine wants no command jobs (HN_SANDBOX=none)."
        )
    if name == "bubblewrap":
        return Bubblewrap(Cgroups.find(owner), owner)
    if name != "auto":
        return Containers(name, owner)
    reasons = []
    for one in ("docker", "podman", "bubblewrap"):
        try:
            return choose(one, owner)
        except SandboxUnavailable as exc:
            reasons.append(str(exc))
    raise SandboxUnavailable(f"{_NONE} ({' '.join(reasons)})")
