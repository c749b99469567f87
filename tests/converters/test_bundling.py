"""What one conversion writes: names that differ, sources that compile as they lie there, nothing that is refused later."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from converters.assemble import ReleaseName
from converters.bundling import _variants
from converters.estimate.arena import arena
from converters.estimate.tflite_graph import read_tflite
from converters.order import ConversionOrder, Limits
from converters.recipe import Activations, Export, Layout, Recipe, StaticInteger
from converters.service import convert
from edgeml import profile
from edgeml.bundle import Bundle
from edgeml.errors import SelectionError
from edgeml.guest import Guest
from edgeml.manifest import RuntimeFamily

from .tflite_file import File
from .tflite_net import digits_net

COMPILER = shutil.which("g++") or shutil.which("clang++")
CONTROLLER = profile.load("stm32h7")


def converted(folder, model, arrays, max_bytes=None):
    (folder / "net.tflite").write_bytes(model)
    np.savez(folder / "data.npz", **arrays)
    return convert(
        ConversionOrder(
            source=f"{folder}/net.tflite", data=folder / "data.npz", profiles=(CONTROLLER,),
            release=ReleaseName("net", "1.0.0"), limits=Limits(max_drop=0.1, max_bytes=max_bytes), out=folder / "out", work=folder / "work",
        )
    )  # fmt: skip


def test_variants_of_one_name_are_told_apart():
    floats = [Recipe(Export(RuntimeFamily.TFLITE, layout=layout)) for layout in Layout]
    mixed = [
        Recipe(floats[0].export, (), StaticInteger(Activations.INT8, float_layers=(one,))) for one in "ab"
    ]
    assert floats[0].name == floats[1].name
    assert mixed[0].name == mixed[1].name
    names = _variants([*floats, *mixed])
    assert names == [floats[0].name, f"{floats[0].name}-2", mixed[0].name, f"{mixed[0].name}-2"]


@pytest.mark.processes
class TestForAMicrocontroller:
    @pytest.fixture(autouse=True)
    def _stand_in(self, monkeypatch):
        monkeypatch.delenv(Guest.TFLITE_MICRO.variable, raising=False)

    @pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
    def test_the_source_compiles_as_it_lies_there_and_has_the_arena_that_was_judged(self, tmp_path):
        net = digits_net()
        arrays = {"calibration_x": net.calibration, "evaluation_x": net.samples, "evaluation_y": net.labels}
        made = converted(tmp_path, net.model, arrays, max_bytes=len(net.model) // 2)
        header, source = map(Path, made.files)
        done = subprocess.run(
            [COMPILER, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", source.name],
            check=False, capture_output=True, text=True, cwd=source.parent,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        [bundle] = made.bundles
        [row] = [one for one in made.report.candidates if one.sha256 and one.variant == bundle.variant]
        [high] = re.findall(r"kArenaHighBytes = (\d+)", header.read_text())
        assert [one.memory_bytes for one in row.verdicts] == [int(high)]
        with Bundle(Path(bundle.path)) as one:
            graph = read_tflite(one.model())
        assert arena(graph).high_bytes > int(high), "another maker's kernels would need more"

    def test_an_operator_that_it_has_not_is_refused_before_anything_is_written(self, tmp_path):
        file = File("float32")
        samples = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        model = file.bytes([file.add("GELU", [file.input([1, 4])], [1, 4])])
        with pytest.raises(SelectionError, match="it has no operator GELU"):
            converted(tmp_path, model, {"calibration_x": samples, "evaluation_x": samples})
        assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".html"]
