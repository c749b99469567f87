"""What the arrays of a data set are to each other: class numbers, names of classes, and what a regression is to answer."""

import numpy as np
import pytest

from converters.data_check import Spec, check_data
from converters.data_file import NamedArray
from converters.data_finding import Kind, Severity
from converters.data_splits import Role, check_labels, role_of
from edgeml.bundle import Bundle
from edgeml.testing import sample_bundle

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 4)).astype(np.float32)
TARGETS = X @ np.float32([1, -2, 3, 1]) + np.float32(100)


def violations(spec=None, **arrays):
    named = [NamedArray(name, values) for name, values in ({"calibration_x": X[:48]} | arrays).items()]
    return [one for one in check_data(named, spec).findings if one.severity is Severity.VIOLATION]


def of_labels(values, samples, classes=()):
    return [
        one
        for one in check_labels(NamedArray("evaluation_y", values), samples, classes)
        if one.severity is Severity.VIOLATION
    ]


@pytest.mark.parametrize(
    "targets",
    [TARGETS[48:], TARGETS[48:].astype(np.float64), TARGETS[48:, None], np.rint(X[48:, :3])],
    ids=["[n]", "float64", "[n, 1]", "[n, k] with rows that are there twice"],
)
def test_what_a_regression_is_to_answer_is_no_violation(targets):
    named = NamedArray("evaluation_y", targets)
    assert role_of(named) is Role.TARGETS
    report = check_data(
        [NamedArray("calibration_x", X[:48]), NamedArray("evaluation_x", X[48:]), named], None
    )
    assert [one for one in report.findings if one.array == "evaluation_y"] == []
    assert report.violations == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_targets_that_are_no_numbers_are_a_violation(bad):
    targets = TARGETS[48:].copy()
    targets[7] = bad
    [found] = violations(evaluation_x=X[48:], evaluation_y=targets)
    assert (found.array, found.count, found.example) == ("evaluation_y", 1, "sample 7")


def test_targets_belong_to_samples():
    [found] = violations(evaluation_x=X[48:], evaluation_y=TARGETS[50:])
    assert found.what == "shape [46] for 48 samples"
    [found] = violations(evaluation_x=X[48:], evaluation_y=TARGETS[50:, None])
    assert found.what == "shape [46, 1] for 48 samples"


def test_floats_for_a_classifier_are_told_to_become_class_numbers(tmp_path):
    sample_bundle(tmp_path / "b.edgeml")
    with Bundle(tmp_path / "b.edgeml") as opened:
        spec = Spec(opened.manifest, None)
    found = [
        one
        for one in violations(spec, evaluation_x=X[48:], evaluation_y=TARGETS[48:])
        if one.kind is Kind.LABELS
    ]
    assert len(found) == 1
    assert "evaluation_y.astype('int64')" in found[0].hint


def test_class_numbers_in_two_dimensions_are_labels_of_a_wrong_shape():
    [found] = violations(evaluation_x=X[48:], evaluation_y=np.zeros((48, 1), np.int64))
    assert found.what == "shape [48, 1] for 48 samples"


def test_labels_that_are_empty_are_not_told_to_become_what_they_are():
    [found] = of_labels(np.zeros(0, np.int64), 0)
    assert found.what == "there are no labels"
    assert "int64" not in found.hint


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (np.array(["cat", "dog", "ant", "cat"]), [1, 2, 0, 1]),
        (np.array(["10", "9", "0", "10"]), [10, 9, 0, 10]),
        (np.array([b"cat", b"ant"]), [1, 0]),
    ],
)
def test_names_of_classes_are_a_violation_with_what_makes_numbers_of_them(names, numbers):
    [found] = of_labels(names, len(names))
    code = found.hint.partition(": ")[2].partition(" (")[0]
    made = eval(code, {"np": np, "evaluation_y": names})
    assert made.dtype == np.int64
    assert made.tolist() == numbers


def test_names_of_classes_of_a_known_model_get_its_numbers():
    [found] = of_labels(np.array(["cat", "ant"]), 2, ("dog", "cat", "ant"))
    code = found.hint.partition(": ")[2].partition(" (")[0]
    assert eval(code, {"np": np, "evaluation_y": np.array(["cat", "ant"])}).tolist() == [1, 2]


def test_names_in_a_table_are_labels():
    table = NamedArray("y", np.array(["cat", "dog", "ant", "cat"]), ("label",), is_text=True)
    assert not [one for one in check_labels(table, 4, ()) if one.severity is Severity.VIOLATION]
