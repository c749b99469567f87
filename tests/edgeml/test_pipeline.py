"""The steps in their order, on arrays; every batch is its samples one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import ConfigError
from edgeml.manifest import ScoreKind, Task
from edgeml.pipeline import Pipeline
from edgeml.steps import SIDE_MAX
from edgeml.tensors import DType, TensorSpec

from .test_flow import CAMERA, CLASSIFIER, NORMALISE, RESIZE, TRANSPOSE, made

RANDOM = np.random.default_rng(0)


def photos(count, height, width):
    return RANDOM.integers(0, 256, (count, height, width, 3), np.uint8)


class TestAnImageClassifier:
    def test_a_white_photo_is_what_was_computed_by_hand(self):
        (tensor,) = Pipeline(made(CLASSIFIER)).prepare([np.full((1, 20, 30, 3), 255, np.uint8)])
        assert (tensor.shape, tensor.dtype, tensor.flags.c_contiguous) == ((1, 3, 8, 8), np.float32, True)
        np.testing.assert_allclose(tensor, (1 - 0.5) / 0.25, rtol=1e-5)

    def test_each_channel_has_its_own_mean_and_std(self):
        steps = [RESIZE, NORMALISE | {"scale": 1, "mean": [1, 2, 3], "std": [1, 2, 4]}, TRANSPOSE]
        pipeline = Pipeline(made({"before": [{"input": "x", "given": CAMERA, "steps": steps}]}))
        (tensor,) = pipeline.prepare([np.full((1, 8, 8, 3), 5, np.uint8)])
        assert tensor[0, :, 0, 0].tolist() == [4.0, 1.5, 0.5]

    @given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20))
    def test_a_batch_is_its_samples(self, count, height, width):
        pipeline = Pipeline(made(CLASSIFIER))
        batch = photos(count, height, width)
        (together,) = pipeline.prepare([batch])
        alone = np.concatenate([pipeline.prepare([batch[i : i + 1]])[0] for i in range(count)])
        np.testing.assert_array_equal(together, alone)

    def test_many_samples_go_through_in_pieces(self):
        pipeline = Pipeline(made(CLASSIFIER))
        batch = photos(150, 9, 9)
        np.testing.assert_array_equal(pipeline.prepare_samples([batch])[0], pipeline.prepare([batch])[0])

    def test_so_do_samples_of_which_few_are_too_many_at_once(self):
        steps = [RESIZE | {"height": 1024, "width": 1024}, RESIZE, NORMALISE, TRANSPOSE]
        pipeline = Pipeline(made({"before": [{"input": "x", "given": CAMERA, "steps": steps}]}))
        with pytest.raises(ConfigError, match="6 samples; at most 5 are prepared at once"):
            pipeline.prepare([photos(6, 2, 2)])
        assert pipeline.prepare_samples([photos(6, 2, 2)])[0].shape == (6, 3, 8, 8)

    def test_what_the_caller_gave_is_not_changed(self):
        batch = photos(2, 8, 8)
        kept = batch.copy()
        Pipeline(made(CLASSIFIER)).prepare([batch])
        np.testing.assert_array_equal(batch, kept)

    def test_a_side_that_is_too_long_is_the_callers_mistake(self):
        with pytest.raises(ConfigError, match=r"photo has shape \[1, 1, 4097, 3\]"):
            Pipeline(made(CLASSIFIER)).prepare([np.zeros((1, 1, SIDE_MAX + 1, 3), np.uint8)])

    def test_many_small_images_are_not_made_large_ones_all_at_once(self):
        """A request of 9 MB would become 2 GB of float32."""
        with pytest.raises(
            ConfigError, match=r"photo has 3000000 samples; at most 87381 are prepared at once"
        ):
            Pipeline(made(CLASSIFIER)).prepare([np.zeros((3_000_000, 1, 1, 3), np.uint8)])

    def test_an_image_smaller_than_its_middle_is_the_callers_mistake(self):
        steps = [{"kind": "crop", "height": 8, "width": 8}, NORMALISE, TRANSPOSE]
        pipeline = Pipeline(made({"before": [{"input": "x", "given": CAMERA, "steps": steps}]}))
        with pytest.raises(ConfigError, match="photo is 7 x 9 pixels, its middle 8 x 8 is wanted"):
            pipeline.prepare([photos(1, 7, 9)])

    def test_the_answer_is_probabilities(self):
        pipeline = Pipeline(made(CLASSIFIER))
        logits = np.log(np.array([[1, 2, 3, 2, 2]], np.float32))
        (answer,) = pipeline.answer(lambda _: [logits], [photos(1, 8, 8)])
        np.testing.assert_allclose(answer, [[0.1, 0.2, 0.3, 0.2, 0.2]], rtol=1e-5)


def test_without_steps_arrays_pass_as_they_are():
    pipeline = Pipeline(made(None))
    given_array, answer = np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 5), np.float32)
    assert pipeline.prepare([given_array])[0] is given_array
    assert pipeline.finish([given_array], [answer])[0] is answer
    assert pipeline.watched([given_array], [given_array])[0] is given_array


def test_an_anomaly_score_is_of_what_the_quantised_model_saw():
    spec = TensorSpec("x", DType.INT8, (1, 4), scale=0.5, zero_point=3)
    output = TensorSpec("y", DType.INT8, (1, 4), scale=0.25, zero_point=0)
    processing = {
        "before": [
            {"input": "x", "given": {"name": "spectrum", "dtype": "float32", "shape": [1, 4]}, "steps": [{"kind": "quantise"}]}
        ],
        "after": [
            {"kind": "dequantise", "tensor": "x"},
            {"kind": "dequantise", "tensor": "y"},
            {"kind": "mean_squared_error", "tensor": "y", "original": "x"},
            {"kind": "threshold", "tensor": "score", "at": 1.0, "into": "anomalous"},
        ],
        "results": ["score", "anomalous"],
    }  # fmt: skip
    manifest = made(processing, inputs=(spec,), outputs=(output,), task=Task.OTHER, scores=ScoreKind.NONE)
    pipeline = Pipeline(manifest)
    (inputs,) = pipeline.prepare([np.array([[0.0, 0.6, 1.0, -1.0]], np.float32)])
    assert (inputs.dtype, inputs.tolist()) == (np.int8, [[3, 4, 5, 1]])
    # The model answers 0, 0.5, 1, 1 to 0, 0.5, 1, -1: one element is off by 2.
    score, anomalous = pipeline.finish([inputs], [np.array([[0, 2, 4, 4]], np.int8)])
    assert (score.tolist(), anomalous.tolist(), anomalous.dtype) == ([1.0], [True], np.bool_)


def test_a_window_of_a_sensor_is_standardised_and_reshaped():
    spec = TensorSpec("x", DType.FLOAT32, (-1, 8))
    steps = [
        {"kind": "standardise"},
        {"kind": "transpose", "layout": "NCT"},
        {"kind": "reshape", "shape": [8]},
    ]
    window = {"name": "imu", "dtype": "int16", "shape": [-1, 4, 2], "layout": "NTC"}
    pipeline = Pipeline(made({"before": [{"input": "x", "given": window, "steps": steps}]}, inputs=(spec,)))
    rows = np.array([[[0, 5], [2, 5], [0, 5], [2, 5]]], np.int16)
    assert pipeline.prepare([rows])[0].tolist() == [[-1, 1, -1, 1, 0, 0, 0, 0]]


def test_a_detector_keeps_the_best_boxes_of_each_sample():
    outputs = (
        TensorSpec("b", DType.FLOAT32, (-1, 3, 4)),
        TensorSpec("s", DType.FLOAT32, (-1, 3)),
    )
    step = {"kind": "suppress_overlaps", "boxes": "b", "scores": "s", "count": 2, "score_min": 0.2}
    manifest = made({"after": [step], "results": ["scores", "classes"]}, outputs=outputs, task=Task.OTHER)
    boxes = np.array([[[0, 0, 2, 2], [0, 0, 2, 2.1], [5, 5, 6, 6]]] * 2, np.float32)
    odds = np.array([[0.5, 0.9, 0.3], [0.1, 0.1, 0.1]], np.float32)
    scores, classes = Pipeline(manifest).finish([np.zeros((2, 1))], [boxes, odds])
    np.testing.assert_allclose(scores, [[0.9, 0.3], [0, 0]])
    assert classes.tolist() == [[0, 0], [-1, -1]]


def test_the_highest_of_a_classifier():
    step = {"kind": "top_k", "tensor": "y", "count": 2}
    pipeline = Pipeline(made({"after": [step], "results": ["classes", "scores"]}))
    classes, scores = pipeline.finish([np.zeros((1, 1))], [np.array([[1, 5, 3, 4, 2]], np.float32)])
    assert (classes.tolist(), scores.tolist()) == ([[1, 3]], [[5, 4]])
