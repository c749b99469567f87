"""Sources of models: whatever a user's file does wrong, one line says which and what to do."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

import converters
from converters.amounts import fraction
from converters.assemble import ReleaseName
from converters.cli import convert as command
from converters.dataset import Dataset
from converters.order import ConversionOrder, Limits
from converters.select import Floor
from converters.service import _check_resolution
from converters.sources.torch_model import parse_source
from edgeml import profile
from edgeml.errors import ConfigError
from edgeml.ids import digest_of
from edgeml.manifest import ScoreKind

pytestmark = pytest.mark.torch

HEAD = "import torch\nfrom torch import nn\n"
NET = HEAD + "def model():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))\n"


def converting(directory, text=NET, data=None, **changes):
    (directory / "mine.py").write_text(text)
    order = ConversionOrder(
        source=f"{directory}/mine.py:model", data=data or directory / "data.npz", profiles=(profile.load("raspberry-pi-4"),),
        release=changes.pop("release", ReleaseName("net", "1.0.0")), limits=Limits(max_drop=changes.pop("max_drop", 0.02)), out=directory / "out", work=directory / "work", **changes,
    )  # fmt: skip
    return converters.convert(order)


@pytest.fixture
def desk(tmp_path, linear):
    (tmp_path / "data.npz").write_bytes((linear / "data.npz").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("net.h5", "no model that can be converted", "export it to .onnx or .tflite"),
        ("net.safetensors", "no model that can be converted", "it holds weights and no model"),
        ("net.py", "no model that can be converted", "name the function"),
        ("net.py:", "no model that can be converted", "file.py:factory"),
        ("net.py:a b", "no model that can be converted", "file.py:factory"),
        ("net.pkl:model", "no model that can be converted", "file.py:factory"),
        ("missing.py:model", "no file missing.py", "check the path"),
        ("missing.pt2", "no file missing.pt2", "check the path"),
        ("missing.onnx", "no file missing.onnx", "check the path"),
        ("missing.joblib", "no file missing.joblib", "check the path"),
    ],
)
def test_a_name_that_is_no_source(text, words, hint):
    with pytest.raises(ConfigError, match=words) as caught:
        parse_source(text)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def model(:", r"mine\.py fails: SyntaxError"),
        ("import no_such_module", r"mine\.py fails: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import sys; sys.exit(3)", r"mine\.py fails: SystemExit"),
        ("net = 1", r"mine\.py has no function model"),
        ("model = 1", r"mine\.py has no function model"),
        ("def model(width): return width", r"mine\.py:model\(\) fails: TypeError"),
        ("def model(): raise FileNotFoundError('weights.npz')", r"mine\.py:model\(\) fails: FileNotFoundError: weights\.npz"),
        ("def model(): return 7", r"mine\.py:model returned int, which is no model"),
        (NET.replace("64", "63"), r"calibration_x has float32 samples of shape \[8, 8\], which the model refuses: RuntimeError"),
        (HEAD + "class M(nn.Module):\n    def forward(self, x): return x, x\nmodel = M", "the model answers 2 samples with a tuple"),
        (HEAD + "class M(nn.Module):\n    def forward(self, x): return x.sum()\nmodel = M", r"the model answers 2 samples with a tensor of shape \[\]"),
        (HEAD + "class M(nn.Module):\n    def forward(self, x): return x.flatten(1) / 0\nmodel = M", "NaN or infinity"),
        (HEAD + "class M(nn.Module):\n    def forward(self, x): return x.flatten(1)[:, :5].bfloat16()\nmodel = M", r"answers in torch\.bfloat16"),
        (HEAD + "class M(nn.Module):\n    def forward(self, x): return x\nmodel = M", r"one row of scores per sample, this model with shape \[8, 8\]"),
        (NET.replace("5))", "3))"), "evaluation_y holds labels from 0 to 4, the model has 3 classes"),
        (NET.replace("5))", "5), nn.Softmax(1))"), "scores are probabilities already"),
        (HEAD + "class M(nn.Module):\n    def forward(self, x): return x.flatten(1)[:, :5] if x.sum() > 0 else x.flatten(1)[:, 5:10]\nmodel = M", "cannot be exported to ONNX"),
    ],
)  # fmt: skip
def test_a_file_that_gives_no_convertible_model(desk, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        converting(desk, text)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert not (desk / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"release": ReleaseName("../net", "1")}, "the model's name '../net' is not a valid name"),
        ({"release": ReleaseName("net", "1 0")}, "the version '1 0' is not a valid name"),
        ({"labels": ("a", "b")}, "--labels names 2 classes, the model has 5"),
        ({"scores": ScoreKind.PROBABILITIES}, "scores are no probabilities"),
        (
            {"max_drop": 0.0005},
            r"evaluation_x has 400 samples: one of them is 0\.25%, more than the drop of 0\.05%",
        ),
    ],
)
def test_an_argument_that_cannot_be_used(desk, changes, words):
    with pytest.raises(ConfigError, match=words):
        converting(desk, **changes)
    assert not (desk / "out").exists()


@pytest.mark.parametrize(("count", "drop"), [(300, 0.001), (7, 0.01), (60, 0.003), (1, 0.001)])
def test_what_is_suggested_for_few_samples_is_accepted(count, drop):
    def check(count, drop):
        samples = np.zeros((count, 2), np.float32)
        data = Dataset(samples, samples, np.zeros(count, np.int64), digest_of(b""))
        _check_resolution(data, Floor("accuracy", 1.0, drop))

    with pytest.raises(ConfigError) as caught:
        check(count, drop)
    enough = int(re.search(r"at least (\d+) samples", caught.value.hint).group(1))
    check(enough, drop)
    with pytest.raises(ConfigError):
        check(enough - 1, drop)
    if count == 1:
        assert "--max-drop" not in caught.value.hint, "all of it would be lost"
    else:
        check(count, fraction(re.search(r"--max-drop (\S+)", caught.value.hint).group(1)))


def test_data_of_another_shape_than_the_model_name_the_array(desk, linear):
    with np.load(linear / "data.npz") as file:
        arrays = dict(file)
    np.savez(
        desk / "other.npz",
        **{
            **arrays,
            "calibration_x": arrays["calibration_x"][:, :4],
            "evaluation_x": arrays["evaluation_x"][:, :4],
        },
    )
    with pytest.raises(ConfigError, match=r"calibration_x has float32 samples of shape \[4, 8\]"):
        converting(desk, data=desk / "other.npz")


def test_a_file_may_import_what_lies_beside_it_and_leaves_no_trace(desk):
    import sys

    before = list(sys.path)
    (desk / "layers_beside.py").write_text(NET)
    with pytest.raises(
        ConfigError, match="evaluation_y"
    ):  # the model came through: only its classes do not fit
        converting(
            desk,
            "from layers_beside import *\nfrom torch import nn\ndef model(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))",
        )
    assert sys.path == before
    assert not (desk / "__pycache__").exists()


def test_weights_in_bfloat16_are_converted_where_the_answer_is_float32(desk):
    text = HEAD + (
        "class M(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        torch.manual_seed(0)\n"
        "        self.last = nn.Linear(64, 5).bfloat16()\n"
        "    def forward(self, x): return nn.functional.linear(x.flatten(1), self.last.weight.float(), self.last.bias.float())\n"
        "model = M"
    )
    arrays = dict(np.load(desk / "data.npz"))
    del arrays["evaluation_y"]
    np.savez(desk / "bare.npz", **arrays)
    assert converting(desk, text, desk / "bare.npz").bundles


def test_a_model_in_training_mode_is_put_into_evaluation_mode(desk):
    text = NET.replace("nn.Flatten(), ", "nn.Flatten(), nn.Dropout(0.9), ").replace(
        "def model():\n", "def model():\n    torch.manual_seed(0)\n"
    )
    with np.load(desk / "data.npz") as file:
        arrays = dict(file)
    del arrays["evaluation_y"]
    np.savez(desk / "unlabelled.npz", **arrays)
    conversion = converting(desk, text, data=desk / "unlabelled.npz")
    assert conversion.report.candidates[0].ran.agreement == 1.0


def test_what_the_users_code_prints_does_not_spoil_the_json(desk):
    (desk / "mine.py").write_text("print('loading...')\n" + NET + "print('loaded')\n")
    with np.load(desk / "data.npz") as file:
        arrays = dict(file)
    del arrays["evaluation_y"]
    np.savez(desk / "unlabelled.npz", **arrays)
    result = CliRunner().invoke(
        command,
        [f"{desk}/mine.py:model", "--data", str(desk / "unlabelled.npz"), "--profile", "raspberry-pi-4", "--name", "n", "--version", "1",
         "--max-drop", "2%", "--out", str(desk / "out"), "--work", str(desk / "work"), "--json"],
    )  # fmt: skip
    assert json.loads(result.stdout)["report"]["release"] == "n@1"
    assert "loading..." in result.stderr


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"garbage" * 100])
def test_a_program_that_is_none_is_refused(desk, content):
    (desk / "net.pt2").write_bytes(content)
    order = ConversionOrder(
        source=str(desk / "net.pt2"), data=desk / "data.npz", profiles=(profile.load("raspberry-pi-4"),), release=ReleaseName("n", "1"),
        limits=Limits(max_drop=0.02), out=desk / "out", work=desk / "work",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"net\.pt2 cannot be loaded"):
        converters.convert(order)
