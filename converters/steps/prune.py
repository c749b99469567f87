"""Structured pruning: whole channels are taken out in blocks that the runtime works in, then the rest is trained.

Decides how many channels each layer keeps, that the layers which make the answer keep all of theirs, and that what is
recorded is what the network really costs afterwards, not the ratio that was asked for. Channels that hang together (skips,
concatenations, depthwise layers) are found by torch-pruning's dependency graph (Fang et al. 2023), and so is how little
each matters. The training is raced (`distill.py`).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgeml.errors import BackendError, ConfigError

from ..quiet import first_line, quiet
from ..recipe import Prune
from ..sources.torch_model import Array, TorchModel
from .cost import Cost, cost
from .distill import Race, race
from .training import Progress, Schedule, no_progress
from .training_data import TrainingData, check_trainable


@dataclass(frozen=True, slots=True)
class Pruned:
    """A network with fewer channels, trained again; what it cost before and after; how it was trained."""

    model: TorchModel
    before: Cost
    after: Cost
    race: Race


def kept_channels(width: int, ratio: float, block: int) -> int:
    """How many of `width` channels stay: about `1 - ratio` of them, as a multiple of `block`, one block at least.

    A larger ratio never keeps more. (torch-pruning's own rounding does: it rounds down to 0, which it then refuses.)

    >>> [kept_channels(64, ratio, 16) for ratio in (0.1, 0.3, 0.5, 0.9)]
    [64, 48, 32, 16]
    >>> kept_channels(16, 0.5, 16)
    16
    """
    blocks = math.floor(width * (1 - ratio) / block + 0.5)
    return min(width, max(1, blocks) * block)


def prune(model: TorchModel, step: Prune, data: TrainingData, on_progress: Progress = no_progress) -> Pruned:
    """Take channels out and train what is left.

    Args:
        model: in evaluation mode; it is not changed.
        step: how much, in which blocks, and how long is trained.
        data: from `training_data.prepare` with this model.
        on_progress: hears the fraction done.

    Raises:
        ConfigError: The ratio or the block makes no sense.
        BackendError: The model cannot be pruned, has nothing to prune at this ratio and block, or cannot be trained.
    """
    if not 0 < step.ratio < 1 or step.channel_block < 1:
        raise ConfigError(
            f"a pruning ratio of {step.ratio} in blocks of {step.channel_block} makes no sense",
            hint="the ratio is between 0 and 1, a block is 1 channel or more",
        )
    narrow, before, after = _narrow(model, step, data.learnt.samples[:1])
    schedule = Schedule(step.epochs, step.learning_rate, step.seed)
    trained, outcome = race(lambda: copy.deepcopy(narrow), data, schedule, on_progress)
    return Pruned(replace(model, module=trained), before, after, outcome)


def _narrow(model: TorchModel, step: Prune, samples: Array) -> tuple[Any, Cost, Cost]:
    """Return the module with fewer channels, untrained, and its cost before and after."""
    check_trainable(model)
    with quiet():
        import torch

        module = copy.deepcopy(model.module)
        example = torch.from_numpy(np.ascontiguousarray(samples))
        try:
            with torch.no_grad():
                shape = module(example).shape
            before = cost(module, samples)
            _take_out(module, example, step)
            after = cost(module, samples)
            with torch.no_grad():
                same = module(example).shape == shape
        except Exception as error:  # torch-pruning raises errors of many kinds for what it cannot trace
            raise BackendError(
                f"the model cannot be pruned: {first_line(error)}",
                hint="torch-pruning must be able to follow its channels: no views with fixed sizes, layers as modules",
            ) from error
    if not same:
        raise BackendError(
            "pruning changes the shape of the model's answers",
            hint="end the model in a Linear or Conv layer that makes the answers",
        )
    if after.macs >= before.macs:
        raise BackendError(
            f"nothing can be pruned by {step.ratio:.0%}: no layer is wide enough for blocks of {step.channel_block} channels",
            hint="prune more, or take a smaller network as a student",
        )
    return module, before, after


def _take_out(module: Any, example: Any, step: Prune) -> None:
    import torch
    import torch_pruning

    for weight in module.parameters():
        weight.requires_grad_(True)  # channels are followed along gradients
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example)
    answering = _answering(graph)
    ratios = {}
    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Conv1d | torch.nn.Linear) and layer not in answering:
            width = graph.get_out_channels(layer)
            # Half a channel more, for the library cuts the fraction off.
            ratios[layer] = 1 - (kept_channels(width, step.ratio, step.channel_block) + 0.5) / width
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio_dict={layer: max(0.0, ratio) for layer, ratio in ratios.items()},
        pruning_ratio=0.0,
        ignored_layers=list(answering),
        # The library's defaults for these are shared by all pruners of a process.
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    pruner.step()


def _answering(graph: Any) -> set[Any]:
    """Find the layers whose channels are the model's answers: back from the end to the first layer that mixes channels."""
    import torch

    found: set[Any] = set()
    waiting = [node for node in graph.module2node.values() if not node.outputs]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        layer = node.module
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Conv1d | torch.nn.Linear):
            found.add(layer)
            if getattr(layer, "groups", 1) == 1:
                continue
        waiting.extend(node.inputs)
    return found
