"""What a training step learns from: the user's samples, checked, and a part of them held out.

Decides which data fits a model, what is learnt of it (classes or reals), and which samples are held out to decide races:
one in seven, spread evenly over the classes or the values. Evaluation data never comes here, so that what a candidate
scores on it stays honest. How is learnt is the business of `training.py`; what counts as an error of an answer, of
`distill.py`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import BackendError, ConfigError

from ..dataset import TRAIN_X, TRAIN_Y, TRAINING_MIN
from ..quiet import quiet
from ..sources.torch_model import Array, TorchModel, ask
from .training import settled

HELD_OUT_EVERY: Final = 7
_PROBABILITY_ERROR: Final = 1e-3
_SEED: Final = 0

Reals = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int64] | Reals


class Goal(enum.Enum):
    """What a model's answers are, and so by what they are judged."""

    LOGITS = "logits"
    """One number a class, the largest wins."""
    PROBABILITIES = "probabilities"
    """One number a class, not negative, of sum 1: the model ends in a softmax."""
    REALS = "reals"
    """Numbers that should be near the targets."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """Samples [n, ...] in the model's input type, and what should be answered.

    `targets` are class numbers int64 [n], or float32 [n, ...] of the answers' shape; `taught` are the answers of the model
    before the step, float32 [n, ...], which distillation learns from.
    """

    samples: Array
    targets: Targets
    taught: Reals


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What is learnt from, what decides races, and what it is about.

    `has_labels` is false where the targets are the model's own answers, because the user gave none.
    """

    goal: Goal
    learnt: Lesson
    held_out: Lesson
    has_labels: bool


def prepare(model: TorchModel, samples: Array, targets: Array | None) -> TrainingData:
    """Check training data against the model that a step starts from, and hold a part out.

    Args:
        model: in evaluation mode; it answers all samples once.
        samples: train_x, [n, ...] as the model takes them.
        targets: train_y, integers [n] (classes) or floats [n] or [n, ...] (reals); None to learn the model's own answers.

    Raises:
        ConfigError: The data does not fit the model or itself.
        BackendError: The model is an exported program, which cannot be trained further.
    """
    check_trainable(model)
    _check_samples(samples)
    if targets is not None and len(targets) != len(samples):
        raise ConfigError(
            f"{TRAIN_Y} has {len(targets)} entries for {len(samples)} samples of {TRAIN_X}",
            hint=f"give one entry of {TRAIN_Y} for each sample",
        )
    with settled(_SEED):
        taught = ask(model, samples, TRAIN_X).astype(np.float32)
    goal, wanted = (Goal.REALS, taught) if targets is None else _read_targets(targets, taught)
    held = _held_out(wanted)
    learnt = np.setdiff1d(np.arange(len(samples)), held)
    parts = [Lesson(samples[rows], wanted[rows], taught[rows]) for rows in (learnt, held)]
    return TrainingData(goal, parts[0], parts[1], has_labels=targets is not None)


def check_trainable(model: TorchModel) -> None:
    """Refuse exported programs: their layers are fixed operators, and their batch norms are frozen.

    Raises:
        BackendError: The model is one.
    """
    with quiet():
        import torch
    if isinstance(model.module, torch.fx.GraphModule) or not model.batch_is_free:
        raise BackendError(
            "an exported program (.pt2) can be neither pruned nor trained: its layers are fixed operators",
            hint="give the model as file.py:factory, with its trained weights",
        )


def _check_samples(samples: Array) -> None:
    if len(samples) < TRAINING_MIN:
        raise ConfigError(
            f"{TRAIN_X} has {len(samples)} samples, training needs {TRAINING_MIN} or more",
            hint="give the data that the model was trained with, or leave training steps out",
        )
    if np.issubdtype(samples.dtype, np.floating) and not np.isfinite(samples).all():
        raise ConfigError(f"{TRAIN_X} holds NaN or infinity", hint="drop those samples, or fill them in")


def _read_targets(targets: Array, taught: Reals) -> tuple[Goal, Targets]:
    if np.issubdtype(targets.dtype, np.integer):
        return _read_classes(targets, taught)
    if not np.issubdtype(targets.dtype, np.floating):
        raise ConfigError(
            f"{TRAIN_Y} is of type {targets.dtype}", hint="classes are integers, values to predict are floats"
        )
    if not np.isfinite(targets).all():
        raise ConfigError(f"{TRAIN_Y} holds NaN or infinity", hint="drop those samples")
    if targets[0].size != taught[0].size:
        raise ConfigError(
            f"{TRAIN_Y} has {targets[0].size} values a sample, the model answers {taught[0].size}",
            hint=f"give {TRAIN_Y} in the shape of the model's answers, or class numbers as integers",
        )
    return Goal.REALS, targets.astype(np.float32).reshape(taught.shape)


def _read_classes(targets: Array, taught: Reals) -> tuple[Goal, Targets]:
    if targets.ndim != 1 or taught.ndim != 2:
        raise ConfigError(
            f"{TRAIN_Y} has classes of shape {list(targets.shape)}, the model's answers have shape {list(taught.shape)}",
            hint="classes are one integer a sample, for a model that answers one number a class",
        )
    low, high, classes = int(targets.min()), int(targets.max()), taught.shape[1]
    if low < 0 or high >= classes:
        raise ConfigError(
            f"{TRAIN_Y} holds labels from {low} to {high}, the model has {classes} classes",
            hint=f"labels are class numbers from 0 to {classes - 1}",
        )
    sums_to_one = np.abs(taught.sum(axis=1) - 1.0).max() < _PROBABILITY_ERROR
    goal = Goal.PROBABILITIES if sums_to_one and taught.min() >= 0.0 else Goal.LOGITS
    return goal, targets.astype(np.int64)


def _held_out(targets: Targets) -> npt.NDArray[np.intp]:
    """Take one sample in seven, evenly over classes or over the first value of the targets, whatever the file's order."""
    chance = np.random.default_rng(_SEED).permutation(len(targets))
    order = np.lexsort((chance, targets.reshape(len(targets), -1)[:, 0]))
    return np.sort(order[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY])
