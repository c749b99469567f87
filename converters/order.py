"""What a user orders: the source, the data, for whom, and what a candidate must keep to.

Decides the fields, their units and defaults, and what makes no sense before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeml.errors import ConfigError
from edgeml.ids import parse_name, parse_release
from edgeml.manifest import RuntimeFamily, ScoreKind
from edgeml.measurement import MeasurementRecord
from edgeml.profile import HardwareProfile

from .assemble import ReleaseName, check_labels
from .plan import Effort
from .select import Preference


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a candidate must keep to beside what its profile offers. `max_drop` is a fraction of 1: `select.Floor`."""

    max_drop: float
    max_latency_ms: float | None = None
    max_bytes: int | None = None
    max_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceMeasurement:
    """What `edgeml measure` measured of one model file on a device of a profile."""

    profile: str
    record: MeasurementRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOrder:
    """What to convert, for whom, and how much accuracy may be lost.

    `source` is `file.py:factory` or a file; `data` an .npz with `calibration_x`, `evaluation_x`, where there is a truth
    `evaluation_y`, and to train on `train_x` and `train_y`. Bundles are written into `out`. `metric` is a name or
    `file.py:function`, or empty: it depends on the data. `target` None means: what each profile runs best.
    `students` are factories of smaller networks. `work` holds what was made already; None is the user's cache.
    `parent` is the release that this one follows, or empty. `measurements` are of candidates that were tried on a device
    before: they stand in place of estimates.
    """

    source: str
    data: Path
    profiles: tuple[HardwareProfile, ...]
    release: ReleaseName
    limits: Limits
    out: Path
    labels: tuple[str, ...] = ()
    scores: ScoreKind = ScoreKind.LOGITS
    metric: str = ""
    target: RuntimeFamily | None = None
    effort: Effort = Effort.FIRST
    preference: Preference = Preference.BYTES
    students: tuple[str, ...] = ()
    work: Path | None = None
    parent: str = ""
    measurements: tuple[DeviceMeasurement, ...] = ()


def check_order(order: ConversionOrder) -> None:
    """Refuse an order that makes no sense, whatever the source and the data are.

    Raises:
        ConfigError: A name, a profile or a limit makes no sense.
    """
    parse_name(order.release.model, "the model's name")
    parse_name(order.release.version, "the version")
    if order.parent:
        parse_release(order.parent)
    if not order.profiles or len({profile.name for profile in order.profiles}) != len(order.profiles):
        raise ConfigError(
            "give each profile once, and at least one", hint="`edgeml profiles list` shows them"
        )
    check_labels(order.labels)
    known = {profile.name for profile in order.profiles}
    for one in order.measurements:
        if one.profile not in known:
            raise ConfigError(
                f"a measurement is for {one.profile}, which is no profile of this conversion",
                hint=f"one of {', '.join(sorted(known))}",
            )
    limits = order.limits
    for value, what in (
        (limits.max_latency_ms, "latency"),
        (limits.max_bytes, "size"),
        (limits.max_memory_bytes, "memory"),
    ):
        if value is not None and value <= 0:
            raise ConfigError(f"a largest {what} of {value:g} leaves nothing", hint="give a number above 0")
