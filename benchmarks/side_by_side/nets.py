"""Two nets of the size that edge devices run, and data on which they are not perfect: ResNet8 and DS-CNN on noisy digits.

Scikit-learn's digits are drawn four times larger and noise is put on them, so that a model which lost something shows it.
Seeds are fixed and one thread computes, so two runs on one machine train the same weights.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from converters.sources.torch_model import TorchModel
from converters.steps.onnx_export import export_onnx
from edgeml.ids import Digest

CLASSES = 10
SIDE = 32
NOISE = 0.35
TEST_SHARE = 0.4
BATCH = 64
PEAK_RATE = 3e-3


@dataclass(frozen=True)
class Data:
    """Images float32 [n, 1, 32, 32] and labels int64 [n]; what is tested was not trained on."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def convolution(inputs, outputs, side, stride=1, groups=1):
    """A convolution that keeps the image's size but for the stride, and its normalization."""
    layer = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two convolutions and a way past them."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride)
        self.second = convolution(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.past = nn.Identity() if same else convolution(inputs, outputs, 1, stride)

    def forward(self, images):
        """[n, inputs, h, w] to [n, outputs, h / stride, w / stride]."""
        return functional.relu(self.second(functional.relu(self.first(images))) + self.past(images))


class ResNet8(nn.Module):
    """The image classifier of MLPerf Tiny with one input channel: 78 thousand parameters, 12 million multiplications."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Sequential(convolution(1, width, 3), nn.ReLU())
        self.blocks = nn.Sequential(
            Residual(width, width, 1), Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2)
        )
        self.last = nn.Linear(4 * width, CLASSES)

    def forward(self, images):
        """Images to logits."""
        return self.last(self.blocks(self.stem(images)).mean((2, 3)))


class DsCnn(nn.Module):
    """The keyword spotter of MLPerf Tiny, for images: 21 thousand parameters, 5 million multiplications."""

    def __init__(self, width=64, depth=4):
        super().__init__()
        layers = [convolution(1, width, 3, 2), nn.ReLU()]
        for _ in range(depth):
            layers += [convolution(width, width, 3, 1, width), nn.ReLU()]
            layers += [convolution(width, width, 1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.last = nn.Linear(width, CLASSES)

    def forward(self, images):
        """Images to logits."""
        pooled = functional.adaptive_avg_pool2d(self.features(images), 1)
        return self.last(torch.flatten(pooled, 1))


NETS = {"ResNet8": (ResNet8, 10, 0.95), "DS-CNN": (DsCnn, 12, 0.87)}
"""The class, how many epochs it is trained, and what it must score."""


def digits():
    """Draw the data."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    small = torch.from_numpy((found.images / 16).astype(np.float32)[:, None])
    images = functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear").numpy()
    images += np.random.default_rng(0).normal(0, NOISE, images.shape).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, found.target, test_size=TEST_SHARE, random_state=0, stratify=found.target
    )
    return Data(train_x, train_y, test_x, test_y)


def trained(name, data):
    """Train a net, and check that it is worth compressing."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind, epochs, least = NETS[name]
    net = kind().train()
    images, labels = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=PEAK_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            loss = functional.cross_entropy(net(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        accuracy = (net(torch.from_numpy(data.test_x)).argmax(1).numpy() == data.test_y).mean()
    if accuracy < least:
        raise SystemExit(f"{name} was trained to {accuracy:.4f} only, {least} is asked for")
    return net


def exported(net, data):
    """Write a net as ONNX, as `edgeml convert` does."""
    return export_onnx(TorchModel(net, batch_is_free=True, sha256=Digest("0" * 64)), data.test_x, "logits")
