"""What a conversion refuses once it has asked the source, before anything is made of it."""

import contextlib

import numpy as np
import pytest

import converters
from converters.assemble import ReleaseName
from converters.order import ConversionOrder, Limits
from edgeml import profile
from edgeml.errors import ConfigError, EdgemlError

pytestmark = pytest.mark.torch

X = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
ONE_NUMBER = """
from torch import nn, manual_seed
def model():
    manual_seed(0)
    return nn.Linear(6, 1)
"""
NOISY = """
import torch
class Noisy(torch.nn.Module):
    def forward(self, x):
        return 10 * x + torch.randn(1)
def model():
    return Noisy()
"""


def converting(directory, text, truth, metric=""):
    (directory / "mine.py").write_text(text)
    arrays = {} if truth is None else {"evaluation_y": truth}
    np.savez(directory / "data.npz", calibration_x=X[:100], evaluation_x=X[100:], **arrays)
    return converters.convert(
        ConversionOrder(
            source=f"{directory}/mine.py:model",
            data=directory / "data.npz",
            profiles=(profile.load("raspberry-pi-4"),),
            release=ReleaseName("net", "1.0.0"),
            limits=Limits(max_drop=0.05),
            out=directory / "out",
            work=directory / "work",
            metric=metric,
        )
    )


def test_a_model_that_answers_with_one_number_is_told_its_metrics_and_they_work(tmp_path):
    detected = (X[100:, 0] > 0).astype(np.int64)
    with pytest.raises(ConfigError, match=r"this model with shape \[1\]") as caught:
        converting(tmp_path, ONE_NUMBER, detected)
    for metric in ("auc", "mae"):
        assert f"--metric {metric}" in caught.value.hint
        assert converting(tmp_path, ONE_NUMBER, detected, metric).bundles


@pytest.mark.parametrize("answer", ["x > 0", "x.argmax(1)"])
def test_answers_of_other_kinds_are_compared_or_refused_without_a_traceback(tmp_path, answer):
    text = NOISY.replace("10 * x + torch.randn(1)", answer)
    with contextlib.suppress(EdgemlError):
        assert converting(tmp_path, text, None).bundles


def test_answers_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"with shape \[2, 0\], which holds nothing"):
        converting(tmp_path, NOISY.replace("10 * x + torch.randn(1)", "x[:, :0]"), None)


def test_a_model_that_is_not_deterministic_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match="the same samples differently each time") as caught:
        converting(tmp_path, NOISY, None)
    assert "random" in caught.value.hint
    assert not (tmp_path / "out").exists()
