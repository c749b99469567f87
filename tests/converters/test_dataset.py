"""The data: what is wrong with them is said with the array's name; nothing hostile is allocated or unpickled."""

import zipfile

import numpy as np
import pytest

from converters import dataset
from converters.dataset import check_classes, read_dataset, read_evaluation
from edgeml.errors import ConfigError

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = np.arange(64) % 3


def saved(tmp_path, **changes):
    arrays = {"calibration_x": X[:32], "evaluation_x": X, "evaluation_y": Y} | changes
    np.savez(tmp_path / "data.npz", **{name: array for name, array in arrays.items() if array is not None})
    return tmp_path / "data.npz"


def with_nan(array, row):
    copied = array.copy()
    copied[row, 1] = np.nan
    return copied


def test_good_data_are_read(tmp_path):
    data = read_dataset(saved(tmp_path))
    np.testing.assert_array_equal(data.evaluation_x, X)
    assert data.evaluation_y.dtype == np.int64
    assert len(data.sha256) == 64


def test_labels_may_be_missing(tmp_path):
    assert read_dataset(saved(tmp_path, evaluation_y=None)).evaluation_y is None


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.int64])
def test_samples_may_be_integers_as_a_quantized_model_takes_them(tmp_path, kind):
    data = read_dataset(saved(tmp_path, calibration_x=X[:32].astype(kind), evaluation_x=X.astype(kind)))
    assert data.evaluation_x.dtype == data.calibration_x.dtype == kind


def test_packaging_needs_no_calibration_samples_and_takes_any_type(tmp_path):
    data = read_evaluation(saved(tmp_path, calibration_x=None, evaluation_x=X.astype(np.int8)))
    assert data.evaluation_x.dtype == np.int8


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"calibration_x": None}, "no array calibration_x"),
        ({"evaluation_x": None}, "no array evaluation_x"),
        ({"evaluation_x": X.astype(np.float64)}, "evaluation_x has type float64"),
        ({"calibration_x": X[:32].astype(np.float16)}, "calibration_x has type float16"),
        ({"evaluation_x": X.astype(">f4")}, "evaluation_x has type >f4"),
        ({"evaluation_x": X.astype(str)}, "evaluation_x has type <U"),
        ({"evaluation_x": np.array([{}] * 64)}, "evaluation_x holds Python objects"),
        ({"evaluation_x": X[:, 0]}, r"evaluation_x has shape \[64\]"),
        ({"evaluation_x": X[:, :0]}, r"evaluation_x has shape \[64, 0\]"),
        ({"evaluation_x": X[:31], "evaluation_y": Y[:31]}, "evaluation_x has 31 samples, fewer than 32"),
        ({"calibration_x": X[:3]}, "calibration_x has 3 samples"),
        ({"calibration_x": with_nan(X, 7)}, "calibration_x holds NaN or infinity, first in sample 7"),
        ({"evaluation_x": with_nan(X, 0) * np.inf}, "evaluation_x holds NaN or infinity, first in sample 0"),
        (
            {"calibration_x": X[:32, :3]},
            r"calibration_x has float32 samples of shape \[3\], evaluation_x has .* \[4\]",
        ),
        ({"evaluation_y": Y[:5]}, r"evaluation_y has shape \[5\], evaluation_x has 64 samples"),
        ({"evaluation_y": Y[:, None]}, r"evaluation_y has shape \[64, 1\]"),
        ({"evaluation_y": Y.astype(complex)}, "evaluation_y has type complex128"),
        ({"evaluation_y": np.full((64, 1), np.nan)}, "evaluation_y holds NaN or infinity"),
        ({"train_x": X}, "the data have train_x and no train_y"),
        ({"train_x": X, "train_y": Y.astype(float)}, "train_y has float64, evaluation_y has int64"),
        ({"train_x": X[:, :3], "train_y": Y}, r"train_x has float32 samples of shape \[3\]"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")  # NaN times infinity, in the table above
def test_a_wrong_array_is_named(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read_dataset(saved(tmp_path, **changes))
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("labels", [np.array([0, 1, 5]), np.array([-1, 2])])
def test_labels_out_of_range_say_the_range(labels):
    with pytest.raises(ConfigError, match="evaluation_y holds labels from"):
        check_classes(labels, 5)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04rest"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"is no \.npz file"):
        read_dataset(tmp_path / "data.npz")


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    for path in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(ConfigError, match="cannot read data"):
            read_dataset(path)


def forged(tmp_path, shape, body, descr="<f4"):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body
    with zipfile.ZipFile(tmp_path / "data.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("calibration_x.npy", npy)
        archive.writestr("evaluation_x.npy", npy)
    return tmp_path / "data.npz"


@pytest.mark.parametrize("shape", ["(1000000000000, 4)", "(16, 3)", "(-16, 4)", "(16, 4, 0)"])
def test_a_header_that_promises_other_than_the_file_holds_is_refused(tmp_path, shape):
    with pytest.raises(ConfigError, match="calibration_x"):
        read_dataset(forged(tmp_path, shape, b"\0" * 256))


@pytest.mark.parametrize("descr", ["|O", "__import__", "<f99"])
def test_a_header_of_a_strange_type_is_refused(tmp_path, descr):
    with pytest.raises(ConfigError, match="calibration_x"):
        read_dataset(forged(tmp_path, "(16, 4)", b"\0" * 256, descr))


def test_a_zip_bomb_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "DATA_BYTES_MAX", 1 << 20)
    path = forged(tmp_path, "(131072, 4)", b"\0" * (2 << 20))
    assert path.stat().st_size < 1 << 16
    with pytest.raises(ConfigError, match="more than 1048576"):
        read_dataset(path)


def test_a_compressed_npz_is_as_good(tmp_path):
    np.savez_compressed(tmp_path / "data.npz", calibration_x=X[:32], evaluation_x=X, evaluation_y=Y)
    assert len(read_dataset(tmp_path / "data.npz").evaluation_x) == 64


def test_a_damaged_member_is_refused(tmp_path):
    path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    data[data.find(X.tobytes()[:64]) + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"is no \.npz file"):
        read_dataset(path)
