"""Whether a model may be loaded beside the others: tables, and what must hold for all numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.admission import (
    Peak,
    PeakSource,
    Placement,
    Room,
    admit,
    known_peak,
    left_bytes,
    own_bytes,
)
from edgeml.errors import BudgetError
from edgeml.ids import ModelName
from edgeml.manifest import RuntimeFamily

MIB = 1 << 20
A, B, C = ModelName("a"), ModelName("b"), ModelName("c")
SIZES = st.integers(0, 4096 * MIB)
PEAKS = st.builds(Peak, SIZES, st.sampled_from(PeakSource))
ROOMS = st.builds(
    Room,
    budget_bytes=st.none() | SIZES,
    shared_bytes=st.integers(0, 100 * MIB),
    granted=st.dictionaries(st.sampled_from([A, B, C]), SIZES),
    available_bytes=st.none() | SIZES,
    reserve_bytes=st.integers(0, 64 * MIB),
)


def room(budget_mib, granted=None, available_mib=None):
    return Room(
        None if budget_mib is None else budget_mib * MIB,
        40 * MIB,
        {model: mib * MIB for model, mib in (granted or {}).items()},
        None if available_mib is None else available_mib * MIB,
        32 * MIB,
    )


@pytest.mark.parametrize(
    ("trial", "manifest", "expected"),
    [
        (50 * MIB, 90 * MIB, Peak(50 * MIB, PeakSource.TRIAL)),
        (None, 90 * MIB, Peak(90 * MIB, PeakSource.MANIFEST)),
        (0, 0, Peak(60 * MIB, PeakSource.GUESS)),
    ],
)
def test_what_this_device_measured_counts_before_the_manifest_and_that_before_a_guess(
    trial, manifest, expected
):
    assert known_peak(trial, manifest, 8 * MIB, RuntimeFamily.ONNX) == expected


@pytest.mark.parametrize(
    ("budget_mib", "granted", "available_mib", "placement"),
    [
        # The variant's peak of 100 MiB is 120 with its margin, 80 of them its own.
        (None, {}, None, Placement.BESIDE),
        (120, {}, None, Placement.BESIDE),
        (200, {A: 80}, None, Placement.BESIDE),
        (199, {A: 80}, None, Placement.INSTEAD),
        (160, {A: 80, B: 40}, None, Placement.INSTEAD),
        (None, {A: 80}, 112, Placement.BESIDE),
        (None, {A: 80}, 111, Placement.INSTEAD),
        (None, {A: 80}, 32, Placement.INSTEAD),
    ],
)
def test_both_variants_run_side_by_side_if_they_fit(budget_mib, granted, available_mib, placement):
    found = admit(A, Peak(100 * MIB, PeakSource.MANIFEST), room(budget_mib, granted, available_mib))
    assert (found.granted_bytes, found.placement) == (80 * MIB, placement)


def test_what_does_not_fit_is_refused_with_every_number():
    with pytest.raises(BudgetError) as caught:
        admit(A, Peak(100 * MIB, PeakSource.MANIFEST), room(160, {A: 10, B: 50}))
    error = caught.value
    assert error.message == (
        "a needs 80.0 MiB of memory (peak 100.0 MiB in its manifest), 70.0 MiB are left of the budget of 160.0 MiB: "
        "other models have 50.0 MiB, 40.0 MiB are shared"
    )
    assert (error.budget, error.observed, error.unit) == (70 * MIB, 80 * MIB, "bytes")


def test_a_device_that_is_full_refuses_although_the_budget_would_allow_it():
    with pytest.raises(BudgetError, match=r"this device has 68.0 MiB to give: 100.0 MiB are available"):
        admit(A, Peak(100 * MIB, PeakSource.MANIFEST), room(4096, {}, 100))


def admitted(model, peak, where):
    try:
        return admit(model, peak, where)
    except BudgetError:
        return None


@given(PEAKS, ROOMS)
def test_what_is_admitted_keeps_the_device_within_its_budget(peak, where):
    found = admitted(A, peak, where)
    if found is None or where.budget_bytes is None:
        return
    old = where.granted.get(A, 0) if found.placement is Placement.BESIDE else 0
    others = sum(size for model, size in where.granted.items() if model != A)
    assert where.shared_bytes + others + old + found.granted_bytes <= where.budget_bytes


@given(PEAKS, ROOMS, st.integers(0, 512 * MIB))
def test_more_room_never_refuses_and_never_worsens_the_place(peak, where, more):
    found = admitted(A, peak, where)
    wider = Room(
        None if where.budget_bytes is None else where.budget_bytes + more,
        where.shared_bytes,
        where.granted,
        None if where.available_bytes is None else where.available_bytes + more,
        where.reserve_bytes,
    )
    if found is not None:
        again = admitted(A, peak, wider)
        assert again is not None
        assert again.placement is Placement.BESIDE or found.placement is Placement.INSTEAD


@given(PEAKS, ROOMS, st.integers(0, 512 * MIB))
def test_a_smaller_peak_is_admitted_wherever_a_larger_one_is(peak, where, less):
    if admitted(A, peak, where) is not None:
        assert admitted(A, Peak(max(peak.peak_bytes - less, 0), peak.source), where) is not None


@given(SIZES, SIZES)
def test_a_workers_own_part_is_never_nothing_and_never_more_than_all(whole, shared):
    assert round(whole / 8) <= own_bytes(whole, shared) <= whole


@given(ROOMS)
def test_what_is_left_does_not_count_the_models_own_grant(where):
    without = Room(where.budget_bytes, where.shared_bytes, {m: g for m, g in where.granted.items() if m != A})
    assert left_bytes(A, where) == left_bytes(A, without)
