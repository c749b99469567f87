"""scikit-learn's estimators on its own data: what becomes of each answers as it does."""

import numpy as np
import pytest
from sklearn import ensemble, linear_model, naive_bayes, neighbors, neural_network, svm
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.decomposition import FastICA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converters.quiet import quiet
from converters.sources.agreement import agreement_of, check_agreement
from converters.sources.estimator import Answering, estimator_of
from converters.sources.estimator_onnx import translate
from converters.sources.estimator_torch import translate_by_torch
from edgeml.errors import BackendError, ConfigError
from edgeml.manifest import RuntimeFamily, ScoreKind
from edgeml.runtime import open_session
from edgeml.tensors import BATCH

pytestmark = pytest.mark.torch


def scaled(estimator):
    return make_pipeline(StandardScaler(), estimator)


def data(load):
    x, y = load(return_X_y=True)
    return x.astype(np.float32), y


CANCER, DIABETES, DIGITS = data(load_breast_cancer), data(load_diabetes), data(load_digits)
P, D, V = Answering.PROBABILITIES, Answering.DECISIONS, Answering.VALUES
CASES = {
    "scaler and logistic regression": (scaled(linear_model.LogisticRegression()), CANCER, P),
    "random forest": (ensemble.RandomForestClassifier(10, random_state=0), CANCER, P),
    "boosted histograms": (ensemble.HistGradientBoostingClassifier(max_iter=5), CANCER, P),
    "boosted histograms of ten classes": (ensemble.HistGradientBoostingClassifier(max_iter=1, max_leaf_nodes=6), DIGITS, P),
    "support vectors": (scaled(svm.SVC()), CANCER, D),
    "support vectors of ten classes": (svm.SVC(), DIGITS, D),
    "linear support vectors": (scaled(svm.LinearSVC()), CANCER, D),
    "ridge": (linear_model.RidgeClassifier(), CANCER, D),
    "stochastic descent": (scaled(linear_model.SGDClassifier(random_state=0)), CANCER, D),
    "perceptron": (scaled(neural_network.MLPClassifier((8,), max_iter=20, random_state=0)), CANCER, P),
    "neighbours": (neighbors.KNeighborsClassifier(), CANCER, P),
    "bayes": (naive_bayes.GaussianNB(), CANCER, P),
    "boosted trees": (ensemble.GradientBoostingRegressor(n_estimators=10, random_state=0), DIABETES, V),
    "boosted histograms of values": (ensemble.HistGradientBoostingRegressor(max_iter=5), DIABETES, V),
    "forest of values": (ensemble.RandomForestRegressor(5, random_state=0), DIABETES, V),
    "support vectors of values": (svm.SVR(), DIABETES, V),
    "two values": (linear_model.LinearRegression(), (DIABETES[0], np.stack([DIABETES[1]] * 2, 1)), V),
    "outliers": (ensemble.IsolationForest(n_estimators=5, random_state=0), (CANCER[0], None), D),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_estimator_becomes_onnx_that_answers_as_it_does(name):
    unfitted, (x, y), answering = CASES[name]
    with quiet():
        estimator = estimator_of(unfitted.fit(x, y), name)
    assert estimator.answering is answering
    model = translate(estimator, x)
    assert translate(estimator, x) == model, "the same estimator gives the same bytes"
    session = open_session(model, RuntimeFamily.ONNX)
    original = estimator.answers(x, "the data")
    [taken], [given] = session.inputs, session.outputs
    assert (taken.name, taken.shape) == ("input", (BATCH, x.shape[1]))
    assert (given.name, given.shape) == (
        "scores" if estimator.is_classifier else "output",
        (BATCH, original.shape[1]),
    )
    found = agreement_of(session.run([x])[0], original, has_classes=estimator.is_classifier)
    assert (found.classes, found.close) == (1.0, 1.0)
    if estimator.is_classifier:
        classes = np.asarray(unfitted.classes_)[original.argmax(axis=1)]
        # Support vectors of many classes vote, so that their label is not always that of the highest score.
        assert (classes == unfitted.predict(x)).mean() >= 0.999, "scores are in the order of the classes"


def test_scaling_before_boosted_histograms_moves_few_samples_over_a_threshold_and_no_class():
    x, y = CANCER
    estimator = estimator_of(scaled(ensemble.HistGradientBoostingClassifier(max_iter=10)).fit(x, y), "m")
    answers = open_session(translate(estimator, x), RuntimeFamily.ONNX).run([x])[0]
    found = agreement_of(answers, estimator.answers(x, "x"), has_classes=True)
    assert found.classes >= 0.99
    assert found.close >= 0.99, "features are divided, as scikit-learn does it"


def test_what_skl2onnx_does_not_know_goes_by_way_of_torch():
    x, y = CANCER
    pipeline = make_pipeline(
        StandardScaler(), FastICA(8, random_state=0), linear_model.LogisticRegression()
    ).fit(x, y)
    estimator = estimator_of(pipeline, "m")
    with pytest.raises(BackendError, match="skl2onnx cannot convert LogisticRegression"):
        translate(estimator, x)
    model = translate_by_torch(estimator, x)
    assert translate_by_torch(estimator, x) == model
    found = agreement_of(
        open_session(model, RuntimeFamily.ONNX).run([x])[0], estimator.answers(x, "x"), has_classes=True
    )
    assert (found.classes, found.close) == (1.0, 1.0)


def test_a_translation_that_answers_otherwise_is_refused():
    """The first of two conversions of a real estimator, held against another one's answers."""
    x, y = DIGITS
    one, other = (
        estimator_of(ensemble.RandomForestClassifier(2, max_depth=3, random_state=seed).fit(x, y), "m")
        for seed in (0, 1)
    )
    answers = open_session(translate(one, x), RuntimeFamily.ONNX).run([x])[0]
    with pytest.raises(BackendError, match="does not answer as the original does"):
        check_agreement(agreement_of(answers, other.answers(x, "x"), has_classes=True), "m", has_classes=True)


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (linear_model.LogisticRegression(), "m is a LogisticRegression that is not fitted"),
        (KMeans(2, n_init=1).fit(CANCER[0][:50]), "neither classifier, regressor nor outlier detector"),
        (ensemble.RandomForestClassifier(2).fit(CANCER[0], np.stack([CANCER[1]] * 2, 1)), "m answers 2 questions at once"),
    ],
)  # fmt: skip
def test_an_estimator_that_no_bundle_serves(estimator, words):
    with pytest.raises(ConfigError, match=words) as caught:
        estimator_of(estimator, "m")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("samples", "hint"),
    [
        (DIGITS[0].reshape(-1, 8, 8), "x.reshape(len(x), -1)"),
        (DIGITS[0].astype(np.float64), "x.astype('float32')"),
        (DIGITS[0][:, :5], "one row of features"),
    ],
)
def test_samples_that_do_not_fit(samples, hint):
    estimator = estimator_of(linear_model.RidgeClassifier().fit(*DIGITS), "m")
    with pytest.raises(ConfigError, match="RidgeClassifier takes float32 of shape") as caught:
        estimator.answers(samples, "the data")
    assert hint in caught.value.hint


def test_names_of_classes_are_kept_where_they_are_not_their_numbers():
    x, y = CANCER
    named = estimator_of(naive_bayes.GaussianNB().fit(x, np.where(y, "benign", "malignant")), "m")
    assert named.labels == ("benign", "malignant")
    assert named.scores is ScoreKind.PROBABILITIES
    assert estimator_of(naive_bayes.GaussianNB().fit(x, y), "m").labels == ()
    assert estimator_of(naive_bayes.GaussianNB().fit(x, y + 3), "m").labels == ("3", "4")
