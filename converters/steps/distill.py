"""Plain training raced against distillation, on the same budget and seed; the better one is kept.

Decides both losses, how a result is scored on what was held out, and who wins. Distillation learns from the answers of the
model before the step, beside the labels (Hinton, Vinyals, Dean 2015). It is no free win on short schedules, hence the race.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..sources.torch_model import Array
from .training import Objective, Progress, Schedule, no_progress, part, settled, train
from .training_data import Goal, Lesson, Reals, TrainingData

TEMPERATURE: Final = 4.0
ALPHA: Final = 0.5
"""Weight of the teacher's answers; the labels have the rest."""
_TINY: Final = 1e-7
_BATCH: Final = 256


class Teaching(enum.Enum):
    """What a contestant learns from."""

    PLAIN = "plain"
    """The labels."""
    DISTILLED = "distilled"
    """The labels and the answers of the model before the step."""


@dataclass(frozen=True, slots=True)
class Score:
    """How good answers to the held-out samples are: accuracy for classes, the coefficient of determination for reals.

    `loss` is the plain one; it decides where `value` is equal.
    """

    value: float
    loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """What the better one has more of; NaN would be neither more nor less, so what has one is the worst.

        >>> Score(0.9, 0.3).rank > Score(0.9, 0.4).rank > Score(0.95, float("nan")).rank
        True
        """
        if not (math.isfinite(self.value) and math.isfinite(self.loss)):
            return -math.inf, -math.inf
        return self.value, -self.loss


@dataclass(frozen=True, slots=True)
class Run:
    """One contestant."""

    teaching: Teaching
    score: Score


@dataclass(frozen=True, slots=True)
class Race:
    """What a training step tried on the same budget and seed, scored on held-out training data, and what was kept.

    Without labels there is one run, `DISTILLED`: the model's own answers are all there is to learn from.
    """

    runs: tuple[Run, ...]
    kept: Teaching
    held_out: int
    """How many samples decided it."""


def race(
    contestant: Callable[[], Any], data: TrainingData, schedule: Schedule, on_progress: Progress = no_progress
) -> tuple[Any, Race]:
    """Train two equal modules, one plainly and one by distillation, and keep the better.

    Args:
        contestant: makes a module to be trained; each call gives an equal one.
        data: what is learnt from and what decides.
        schedule: the same for both.
        on_progress: hears the fraction done.

    Returns:
        The better module, in evaluation mode, and what happened. At equal scores the plain one.

    Raises:
        BackendError: A module cannot be trained.
    """
    teachings = tuple(Teaching) if data.has_labels else (Teaching.DISTILLED,)
    modules: dict[Teaching, Any] = {}
    runs: list[Run] = []
    for position, teaching in enumerate(teachings):
        module = contestant()
        share = 1 / len(teachings)
        train(
            module,
            data.learnt.samples,
            objective(data, teaching),
            schedule,
            part(on_progress, position * share, share),
        )
        modules[teaching] = module
        runs.append(Run(teaching, score(module, data)))
    winner = max(runs, key=lambda run: run.score.rank)
    return modules[winner.teaching], Race(tuple(runs), winner.teaching, len(data.held_out.samples))


def objective(data: TrainingData, teaching: Teaching) -> Objective:
    """Make the loss of a contestant over the samples that are learnt from.

    Plain: cross-entropy for classes, mean squared error for reals. Distilled:
    (1 - alpha) plain + alpha T^2 KL(softmax(teacher / T), softmax(student / T)) for classes; for reals the second term is the
    mean squared distance from the teacher.
    """
    import torch

    targets = torch.from_numpy(data.learnt.targets)
    if teaching is Teaching.PLAIN:
        return lambda answers, rows: plain_loss(answers, targets[rows], data.goal)
    taught = torch.from_numpy(data.learnt.taught)

    def distilled(answers: Any, rows: Any) -> Any:
        plain = plain_loss(answers, targets[rows], data.goal)
        return (1 - ALPHA) * plain + ALPHA * distance(answers, taught[rows], data.goal)

    return distilled


def plain_loss(answers: Any, targets: Any, goal: Goal) -> Any:
    """Return the loss of answers [n, ...] against targets: a scalar tensor."""
    from torch.nn import functional

    if goal is Goal.REALS:
        return functional.mse_loss(answers, targets)
    return functional.cross_entropy(_logits(answers, goal), targets)


def distance(answers: Any, taught: Any, goal: Goal) -> Any:
    """Return how far answers [n, ...] are from a teacher's: a scalar tensor, 0 if they are equal."""
    from torch.nn import functional

    if goal is Goal.REALS:
        return functional.mse_loss(answers, taught)
    student, teacher = (
        functional.log_softmax(_logits(one, goal) / TEMPERATURE, dim=1) for one in (answers, taught)
    )
    return TEMPERATURE**2 * functional.kl_div(student, teacher, reduction="batchmean", log_target=True)


def score(module: Any, data: TrainingData) -> Score:
    """Score a module in evaluation mode on the held-out samples."""
    import torch

    with settled(0), torch.no_grad():
        answers = torch.cat([module(torch.from_numpy(piece)) for piece in _pieces(data.held_out.samples)])
        targets = torch.from_numpy(data.held_out.targets)
        loss = float(plain_loss(answers, targets, data.goal))
    return Score(_value(answers.numpy(), data.held_out, data.goal), loss)


def _value(answers: Reals, held_out: Lesson, goal: Goal) -> float:
    if goal is not Goal.REALS:
        return float((answers.argmax(axis=1) == held_out.targets).mean())
    wanted = held_out.targets.astype(np.float64)
    spread = float(((wanted - wanted.mean(axis=0)) ** 2).mean())
    error = float(((answers - wanted) ** 2).mean())
    return 1.0 - error / max(spread, _TINY)


def _logits(answers: Any, goal: Goal) -> Any:
    return answers.clamp_min(_TINY).log() if goal is Goal.PROBABILITIES else answers


def _pieces(samples: Array) -> list[Array]:
    return [np.ascontiguousarray(samples[start : start + _BATCH]) for start in range(0, len(samples), _BATCH)]
