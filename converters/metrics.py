"""What a model is scored by.

Decides two metrics. With labels: accuracy, and agreement is having the same highest class. Without: agreement alone,
which is answering within a small part of the original answers' range. Pure arithmetic on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import ConfigError
from edgeml.golden import TOLERANCE_FRACTION
from edgeml.manifest import ScoreKind

Array = npt.NDArray[np.generic]
Labels = npt.NDArray[np.int64]

ACCURACY: Final = "accuracy"
AGREEMENT: Final = "agreement"
_SUM_TOLERANCE: Final = 0.02


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value and the agreement with the original answers, fractions of 1."""

    value: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Judge:
    """Scores answers against the original ones [samples, ...] and, if there are any, labels [samples]."""

    original: Array
    labels: Labels | None

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return AGREEMENT if self.labels is None else ACCURACY

    @property
    def baseline(self) -> float:
        """What the original answers score."""
        return self.score(self.original).value

    def score(self, answers: Array) -> Score:
        """Score answers to the same samples."""
        if self.labels is not None:
            classes = classes_of(answers)
            return Score(
                float((classes == self.labels).mean()), float((classes == classes_of(self.original)).mean())
            )
        original = self.original.reshape(len(self.original), -1).astype(np.float64)
        span = float(original.max() - original.min()) or 1.0
        off = np.abs(answers.reshape(len(answers), -1).astype(np.float64) - original).max(axis=1)
        share = float((off <= TOLERANCE_FRACTION * span).mean())
        return Score(share, share)


def classes_of(scores: Array) -> npt.NDArray[np.intp]:
    """Index of the highest score per sample."""
    result: npt.NDArray[np.intp] = scores.reshape(len(scores), -1).argmax(axis=1)
    return result


def check_scores(scores: npt.NDArray[np.floating], kind: ScoreKind) -> None:
    """Refuse scores [samples, classes] that are not what they are said to be: confidence would be wrong for ever.

    Raises:
        ConfigError: Called probabilities and are none, or called logits and are probabilities.
    """
    sums = scores.sum(axis=1)
    within = bool(((scores >= -_SUM_TOLERANCE) & (scores <= 1 + _SUM_TOLERANCE)).all())
    look_alike = within and bool((np.abs(sums - 1) <= _SUM_TOLERANCE).all())
    if kind is ScoreKind.PROBABILITIES and not look_alike:
        raise ConfigError(
            f"the model's scores are no probabilities: those of one sample sum to {sums[np.abs(sums - 1).argmax()]:.3g}",
            hint="leave --scores at logits, or end the model with a softmax",
        )
    if kind is ScoreKind.LOGITS and look_alike and scores.shape[1] > 1:
        raise ConfigError("the model's scores are probabilities already", hint="say --scores probabilities")
