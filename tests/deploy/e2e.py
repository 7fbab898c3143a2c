"""Takes a server that has systemd through all phases, and starts it anew in the middle of some; writes docs/deploy-e2e.md.

`python -m tests.deploy.e2e docs/deploy-e2e.md` (`make deploy-e2e`) makes a Debian by debootstrap, once, and runs copies of it in
podman, with systemd as their first process, a real sshd on loopback and a loop device as /dev/vdc. What has no place there (GPU,
Docker, chain, hub) are the fakes of the tests. Root only, ten minutes; not a part of `make test`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pocqueue.deploy.engine import PHASES
from pocqueue.deploy.facts.format_rule import FormatRule
from pocqueue.deploy.steps import volume
from tests.deploy.clone.runs import Runs
from tests.deploy.fake_programs import FOLDER as FAKES, Fakes
from tests.deploy.loop_devices import attempt, loop_device, run
from tests.deploy.network import has_network
from tests.support.waiting import until, wait_until

#: Kept from one time to the next: 107 s of debootstrap.
KEPT = Path("/var/tmp/pocqueue-deploy-e2e")  # noqa: S108
PACKAGES = "systemd-sysv,openssh-server,sudo,git,curl,python3,procps,iproute2,dbus"
LAST = max(PHASES)
#: Without these a container mounts nothing, and does not see whose number a disk is (/sys/dev/block).
_UNMASKED = ("--security-opt", "seccomp=unconfined", "--security-opt", "unmask=ALL")

#: Arguments: the port of sshd; the public key that is let in.
_FURNISH = """\
set -eu
useradd --create-home --shell /bin/bash deployer
usermod -p '*' deployer
echo 'deployer ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deployer
echo 'Defaults env_keep += FAKES' > /etc/sudoers.d/fakes
mkdir -p /etc/ssh/sshd_config.d /etc/systemd/system.conf.d /var/lib/fakes/set /var/lib/fakes/state /var/lib/fakes/journal
chmod -R 777 /var/lib/fakes
printf '%s\\n' "Port $1" "ListenAddress 127.0.0.1" "AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/e2e_keys" \
  "SetEnv FAKES=/var/lib/fakes" > /etc/ssh/sshd_config.d/e2e.conf
echo "$2" > /etc/ssh/e2e_keys
printf '%s\\n' '[Manager]' 'DefaultEnvironment=FAKES=/var/lib/fakes' > /etc/systemd/system.conf.d/fakes.conf
echo e2e > /etc/hostname
: > /etc/fstab
# What listens on the machine is not the server's.
printf '#!/bin/sh\\n' > /usr/local/bin/ss
chmod 755 /usr/local/bin/ss
"""


def debian() -> Path:
    """Return the root of a Debian, made by debootstrap if it is not there."""
    root = KEPT / "debian"
    if not (KEPT / "ready").exists():
        shutil.rmtree(root, ignore_errors=True)
        KEPT.mkdir(exist_ok=True)
        subprocess.run(
            [  # noqa: S607
                "debootstrap",
                "--variant=minbase",
                f"--include={PACKAGES}",
                "bookworm",
                str(root),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=900,
        )
        (KEPT / "ready").touch()
    return root


@dataclass
class Server:
    """A container with systemd.

    Attributes:
        name: of the container.
        root: of its files.
        device: this machine's, which is its /dev/vdc.
        port: of its sshd.
        client_key: private key that is let in.
    """

    name: str
    root: Path
    device: str
    port: int
    client_key: Path

    @property
    def host_key(self) -> str:
        """Its public key, ``TYPE BASE64``."""
        text = (self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        return " ".join(text.split()[:2])

    @property
    def fakes(self) -> Fakes:
        """What its fakes share."""
        return Fakes(self.root / "var/lib/fakes")

    def create(self) -> None:
        """Start it for the first time."""
        limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
        rights = ("--cap-add", "SYS_ADMIN", *_UNMASKED, *limits)
        run(
            *("podman", "--runtime", "runc", "run", "--detach", "--name", self.name),
            *("--systemd=always", "--network", "host", "--hostname", "e2e", *rights),
            *("--device", f"{self.device}:/dev/vdc", "--rootfs", str(self.root), "/sbin/init"),
        )
        self.wait()

    def wait(self) -> None:
        """Wait until systemd has started all, and sshd listens."""
        self.attempt("systemctl", "is-system-running", "--wait")

        def listens() -> bool:
            with socket.socket() as door:
                return door.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(listens, message="sshd")

    def attempt(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, however it ends."""
        return attempt("podman", "exec", self.name, *argv)

    def reboot(self) -> None:
        """Stop it and start it: all processes end, the disk and all files stay."""
        run("podman", "stop", "--time", "20", self.name)
        run("podman", "start", self.name)
        self.wait()

    def remove(self) -> None:
        """End it."""
        attempt("podman", "rm", "--force", "--time", "1", self.name)


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Have a new server within the block."""
    name = f"pocqueue-e2e-{os.getpid()}"
    root = folder / "root"
    run("cp", "-a", "--reflink=auto", str(debian()), str(root))
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = int(door.getsockname()[1])
    key = folder / "client"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    for fake in FAKES.iterdir():
        # It has a systemctl, and mounts, of its own.
        if fake.name not in {"systemctl", "mountpoint", "dmesg"}:
            shutil.copy(fake, root / "usr/local/bin")
    run(
        "chroot",
        str(root),
        "sh",
        "-c",
        _FURNISH,
        "sh",
        str(port),
        key.with_suffix(".pub").read_text(),
    )
    (folder / "disks").mkdir()
    with loop_device(folder / "disks", mib=64) as disk:
        there = Server(name, root, disk.path, port, key)
        try:
            there.create()
            yield there
        finally:
            there.remove()
            attempt("umount", "--lazy", disk.path)


class Report:
    """What was seen: what was tried, what came of it, seconds."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, float]] = []

    async def note(self, what: str, of: Awaitable[str]) -> None:
        """Try something, and write down what it says."""
        begun = time.monotonic()
        said = await of
        self.rows.append((what, said, time.monotonic() - begun))
        sys.stdout.write(f"{what}: {said} ({self.rows[-1][2]:.1f} s)\n")
        sys.stdout.flush()

    def page(self, system: str) -> str:
        """Return docs/deploy-e2e.md."""
        rows = "".join(f"| {what} | {said} | {time_s:.1f} |\n" for what, said, time_s in self.rows)
        return _PAGE.format(system=system, rows=rows, phases=max(PHASES))


_PAGE = """\
# A server with systemd, started anew in the middle

`make deploy-e2e` writes this page: a Debian by debootstrap in podman, systemd as its first process, a real sshd on loopback, a loop
device as `/dev/vdc`, phases 0 to {phases}. What has no place there (GPU, Docker, chain, hub) are the fakes of the tests. Starting it anew is
`podman stop` and `podman start`: all processes end, and no kernel boots.

{system}

| what | result | seconds |
| --- | --- | --- |
{rows}
Not shown by this: a kernel that boots, udev (so `/etc/fstab`'s line waits for a device that nobody announces, and the next run
mounts it), limits of units, a real Docker, driver and chain; the fakes' containers run on through a restart.
"""


def check(holds: object, said: object) -> None:
    """End with what was seen, if it is not as it should be."""
    if not holds:
        raise SystemExit(f"not as it should be: {said}")


async def whole(there: Server, folder: Path) -> str:
    """Go through all phases."""
    runs = Runs(there, folder)
    has_network(there.fakes, runs.conf)
    done = await runs(last=LAST)
    check(done.code == 0, done.lines[-20:])
    said = there.attempt("journalctl", "--quiet", "--no-pager", "-o", "cat", "_PID=1").stdout
    jobs = {word for word in said.split() if word.startswith("pocqueue-deploy-")}
    uuid = (folder / "quick-newton" / "volume.txt").read_text().strip()
    check(uuid in there.attempt("findmnt", "-n", "-o", "UUID", "/mnt/ssd").stdout, uuid)
    return f"exit code 0; {len(jobs)} jobs as units of systemd; {len(done.of('OK'))} lines OK"


async def again(there: Server, folder: Path) -> str:
    """Do it once more."""
    done = await Runs(there, folder)(last=LAST)
    check(done.code == 0 and not done.of("EXEC"), done.lines[-20:])
    return f"exit code 0; {len(done.of('SKIP'))} lines SKIP, none EXEC"


async def after(there: Server, folder: Path) -> str:
    """Do it once more after a restart, when nothing is mounted."""
    await asyncio.to_thread(there.reboot)
    before = there.attempt("findmnt", "-n", "/mnt/ssd").stdout
    done = await Runs(there, folder)(last=LAST)
    check(done.code == 0, done.lines[-20:])
    check(not any("format_volume" in line or "keys add" in line for line in done.of("EXEC")), done)
    names = [line.split(": ", 1)[0].removeprefix("[OK] ") for line in done.of("OK")]
    names = [name for name in names if not name.startswith(("PASS", "All", "SSH"))]
    return f"exit code 0; {'mounted' if before else 'not mounted'} by the start; done again: {', '.join(names) or 'nothing'}"


async def restarted(there: Server, folder: Path, words: str) -> str:
    """Start the server anew as soon as the log has some words; say what came of the run."""
    runs = Runs(there, folder)
    run = asyncio.create_task(runs(last=LAST))
    log = runs.conf.logs / "quick-newton_latest.log"
    stall = there.fakes.folder / "set" / "hf"

    def is_there() -> bool:
        # A download that is to stall once has to have done so: the next one does not.
        return log.exists() and words in log.read_text() and not stall.exists()

    await until(lambda: run.done() or is_there(), 300)
    check(not run.done(), run.result().lines[-20:] if run.done() else "")
    await asyncio.to_thread(there.reboot)
    done = await run
    said = f"the run left with {done.code}"
    return f"{said}: {done.of('ERROR')[0].removeprefix('[ERROR] ')}" if done.code else said


async def ended(there: Server, folder: Path) -> str:
    """Do what is left, and look that nothing was done twice."""
    done = await Runs(there, folder)(last=LAST)
    check(done.code == 0, done.lines[-20:])
    num_clones = len([call for call in there.fakes.calls("git") if "clone" in call.words])
    keys, requests = there.fakes.state("keys-added"), there.fakes.state("registered")
    seen = (num_clones, keys.count("\n"), requests.count("\n"))
    check(seen == (1, 1, 1), seen)
    return "exit code 0; one clone, one key, one registration"


async def main() -> str:
    """Try everything; return the page."""
    # Loop devices pass for disks.
    setattr(volume, "FormatRule", functools.partial(FormatRule, kinds=("loop",)))  # noqa: B010
    report, version = Report(), ""
    root = debian()
    with tempfile.TemporaryDirectory(prefix="run-", dir=root.parent) as folder:
        for number, name in enumerate(("first", "second")):
            here = Path(folder) / name
            here.mkdir()
            with server(here) as there:
                nodes = here / "nodes"
                if number == 0:
                    version = there.attempt("systemctl", "--version").stdout.splitlines()[0]
                    await report.note("all phases on a bare server", whole(there, nodes))
                    await report.note("a second run", again(there, nodes))
                    await report.note("started anew behind that, and a run", after(there, nodes))
                else:
                    has_network(there.fakes, Runs(there, nodes).conf)
                    there.fakes.set("hf", "stalls-once")
                    what = "started anew while the model is loaded (2c)"
                    await report.note(what, restarted(there, nodes, "load_model.sh"))
                    what = "the next run, started anew as phase 6 begins"
                    await report.note(what, restarted(there, nodes, "PHASE 6"))
                    await report.note("the run after that", ended(there, nodes))
    commit = run("git", "rev-parse", "--short", "HEAD").strip()
    return report.page(
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit}; {version}; kernel {platform.release()}; {os.cpu_count()} cores, load {os.getloadavg()[1]:.0f}."
    )


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("This needs root: it makes loop devices and containers.")
    Path(sys.argv[1]).write_text(asyncio.run(main()))
