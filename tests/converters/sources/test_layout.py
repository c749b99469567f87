"""Wrong layouts are named, with what puts them right; what fits is left alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.sources.layout import layout_hint
from edgeml.tensors import BATCH

SIZES = st.integers(1, 9)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ((BATCH, 3, 32, 32), (50, 32, 32, 3), "channels last (NHWC), the model takes channels first (NCHW): give x.transpose(0, 3, 1, 2)"),
        ((1, 32, 32, 3), (50, 3, 32, 32), "channels first (NCHW), the model takes channels last (NHWC): give x.transpose(0, 2, 3, 1)"),
        ((BATCH, 3, BATCH, BATCH), (50, 32, 32, 3), "x.transpose(0, 3, 1, 2)"),
        ((BATCH, 1, 8, 8), (50, 8, 8), "give x[:, None]"),
        ((BATCH, 8, 8, 1), (50, 8, 8), "give x[..., None]"),
        ((BATCH, 64), (50, 8, 8), "give x.reshape(len(x), 64)"),
        ((BATCH, 1, 8, 8), (50, 64), "give x.reshape(len(x), 1, 8, 8)"),
        ((BATCH, 49, 10), (50, 10, 49), "give x.transpose(0, 2, 1)"),
        ((BATCH, 3, 32, 32), (50, 3, 32, 32), ""),
        ((BATCH, 8, 8, 8), (50, 8, 8, 8), ""),
        ((BATCH, 3, 32, 32), (50, 3, 30, 32), ""),
        ((BATCH, 4), (50, 5), ""),
    ],
)  # fmt: skip
def test_what_is_said_of_shapes(model, data, words):
    said = layout_hint(model, data)
    assert (words in said) if words else said == ""


@given(shape=st.lists(SIZES, min_size=1, max_size=4), data=st.data())
def test_what_is_told_to_do_makes_them_fit(shape, data):
    order = data.draw(st.permutations(range(len(shape))))
    x = np.zeros((2, *[shape[index] for index in order]))
    said = layout_hint((BATCH, *shape), x.shape)
    if said:
        repaired = eval(said.rpartition("give ")[2], {"x": x, "len": len})  # our own text
        assert repaired.shape == (2, *shape)
