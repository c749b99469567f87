"""Sketches: merging is exact integer addition, so neither order nor grouping matters."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import IncompatibleError
from edgeml.ids import Digest
from edgeml.sketch import Sketch, merge

MONITOR = Digest("ab" * 32)
SHAPE = (3, 1, 4)
COUNTS = st.integers(0, 1 << 60)
SUMS = st.integers(-(1 << 60), 1 << 60)
SKETCHES = st.builds(
    Sketch,
    monitor=st.just(MONITOR),
    rows=COUNTS,
    counts=st.tuples(*(st.tuples(*[COUNTS] * bins) for bins in SHAPE)),
    sums=st.tuples(*[SUMS] * len(SHAPE)),
    squares=st.tuples(*[COUNTS] * len(SHAPE)),
)
ZERO = Sketch(MONITOR, 0, tuple((0,) * bins for bins in SHAPE), (0,) * 3, (0,) * 3)


@given(SKETCHES, SKETCHES)
def test_order_does_not_matter(one, two):
    assert merge(one, two) == merge(two, one)


@given(SKETCHES, SKETCHES, SKETCHES)
def test_grouping_does_not_matter(one, two, three):
    assert merge(merge(one, two), three) == merge(one, merge(two, three))


@given(SKETCHES)
def test_zero_changes_nothing(one):
    assert merge(one, ZERO) == one == merge(ZERO, one)


@given(SKETCHES, SKETCHES)
def test_every_number_is_added_and_none_is_rounded(one, two):
    both = merge(one, two)
    assert both.rows == one.rows + two.rows
    for index, bins in enumerate(SHAPE):
        assert both.sums[index] == one.sums[index] + two.sums[index]
        assert both.squares[index] == one.squares[index] + two.squares[index]
        for position in range(bins):
            assert both.counts[index][position] == one.counts[index][position] + two.counts[index][position]


@given(SKETCHES)
def test_a_sketch_survives_its_bytes(one):
    assert msgspec.json.decode(msgspec.json.encode(one), type=Sketch) == one


@pytest.mark.parametrize(
    "other",
    [
        {"monitor": Digest("cd" * 32)},
        {"counts": ZERO.counts[:-1]},
        {"counts": (*ZERO.counts, (0,))},
        {"counts": ((0, 0), *ZERO.counts[1:])},
        {"sums": (0, 0)},
        {"squares": (0,) * 4},
        {"sums": ()},
    ],
    ids=str,
)
def test_sketches_of_other_monitors_or_shapes_are_not_merged(other):
    for pair in (
        (ZERO, msgspec.structs.replace(ZERO, **other)),
        (msgspec.structs.replace(ZERO, **other), ZERO),
    ):
        with pytest.raises(IncompatibleError):
            merge(*pair)
