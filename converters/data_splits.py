"""What the arrays of a data set are to each other: which are samples, which are labels, what is in two of them.

Decides how arrays are told apart by their names and shapes, what counts as the same sample, and when classes are out of
balance. Pure.
"""

from __future__ import annotations

import enum
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from .array_file import Array
from .data_file import LABEL_NAMES, NamedArray
from .data_finding import Finding, Kind, Severity

FEW_FRACTION: Final = 0.01
"""Of the evaluation samples: so many may be known from training by chance (silence, an empty picture)."""
RARE_FRACTION: Final = 0.1
"""A class with less than this part of an even share is rare."""
CLASS_SAMPLES_MIN: Final = 5
CLASSES_SHOWN: Final = 20
CALIBRATION: Final = "calibration"
EVALUATION: Final = "evaluation"
TRAINING: Final = "train"


class Role(enum.Enum):
    """What an array is."""

    SAMPLES = "samples"
    LABELS = "labels"
    TARGETS = "targets"
    """What a regression is to answer."""
    OTHER = "other"
    """It is not looked at."""


def role_of(named: NamedArray) -> Role:
    """Tell what an array is by its name (..._x, ..._y, labels) or, failing that, by its shape."""
    values, name = named.values, named.name.lower()
    if name == "x" or name.endswith("_x"):
        return Role.SAMPLES
    is_row = values.ndim == 1
    if values.ndim and (name.endswith("_y") or (is_row and name in LABEL_NAMES)):
        return Role.TARGETS if values.dtype.kind == "f" else Role.LABELS
    if values.ndim >= 2 and values.dtype.kind in "fiub":
        return Role.SAMPLES
    return Role.LABELS if is_row and values.dtype.kind in "iu" else Role.OTHER


def split_of(name: str) -> str:
    """Which part of a data set an array belongs to: `train` of train_x and train_y; empty where its name has no such end.

    >>> split_of("evaluation_x"), split_of("train_y"), split_of("specs")
    ('evaluation', 'train', '')
    """
    return name[:-2] if name.lower().endswith(("_x", "_y")) else ""


def sample_keys(values: Array) -> list[bytes]:
    """Name each sample of [samples, ...] by its content: equal samples of the same type have equal keys."""
    rows = np.ascontiguousarray(values).reshape(len(values), -1)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


def check_duplicates(array: str, keys: Sequence[bytes], labels: Sequence[str]) -> Iterator[Finding]:
    """Find samples that are there twice, and of those the ones with two different labels (empty: there are no labels)."""
    first: dict[bytes, int] = {}
    again: list[tuple[int, int]] = []
    for at, key in enumerate(keys):
        if key in first:
            again.append((first[key], at))
        else:
            first[key] = at
    if again:
        yield Finding(
            severity=Severity.WARNING, kind=Kind.DUPLICATE, array=array, count=len(again), total=len(keys),
            what="samples are there twice", example=f"samples {again[0][0]} and {again[0][1]}",
            hint="what is there twice counts twice; keep one of each unless that is meant",
        )  # fmt: skip
    torn = [(one, other) for one, other in again if labels and labels[one] != labels[other]]
    if torn:
        one, other = torn[0]
        yield Finding(
            severity=Severity.WARNING, kind=Kind.LABELS, array=array, count=len(torn), total=len(keys),
            what="samples are there twice with different labels",
            example=f"samples {one} ({labels[one]}) and {other} ({labels[other]})", hint="no model can be right on both",
        )  # fmt: skip


def check_leakage(
    known: str, known_keys: Sequence[bytes], judged: str, judged_keys: Sequence[bytes]
) -> Iterator[Finding]:
    """Find evaluation samples that the model has been shown, by which it would be judged too well."""
    at_first = {key: at for at, key in reversed(list(enumerate(known_keys)))}
    leaked = [(at_first[key], at) for at, key in enumerate(judged_keys) if key in at_first]
    if leaked:
        yield Finding(
            severity=Severity.VIOLATION if len(leaked) > FEW_FRACTION * len(judged_keys) else Severity.WARNING,
            kind=Kind.LEAKAGE, array=judged, count=len(leaked), total=len(judged_keys), what=f"samples are in {known}, too",
            example=f"sample {leaked[0][1]} is sample {leaked[0][0]} of {known}",
            hint=f"remove them from {known}: a model is to be judged by what it has not seen",
        )  # fmt: skip


def check_labels(named: NamedArray, samples: int | None, classes: Sequence[str]) -> Iterator[Finding]:
    """Look at class labels.

    Args:
        named: class numbers, or in a table names.
        samples: how many samples they belong to; None if that is not known.
        classes: the model's class names, by number; their number counts where names are empty. Empty: not known.
    """
    values = named.values
    if samples is not None and values.shape != (samples,):
        yield _labels_violation(
            named, f"shape {list(values.shape)} for {samples} samples", "give one label per sample"
        )
        return
    if not values.size:
        yield _labels_violation(named, "there are no labels", "give one label per sample")
        return
    if values.dtype.kind in "US" and not named.is_text:
        yield _labels_violation(named, "labels are names", _numbers_hint(named, classes))
        return
    if values.dtype.kind not in "iuU":
        yield _labels_violation(
            named, f"labels are {values.dtype}", "labels are class numbers: save them as int64"
        )
        return
    if classes:
        yield from _unknown_classes(named, classes)
    yield from _balance(named, classes)


def check_targets(named: NamedArray, samples: int | None, classes: Sequence[str]) -> Iterator[Finding]:
    """Look at what a regression is to answer; the arguments are as in `check_labels`."""
    values = named.values
    if samples is not None and len(values) != samples:
        yield _labels_violation(
            named, f"shape {list(values.shape)} for {samples} samples", "give one target per sample"
        )
        return
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1) if values.size else np.zeros(0, np.bool_)
    if bad.any():
        yield Finding(
            severity=Severity.VIOLATION, kind=Kind.LABELS, array=named.name, count=int(bad.sum()), total=len(values),
            what="targets are NaN or infinite", example=f"sample {int(bad.argmax())}", hint="remove or repair such samples",
        )  # fmt: skip
    elif classes:
        yield _labels_violation(
            named,
            f"targets are {values.dtype}, the model is a classifier",
            f"if these are class numbers, save {named.name}.astype('int64')",
        )


def label_texts(labels: NamedArray | None, samples: int) -> tuple[str, ...]:
    """Labels as text, one a sample; empty if there are none that fit."""
    if labels is None or labels.values.shape != (samples,):
        return ()
    return tuple(map(str, labels.values.tolist()))


def _labels_violation(named: NamedArray, what: str, hint: str) -> Finding:
    return Finding(severity=Severity.VIOLATION, kind=Kind.LABELS, array=named.name, what=what, hint=hint)


def _numbers_hint(named: NamedArray, classes: Sequence[str]) -> str:
    """Say what makes class numbers of names."""
    names = [
        text.decode(errors="replace") if isinstance(text, bytes) else text for text in named.values.tolist()
    ]
    if all(text.isdecimal() for text in names):
        return f"save class numbers: {named.name}.astype('int64')"
    if len(classes) > CLASSES_SHOWN:
        return "save class numbers, each name's place in the model's labels"
    if set(names) <= set(classes):
        return f"save class numbers: np.array([{list(classes)}.index(name) for name in {named.name}.astype(str)])"
    return (
        f"save class numbers: np.searchsorted(np.unique({named.name}), {named.name}) "
        "(the model's classes must be in the order of their sorted names)"
    )


def _unknown_classes(named: NamedArray, classes: Sequence[str]) -> Iterator[Finding]:
    values = named.values
    if values.dtype.kind == "U":
        bad, hint = ~np.isin(values, list(classes)), "one of: " + ", ".join(classes[:CLASSES_SHOWN])
    else:
        number = values.astype(np.int64)
        bad, hint = (
            (number < 0) | (number >= len(classes)),
            f"labels are class numbers from 0 to {len(classes) - 1}",
        )
    if bad.any():
        at = int(bad.argmax())
        yield Finding(
            severity=Severity.VIOLATION, kind=Kind.LABELS, array=named.name, count=int(bad.sum()), total=len(values),
            what="labels name no class of the model", example=f"sample {at} has {values[at]}", hint=hint,
        )  # fmt: skip


def _balance(named: NamedArray, classes: Sequence[str]) -> Iterator[Finding]:
    counts = Counter(named.values.tolist())
    if named.values.dtype.kind != "U" and classes:
        counts = Counter({i: counts.get(i, 0) for i in range(len(classes))})
    even = counts.total() / len(counts)
    shown = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())[:CLASSES_SHOWN])
    more = f", and {len(counts) - CLASSES_SHOWN} more" if len(counts) > CLASSES_SHOWN else ""
    rare = {name for name, count in counts.items() if count < max(CLASS_SAMPLES_MIN, RARE_FRACTION * even)}
    if len(counts) == len(named.values) > CLASS_SAMPLES_MIN:
        return  # every label is another one: numbers to be predicted, no classes
    yield Finding(
        severity=Severity.WARNING if rare or len(counts) < 2 else Severity.NOTE,
        kind=Kind.BALANCE, array=named.name, count=len(rare), total=len(counts) if rare else 0,
        what=f"classes are rare (samples of each class: {shown}{more})" if rare
        else f"samples of each class: {shown}{more}",
        hint="collect more of them: what is rare here is neither learned nor judged" if rare else "",
    )  # fmt: skip
