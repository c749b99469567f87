"""Data files that are only looked at: what cannot be read is said, what states too much is refused."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from converters.check_command import check
from converters.data_file import read_arrays
from edgeml.errors import ArtifactError, ConfigError


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("no.npz", None),
        ("text.npz", b"no archive"),
        ("text.npy", b"no array"),
        ("data.txt", b"1,2"),
        ("empty.csv", b""),
        ("names.csv", b"a,b,c\n"),
        ("binary.csv", b"\xff\xfe\x00\x00"),
    ],
)
def test_a_file_that_cannot_be_read_is_the_users_to_mend(tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = CliRunner().invoke(check, [str(path)])
    assert isinstance(result.exception, ConfigError)
    assert result.exception.hint


def test_an_array_that_states_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((4, 4), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(4, 4)", b"(4,99)"))
    result = CliRunner().invoke(check, [str(path)])
    assert isinstance(result.exception, ConfigError)
    assert "states" in result.exception.message


@pytest.mark.parametrize("said", ["--5", "-", "5-", "+5", "9" * 18])
def test_labels_that_are_no_whole_numbers_are_names(tmp_path, said):
    path = tmp_path / "data.csv"
    path.write_text(f"label,width\n{said},3\n-1,4\n")
    _, labels = read_arrays(path)
    assert labels.values.tolist() == [said, "-1"]


def test_labels_that_are_whole_numbers_are_numbers(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("label,width\n-5,3\n 12 ,4\n")
    _, labels = read_arrays(path)
    assert labels.values.tolist() == [-5, 12]


@pytest.mark.parametrize("name", ["evaluation_x", "calibration_x", "train_x", "x", "evaluation_y", "specs"])
def test_an_array_that_is_one_number_is_a_finding(tmp_path, name):
    np.savez(tmp_path / "data.npz", **{name: np.float32(3)})
    result = CliRunner().invoke(check, [str(tmp_path / "data.npz"), "--json"])
    assert isinstance(result.exception, ArtifactError)
    assert "samples" in result.stdout


@pytest.mark.parametrize("path", [".", "..", "data.txt"])
def test_what_is_no_data_file_is_named_as_it_was_typed(path):
    with pytest.raises(ConfigError) as caught:
        read_arrays(Path(path))
    assert caught.value.message == f"{path} is no .npz, .npy or .csv file"
