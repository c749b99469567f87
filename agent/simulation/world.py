"""What simulated devices share: images, loaded models, and what happens to them.

Decides what is real in a simulation and what is not. Real: the device machine with its journal and slots on disk, the
link, the telemetry buffer and its acknowledgements, signed metadata, the fetch over HTTP, the models and what they
answer. Simulated: one process instead of many, one copy of each bundle and each loaded model shared by all, one trust
store, images drawn from a file instead of a camera, and labels that come back a while later. Nothing is measured about
a device's speed or memory here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml import bundle, golden, monitor
from edgeml.errors import BackendError, ConfigError
from edgeml.ids import Digest
from edgeml.manifest import Manifest
from edgeml.pipeline import Pipeline
from edgeml.runtime import Session, open_session

Array = npt.NDArray[np.generic]


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the simulated world does; read again whenever the file changes."""

    rotated: tuple[str, ...] = ()
    """Devices whose camera was turned by 90 degrees."""
    inferences_per_s: float = 20.0
    """Per device."""
    label_delay_s: float = 2.0
    labelled_fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class Field:
    """Images that no model has seen, float32 [n, ...], and what they show, int [n]."""

    images: Array
    labels: npt.NDArray[np.int64]


@dataclass(slots=True)
class Loaded:
    """A model that every simulated device with this digest shares."""

    manifest: Manifest
    session: Session
    pipeline: Pipeline
    monitor: monitor.Monitor | None


@dataclass
class Shared:
    """What the simulated devices share."""

    directory: Path
    scene: Field
    scenario_path: Path | None
    models: dict[Digest, Loaded] = field(default_factory=dict)
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)
    scenario: Scenario = field(default_factory=Scenario)
    _scenario_mtime_ns: int = 0

    def load(self, digest: Digest) -> Loaded:
        """Load a model once, after checking its bytes, and prove it on its golden vectors.

        Raises:
            EdgemlError: The bundle or the model is bad.
        """
        if digest not in self.models:
            with bundle.read_verified(self.directory / "store" / f"{digest}.edgeml", digest) as opened:
                session = open_session(opened.model(), opened.manifest.runtime)
                pipeline = Pipeline(opened.manifest)
                watch = monitor.decode(opened.read(bundle.MONITOR)) if opened.has(bundle.MONITOR) else None
                if opened.has(bundle.GOLDEN):
                    recorded = golden.decode(opened.read(bundle.GOLDEN), opened.manifest)
                    answers = [
                        pipeline.answer(session.run, [array[i : i + 1] for array in recorded.inputs])
                        for i in range(recorded.samples)
                    ]
                    observed = [np.concatenate(parts) for parts in zip(*answers, strict=True)]
                    result = golden.compare(recorded.outputs, observed, opened.manifest)
                    if not result.passed:
                        raise BackendError(f"golden vectors differ: {result.describe()}")
                self.models[digest] = Loaded(opened.manifest, session, pipeline, watch)
        return self.models[digest]

    def refresh_scenario(self) -> None:
        """Read the scenario file if it has changed."""
        if self.scenario_path is None or not self.scenario_path.exists():
            return
        changed = self.scenario_path.stat().st_mtime_ns
        if changed != self._scenario_mtime_ns:
            try:
                self.scenario = msgspec.json.decode(self.scenario_path.read_bytes(), type=Scenario)
            except msgspec.MsgspecError as error:
                raise ConfigError(
                    f"{self.scenario_path}: {error}", hint="see the fields of Scenario in the documentation"
                ) from error
            self._scenario_mtime_ns = changed


def read_field(path: Path) -> Field:
    """Read the images that the simulated cameras see.

    Raises:
        ConfigError: The file is missing, or holds no `field_x` and `field_y` that fit.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["field_x"], file["field_y"]
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"cannot read images from {path}: {error}", hint="edgeml sample digits writes field.npz"
        ) from error
    if len(images) != len(labels) or not len(images):
        raise ConfigError(f"{path}: field_x and field_y differ in length, or are empty")
    return Field(images, labels.astype(np.int64))
