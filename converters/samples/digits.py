"""Trains small models on scikit-learn's digits: real scans of handwriting, 8 x 8 pixels.

Decides the split (no image is in two of train, calibration, evaluation and field), what the camera adds (noise, and
sometimes a shift by one pixel), and the three releases that the demo tells of: a first one, a better one, and one that
was trained and judged on images with inverted contrast, so that it is good at home and bad in the field.
"""

from __future__ import annotations

import enum
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeml.atomic import storage_error
from edgeml.errors import ConfigError

NOISE: Final = 0.08
SHIFTED_FRACTION: Final = 0.3
BATCH: Final = 64
LEARNING_RATE: Final = 3e-3
COPIES: Final = 5
"""Views of each evaluation and field image, each with its own noise."""

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Flaw(enum.Enum):
    """What is wrong with a release, on purpose."""

    NONE = "none"
    CONTRAST = "contrast"
    """Trained and judged on inverted images, which no device feeds."""


@dataclass(frozen=True, slots=True)
class Training:
    """How one release is trained."""

    name: str
    epochs: int
    width: int
    flaw: Flaw = Flaw.NONE


RELEASES: Final = (
    Training("v1", epochs=4, width=8),
    Training("v2", epochs=10, width=16),
    Training("v3", epochs=8, width=16, flaw=Flaw.CONTRAST),
)


@dataclass(frozen=True, slots=True)
class Scan:
    """Images float32 [n, 1, 8, 8] in [0, 1] and what they show, int64 [n]."""

    images: Images
    labels: Labels


@dataclass(frozen=True, slots=True)
class Trained:
    """A release that was written."""

    name: str
    directory: Path
    accuracy: float
    """On its own evaluation images."""
    field_accuracy: float
    """On images as devices feed them."""


Progress = Callable[[str, int, int], None]
"""Called with (release, epochs done, epochs)."""


def find(names: tuple[str, ...]) -> tuple[Training, ...]:
    """Look releases up by name; none named means the first.

    Raises:
        ConfigError: No such release.
    """
    known = {training.name: training for training in RELEASES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"there is no sample release {unknown[0]!r}", hint=f"one of {', '.join(known)}")
    return tuple(known[name] for name in names) or RELEASES[:1]


def write(out: Path, trainings: tuple[Training, ...], seed: int, progress: Progress) -> tuple[Trained, ...]:
    """Train releases and write each into `out/NAME` (digits.py, weights.npz, data.npz), and `out/field.npz`.

    Raises:
        StorageError: The disk refused.
    """
    split = _split(seed)
    field = _camera(split["field"], COPIES, seed + 3)
    lab = _Lab(split, field, seed, progress)
    try:
        trained = tuple(lab.write_release(out / training.name, training) for training in trainings)
        # Last: whoever finds this file finds the releases.
        np.savez(out / "field.npz", field_x=field.images, field_y=field.labels)
    except OSError as error:
        raise storage_error(error, out) from error
    return trained


@dataclass(frozen=True, slots=True)
class _Lab:
    """What every release is trained from."""

    split: dict[str, Scan]
    field: Scan
    seed: int
    progress: Progress

    def write_release(self, directory: Path, training: Training) -> Trained:
        """Train one release and write it."""
        from . import network

        see = _inverted if training.flaw is Flaw.CONTRAST else _plain
        lessons = see(_camera(self.split["train"], 4, self.seed + 1))
        evaluation = see(_camera(self.split["evaluation"], COPIES, self.seed + 2))
        calibration = see(_camera(self.split["calibration"], 1, self.seed + 4))
        weights = _train(lessons, training, self.seed, self.progress)
        directory.mkdir(parents=True, exist_ok=True)
        np.savez(directory / "weights.npz", **weights)  # type: ignore[arg-type]  # numpy's stub takes **kwds for allow_pickle
        shutil.copyfile(network.__file__, directory / "digits.py")
        np.savez(
            directory / "data.npz",
            calibration_x=calibration.images,
            evaluation_x=evaluation.images,
            evaluation_y=evaluation.labels,
        )
        return Trained(
            training.name, directory, _accuracy(weights, evaluation), _accuracy(weights, self.field)
        )


def _split(seed: int) -> dict[str, Scan]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    parts = {}
    rest = np.arange(len(images))
    for name, share in (("train", 0.4), ("calibration", 0.12), ("evaluation", 0.24)):
        part, rest = train_test_split(
            rest, train_size=round(share * len(images)), random_state=seed, stratify=labels[rest]
        )
        parts[name] = Scan(images[part], labels[part])
    parts["field"] = Scan(images[rest], labels[rest])
    return parts


def _camera(scan: Scan, copies: int, seed: int) -> Scan:
    """Look at each image `copies` times: noise on every look, a shift by one pixel on some."""
    generator = np.random.default_rng(seed)
    images = np.repeat(scan.images, copies, axis=0)
    shifted = np.flatnonzero(generator.random(len(images)) < SHIFTED_FRACTION)
    for index in shifted:
        images[index] = np.roll(images[index], tuple(generator.integers(-1, 2, 2)), axis=(1, 2))
    noisy = np.clip(images + generator.normal(0, NOISE, images.shape), 0, 1).astype(np.float32)
    return Scan(noisy, np.repeat(scan.labels, copies))


def _plain(scan: Scan) -> Scan:
    return scan


def _inverted(scan: Scan) -> Scan:
    return Scan(1 - scan.images, scan.labels)


def _train(
    lessons: Scan, training: Training, seed: int, progress: Progress
) -> dict[str, npt.NDArray[np.generic]]:
    import torch
    from torch.nn import functional

    from .network import Digits

    # One thread: batches this small gain nothing from a second, lose much on a busy machine, and sums keep their order.
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    network = Digits(training.width)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    images, labels = torch.from_numpy(lessons.images), torch.from_numpy(lessons.labels)
    for epoch in range(training.epochs):
        order = torch.randperm(len(images))
        for start in range(0, len(images), BATCH):
            pick = order[start : start + BATCH]
            loss = functional.cross_entropy(network(images[pick]), labels[pick])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        progress(training.name, epoch + 1, training.epochs)
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


def _accuracy(weights: dict[str, npt.NDArray[np.generic]], scan: Scan) -> float:
    import torch

    from .network import Digits

    network = Digits(weights["features.0.weight"].shape[0])
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    with torch.no_grad():
        answers = network.eval()(torch.from_numpy(scan.images)).argmax(1).numpy()
    return float((answers == scan.labels).mean())
