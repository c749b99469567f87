"""What Linux says of the machine one sits at: processor, extensions, memory, disk, clock, temperature.

Decides which lines of which kernel file mean what, on x86_64 and ARM. Reading is at the end and thin; all else works on
texts, so that other machines' texts can be read, too. What follows for a profile is decided in `host_profile`, for a
measurement in `measure`.
"""

from __future__ import annotations

import enum
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from .thermal import cpu_temperature_c, read_kernel_file

PROC: Final = Path("/proc")
SYS: Final = Path("/sys")
MODEL_FILE: Final = "device-tree/model"
"""Where boards with a device tree say what they are, below /proc."""
EXTENSIONS: Final = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "neon", "vfpv4", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip
"""What makes a difference to neural networks, as Linux spells it; other flags are left out."""
SLOW_FRACTION: Final = 0.9
HOT_C: Final = 80.0
"""Where boards and laptops begin to lower their clock."""
_CPUFREQ: Final = "devices/system/cpu/cpu0/cpufreq"
_THROTTLES: Final = "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"


class MachineFacts(msgspec.Struct, frozen=True):
    """The kind of a machine; nothing that identifies it. Zero or empty: it does not say."""

    machine: str
    """Architecture as the kernel names it, for example x86_64, aarch64, armv7l."""
    processor: str
    cores: int
    extensions: tuple[str, ...]
    memory_bytes: int
    clock_max_mhz: float


class Condition(msgspec.Struct, frozen=True):
    """In which state the processor is right now; None where nothing tells."""

    clock_mhz: float | None = None
    governor: str = ""
    temperature_c: float | None = None
    throttles: int | None = None
    """How often heat has made the kernel slow the first core down, since it started."""


class Throttling(enum.Enum):
    """Whether heat or a governor slowed a measurement down."""

    NO = "no"
    LIKELY = "likely"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class KernelTexts:
    """What the kernel's files hold; empty where there is none."""

    machine: str
    cpuinfo: str
    meminfo: str
    model: str = ""
    clock_max_khz: str = ""


def facts_of(texts: KernelTexts) -> MachineFacts:
    """Read the kernel's texts."""
    lines = [line.partition(":") for line in texts.cpuinfo.splitlines()]
    fields = [(name.strip().lower(), value.strip()) for name, mark, value in lines if mark]
    flags = next((value.split() for name, value in fields if name in {"flags", "features"}), [])
    named = [value for name, value in fields if name in {"model name", "hardware", "cpu model"}]
    clocks = [float(value) for name, value in fields if name == "cpu mhz" and _is_number(value)]
    khz = texts.clock_max_khz.strip()
    return MachineFacts(
        machine=texts.machine,
        processor=texts.model.strip("\0\n ") or (named[0] if named else ""),
        cores=sum(name == "processor" and value.isdecimal() for name, value in fields),
        extensions=tuple(one for one in EXTENSIONS if one in flags),
        memory_bytes=_memory_bytes(texts.meminfo),
        clock_max_mhz=int(khz) / 1000 if khz.isdecimal() else max(clocks, default=0.0),
    )


def throttling(before: Condition, after: Condition, clock_max_mhz: float, trend: float) -> Throttling:
    """Judge whether a measurement was slowed down.

    Args:
        before: the processor's state before the runs.
        after: its state right after them.
        clock_max_mhz: the highest clock; 0 if unknown.
        trend: how much longer the last requests took than the first.

    >>> cool, hot = Condition(1500, "performance", 45.0), Condition(1000, "performance", 84.0)
    >>> throttling(cool, hot, 1500, 1.4).value, throttling(cool, cool, 1500, 1.0).value
    ('likely', 'no')
    >>> throttling(Condition(), Condition(), 0, 1.02).value
    'unknown'
    """
    counted = before.throttles is not None and after.throttles is not None
    if counted and (after.throttles or 0) > (before.throttles or 0):
        return Throttling.LIKELY
    slow = bool(after.clock_mhz and clock_max_mhz and after.clock_mhz < SLOW_FRACTION * clock_max_mhz)
    hot = after.temperature_c is not None and after.temperature_c >= HOT_C
    slower = trend > 1 / SLOW_FRACTION
    if (slow and (hot or slower)) or (hot and slower):
        return Throttling.LIKELY
    knows = counted or after.temperature_c is not None or bool(after.governor and after.clock_mhz)
    return Throttling.NO if knows else Throttling.UNKNOWN


def read_facts(proc: Path = PROC, sys: Path = SYS) -> MachineFacts:
    """Read the facts of this machine."""
    facts = facts_of(
        KernelTexts(
            machine=platform.machine(),
            # A line of flags alone has more than a kilobyte; 64 KiB, which a kernel file gives at once, hold 30 cores.
            cpuinfo=_whole(proc / "cpuinfo"),
            meminfo=read_kernel_file(proc / "meminfo"),
            model=read_kernel_file(proc / MODEL_FILE),
            clock_max_khz=read_kernel_file(sys / _CPUFREQ / "cpuinfo_max_freq"),
        )
    )
    return facts if facts.cores else msgspec.structs.replace(facts, cores=os.cpu_count() or 1)


def read_condition(sys: Path = SYS) -> Condition:
    """Read the state of this machine's processor."""
    khz = read_kernel_file(sys / _CPUFREQ / "scaling_cur_freq").strip()
    throttles = read_kernel_file(sys / _THROTTLES).strip()
    return Condition(
        clock_mhz=int(khz) / 1000 if khz.isdecimal() else None,
        governor=read_kernel_file(sys / _CPUFREQ / "scaling_governor").strip()[:32],
        temperature_c=cpu_temperature_c(sys),
        throttles=int(throttles) if throttles.isdecimal() else None,
    )


def disk_bytes(path: Path) -> tuple[int, int]:
    """Size of the disk of `path`, and what is free on it; zeros if it cannot be told."""
    with suppress(OSError):
        usage = shutil.disk_usage(path)
        return usage.total, usage.free
    return 0, 0


def _memory_bytes(meminfo: str) -> int:
    for line in meminfo.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemTotal" and words and words[0].isdecimal():
            return int(words[0]) << 10
    return 0


def _whole(path: Path) -> str:
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        return file.read(4 << 20)
    return ""


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
