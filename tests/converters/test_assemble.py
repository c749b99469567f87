"""Names of classes: each is there once and says something, for `convert` and for `package`, before anything is loaded."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from converters.assemble import check_labels
from converters.cli import convert, package
from edgeml.errors import ConfigError


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("a", "b", "a"), "--labels names 'a' twice"),
        (("a", " a"), "--labels names 'a' twice"),
        (("a", ""), "--labels has an empty name, at place 1"),
        ((" ", "a"), "--labels has an empty name, at place 0"),
    ],
)
def test_names_that_tell_no_classes_apart_are_refused(labels, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check_labels(labels)
    assert caught.value.hint


@pytest.mark.parametrize("labels", [(), ("a", "b"), ("hot dog", "no hot dog")])
def test_names_that_do_are_not(labels):
    check_labels(labels)


@pytest.mark.parametrize("command", [convert, package])
@pytest.mark.parametrize("text", ["a,a,b", "a,,b", "a,b,", ","])
def test_both_commands_look_at_them_first(tmp_path, command, text):
    options = ["--profile", "raspberry-pi-4", "--name", "n", "--version", "1", "--labels", text]
    result = CliRunner().invoke(
        command,
        [str(tmp_path / "none.onnx"), "--data", str(tmp_path / "none.npz"), "--out", str(tmp_path), *options],
    )
    assert isinstance(result.exception, ConfigError)
    assert "--labels" in result.exception.message
    assert list(Path(tmp_path).iterdir()) == []
