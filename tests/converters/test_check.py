"""Data before training or calibration: each planted fault in real data is found and named, sound data pass."""

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import converters
from converters.assemble import ReleaseName
from converters.check_command import check
from converters.data_finding import Kind, Severity
from converters.existing import PackagingOrder
from converters.processing_file import read_processing
from edgeml.errors import ArtifactError
from edgeml.expectation import Expected, InputExpectation, Policy
from edgeml.manifest import RuntimeFamily, ScoreKind
from edgeml.probe import describe
from edgeml.profile import load

MLPERF = Path(os.environ.get("EDGEML_MLPERF_TINY", "/nonexistent"))


def bundled(directory, name, model, **more):
    order = PackagingOrder(
        model=model,
        profiles=(load("generic-x86-64"),),
        release=ReleaseName(name, "1.0.0"),
        out=directory,
        **more,
    )
    return Path(converters.package(order).bundle.path)


def linear(path, weights, bias, shape):
    """An ONNX file that flattens its input and multiplies it."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [
            numpy_helper.from_array(weights.astype(np.float32), "w"),
            numpy_helper.from_array(bias.astype(np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def shuffled(loaded):
    order = np.random.default_rng(0).permutation(len(loaded.data))
    return loaded.data[order].astype(np.float32), loaded.target[order]


@pytest.fixture(scope="module")
def tumours(tmp_path_factory):
    """Breast-cancer measurements: 30 columns, two classes; half of them judged the bundle's model."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import RidgeClassifier

    directory = tmp_path_factory.mktemp("tumours")
    x, y = shuffled(load_breast_cancer())
    spread = x.std(axis=0)
    fitted = RidgeClassifier().fit(x[:300] / spread, y[:300])
    coefficients = np.ravel(fitted.coef_) / spread
    weights, bias = np.stack([-coefficients, coefficients], axis=1), np.ravel(fitted.intercept_)
    model = linear(directory / "t.onnx", weights, np.array([-1.0, 1.0]) * bias, (30,))
    np.savez(directory / "judged.npz", evaluation_x=x[300:], evaluation_y=y[300:])
    bundle = bundled(directory, "tumours", model, data=directory / "judged.npz", labels=("bad", "good"))
    return bundle, x, y


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Digits as [1, 8, 8] pictures; values outside of 0 to 1 are refused by the bundle."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import RidgeClassifier

    directory = tmp_path_factory.mktemp("pictures")
    x, y = shuffled(load_digits())
    x = (x / 16).reshape(-1, 1, 8, 8)
    fitted = RidgeClassifier().fit(x[:900].reshape(900, -1), y[:900])
    model = linear(directory / "d.onnx", fitted.coef_.T, fitted.intercept_, (1, 8, 8))
    np.savez(directory / "judged.npz", evaluation_x=x[900:], evaluation_y=y[900:])
    expected = Expected((InputExpectation("x", 0.0, 1.0, policy=Policy.REFUSE),))
    bundle = bundled(directory, "digits", model, data=directory / "judged.npz", expected=expected)
    return bundle, x, y


STEPS = """
[[before]]
input = "x"
given = { name = "photo", dtype = "uint8", shape = [-1, -1, -1, 1], layout = "NHWC" }
steps = [
  { kind = "resize", height = 8, width = 8 },
  { kind = "normalise", scale = 0.00392156862745098 },
  { kind = "transpose", layout = "NCHW" },
]
"""


@pytest.fixture(scope="module")
def photos(pictures, tmp_path_factory):
    """The digits as bytes of 16 x 16 pixels, which the bundle's own steps make the model's input of."""
    directory = tmp_path_factory.mktemp("photos")
    (directory / "steps.toml").write_text(STEPS)
    _, x, y = pictures
    given = np.rint(x.transpose(0, 2, 3, 1) * 255).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    np.savez(directory / "judged.npz", evaluation_x=given[900:], evaluation_y=y[900:])
    model = pictures[0].parent / "d.onnx"
    steps = read_processing(directory / "steps.toml")
    return bundled(directory, "photos", model, data=directory / "judged.npz", processing=steps), given


class Looked:
    """What the command said of arrays that were written to a file."""

    def __init__(self, directory, spec, arrays):
        path = directory / "data.npz"
        np.savez(path, **arrays)
        self._of(path, spec)

    def _of(self, path, spec):
        arguments = [str(path), "--json"] + (["--spec", str(spec)] if spec else [])
        self.result = CliRunner().invoke(check, arguments)
        assert self.result.exception is None or isinstance(self.result.exception, ArtifactError)
        said = msgspec.json.decode(self.result.stdout)
        self.drift = said["drift"]
        self.calibration = said["calibration"]
        self.findings = said["findings"]

    @classmethod
    def file(cls, path, spec):
        looked = cls.__new__(cls)
        looked._of(path, spec)
        return looked

    @property
    def exit_code(self):
        return getattr(self.result.exception, "exit_code", self.result.exit_code)

    def of(self, kind, severity=Severity.VIOLATION):
        return [
            one for one in self.findings if (one["kind"], one["severity"]) == (kind.value, severity.value)
        ]


def tumour_arrays(x, y):
    return {
        "calibration_x": x[:150].copy(), "train_x": x[150:300].copy(), "train_y": y[150:300].copy(),
        "evaluation_x": x[300:].copy(), "evaluation_y": y[300:].copy(),
    }  # fmt: skip


def test_sound_data_pass(tumours, tmp_path):
    bundle, x, y = tumours
    looked = Looked(tmp_path, bundle, tumour_arrays(x, y))
    assert looked.exit_code == 0, looked.findings
    assert all(one["verdict"] == "ok" for one in looked.drift)
    assert {one["array"] for one in looked.drift} == {"calibration_x", "train_x", "evaluation_x"}


def plant_nan(arrays):
    arrays["calibration_x"][7, 3] = np.nan


def plant_infinity(arrays):
    arrays["train_x"][9, 4] = np.inf


def plant_another_unit(arrays):
    arrays["calibration_x"][:40, 0] *= 1000


def plant_a_value_out_of_one_columns_range(arrays):
    arrays["calibration_x"][:40, 4] = 5.0


def plant_drift(arrays):
    arrays["train_x"][:, 1] += 6


def plant_leakage(arrays):
    arrays["evaluation_x"][:20] = arrays["train_x"][30:50]


def plant_leakage_of_calibration(arrays):
    arrays["evaluation_x"][:20] = arrays["calibration_x"][30:50]


def plant_a_wrong_type(arrays):
    arrays["train_x"] = arrays["train_x"].astype(np.float64)


def plant_a_missing_column(arrays):
    arrays["train_x"] = arrays["train_x"][:, :29]


def plant_an_unknown_class(arrays):
    arrays["evaluation_y"][5] = 2


def plant_labels_that_are_too_few(arrays):
    arrays["train_y"] = arrays["train_y"][:-1]


def plant_too_few_samples(arrays):
    arrays["calibration_x"] = arrays["calibration_x"][:10]


@pytest.mark.parametrize(
    ("plant", "kind", "array", "column", "count"),
    [
        (plant_nan, Kind.MISSING, "calibration_x", "[3]", 1),
        (plant_infinity, Kind.INFINITE, "train_x", "[4]", 1),
        (plant_another_unit, Kind.RANGE, "calibration_x", "[0]", 40),
        (plant_a_value_out_of_one_columns_range, Kind.RANGE, "calibration_x", "[4]", 40),
        (plant_drift, Kind.DRIFT, "train_x", "x.element[1]", 0),
        (plant_leakage, Kind.LEAKAGE, "evaluation_x", "", 20),
        (plant_leakage_of_calibration, Kind.LEAKAGE, "evaluation_x", "", 20),
        (plant_a_wrong_type, Kind.TYPE, "train_x", "", 0),
        (plant_a_missing_column, Kind.SCHEMA, "train_x", "", 150),
        (plant_an_unknown_class, Kind.LABELS, "evaluation_y", "", 1),
        (plant_labels_that_are_too_few, Kind.LABELS, "train_y", "", 0),
        (plant_too_few_samples, Kind.SCHEMA, "calibration_x", "", 10),
    ],
)
def test_a_planted_fault_is_found_where_it_is(tumours, tmp_path, plant, kind, array, column, count):
    bundle, x, y = tumours
    arrays = tumour_arrays(x, y)
    plant(arrays)
    looked = Looked(tmp_path, bundle, arrays)
    assert looked.exit_code == 3
    found = [one for one in looked.of(kind) if one["array"] == array and one.get("column", "") == column]
    assert [one.get("count", 0) for one in found] == [count], looked.findings


def test_duplicates_constants_and_rare_classes_are_warnings(tumours, tmp_path):
    _, x, y = tumours
    keep = np.r_[np.flatnonzero(y[300:] == 1), np.flatnonzero(y[300:] == 0)[:3]] + 300
    arrays = {"calibration_x": np.r_[x[:100], x[:4]], "evaluation_x": x[keep], "evaluation_y": y[keep]}
    arrays["calibration_x"][:, 20] = 7.5
    looked = Looked(tmp_path, None, arrays)
    assert looked.exit_code == 0
    [twice] = looked.of(Kind.DUPLICATE, Severity.WARNING)
    assert (twice["count"], twice["example"]) == (4, "samples 0 and 100")
    [constant] = looked.of(Kind.CONSTANT, Severity.WARNING)
    assert constant["column"] == "[20]"
    [rare] = looked.of(Kind.BALANCE, Severity.WARNING)
    assert "0: 3" in rare["what"]


def test_one_value_outside_is_a_warning_and_one_that_devices_refuse_a_violation(tumours, pictures, tmp_path):
    bundle, x, y = tumours
    arrays = tumour_arrays(x, y)
    arrays["train_x"][0, 23] = 5000
    assert Looked(tmp_path, bundle, arrays).of(Kind.RANGE, Severity.WARNING)
    bundle, x, _ = pictures
    x = x[:100].copy()
    x[3, 0, 2, 2] = 1.5
    looked = Looked(tmp_path, bundle, {"calibration_x": x, "evaluation_x": x[50:]})
    [found] = [one for one in looked.of(Kind.RANGE) if one["array"] == "calibration_x"]
    assert (found["column"], found["count"], found["example"]) == ("channel 0", 1, "sample 3")


@pytest.mark.parametrize(
    ("change", "said", "hint"),
    [
        (lambda x: x.transpose(0, 2, 3, 1), "layout NHWC, the model takes NCHW", ".transpose(0, 3, 1, 2)"),
        (lambda x: x[:, 0], "the axis of channels is missing", "[:, None]"),
        (lambda x: x.reshape(len(x), 64), "samples of shape [64]", ".reshape(-1, 1, 8, 8)"),
        (lambda x: x.transpose(0, 2, 1, 3), "axes in another order", ".transpose(0, 2, 1, 3)"),
    ],
)
def test_another_layout_is_named_with_what_undoes_it(pictures, tmp_path, change, said, hint):
    bundle, x, y = pictures
    wrong = np.ascontiguousarray(change(x))
    looked = Looked(
        tmp_path,
        bundle,
        {"calibration_x": wrong[:300], "evaluation_x": wrong[300:], "evaluation_y": y[300:]},
    )
    assert looked.exit_code == 3
    found = [one for one in looked.findings if one["array"] == "calibration_x" and said in one["what"]]
    assert len(found) == 1, looked.findings
    assert hint in found[0]["hint"]


def test_pictures_as_bytes_are_told_to_be_scaled(pictures, tmp_path):
    bundle, x, _ = pictures
    looked = Looked(tmp_path, bundle, {"calibration_x": (x[:300] * 255).astype(np.uint8)})
    assert any("/ 255" in one["hint"] for one in looked.of(Kind.TYPE))
    assert looked.of(Kind.RANGE)


def test_samples_are_held_against_what_callers_give_and_drift_is_told_after_the_steps(photos, tmp_path):
    bundle, given = photos
    sound = Looked(tmp_path, bundle, {"calibration_x": given[:400], "evaluation_x": given[900:]})
    assert sound.exit_code == 0, sound.findings
    assert {one["column"].partition(".")[0] for one in sound.drift} == {"x"}
    dark = Looked(tmp_path, bundle, {"calibration_x": given[:400] // 3, "evaluation_x": given[900:]})
    assert {one["array"] for one in dark.of(Kind.DRIFT)} == {"calibration_x"}
    swapped = Looked(tmp_path, bundle, {"calibration_x": given[:400].transpose(0, 3, 1, 2)})
    assert swapped.exit_code == 3
    assert any("NHWC" in one["what"] for one in swapped.of(Kind.LAYOUT)), swapped.findings


def test_two_layouts_in_one_file_need_no_bundle(pictures, tmp_path):
    _, x, _ = pictures
    looked = Looked(tmp_path, None, {"calibration_x": x[:300], "evaluation_x": x[300:].transpose(0, 2, 3, 1)})
    [found] = looked.of(Kind.LAYOUT)
    assert "NHWC" in found["what"]
    assert "NCHW" in found["what"]


def test_pictures_show_their_range_soon_and_rare_spikes_do_not(pictures, tmp_path):
    bundle, x, y = pictures
    arrays = {"calibration_x": x[:300].copy(), "evaluation_x": x[900:], "evaluation_y": y[900:]}
    looked = Looked(tmp_path, bundle, arrays)
    assert looked.exit_code == 0, looked.findings
    assert looked.calibration["needed"] < 20
    assert looked.of(Kind.CALIBRATION, Severity.NOTE)
    arrays["calibration_x"][17, 0, 0, 0] = 0.999 * 10
    looked = Looked(tmp_path, None, arrays)
    assert looked.calibration["needed"] > 150
    assert looked.of(Kind.CALIBRATION, Severity.WARNING)


def test_a_table_is_read_with_its_names_and_its_gaps(tumours, tmp_path):
    bundle, x, y = tumours
    names = [f"c{i}" for i in range(30)]
    rows = [[f"{value:.9g}" for value in row] for row in x[:100]]
    rows[3][5], rows[4][6] = "", "n/a"
    path = tmp_path / "table.csv"
    lines = [",".join([*names, "label"]), *(",".join([*row, str(y[i])]) for i, row in enumerate(rows))]
    path.write_text("\n".join(lines))
    looked = Looked.file(path, bundle)
    assert looked.exit_code == 3
    missing = {one["column"] for one in looked.of(Kind.MISSING)}
    assert missing == {"c5", "c6"}
    [text] = looked.of(Kind.TYPE)
    assert (text["column"], text["example"]) == ("c6", "row 4: 'n/a'")
    assert {one["array"] for one in looked.findings if one["kind"] == "balance"} == {"y"}


def test_people_read_what_matters_first(tumours, tmp_path):
    bundle, x, y = tumours
    arrays = tumour_arrays(x, y)
    plant_nan(arrays)
    np.savez(tmp_path / "data.npz", **arrays)
    result = CliRunner().invoke(check, [str(tmp_path / "data.npz"), "--spec", str(bundle)])
    lines = [line for line in result.stdout.splitlines() if line.startswith(("violation", "warning", "note"))]
    assert lines[0].startswith("violation  calibration_x [3]: 1 of 150 samples have missing values")
    assert lines[-1].startswith("note")
    assert "1 violation" in result.exception.message


@pytest.mark.skipif(
    not MLPERF.is_dir(), reason="EDGEML_MLPERF_TINY names no directory with MLPerf Tiny's models"
)
def test_the_wake_words_calibration_samples_are_told_to_be_quantised_and_then_pass(tmp_path):
    model = MLPERF / "streaming_wakeword" / "str_ww_ref_model.tflite"
    with np.load(MLPERF / "streaming_wakeword" / "calibration_samples.npz") as file:
        specs, labels = file["specs"], file["labels"].astype(np.int64)
    [spec] = describe(model.read_bytes(), RuntimeFamily.TFLITE).inputs
    stored = np.clip(np.rint(specs / spec.scale) + spec.zero_point, -128, 127).astype(np.int8)
    np.savez(tmp_path / "words.npz", evaluation_x=stored, evaluation_y=labels)
    bundle = bundled(tmp_path, "words", model, data=tmp_path / "words.npz", scores=ScoreKind.PROBABILITIES)
    looked = Looked.file(MLPERF / "streaming_wakeword" / "calibration_samples.npz", bundle)
    assert looked.exit_code == 3
    [wrong] = [one for one in looked.of(Kind.TYPE) if one["array"] == "specs"]
    assert f"{spec.scale:.9g}" in wrong["hint"]
    # What the hint says makes them sound.
    assert (eval(wrong["hint"].removeprefix("quantise: "), {"np": np, "specs": specs}) == stored).all()
    sound = Looked(tmp_path, bundle, {"specs": stored, "labels": labels})
    assert not sound.of(Kind.TYPE)
    assert not sound.of(Kind.DRIFT)
    assert sound.exit_code == 0, sound.findings
