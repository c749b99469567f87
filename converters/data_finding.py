"""What a look at data may find: one finding, and how grave it is.

Decides the words only. What is found when is decided in `data_check`, `data_values` and `data_drift`.
"""

from __future__ import annotations

import enum

import msgspec


class Severity(enum.Enum):
    """What follows from a finding."""

    VIOLATION = "violation"
    """Training or calibrating on it would fail or mislead: the check ends with exit code 3."""
    WARNING = "warning"
    """It may be meant; a person should know."""
    NOTE = "note"


class Kind(enum.Enum):
    """What a finding is about."""

    SCHEMA = "schema"
    TYPE = "type"
    LAYOUT = "layout"
    RANGE = "range"
    MISSING = "missing"
    INFINITE = "infinite"
    DRIFT = "drift"
    DUPLICATE = "duplicate"
    LEAKAGE = "leakage"
    CONSTANT = "constant"
    BALANCE = "balance"
    LABELS = "labels"
    CALIBRATION = "calibration"


class Finding(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One thing found. `count` of `total` are samples, values or columns, as `what` says; 0 of 0 where nothing is counted."""

    severity: Severity
    kind: Kind
    array: str
    column: str = ""
    what: str
    count: int = 0
    total: int = 0
    example: str = ""
    hint: str = ""


def gravest_first(findings: list[Finding]) -> tuple[Finding, ...]:
    """Order findings: violations, warnings, notes; within each, as they were found."""
    order = list(Severity)
    return tuple(sorted(findings, key=lambda one: order.index(one.severity)))
