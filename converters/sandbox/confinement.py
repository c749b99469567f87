"""What a process puts on itself before it opens a file that nobody vouches for.

Decides the layers and their order, what may still be read, and the limits of resources. First files and network are
taken away (`confine`), then libraries are imported, which have reasons of their own to write to /dev/null, then system
calls are taken away (`seal`). All layers are tried; whether they hold is told by trying to break out (`breakout.py`),
never by what the kernel answered here.
"""

from __future__ import annotations

import ctypes
import enum
import os
import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .landlock import restrict_files
from .seccomp import restrict_calls

OPEN_FILES_MAX: Final = 256
_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITIES: Final = 64
_CAPABILITY_VERSION: Final = 0x20080522
_SYSTEM: Final = (
    "/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/self",
    "/sys/devices/system/cpu", "/sys/fs/cgroup", "/dev/urandom",
)  # fmt: skip


class Layer(enum.Enum):
    """One way of being confined."""

    NETWORK_NAMESPACE = "network namespace"
    LANDLOCK = "Landlock"


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a confined process may take. Files that it had open before may grow to `file_bytes`."""

    memory_bytes: int
    processor_s: int
    file_bytes: int


def confine(allowance: Allowance, readable: Iterable[Path]) -> frozenset[Layer]:
    """Take network, files and resources from this process for good. To be called before any thread is started.

    Args:
        allowance: limits.
        readable: what may be read besides Python, its libraries and the system's.

    Returns:
        The layers that the kernel gave.
    """
    if sys.platform != "linux":
        return frozenset()
    libc = ctypes.CDLL(None, use_errno=True)
    paths = [*readable, *_libraries()]
    _limit(allowance)
    layers: set[Layer] = set()
    if _leave_network(libc):
        layers.add(Layer.NETWORK_NAMESPACE)
    _drop_capabilities(libc)
    libc.prctl(
        _PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)
    )
    if restrict_files(libc, paths, Path(os.devnull)):
        layers.add(Layer.LANDLOCK)
    return frozenset(layers)


def seal() -> bool:
    """Take system calls from this process and all its threads for good; False if the system has no seccomp."""
    return sys.platform == "linux" and restrict_calls(ctypes.CDLL(None, use_errno=True))


def _limit(allowance: Allowance) -> None:
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_DATA, allowance.memory_bytes),
        (resource.RLIMIT_CPU, allowance.processor_s),
        (resource.RLIMIT_FSIZE, allowance.file_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES_MAX),
    ):
        hard = resource.getrlimit(kind)[1]
        lowered = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (lowered, lowered))


def _leave_network(libc: ctypes.CDLL) -> bool:
    """Enter an empty network: as root directly, else inside a user namespace of one's own."""
    user = os.getuid()
    if libc.unshare(_CLONE_NEWNET) == 0:
        return True
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with suppress(OSError):
        # Without it the process has no name for its own user, which some libraries ask for.
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
    return True


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    for number in range(_CAPABILITIES):
        libc.prctl(
            _PR_CAPBSET_DROP, ctypes.c_ulong(number), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)
        )
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    libc.capset(ctypes.byref(header), ctypes.byref(none))


def _libraries() -> list[Path]:
    """Where Python and its packages lie, and the folders of what is loaded already."""
    found = {Path(one) for one in (*_SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path) if one}
    found |= {Path(one) for one in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if one}
    with suppress(OSError), Path("/proc/self/maps").open(encoding="utf-8", errors="replace") as lines:
        found |= {
            Path(line.split(maxsplit=5)[5].rstrip("\n")).parent for line in lines if line.count("/") > 1
        }
    return sorted(one for one in found if one != Path("/"))
