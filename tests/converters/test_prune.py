"""Pruning: channels stay in whole blocks, answers keep their shape, what it costs is counted and never rises with the ratio."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.recipe import Prune
from converters.sources.torch_model import TorchModel
from converters.steps.cost import cost
from converters.steps.distill import Teaching, score
from converters.steps.prune import kept_channels, prune
from converters.steps.training_data import prepare
from edgeml.errors import BackendError, ConfigError
from edgeml.ids import digest_of

pytestmark = pytest.mark.torch


@given(
    width=st.integers(1, 512), low=st.floats(0.01, 0.99), high=st.floats(0.01, 0.99), block=st.integers(1, 64)
)
def test_more_pruning_never_keeps_more_and_what_is_kept_is_whole_blocks(width, low, high, block):
    low, high = sorted((low, high))
    more, less = kept_channels(width, low, block), kept_channels(width, high, block)
    assert 1 <= less <= more <= width
    assert more == width or more % block == 0
    assert abs(more - width * (1 - low)) <= block


def net():
    """A skip, a depthwise layer, a concatenation."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU()
            )
            self.inner = nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
            )
            self.depthwise = nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()
            )
            self.wide = nn.Sequential(nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
            self.fc = nn.Linear(32, 10)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.inner(x)
            x = self.wide(torch.cat([x, self.depthwise(x)], dim=1))
            return self.fc(x.mean((2, 3)))

    torch.manual_seed(0)
    return Net()


def model_of(module):
    return TorchModel(module.eval(), batch_is_free=True, sha256=digest_of(b""))


@pytest.fixture(scope="module")
def images():
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images[:700, None] / 16).astype(np.float32), data.target[:700].astype(np.int64)


def widths(module):
    import torch

    return {
        name: layer.weight.shape[0]
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
    }


def test_skips_depthwise_layers_and_concatenations_keep_whole_blocks_and_the_answer_all_classes(images):
    model = model_of(net())
    pruned = prune(model, Prune(0.5, 8, epochs=1), prepare(model, *images))
    assert widths(pruned.model.module) == {
        "stem.0": 8,
        "inner.0": 8,
        "depthwise.0": 8,
        "wide.0": 16,
        "fc": 10,
    }
    assert widths(model.module)["stem.0"] == 16
    assert pruned.before == cost(model.module, images[0])
    assert pruned.after == cost(pruned.model.module, images[0])
    assert pruned.after.macs < 0.4 * pruned.before.macs
    assert pruned.after.parameters == sum(one.numel() for one in pruned.model.module.parameters())


def test_what_is_recorded_is_the_race_of_the_module_that_is_kept(images):
    model = model_of(net())
    data = prepare(model, *images)
    pruned = prune(model, Prune(0.5, 8, epochs=8, learning_rate=1e-2), data)
    scores = {run.teaching: run.score for run in pruned.race.runs}
    assert set(scores) == set(Teaching)
    assert scores[pruned.race.kept] == score(pruned.model.module, data)
    assert scores[pruned.race.kept].value > score(model.module, data).value + 0.2


def test_a_larger_ratio_never_costs_more(images):
    model = model_of(net())
    data = prepare(model, images[0][:128], images[1][:128])
    macs = [prune(model, Prune(ratio, 8, epochs=1), data).after.macs for ratio in (0.3, 0.5, 0.7, 0.95)]
    assert macs == sorted(macs, reverse=True)
    assert macs[-1] < macs[0]


def test_a_softmax_behind_the_last_layer_is_no_way_to_lose_classes(images):
    from torch import nn

    model = model_of(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10), nn.Softmax(dim=1))
    )
    pruned = prune(model, Prune(0.5, 8, epochs=1), prepare(model, *images))
    assert [width for _, width in sorted(widths(pruned.model.module).items())] == [16, 10]


@pytest.mark.parametrize(("ratio", "block"), [(0.0, 8), (1.0, 8), (-1, 8), (0.5, 0)])
def test_ratios_and_blocks_that_make_no_sense(images, ratio, block):
    model = model_of(net())
    with pytest.raises(ConfigError, match="makes no sense"):
        prune(model, Prune(ratio, block), prepare(model, *images))


def test_layers_too_narrow_for_a_block_are_told(images):
    model = model_of(net())
    with pytest.raises(BackendError, match="no layer is wide enough for blocks of 64 channels") as caught:
        prune(model, Prune(0.5, 64), prepare(model, *images))
    assert "student" in caught.value.hint


def test_a_network_that_fixes_its_sizes_is_told(images):
    import torch
    from torch import nn

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Linear(256, 10)

        def forward(self, x):
            return self.fc(self.conv(x).reshape(x.shape[0], 16 * 16))

    torch.manual_seed(0)
    model = model_of(Fixed())
    with pytest.raises(BackendError, match="cannot be pruned") as caught:
        prune(model, Prune(0.5, 8), prepare(model, *images))
    assert "fixed sizes" in caught.value.hint
