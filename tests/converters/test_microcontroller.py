"""One torch network for two microcontrollers and a board in one call: shared work, and what each of them can run."""

import json
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from converters.assemble import ReleaseName
from converters.dataset import Dataset
from converters.metrics import Evaluation, judge_of
from converters.order import ConversionOrder, Limits
from converters.plan import Effort, Stage
from converters.recipe import (
    DynamicInt8,
    Export,
    Granularity,
    Layers,
    Recipe,
)
from converters.search import Aim, Search
from converters.select import Constraints, Floor, Preference, Verdict, select
from converters.service import convert
from converters.sources.load import load
from converters.sources.source_name import parse_source
from converters.store import Store
from converters.venues import venues_for
from converters.verify import Verifier
from converters.workbench import Workbench
from converters.workshop import Workshop, fingerprint_of
from edgeml import golden, profile
from edgeml.bundle import GOLDEN, Bundle
from edgeml.guest import Guest
from edgeml.ids import digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.probe import probe
from edgeml.tensors import DType

from .guests import needs, python_of
from .tflite_net import digits_net

pytestmark = [pytest.mark.torch, pytest.mark.processes]
HAS_LITERT, HAS_OLD = needs(Guest.LITERT_TORCH), needs(Guest.TFLITE_RUNTIME)
CONTROLLERS = ("esp32-s3", "stm32h7")
MAX_DROP = 0.05
FACTORY = textwrap.dedent(
    """
    import torch
    from torch import nn

    def model():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(2, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
        )
    """
)


@pytest.fixture(autouse=True)
def _guests(monkeypatch):
    for guest in Guest:
        monkeypatch.setenv(guest.variable, str(python_of(guest)))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """`net.py`, and images [2, 8, 8] that it is sure about."""
    import torch

    folder = tmp_path_factory.mktemp("controller")
    (folder / "net.py").write_text(FACTORY)
    space: dict = {}
    exec(FACTORY, space)  # our own text, above
    images = np.random.default_rng(0).normal(size=(1200, 2, 8, 8)).astype(np.float32)
    with torch.no_grad():
        scores = np.sort(space["model"]()(torch.from_numpy(images)).numpy(), axis=1)
        labels = space["model"]()(torch.from_numpy(images)).argmax(1).numpy()
    sure = np.argsort(scores[:, -2] - scores[:, -1])[:300]
    np.savez(
        folder / "data.npz", calibration_x=images[sure[:60]], evaluation_x=images[sure[60:]], evaluation_y=labels[sure[60:]]
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        for guest in Guest:
            patch.setenv(guest.variable, str(python_of(guest)))
        return convert(
            ConversionOrder(
                source=f"{source}/net.py:model", data=source / "data.npz",
                profiles=tuple(map(profile.load, ("stm32h7", "esp32-s3", "raspberry-pi-4"))), release=ReleaseName("net", "1.0.0"),
                limits=Limits(max_drop=MAX_DROP), out=out, work=out / "work",
            )
        )  # fmt: skip


def rows(conversion, family):
    return [one for one in conversion.report.candidates if one.variant.startswith(family)]


@HAS_LITERT
class TestThreeProfilesInOneCall:
    def test_both_microcontrollers_share_a_bundle_and_the_board_has_its_own(self, converted):
        assert {one.variant: one.profiles for one in converted.bundles} == {
            "tflite-int8-s8s8": CONTROLLERS,
            "onnx-int8-s8s8": ("raspberry-pi-4",),
        }

    def test_the_board_alone_has_an_agent_to_publish_for(self, converted):
        [board] = [one.path for one in converted.bundles if one.profiles == ("raspberry-pi-4",)]
        assert converted.for_agents == (board,)

    def test_a_microcontroller_takes_and_gives_integers_with_channels_last(self, converted, source):
        [said] = [one for one in converted.bundles if one.variant.startswith("tflite")]
        with Bundle(Path(said.path)) as one:
            one.verify()
            [taken], [given] = one.manifest.inputs, one.manifest.outputs
            assert (taken.dtype, taken.shape) == (DType.INT8, (1, 8, 8, 2))
            assert (given.dtype, given.shape) == (DType.INT8, (1, 5))
            assert taken.scale
            assert given.scale
            recorded = golden.decode(one.read(GOLDEN), one.manifest)
            settings = json.loads(one.manifest.provenance.settings)
            libraries = one.manifest.provenance.libraries
            model = one.model()
        assert any(one.startswith("litert-torch 0") for one in libraries)
        assert settings["export"]["layout"] == "channels-last"
        first = np.load(source / "data.npz")["evaluation_x"][: golden.SAMPLES].transpose(0, 2, 3, 1)
        real = (recorded.inputs[0].astype(np.float32) - taken.zero_point) * taken.scale
        inside = np.abs(first) < 127 * taken.scale
        np.testing.assert_allclose(real[inside], first[inside], atol=0.51 * taken.scale)
        again = probe(model, RuntimeFamily.TFLITE, recorded.inputs)
        assert golden.compare(recorded.outputs, again.answers, one.manifest).passed

    def test_c_source_stands_beside_the_bundle_and_holds_the_same_bytes(self, converted):
        header, body = (Path(one) for one in converted.files)
        assert (header.name, body.name) == ("net-1.0.0-tflite-int8-s8s8.h", "net-1.0.0-tflite-int8-s8s8.cc")
        [said] = [one for one in converted.bundles if one.variant.startswith("tflite")]
        with Bundle(Path(said.path)) as one:
            model = one.model()
        numbers = [
            int(word, 16) for word in body.read_text().replace("{", ",").replace("}", ",").split(",")
            if word.strip().startswith("0x")
        ]  # fmt: skip
        assert bytes(numbers) == model
        assert "AddConv2D" in header.read_text() + body.read_text()

    def test_candidates_say_whether_the_micro_runtime_ran_them_or_kernels_that_stand_in(self, converted):
        for row in rows(converted, "tflite"):
            assert [run.runtime for run in row.runs] == ["tflite-micro"]
            said = row.runs[0].version
            itself = said.startswith("TensorFlow Lite Micro ") and "which is no microcontroller" in said
            assert itself or "reference kernels (TensorFlow Lite Micro itself was not run)" in said
        for row in rows(converted, "onnx"):
            assert [run.runtime for run in row.runs] == ["onnxruntime"]

    def test_each_profile_judges_what_it_can_run_and_nothing_else(self, converted):
        for row in rows(converted, "tflite"):
            assert {one.profile for one in row.verdicts} == set(CONTROLLERS)
        for row in rows(converted, "onnx"):
            assert {one.profile for one in row.verdicts} == {"raspberry-pi-4"}

    def test_a_microcontrollers_memory_is_its_arena_and_its_latency_an_estimate(self, converted):
        for row in rows(converted, "tflite"):
            for one in row.verdicts:
                assert one.memory_basis == one.latency_basis == "estimated"
                assert 200 < one.memory_bytes < 20_000
                assert one.latency_ms != row.runs[0].latency_p50_ms
        [board] = {one.memory_basis for row in rows(converted, "onnx") for one in row.verdicts}
        assert board == "measured on this host"

    def test_the_answers_are_about_one_pair_on_one_runtime(self, converted):
        """The float candidate of another family was what int8 was compared with, whichever came first."""
        [which, slow] = converted.report.answers
        assert "onnx-int8-s8s8 loses" in which.answer
        assert "onnx-int8-s8s8 takes" in slow.answer
        assert "of onnx-fp32" in slow.answer
        assert {one.layer for one in converted.report.layers}

    def test_the_page_has_a_table_for_each(self, converted):
        page = Path(converted.page).read_text()
        for name in ("stm32h7", "esp32-s3", "raspberry-pi-4"):
            assert f"For {name}" in page


WRONG = (
    DynamicInt8(Layers.ALL, linear=Granularity.CHANNEL),
    DynamicInt8(Layers.ALL, bits=4),
)
RIGHT = (DynamicInt8(Layers.ALL),)


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Recipes that end well and are wrong in the old runtime, among others: (aim, how the board sees each)."""
    folder, net = tmp_path_factory.mktemp("tried"), digits_net()
    (folder / "net.tflite").write_bytes(net.model)
    export = Export(RuntimeFamily.TFLITE)
    recipes = [Recipe(export), *(Recipe(export, (), step) for step in (*WRONG, *RIGHT))]
    board = profile.load("raspberry-pi-4")
    data = Dataset(net.calibration, net.samples, net.labels.astype(np.int64), digest_of(b"digits"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(Guest.TFLITE_RUNTIME.variable, str(python_of(Guest.TFLITE_RUNTIME)))
        source = load(parse_source(str(folder / "net.tflite")), net.calibration)
        answers = source.answers(net.samples, "it")
        judge = judge_of(None, answers, Evaluation(net.samples, data.truth))
        store = Store(folder / "work")
        bench = Workbench(
            Workshop(source, fingerprint_of(source, answers), data, store, "scores"), Verifier(net.samples, judge, store), {export: venues_for([board])}
        )  # fmt: skip
        floor = Floor("accuracy", judge.baseline, 0.05)
        aim = Aim(board, (Stage("all", tuple(recipes), 1.0),), Constraints(floor))
        found = Search(bench, Effort.EXPLORE, lambda _: None).run([aim])
    return aim, tuple(bench.place(one, board) for one in found)


@HAS_OLD
class TestWhatAnswersAtChanceLevel:
    """What is wrong in the one runtime of two that a device has is never chosen, with the table of what is known or without."""

    def test_every_candidate_was_run_on_both_and_some_are_wrong(self, tried):
        aim, placements = tried
        wrong = set()
        for one in placements:
            assert [run.runtime.value for run in one.runs] == ["ai-edge-litert", "tflite-runtime"]
            if not all(aim.constraints.floor.holds(run.outcome.value) for run in one.runs):
                wrong.add(one.candidate.recipe.compression)
        assert wrong == set(WRONG)

    @pytest.mark.parametrize("preference", Preference)
    @pytest.mark.parametrize("is_known", [True, False])
    def test_none_that_is_wrong_is_chosen_or_passed_over_as_good(self, tried, preference, is_known):
        aim, placements = tried
        if not is_known:
            placements = tuple(replace(one, known_wrong="") for one in placements)
        selection = select(placements, aim.profile, aim.constraints, preference)
        refused = {one.recipe.compression for one in selection.judgements if one.verdict is Verdict.REFUSED}
        assert refused == set(WRONG)
        assert selection.chosen.compression not in WRONG
        reasons = [one.reason for one in selection.judgements if one.verdict is Verdict.REFUSED]
        assert all("tflite-runtime" in one for one in reasons), reasons
