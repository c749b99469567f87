"""Data files that are only looked at: what cannot be read is said, what states too much is refused."""

import numpy as np
import pytest
from click.testing import CliRunner

from converters.check_command import check
from edgeml.errors import ConfigError


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
