"""The record of a measurement: what a bundle costs on the machine where it was run.

Decides the fields, their units and the form in which a record travels from a device to a workstation. It is data: who
measures is `measure`, what follows for a profile `calibration`.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from .errors import IncompatibleError, ManifestError
from .ids import Digest, is_digest
from .machine_facts import Condition, MachineFacts, Throttling
from .manifest import RuntimeFamily

FORMAT_VERSION: Final = 1
RECORD_BYTES_MAX: Final = 64 << 10


class MeasurementRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one bundle costs on the machine named in `host`, of one request with one sample."""

    release: str
    variant: str
    bundle_sha256: Digest
    model_sha256: Digest
    model_bytes: int
    family: RuntimeFamily
    runtime: str
    """Library and version."""
    threads: int
    host: str
    machine: MachineFacts
    samples: str
    """Whose samples were fed: the bundle's golden vectors, or a file's name."""
    runs: int
    load_ms: float
    """Opening the model in a fresh process, the runtime's library not yet loaded."""
    first_call_ms: float
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    trend: float
    """Median of the last quarter of the runs over that of the first."""
    peak_memory_bytes: int
    """Of the process that runs the model: interpreter, numpy, runtime and model."""
    golden_agreement: float
    golden_difference: float
    """Largest difference from the golden vectors' answers, as a fraction of their range."""
    before: Condition
    after: Condition
    throttling: Throttling
    edgeml: str
    format_version: int = FORMAT_VERSION


class _Versioned(msgspec.Struct):
    format_version: int = FORMAT_VERSION


def encode(record: MeasurementRecord) -> bytes:
    """Write a record as JSON, a field a line."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode(data: bytes, source: str) -> MeasurementRecord:
    """Read a record.

    Raises:
        ManifestError: Too long, no JSON, not of this form, or a figure that cannot be.
        IncompatibleError: Of a newer format.
    """
    if len(data) > RECORD_BYTES_MAX:
        raise ManifestError(
            f"{source} is longer than a measurement ({RECORD_BYTES_MAX} bytes)",
            hint="give the JSON that `edgeml measure BUNDLE --out FILE` wrote",
        )
    try:
        version = msgspec.json.decode(data, type=_Versioned).format_version
        if version != FORMAT_VERSION:
            raise IncompatibleError(
                f"{source} has format {version}; this edgeml reads format {FORMAT_VERSION}",
                hint="measure with the same version of edgeml",
            )
        record = msgspec.json.decode(data, type=MeasurementRecord)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(
            f"{source} is no measurement: {error}", hint="make one with `edgeml measure BUNDLE --out FILE`"
        ) from error
    positive = (
        record.latency_p50_ms, record.latency_p95_ms, record.latency_p99_ms, record.trend, record.runs, record.threads,
        record.peak_memory_bytes, record.model_bytes, record.machine.cores,
    )  # fmt: skip
    zero_too = (
        record.load_ms, record.first_call_ms, record.machine.clock_max_mhz, record.machine.memory_bytes,
        record.golden_agreement, record.golden_difference,
    )  # fmt: skip
    sound = all(math.isfinite(one) and one > 0 for one in positive) and all(
        math.isfinite(one) and one >= 0 for one in zero_too
    )
    ordered = record.latency_p50_ms <= record.latency_p95_ms <= record.latency_p99_ms
    if not (sound and ordered and is_digest(record.bundle_sha256) and is_digest(record.model_sha256)):
        raise ManifestError(f"{source} states figures that cannot be", hint="measure again")
    return record
