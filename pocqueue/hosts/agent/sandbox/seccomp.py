"""A filter of system calls for jobs in bubblewrap: a classic BPF program, for x86_64 and aarch64.

What it refuses is what a job needs for nothing and what kernels have had holes in: other processes' memory, namespaces
and mounts, kernel modules, keys, io_uring, BPF, sockets other than those of the network and of files (a vsock reaches
the host of a virtual machine whatever the network namespace is), typing into the agent's terminal.

Numbers are those of <asm/unistd_64.h> and <asm-generic/unistd.h>; layout and actions those of <linux/seccomp.h>.
No library is asked for: libseccomp is not everywhere, and this is a list.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from itertools import chain

#: Of each system call that is refused with EPERM: its number on x86_64 and on aarch64; None: not there.
REFUSED: dict[str, tuple[int, int | None]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
#: Memory that belongs to no process, so that only a cgroup counts it. Drivers of GPUs may need it.
UNCOUNTED_MEMORY: dict[str, tuple[int, int | None]] = {
    "memfd_create": (319, 279),
    "shmget": (29, 194),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_IOCTL, _SOCKET = (16, 29), (41, 198)
# CLONE_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET of <linux/sched.h>.
_NEW_NAMESPACES = (
    0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
# AF_UNIX, AF_INET, AF_INET6, AF_NETLINK of <linux/socket.h>: all but the first are the namespace's own.
_DOMAINS = (1, 2, 10, 16)
# Calls with this bit are of the x32 ABI: other numbers for the same kernel.
_X32 = 0x40000000

#: AUDIT_ARCH_* of <linux/audit.h>, and the column of the tables above.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH = 0, 4
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

_Op = tuple[int, int, int, int]


def machines() -> tuple[str, ...]:
    """Return the machines (as `os.uname` calls them) that there is a filter for."""
    return tuple(_MACHINES)


def seccomp_filter(machine: str, *, with_gpu: bool = False) -> bytes:
    """Return the program, as ``struct sock_filter`` after ``struct sock_filter``: what bwrap's --seccomp reads.

    Args:
        machine: as `os.uname` calls it; one of `machines`.
        with_gpu: let `UNCOUNTED_MEMORY` be used.
    """
    arch, column = _MACHINES[machine]
    refused = REFUSED if with_gpu else REFUSED | UNCOUNTED_MEMORY
    eperm = _ERRNO | errno.EPERM
    ops: Iterator[_Op] = chain(
        [(_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL)],
        [(_LOAD, 0, 0, _NUMBER)],
        [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, eperm)] if machine == "x86_64" else [],
        *(
            [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, eperm)]
            for numbers in refused.values()
            if (number := numbers[column]) is not None
        ),
        # Its flags are in memory, which a filter cannot read; without it the C library uses clone.
        [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)],
        [(_EQUAL, 0, 3, _CLONE[column]), (_LOAD, 0, 0, _argument(0))],
        [(_ANY_BIT, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, eperm)],
        # The accumulator may hold an argument by now.
        [(_LOAD, 0, 0, _NUMBER)],
        [(_EQUAL, 0, 4, _IOCTL[column]), (_LOAD, 0, 0, _argument(1))],
        [(_EQUAL, 1, 0, _TIOCSTI), (_EQUAL, 0, 1, _TIOCLINUX), (_RETURN, 0, 0, eperm)],
        [(_LOAD, 0, 0, _NUMBER)],
        [(_EQUAL, 0, len(_DOMAINS) + 2, _SOCKET[column]), (_LOAD, 0, 0, _argument(0))],
        [(_EQUAL, len(_DOMAINS) - index, 0, domain) for index, domain in enumerate(_DOMAINS)],
        [(_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT), (_RETURN, 0, 0, _ALLOW)],
    )
    return b"".join(struct.pack("<HBBI", *op) for op in ops)


def _argument(index: int) -> int:
    """Return where the lower 32 bits of an argument stand in ``struct seccomp_data``, on little-endian machines."""
    return 16 + 8 * index
