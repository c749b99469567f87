"""Places: a model runs on the runtime that was asked for, in the interpreter that has it, or not at all."""

import os
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest

from edgeml import probe
from edgeml.child import ChildLimits, module_command
from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily
from edgeml.profile import DeviceRuntime
from edgeml.runtime import KernelSet
from edgeml.testing import linear_model

from .test_runtime import doubling

pytestmark = pytest.mark.processes
ROOT = Path(__file__).parents[2]
OLD_DEVICE = Path(os.environ.get("EDGEML_TFLITE_RUNTIME_PYTHON") or ROOT / ".venv-tflite" / "bin" / "python")
SAMPLES = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
SHORT = ChildLimits(timeout_s=30)


def test_the_runtime_that_is_asked_for_is_the_one_that_answers():
    result = probe.probe(linear_model(), RuntimeFamily.ONNX, [SAMPLES])
    place = probe.Place(DeviceRuntime.ONNXRUNTIME)
    again = probe.probe(linear_model(), RuntimeFamily.ONNX, [SAMPLES], place=place)
    assert again.runtime == result.runtime
    np.testing.assert_array_equal(again.answers[0], result.answers[0])


@pytest.mark.parametrize(
    ("family", "place", "said"),
    [
        (RuntimeFamily.ONNX, probe.Place(DeviceRuntime.AI_EDGE_LITERT), "does not run on ai-edge-litert"),
        (RuntimeFamily.ONNX, probe.Place(kernels=KernelSet.REFERENCE), "with reference kernels"),
        (RuntimeFamily.TFLITE, probe.Place(DeviceRuntime.ONNXRUNTIME), "does not load .tflite files"),
        (RuntimeFamily.TFLITE, probe.Place(DeviceRuntime.TFLITE_RUNTIME), "no tflite-runtime"),
        (RuntimeFamily.TFLITE, probe.Place(DeviceRuntime.TFLITE_MICRO), "no tflite-micro"),
    ],
)
def test_another_runtime_never_answers_in_its_place(family, place, said):
    with pytest.raises(BackendError, match=said):
        probe.probe(linear_model(), family, [SAMPLES], limits=SHORT, place=place)


def test_another_interpreter_sees_our_rooms_and_nothing_else_of_ours(tmp_path):
    (tmp_path / "shown.py").write_text("")
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False)
    code = module_command("edgeml.ids", tmp_path, bare / "bin" / "python")
    rooms = {path.name for path in (tmp_path / "rooms").iterdir()}
    assert rooms == {"edgeml"}
    done = subprocess.run([*code[:3], "import sys, edgeml; print(edgeml.__file__)"],
                          env={"PYTHONPATH": str(tmp_path / "rooms")}, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.startswith(str(tmp_path / "rooms"))


def test_an_interpreter_that_is_none_is_a_backend_error():
    with pytest.raises(BackendError):
        probe.describe(
            linear_model(), RuntimeFamily.ONNX, limits=SHORT, place=probe.Place(python=Path("/bin/true"))
        )


@pytest.mark.skipif(not OLD_DEVICE.exists(), reason=f"no {OLD_DEVICE}: make .venv-tflite/.installed")
def test_one_file_answers_on_both_libraries_and_with_both_sets_of_kernels():
    samples, seen = np.arange(8, dtype=np.float32).reshape(2, 4), set()
    for kernels in KernelSet:
        for runtime, python in (
            (DeviceRuntime.AI_EDGE_LITERT, None),
            (DeviceRuntime.TFLITE_RUNTIME, OLD_DEVICE),
        ):
            place = probe.Place(runtime, kernels, python)
            given = probe.probe(doubling("FLOAT32"), RuntimeFamily.TFLITE, [samples], place=place)
            assert given.answers[0].tolist() == (2 * samples).tolist()
            assert given.runtime.startswith(f"{runtime.value} ")
            seen.add(given.runtime)
    assert len(seen) == 2
