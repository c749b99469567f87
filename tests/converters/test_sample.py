"""The sample: no image twice, good at home, and the flawed release is wrong and unsure in the field."""

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import converters
from converters.cli import sample as command
from converters.samples import digits
from converters.sources.torch_model import ask, load_source, parse_source
from edgeml.errors import ConfigError

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sample")
    trained = digits.write(directory, digits.RELEASES, 0, lambda *_: None)
    return directory, {one.name: one for one in trained}


def confidence(scores):
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (raised / raised.sum(axis=1, keepdims=True)).max(axis=1)


def answers(directory, name, images):
    return ask(load_source(parse_source(f"{directory}/{name}/digits.py:model")), images, "images")


def test_no_image_is_in_two_parts_of_the_split():
    parts = digits._split(0)
    assert sum(len(scan.images) for scan in parts.values()) == 1797
    for scan in parts.values():
        assert np.bincount(scan.labels, minlength=10).min() >= 0.08 * len(scan.labels)


def test_the_same_seed_gives_the_same_split_and_views():
    first, second, other = digits._split(3), digits._split(3), digits._split(4)
    np.testing.assert_array_equal(first["field"].images, second["field"].images)
    assert not np.array_equal(first["field"].labels, other["field"].labels)
    looks = [digits._camera(first["field"], 2, 5).images for _ in range(2)]
    np.testing.assert_array_equal(*looks)
    assert 0 <= looks[0].min() <= looks[0].max() <= 1


def test_every_release_is_good_at_home_and_the_second_is_better(written):
    trained = written[1]
    assert 0.9 < trained["v1"].accuracy < trained["v2"].accuracy < 0.99
    assert trained["v3"].accuracy > 0.94


def test_what_is_told_is_what_the_written_files_give(written):
    directory, trained = written
    for name, one in trained.items():
        with np.load(directory / name / "data.npz") as data:
            home = answers(directory, name, data["evaluation_x"]).argmax(1) == data["evaluation_y"]
        with np.load(directory / "field.npz") as field:
            away = answers(directory, name, field["field_x"]).argmax(1) == field["field_y"]
        assert (home.mean(), away.mean()) == pytest.approx((one.accuracy, one.field_accuracy))


def test_the_flawed_release_is_wrong_and_unsure_in_the_field(written):
    directory, trained = written
    assert trained["v3"].field_accuracy < 0.6
    with np.load(directory / "v3/data.npz") as data, np.load(directory / "field.npz") as field:
        home = confidence(answers(directory, "v3", data["evaluation_x"]))
        away = confidence(answers(directory, "v3", field["field_x"]))
    assert (away < np.quantile(home, 0.05)).mean() > 0.3


def test_the_good_releases_are_right_and_sure_in_the_field(written):
    directory, trained = written
    for name in ("v1", "v2"):
        assert trained[name].field_accuracy > trained[name].accuracy - 0.03
        with np.load(directory / name / "data.npz") as data, np.load(directory / "field.npz") as field:
            home = confidence(answers(directory, name, data["evaluation_x"]))
            away = confidence(answers(directory, name, field["field_x"]))
        assert (away < np.quantile(home, 0.05)).mean() < 0.1


def test_the_command_writes_what_convert_takes(tmp_path):
    result = CliRunner().invoke(command, ["digits", "--out", str(tmp_path), "--json"])
    assert [one["name"] for one in json.loads(result.stdout)] == ["v1"]
    assert {path.name for path in tmp_path.iterdir()} == {"v1", "field.npz"}
    assert {path.name for path in (tmp_path / "v1").iterdir()} == {"digits.py", "weights.npz", "data.npz"}


def test_an_unknown_release_lists_the_known_ones(tmp_path):
    result = CliRunner().invoke(command, ["digits", "--out", str(tmp_path), "--release", "v9"])
    assert isinstance(result.exception, ConfigError)
    assert "v1, v2, v3" in result.exception.hint


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_a_seed_that_no_generator_takes_is_refused(tmp_path, seed):
    result = CliRunner().invoke(command, ["digits", "--out", str(tmp_path / "s"), "--seed", str(seed)])
    assert result.exit_code == 2
    assert "0<=x<=4294967295" in result.output
    assert not (tmp_path / "s").exists()


def test_the_room_and_its_commands_load_nothing_heavy():
    code = (
        "import converters, converters.cli, sys;"
        "print(sorted({'torch', 'numpy', 'onnx', 'onnxruntime', 'rich', 'sklearn'} & set(sys.modules)));"
        "print(converters.convert.__name__, converters.package.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "convert package"]
    with pytest.raises(AttributeError, match="shrink"):
        _ = converters.shrink
