"""A student: a smaller network from the user's own file, trained plainly and by distillation; the better one is kept.

Decides that the student must take the same samples and answer in the same shape as the model it learns from. How it is
loaded is the business of `sources/torch_model.py`, how it is raced of `distill.py`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from edgeml.errors import ConfigError

from ..dataset import TRAIN_X
from ..recipe import Student
from ..sources.torch_model import TorchModel, ask, load_source, parse_source
from .cost import Cost, cost
from .distill import Race, race
from .training import Progress, Schedule, no_progress, settled
from .training_data import TrainingData, check_trainable


@dataclass(frozen=True, slots=True)
class Taught:
    """A trained student, what the teacher and the student cost, and how it was trained.

    `model.sha256` is of the student's own file.
    """

    model: TorchModel
    before: Cost
    after: Cost
    race: Race


def load_student(step: Student) -> TorchModel:
    """Load what a student's factory makes under the step's seed.

    Raises:
        ConfigError: It cannot be loaded.
        BackendError: It cannot be trained.
    """
    name = parse_source(step.factory)
    if not name.factory:
        raise ConfigError(
            f"{step.factory} is an exported program, which cannot be trained",
            hint="name the student as file.py:factory",
        )
    with settled(step.seed):
        student = load_source(name)
        check_trainable(student)
    return student


def teach(
    model: TorchModel, step: Student, data: TrainingData, on_progress: Progress = no_progress
) -> Taught:
    """Load a student and train it; its first weights are those of its factory under the step's seed.

    Args:
        model: the teacher, in evaluation mode; it is not changed.
        step: which student and how long is trained.
        data: from `training_data.prepare` with the teacher.
        on_progress: hears the fraction done.

    Raises:
        ConfigError: The student cannot be loaded, or does not answer as the teacher does.
        BackendError: It cannot be trained.
    """
    student = load_student(step)
    answers = ask(student, data.learnt.samples[:2], TRAIN_X)
    wanted = data.learnt.taught.shape[1:]
    if answers.shape[1:] != wanted:
        raise ConfigError(
            f"the student {parse_source(step.factory).text} answers in shape {list(answers.shape[1:])}, its teacher in {list(wanted)}",
            hint="give it as many outputs as the model has",
        )
    before, after = (cost(each, data.learnt.samples[:1]) for each in (model.module, student.module))
    schedule = Schedule(step.epochs, step.learning_rate, step.seed)
    trained, outcome = race(lambda: copy.deepcopy(student.module), data, schedule, on_progress)
    return Taught(replace(student, module=trained), before, after, outcome)
