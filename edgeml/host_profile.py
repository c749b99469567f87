"""The profile of the machine one sits at, called `host`.

Decides what of a machine's facts becomes which quantity, and which part of memory and disk a model may take: the same
shares as in the profiles that ship. Pure but for `read_host`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from .errors import ConfigError
from .machine_facts import MachineFacts, disk_bytes, read_facts
from .profile import HOST, Architecture, DeviceRuntime, HardwareProfile, Origin, Quantity, load
from .runtime import RUNTIME_PACKAGES, installed_runtimes

SYSTEM_BYTES: Final = 150_000_000
"""What a small Linux system takes of memory."""
ROUNDED_BYTES: Final = 10_000_000
_ARCHITECTURES: Final = {
    "x86_64": Architecture.X86_64, "amd64": Architecture.X86_64, "aarch64": Architecture.AARCH64, "arm64": Architecture.AARCH64,
    "armv7l": Architecture.ARMV7, "armv8l": Architecture.ARMV7,
}  # fmt: skip
_KERNEL: Final = "read from the kernel of the machine itself"


def host_profile(
    facts: MachineFacts, disk: tuple[int, int], runtimes: Iterable[str], like: HardwareProfile
) -> HardwareProfile:
    """Make a profile of a machine's facts.

    Args:
        facts: what its kernel says.
        disk: bytes of its disk, and free ones.
        runtimes: names of the runtimes that are installed.
        like: the shipped profile of such a machine, for the quantities that a profile may leave out and no kernel tells.

    Raises:
        ConfigError: Its architecture is none that profiles know, or its kernel does not say how much memory it has.
    """
    architecture = architecture_of(facts.machine)
    if architecture is None or not facts.memory_bytes:
        raise _unknown(facts)
    installed = tuple(one for one in DeviceRuntime if one.value in set(runtimes))
    total, free = disk
    known = HardwareProfile(
        name=HOST,
        title=f"This machine: {facts.cores} cores, {facts.memory_bytes / 2**30:.1f} GiB of memory",
        architecture=architecture,
        processor=facts.processor or facts.machine,
        extensions=facts.extensions,
        runtimes=installed,
        cores=Quantity(max(facts.cores, 1), "cores", Origin.MEASURED, _KERNEL),
        clock=Quantity(facts.clock_max_mhz, "MHz", Origin.MEASURED, _KERNEL)
        if facts.clock_max_mhz
        else Quantity(1000, "MHz", Origin.ESTIMATED, "chosen: the kernel does not say"),
        memory=Quantity(facts.memory_bytes, "bytes", Origin.MEASURED, _KERNEL),
        storage=Quantity(max(total, 1), "bytes", Origin.MEASURED, _KERNEL),
        model_memory=model_memory(facts.memory_bytes),
        model_storage=Quantity(
            _rounded(free / 8), "bytes", Origin.ESTIMATED, "derived: an eighth of what is free on the disk now, rounded down to 10 MB",
        ),
        channel_block=channel_block(facts.extensions),
        notes="Made of what this machine says of itself; it is another one on another machine.",
    )  # fmt: skip
    left_out = [one.name for one in msgspec.structs.fields(HardwareProfile) if one.default is None]
    return msgspec.structs.replace(known, **{name: getattr(like, name) for name in left_out})


def nearest(facts: MachineFacts) -> str:
    """Name the shipped profile that is most like a machine.

    Raises:
        ConfigError: There is none of its architecture.
    """
    match architecture_of(facts.machine):
        case Architecture.X86_64:
            return "generic-x86-64"
        case Architecture.AARCH64:
            # The dot product of 8-bit integers is what tells these classes apart.
            return "raspberry-pi-5" if "asimddp" in facts.extensions else "raspberry-pi-4"
        case Architecture.ARMV7:
            return "raspberry-pi-zero-2w"
        case _:
            raise _unknown(facts)


def _unknown(facts: MachineFacts) -> ConfigError:
    return ConfigError(
        f"no profile can be made of this machine: architecture {facts.machine or 'unknown'}, {facts.memory_bytes} bytes of memory",
        hint="write one: begin with `edgeml profiles show generic-x86-64 --toml`",
    )


def architecture_of(machine: str) -> Architecture | None:
    """Find an architecture by the kernel's name of it; None if profiles know none such."""
    return _ARCHITECTURES.get(machine)


def model_memory(memory_bytes: int) -> Quantity:
    """Say what a model and its runtime may take of so much memory.

    >>> model_memory(2_147_483_648).value
    990000000
    """
    return Quantity(
        _rounded((memory_bytes - SYSTEM_BYTES) / 2), "bytes", Origin.ESTIMATED,
        "derived: half of the memory left after a 150 MB Linux system, rounded down to 10 MB",
    )  # fmt: skip


def channel_block(extensions: Iterable[str]) -> Quantity:
    """Say to how many channels runtimes round on a processor with these extensions.

    >>> channel_block(["avx2", "avx512f"]).value, channel_block(["avx2"]).value, channel_block(["asimd"]).value
    (16, 8, 8)
    """
    if "avx512f" in set(extensions):
        return Quantity(
            16, "channels", Origin.ESTIMATED,
            "derived: with AVX-512 onnxruntime's kernels work on blocks of 16 channels, measured on an AMD EPYC host",
        )  # fmt: skip
    return Quantity(
        8,
        "channels",
        Origin.ESTIMATED,
        "derived: without AVX-512, and on ARM, kernels work on 8 channels at a time",
    )


def read_host() -> HardwareProfile:
    """Make the profile of this machine.

    Raises:
        ConfigError: As `host_profile`.
    """
    facts = read_facts()
    return host_profile(
        facts, disk_bytes(Path.cwd()), installed_runtimes((*RUNTIME_PACKAGES, "torch")), load(nearest(facts))
    )


def _rounded(count: float) -> float:
    """Round down to ROUNDED_BYTES; of less than that, leave one megabyte at least."""
    return max(math.floor(count / ROUNDED_BYTES) * ROUNDED_BYTES, min(max(count, 1), 1_000_000))
