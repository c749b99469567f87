"""Writes the golden files: one of every byte format of version 1, as bytes that must stay readable for ever.

Run by hand, and only for a new version of a format, into a new folder: `python tests/golden/regenerate.py v2`.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgeml import delta, golden, manifest, monitor, pull, telemetry, topics, twin
from edgeml.bundle import Bundle, write_bundle
from edgeml.expectation import Expected, InputExpectation, Policy, Volume
from edgeml.ids import ChannelId, DeploymentId, DeviceId, Digest, ReleaseId, TenantId, digest_of_file
from edgeml.manifest import (
    FileEntry,
    Manifest,
    Measurement,
    Provenance,
    Quality,
    RuntimeFamily,
    ScoreKind,
    Task,
)
from edgeml.monitor import Column, Monitor, Statistic
from edgeml.sketch import Sketch
from edgeml.steps import (
    BoxForm,
    Cast,
    Crop,
    Dequantise,
    Interpolation,
    MeanSquaredError,
    Normalise,
    Preparation,
    Processing,
    Quantise,
    Reshape,
    Resize,
    Sigmoid,
    Softmax,
    Standardise,
    SuppressOverlaps,
    Threshold,
    TopK,
    Transpose,
)
from edgeml.telemetry import Batch, Counters, Event, InputQuality, Loss, Window
from edgeml.tensors import BATCH, DType, TensorSpec
from edgeml.testing import sample_bundle
from edgeml.twin import DeviceState, Outcome, Slot, Slots

HERE = Path(__file__).parent
BUNDLE = "sample.edgeml"
RELEASE = ReleaseId("digits@1.2.0")
DIGESTS = [Digest(f"{number:02x}" * 32) for number in range(10)]

MANIFEST = Manifest(
    model="digits",
    version="1.2.0",
    variant="onnx-int8",
    runtime=RuntimeFamily.ONNX,
    profiles=("raspberry-pi-4", "generic-x86-64"),
    inputs=(TensorSpec("image", DType.UINT8, (BATCH, 1, 8, 8), "NCHW", 0.5, 3),),
    outputs=(TensorSpec("scores", DType.FLOAT32, (BATCH, 3)), TensorSpec("extra", DType.INT64, (BATCH,))),
    files=(FileEntry("model.onnx", DIGESTS[1], 4096), FileEntry("golden.npz", DIGESTS[2], 1000)),
    measurement=Measurement("workstation", "onnxruntime 1.20.0", 2, 0.25, 0.5, 52_428_800),
    provenance=Provenance(
        "digits.pt", DIGESTS[3], DIGESTS[4], "int8-static", "smallest within the floor", "abc123", ("torch 2.13.0",)
    ),
    task=Task.CLASSIFICATION,
    scores=ScoreKind.LOGITS,
    labels=("zero", "one", "zwölf"),
    quality=Quality("accuracy", 0.96875, 0.984375, 512, 0.9921875),
)  # fmt: skip
MORE = msgspec.structs.replace(
    MANIFEST,
    outputs=(
        TensorSpec("scores", DType.INT8, (BATCH, 3), scale=0.25, zero_point=-7),
        TensorSpec("boxes", DType.FLOAT32, (BATCH, 9, 4)),
        TensorSpec("odds", DType.FLOAT32, (BATCH, 9, 2)),
        TensorSpec("rebuilt", DType.UINT8, (BATCH, 1, 8, 8), scale=0.5, zero_point=3),
    ),
    processing=Processing(
        before=(
            Preparation(
                "image",
                TensorSpec("photo", DType.UINT8, (BATCH, BATCH, BATCH, 1), "NHWC"),
                (
                    Crop(24, 24), Resize(12, 12, Interpolation.NEAREST), Resize(8, 8), Normalise(0.5, (0.25,), (2.0,)),
                    Standardise(0.125), Transpose("NCHW"), Reshape((64, 1)), Reshape((1, 8, 8)), Cast(DType.FLOAT16), Quantise(),
                ),
            ),
        ),
        after=(
            Dequantise("scores"), Softmax("scores", "likely"), TopK("likely", 2, "top-scores", "top-classes"),
            Sigmoid("odds"), SuppressOverlaps("boxes", "odds", 5, 0.25, 0.75, BoxForm.CENTRE, "found", "sure", "kinds"),
            Dequantise("rebuilt"), Dequantise("image"), MeanSquaredError("rebuilt", "image"), Threshold("score", 1.5, "odd"),
        ),
        results=("top-classes", "top-scores", "found", "kinds", "score", "odd"),
    ),
    expected=Expected((InputExpectation("photo", 1.0, 254.5, 0.25, Policy.CLIP),), Volume(30.0, 7200.0)),
)  # fmt: skip
MONITOR = Monitor(
    columns=(
        Column(
            "image", Statistic.MEAN, 0, (1.0, 15.5, 16.0, 0.5), (0.125, 0.5, 1e-9 + 0.75), 0.375, 0.25, 1.5
        ),
        Column("scores", Statistic.CLASS, 0, (10.5, 20.5, 1.5, 0.5)),
        Column("scores", Statistic.SCORE, 2, (1.0, 31.0), (-0.0625,)),
    ),
    reference_rows=32,
    confidence_low=0.3,
    latency_slow_ms=12.5,
)
GOLDEN = golden.Golden(
    inputs=(np.arange(128, dtype=np.uint8).reshape(2, 1, 8, 8),),
    outputs=(
        np.array([[0.5, -1.25, 3.0], [1e-30, 0.0, -0.0]], np.float32),
        np.array([-(1 << 62), 7], np.int64),
    ),
)
SLOT = Slot(RELEASE, DIGESTS[5], "digits/1.2.0/onnx-int8.edgeml", 7)
OLDER = Slot(ReleaseId("digits@1.1.0"), DIGESTS[6], "digits/1.1.0/onnx-fp32.edgeml", 6)
DESIRED = twin.Desired(
    generation=12,
    deployment=DeploymentId("digits-1.2.0-7f3a.cam-01"),
    release=RELEASE,
    target=SLOT.target,
    digest=SLOT.digest,
    policy=twin.Policy(soak_s=30.5, attempts_max=3, trial_restarts_max=1),
    expires_at_ms=1_800_000_000_000,
)
REPORTED = twin.Reported(
    generation=12,
    deployment=DESIRED.deployment,
    state=DeviceState.REPORTING,
    slots=Slots(current=SLOT, previous=OLDER),
    outcome=Outcome.COMMITTED,
    reason="golden vectors agree",
    attempt=2,
    fetched_bytes=123_456,
    at_ms=1_790_000_000_001,
)
STATE = twin.Presence(online=False, session="00000003-a1b2c3")
BIRTH = twin.Birth(
    device=DeviceId("cam-01"),
    session="00000003-a1b2c3",
    profile="raspberry-pi-4",
    agent_version="0.1.0",
    runtimes={"onnxruntime": "1.20.0", "ai-edge-litert": "2.1.0"},
    memory_bytes=4 << 30,
    memory_free_bytes=3 << 30,
    storage_free_bytes=20 << 30,
    clock_trusted=False,
    at_ms=5,
)
ACK = twin.Ack(boot="00000003-a1b2c3", stream="windows", seq=41)
WINDOWS = Batch(
    boot="00000003-a1b2c3",
    windows=(
        Window(40, RELEASE, DIGESTS[5], 1_790_000_000_000, 60_000, Counters(inferences=1)),
        Window(
            41,
            RELEASE,
            DIGESTS[5],
            1_790_000_060_000,
            60_001,
            Counters(inferences=6, errors=1, low_confidence=2, slow=3, labelled=4, wrong=5),
            (0, 0, 5, 1),
            Sketch(DIGESTS[7], 6, ((1, 2, 3), (0, 0, 6, 0)), (-65536, 0), (1 << 40, 0)),
            50 << 20,
        ),
    ),
    loss=Loss(produced=50, acknowledged=39, dropped=9),
)
QUALITY = Batch(
    boot="00000003-a1b2c3",
    windows=(msgspec.structs.replace(WINDOWS.windows[1], quality=InputQuality(1, 2, 3, 4, 5, 6, 7, 8, 9)),),
)
EVENTS = Batch(
    boot="00000003-a1b2c3",
    events=(Event(1, "rolled_back", 1_790_000_000_000, "golden vectors: agreement 0.5", RELEASE), Event(2, "note", 0)),
    loss=Loss(produced=2),
)  # fmt: skip


AHEAD = WINDOWS.ahead()


@dataclass(frozen=True)
class Format:
    """A file, what it says, and how it is written and read."""

    value: Any
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    is_canonical: bool = True
    """Whether equal values must give equal bytes; zlib's and NumPy's are not ours to promise."""


def message(value: Any) -> Format:
    """A message of the twin."""
    return Format(value, twin.encode, lambda data: twin.decode(data, type(value)))


BASE = HERE / "v1" / BUNDLE


def moved(version: str, path: Path) -> Path:
    """Write the golden bundle under another version, every fifth byte of its model moved by one."""
    with Bundle(BASE) as opened:
        members = {entry.name: opened.read(entry.name) for entry in opened.manifest.files}
        about = msgspec.structs.replace(opened.manifest, version=version)
    model = np.frombuffer(members["model.onnx"], np.uint8).copy()
    model[::5] += 1
    write_bundle(path, about, members | {"model.onnx": model.tobytes()})
    return path


def encode_delta(version: str) -> bytes:
    """The delta from the golden bundle to a moved one."""
    with tempfile.TemporaryDirectory() as directory:
        return delta.make(BASE, moved(version, Path(directory) / "moved"))


def decode_delta(data: bytes) -> str:
    """Return the version of the bundle that the delta gives, which must be a moved one."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        target = moved("1.1.0", directory / "moved")
        (directory / "delta").write_bytes(data)
        ends = delta.Expected(digest_of_file(BASE), digest_of_file(target), target.stat().st_size)
        delta.apply(BASE, directory / "delta", directory / "out", ends)
        with Bundle(directory / "out") as opened:
            return opened.manifest.version


PULL = pull.Request(
    channel=ChannelId("a1b2"), id=7, kind=pull.Kind.BLOB, length=32768, name="0" * 64, offset=65536
)
PIECE = pull.Answer(7, pull.Status.PIECE, 65536, 65541, b"piece")
FORMATS = {
    "manifest.json": Format(MANIFEST, manifest.encode, manifest.decode),
    "manifest-with-more.json": Format(MORE, manifest.encode, manifest.decode),
    "monitor.json": Format(MONITOR, monitor.encode, monitor.decode),
    "golden.npz": Format(GOLDEN, golden.encode, lambda data: golden.decode(data, MANIFEST), is_canonical=False),
    "desired.json": message(DESIRED),
    "reported.json": message(REPORTED),
    "state.json": message(STATE),
    "birth.json": message(BIRTH),
    "ack.json": message(ACK),
    "windows.batch": Format(WINDOWS, telemetry.encode_batch, telemetry.decode_batch, is_canonical=False),
    "windows-with-quality.batch": Format(QUALITY, telemetry.encode_batch, telemetry.decode_batch, is_canonical=False),
    "windows-ahead.batch": Format(AHEAD, telemetry.encode_batch, telemetry.decode_batch, is_canonical=False),
    "events.batch": Format(EVENTS, telemetry.encode_batch, telemetry.decode_batch, is_canonical=False),
    "moved.delta": Format("1.1.0", encode_delta, decode_delta, is_canonical=False),
    "pull.json": Format(PULL, pull.encode_request, pull.decode_request),
    "pull.piece": Format(PIECE, pull.encode_answer, pull.decode_answer),
    "mosquitto.acl": Format(
        topics.mosquitto_acl(TenantId("acme")), lambda text: text.encode(), lambda data: data.decode()
    ),
}  # fmt: skip


def main() -> None:
    """Write every file into a folder that does not exist yet."""
    folder = HERE / sys.argv[1]
    folder.mkdir()
    for name, one in FORMATS.items():
        (folder / name).write_bytes(one.encode(one.value))
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory) / BUNDLE
        digest = sample_bundle(made)
        (folder / BUNDLE).write_bytes(made.read_bytes())
        (folder / f"{BUNDLE}.sha256").write_text(f"{digest}\n")


if __name__ == "__main__":
    main()
