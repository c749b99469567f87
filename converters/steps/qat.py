"""Quantization-aware training: the float network is trained with quantization simulated, and stays a float network.

Decides what is simulated: symmetric weights a channel, and an affine range for what goes into each convolution and linear
layer, as the quantizers of both families do. The trained weights are then exported and quantized like any other's: that
makes one step for ONNX and .tflite, and a smaller file than exporting a converted torchao program, at the same accuracy
and latency. As float networks the weights are worth little: they count on being quantized. Folding a batch norm scales a whole channel of weights, which a scale a channel does not feel, so
it needs no simulation. What is added in skips is not simulated.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Final

from edgeml.errors import BackendError, ConfigError

from ..quiet import quiet
from ..recipe import Activations, QuantizationAwareTraining
from ..sources.torch_model import TorchModel
from .distill import Race, race
from .training import Progress, Schedule, no_progress
from .training_data import TrainingData, check_trainable

_ACTIVATION_BITS: Final = {Activations.UINT8: 8, Activations.INT8: 8, Activations.INT16: 16}
_WEIGHT_BITS: Final = range(2, 9)


@dataclass(frozen=True, slots=True)
class Accustomed:
    """A float network whose weights are used to quantization, and how it was trained, scored with quantization simulated."""

    model: TorchModel
    race: Race


def train_quantized(
    model: TorchModel,
    step: QuantizationAwareTraining,
    data: TrainingData,
    on_progress: Progress = no_progress,
) -> Accustomed:
    """Train a model with quantization simulated (Jacob et al. 2018).

    Args:
        model: in evaluation mode; it is not changed.
        step: what is simulated and how long is trained.
        data: from `training_data.prepare` with this model.
        on_progress: hears the fraction done.

    Raises:
        ConfigError: The number of bits makes no sense.
        BackendError: The model has no layers to simulate, or one whose weights something else sets, or cannot be trained.
    """
    if step.weight_bits not in _WEIGHT_BITS:
        raise ConfigError(
            f"weights of {step.weight_bits} bits cannot be simulated",
            hint=f"from {_WEIGHT_BITS.start} to {_WEIGHT_BITS.stop - 1} bits",
        )
    check_trainable(model)
    _check_layers(model.module)

    def contestant() -> Any:
        module = copy.deepcopy(model.module)
        _simulate(module, step)
        return module

    schedule = Schedule(step.epochs, step.learning_rate, step.seed)
    trained, outcome = race(contestant, data, schedule, on_progress)
    plain = copy.deepcopy(model.module)
    _copy_weights(trained, plain)
    return Accustomed(replace(model, module=plain.eval()), outcome)


def _layers(module: Any) -> list[tuple[Any, int]]:
    """Return the layers with quantized weights, each with the axis of its output channels."""
    from torch import nn

    turned = (nn.ConvTranspose1d, nn.ConvTranspose2d)
    straight = (nn.Conv1d, nn.Conv2d, nn.Linear)
    return [
        (layer, 1 if isinstance(layer, turned) else 0)
        for layer in module.modules()
        if isinstance(layer, straight + turned)
    ]


def _check_layers(module: Any) -> None:
    from torch.nn.utils import parametrize

    layers = [layer for layer, _ in _layers(module)]
    if not layers:
        raise BackendError(
            "the model has no convolution or linear layer as a module, so there is nothing to simulate",
            hint="use torch.nn.Conv2d and torch.nn.Linear instead of their functions",
        )
    names = {layer: name for name, layer in module.named_modules()}
    for layer in layers:
        own = dict(layer.named_parameters(recurse=False))
        if "weight" not in own and not parametrize.is_parametrized(layer, "weight"):
            raise BackendError(
                f"layer {names[layer]} has no weight of its own: a hook sets it, as torch.nn.utils.weight_norm does, and quantization cannot be simulated there",
                hint="use torch.nn.utils.parametrizations instead, or take the hook off: torch.nn.utils.remove_weight_norm",
            )


def _simulate(module: Any, step: QuantizationAwareTraining) -> None:
    """Make a module's layers compute as if they were quantized."""
    from torch.nn.utils import parametrize

    for layer, axis in _layers(module):
        parametrize.register_parametrization(layer, "weight", _weights(step.weight_bits, axis))
        if step.activations is not None:
            layer.register_module(_RANGE, _ranges(_ACTIVATION_BITS[step.activations]))
            layer.register_forward_pre_hook(_quantize_input)


_RANGE: Final = "edgeml_range"


def _quantize_input(layer: Any, inputs: Any) -> Any:
    return (getattr(layer, _RANGE)(inputs[0]), *inputs[1:])


def _weights(bits: int, axis: int) -> Any:
    with quiet():  # torchao says which of its CUDA libraries it does not find
        import torch
        from torchao.quantization.pt2e import (
            FakeQuantize,
            MovingAveragePerChannelMinMaxObserver,
        )

        top = 2 ** (bits - 1) - 1
        return FakeQuantize(
            MovingAveragePerChannelMinMaxObserver, -top, top, averaging_constant=1.0, dtype=torch.int8,
            qscheme=torch.per_channel_symmetric, ch_axis=axis,
        )  # fmt: skip


def _ranges(bits: int) -> Any:
    with quiet():
        import torch
        from torchao.quantization.pt2e import FakeQuantize, MovingAverageMinMaxObserver

        kind = torch.uint8 if bits == 8 else torch.int32
        return FakeQuantize(
            MovingAverageMinMaxObserver, 0, 2**bits - 1, dtype=kind, qscheme=torch.per_tensor_affine
        )


def _copy_weights(trained: Any, plain: Any) -> None:
    """Carry parameters and batch statistics over to a module without simulation; the trained one loses its own."""
    from torch.nn.utils import parametrize

    for layer, _ in _layers(trained):
        simulated = layer.parametrizations.weight
        if len(simulated) == 1:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        else:
            del simulated[-1]  # Those before it are the model's own, as weight_norm is.
    state = {name: value for name, value in trained.state_dict().items() if _RANGE not in name}
    plain.load_state_dict(state)
