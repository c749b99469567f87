"""The numbers of the system calls that the sandbox forbids, for the two kinds of machine that it knows.

Decides which calls no model file ever needs, by name and number. What happens to a call is `seccomp.py`'s business.
Numbers: Linux, `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`; they never change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

UNIFIED_FROM: Final = 424
"""From here on a call has one number on every kind of machine."""

UNIFIED_ALLOWED: Final = (436, 439, 441, 449, 454, 455, 456)
"""close_range, faccessat2, epoll_pwait2, futex_waitv, futex_wake, futex_wait, futex_requeue. All others after
UNIFIED_FROM do not exist in the sandbox: io_uring, clone3, openat2, pidfd_*, mount_*, memfd_secret, and whatever comes.
"""


@dataclass(frozen=True, slots=True)
class Calls:
    """Numbers of one kind of machine. `forbidden` fail always; the others depend on an argument.

    `opens` are (number, index of the argument that holds the flags); `signals` name a process in their first argument.
    """

    audit_arch: int
    seccomp: int
    forbidden: tuple[int, ...]
    opens: tuple[tuple[int, int], ...]
    clone: int
    signals: tuple[int, ...]
    prctl: int
    prlimit: int


_X86_64: Final = Calls(
    audit_arch=0xC000003E,
    seccomp=317,
    forbidden=(
        41, 42, 49, 50, 43, 288,  # socket, connect, bind, listen, accept, accept4
        57, 58, 59, 322,  # fork, vfork, execve, execveat
        62, 200, 129, 297, 101, 310, 311, 312,  # kill, tkill, rt_*sigqueueinfo, ptrace, process_vm_*, kcmp
        85, 82, 264, 316, 83, 258, 84, 86, 265, 87, 263, 88, 266,  # creat, rename*, mkdir*, rmdir, link*, unlink*, symlink*
        133, 259, 76, 90, 91, 268, 92, 93, 94, 260,  # mknod*, truncate, chmod*, chown*
        132, 235, 261, 280, 188, 189, 190, 197, 198, 199,  # utime*, *setxattr, *removexattr
        165, 166, 155, 161, 272, 308, 167, 168, 163, 179,  # mount*, pivot_root, chroot, unshare, setns, swap*, acct, quotactl
        169, 170, 171, 164, 227, 305, 159,  # reboot, set*name, set and adjust clocks
        175, 176, 313, 246, 320, 321, 298, 323, 172, 173, 103,  # modules, kexec, bpf, perf, userfaultfd, io ports, syslog
        248, 249, 250, 303, 304,  # keys, file handles
        319, 29, 30, 31, 64, 65, 66, 68, 69, 70, 71, 240, 241,  # memfd_create, System V memory, semaphores and queues, mq_*
        206, 209, 141, 144, 203, 251, 135,  # io_setup, io_submit, priorities and processors of others, personality
    ),
    opens=((2, 1), (257, 2)),
    clone=56,
    signals=(234,),
    prctl=157,
    prlimit=302,
)  # fmt: skip

_AARCH64: Final = Calls(
    audit_arch=0xC00000B7,
    seccomp=277,
    forbidden=(
        198, 203, 200, 201, 202, 242,
        221, 281,
        129, 130, 138, 240, 117, 270, 271, 272,
        38, 276, 34, 37, 35, 36,
        33, 45, 52, 53, 54, 55,
        88, 5, 6, 7, 14, 15, 16,
        40, 39, 41, 51, 97, 268, 224, 225, 89, 60,
        142, 161, 162, 170, 112, 266, 171,
        105, 106, 273, 104, 294, 280, 241, 282, 116,
        217, 218, 219, 264, 265,
        279, 194, 195, 196, 190, 191, 193, 186, 187, 188, 189, 180, 181,
        0, 2, 140, 119, 122, 30, 92,
    ),
    opens=((56, 2),),
    clone=220,
    signals=(131,),
    prctl=167,
    prlimit=261,
)  # fmt: skip

CALLS: Final = {"x86_64": _X86_64, "aarch64": _AARCH64}
"""By what `platform.machine()` says."""
