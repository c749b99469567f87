"""What changed between two bundles: facts of both in, a short list of differences out, the most important first.

Decides what is compared and in which order it matters: what callers see, how good it is, what it is made of, where it came
from. Costs that were measured on different machines are not compared. Pure; opening bundles is the command's business.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from edgeml import golden
from edgeml.columns import to_real
from edgeml.golden import Golden
from edgeml.manifest import Manifest
from edgeml.monitor import Monitor
from edgeml.tensors import TensorSpec

from .data_splits import sample_keys
from .scaling import Reals, Weight

TEXT_MAX: Final = 200


class Topic(enum.Enum):
    """What a difference is about, the most important first."""

    IDENTITY = "identity"
    INTERFACE = "interface"
    PROCESSING = "processing"
    QUALITY = "quality"
    EXPECTED = "expected"
    MONITOR = "monitor"
    TARGET = "target"
    PROVENANCE = "provenance"
    COST = "cost"


_TOPICS: Final = {
    "model": Topic.IDENTITY, "version": Topic.IDENTITY, "variant": Topic.IDENTITY,
    "inputs": Topic.INTERFACE, "outputs": Topic.INTERFACE, "task": Topic.INTERFACE, "scores": Topic.INTERFACE, "labels": Topic.INTERFACE,
    "processing": Topic.PROCESSING, "quality": Topic.QUALITY, "expected": Topic.EXPECTED,
    "runtime": Topic.TARGET, "profiles": Topic.TARGET, "measurement": Topic.COST,
}  # fmt: skip
"""Topic of each field of a manifest; any other field is of where the model came from."""
_UNTOLD: Final = frozenset({"files", "format_version"})


class Change(msgspec.Struct, frozen=True):
    """One field that differs; empty text: it is not there."""

    topic: Topic
    field: str
    before: str
    after: str


class LayerChange(msgspec.Struct, frozen=True):
    """How the constants of one layer moved.

    `relative` is the root mean square of the difference over that of the constants before, over tensors of the same shape;
    `largest` the greatest difference of one element; None where there are no such tensors. `reshaped` tensors have another
    shape now.
    """

    layer: str
    tensors: int
    changed: int
    added: int
    removed: int
    reshaped: int
    relative: float | None
    largest: float | None
    stored: str
    """Element types in the file, and what they became if that changed."""


class AnswerChange(msgspec.Struct, frozen=True):
    """How recorded answers differ on the samples that both bundles recorded."""

    samples: int
    agreement: float
    difference_fraction: float


class BundleDiff(msgspec.Struct, frozen=True):
    """All differences of two bundles. `delta_bytes` is what a device that has the first would download."""

    before: str
    after: str
    is_identical: bool
    changes: tuple[Change, ...]
    answers: AnswerChange | None
    layers: tuple[LayerChange, ...]
    """Layers that changed, the most first."""
    tensors: int
    tensors_changed: int
    model_bytes: tuple[int, int]
    bundle_bytes: tuple[int, int]
    delta_bytes: int


@dataclass(frozen=True, slots=True)
class Side:
    """What is compared of one bundle."""

    manifest: Manifest
    monitor: Monitor | None
    recorded: Golden | None
    weights: tuple[Weight, ...]
    sha256: str
    length_bytes: int


def compare(before: Side, after: Side, delta_bytes: int) -> BundleDiff:
    """Compare two bundles."""
    layers = tuple(compare_weights(before.weights, after.weights))
    return BundleDiff(
        before=f"{before.manifest.release} {before.manifest.variant}",
        after=f"{after.manifest.release} {after.manifest.variant}",
        is_identical=before.sha256 == after.sha256,
        changes=tuple(compare_facts(before, after)),
        answers=compare_answers(before, after),
        layers=tuple(one for one in layers if one.changed + one.added + one.removed + one.reshaped),
        tensors=sum(one.tensors for one in layers),
        tensors_changed=sum(one.changed + one.added + one.removed + one.reshaped for one in layers),
        model_bytes=(_model_bytes(before.manifest), _model_bytes(after.manifest)),
        bundle_bytes=(before.length_bytes, after.length_bytes),
        delta_bytes=delta_bytes,
    )


def compare_facts(before: Side, after: Side) -> list[Change]:
    """Compare what the manifests and monitors say."""
    old, new = msgspec.to_builtins(before.manifest), msgspec.to_builtins(after.manifest)
    changes: list[Change] = []
    for field in dict.fromkeys([*old, *new]):
        if field in _UNTOLD:
            continue
        topic = _TOPICS.get(field, Topic.PROVENANCE)
        if field == "measurement" and before.manifest.measurement.host != after.manifest.measurement.host:
            # Figures of two machines say nothing about two models.
            hosts = before.manifest.measurement.host, after.manifest.measurement.host
            changes.append(Change(topic, "measurement.host", *hosts))
            continue
        changes += _walk(topic, field, old.get(field), new.get(field))
    changes += _monitor(before.monitor, after.monitor)
    order = list(Topic)
    return sorted(changes, key=lambda one: order.index(one.topic))


def compare_answers(before: Side, after: Side) -> AnswerChange | None:
    """Compare recorded answers on the samples both recorded; None if there are none, or the answers are other tensors."""
    if before.recorded is None or after.recorded is None:
        return None
    old, new = _keys(before.recorded), _keys(after.recorded)
    place = {key: at for at, key in enumerate(old)}
    pairs = [(place[key], at) for at, key in enumerate(new) if key in place]
    firsts, seconds = before.manifest.surface.outputs, after.manifest.surface.outputs
    alike = [(one.name, one.sample_shape) for one in firsts] == [
        (one.name, one.sample_shape) for one in seconds
    ]
    if not pairs or not alike:
        return None
    rows_old, rows_new = [a for a, _ in pairs], [b for _, b in pairs]
    wanted = [
        _real(array[rows_old], spec) for array, spec in zip(before.recorded.outputs, firsts, strict=True)
    ]
    gotten = [
        _real(array[rows_new], spec) for array, spec in zip(after.recorded.outputs, seconds, strict=True)
    ]
    result = golden.compare(wanted, gotten, after.manifest)
    return AnswerChange(len(pairs), result.agreement, result.difference_fraction)


def compare_weights(before: Sequence[Weight], after: Sequence[Weight]) -> list[LayerChange]:
    """Compare constants by name, summed by layer, the most changed first."""
    old, new = {one.name: one for one in before}, {one.name: one for one in after}
    layers: dict[str, list[str]] = {}
    for name in dict.fromkeys([*old, *new]):
        layers.setdefault((old.get(name) or new[name]).layer, []).append(name)
    changes = []
    for layer, names in layers.items():
        both = [(old[name].values, new[name].values) for name in names if name in old and name in new]
        alike = [(a, b) for a, b in both if a.shape == b.shape]
        moved = [(a, b) for a, b in alike if not np.array_equal(a, b, equal_nan=True)]
        changes.append(
            LayerChange(
                layer=layer,
                tensors=len(names),
                changed=len(moved),
                added=sum(name not in old for name in names),
                removed=sum(name not in new for name in names),
                reshaped=len(both) - len(alike),
                relative=_relative(alike) if moved or not alike else 0.0,
                stored=_stored(
                    [old[name] for name in names if name in old], [new[name] for name in names if name in new]
                ),
                largest=_largest(alike),
            )
        )
    return sorted(
        changes,
        key=lambda one: (-(one.added + one.removed + one.reshaped > 0), -(one.relative or 0.0), one.layer),
    )


def _stored(before: Sequence[Weight], after: Sequence[Weight]) -> str:
    texts = [", ".join(sorted({one.stored for one in side})) for side in (before, after)]
    return " -> ".join(dict.fromkeys(text for text in texts if text))


def _relative(pairs: list[tuple[Reals, Reals]]) -> float | None:
    if not pairs:
        return None
    size = sum(float(np.square(a).sum()) for a, _ in pairs)
    moved = sum(float(np.square(a - b).sum()) for a, b in pairs)
    return float(np.sqrt(moved / size)) if size else float(moved > 0)


def _largest(pairs: list[tuple[Reals, Reals]]) -> float | None:
    return max((float(np.nanmax(np.abs(a - b), initial=0.0)) for a, b in pairs), default=None)


def _walk(topic: Topic, field: str, old: Any, new: Any) -> Iterator[Change]:
    """Find the smallest parts that differ: into structures, and into lists of the same length."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _walk(topic, f"{field}.{name}", old.get(name), new.get(name))
        return
    lists = isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and len(old) == len(new)
    if lists and any(isinstance(one, dict) for one in (*old, *new)):
        for at, (one, other) in enumerate(zip(old, new, strict=True)):
            name = one.get("name") if isinstance(one, dict) else None
            yield from _walk(topic, f"{field}[{name or at}]", one, other)
        return
    yield Change(topic, field, _text(old), _text(new))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= TEXT_MAX else text[:TEXT_MAX] + "..."


def _monitor(old: Monitor | None, new: Monitor | None) -> Iterator[Change]:
    if old == new:
        return
    if old is None or new is None:
        yield Change(
            Topic.MONITOR, "monitor", *("" if one is None else _monitor_text(one) for one in (old, new))
        )
        return
    columns = {one.name: one for one in old.columns}, {one.name: one for one in new.columns}
    common = [name for name in columns[0] if name in columns[1]]
    moved = [name for name in common if columns[0][name] != columns[1][name]]
    if moved or len(common) < max(map(len, columns)):
        names = ", ".join(moved[:5]) + (", ..." if len(moved) > 5 else "")
        yield Change(
            Topic.MONITOR, "monitor.columns", _monitor_text(old),
            f"{_monitor_text(new)}; {len(moved)} have other bins: {names}" if moved else _monitor_text(new),
        )  # fmt: skip
    for field in ("confidence_low", "latency_slow_ms"):
        yield from _walk(Topic.MONITOR, f"monitor.{field}", getattr(old, field), getattr(new, field))


def _monitor_text(one: Monitor) -> str:
    return f"{len(one.columns)} columns of {one.reference_rows} samples"


def _keys(recorded: Golden) -> list[bytes]:
    keys = [sample_keys(array) for array in recorded.inputs]
    return [b"".join(parts) for parts in zip(*keys, strict=True)]


def _real(array: golden.Array, spec: TensorSpec) -> golden.Array:
    return array if spec.scale is None else to_real(array, spec)


def _model_bytes(manifest: Manifest) -> int:
    entry = manifest.file(manifest.runtime.model_member)
    return 0 if entry is None else entry.length_bytes
