"""The sample's network. `edgeml sample` copies this file beside the weights: it is also the file to hand to `edgeml convert`.

A user's own file looks like this one: a function without arguments that returns the module, with its weights loaded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

CLASSES = 10


class Digits(nn.Module):  # type: ignore[misc]  # torch is not followed by the type checker
    """Three convolutions and a linear layer: images float32 [n, 1, 8, 8] in [0, 1] to logits float32 [n, 10]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels_in, channels_out, stride in (
            (1, width, 1),
            (width, 2 * width, 2),
            (2 * width, 2 * width, 1),
        ):
            layers += [
                nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
                nn.BatchNorm2d(channels_out),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(2 * width * 16, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


def model() -> nn.Module:
    """Build the network and load the weights that lie beside this file (a plain .npz: nothing in it is executed)."""
    with np.load(Path(__file__).with_name("weights.npz"), allow_pickle=False) as file:
        weights = {name: torch.from_numpy(file[name]) for name in file.files}
    network = Digits(weights["features.0.weight"].shape[0])
    network.load_state_dict(weights)
    return network.eval()
