"""Golden vectors: they survive their file, hostile files are refused, and two answers are the same when they should be."""

import io

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml import golden
from edgeml.errors import ManifestError
from edgeml.golden import AGREEMENT_MIN, TOLERANCE_FRACTION, Golden, compare
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily, ScoreKind, Task
from edgeml.steps import Processing, TopK
from edgeml.tensors import BATCH, DType, TensorSpec

MANIFEST = Manifest(
    model="m", version="1", variant="onnx-fp32", runtime=RuntimeFamily.ONNX, profiles=("generic-x86-64",),
    inputs=(TensorSpec("x", DType.FLOAT32, (BATCH, 4)),), outputs=(TensorSpec("y", DType.FLOAT32, (BATCH, 3)),), files=(),
    measurement=Measurement("host", "onnxruntime", 1, 1.0, 2.0, 3), provenance=Provenance("s", "0" * 64),
    task=Task.CLASSIFICATION, scores=ScoreKind.LOGITS,
)  # fmt: skip
OTHER = msgspec.structs.replace(MANIFEST, task=Task.OTHER, scores=ScoreKind.NONE)
GENERATOR = np.random.default_rng(0)
RECORDED = Golden(
    (GENERATOR.normal(size=(16, 4)).astype(np.float32),), (GENERATOR.normal(size=(16, 3)).astype(np.float32),)
)


def npz(compressed=False, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def member(descr, shape, body=b"\0" * 64):
    """Return an .npz whose input_0 has a forged header."""
    import zipfile

    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(
            "input_0.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body
        )
        archive.writestr("output_0.npy", b"")
    return file.getvalue()


class TestTheFile:
    def test_what_was_written_is_read(self):
        read = golden.decode(golden.encode(RECORDED), MANIFEST)
        np.testing.assert_array_equal(read.inputs[0], RECORDED.inputs[0])
        np.testing.assert_array_equal(read.outputs[0], RECORDED.outputs[0])
        assert read.samples == 16

    def test_equal_arrays_give_equal_bytes(self):
        copied = Golden((RECORDED.inputs[0].copy(),), (RECORDED.outputs[0].copy(),))
        assert golden.encode(copied) == golden.encode(RECORDED)

    @pytest.mark.parametrize(
        ("arrays", "what"),
        [
            ({"input_0": RECORDED.inputs[0]}, "output"),
            ({"input_0": RECORDED.inputs[0].astype(np.float64), "output_0": RECORDED.outputs[0]}, "dtype"),
            ({"input_0": RECORDED.inputs[0], "output_0": RECORDED.outputs[0][:4]}, "count"),
            ({"input_0": RECORDED.inputs[0][:, None], "output_0": RECORDED.outputs[0]}, "rank"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_arrays_that_are_not_the_manifests_are_refused(self, arrays, what):
        with pytest.raises(ManifestError):
            golden.decode(npz(**arrays), MANIFEST)

    def test_a_compressed_file_is_refused(self):
        data = npz(compressed=True, input_0=RECORDED.inputs[0], output_0=RECORDED.outputs[0])
        with pytest.raises(ManifestError, match="compressed"):
            golden.decode(data, MANIFEST)

    def test_pickles_are_refused(self):
        data = npz(input_0=np.array([{}] * 16, dtype=object), output_0=RECORDED.outputs[0])
        with pytest.raises(ManifestError):
            golden.decode(data, MANIFEST)

    @pytest.mark.parametrize(
        "data", [b"", b"PK\x03\x04", b"nothing of the kind", golden.encode(RECORDED)[:-40]]
    )
    def test_a_file_that_is_none_is_refused(self, data):
        with pytest.raises(ManifestError):
            golden.decode(data, MANIFEST)

    def test_a_header_of_the_wrong_type_is_refused(self):
        with pytest.raises(ManifestError):
            golden.decode(member("|O", "(16, 4)"), MANIFEST)

    @given(st.binary(max_size=400))
    def test_any_bytes_are_read_or_refused(self, data):
        with pytest.raises(ManifestError):
            golden.decode(data, MANIFEST)


class TestTheComparison:
    def test_the_same_answers_pass(self):
        result = compare(RECORDED.outputs, RECORDED.outputs, MANIFEST)
        assert result.passed
        assert (result.agreement, result.difference_fraction) == (1.0, 0.0)
        assert result.describe() == "agreement 1.000, largest difference 0.0000 of the range"

    @pytest.mark.parametrize(("fraction", "passed"), [(0.9, True), (1.1, False)])
    def test_values_may_differ_by_the_tolerance_and_no_more(self, fraction, passed):
        span = np.ptp(RECORDED.outputs[0])
        moved = (RECORDED.outputs[0] + fraction * TOLERANCE_FRACTION * span,)
        assert compare(RECORDED.outputs, moved, OTHER).passed is passed

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_an_answer_that_is_no_number_fails(self, bad):
        broken = RECORDED.outputs[0].copy()
        broken[3, 1] = bad
        assert not compare(RECORDED.outputs, (broken,), MANIFEST).passed

    def test_another_shape_fails(self):
        assert not compare(RECORDED.outputs, (RECORDED.outputs[0][:, :2],), MANIFEST).passed

    def test_integers_two_steps_apart_pass(self):
        recorded = (np.tile(np.array([[-128, 0, 127]], np.int8), (16, 1)),)
        observed = (np.tile(np.array([[-126, -2, 125]], np.int8), (16, 1)),)
        assert compare(recorded, observed, MANIFEST).passed

    def test_a_constant_output_that_stays_passes(self):
        constant = (np.full((16, 3), 7, np.float32),)
        assert compare(constant, constant, OTHER).passed

    @given(wrong=st.integers(0, 20))
    def test_classes_must_agree_on_nearly_all_samples(self, wrong):
        # Near-ties: values hardly move, classes do.
        recorded = np.tile(np.array([[1.0, 1.01, -1.0]]), (20, 1))
        observed = recorded.copy()
        observed[:wrong, 0] = 1.02
        result = compare((recorded,), (observed,), MANIFEST)
        assert result.agreement == pytest.approx(1 - wrong / 20)
        assert result.passed is (1 - wrong / 20 >= AGREEMENT_MIN)
        assert compare((recorded,), (observed,), OTHER).passed


class TestWhatStepsFound:
    """Top two of five classes, [samples, 2] scores and [samples, 2] classes."""

    ABOUT = msgspec.structs.replace(
        MANIFEST,
        outputs=(TensorSpec("y", DType.FLOAT32, (BATCH, 5)),),
        processing=Processing(after=(TopK("y", 2),), results=("scores", "classes")),
    )
    SCORES = np.tile(np.array([[3.0, 1.0]], np.float32), (20, 1))
    CLASSES = np.tile(np.array([[4, 0]]), (20, 1))

    def compared(self, swapped, other_score=1.0):
        scores, classes = self.SCORES.copy(), self.CLASSES.copy()
        classes[:swapped] = [0, 4]
        scores[:swapped, 1] = other_score
        return golden.compare((self.SCORES, self.CLASSES), (scores, classes), self.ABOUT)

    def test_classes_must_be_equal_on_most_samples(self):
        assert (self.compared(2).passed, self.compared(2).agreement) == (True, 0.9)
        assert not self.compared(3).passed

    def test_values_are_compared_where_classes_agree(self):
        assert self.compared(2, other_score=-50.0).difference_fraction == 0.0
        moved = self.SCORES + np.float32(0.2)
        result = golden.compare((self.SCORES, self.CLASSES), (moved, self.CLASSES), self.ABOUT)
        assert not result.passed
        assert result.difference_fraction == pytest.approx(0.1)

    def test_nothing_in_common_fails(self):
        assert (self.compared(20).passed, self.compared(20).agreement) == (False, 0.0)
