"""What a user orders: the source, the data, for whom, and what a candidate must keep to.

Decides the fields, their units and defaults, and what makes no sense before anything is loaded.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgeml.calibration import check_steady
from edgeml.errors import ConfigError
from edgeml.ids import parse_name, parse_release
from edgeml.manifest import RuntimeFamily, ScoreKind
from edgeml.measurement import MeasurementRecord
from edgeml.profile import HardwareProfile

from .assemble import ReleaseName, check_labels
from .folder import check_writable
from .plan import Effort
from .select import Preference
from .store import default_folder


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


def _one_of(kind: type[enum.Enum]) -> str:
    return " or ".join(map(str, kind))


TEXT_MAX: Final = 200
_PATH: Final = 'a path, as pathlib.Path("file")'
_KINDS: Final[dict[str, tuple[Any, str]]] = {
    "source": (str, "text: file.py:factory or the path of a file"),
    "data": (Path, _PATH),
    "release": (ReleaseName, 'ReleaseName("digits", "1.0.0")'),
    "limits": (Limits, "Limits(max_drop=0.005)"),
    "out": (Path, _PATH),
    "scores": (ScoreKind, _one_of(ScoreKind)),
    "metric": (str, "text: a name, file.py:function or nothing"),
    "target": (RuntimeFamily | None, f"{_one_of(RuntimeFamily)} or None"),
    "effort": (Effort, _one_of(Effort)),
    "preference": (Preference, _one_of(Preference)),
    "work": (Path | None, f"{_PATH} or None"),
    "parent": (str, "text: digits@1.0.0 or nothing"),
}
"""Of each field of an order its type, and what to give."""
_ELEMENTS: Final[dict[str, tuple[type, str]]] = {
    "profiles": (HardwareProfile, 'profiles, as edgeml.profile.load("raspberry-pi-4")'),
    "labels": (str, "texts"),
    "students": (str, "texts: file.py:factory"),
    "measurements": (DeviceMeasurement, "DeviceMeasurement"),
}
"""The same of fields that hold several."""


def check_order(order: ConversionOrder) -> None:
    """Refuse an order that makes no sense, whatever the source and the data are.

    Raises:
        ConfigError: A name, a profile, a limit or a measurement makes no sense, or a folder cannot be written.
    """
    _check_types(order)
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
        _check_record(one.record)
    _check_limits(order.limits)
    # What is written at the end must not fail there: that is hours later where a network is trained.
    check_writable(order.out, "--out")
    check_writable(order.work or default_folder(), "--work")


def _check_record(record: MeasurementRecord) -> None:
    """Refuse what `edgeml calibrate` refuses as well: such a figure cannot stand beside those of the others."""
    if record.threads != 1:
        raise ConfigError(
            f"the measurement of {record.variant} is of {record.threads} threads",
            hint="measure with --threads 1: candidates are compared on one thread",
        )
    check_steady([record])


def _check_types(order: ConversionOrder) -> None:
    """Refuse what a program gave in another type: text in place of an Effort is neither, and would be taken as the other."""
    for field, (kinds, how) in _KINDS.items():
        value = getattr(order, field)
        if not isinstance(value, kinds):
            raise ConfigError(f"{field} is {value!r}"[:TEXT_MAX], hint=f"give {how}")
    for field, (kind, how) in _ELEMENTS.items():
        values = getattr(order, field)
        wrong = (
            [values]
            if not isinstance(values, (tuple, list))
            else [one for one in values if not isinstance(one, kind)]
        )
        if wrong:
            raise ConfigError(f"{field} is {values!r}"[:TEXT_MAX], hint=f"give a tuple of {how}")


def _check_limits(limits: Limits) -> None:
    drop = limits.max_drop
    if not isinstance(drop, (int, float)) or not 0 <= drop < 1:
        raise ConfigError(f"max_drop is {drop!r}", hint="give a fraction from 0 to below 1, such as 0.005")
    for field in ("max_latency_ms", "max_bytes", "max_memory_bytes"):
        value = getattr(limits, field)
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise ConfigError(f"{field} is {value!r}", hint="give a number above 0")
