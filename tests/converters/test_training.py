"""The training loop and its data: the same bytes each time, nothing of the caller's changed, unfit data refused."""

import io

import numpy as np
import pytest

from converters.sources.torch_model import TorchModel
from converters.steps.distill import Teaching, objective, race
from converters.steps.training import Schedule, settled, train
from converters.steps.training_data import Goal, prepare
from edgeml.errors import BackendError, ConfigError
from edgeml.ids import digest_of

pytestmark = pytest.mark.torch

SCHEDULE = Schedule(epochs=2, learning_rate=3e-3, seed=1)


def model_of(module):
    return TorchModel(module.eval(), batch_is_free=True, sha256=digest_of(b""))


def net(last=None):
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = [
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(16, 10),
    ]
    return nn.Sequential(*layers, *([last] if last is not None else []))


def digits(count=300):
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images[:count, None] / 16).astype(np.float32), data.target[:count].astype(np.int64)


def weights(module):
    import torch

    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    return file.getvalue()


def trained(data, progress=lambda _fraction: None, module=None):
    module = module or net()
    train(module, data.learnt.samples, objective(data, Teaching.DISTILLED), SCHEDULE, progress)
    return weights(module)


def test_the_same_inputs_give_the_same_bytes_whatever_the_caller_has_set():
    import torch

    x, y = digits()
    one = trained(prepare(model_of(net()), x, y))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.manual_seed(99)
    try:
        other = trained(prepare(model_of(net()), x, y))
    finally:
        torch.set_num_threads(threads)
    assert one == other
    assert one != weights(net())


def test_ctrl_c_leaves_the_callers_chance_threads_and_settings_as_they_were():
    import torch

    x, y = digits()
    data = prepare(model_of(net()), x, y)
    module = net()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()

    def interrupt(_fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(data, interrupt, module)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert torch.equal(torch.rand(3), expected)
    assert not module.training


def test_progress_rises_to_one_over_a_whole_race():
    x, y = digits()
    seen = []
    race(net, prepare(model_of(net()), x, y), SCHEDULE, seen.append)
    assert seen == sorted(seen)
    assert len(seen) == 2 * 2 * (len(prepare(model_of(net()), x, y).learnt.samples) // 64)
    assert seen[-1] == pytest.approx(1.0)


def test_the_held_out_part_has_every_class_and_nothing_that_is_learnt():
    x, y = digits()
    order = np.argsort(y, kind="stable")
    data = prepare(model_of(net()), x[order], y[order])
    assert len(data.learnt.samples) + len(data.held_out.samples) == len(x)
    assert {one.tobytes() for one in data.learnt.samples}.isdisjoint(
        one.tobytes() for one in data.held_out.samples
    )
    counts = np.bincount(data.held_out.targets, minlength=10)
    assert counts.min() >= 3
    assert counts.max() <= 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x[:20], y[:20]), "20 samples, training needs 64"),
        (lambda x, y: (x * np.float32(np.nan), y), "train_x holds NaN"),
        (lambda x, y: (x, y[:-1]), "299 entries for 300 samples"),
        (lambda x, y: (x, y + 1), "labels from 1 to 10, the model has 10 classes"),
        (lambda x, y: (x, y - 1), "labels from -1 to 8"),
        (lambda x, y: (x, y[:, None]), "classes of shape"),
        (lambda x, y: (x, y.astype(np.float32)), "1 values a sample, the model answers 10"),
        (lambda x, y: (x, np.full((len(y), 10), np.nan, np.float32)), "train_y holds NaN"),
        (lambda x, y: (x, y.astype(str)), "is of type"),
        (lambda x, y: (x[..., :5], y), "which the model refuses"),
    ],
)
def test_data_that_does_not_fit_is_refused(change, words):
    with pytest.raises(ConfigError, match=words) as caught:
        prepare(model_of(net()), *change(*digits()))
    assert caught.value.hint


def test_what_is_learnt_is_read_off_the_targets_and_the_answers():
    from torch import nn

    x, y = digits()
    assert prepare(model_of(net()), x, y).goal is Goal.LOGITS
    assert prepare(model_of(net(nn.Softmax(dim=1))), x, y).goal is Goal.PROBABILITIES
    assert prepare(model_of(net()), x, np.eye(10)[y]).goal is Goal.REALS
    unlabelled = prepare(model_of(net()), x, None)
    assert (unlabelled.goal, unlabelled.has_labels) == (Goal.REALS, False)


def test_one_value_a_sample_may_be_a_column_or_a_row():
    from torch import nn

    x, y = digits()
    regressor = model_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)))
    for targets in (y.astype(np.float64), y.astype(np.float32)[:, None]):
        data = prepare(regressor, x, targets)
        assert data.learnt.targets.shape == data.learnt.taught.shape
        assert data.learnt.targets.dtype == np.float32


def test_a_loss_that_is_no_number_is_told_with_a_hint():
    x, y = digits()
    data = prepare(model_of(net()), x, y)
    with pytest.raises(BackendError, match="no longer a finite number in epoch 1 of 2") as caught:
        train(net(), data.learnt.samples * np.float32(3e38), objective(data, Teaching.PLAIN), SCHEDULE)
    assert "scale train_x" in caught.value.hint


def test_a_model_without_trainable_parameters_is_told():
    x, y = digits()
    data = prepare(model_of(net()), x, y)
    frozen = net()
    for one in frozen.parameters():
        one.requires_grad_(False)
    with pytest.raises(BackendError, match="no parameters that can be trained"):
        train(frozen, data.learnt.samples, objective(data, Teaching.PLAIN), SCHEDULE)


def test_a_network_that_views_its_images_trains_although_channels_last_would_forbid_it():
    import torch
    from torch import nn

    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Linear(64, 10)

        def forward(self, x):
            return self.fc(self.conv(x).view(x.shape[0], 64))

    x, y = digits()
    torch.manual_seed(0)
    module = Viewing()
    data = prepare(model_of(module), x, y)
    before = weights(module)
    train(module, data.learnt.samples, objective(data, Teaching.PLAIN), SCHEDULE)
    assert weights(module) != before


def test_an_exported_program_is_not_trained():
    import torch

    x, y = digits()
    program = torch.export.export(
        net().eval(), (torch.from_numpy(x[:2]),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    with pytest.raises(BackendError, match="exported program") as caught:
        prepare(TorchModel(program.module(), batch_is_free=True, sha256=digest_of(b"")), x, y)
    assert "file.py:factory" in caught.value.hint


def test_settled_keeps_what_the_caller_had_switched_on():
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with settled(3):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
