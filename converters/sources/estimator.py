"""scikit-learn estimators and pipelines as sources: what their answers are.

Decides which estimators are taken, what of their several answers the bundle's one output is, and the names of classes:
- a classifier gives scores [samples, classes]: probabilities if it has them, else its decision function; where that is one
  number for two classes, the scores are that number's negative and itself. The label is left out: it is the highest score.
- a regressor gives its values [samples, values], an outlier detector its decision function [samples, 1].
How they become ONNX is the business of `estimator_onnx.py` and `estimator_torch.py`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import ConfigError
from edgeml.manifest import ScoreKind

from ..quiet import first_line, quiet
from .source import finite

Array = npt.NDArray[np.generic]

TRANSLATION_HINT: Final = "end the pipeline with another estimator, or take the step out that is named"


class Answering(enum.Enum):
    """What an estimator's answers are."""

    PROBABILITIES = "probabilities"
    DECISIONS = "decisions"
    VALUES = "values"


@dataclass(frozen=True, slots=True)
class Estimator:
    """A fitted estimator. `width` is the number of its features; `labels` are empty where classes are 0, 1, 2..."""

    fitted: Any
    answering: Answering
    width: int
    labels: tuple[str, ...]
    is_classifier: bool

    @property
    def name(self) -> str:
        """Its kind, for messages; of a pipeline, its last step's."""
        last = self.fitted.steps[-1][1] if hasattr(self.fitted, "steps") else self.fitted
        return type(last).__name__

    @property
    def scores(self) -> ScoreKind:
        """What its scores are to a bundle."""
        if not self.is_classifier:
            return ScoreKind.NONE
        return ScoreKind.PROBABILITIES if self.answering is Answering.PROBABILITIES else ScoreKind.LOGITS

    def answers(self, samples: Array, what: str) -> Array:
        """Return its answers, float32 [samples, classes or values].

        Raises:
            ConfigError: The samples do not fit, or an answer is NaN or infinite.
        """
        check_samples(self, samples, what)
        ask = {
            Answering.PROBABILITIES: "predict_proba",
            Answering.DECISIONS: "decision_function",
            Answering.VALUES: "predict",
        }
        with quiet():
            try:
                found = np.asarray(getattr(self.fitted, ask[self.answering])(samples))
            except Exception as error:  # its steps may be anybody's code
                raise ConfigError(
                    f"{self.name} refuses {what}: {first_line(error)}",
                    hint="give samples as it was fitted with, as float32",
                ) from error
        if found.ndim == 1:
            binary = self.is_classifier and self.answering is Answering.DECISIONS
            found = np.stack([-found, found], axis=1) if binary else found[:, None]
        return finite(found.astype(np.float32), what)


def is_estimator(found: Any) -> bool:
    """Tell whether something is of scikit-learn's kind, without importing it."""
    return any(
        one.__name__ == "BaseEstimator" and one.__module__.startswith("sklearn.")
        for one in type(found).__mro__
    )


def estimator_of(found: Any, what: str) -> Estimator:
    """Take a fitted estimator.

    Raises:
        ConfigError: It is not fitted, or of a kind that no bundle serves.
    """
    from sklearn.base import is_classifier, is_outlier_detector, is_regressor
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    kind = type(found).__name__
    with quiet():
        try:
            check_is_fitted(found)
        except (NotFittedError, TypeError) as error:
            raise ConfigError(
                f"{what} is a {kind} that is not fitted", hint="call its fit() first"
            ) from error
    classifies = bool(is_classifier(found))
    if not (classifies or is_regressor(found) or is_outlier_detector(found)):
        raise ConfigError(
            f"{what} is a {kind}: neither classifier, regressor nor outlier detector",
            hint="end the pipeline with one of those",
        )
    width = getattr(found, "n_features_in_", 0)
    if not width:
        raise ConfigError(
            f"{what} does not say how many features it takes",
            hint="fit it on one array of numbers [samples, features]",
        )
    labels: tuple[str, ...] = ()
    if classifies:
        classes = found.classes_
        if isinstance(classes, list):
            raise ConfigError(
                f"{what} answers {len(classes)} questions at once", hint="give one classifier for each"
            )
        labels = () if list(classes) == list(range(len(classes))) else tuple(str(one) for one in classes)
    return Estimator(found, _answering(found, classifies), int(width), labels, classifies)


def _answering(found: Any, classifies: bool) -> Answering:
    from sklearn.base import is_outlier_detector

    if classifies and hasattr(found, "predict_proba"):
        return Answering.PROBABILITIES
    return Answering.DECISIONS if classifies or is_outlier_detector(found) else Answering.VALUES


def check_samples(estimator: Estimator, samples: Array, what: str) -> None:
    """Refuse samples that are no float32 rows of features.

    Raises:
        ConfigError: They are not.
    """
    if samples.dtype == np.float32 and samples.shape[1:] == (estimator.width,):
        return
    flat = samples.ndim > 2 and int(np.prod(samples.shape[1:])) == estimator.width
    raise ConfigError(
        f"{what} has {samples.dtype} samples of shape {list(samples.shape[1:])}, {estimator.name} takes float32 of shape [{estimator.width}]",
        hint="give x.reshape(len(x), -1)"
        if flat
        else "give x.astype('float32'), one row of features per sample",
    )
