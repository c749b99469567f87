"""Code of the user's: each file has the modules of its own directory, and no other file gets them."""

import sys

import pytest

from converters.user_code import module_of
from edgeml.errors import ConfigError


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """Leave neither modules nor paths to other tests."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [*sys.modules]:
        if name.partition(".")[0].endswith(("_beside", "_below")):
            del sys.modules[name]


def written(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / (name.replace("__in__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "net.py"


@pytest.mark.parametrize(
    ("text", "beside"),
    [
        ("from blocks_beside import one", "blocks_beside"),
        ("from parts_beside.blocks import one", "parts_beside__in__blocks"),
        ("def load():\n    from blocks_beside import one\n    return one\none = load()", "blocks_beside"),
        (
            "import os, sys\nsys.path.insert(0, os.path.dirname(__file__) + '/src')\nfrom blocks_beside import one",
            "src__in__blocks_beside",
        ),
    ],
    ids=["a module", "a folder of modules", "later", "from a path of its own"],
)
def test_two_files_have_each_the_modules_beside_it(tmp_path, text, beside):
    for number, folder in enumerate(("teacher", "student")):
        with module_of(written(tmp_path / folder, net=text, **{beside: f"one = {number}"})) as module:
            assert module.one == number


def test_what_a_file_imported_goes_on_working_and_is_gone_from_the_interpreter(tmp_path):
    text = (
        "import blocks_beside\nclass Net(blocks_beside.Net):\n    def two(self): return blocks_beside.two()"
    )
    beside = "class Net: pass\ndef two(): return 2"
    before = {*sys.modules}
    with module_of(written(tmp_path, net=text, blocks_beside=beside)) as module:
        made = module.Net()
    assert made.two() == 2
    assert {*sys.modules} == before


def test_an_error_names_the_users_own_line_and_none_of_a_library(tmp_path):
    import_ = "import json\n\ndef two():\n    return json.loads('{')\n"
    path = written(tmp_path, net=import_ + "two()")
    with (
        pytest.raises(ConfigError, match=r"net\.py fails: JSONDecodeError.* \(net\.py, line 4\)"),
        module_of(path),
    ):
        pass


def test_a_file_that_fails_leaves_no_modules_either(tmp_path):
    path = written(tmp_path, net="import blocks_beside\n1 / 0", blocks_beside="")
    with pytest.raises(ConfigError, match="ZeroDivisionError"), module_of(path):
        pass
    assert "blocks_beside" not in sys.modules


def test_what_is_installed_below_the_directory_stays(tmp_path):
    installed = tmp_path / ".venv" / "site-packages"
    written(installed, library_below="")
    sys.path.append(str(installed))
    with module_of(written(tmp_path, net="import library_below")):
        pass
    assert "library_below" in sys.modules


@pytest.mark.parametrize("change", ["sys.path.clear()", "sys.path = []", "sys.path.pop(0)"])
def test_a_file_may_change_the_path_of_modules(tmp_path, change):
    with module_of(written(tmp_path, net=f"import sys\n{change}\none = 1")) as module:
        assert module.one == 1


@pytest.mark.torch
def test_a_model_whose_layers_lie_beside_it_can_be_copied_and_exported(tmp_path):
    import copy

    import torch

    layers = "from torch import nn\nclass Layer(nn.Linear):\n    def forward(self, x): return super().forward(x) * 2\n"
    text = "from layers_beside import Layer\ndef model(): return Layer(4, 2)"
    with module_of(written(tmp_path, net=text, layers_beside=layers)) as module:
        made = module.model().eval()
    sample = torch.zeros(1, 4)
    program = torch.export.export(copy.deepcopy(made), (sample,))
    torch.testing.assert_close(program.module()(sample), made(sample))
