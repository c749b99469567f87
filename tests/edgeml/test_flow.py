"""Steps as data: what fits, what a caller sees, and what is refused before anything runs."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml import flow
from edgeml import manifest as manifest_format
from edgeml.errors import ArtifactError, ConfigError, IncompatibleError, ManifestError
from edgeml.ids import Digest
from edgeml.inference import ModelMetadata
from edgeml.manifest import FileEntry, Manifest, Measurement, Provenance, RuntimeFamily, ScoreKind, Task
from edgeml.pipeline import Pipeline
from edgeml.steps import KINDS_AFTER, KINDS_BEFORE, Processing
from edgeml.tensors import DType, TensorSpec

DIGEST = Digest("ab" * 32)
FLOATS, BYTES = DType.FLOAT32, DType.UINT8
CAMERA = {"name": "photo", "dtype": "uint8", "shape": [-1, -1, -1, 3], "layout": "NHWC"}
RESIZE = {"kind": "resize", "height": 8, "width": 8}
NORMALISE = {"kind": "normalise", "scale": 1 / 255, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
TRANSPOSE = {"kind": "transpose", "layout": "NCHW"}
CLASSIFIER = {
    "before": [{"input": "x", "given": CAMERA, "steps": [RESIZE, NORMALISE, TRANSPOSE]}],
    "after": [{"kind": "softmax", "tensor": "y"}],
}


def made(processing, inputs=None, outputs=None, **fields):
    """A manifest of an image classifier with steps, which went through its bytes."""
    manifest = Manifest(
        model="m", version="1.0", variant="onnx-fp32", runtime=RuntimeFamily.ONNX, profiles=("p",),
        inputs=inputs or (TensorSpec("x", FLOATS, (-1, 3, 8, 8), "NCHW"),),
        outputs=outputs or (TensorSpec("y", FLOATS, (-1, 5)),),
        files=(FileEntry("model.onnx", DIGEST, 10),), measurement=Measurement("h", "r", 1, 1.0, 2.0, 3),
        provenance=Provenance("s", DIGEST),
        **{"task": Task.CLASSIFICATION, "scores": ScoreKind.LOGITS} | fields,
    )  # fmt: skip
    raw = json.loads(manifest_format.encode(manifest)) | {"processing": processing}
    return manifest_format.decode(json.dumps(raw).encode())


def shapes(specs):
    return [(spec.name, spec.dtype.value, spec.shape) for spec in specs]


class TestWhatACallerSees:
    def test_an_image_classifier_takes_photos_and_gives_probabilities(self):
        manifest = made(CLASSIFIER)
        assert shapes(manifest.surface.inputs) == [("photo", "uint8", (-1, -1, -1, 3))]
        assert shapes(manifest.surface.outputs) == [("y", "float32", (-1, 5))]
        metadata = ModelMetadata.of(manifest)
        assert [(one.name, one.datatype, one.shape) for one in metadata.inputs] == [
            ("photo", "UINT8", (-1, -1, -1, 3))
        ]
        assert metadata.parameters.scores == "probabilities"
        assert manifest.inputs[0].name == "x"

    def test_a_detector_gives_boxes(self):
        outputs = (
            TensorSpec("raw_boxes", DType.INT8, (1, 20, 4), scale=0.5, zero_point=1),
            TensorSpec("raw_scores", DType.INT8, (1, 20, 3), scale=0.1, zero_point=-5),
        )
        after = [
            {"kind": "dequantise", "tensor": "raw_boxes", "into": "real-boxes"},
            {"kind": "dequantise", "tensor": "raw_scores"},
            {"kind": "sigmoid", "tensor": "raw_scores", "into": "odds"},
            {"kind": "suppress_overlaps", "boxes": "real-boxes", "scores": "odds", "count": 7},
        ]
        processing = {"after": after, "results": ["boxes", "classes", "scores"]}
        manifest = made(processing, outputs=outputs, task=Task.OTHER, scores=ScoreKind.NONE)
        assert shapes(manifest.surface.outputs) == [
            ("boxes", "float32", (1, 7, 4)), ("classes", "int64", (1, 7)), ("scores", "float32", (1, 7)),
        ]  # fmt: skip
        assert [one.meaning.value for one in manifest.results] == ["values", "classes", "values"]

    def test_an_anomaly_detector_gives_a_score_and_a_verdict(self):
        spec = TensorSpec("x", DType.INT8, (1, 640), scale=0.4, zero_point=3)
        output = msgspec.structs.replace(spec, name="y")
        processing = {
            "before": [
                {"input": "x", "given": {"name": "x", "dtype": "float32", "shape": [1, 640]}, "steps": [{"kind": "quantise"}]}
            ],
            "after": [
                {"kind": "dequantise", "tensor": "x"},
                {"kind": "dequantise", "tensor": "y"},
                {"kind": "mean_squared_error", "tensor": "y", "original": "x"},
                {"kind": "threshold", "tensor": "score", "at": 10.5, "into": "anomalous"},
            ],
            "results": ["score", "anomalous"],
        }  # fmt: skip
        manifest = made(processing, inputs=(spec,), outputs=(output,), task=Task.OTHER)
        assert shapes(manifest.surface.outputs) == [("score", "float32", (1,)), ("anomalous", "bool", (1,))]

    def test_without_steps_it_is_the_manifest_itself(self):
        manifest = made(None)
        assert manifest.surface is manifest.watched is manifest

    def test_top_classes_are_no_scores_of_every_class(self):
        processing = {
            "after": [{"kind": "top_k", "tensor": "y", "count": 2}],
            "results": ["scores", "classes"],
        }
        assert made(processing).surface.scores is ScoreKind.NONE

    def test_steps_that_only_make_something_else_leave_the_outputs(self):
        manifest = made({"after": [{"kind": "softmax", "tensor": "y", "into": "odds"}]})
        assert manifest.surface.outputs == manifest.outputs
        assert manifest.surface.scores is ScoreKind.LOGITS


class TestWhatIsWatched:
    def test_what_is_given_where_its_shape_is_fixed(self):
        fixed = CAMERA | {"shape": [-1, 16, 16, 3]}
        manifest = made({"before": [CLASSIFIER["before"][0] | {"given": fixed}]})
        assert shapes(manifest.watched.inputs) == [("photo", "uint8", (-1, 16, 16, 3))]

    def test_what_the_model_takes_where_it_is_not(self):
        manifest = made(CLASSIFIER)
        assert manifest.watched.inputs == manifest.inputs
        assert manifest.watched.outputs == manifest.outputs
        assert manifest.watched.scores is ScoreKind.LOGITS

    def test_the_pipeline_chooses_the_same(self):
        photo, tensor = np.zeros((1, 9, 9, 3), np.uint8), np.zeros((1, 3, 8, 8), np.float32)
        assert Pipeline(made(CLASSIFIER)).watched([photo], [tensor])[0] is tensor
        fixed = CLASSIFIER["before"][0] | {"given": CAMERA | {"shape": [-1, 16, 16, 3]}}
        assert Pipeline(made({"before": [fixed]})).watched([photo], [tensor])[0] is photo


def before(*steps, **given):
    return {"before": [{"input": "x", "given": CAMERA | given, "steps": list(steps)}]}


def after(*steps, results=()):
    return {"after": list(steps), "results": list(results)}


REFUSED = {
    "an input that there is not": {"before": [{"input": "z", "given": CAMERA, "steps": []}]},
    "an input twice": {"before": CLASSIFIER["before"] * 2},
    "steps that miss the model's shape": before(RESIZE | {"height": 9}, NORMALISE, TRANSPOSE),
    "steps that miss its type": before(RESIZE | {"interpolation": "nearest"}, TRANSPOSE),
    "steps that miss its layout": before(RESIZE, NORMALISE),
    "a free side that no step fixes": before(NORMALISE, TRANSPOSE),
    "an image without a layout": before(RESIZE, layout=""),
    "a layout of another rank": before(RESIZE, layout="NHW"),
    "a layout with a letter twice": before(RESIZE, layout="NHHC"),
    "a layout without a batch": before(RESIZE, layout="HWCN"),
    "another batch": before(RESIZE, NORMALISE, TRANSPOSE, shape=[1, -1, -1, 3]),
    "free channels": before(RESIZE, NORMALISE, TRANSPOSE, shape=[-1, -1, -1, -1]),
    "a scale of what is given": before(RESIZE, NORMALISE, TRANSPOSE, scale=0.5),
    "a side that is too long": before(RESIZE, NORMALISE, TRANSPOSE, shape=[-1, 5000, 8, 3]),
    "a side of nothing": before(RESIZE, NORMALISE, TRANSPOSE, shape=[-1, 0, 8, 3]),
    "no name": before(RESIZE, NORMALISE, TRANSPOSE, name=""),
    "the name of an output": before(RESIZE, NORMALISE, TRANSPOSE, name="y"),
    "a resize to nothing": before(RESIZE | {"height": 0}, NORMALISE, TRANSPOSE),
    "a resize without end": before(RESIZE | {"height": 1 << 20}, NORMALISE, TRANSPOSE),
    "too many elements": before({"kind": "resize", "height": 4096, "width": 4096}, NORMALISE, TRANSPOSE),
    "a crop of more than there is": before({"kind": "crop", "height": 9, "width": 8}, shape=[-1, 8, 8, 3]),
    "values for other channels": before(RESIZE, NORMALISE | {"mean": [0.5, 0.5]}, TRANSPOSE),
    "no values": before(RESIZE, NORMALISE | {"mean": []}, TRANSPOSE),
    "a division by nothing": before(RESIZE, NORMALISE | {"std": [1, 0, 1]}, TRANSPOSE),
    "another order of other letters": before(RESIZE, NORMALISE, {"kind": "transpose", "layout": "NCTW"}),
    "a reshape to other elements": before(RESIZE, {"kind": "reshape", "shape": [3, 9, 8]}),
    "a reshape of what is free": before({"kind": "reshape", "shape": [3, 8, 8]}),
    "quantise for reals": before(RESIZE, {"kind": "quantise"}),
    "too many steps": before(*[RESIZE] * 40, NORMALISE, TRANSPOSE),
    "a step with a field it has not": before(RESIZE | {"antialias": True}, NORMALISE, TRANSPOSE),
    "a step of a tensor that there is not": after({"kind": "softmax", "tensor": "z"}),
    "dequantise of reals": after({"kind": "dequantise", "tensor": "y"}),
    "more than there are": after({"kind": "top_k", "tensor": "y", "count": 6}),
    "one name for two things": after({"kind": "top_k", "tensor": "y", "count": 2, "classes_into": "scores"}),
    "boxes that are none": after({"kind": "suppress_overlaps", "boxes": "y", "scores": "y", "count": 2}),
    "a difference of other shapes": after({"kind": "mean_squared_error", "tensor": "y", "original": "x"}),
    "a result that there is not": after(results=["score"]),
    "a result twice": after(results=["y", "y"]),
    "a name that is none": after({"kind": "softmax", "tensor": "y", "into": "a\nb"}),
    "a step before among those after": after(RESIZE),
}  # fmt: skip


@pytest.mark.parametrize("processing", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(processing):
    with pytest.raises(ArtifactError) as raised:
        made(processing)
    assert raised.value.message.isprintable()


def test_integers_are_dequantised_before_anything_else():
    outputs = (TensorSpec("y", DType.INT8, (-1, 5), scale=0.1, zero_point=0),)
    for step in (
        {"kind": "softmax", "tensor": "y"}, {"kind": "sigmoid", "tensor": "y"},
        {"kind": "threshold", "tensor": "y", "at": 1}, {"kind": "top_k", "tensor": "y", "count": 1},
    ):  # fmt: skip
        with pytest.raises(ManifestError, match="dequantise it first"):
            made(after(step), outputs=outputs)


class TestANewerBundle:
    @pytest.mark.parametrize(
        "processing",
        [
            before(RESIZE, {"kind": "deskew", "angle": 3}, NORMALISE, TRANSPOSE),
            after({"kind": "deskew", "angle": 3}),
            after({"kind": "softmax", "tensor": "y"}, {"kind": "deskew"}),
        ],
    )
    def test_a_step_that_is_not_known_is_named(self, processing):
        with pytest.raises(IncompatibleError, match="'deskew', which this edgeml does not know") as raised:
            made(processing)
        assert raised.value.hint

    def test_its_name_cannot_write_into_a_log(self):
        with pytest.raises(IncompatibleError) as raised:
            made(after({"kind": "a\nERROR: all is lost\x1b[2J" + "x" * 5000}))
        assert raised.value.message.isprintable()
        assert len(raised.value.message) < 300


def test_every_kind_of_step_is_documented(request):
    text = (request.config.rootpath / "docs/bundle-format.md").read_text()
    missing = [kind for kind in KINDS_BEFORE | KINDS_AFTER if f"| `{kind}` |" not in text]
    assert missing == []


def test_bytes_of_a_manifest_with_steps_are_canonical():
    manifest = made(CLASSIFIER)
    data = manifest_format.encode(manifest)
    assert manifest_format.decode(data) == manifest
    assert manifest_format.encode(manifest_format.decode(data)) == data
    _ = manifest.surface
    assert manifest_format.encode(manifest) == data


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def paths(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


PATHS = sorted(paths(CLASSIFIER), key=repr)


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@given(st.sampled_from(PATHS), JSON)
@settings(max_examples=300)
def test_any_value_anywhere_gives_steps_that_run_or_an_error_of_ours(path, value):
    try:
        manifest = made(replaced(CLASSIFIER, path, value))
    except ArtifactError:
        return
    pipeline = Pipeline(manifest)
    given_specs = manifest.surface.inputs
    arrays = [
        np.ones([size if size > 0 else 9 for size in spec.shape[:1] + spec.sample_shape], spec.dtype.value)
        for spec in given_specs
    ]
    try:
        inputs = pipeline.prepare(arrays)
    except ConfigError:
        return
    for array, spec in zip(inputs, manifest.inputs, strict=True):
        assert array.dtype == spec.dtype.value
        assert array.shape[1:] == spec.sample_shape


def test_free_sides_are_told_from_fixed_ones():
    assert flow.is_fixed(TensorSpec("x", FLOATS, (-1, 3)))
    assert not flow.is_fixed(TensorSpec("x", FLOATS, (-1, -1)))
    assert Processing() == Processing((), (), ())
