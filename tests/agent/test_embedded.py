"""An agent inside another program: the same answers as the bare model, whatever it is made of."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent import Agent, Mode
from agent.buffer_reader import find_buffer, reading, stored_rows
from agent.serving import NoModelError
from agent.slots import SlotTable, promote
from edgeml.bundle import Bundle, write_bundle
from edgeml.errors import BackendError, ConfigError, DigestMismatchError
from edgeml.ids import ModelName, digest_of_file
from edgeml.runtime import open_session
from edgeml.telemetry import Stream
from edgeml.testing import sample_bundle
from edgeml.twin import Slot, Slots

from ..waiting import wait_for

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
MODES = pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.value)
SETTINGS = 'device = "cam-1"\nprofile = "generic-x86-64"\nstorage = "state"\n'


def array(value=1.0, rows=1):
    return np.full((rows, 4), value, np.float32)


@pytest.fixture(scope="module")
def bare(sample):
    with Bundle(sample[0]) as bundle:
        session = open_session(bundle.model(), bundle.manifest.runtime)
    return lambda given: session.run([given])[0]


@pytest.fixture
def device(tmp_path, sample):
    """Settings of a device on which the sample is installed."""
    settings = tmp_path / "agent.toml"
    settings.write_text(SETTINGS)
    table = SlotTable(tmp_path / "state")
    table.store.mkdir(parents=True)
    table.path(sample[1]).write_bytes(sample[0].read_bytes())
    table.write(ModelName("sample"), promote(Slots(), Slot("sample@1.0.0", sample[1], "sample/1.0.0", 1)))
    return settings


@MODES
def test_answers_are_the_models_with_class_and_label(sample, bare, mode):
    with Agent(sample[0], mode, digest=sample[1]) as agent:
        for value in (1.0, -1.0, 3.0):
            prediction = agent.infer({"x": array(value)}, request_id="r1")
            expected = bare(array(value))
            np.testing.assert_array_equal(prediction.outputs["logits"], expected)
            assert prediction.predicted == expected.argmax()
            assert prediction.label == "abc"[prediction.predicted]
            assert (prediction.model, prediction.version, prediction.request_id) == ("sample", "1.0.0", "r1")
            assert 0 < prediction.latency_us < 1e6
        batch = agent.infer({"x": array(2.0, rows=5)})
        np.testing.assert_array_equal(batch.outputs["logits"], bare(array(2.0, rows=5)))
        assert (batch.predicted, batch.label) == (None, None)


@MODES
def test_arrays_in_any_order_of_memory_and_of_changing_shapes_are_taken(sample, bare, mode):
    generator = np.random.default_rng(0)
    with Agent(str(sample[0]), mode) as agent:
        for rows in (1, 7, 1, 3, 2000, 1):
            given = np.asfortranarray(generator.normal(size=(rows, 8)).astype(np.float32))[:, ::2]
            observed = agent.infer({"x": given}).outputs["logits"]
            np.testing.assert_allclose(observed, bare(np.ascontiguousarray(given)), rtol=1e-5, atol=1e-5)


@MODES
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"inputs \[\] given, the model takes \['x'\]"),
        ({"y": array()}, r"inputs \['y'\] given"),
        ({"x": array(), "y": array()}, r"inputs \['x', 'y'\] given"),
        ({"x": array().astype(np.float64)}, "x is float64, the model takes float32"),
        ({"x": array()[0]}, r"x has shape \[4\], the model takes \[-1, 4\]"),
        ({"x": np.zeros((1, 4), complex)}, "complex128, which no model takes"),
    ],
    ids=["none", "another", "too many", "type", "shape", "no type"],
)
def test_arrays_that_do_not_fit_are_the_callers_to_fix(sample, mode, inputs, message):
    with Agent(sample[0], mode) as agent:
        agent.infer({"x": array()})
        with pytest.raises(ConfigError, match=message):
            agent.infer(inputs)
        assert agent.infer({"x": array()}).predicted is not None


@MODES
def test_threads_get_their_own_answers(sample, bare, mode):
    wrong = []
    with Agent(sample[0], mode) as agent:

        def run(value):
            expected = bare(array(value))
            answers = (agent.infer({"x": array(value)}).outputs["logits"] for _ in range(100))
            wrong.extend(value for answer in answers if not (answer == expected).all())

        threads = [threading.Thread(target=run, args=(float(value),)) for value in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@MODES
def test_a_bundle_that_is_another_one_or_none_is_refused(sample, mode, tmp_path):
    with pytest.raises(DigestMismatchError), Agent(sample[0], mode, digest="0" * 64):
        pass
    with pytest.raises(ConfigError, match="no bundle at"), Agent(tmp_path / "none.edgeml", mode):
        pass


@MODES
def test_outside_its_with_statement_an_agent_answers_nothing(sample, mode):
    agent = Agent(sample[0], mode)
    with pytest.raises(NoModelError, match="not running"):
        agent.infer({"x": array()})
    assert agent.manifest() is None
    with agent:
        assert agent.models == ("sample",)
        assert agent.manifest().release == agent.manifest("sample").release == "sample@1.0.0"
        assert agent.infer({"x": array()}, model="sample").predicted is not None
        with pytest.raises(NoModelError, match="no model other"):
            agent.infer({"x": array()}, model="other")
        with pytest.raises(ConfigError, match="not counted"):
            agent.feedback("r1", 1)
    with pytest.raises(NoModelError, match="not running"):
        agent.infer({"x": array()})


def test_a_worker_that_is_killed_costs_an_answer_and_comes_back(sample):
    with Agent(sample[0]) as agent:
        first = agent.infer({"x": array()}).outputs["logits"]
        os.kill(agent._source._serving.active.pid, signal.SIGSEGV)
        with pytest.raises((BackendError, NoModelError)):
            agent.infer({"x": array()})

        def once_more():
            with contextlib.suppress(BackendError, NoModelError):
                return agent.infer({"x": array()})

        again = wait_for(once_more, "another worker").outputs["logits"]
        np.testing.assert_array_equal(again, first)


def test_settings_run_the_whole_agent_which_counts_and_hears_feedback(device, sample, bare):
    with Agent(device) as agent:
        assert agent.manifest().release == "sample@1.0.0"
        prediction = agent.infer({"x": array(2.0)})
        np.testing.assert_array_equal(prediction.outputs["logits"], bare(array(2.0)))
        assert agent.feedback(prediction.request_id, prediction.label)
        assert not agent.feedback("unheard", 1)
        agent.infer({"x": array(1.0)})
        with pytest.raises(ConfigError, match="another agent runs"), Agent(device):
            pass
    with reading(find_buffer(device.parent / "state")) as database:
        windows = [one.row for one in stored_rows(database, Stream.WINDOWS)]
    assert sum(one.counters.inferences for one in windows) == 2
    assert sum(one.counters.labelled for one in windows) == 1


def test_settings_without_a_model_start_and_say_so(tmp_path):
    settings = tmp_path / "agent.toml"
    settings.write_text(SETTINGS)
    with Agent(settings) as agent:
        assert agent.manifest() is None
        with pytest.raises(NoModelError, match="no model serves"):
            agent.infer({"x": array()})


def test_settings_need_workers_and_must_be_right(tmp_path, device):
    with pytest.raises(ConfigError, match="run in workers"):
        Agent(device, Mode.IN_PROCESS)
    with pytest.raises(ConfigError, match="cannot read"), Agent(tmp_path / "none.toml"):
        pass


def test_a_slot_that_cannot_be_served_is_told_by_the_next_question(device, sample):
    store = device.parent / "state" / "store" / f"{sample[1]}.edgeml"
    store.write_bytes(b"no bundle")
    with Agent(device) as agent, pytest.raises(NoModelError):
        agent.infer({"x": array()})


def test_nothing_is_left_running_when_the_program_ends_without_closing(tmp_path):
    path = tmp_path / "sample.edgeml"
    sample_bundle(path)
    program = """
import sys, numpy as np
from agent import Agent
agent = Agent(sys.argv[1]); agent.start()
agent.infer({"x": np.zeros((1, 4), np.float32)})
print(agent._source._serving.active.pid, flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path,
    )  # fmt: skip
    proc = Path("/proc") / done.stdout.strip()
    wait_for(lambda: not proc.exists(), "the worker to go")


def test_the_package_itself_stays_light():
    code = "import agent, sys; assert 'numpy' not in sys.modules; from agent import Mode; assert Mode.WORKER"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(ImportError):
        from agent import Nothing  # noqa: F401


def test_of_several_models_one_is_named(device, sample, tmp_path, bare):
    path = tmp_path / "second.edgeml"
    with Bundle(sample[0]) as bundle:
        members = {entry.name: bundle.read(entry.name) for entry in bundle.manifest.files}
        write_bundle(path, msgspec.structs.replace(bundle.manifest, model="second"), members)
    digest = digest_of_file(path)
    table = SlotTable(tmp_path / "state")
    table.path(digest).write_bytes(path.read_bytes())
    table.write(ModelName("second"), promote(Slots(), Slot("second@1.0.0", digest, "second/1.0.0", 1)))
    with Agent(device) as agent:
        assert agent.models == ("sample", "second")
        with pytest.raises(ConfigError, match="2 models serve here"):
            agent.infer({"x": array()})
        for model in agent.models:
            prediction = agent.infer({"x": array(2.0)}, model=model)
            assert prediction.model == model
            np.testing.assert_array_equal(prediction.outputs["logits"], bare(array(2.0)))
            assert agent.feedback(prediction.request_id, 1, model=model)
        with pytest.raises(NoModelError, match="no model third"):
            agent.infer({"x": array()}, model="third")
