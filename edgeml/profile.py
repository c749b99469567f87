"""Hardware profiles: what a class of hardware offers.

Decides the fields of a profile and that every number has a unit and a provenance. Profiles are flat TOML files in the
`hardware_profiles` package, or the user's own. What a model needs is compared with a profile in `edgeml.budget`.
"""

from __future__ import annotations

import difflib
import enum
import importlib.resources
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from .errors import ConfigError
from .ids import is_name

_VERSION: Final = re.compile(r"\d{1,3}\.\d{1,3}")
PROFILE_BYTES_MAX: Final = 64 << 10
HOST: Final = "host"
"""Name of the profile of the machine one sits at."""


class Origin(enum.Enum):
    """How a number was obtained."""

    DATASHEET = "datasheet"
    MEASURED = "measured"
    ESTIMATED = "estimated"


class Architecture(enum.Enum):
    """Instruction set family."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"
    ARMV7 = "armv7"
    ARMV7E_M = "armv7e-m"
    XTENSA = "xtensa"


class DeviceRuntime(enum.Enum):
    """Runtimes that a device may have."""

    ONNXRUNTIME = "onnxruntime"
    AI_EDGE_LITERT = "ai-edge-litert"
    TFLITE_RUNTIME = "tflite-runtime"
    TFLITE_MICRO = "tflite-micro"
    TORCH = "torch"
    """Of the device's own programs, in Python or C++."""

    @property
    def is_for_agents(self) -> bool:
        """Whether agents run models on it."""
        return self not in {DeviceRuntime.TFLITE_MICRO, DeviceRuntime.TORCH}


class Quantity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A number with its unit and where it comes from."""

    value: float
    unit: str
    origin: Origin
    source: str


class HardwareProfile(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """What a class of hardware offers.

    `model_memory` is what a model and its runtime may take of `memory`; `model_storage` what one variant may take of
    `storage`. `channel_block` is the multiple to which the runtime rounds channels. The last seven are for the estimate of
    a latency, of one thread; a profile without them is whole, and no latency is estimated for it. MACs a cycle are what
    runtimes of a family reach on large layers, not what the processor could. `onnxruntime` is the oldest version that its
    devices have, major and minor; empty: one that this edgeml runs on.
    """

    name: str
    title: str
    architecture: Architecture
    processor: str
    extensions: tuple[str, ...]
    runtimes: tuple[DeviceRuntime, ...]
    cores: Quantity
    clock: Quantity
    memory: Quantity
    storage: Quantity
    model_memory: Quantity
    model_storage: Quantity
    channel_block: Quantity
    onnx_fp32_macs_per_cycle: Quantity | None = None
    onnx_int8_macs_per_cycle: Quantity | None = None
    tflite_fp32_macs_per_cycle: Quantity | None = None
    tflite_int8_macs_per_cycle: Quantity | None = None
    memory_bandwidth: Quantity | None = None
    operator_overhead: Quantity | None = None
    call_overhead: Quantity | None = None
    onnxruntime: str = ""
    notes: str = ""


UNITS: Final = {
    "cores": "cores",
    "clock": "MHz",
    "memory": "bytes",
    "storage": "bytes",
    "model_memory": "bytes",
    "model_storage": "bytes",
    "channel_block": "channels",
}
"""Unit of each quantity; a profile that uses another one is refused."""
OPTIONAL_UNITS: Final = {
    "onnx_fp32_macs_per_cycle": "MACs/cycle",
    "onnx_int8_macs_per_cycle": "MACs/cycle",
    "tflite_fp32_macs_per_cycle": "MACs/cycle",
    "tflite_int8_macs_per_cycle": "MACs/cycle",
    "memory_bandwidth": "bytes/s",
    "operator_overhead": "us",
    "call_overhead": "us",
}
"""The same of quantities that a profile may leave out."""


def decode(data: bytes, source: str) -> HardwareProfile:
    """Read a profile from TOML.

    Raises:
        ConfigError: Not TOML, not of this form, or a quantity has another unit.
    """
    if len(data) > PROFILE_BYTES_MAX:
        raise ConfigError(f"profile {source} is longer than {PROFILE_BYTES_MAX} bytes")
    try:
        profile = msgspec.toml.decode(data, type=HardwareProfile)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"profile {source}: {error}", hint="compare it with `edgeml profiles show generic-x86-64 --toml`"
        ) from error
    if not is_name(profile.name):
        raise ConfigError(f"profile {source}: {profile.name!r} is not a valid name", hint="use a-z 0-9 . _ -")
    if profile.onnxruntime and not _VERSION.fullmatch(profile.onnxruntime):
        raise ConfigError(
            f"profile {source}: onnxruntime {profile.onnxruntime!r} is no version",
            hint='major and minor, for example "1.16"',
        )
    for field, quantity in quantities(profile):
        unit = UNITS.get(field) or OPTIONAL_UNITS[field]
        if quantity.unit != unit or not math.isfinite(quantity.value) or quantity.value <= 0:
            raise ConfigError(f"profile {source}: {field} must be positive and in {unit}")
    return profile


def version_of(text: str) -> tuple[int, int]:
    """Read the version of a runtime as a profile states it.

    >>> version_of("1.9") < version_of("1.16")
    True
    """
    major, minor = text.split(".")
    return int(major), int(minor)


def quantities(profile: HardwareProfile) -> Iterator[tuple[str, Quantity]]:
    """Each number that a profile holds, with its field, in the order of the fields."""
    for field in (*UNITS, *OPTIONAL_UNITS):
        quantity: Quantity | None = getattr(profile, field)
        if quantity is not None:
            yield field, quantity


def names() -> tuple[str, ...]:
    """Names of the profiles that ship with edgeml."""
    folder = importlib.resources.files("hardware_profiles")
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
    )


def read(name_or_path: str) -> bytes:
    """Return a profile's TOML, by shipped name or by path; `host` is the machine one sits at.

    Raises:
        ConfigError: Neither exists.
    """
    if name_or_path == HOST:
        from .host_profile import read_host
        from .profile_text import encode

        return encode(read_host())
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        try:
            with Path(name_or_path).open("rb") as file:
                return file.read(PROFILE_BYTES_MAX + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise ConfigError(
                f"cannot read profile {name_or_path!r}: {error}", hint="check the path"
            ) from error
    if name_or_path not in names():
        near = difflib.get_close_matches(name_or_path.lower(), (*names(), HOST), n=1)
        raise ConfigError(
            f"unknown profile {name_or_path!r}",
            hint=f"{f'did you mean {near[0]}? ' if near else ''}"
            f"one of {', '.join(names())}, {HOST} (this machine), or a path to a .toml file",
        )
    return (importlib.resources.files("hardware_profiles") / f"{name_or_path}.toml").read_bytes()


def load(name_or_path: str) -> HardwareProfile:
    """Load a profile by shipped name or by path.

    Raises:
        ConfigError: It does not exist or is not valid.
    """
    return decode(read(name_or_path), name_or_path)
