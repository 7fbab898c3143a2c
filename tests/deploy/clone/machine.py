"""A copy-on-write clone of this machine: a server of its own with a real sshd, real sudo, real disks, mounts and users.

Its root is an overlay on this machine's, with all that is written in memory; its processes, its name and its `/dev` are its own,
and none of this machine's disks is in there. It ends with the pipe that its first process reads: also when pytest was killed.
Root only.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pocqueue.deploy.host_key import HostKeys
from pocqueue.deploy.transport import Target
from tests.deploy import loop_devices
from tests.deploy.fake_programs import FOLDER as FAKES
from tests.support.waiting import wait_until

#: A login with sudo, as clouds make one.
USER = "deployer"

#: Arguments: a folder for the layers; a folder that both have.
_BEGIN = """\
set -eu
base=$1 shared=$2 root=$1/root
mount -t tmpfs -o mode=755 none "$base"
mkdir "$base/upper" "$base/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" none "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 none "$root/dev"
mount -t tmpfs -o mode=755 none "$root/run"
mount -t tmpfs -o mode=1777 none "$root/tmp"
while read -r name kind major minor; do mknod -m 666 "$root/dev/$name" "$kind" "$major" "$minor"; done << 'NODES'
null c 1 3
zero c 1 5
full c 1 7
random c 1 8
urandom c 1 9
tty c 5 0
NODES
mkdir "$root/dev/pts" "$root/dev/shm" "$root/run/sshd"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for n in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${n%:*}" "$root/dev/${n#*:}"; done
mkdir -p "$root$shared" "$root/.before"
mount --bind "$shared" "$root$shared"
cd "$root"
pivot_root . .before
exec chroot . sh -c '
  umount -l /.before
  rmdir /.before
  echo clone > /proc/sys/kernel/hostname
  # Else each sudo asks the name service for it, and waits 5 s where an answer is lost.
  echo "127.0.1.1 clone" >> /etc/hosts
  # What is left of a session is nobody else s to wait for.
  trap "" CHLD
  echo ready
  exec cat'
"""

#: Arguments: the login; the folder of fakes; the public key that is let in.
_FURNISH = """\
set -eu
user=$1 fakes=$2 key=$3
useradd --create-home --shell /bin/bash "$user"
usermod -p '*' "$user"
printf '%s\\n' "Defaults env_keep += FAKES" "Defaults secure_path=$fakes:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" > /etc/sudoers.d/clone
mkdir -p /etc/ssh /mnt/other
printf '%s\\n' "$key" > /etc/ssh/clone_keys
rm -f /etc/motd
: > /etc/fstab
"""

#: All but the first, and what runs this.
_KILL = """\
for pid in $(ls /proc | grep -x '[0-9]*'); do
  case $pid in 1|$$) ;; *) kill -KILL "$pid" 2> /dev/null || true ;; esac
done
"""

#: Arguments: device nodes.
_RELEASE = """\
sed -n 's/^[^ ]* \\(\\/mnt[^ ]*\\|\\/boot[^ ]*\\) .*/\\1/p' /proc/self/mounts | sort -r | while read -r at; do
  umount "$at" || umount -l "$at"
done
[ "$#" = 0 ] || rm -f -- "$@"
"""

_CLEAN = """\
: > /etc/fstab
rm -rf /var/lib/pocqueue-deploy /etc/fstab.* /etc/ssh/banner /root/.ssh /run/begun /run/go
usermod -s /bin/bash -p '*' deployer
cd /home/deployer
find . -mindepth 1 -delete
echo 'deployer ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deployer
"""

_SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {key}
PidFile {pid}
AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/clone_keys
PermitRootLogin yes
UsePAM no
PrintMotd no
Subsystem sftp internal-sftp
SetEnv PATH={programs}:/usr/local/bin:/usr/bin:/bin FAKES={fakes}
"""


def missing() -> str:
    """Return why there can be none here; empty: there can."""
    if os.geteuid() != 0:
        return "a clone of the machine needs root"
    for tool in ("unshare", "nsenter", "pivot_root", "useradd", "sudo", "sshd", "ssh-keygen"):
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            return f"there is no {tool} (apt-get install openssh-server sudo)"
    return loop_devices.missing()


@dataclass
class Sshd:
    """A real sshd in a clone.

    Attributes:
        port: of 127.0.0.1.
        key: file of its host key.
        options: lines of its configuration that come first, and so count.
    """

    clone: Clone
    port: int
    key: Path
    options: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = None

    @property
    def host_key(self) -> str:
        """Its public key, ``TYPE BASE64``."""
        return " ".join(self.key.with_suffix(".pub").read_text().split()[:2])

    @property
    def client_key(self) -> Path:
        """Return a private key that is let in."""
        return self.clone.key

    @property
    def target(self) -> Target:
        """How to connect."""
        return Target("127.0.0.1", self.port, USER, self.clone.key)

    def host_keys(self, folder: Path) -> HostKeys:
        """Return the file of confirmed keys that has this server's."""
        keys = HostKeys(folder / "known_hosts", "127.0.0.1", self.port)
        keys.keep(self.host_key)
        return keys

    def start(self) -> None:
        """Listen."""
        config = self.clone.shared / f"sshd-{self.port}.conf"
        pid = f"/run/sshd-{self.port}.pid"
        text = _SSHD.format(
            port=self.port,
            key=self.key,
            pid=pid,
            programs=self.clone.programs,
            fakes=self.clone.fakes,
        )
        config.write_text("".join(f"{line}\n" for line in self.options) + text)
        log = (self.clone.shared / f"sshd-{self.port}.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [*self.clone.words, "/usr/sbin/sshd", "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self._listens, message=f"sshd on port {self.port}")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (
            self.clone.shared / f"sshd-{self.port}.log"
        ).read_text()
        with socket.socket() as door:
            return door.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """Listen no more; sessions go on."""
        self.clone.run("sh", "-c", f"kill -KILL $(cat /run/sshd-{self.port}.pid)")
        self.ended()

    def kill(self) -> None:
        """Break all connections at once; what sessions have started goes on."""
        self.clone.run("sh", "-c", "pkill -KILL -x sshd || true")
        self.ended()

    def ended(self) -> None:
        """Know that it was killed."""
        process, self._process = self._process, None
        if process is not None:
            process.wait(60)


@dataclass
class Clone:
    """A clone that runs.

    Attributes:
        pid: of its first process, as this machine counts.
        shared: folder that it shares with this machine.
        key: private key that is let in.
        disks: device nodes that it has.
        servers: that were made since it was cleaned.
        own_programs: the same.
    """

    pid: int
    shared: Path
    key: Path
    disks: list[str] = field(default_factory=list)
    servers: list[Sshd] = field(default_factory=list)
    own_programs: list[Path] = field(default_factory=list)

    @property
    def words(self) -> tuple[str, ...]:
        """Words before a command that runs in it."""
        spaces = ("mnt", "uts", "ipc", "pid_for_children")
        options = ("mount", "uts", "ipc", "pid")
        names = zip(options, spaces, strict=True)
        return (
            "nsenter",
            *(f"--{option}=/proc/{self.pid}/ns/{space}" for option, space in names),
            "--",
        )

    @property
    def programs(self) -> Path:
        """Folder of the fakes, before all others of its PATH."""
        return self.shared / "programs"

    @property
    def fakes(self) -> Path:
        """Folder that its fakes share."""
        return self.shared / "fakes"

    def attempt(self, *argv: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command in it as root, however it ends."""
        return subprocess.run(
            [*self.words, *argv],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def run(self, *argv: str, text: str = "") -> str:
        """Return what a command in it prints, which has to end well."""
        done = self.attempt(*argv, text=text)
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout

    def write(self, path: str, text: str) -> None:
        """Write a file in it."""
        self.run("sh", "-c", 'mkdir -p "${1%/*}"; cat > "$1"', "sh", path, text=text)

    def program(self, name: str, text: str) -> None:
        """Have a program in place of a real one until it is cleaned."""
        path = self.programs / name
        assert not path.exists()
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        self.own_programs.append(path)

    def add_disk(self, device: str, name: str) -> str:
        """Give it one of this machine's loop devices; return its path there.

        Args:
            device: path of it, or of its partition, on this machine.
            name: there.
        """
        assert device.startswith("/dev/loop")
        number = Path(device).stat().st_rdev
        path = f"/dev/{name}"
        self.run("mknod", "-m", "600", path, "b", str(os.major(number)), str(os.minor(number)))
        self.disks.append(path)
        return path

    def sshd(self, *options: str, port: int = 0) -> Sshd:
        """Return a server that does not listen yet.

        Args:
            options: lines of its configuration.
            port: to listen on; 0: any that is free.
        """
        if not port:
            with socket.socket() as door:
                door.bind(("127.0.0.1", 0))
                port = int(door.getsockname()[1])
        key = self.shared / f"host-key-{len(list(self.shared.glob('host-key-*.pub')))}"
        loop_devices.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        server = Sshd(self, port, key, options)
        self.servers.append(server)
        return server

    def release(self) -> None:
        """Have no mount and no disk."""
        self.run("sh", "-c", _RELEASE, "sh", *self.disks)
        self.disks.clear()

    def clean(self) -> None:
        """Have it as it was at first: no process, no mount, no disk, nothing in fstab, no job, the login as it was made."""
        self.run("sh", "-c", _KILL)
        self.release()
        self.run("sh", "-c", _CLEAN)
        for server in self.servers:
            server.ended()
        self.servers.clear()
        for path in self.own_programs:
            path.unlink()
        self.own_programs.clear()
        shutil.rmtree(self.fakes)
        _make_fakes_folder(self.fakes)


def _make_fakes_folder(folder: Path) -> None:
    """Make the folder of the fakes, which root and others write to."""
    for each in (folder, *(folder / name for name in ("set", "state", "journal"))):
        each.mkdir()
        each.chmod(0o777)


@contextmanager
def cloned(folder: Path) -> Iterator[Clone]:
    """Have a clone within the block.

    Args:
        folder: empty; below `/tmp` or wherever both can have it.
    """
    base, shared = folder / "layers", folder / "shared"
    base.mkdir()
    shared.mkdir()
    folder.chmod(0o755)
    shared.chmod(0o755)
    key = folder / "client"
    loop_devices.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    unshare = (
        *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"),
        *("--propagation", "private", "sh", "-c", _BEGIN, "sh", str(base), str(shared)),
    )
    holder = subprocess.Popen(
        unshare, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n", holder.communicate(timeout=30)
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        clone = Clone(int(children[0]), shared, key)
        _make_fakes_folder(clone.fakes)
        public = key.with_suffix(".pub").read_text().strip()
        # Not from where they are: this machine may have them on a disk that the clone has not.
        shutil.copytree(FAKES, clone.programs, ignore=shutil.ignore_patterns("mountpoint"))
        # Its network is this machine's: what listens here is not the clone's.
        ports = clone.programs / "ss"
        ports.write_text("#!/bin/sh\n")
        ports.chmod(0o755)
        clone.run("sh", "-c", _FURNISH, "sh", USER, str(clone.programs), public)
        clone.clean()
        yield clone
    finally:
        # The end of its first process ends all that is in there.
        with suppress(subprocess.TimeoutExpired):
            holder.communicate(timeout=30)
        if holder.poll() is None:
            holder.kill()
            holder.communicate(timeout=30)
