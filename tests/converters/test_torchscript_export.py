"""TorchScript for programs that have torch: it answers as the model did, has the same bytes each time, and no agent loads it."""

import io
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from agent import Agent
from converters.assemble import ReleaseName
from converters.order import ConversionOrder, Limits
from converters.service import convert
from converters.sources.torch_model import from_module, from_program
from converters.steps.torchscript_export import ALIGNMENT_BYTES, export_torchscript
from edgeml import profile
from edgeml.bundle import Bundle
from edgeml.cli import edgeml
from edgeml.errors import BackendError, ConfigError, EdgemlError, IncompatibleError
from edgeml.ids import digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.measure import Order, measure
from edgeml.probe import Place, describe, probe
from edgeml.profile import DeviceRuntime
from edgeml.runtime import KernelSet, open_session
from edgeml.runtime.torchscript import SURFACE, TorchScriptSession
from edgeml.tensors import BATCH

pytestmark = [
    pytest.mark.torch,
    pytest.mark.processes,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
NOBODY = digest_of(b"")
SCRIPT = RuntimeFamily.TORCHSCRIPT
TORCH = DeviceRuntime.TORCH


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(1, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.linear = torch.nn.Linear(4 * 36, 5)

    def forward(self, images):
        features = torch.relu(self.norm(self.convolution(images)))
        return self.linear(features.flatten(1))


class Pair(torch.nn.Module):
    def forward(self, images):
        return images, images


SAMPLES = np.random.default_rng(0).normal(size=(9, 1, 8, 8)).astype(np.float32)


def model():
    return from_module(Net(), NOBODY)


def exported():
    return export_torchscript(model(), SAMPLES, "scores")


class TestTheFile:
    def test_answers_as_the_model_did_one_at_a_time_and_many(self):
        wanted = model().answers(SAMPLES, "samples")
        session = TorchScriptSession(exported())
        assert session.run([SAMPLES])[0] == pytest.approx(wanted, abs=1e-5)
        assert session.run([SAMPLES[:1]])[0] == pytest.approx(wanted[:1], abs=1e-5)

    def test_says_what_it_takes_and_gives(self):
        session = open_session(exported(), SCRIPT, runtime=TORCH)
        assert [(one.name, one.shape) for one in session.inputs] == [("input", (BATCH, 1, 8, 8))]
        assert [(one.name, one.shape) for one in session.outputs] == [("scores", (BATCH, 5))]
        assert session.runtime == f"torch {torch.__version__}"

    def test_is_read_by_torch_without_us(self):
        loaded = torch.jit.load(io.BytesIO(exported()))
        with torch.no_grad():
            assert loaded(torch.from_numpy(SAMPLES)).numpy() == pytest.approx(
                model().answers(SAMPLES, "samples"), abs=1e-5
            )

    def test_an_exported_program_keeps_the_batch_that_it_has(self):
        batch = torch.export.Dim("batch")
        for shapes, first in ((None, 1), (({0: batch},), BATCH)):
            example = torch.from_numpy(SAMPLES[: 2 if shapes else 1])
            program = torch.export.export(Net().eval(), (example,), dynamic_shapes=shapes)
            session = TorchScriptSession(
                export_torchscript(from_program(program, "net", NOBODY), SAMPLES, "scores")
            )
            assert session.inputs[0].shape[0] == first
            count = 1 if first == 1 else 5
            assert session.run([SAMPLES[:count]])[0] == pytest.approx(
                model().answers(SAMPLES[:count], "samples"), abs=1e-5
            )

    def test_has_the_same_bytes_whatever_was_traced_before(self):
        first = exported()
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
        assert exported() == first

    def test_has_the_same_bytes_in_another_process(self):
        code = (
            "import hashlib, sys\nsys.path.insert(0, 'tests/converters')\n"
            "from test_torchscript_export import exported\nprint(hashlib.sha256(exported()).hexdigest())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert done.stdout.strip() == digest_of(exported())

    def test_holds_no_path_of_this_machine_and_begins_its_records_where_torch_would(self):
        data = exported()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            content = b"".join(archive.read(entry) for entry in entries)
        for folder in (str(ROOT), torch.__path__[0], "site-packages"):
            assert folder.encode() not in content
        assert "archive/code/__torch__.py" in [one.filename for one in entries]
        for entry in entries:
            begins = entry.header_offset + 30 + len(entry.filename) + len(entry.extra)
            assert begins % ALIGNMENT_BYTES == 0

    def test_what_gives_two_tensors_is_refused(self):
        with pytest.raises(ConfigError, match="cannot become TorchScript"):
            export_torchscript(from_module(Pair(), NOBODY), SAMPLES, "scores")


class TestOpening:
    def test_torch_is_used_only_if_it_is_named(self):
        """So no device loads it by accident: an agent names no runtime."""
        with pytest.raises(BackendError, match="no agent loads it"):
            open_session(exported(), SCRIPT)
        with pytest.raises(BackendError, match="no agent loads it"):
            open_session(exported(), SCRIPT, runtime=DeviceRuntime.ONNXRUNTIME)
        with pytest.raises(BackendError, match="no agent loads it"):
            open_session(exported(), SCRIPT, runtime=TORCH, kernels=KernelSet.REFERENCE)

    def test_a_file_that_does_not_say_what_it_takes_is_refused(self):
        target = io.BytesIO()
        torch.jit.save(torch.jit.trace(Net().eval(), torch.from_numpy(SAMPLES)), target)
        with pytest.raises(BackendError, match="does not say what it takes"):
            describe(target.getvalue(), SCRIPT, place=Place(TORCH))

    @pytest.mark.parametrize(
        "surface", [b"{}", b"[" * 60_000, b'{"inputs":[],"outputs":[]}', b"\xff", b" " * 70_000]
    )
    def test_what_it_says_is_not_believed(self, surface):
        data = io.BytesIO(exported())
        changed = io.BytesIO()
        with zipfile.ZipFile(data) as read, zipfile.ZipFile(changed, "w") as written:
            for entry in read.infolist():
                is_surface = entry.filename.endswith(SURFACE)
                written.writestr(entry.filename, surface if is_surface else read.read(entry))
        with pytest.raises(BackendError):
            TorchScriptSession(changed.getvalue())

    @pytest.mark.parametrize("cut", [0, 10, 500, 5_000])
    def test_a_damaged_file_is_refused(self, cut):
        with pytest.raises(BackendError):
            TorchScriptSession(exported()[:cut])

    def test_samples_that_do_not_fit_are_refused(self):
        with pytest.raises(BackendError, match="shape"):
            probe(exported(), SCRIPT, [SAMPLES[:, :, :4]], place=Place(TORCH))
        with pytest.raises(BackendError, match="torch: "):
            TorchScriptSession(exported()).run([SAMPLES[:, :, :4]])


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A profile of a device that asks for TorchScript."""
    text = profile.read("generic-x86-64").decode()
    names = [one for one in text.splitlines() if not one.startswith(("name", "runtimes"))]
    path = tmp_path_factory.mktemp("board") / "torch-box.toml"
    path.write_text("\n".join(['name = "torch-box"', 'runtimes = ["torch"]', *names]))
    return profile.load(str(path))


def order(linear, board, out, **changes):
    return ConversionOrder(
        source=f"{linear}/net.py:model", data=linear / "data.npz", profiles=(board,), release=ReleaseName("net", "1.0.0"),
        out=out, work=out / "work", limits=Limits(max_drop=0.02), **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def conversion(linear, board, tmp_path_factory):
    return convert(order(linear, board, tmp_path_factory.mktemp("out")))


class TestAConversion:
    def test_a_device_that_has_torch_alone_gets_it_verified_by_torch(self, conversion):
        [row] = conversion.report.candidates
        assert row.variant == "torchscript-fp32"
        assert row.runs[0].version == f"torch {torch.__version__}"
        assert row.runs[0].agreement == 1.0
        assert conversion.report.baseline == pytest.approx(row.runs[0].value)

    def test_the_file_lies_beside_the_bundle_for_the_program_that_loads_it(self, conversion):
        [bundle] = conversion.bundles
        assert bundle.runtime is SCRIPT
        [path] = conversion.files
        with Bundle(Path(bundle.path)) as opened:
            opened.verify()
            assert Path(path).read_bytes() == opened.model()
            assert "torch " in " ".join(opened.manifest.provenance.libraries)
        assert path.endswith("net-1.0.0-torchscript-fp32.pt")
        assert torch.jit.load(path)(torch.zeros(1, 8, 8)).shape == (1, 5)

    def test_it_is_measured_by_torch_where_that_is_asked_for(self, conversion):
        record = measure(Order(Path(conversion.bundles[0].path), runs=20))
        assert record.runtime.startswith("torch ")
        assert record.golden_agreement == 1.0

    def test_two_of_them_differ_in_what_can_be_told(self, conversion, linear, board, tmp_path):
        later = convert(replace(order(linear, board, tmp_path), release=ReleaseName("net", "1.1.0")))
        done = CliRunner().invoke(edgeml, ["diff", conversion.bundles[0].path, later.bundles[0].path])
        assert done.exit_code == 0, done.output
        assert "weights: none that can be compared" in done.output
        assert "1.1.0" in done.output

    def test_it_is_no_graph_to_be_looked_at(self, conversion):
        done = CliRunner().invoke(edgeml, ["fit", conversion.bundles[0].path])
        assert isinstance(done.exception, ConfigError)
        assert "code and no graph" in str(done.exception)

    def test_no_agent_runs_it(self, conversion):
        with pytest.raises(EdgemlError, match="no agent loads it"), Agent(conversion.bundles[0].path):
            pass

    def test_what_is_a_file_cannot_become_it(self, board, linear, tmp_path):
        first = convert(order(linear, profile.load("generic-x86-64"), tmp_path))
        with Bundle(Path(first.bundles[0].path)) as opened:
            (tmp_path / "net.onnx").write_bytes(opened.model())
        changed = replace(order(linear, board, tmp_path), source=str(tmp_path / "net.onnx"))
        with pytest.raises(IncompatibleError, match="torch-box has torch"):
            convert(changed)
