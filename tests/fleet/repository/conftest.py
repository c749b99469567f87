"""A repository with its keys, bundles to publish, and devices that trust it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeml.bundle import write_bundle
from edgeml.ids import digest_of
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily
from edgeml.source import DirectorySource
from edgeml.tensors import BATCH, DType, TensorSpec
from edgeml.trust import TrustStore
from fleet.keys import KeyRing, create_keys
from fleet.repository import PublishedVariant, Repository

NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000


@pytest.fixture
def bundle():
    def write(directory: Path, version: str = "1.0.0", variant: str = "int8", **changes) -> Path:
        manifest = Manifest(
            model=changes.get("model", "digits"),
            version=version,
            variant=variant,
            runtime=RuntimeFamily.ONNX,
            profiles=changes.get("profiles", ("generic-x86-64",)),
            inputs=(TensorSpec("x", DType.FLOAT32, (BATCH, 4)),),
            outputs=(TensorSpec("y", DType.FLOAT32, (BATCH, 2)),),
            files=(),
            measurement=Measurement("host", "onnxruntime", 1, 1.0, 2.0, 1000),
            provenance=Provenance("model.pt", digest_of(b"")),
        )
        path = directory / f"{manifest.model}-{version}-{variant}.edgeml"
        write_bundle(path, manifest, {"model.onnx": changes.get("content", b"weights") * 100})
        return path

    return write


class Scene:
    """A repository with its keys, and a device that trusts them."""

    def __init__(self, directory: Path, keys: KeyRing) -> None:
        self.directory, self.keys = directory, keys
        self.repository = Repository(directory / "repository")
        self.repository.initialise(keys, NOW_MS)

    def publish(self, *paths: Path, now_ms: int = NOW_MS) -> tuple[PublishedVariant, ...]:
        keys = self.keys
        return self.repository.publish(paths, keys.targets, keys.snapshot, keys.timestamp, now_ms)

    def resign(self, now_ms: int) -> tuple[str, ...]:
        return self.repository.resign(now_ms, self.keys.snapshot, self.keys.timestamp)

    def device(self, now_ms: int = NOW_MS, name: str = "device") -> TrustStore:
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        (directory / "root.json").write_bytes(self.keys.anchor)
        store = TrustStore(directory, DirectorySource(self.repository.directory), now_ms=now_ms)
        store.refresh()
        return store

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.repository.directory / "metadata").iterdir())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return create_keys(tmp_path_factory.mktemp("keys") / "keys")


@pytest.fixture
def scene(tmp_path: Path, keys: KeyRing) -> Scene:
    return Scene(tmp_path, keys)


@pytest.fixture
def new_scene():
    return Scene


@pytest.fixture
def counters():
    return lambda scene: {one.path: one.facts.release_counter for one in scene.repository.releases()}
