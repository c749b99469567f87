"""Distillation: the losses are those of the paper, the better of two runs is kept, students come from the user's file."""

import textwrap

import numpy as np
import pytest

from converters.recipe import Student
from converters.sources.torch_model import TorchModel
from converters.steps import distill
from converters.steps.distill import ALPHA, TEMPERATURE, Score, Teaching, distance, objective, race, score
from converters.steps.student import teach
from converters.steps.training import Schedule
from converters.steps.training_data import Goal, prepare
from edgeml.errors import ConfigError
from edgeml.ids import digest_of

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def images():
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images[:600] / 16).astype(np.float32), data.target[:600].astype(np.int64)


@pytest.fixture(scope="module")
def teacher(images):
    """A linear classifier, fitted."""
    import torch
    from sklearn.linear_model import LogisticRegression

    x, y = images
    fitted = LogisticRegression(max_iter=300).fit(x.reshape(len(x), -1), y)
    layer = torch.nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fitted.coef_))
        layer.bias.copy_(torch.from_numpy(fitted.intercept_))
    return TorchModel(
        torch.nn.Sequential(torch.nn.Flatten(), layer).eval(), batch_is_free=True, sha256=digest_of(b"")
    )


def softmax(z):
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_the_loss_is_the_papers():
    import torch

    generator = np.random.default_rng(0)
    student, taught = generator.normal(size=(2, 5, 3)) * 3
    p, q = softmax(taught / TEMPERATURE), softmax(student / TEMPERATURE)
    by_hand = TEMPERATURE**2 * (p * (np.log(p) - np.log(q))).sum(axis=1).mean()
    assert float(distance(torch.from_numpy(student), torch.from_numpy(taught), Goal.LOGITS)) == pytest.approx(
        by_hand
    )
    probabilities = [torch.from_numpy(softmax(one)) for one in (student, taught)]
    assert float(distance(*probabilities, Goal.PROBABILITIES)) == pytest.approx(by_hand, rel=1e-4)
    assert float(distance(torch.from_numpy(taught), torch.from_numpy(taught), Goal.LOGITS)) == pytest.approx(
        0, abs=1e-9
    )
    assert float(distance(torch.from_numpy(student), torch.from_numpy(taught), Goal.REALS)) == pytest.approx(
        ((student - taught) ** 2).mean()
    )


def test_labels_and_teacher_are_mixed_by_alpha(images, teacher):
    import torch

    data = prepare(teacher, *images)
    rows = torch.arange(20)
    answers = torch.from_numpy(data.learnt.taught[::-1][:20].copy())
    plain = objective(data, Teaching.PLAIN)(answers, rows)
    distilled = objective(data, Teaching.DISTILLED)(answers, rows)
    far = distance(answers, torch.from_numpy(data.learnt.taught[:20]), data.goal)
    assert float(distilled) == pytest.approx(float((1 - ALPHA) * plain + ALPHA * far), rel=1e-5)


def test_the_score_of_reals_is_the_coefficient_of_determination(images, teacher):
    import torch
    from sklearn.metrics import r2_score

    x, y = images
    data = prepare(teacher, x, np.eye(10, dtype=np.float32)[y])
    with torch.no_grad():
        answers = teacher.module(torch.from_numpy(data.held_out.samples)).numpy()
    expected = r2_score(data.held_out.targets, answers, multioutput="variance_weighted")
    assert score(teacher.module, data).value == pytest.approx(expected, rel=1e-4)


def test_the_better_run_is_kept_and_both_are_recorded(images, teacher):
    import torch

    def contestant():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    data = prepare(teacher, *images)
    module, outcome = race(contestant, data, Schedule(8, 1e-2, 0))
    scores = {run.teaching: run.score for run in outcome.runs}
    assert set(scores) == set(Teaching)
    assert scores[Teaching.PLAIN] != scores[Teaching.DISTILLED]
    best = max(scores.values(), key=lambda one: (one.value, -one.loss))
    assert scores[outcome.kept] == best == score(module, data)
    assert best.value > 0.7
    assert outcome.held_out == len(data.held_out.samples)


@pytest.mark.parametrize("broken", [(np.nan, np.nan), (np.nan, 0.1), (0.99, np.nan), (np.inf, 0.1)])
@pytest.mark.parametrize("at", [0, 1])
def test_a_run_that_came_to_no_number_never_wins(images, teacher, monkeypatch, broken, at):
    import torch

    scores = [Score(0.97, 0.2)]
    scores.insert(at, Score(*broken))
    monkeypatch.setattr(distill, "score", lambda *_: scores[len(given) - 1])
    given = []

    def contestant():
        given.append(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
        return given[-1]

    module, outcome = race(contestant, prepare(teacher, *images), Schedule(1, 1e-2, 0))
    assert module is given[1 - at]
    assert outcome.kept is list(Teaching)[1 - at]


def test_without_labels_the_model_itself_is_the_only_teacher(images, teacher):
    import torch

    data = prepare(teacher, images[0], None)
    _, outcome = race(
        lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), data, Schedule(1, 1e-2, 0)
    )
    assert [run.teaching for run in outcome.runs] == [Teaching.DISTILLED] == [outcome.kept]


STUDENT = textwrap.dedent(
    """
    from torch import nn

    def small():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))

    def other():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    """
)


def test_a_student_is_trained_from_the_users_file(tmp_path, images, teacher):
    (tmp_path / "mine.py").write_text(STUDENT)
    data = prepare(teacher, *images)
    step = Student(f"{tmp_path}/mine.py:small", epochs=15, learning_rate=2e-2)
    one, again = teach(teacher, step, data), teach(teacher, step, data)
    assert one.race == again.race
    assert (one.before.parameters, one.after.parameters) == (650, 64 * 6 + 6 + 60 + 10)
    assert max(run.score.value for run in one.race.runs) > 0.75
    assert score(one.model.module, data) == next(
        run.score for run in one.race.runs if run.teaching is one.race.kept
    )
    assert one.model.sha256 == digest_of(STUDENT.encode())


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("mine.py:other", r"answers in shape \[3\], its teacher in \[10\]"),
        ("mine.py:nobody", "no function"),
        ("none.py:small", "no file"),
    ],
)
def test_a_student_that_does_not_fit_is_refused(tmp_path, images, teacher, factory, words):
    (tmp_path / "mine.py").write_text(STUDENT)
    with pytest.raises(ConfigError, match=words):
        teach(teacher, Student(f"{tmp_path}/{factory}"), prepare(teacher, *images))
