"""The one training loop: AdamW under a one-cycle schedule, the same bytes of weights each time.

Decides the optimizer, what is fixed so that a run repeats itself (seed, order of samples, threads, algorithms), and
that a loss which is no number ends it. What is learnt from is the business of `training_data.py`; the loss, of `distill.py`.
The caller's random state, threads and settings are as before afterwards, also after Ctrl-C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from edgeml.errors import BackendError

from ..quiet import first_line, quiet
from ..sources.torch_model import Array

THREADS: Final = 1
"""Not the machine's number: sums over threads round differently, and so would the weights. One leaves the rest to others."""
BATCH: Final = 64
WEIGHT_DECAY: Final = 1e-2
_WARMUP_FRACTION: Final = 0.3

Progress = Callable[[float], None]
"""Called with the fraction that is done, 0 to 1, after each batch."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how hard is trained. `learning_rate` is the peak of the cycle."""

    epochs: int
    learning_rate: float
    seed: int


class Objective(Protocol):
    """What a step wants of a model's answers."""

    def __call__(self, answers: Any, rows: Any) -> Any:
        """Return the loss, a scalar tensor, of answers [batch, ...] to the samples of these rows, int64 [batch]."""


def no_progress(_fraction: float) -> None:
    """Tell nobody."""


def part(on_progress: Progress, done: float, share: float) -> Progress:
    """Report the progress of a part that begins at `done` and is `share` of the whole.

    >>> seen = []
    >>> part(seen.append, 0.5, 0.25)(1.0)
    >>> seen
    [0.75]
    """
    return lambda fraction: on_progress(done + share * fraction)


@contextmanager
def settled(seed: int) -> Iterator[None]:
    """Fix what chance and the machine would decide in torch; put the caller's settings back afterwards."""
    with quiet():
        import torch

    threads = torch.get_num_threads()
    strict, warns = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with torch.random.fork_rng(devices=[]):
        try:
            torch.set_num_threads(THREADS)
            torch.use_deterministic_algorithms(True)
            torch.manual_seed(seed)
            yield
        finally:
            torch.use_deterministic_algorithms(strict, warn_only=warns)
            torch.set_num_threads(threads)


def train(
    module: Any, samples: Array, objective: Objective, schedule: Schedule, on_progress: Progress = no_progress
) -> None:
    """Train a module in place and leave it in evaluation mode.

    Adam with decoupled weight decay (Loshchilov and Hutter 2019); one cycle of the learning rate (Smith and Topin 2019).

    Args:
        module: a torch module; its own, for it is changed.
        samples: [n, ...] as it takes them.
        objective: the loss.
        schedule: how long and how hard.
        on_progress: hears after each batch.

    Raises:
        BackendError: The loss becomes NaN or infinite, or the module fails in training mode.
    """
    with settled(schedule.seed):
        import torch

        module.eval()
        inputs = _laid_out(module, torch.from_numpy(np.ascontiguousarray(samples)))
        weights = [one for one in module.parameters() if one.requires_grad]
        if not weights:
            raise BackendError(
                "the model has no parameters that can be trained",
                hint="parameters whose requires_grad is False stay as they are; set it in the factory",
            )
        # The rest of an epoch is left out, not trained as a smaller batch: batch norm cannot take a single sample.
        batches = max(1, len(inputs) // BATCH)
        total = schedule.epochs * batches
        optimizer = torch.optim.AdamW(weights, lr=schedule.learning_rate, weight_decay=WEIGHT_DECAY)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, schedule.learning_rate, total_steps=total, pct_start=_WARMUP_FRACTION
        )
        chance = torch.Generator().manual_seed(schedule.seed)
        module.train()
        try:
            for done in range(total):
                if done % batches == 0:
                    order = torch.randperm(len(inputs), generator=chance)
                start = done % batches * BATCH
                rows = order[start : start + BATCH]
                loss = _loss(module, inputs[rows], objective, rows)
                if not math.isfinite(float(loss.detach())):
                    raise _diverged(done // batches, schedule)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
                on_progress((done + 1) / total)
        finally:
            module.eval()
            module.to(memory_format=torch.contiguous_format)


def _laid_out(module: Any, inputs: Any) -> Any:
    """Lay images and weights out with channels last, which halves the time of convolutions, if the module can take that.

    The module is in evaluation mode, so that the trial changes no statistics. Shapes and meaning stay the same, but `view` refuses such a layout, which many a forward() calls.
    """
    import torch

    if inputs.ndim != 4:
        return inputs
    module.to(memory_format=torch.channels_last)
    turned = inputs.contiguous(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            module(turned[:1])
    except RuntimeError:
        module.to(memory_format=torch.contiguous_format)
        return inputs
    return turned


def _loss(module: Any, inputs: Any, objective: Objective, rows: Any) -> Any:
    try:
        return objective(module(inputs), rows)
    except Exception as error:  # the module is the user's code and may raise anything
        raise BackendError(
            f"the model fails while it is trained: {first_line(error)}",
            hint="it must run in training mode (module.train()) with batches of 64, by deterministic operators",
        ) from error


def _diverged(epoch: int, schedule: Schedule) -> BackendError:
    return BackendError(
        f"training diverged: the loss is no longer a finite number in epoch {epoch + 1} of {schedule.epochs}",
        hint="scale train_x and train_y to about -1 to 1, or check the model for logarithms and divisions",
    )
