"""What a torch network costs, counted: recorded beside what was asked for, which is another thing after rounding.

Decides only what is counted. Estimates for a file and a device are the business of `estimate/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..quiet import quiet
from ..sources.torch_model import Array


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network takes for one sample: multiplications with their additions, and numbers to keep."""

    macs: int
    parameters: int


def cost(module: Any, samples: Array) -> Cost:
    """Count what a torch module in evaluation mode takes for the first of some samples [1 or more, ...]."""
    with quiet():
        import torch
        import torch_pruning

        example = torch.from_numpy(np.ascontiguousarray(samples[:1]))
        macs, parameters = torch_pruning.utils.count_ops_and_params(module, example)
    return Cost(int(macs), int(parameters))
