"""Reads what the kernel says of processes and of the machine.

Decides which file says what, in which unit, and that a thing a machine does not have is None and no error. What follows
from a reading is decided elsewhere. The roots of /proc and /sys are arguments, so that recorded trees can be read.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import msgspec

from edgeml.thermal import cpu_temperature_c, read_kernel_file

PROC: Final = Path("/proc")
SYS: Final = Path("/sys")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_USER_TICKS: Final = 11
"""Place of `utime` in /proc/PID/stat, counted from after the name in parentheses; `stime` follows."""


class ProcessMemory(msgspec.Struct, frozen=True):
    """Memory of one process, bytes: resident, shared pages divided among their users, and its own alone."""

    rss_bytes: int
    pss_bytes: int
    uss_bytes: int


class Sensors:
    """Readings of this machine. Costs: `rss_bytes` some microseconds, `memory` some hundred."""

    def __init__(self, proc: Path = PROC, sys: Path = SYS) -> None:
        self._proc = proc
        self._sys = sys

    def rss_bytes(self, pid: int) -> int | None:
        """Resident memory of a process now; None if there is no such process."""
        return self._status_bytes(pid, "VmRSS")

    def peak_rss_bytes(self, pid: int) -> int | None:
        """Highest resident memory of a process; None if there is no such process."""
        return self._status_bytes(pid, "VmHWM")

    def memory(self, pid: int) -> ProcessMemory | None:
        """Memory of a process now; None if there is none or its owner forbids."""
        kibibytes = _fields(read_kernel_file(self._proc / str(pid) / "smaps_rollup"))
        if not {"Rss", "Pss", "Private_Clean", "Private_Dirty"} <= kibibytes.keys():
            return None
        own = kibibytes["Private_Clean"] + kibibytes["Private_Dirty"]
        return ProcessMemory(kibibytes["Rss"] << 10, kibibytes["Pss"] << 10, own << 10)

    def memory_available_bytes(self) -> int | None:
        """Memory that processes could still get without swapping."""
        return _bytes(read_kernel_file(self._proc / "meminfo"), "MemAvailable")

    def memory_pressure_percent(self) -> float | None:
        """Part of the last 10 s in which some process waited for memory; None where the kernel does not count it."""
        for line in read_kernel_file(self._proc / "pressure" / "memory").splitlines():
            kind, *fields = line.split()
            for field in fields:
                name, _, value = field.partition("=")
                if (kind, name) == ("some", "avg10") and value.replace(".", "", 1).isdecimal():
                    return float(value)
        return None

    def cpu_s(self, pid: int) -> float | None:
        """Processor time that a process has used; None if there is no such process."""
        # The name may hold spaces and parentheses; only after the last one are the fields where they belong.
        fields = read_kernel_file(self._proc / str(pid) / "stat").rpartition(")")[2].split()
        ticks = fields[_USER_TICKS : _USER_TICKS + 2]
        if len(ticks) != 2 or not all(one.isdecimal() for one in ticks):
            return None
        return sum(map(int, ticks)) / _TICKS_PER_S

    def oom_score_adj(self, pid: int) -> int | None:
        """How much sooner than others the kernel kills a process for want of memory; None if there is no such process."""
        text = read_kernel_file(self._proc / str(pid) / "oom_score_adj").strip()
        return int(text) if text.lstrip("-").isdecimal() else None

    def cpu_temperature_c(self) -> float | None:
        """Highest temperature of the processor, degrees Celsius; None where nothing measures it."""
        return cpu_temperature_c(self._sys)

    def _status_bytes(self, pid: int, field: str) -> int | None:
        return _bytes(read_kernel_file(self._proc / str(pid) / "status"), field)


def disk_free_bytes(path: Path) -> int | None:
    """Bytes that this user may still write on the disk of `path`; None if there is no such path."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _bytes(text: str, name: str) -> int | None:
    """Read one line like `VmRSS:     1234 kB`; the other lines, of which there are sixty, are not looked at."""
    start = f"\n{text}".find(f"\n{name}:")
    if start < 0:
        return None
    return next((value << 10 for value in _fields(text[start:].split("\n", 1)[0]).values()), None)


def _fields(text: str) -> dict[str, int]:
    """Read lines like `VmRSS:     1234 kB` into numbers by name."""
    found = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        words = rest.split()
        if colon and words and words[0].isdecimal():
            found[name] = int(words[0])
    return found
