"""Row 43: bundles and models made to do harm, well signed: whoever made them has the keys, or fooled who has.

Each must be refused before it counts, while the other model of the device goes on answering. What an archive may look
like at all: tests/edgeml/test_bundle.py; numbers that lie in golden vectors: tests/edgeml/test_golden.py.
"""

import contextlib
import dataclasses
import io
import os
import pickle
import re
import signal
import stat
import struct
import threading
import time
import zipfile
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from agent import installer
from agent.forkserver import ForkServer
from agent.ipc import TensorBytes
from agent.slots import promote
from agent.supervisor import Supervisor, WorkerLimits, installed_preload
from edgeml import golden, monitor
from edgeml.bundle import GOLDEN, MONITOR, Bundle, write_bundle
from edgeml.golden import Golden
from edgeml.ids import ModelName, ReleaseId
from edgeml.manifest import RuntimeFamily, ScoreKind, Task
from edgeml.tensors import DType, TensorSpec
from edgeml.testing import sample_bundle
from edgeml.twin import Outcome, Slot, Slots

from ..converters.tflite_file import remembering
from .invariants import check

KWS = ModelName("kws")


def onnx_model(nodes, initializers, functions=()):
    """A model from x [batch, 4] to logits [batch, 3], as the sample's is."""
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        initializers,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=10, functions=functions
    ).SerializeToString()


WEIGHTS = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
PRODUCT = helper.make_node("MatMul", ["x", "w"], ["h"])


def external(location):
    """Weights that are in another file."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "48")):
        weights.external_data.add(key=key, value=value)
    return onnx_model([helper.make_node("MatMul", ["x", "w"], ["logits"])], [weights])


def laughs(levels=60):
    """Functions that call the next one twice: 4 KB that unfold to 2^60 nodes while they are loaded."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("d", 1)]
    functions = []
    for level in range(levels):
        below = f"f{level + 1}"
        twice = [
            helper.make_node(below, ["a"], ["c"], domain="d"),
            helper.make_node(below, ["c"], ["b"], domain="d"),
        ]
        body = twice if level < levels - 1 else [helper.make_node("Identity", ["a"], ["b"])]
        functions.append(helper.make_function("d", f"f{level}", ["a"], ["b"], body, opsets))
    call = helper.make_node("f0", ["h"], ["logits"], domain="d")
    return onnx_model([PRODUCT, call], [WEIGHTS], functions)


def endless_loop():
    """A loop without an end: it loads, and never answers."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["u"])], "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("u", TensorProto.FLOAT, None),
        ],
    )  # fmt: skip
    true = numpy_helper.from_array(np.array(True), "true")
    loop = helper.make_node("Loop", ["", "true", "h"], ["logits"], body=body)
    return onnx_model([PRODUCT, loop], [WEIGHTS, true])


def huge_tensor():
    """A few bytes that ask for 4 TiB when they are run."""
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape")
    nodes = [
        PRODUCT,
        helper.make_node("ConstantOfShape", ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["z"], keepdims=0),
        helper.make_node("Add", ["h", "z"], ["logits"]),
    ]
    return onnx_model(nodes, [WEIGHTS, shape])


class Touch:
    """What a pickle may do: anything."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def rewritten(versions, tmp_path):
    """Version 2 of the sample with other members or another manifest."""

    def make(members=None, without=(), **changes):
        path = tmp_path / "rewritten.edgeml"
        path.write_bytes(versions[2])
        with Bundle(path) as bundle:
            kept = {
                one.name: bundle.read(one.name) for one in bundle.manifest.files if one.name not in without
            }
            manifest = msgspec.structs.replace(bundle.manifest, **changes)
        if manifest.runtime is not RuntimeFamily.ONNX:
            del kept["model.onnx"]
        write_bundle(path, manifest, kept | (members or {}))
        return path.read_bytes()

    return make


@pytest.fixture
def pair(unit, tmp_path):
    """A device that also serves another model, and someone who asks that all the time."""
    path = tmp_path / "kws.edgeml"
    digest = sample_bundle(path, model="kws")
    unit.table.path(digest).write_bytes(path.read_bytes())
    unit.table.write(KWS, promote(Slots(), Slot(ReleaseId("kws@1.0.0"), digest, "t", 1)))
    unit.installer.restore(KWS, None)
    tensors = (TensorBytes(DType.FLOAT32, (1, 4), np.ones((1, 4), np.float32).tobytes()),)
    ended, answers = threading.Event(), []

    def ask():
        while not ended.is_set():
            # An exception ends the thread, and with it the answers.
            answers.append(unit.roster.seat(KWS).active.infer(tensors).outputs)
            ended.wait(0.01)

    user = threading.Thread(target=ask)
    user.start()
    yield unit
    before = len(answers)
    while user.is_alive() and len(answers) < before + 2:
        time.sleep(0.01)
    ended.set()
    user.join()
    assert len(answers) >= before + 2, "the other model answers no more"
    assert len({one[0].data for one in map(tuple, answers)}) == 1


def deploy(unit, signer, bundle):
    """Sign it and want it; return the entry at rest."""
    before = (unit.storage / "slots.json").read_bytes()
    entry = unit.install(signer.release(bundle, 2))
    assert entry.outcome is Outcome.ROLLED_BACK, entry
    assert (unit.storage / "slots.json").read_bytes() == before
    assert unit.serves() == "sample@1.0.0"
    assert wanted_is_refused(unit, entry.desired.digest)
    check(unit.storage)
    return entry


def wanted_is_refused(unit, digest):
    return digest in unit.entry().refused and unit.table.slots(ModelName("sample")).holding(digest) is None


def zipped(members, **info):
    """An archive of these members, which need not be a bundle's."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = info.get("mode", stat.S_IFREG | 0o644) << 16
            entry.compress_type = info.get("compression", zipfile.ZIP_STORED)
            archive.writestr(entry, data)
    return file.getvalue()


def members_of(bundle):
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def many_entries(bundle):
    """An end record that speaks of 65535 members and a directory of 4 GB."""
    end = bundle.rindex(b"PK\x05\x06")
    return bundle[: end + 8] + struct.pack("<HHI", 0xFFFF, 0xFFFF, 0xFFFF_FFF0) + bundle[end + 16 :]


ARCHIVES = {
    "bomb": lambda good: zipped(
        [*members_of(good)[:-1], ("report.json", bytes(50 << 20))], compression=zipfile.ZIP_DEFLATED
    ),
    "escape": lambda good: zipped([*members_of(good), ("../../../evil", b"x")]),
    "absolute": lambda good: zipped([*members_of(good), ("/tmp/evil", b"x")]),
    "symlink": lambda good: zipped(
        [(name, b"/etc/passwd" if name == "model.onnx" else data) for name, data in members_of(good)],
        mode=stat.S_IFLNK | 0o777,
    ),
    "device": lambda good: zipped([*members_of(good), ("sda", b"")], mode=stat.S_IFBLK | 0o666),
    "duplicate": lambda good: good.replace(b"golden.npz", b"model.onnx"),
    "counts": many_entries,
    "pickle": lambda good: zipped([*members_of(good), ("weights.pkl", pickle.dumps(Touch(Path("/tmp/evil"))))]),
    "garbage": lambda good: b"\x80\x04" + bytes(1000),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_malicious_archive_is_refused_before_anything_of_it_is_loaded(pair, signer, versions, kind):
    bad = ARCHIVES[kind](versions[2])
    assert bad != versions[2]
    about = signer.about(versions[2])
    signer.about = lambda _bundle: about
    deploy(pair, signer, bad)
    assert not [path for path in (pair.storage.parent / "evil", Path("/tmp/evil")) if path.exists()]
    assert not [path for path in pair.table.store.iterdir() if path.is_symlink() or path.is_block_device()]


@pytest.mark.parametrize(
    "location", ["secret", "etc/hostname", "../secret", "../../../../../../etc/passwd", "/etc/passwd"]
)
def test_weights_outside_the_bundle_are_never_read(pair, signer, rewritten, tmp_path, move, location):
    """The runtime resolves such names by the directory that its process is in; there they exist."""
    for folder in (tmp_path / "in/here", tmp_path / "in"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "secret").write_bytes(np.arange(12, dtype=np.float32).tobytes())
    (tmp_path / "in/here/etc").mkdir()
    (tmp_path / "in/here/etc/hostname").write_bytes(bytes(48))
    move(pair, tmp_path / "in/here")
    entry = deploy(pair, signer, rewritten({"model.onnx": external(location)}))
    assert "cannot load the model" in entry.reason, entry.reason


@pytest.fixture
def move(monkeypatch):
    """Let the workers that a device loads from now on live in another directory."""
    with contextlib.ExitStack() as stack:

        def to(unit, folder):
            with monkeypatch.context() as patch:
                patch.chdir(folder)
                forkserver = ForkServer(installed_preload())
                supervisor = Supervisor(forkserver)
                supervisor.start()
            stack.callback(forkserver.close)
            stack.callback(supervisor.close)
            unit.installer._tools = dataclasses.replace(unit.installer._tools, supervisor=supervisor)

        yield to


MODELS = {
    "pickle as a model": lambda: pickle.dumps({"state_dict": [1.0] * 100}),
    "truncated": lambda: onnx_model([PRODUCT], [WEIGHTS])[:-20],
    "garbage": lambda: bytes(range(256)) * 20,
    "4 TiB when run": huge_tensor,
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_malicious_model_is_refused(pair, signer, rewritten, kind):
    deploy(pair, signer, rewritten({"model.onnx": MODELS[kind]()}))


@pytest.mark.parametrize(
    "garbage", [b"", b"\x1c\0\0\0TFL3" + bytes(2000), b"\xff\xff\xff\x7fTFL3" + b"\xff" * 2000]
)
def test_garbage_as_a_tflite_model_is_refused(pair, signer, rewritten, garbage):
    deploy(pair, signer, rewritten({"model.tflite": garbage}, runtime=RuntimeFamily.TFLITE))


def test_golden_vectors_that_are_a_pickle_run_nothing(pair, signer, rewritten, tmp_path):
    file = io.BytesIO()
    np.savez(file, input_0=np.array([Touch(tmp_path / "evil")], dtype=object), allow_pickle=True)
    deploy(pair, signer, rewritten({GOLDEN: file.getvalue()}))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("model", [laughs, endless_loop])
def test_a_model_that_never_comes_to_an_end_is_killed_in_time(pair, signer, rewritten, model, monkeypatch):
    # A device waits a minute.
    monkeypatch.setattr(installer, "WorkerLimits", partial(WorkerLimits, load_timeout_s=4.0))
    entry = deploy(pair, signer, rewritten({"model.onnx": model()}))
    assert "did not answer within 4 s" in entry.reason, entry.reason


def test_a_monitor_of_another_model_is_never_tried_again(pair, signer, rewritten, versions, tmp_path):
    """It is the content that is wrong, so the same bytes would be wrong tomorrow."""
    path = tmp_path / "read.edgeml"
    path.write_bytes(versions[2])
    with Bundle(path) as one:
        counted = monitor.decode(one.read(MONITOR))
    other = [msgspec.structs.replace(column, tensor="elsewhere") for column in counted.columns]
    changed = msgspec.structs.replace(counted, columns=tuple(other))
    entry = deploy(pair, signer, rewritten({MONITOR: monitor.encode(changed)}))
    assert "counts elsewhere, which the model neither takes nor gives" in entry.reason, entry.reason


def test_a_model_for_which_its_runtime_writes_out_of_bounds_takes_nothing_along(pair, signer, rewritten):
    """LiteRT 2.3 writes beyond the state of this model: its process dies, or goes on and answers nonsense."""
    sample, answer = np.ones((2, 32), np.int8), np.zeros((2, 4), np.int8)
    recorded = golden.encode(Golden((sample,), (answer,)))
    bundle = rewritten(
        {"model.tflite": remembering("int8"), GOLDEN: recorded},
        without=[MONITOR],
        runtime=RuntimeFamily.TFLITE,
        inputs=(TensorSpec("t0", DType.INT8, (1, 32)),),
        outputs=(TensorSpec("t29", DType.INT8, (1, 4)),),
        labels=(),
        task=Task.OTHER,
        scores=ScoreKind.NONE,
    )
    entry = deploy(pair, signer, bundle)
    # Which of the two depends on what lies behind the state in its process; the next test has a death that is sure.
    assert re.search("died of SIG(ABRT|SEGV)|golden vectors: .* of the range", entry.reason), entry.reason


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_runtime_that_dies_while_it_loads_takes_nothing_along(pair, signer, rewritten, number):
    """The signal is the test's, so that it comes in the middle of loading. Everything after it is real."""
    known = workers()
    killed = []

    def strike():
        deadline = time.monotonic() + 20
        while not killed and time.monotonic() < deadline:
            for pid in workers() - known:
                # Once it has its name, it is loading.
                os.kill(pid, number)
                killed.append(pid)
            time.sleep(0.002)

    striker = threading.Thread(target=strike)
    striker.start()
    entry = deploy(pair, signer, rewritten({"model.onnx": laughs()}))
    striker.join()
    assert killed
    assert signal.Signals(number).name in entry.reason


def workers():
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if (entry / "comm").read_text().strip() == "edgeml-worker" and has_ancestor(entry.name):
                    found.add(int(entry.name))
    return found


def has_ancestor(pid):
    """Whether it is one of ours: other tests have workers, too."""
    for _ in range(3):
        pid = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]
        if int(pid) == os.getpid():
            return True
    return False
