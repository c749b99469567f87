"""A translation is refused where it answers something else, and never for rounding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.sources.agreement import agreement_of, check_agreement
from edgeml.errors import BackendError

SCORES = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)


def changed(rows, by):
    answers = SCORES.copy()
    answers[:rows] = by(answers[:rows])
    return answers


@pytest.mark.parametrize(
    ("answers", "has_classes", "words"),
    [
        (changed(400, lambda rows: rows[:, ::-1]), True, "same class for"),
        (changed(8, lambda rows: rows[:, ::-1]), True, "close answers for 98.0%"),
        (changed(40, lambda rows: rows * 1.5), True, "close answers for 90.0%"),
        (changed(8, lambda rows: rows + 1), False, "close answers for 98.0%"),
    ],
)
def test_other_answers_are_refused(answers, has_classes, words):
    found = agreement_of(answers, SCORES, has_classes=has_classes)
    with pytest.raises(BackendError, match=words) as caught:
        check_agreement(found, "net.onnx", has_classes=has_classes)
    assert caught.value.hint


def test_a_few_scores_on_the_other_side_of_a_threshold_are_told_where_classes_decide():
    found = agreement_of(changed(8, lambda rows: rows * 1.5), SCORES, has_classes=True)
    [warning] = check_agreement(found, "net.onnx", has_classes=True)
    assert "answers 2.0% of the samples with other scores" in warning


def test_lost_columns_are_refused():
    with pytest.raises(BackendError, match=r"shape \[400, 4\], the original with \[400, 5\]"):
        agreement_of(SCORES[:, :4], SCORES, has_classes=True)


@given(
    scale=st.floats(1e-3, 1e6),
    shift=st.floats(-1e3, 1e3),
    noise=st.floats(0, 1e-4),
    has_classes=st.booleans(),
)
def test_rounding_is_never_refused(scale, shift, noise, has_classes):
    wanted = np.linspace(-1, 1, 600).reshape(200, 3)[:, [2, 0, 1]] * scale + shift
    found = agreement_of(wanted + noise * scale, wanted, has_classes=has_classes)
    assert check_agreement(found, "net.onnx", has_classes=has_classes) == ()
