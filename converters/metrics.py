"""What a model is scored by.

Decides the metrics and which is taken where none is named: accuracy where there are classes, the mean absolute error
where there are numbers to answer, else agreement with the model that it came from. Agreement is always told as well: having
the same highest class, or answering within a small part of the original answers' range. Whether a score is enough is
`select.py`'s business.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from edgeml.errors import ConfigError
from edgeml.golden import TOLERANCE_FRACTION
from edgeml.manifest import ScoreKind

from .dataset import Labels, Targets
from .quiet import first_line
from .user_code import call_user, module_of

Array = npt.NDArray[np.generic]

ACCURACY: Final = "accuracy"
AGREEMENT: Final = "agreement"
CLASSES_SHOWN: Final = 8
_SUM_TOLERANCE: Final = 0.02


class Direction(enum.Enum):
    """Which way a metric gets better."""

    HIGHER = "higher is better"
    LOWER = "lower is better"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What there is to be scored against: samples [samples, ...], and their truth (classes, or numbers) if it is known."""

    samples: Array
    truth: Labels | Targets | None


class Metric(Protocol):
    """Scores answers; `name` is told to people."""

    @property
    def name(self) -> str:
        """How it is called."""
        ...

    @property
    def direction(self) -> Direction:
        """Which way is better."""
        ...

    def value(self, answers: Array, evaluation: Evaluation) -> float:
        """Score answers, reals [samples, ...].

        Raises:
            ConfigError: The truth is not what this metric needs.
        """
        ...


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The fraction of samples whose highest score is at their class."""

    name: str = ACCURACY
    direction: Direction = Direction.HIGHER

    def value(self, answers: Array, evaluation: Evaluation) -> float:
        """Score answers [samples, classes]."""
        return float((classes_of(answers) == _classes(evaluation, self.name)).mean())


@dataclass(frozen=True, slots=True)
class AreaUnderCurve:
    """The area under the ROC curve of a detector whose classes are 0 and 1.

    The score is the answer itself where there is one a sample, and the second score less the first where there are two.
    """

    name: str = "AUC"
    direction: Direction = Direction.HIGHER

    def value(self, answers: Array, evaluation: Evaluation) -> float:
        """Score answers [samples], [samples, 1] or [samples, 2]."""
        labels = _classes(evaluation, self.name)
        found = np.unique(labels).tolist()
        if found != [0, 1]:
            shown = ", ".join(map(str, found[:CLASSES_SHOWN])) + (
                ", ..." if len(found) > CLASSES_SHOWN else ""
            )
            raise ConfigError(
                f"AUC needs the classes 0 and 1, both; evaluation_y holds [{shown}]",
                hint="give labels of a detector, or use another --metric",
            )
        return area_under_curve(_detection(answers), labels)


@dataclass(frozen=True, slots=True)
class MeanAbsoluteError:
    """The mean distance between answers and what was to be answered."""

    name: str = "MAE"
    direction: Direction = Direction.LOWER

    def value(self, answers: Array, evaluation: Evaluation) -> float:
        """Score answers [samples, ...] against numbers of as many elements."""
        if evaluation.truth is None:
            raise ConfigError(
                f"{self.name} needs evaluation_y", hint="give what is to be answered, as floats"
            )
        truth = evaluation.truth.reshape(len(evaluation.truth), -1).astype(np.float64)
        flat = answers.reshape(len(answers), -1).astype(np.float64)
        if flat.shape != truth.shape:
            look_like_classes = truth.shape[1] == 1 and bool((truth == np.rint(truth)).all())
            raise ConfigError(
                f"the model answers {flat.shape[1]} numbers a sample, evaluation_y has {truth.shape[1]}",
                hint="if these are classes, save class numbers as integers: evaluation_y.astype('int64')"
                if look_like_classes
                else "give as many as the model answers",
            )
        return float(np.abs(flat - truth).mean())


@dataclass(frozen=True, slots=True)
class Agreement:
    """The fraction of samples on which the original model's answer is given."""

    original: Array
    name: str = AGREEMENT
    direction: Direction = Direction.HIGHER

    def value(self, answers: Array, evaluation: Evaluation) -> float:  # noqa: ARG002  # the port's
        """Score answers of the original's shape."""
        return close_fraction(answers, self.original)


@dataclass(frozen=True, slots=True)
class OwnMetric:
    """A function of the user's: `function(answers, truth, samples) -> float`; higher is better."""

    function: Callable[[Array, Any, Array], Any]
    name: str
    direction: Direction = Direction.HIGHER

    def value(self, answers: Array, evaluation: Evaluation) -> float:
        """Ask the user's function. Answers of as many numbers as the truth come in its shape: [n, 1] less [n] is [n, n]."""
        truth, samples = evaluation.truth, evaluation.samples
        if truth is None:
            # Most functions would compare with None, which is a score of 0 for every candidate.
            raise ConfigError(
                f"{self.name} needs evaluation_y",
                hint="give classes or what is to be answered; of a network that rebuilds its samples, these are the truth",
            )
        if truth.size == answers.size:
            answers = answers.reshape(truth.shape)
        shapes = {"answers": answers, "truth": truth, "samples": samples}
        passed = ", ".join(f"{name} {list(array.shape)}" for name, array in shapes.items())
        given = call_user(lambda: self.function(answers, truth, samples), f"{self.name}, given {passed},")
        try:
            value = float(given)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{self.name} returned {first_line(error)}", hint="it must return one number"
            ) from error
        if not np.isfinite(value):
            raise ConfigError(f"{self.name} returned {value}", hint="it must return a finite number")
        return value


NAMED: Final[dict[str, type[Accuracy | AreaUnderCurve | MeanAbsoluteError]]] = {
    "accuracy": Accuracy, "auc": AreaUnderCurve, "mae": MeanAbsoluteError,
}  # fmt: skip


def parse_metric(text: str) -> Metric | None:
    """Find a metric by `accuracy`, `auc`, `mae` or `file.py:function`; None for nothing: it depends on the data.

    Raises:
        ConfigError: Neither a name nor a function of three arguments.
    """
    if not text:
        return None
    if text in NAMED:
        return NAMED[text]()
    file, _, function = text.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise ConfigError(
            f"unknown metric {text!r}",
            hint=f"{', '.join(NAMED)}, or file.py:function(answers, truth, samples)",
        )
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"no file {path}", hint="check the path")
    with module_of(path) as module:
        found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(
            f"{path.name} has no function {function}", hint="it is called with (answers, truth, samples)"
        )
    try:
        inspect.signature(found).bind("answers", "truth", "samples")
    except TypeError as error:
        raise ConfigError(
            f"{path.name}:{function} takes other arguments: {error}",
            hint="it is called with (answers, truth, samples)",
        ) from error
    except ValueError:
        pass  # What is written in C may not say what it takes; calling it tells.
    return OwnMetric(found, f"{path.name}:{function}")


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value, and the agreement with the original answers as a fraction of 1."""

    value: float
    agreement: float


@dataclass(frozen=True, slots=True)
class Judge:
    """Scores answers against the truth, and against the original ones [samples, ...]."""

    metric: Metric
    original: Array
    evaluation: Evaluation

    @property
    def baseline(self) -> float:
        """What the original answers score."""
        return self.metric.value(self.original, self.evaluation)

    def score(self, answers: Array) -> Score:
        """Score real answers to the same samples."""
        return Score(self.metric.value(answers, self.evaluation), self.agreement(answers))

    def worth(self, answers: Array) -> Score:
        """Score a file's answers, of any shape with as many elements, by a value of which more is always better."""
        score = self.score(answers.reshape(self.original.shape))
        return score if self.metric.direction is Direction.HIGHER else Score(-score.value, score.agreement)

    def of_rows(self, rows: npt.NDArray[np.int64]) -> Judge:
        """Return the judge of some of the samples alone; of one class there is no area, and agreement tells as much."""
        truth = None if self.evaluation.truth is None else self.evaluation.truth[rows]
        original = self.original[rows]
        lacks_a_class = isinstance(self.metric, AreaUnderCurve) and (
            truth is None or len(np.unique(truth)) < 2
        )
        metric = Agreement(original) if lacks_a_class or isinstance(self.metric, Agreement) else self.metric
        return Judge(metric, original, Evaluation(self.evaluation.samples[rows], truth))

    def agreement(self, answers: Array) -> float:
        """The fraction of samples with the same answer."""
        truth = self.evaluation.truth
        if truth is not None and truth.dtype.kind == "i" and answers.reshape(len(answers), -1).shape[1] > 1:
            return float((classes_of(answers) == classes_of(self.original)).mean())
        return close_fraction(answers, self.original)


def judge_of(metric: Metric | None, original: Array, evaluation: Evaluation) -> Judge:
    """Take the metric that was asked for, or the one that the truth suggests.

    Raises:
        ConfigError: The truth looks like classes in another form: taken for numbers, it would judge by another measure.
    """
    if metric is None:
        _refuse_one_hot(evaluation.truth)
        if evaluation.truth is None:
            metric = Agreement(original)
        elif evaluation.truth.dtype.kind == "i":
            metric = Accuracy()
        else:
            metric = MeanAbsoluteError()
    return Judge(metric, original, evaluation)


def _refuse_one_hot(truth: Labels | Targets | None) -> None:
    if truth is None or truth.ndim != 2 or truth.shape[1] < 2:
        return
    if np.isin(truth, (0, 1)).all() and (truth.sum(axis=1) == 1).all():
        raise ConfigError(
            f"evaluation_y has a 1 for one of {truth.shape[1]} and zeros in each row, as classes are written one-hot",
            hint="save class numbers, evaluation_y.argmax(axis=1), or name --metric mae if the zeros and ones are to be answered",
        )


def area_under_curve(scores: npt.NDArray[np.floating], labels: Labels) -> float:
    """Area under the ROC curve of scores [samples] for labels 0 and 1, ties counted half.

    >>> area_under_curve(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
    0.75
    """
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def close_fraction(answers: Array, original: Array) -> float:
    """The fraction of samples whose every answer is within a small part of the original answers' range."""
    wanted = original.reshape(len(original), -1).astype(np.float64)
    span = float(wanted.max() - wanted.min()) or 1.0
    off = np.abs(answers.reshape(len(answers), -1).astype(np.float64) - wanted).max(axis=1)
    return float((off <= TOLERANCE_FRACTION * span).mean())


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


def _classes(evaluation: Evaluation, name: str) -> Labels:
    if evaluation.truth is None or evaluation.truth.dtype.kind != "i":
        raise ConfigError(
            f"{name} needs classes in evaluation_y",
            hint="give class numbers as integers, or use --metric mae",
        )
    return evaluation.truth.astype(np.int64)


def _detection(answers: Array) -> npt.NDArray[np.float64]:
    flat = answers.reshape(len(answers), -1).astype(np.float64)
    if flat.shape[1] == 1:
        return flat[:, 0]
    if flat.shape[1] == 2:
        margin: npt.NDArray[np.float64] = flat[:, 1] - flat[:, 0]
        return margin
    raise ConfigError(
        f"AUC needs one or two scores a sample, the model answers {flat.shape[1]}",
        hint="use --metric accuracy, or your own: --metric file.py:function",
    )
