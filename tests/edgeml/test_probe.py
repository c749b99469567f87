"""The probe: models run in a child; whatever happens to it, one error comes back, soon."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edgeml import child, probe
from edgeml.child import ChildLimits, run_child
from edgeml.errors import BackendError, BudgetError
from edgeml.manifest import RuntimeFamily
from edgeml.tensors import BATCH, DType
from edgeml.testing import linear_model

from ..waiting import PATIENCE_S

pytestmark = pytest.mark.processes

SAMPLES = np.random.default_rng(0).normal(size=(150, 4)).astype(np.float32)
SHORT = ChildLimits(timeout_s=10)
MLPERF = Path(os.environ.get("EDGEML_MLPERF_TINY", "/nonexistent"))


def weights():
    return np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def fixed_batch_model(batch):
    import onnx

    proto = onnx.load_from_string(linear_model())
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return proto.SerializeToString()


def script(tmp_path, text):
    path = tmp_path / "child_under_test.py"
    path.write_text(text)
    return [sys.executable, "-P", str(path)]


@pytest.fixture(scope="module")
def result():
    return probe.probe(linear_model(), RuntimeFamily.ONNX, [SAMPLES])


class TestAModelThatRuns:
    def test_answers_every_sample_as_arithmetic_does(self, result):
        np.testing.assert_allclose(result.answers[0], SAMPLES @ weights(), rtol=1e-5, atol=1e-5)

    def test_tells_its_tensors(self, result):
        assert [(one.name, one.dtype, one.shape) for one in (*result.inputs, *result.outputs)] == [
            ("x", DType.FLOAT32, (BATCH, 4)),
            ("logits", DType.FLOAT32, (BATCH, 3)),
        ]

    def test_tells_what_it_cost_and_where(self, result):
        assert 0 < result.latency_p50_ms <= result.latency_p95_ms < 100
        assert 20 << 20 < result.peak_memory_bytes < 1 << 30
        assert result.runtime.startswith("onnxruntime ")
        assert "cores" in result.host

    def test_a_fixed_batch_of_one_gives_the_same_answers(self, result):
        one_by_one = probe.probe(fixed_batch_model(1), RuntimeFamily.ONNX, [SAMPLES[:20]])
        assert one_by_one.inputs[0].shape == (1, 4)
        np.testing.assert_allclose(one_by_one.answers[0], result.answers[0][:20], rtol=1e-5, atol=1e-5)

    def test_describe_tells_the_same_tensors(self, result):
        described = probe.describe(linear_model(), RuntimeFamily.ONNX)
        assert (described.inputs, described.outputs, described.runtime) == (
            result.inputs,
            result.outputs,
            result.runtime,
        )

    def test_works_from_another_directory_with_a_relative_path_to_the_package(self, tmp_path):
        root = os.path.relpath(Path(probe.__file__).parents[1], tmp_path)
        code = (
            "from edgeml import probe; from edgeml.testing import linear_model; from edgeml.manifest import RuntimeFamily;"
            "print(probe.describe(linear_model(), RuntimeFamily.ONNX).runtime)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.startswith("onnxruntime ")


def test_memory_of_the_caller_is_not_counted_as_the_models():
    # ru_maxrss survives exec: a child of a process with 500 MB would seem to take 500 MB.
    code = (
        "import numpy as np; ballast = np.ones(500 << 20, np.uint8);"
        "from edgeml import probe; from edgeml.testing import linear_model; from edgeml.manifest import RuntimeFamily;"
        "print(probe.probe(linear_model(), RuntimeFamily.ONNX, [np.ones((1, 4), np.float32)]).peak_memory_bytes)"
    )
    root = str(Path(probe.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 300 << 20


class TestAModelThatIsRefused:
    @pytest.mark.parametrize("family", RuntimeFamily)
    @pytest.mark.parametrize(
        "model", [b"", b"garbage" * 100, linear_model()[:-20]], ids=["empty", "garbage", "truncated"]
    )
    def test_bytes_that_are_no_model_give_one_line(self, model, family):
        with pytest.raises(BackendError) as caught:
            probe.describe(model, family, limits=SHORT)
        assert "\n" not in caught.value.message

    @pytest.mark.parametrize(
        "samples",
        [SAMPLES.astype(np.float64), SAMPLES[:, :3], SAMPLES[:, None]],
        ids=["dtype", "shape", "rank"],
    )
    def test_samples_that_do_not_fit_say_what_the_model_takes(self, samples):
        with pytest.raises(BackendError, match=r"input x takes float32 samples of shape \[4\], was given"):
            probe.probe(linear_model(), RuntimeFamily.ONNX, [samples], limits=SHORT)

    def test_a_fixed_batch_of_many_is_refused(self):
        with pytest.raises(BackendError, match="batch"):
            probe.probe(fixed_batch_model(8), RuntimeFamily.ONNX, [SAMPLES], limits=SHORT)

    def test_another_number_of_inputs_is_refused(self):
        with pytest.raises(BackendError, match="takes 1 inputs, 2 were given"):
            probe.probe(linear_model(), RuntimeFamily.ONNX, [SAMPLES, SAMPLES], limits=SHORT)

    def test_more_memory_than_allowed_gives_both_numbers(self):
        with pytest.raises(BudgetError) as caught:
            probe.probe(
                linear_model(), RuntimeFamily.ONNX, [SAMPLES], limits=ChildLimits(memory_bytes=1 << 20)
            )
        assert caught.value.budget == 1 << 20
        assert caught.value.observed > 1 << 20


class TestAChildThatDoesNotEndWell:
    def test_an_abort_names_the_signal_and_shows_no_noise(self, tmp_path, capfd):
        command = script(
            tmp_path, "import os, sys; print('noise' * 9999, file=sys.stderr, flush=True); os.abort()"
        )
        with pytest.raises(BackendError, match="died of SIGABRT"):
            run_child(command, tmp_path, SHORT)
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
    def test_another_signal_is_named(self, tmp_path, number):
        with pytest.raises(BackendError, match=number.name):
            run_child(script(tmp_path, f"import os; os.kill(os.getpid(), {int(number)})"), tmp_path, SHORT)

    def test_one_that_hangs_is_killed_in_time_with_its_own_children(self, tmp_path):
        text = "import subprocess, sys, time\np = subprocess.Popen(['sleep', '60'])\nopen('pid', 'w').write(str(p.pid))\ntime.sleep(60)"
        begun = time.monotonic()
        with pytest.raises(BackendError, match="did not finish within 4 s"):
            run_child(script(tmp_path, text), tmp_path, ChildLimits(timeout_s=4))
        assert time.monotonic() - begun < 30
        grandchild = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
        deadline = time.monotonic() + PATIENCE_S
        while (
            grandchild.exists() and grandchild.read_text().split()[2] != "Z" and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        assert not grandchild.exists() or grandchild.read_text().split()[2] == "Z"

    def test_one_that_takes_too_much_memory_is_killed(self, tmp_path):
        command = script(tmp_path, "import time; ballast = b'x' * (200 << 20); time.sleep(60)")
        with pytest.raises(BudgetError, match="more memory than allowed"):
            run_child(command, tmp_path, ChildLimits(timeout_s=30, memory_bytes=100 << 20))

    def test_one_that_fails_says_its_last_line(self, tmp_path):
        with pytest.raises(BackendError, match="failed with code 1: ValueError: why"):
            run_child(script(tmp_path, "raise ValueError('why')"), tmp_path, SHORT)

    def test_endless_noise_is_bounded(self, tmp_path):
        text = "import sys\nfor _ in range(3000): sys.stderr.write('x' * 10000 + '\\n')\nsys.exit(7)"
        with pytest.raises(BackendError) as caught:
            run_child(script(tmp_path, text), tmp_path, SHORT)
        assert len(caught.value.message) < 500

    def test_it_gets_neither_our_environment_nor_our_input(self, tmp_path, monkeypatch):
        monkeypatch.setenv("EDGEML_SECRET", "hunter2")
        text = "import os, sys; sys.exit(5 if 'EDGEML_SECRET' in os.environ or sys.stdin.read() else 0)"
        run_child(script(tmp_path, text), tmp_path, SHORT)

    def test_an_interrupt_kills_it(self, tmp_path):
        command = script(
            tmp_path, "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
        )
        code = f"from pathlib import Path; from edgeml.child import *; run_child({command!r}, Path({str(tmp_path)!r}), ChildLimits())"
        root = str(Path(probe.__file__).parents[1])
        parent = subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": root}, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + PATIENCE_S
            while (
                not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
                and time.monotonic() < deadline
            ):
                time.sleep(0.02)
            parent.send_signal(signal.SIGINT)
            assert parent.wait(60) != 0
        finally:
            parent.kill()
            parent.wait()
        assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()

    def test_an_interrupt_at_any_moment_is_only_an_interrupt(self, tmp_path):
        """Also while the child is being started: no other thread may be left to complain, no process to go on."""
        command = script(tmp_path, "import os, signal, sys, time\nfrom edgeml.lifeline import die_with_parent\n"
                                   "die_with_parent(int(sys.argv[1]), signal.SIGKILL)\nprint('x' * 9999, file=sys.stderr)\ntime.sleep(60)")  # fmt: skip
        code = f"""
import os, signal
from pathlib import Path
from edgeml.child import ChildLimits, run_child

signal.signal(signal.SIGALRM, signal.default_int_handler)
for step in range(1, 60):
    signal.setitimer(signal.ITIMER_REAL, step / 2000)
    try:
        run_child([*{command!r}, str(os.getpid())], Path({str(tmp_path)!r}), ChildLimits(timeout_s=20))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""
        root = str(Path(probe.__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": root}, check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["interrupted"] * 59)
        deadline = time.monotonic() + PATIENCE_S
        while (alive := processes_with(command[-1])) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive

    def test_an_interrupt_between_any_two_instructions_while_the_child_runs_ends_it(self, tmp_path):
        """Popen takes a lock around its wait: an interrupt just after left it locked, and we waited for it for ever."""
        code = f"""
import os, sys
from pathlib import Path
from edgeml.child import ChildLimits, run_child

def interrupted_at(step):
    seen = 0
    def at_each_instruction(frame, event, _arg):
        nonlocal seen
        frame.f_trace_opcodes = True
        seen += event == "opcode"
        if seen == step:
            raise KeyboardInterrupt
        return at_each_instruction
    def at_each_call(frame, _event, _arg):
        named = (frame.f_code.co_name, frame.f_back.f_code.co_name)
        return at_each_instruction(frame, "call", None) if named in WHILE_IT_RUNS else None
    sys.settrace(at_each_call)
    try:
        run_child(["sleep", "0.001" if step % 2 else "7200.5"], Path({str(tmp_path)!r}), ChildLimits(timeout_s=0.05))
    except KeyboardInterrupt:
        return True
    except Exception as error:
        assert "did not finish" in str(error), error
    finally:
        sys.settrace(None)
    return False

WHILE_IT_RUNS = {{("_watch", "run_child"), ("poll", "_watch"), ("_internal_poll", "poll")}}
step = 1
while interrupted_at(step) or interrupted_at(step + 1):
    step += 1
print(step)
"""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONPATH": str(Path(probe.__file__).parents[1])},
            check=False, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert int(done.stdout) > 100
        assert not processes_with("7200.5")


def processes_with(argument):
    """Ids of running processes with this argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if argument.encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
    return found


class TestWhatAChildLeavesBehind:
    """A child may have been taken over by its model: what it left is hostile too."""

    def leave(self, folder, report, answer=None):
        (folder / "report.json").write_bytes(report)
        if answer is not None:
            (folder / "output_0.npy").write_bytes(answer)

    @pytest.mark.parametrize(
        "report",
        [
            b"",
            b"{",
            b"[]",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"runtime": 1}',
            b"{}",
            b'{"latency_p50_ms": -1}',
            b'{"peak_memory_bytes": 1e400}',
        ],
        ids=lambda data: repr(data[:20]),
    )
    def test_a_report_that_is_none_is_refused(self, tmp_path, report):
        self.leave(tmp_path, report)
        with pytest.raises(BackendError, match="no readable result"):
            probe._read_report(tmp_path / "report.json")

    def test_no_report_is_refused(self, tmp_path):
        with pytest.raises(BackendError, match="no readable result"):
            probe._read_report(tmp_path / "report.json")

    def header(self, text):
        data = text.encode().ljust(117) + b"\n"
        return b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data

    @pytest.mark.parametrize(
        "answer",
        [
            b"", b"\x93NUMPY", b"no array at all",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 9), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 9), }",
            "{'descr': '|O', 'fortran_order': False, 'shape': (4,), }",
            "__import__('os').abort()",
        ],
    )  # fmt: skip
    def test_an_answer_that_is_none_is_refused(self, tmp_path, answer):
        path = tmp_path / "output_0.npy"
        path.write_bytes(self.header(answer) + b"\0" * 64 if isinstance(answer, str) else answer)
        with pytest.raises(BackendError, match="no readable result"):
            probe._read_answer(path, 4)

    def test_an_answer_for_other_samples_is_refused(self, tmp_path):
        np.save(tmp_path / "output_0.npy", np.zeros((3, 2)))
        with pytest.raises(BackendError, match="for 4 samples"):
            probe._read_answer(tmp_path / "output_0.npy", 4)

    def test_a_link_out_of_the_directory_is_refused(self, tmp_path):
        np.save(tmp_path / "secret.npy", np.zeros((4, 2)))
        (tmp_path / "output_0.npy").symlink_to(tmp_path / "secret.npy")
        with pytest.raises(BackendError, match="no readable result"):
            probe._read_answer(tmp_path / "output_0.npy", 4)


def test_text_of_a_child_becomes_one_printable_line():
    assert child.one_line("a\n\x1b[31mb\t c" + "x" * 1000).startswith("a [31mb c")
    assert len(child.one_line("x" * 1000)) == child.MESSAGE_MAX


def test_no_thread_is_left_behind():
    before = threading.active_count()
    probe.describe(linear_model(), RuntimeFamily.ONNX)
    assert threading.active_count() == before


@pytest.mark.skipif(
    not MLPERF.is_dir(), reason="EDGEML_MLPERF_TINY names no directory with MLPerf Tiny's models"
)
def test_a_real_tflite_model_answers_integers():
    model = (MLPERF / "image_classification/pretrainedResnet_quant.tflite").read_bytes()
    images = np.zeros((3, 32, 32, 3), np.int8)
    result = probe.probe(model, RuntimeFamily.TFLITE, [images])
    assert result.answers[0].shape == (3, 10)
    assert result.answers[0].dtype == np.int8
    assert result.outputs[0].scale is not None
