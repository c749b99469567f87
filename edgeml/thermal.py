"""How hot the processor is.

Decides which of the kernel's readings are the processor's, and which are believed. What follows from heat is decided by
those who ask. Loads nothing but the standard library: a device's supervisor asks, too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CPU_ZONES: Final = ("cpu", "soc", "x86_pkg", "core", "package")
"""Parts of the names by which thermal zones and sensors say that they are the processor's."""
_READ_BYTES: Final = 64 << 10
_TEMPERATURE_C: Final = (-60.0, 200.0)


def cpu_temperature_c(sys: Path) -> float | None:
    """Highest temperature of the processor, degrees Celsius; None where nothing measures it. `sys` is the root of /sys."""
    readings = [*_thermal_zones(sys), *_hardware_monitors(sys)]
    return max(readings, default=None)


def read_kernel_file(path: Path) -> str:
    """Read a small kernel file; empty if it is missing, forbidden, or its device does not answer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, _READ_BYTES).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def _thermal_zones(sys: Path) -> list[float]:
    zones = sorted((sys / "class" / "thermal").glob("thermal_zone*"))
    return _temperatures([(read_kernel_file(zone / "type"), zone / "temp") for zone in zones])


def _hardware_monitors(sys: Path) -> list[float]:
    chips = sorted((sys / "class" / "hwmon").glob("hwmon*"))
    return _temperatures(
        [(read_kernel_file(chip / "name"), one) for chip in chips for one in sorted(chip.glob("temp*_input"))]
    )


def _temperatures(sources: list[tuple[str, Path]]) -> list[float]:
    found = []
    for name, path in sources:
        text = read_kernel_file(path).strip()
        if any(part in name.lower() for part in CPU_ZONES) and text.lstrip("-").isdecimal():
            celsius = int(text) / 1000
            # Broken drivers report -273 or thousands of degrees.
            if _TEMPERATURE_C[0] < celsius < _TEMPERATURE_C[1]:
                found.append(celsius)
    return found
