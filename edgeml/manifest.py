"""The manifest: what a bundle says of itself.

Decides the fields, their units, and the canonical bytes (JSON, keys in a fixed order, no spaces). One bundle carries
one variant: a model file for one runtime and one family of hardware profiles. The manifest holds the digest of
every other member; the digest of the whole bundle is what signed metadata holds. Reading and writing the container
is `edgeml.bundle`'s business. Format: docs/bundle-format.md.
"""

from __future__ import annotations

import enum
from contextlib import suppress
from functools import cached_property
from typing import Final

import msgspec

from . import expectation, flow
from .errors import IncompatibleError, ManifestError
from .expectation import Expected
from .flow import Meaning, Traced
from .ids import Digest, ReleaseId, is_digest, is_name, release_id
from .steps import Processing, unknown_kind
from .tensors import TensorSpec

FORMAT_VERSION: Final = 1
MANIFEST_BYTES_MAX: Final = 1 << 20
MANIFEST: Final = "manifest.json"
MONITOR: Final = "monitor.json"
GOLDEN: Final = "golden.npz"
REPORT: Final = "report.json"
MEMBERS: Final = (MANIFEST, "model.onnx", "model.tflite", "model.torchscript", MONITOR, GOLDEN, REPORT)
"""Names that a bundle's members may have, in the order in which they are written."""


class RuntimeFamily(enum.Enum):
    """Which kind of runtime loads the model file."""

    ONNX = "onnx"
    TFLITE = "tflite"
    TORCHSCRIPT = "torchscript"
    """For programs that have torch; no agent loads it."""

    @property
    def model_member(self) -> str:
        """Name of the model file in the bundle."""
        return f"model.{self.value}"

    @property
    def is_for_agents(self) -> bool:
        """Whether agents load it."""
        return self is not RuntimeFamily.TORCHSCRIPT


class Task(enum.Enum):
    """What the first output means."""

    CLASSIFICATION = "classification"
    OTHER = "other"


class ScoreKind(enum.Enum):
    """What a classifier's scores are before they are compared."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    NONE = "none"


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the manifest's parts: immutable, and unknown fields are an error."""


class FileEntry(Record, frozen=True):
    """One member of the bundle besides the manifest."""

    name: str
    sha256: Digest
    length_bytes: int


class Quality(Record, frozen=True):
    """What the variant scored when it was verified on its runtime.

    `baseline` is the same metric of the model it came from, on the same samples; `agreement` is the fraction of
    samples on which both gave the same answer.
    """

    metric: str
    value: float
    baseline: float
    samples: int
    agreement: float


class Measurement(Record, frozen=True):
    """Cost on the machine named in `host`. Never shown as another machine's."""

    host: str
    runtime: str
    threads: int
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_bytes: int


class Provenance(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the model came from.

    `settings` are the recipe's steps with all their numbers and seeds, as JSON; `parent` is the release that this one
    follows. It is for people alone, so what a newer edgeml adds is no error.
    """

    source: str
    source_sha256: Digest
    data_sha256: Digest | None = None
    recipe: str = "as-is"
    reason: str = ""
    git_commit: str = ""
    libraries: tuple[str, ...] = ()
    git_dirty: bool = False
    settings: str = ""
    parent: str = ""


class Manifest(Record, frozen=True, dict=True):
    """What a device must know to run a variant and to watch it.

    `inputs` and `outputs` are the model's own. What a caller gives and gets is `surface`, which is the same where there
    is no `processing`.
    """

    model: str
    version: str
    variant: str
    runtime: RuntimeFamily
    profiles: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[FileEntry, ...]
    measurement: Measurement
    provenance: Provenance
    task: Task = Task.OTHER
    scores: ScoreKind = ScoreKind.NONE
    labels: tuple[str, ...] = ()
    quality: Quality | None = None
    processing: Processing | None = None
    expected: Expected | None = None
    format_version: int = FORMAT_VERSION

    @cached_property
    def results(self) -> tuple[Traced, ...]:
        """What a caller gets.

        Raises:
            ManifestError: The steps do not fit; never of a manifest that `decode` gave.
        """
        classifies = self.task is Task.CLASSIFICATION
        processing = self.processing or Processing()
        return flow.results(self.inputs, self.outputs, processing, classifies=classifies)

    @cached_property
    def surface(self) -> Manifest:
        """The variant as a caller sees it: inputs before all steps, outputs and scores after them.

        Raises:
            ManifestError: As `results`.
        """
        if self.processing is None:
            return self
        scores = {Meaning.SCORES: self.scores, Meaning.PROBABILITIES: ScoreKind.PROBABILITIES}
        return msgspec.structs.replace(
            self,
            inputs=flow.given(self.inputs, self.processing),
            outputs=tuple(one.spec for one in self.results),
            scores=scores.get(self.results[0].meaning, ScoreKind.NONE),
            processing=None,
        )

    @cached_property
    def watched(self) -> Manifest:
        """The variant as drift is counted on it.

        Inputs as they are given where their shape is fixed, else as the model takes them; outputs as the model gives them.

        Raises:
            ManifestError: As `results`.
        """
        if self.processing is None:
            return self
        inputs = flow.watched(self.inputs, self.processing)
        return msgspec.structs.replace(self, inputs=inputs, processing=None)

    @property
    def release(self) -> ReleaseId:
        """`model@version`."""
        return release_id(self.model, self.version)

    @property
    def target(self) -> str:
        """Path of this variant in signed metadata."""
        return target_path(self.release, self.variant)

    def file(self, name: str) -> FileEntry | None:
        """Find a member's entry by name."""
        return next((entry for entry in self.files if entry.name == name), None)


def target_path(release: ReleaseId, variant: str) -> str:
    """Path of a variant in signed metadata: `model/version/variant.edgeml`."""
    model, _, version = release.partition("@")
    return f"{model}/{version}/{variant}.edgeml"


def encode(manifest: Manifest) -> bytes:
    """Canonical bytes; `decode(encode(m)) == m`."""
    return msgspec.json.encode(manifest, order="sorted")


def decode(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: Too long, no JSON, or not of this format.
        IncompatibleError: Of a newer format, or with a kind of step that is not known here.
    """
    if len(data) > MANIFEST_BYTES_MAX:
        raise ManifestError(f"the manifest has {len(data)} bytes, more than {MANIFEST_BYTES_MAX}")
    try:
        head = msgspec.json.decode(data, type=_Head)
        version = head.format_version
        if version != FORMAT_VERSION:
            raise IncompatibleError(
                f"the manifest has format {version}; this edgeml reads format {FORMAT_VERSION}",
                hint="update edgeml, or build the bundle with an older one",
            )
        _refuse_unknown_steps(head)
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"the manifest is not valid: {error}") from error
    _check(manifest)
    return manifest


class _Head(msgspec.Struct):
    format_version: int = FORMAT_VERSION
    processing: msgspec.Raw = msgspec.Raw()


def _refuse_unknown_steps(head: _Head) -> None:
    """Refuse a bundle that asks for what a newer edgeml does, in words that say so; the rest is read strictly anyway."""
    if head.processing == msgspec.Raw():
        return
    kind = None
    with suppress(msgspec.ValidationError):
        kind = unknown_kind(head.processing)
    if kind is not None:
        raise IncompatibleError(
            f"the manifest asks for a step {kind[:64]!r}, which this edgeml does not know",
            hint="update edgeml, or build the bundle without it",
        )


def _check(manifest: Manifest) -> None:
    for name in (manifest.model, manifest.version, manifest.variant, *manifest.profiles):
        if not is_name(name):
            raise ManifestError(f"the manifest names {name!r}, which is no valid name")
    if not manifest.inputs or not manifest.outputs:
        raise ManifestError("the manifest lists no inputs or no outputs")
    seen: set[str] = set()
    for entry in manifest.files:
        if entry.name in seen or not is_digest(entry.sha256) or entry.length_bytes < 0:
            raise ManifestError(f"the manifest's entry for {entry.name!r} is not valid")
        seen.add(entry.name)
    if manifest.runtime.model_member not in seen:
        raise ManifestError(f"the manifest lists no {manifest.runtime.model_member}")
    if manifest.processing is not None:
        _check_names(manifest)
    if manifest.expected is not None:
        expectation.check(manifest.expected, (spec.name for spec in manifest.surface.inputs))


def _check_names(manifest: Manifest) -> None:
    """Check that steps fit, and that a monitor's column can mean only one tensor."""
    outputs = {spec.name for spec in manifest.outputs}
    renamed = {
        mine.name
        for mine, model in zip(manifest.surface.inputs, manifest.inputs, strict=True)
        if mine.name != model.name
    }
    taken = outputs | {spec.name for spec in manifest.inputs}
    if renamed & taken:
        raise ManifestError(f"what callers give is called {min(renamed & taken)!r}, as another tensor is")
