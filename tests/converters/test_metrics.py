"""Metrics by tables, and AUC against what others published."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from converters.metrics import (
    Accuracy,
    AreaUnderCurve,
    Evaluation,
    MeanAbsoluteError,
    area_under_curve,
    judge_of,
    parse_metric,
)
from converters.select import Floor
from edgeml.errors import ConfigError

X = np.zeros((4, 2), np.float32)
CLASSES = np.array([0, 1, 0, 1])


def evaluation(truth):
    return Evaluation(X, None if truth is None else np.asarray(truth))


@pytest.mark.parametrize(
    ("metric", "answers", "truth", "value"),
    [
        (Accuracy(), [[1, 0], [0, 1], [0, 1], [0, 1]], CLASSES, 0.75),
        (AreaUnderCurve(), [0.1, 0.8, 0.3, 0.9], CLASSES, 1.0),
        (AreaUnderCurve(), [[0.1], [0.2], [0.3], [0.4]], CLASSES, 0.75),
        (AreaUnderCurve(), [[1, 0], [0, 1], [1, 0], [0, 1]], CLASSES, 1.0),
        (AreaUnderCurve(), [1, 1, 1, 1], CLASSES, 0.5),
        (MeanAbsoluteError(), [[1.0], [2.0], [3.0], [4.0]], [1.0, 2.0, 3.0, 6.0], 0.5),
    ],
)
def test_values(metric, answers, truth, value):
    assert metric.value(np.asarray(answers, np.float32), evaluation(truth)) == pytest.approx(value)


@pytest.mark.parametrize(
    ("metric", "answers", "truth", "words"),
    [
        (Accuracy(), X, None, "accuracy needs classes"),
        (Accuracy(), X, [0.5, 1.0, 2.0, 1.0], "accuracy needs classes"),
        (AreaUnderCurve(), X, [0, 1, 2, 1], "AUC needs the classes 0 and 1"),
        (AreaUnderCurve(), X, [1, 1, 1, 1], "AUC needs the classes 0 and 1"),
        (AreaUnderCurve(), np.zeros((4, 3)), CLASSES, "the model answers 3"),
        (MeanAbsoluteError(), X, None, "MAE needs evaluation_y"),
        (MeanAbsoluteError(), X, [1.0, 2.0, 3.0, 4.5], "answers 2 numbers a sample, evaluation_y has 1"),
    ],
)
def test_truth_that_a_metric_cannot_use_is_refused(metric, answers, truth, words):
    with pytest.raises(ConfigError, match=words):
        metric.value(np.asarray(answers, np.float32), evaluation(truth))


def test_a_list_of_classes_that_is_cut_says_so():
    truth = np.arange(10)
    with pytest.raises(ConfigError, match=r"evaluation_y holds \[0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\]"):
        AreaUnderCurve().value(np.zeros((10, 2)), Evaluation(np.zeros((10, 2)), truth))


@pytest.mark.parametrize(
    ("truth", "name"), [(None, "agreement"), (CLASSES, "accuracy"), ([1.0, 2.0, 3.0, 4.0], "MAE")]
)
def test_the_truth_suggests_the_metric(truth, name):
    assert judge_of(None, X, evaluation(truth)).metric.name == name


def test_classes_written_one_hot_are_not_taken_for_numbers_unless_asked_to():
    one_hot = np.eye(3)[[0, 2, 1, 1]]
    with pytest.raises(ConfigError, match="one-hot") as caught:
        judge_of(None, X, evaluation(one_hot))
    assert "argmax" in caught.value.hint
    assert judge_of(parse_metric("mae"), X, evaluation(one_hot)).metric.name == "MAE"
    assert judge_of(None, X, evaluation(one_hot * 0.5)).metric.name == "MAE"


class TestAFunctionOfTheUsers:
    def write(self, tmp_path, body):
        path = tmp_path / "mine.py"
        path.write_text(f"import numpy as np\ndef score(answers, truth, samples):\n    {body}\n")
        return parse_metric(f"{path}:score")

    def test_is_asked_with_answers_truth_and_samples(self, tmp_path):
        metric = self.write(tmp_path, "return len(samples) + truth.sum() + answers.max()")
        assert metric.value(np.full((4, 2), 0.5), evaluation(CLASSES)) == 6.5
        assert metric.name == "mine.py:score"

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ("return 1 / 0", "ZeroDivisionError"),
            ("return 'much'", "returned"),
            ("return float('nan')", "returned nan"),
            ("raise SystemExit(3)", "SystemExit"),
        ],
    )
    def test_that_fails_is_the_users_to_fix(self, tmp_path, body, words):
        with pytest.raises(ConfigError, match=words):
            self.write(tmp_path, body).value(X, evaluation(CLASSES))

    def test_without_a_truth_is_refused_as_the_others_are(self, tmp_path):
        metric = self.write(tmp_path, "return float((answers.argmax(1) == truth) is True)")
        with pytest.raises(ConfigError, match=r"mine\.py:score needs evaluation_y"):
            metric.value(X, evaluation(None))

    def test_that_fails_is_told_with_its_line_and_what_it_was_given(self, tmp_path):
        metric = self.write(tmp_path, "x = answers + 1\n    return np.dot(x, truth[:3])")
        with pytest.raises(ConfigError) as caught:
            metric.value(X, evaluation(CLASSES))
        assert "given answers [4, 2], truth [4], samples [4, 2], fails: ValueError" in caught.value.message
        assert caught.value.message.endswith("(mine.py, line 4)")

    @pytest.mark.parametrize(
        "taken", ["answers, truth", "answers, truth, samples, more", "answers, *, truth"]
    )
    def test_of_other_arguments_is_refused_before_anything_is_run(self, tmp_path, taken):
        path = tmp_path / "mine.py"
        path.write_text(f"def score({taken}):\n    return 1.0\n")
        with pytest.raises(ConfigError, match=r"mine\.py:score takes other arguments") as caught:
            parse_metric(f"{path}:score")
        assert caught.value.hint == "it is called with (answers, truth, samples)"

    @pytest.mark.parametrize("taken", ["*arrays", "answers, truth, samples, more=None"])
    def test_may_take_more_than_it_is_given(self, tmp_path, taken):
        path = tmp_path / "mine.py"
        path.write_text(f"def score({taken}):\n    return 1.0\n")
        assert parse_metric(f"{path}:score").value(X, evaluation(CLASSES)) == 1.0

    def test_of_a_column_of_answers_gets_them_in_the_truths_shape(self, tmp_path):
        metric = self.write(tmp_path, "return float(answers.shape == truth.shape == (4,))")
        assert metric.value(X[:, :1], evaluation(CLASSES)) == 1.0

    @pytest.mark.parametrize("text", ["accurracy", "mine.py", "nothing.py:score", "mine.txt:score"])
    def test_that_is_not_there_is_named(self, text):
        with pytest.raises(ConfigError):
            parse_metric(text)


PUBLISHED = {
    "": 0.8644, "tflite_": 0.8760, "tflite_quant_": 0.8394, "tflite_quant_fullint_": 0.8415, "tflite_quant_fullint_micro_": 0.8415,
}  # fmt: skip


class TestPublishedScores:
    """Five variants of one anomaly detector, four machines, 2459 clips each: scores that others published."""

    @pytest.fixture
    def folder(self):
        root = os.environ.get("EDGEML_MLPERF_TINY")
        if not root:
            pytest.skip("EDGEML_MLPERF_TINY does not name the folder with MLPerf Tiny's scores")
        return Path(root) / "anomaly_detection/scores"

    def mean_auc(self, folder, prefix):
        found = []
        for machine in range(1, 5):
            path = folder / f"{prefix}anomaly_score_ToyCar_id_0{machine}.csv"
            with path.open(newline="") as file:
                rows = [(name, float(score)) for name, score in csv.reader(file)]
            labels = np.array([name.startswith("anomaly_") for name, _ in rows]).astype(np.int64)
            found.append(area_under_curve(np.array([score for _, score in rows]), labels))
        return float(np.mean(found))

    @pytest.mark.parametrize("prefix", PUBLISHED)
    def test_are_recomputed_to_four_digits(self, folder, prefix):
        assert self.mean_auc(folder, prefix) == pytest.approx(PUBLISHED[prefix], abs=5e-5)

    def test_a_floor_of_two_points_refuses_the_int8_model(self, folder):
        baseline, int8 = (self.mean_auc(folder, one) for one in ("tflite_", "tflite_quant_fullint_micro_"))
        floor = Floor("AUC", baseline, 0.02)
        assert not floor.holds(int8)
        assert floor.said(floor.drop(int8)) == "3.45 points"
        assert Floor("AUC", baseline, 0.04).holds(int8)


def test_rows_of_one_class_have_no_area_and_are_judged_by_agreement():
    """Of a rare fault, the samples that layers are told apart by may hold none."""
    answers = np.linspace(0, 1, 8, dtype=np.float32)
    judge = judge_of(AreaUnderCurve(), answers, Evaluation(np.zeros((8, 1)), np.array([0] * 7 + [1])))
    rows = np.arange(4)
    assert judge.of_rows(rows).metric.name == "agreement"
    assert judge.of_rows(rows).worth(answers[rows]).value == 1.0
    assert judge.of_rows(np.arange(8)).metric.name == "AUC"


def test_worth_is_always_more_when_better():
    judge = judge_of(
        MeanAbsoluteError(), np.zeros((2, 1)), Evaluation(np.zeros((2, 1)), np.array([1.0, 1.0]))
    )
    assert judge.worth(np.array([1.0, 1.0])).value > judge.worth(np.array([0.5, 0.5])).value


def test_class_numbers_as_floats_are_told_to_become_integers():
    with pytest.raises(ConfigError, match="answers 2 numbers") as caught:
        MeanAbsoluteError().value(X, evaluation([0.0, 1.0, 1.0, 0.0]))
    assert "evaluation_y.astype('int64')" in caught.value.hint
