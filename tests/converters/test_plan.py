"""What is tried, and in which order; when a search ends."""

import pytest

from converters.plan import Effort, Lack, Means, Need, export_for, family_for, mixed, stages, static_for
from converters.recipe import (
    Activations,
    Boundary,
    DynamicInt8,
    Layers,
    Layout,
    Prune,
    QuantizationAwareTraining,
    StaticInteger,
    Student,
)
from edgeml import profile
from edgeml.errors import IncompatibleError
from edgeml.manifest import RuntimeFamily
from edgeml.profile import DeviceRuntime

ONNX, TFLITE = RuntimeFamily.ONNX, RuntimeFamily.TFLITE
SCRIPT = RuntimeFamily.TORCHSCRIPT
BOTH = Means((ONNX, TFLITE))
ALL = Means((ONNX, TFLITE, SCRIPT))
TRAINED = Means((ONNX, TFLITE), can_train=True, students=(Student("small.py:model"),))
PROFILES = [profile.load(name) for name in profile.names()]


def planned(name, means=BOTH, effort=Effort.FIRST, family=None):
    board = profile.load(name)
    return stages(board, means, family or family_for(board, means, None), effort)


class TestFamilies:
    @pytest.mark.parametrize(
        ("name", "means", "wanted", "family"),
        [
            ("raspberry-pi-4", BOTH, None, ONNX),
            ("raspberry-pi-4", BOTH, TFLITE, TFLITE),
            ("raspberry-pi-4", Means((TFLITE,)), None, TFLITE),
            ("stm32h7", BOTH, None, TFLITE),
            ("host", ALL, SCRIPT, SCRIPT),
        ],
    )
    def test_a_profile_gets_what_it_can_run(self, name, means, wanted, family):
        assert family_for(profile.load(name), means, wanted) is family

    @pytest.mark.parametrize(
        ("name", "means", "wanted", "words"),
        [
            ("stm32h7", Means((ONNX,)), None, "has tflite-micro, and the model can become onnx"),
            ("stm32h7", Means((ONNX,)), ONNX, "has tflite-micro, and the model can become onnx"),
        ],
    )
    def test_what_cannot_be_is_said_plainly(self, name, means, wanted, words):
        with pytest.raises(IncompatibleError, match=words):
            family_for(profile.load(name), means, wanted)

    @pytest.mark.parametrize(
        ("name", "means", "wanted", "words", "gets"),
        [
            ("stm32h7", BOTH, ONNX, "profile stm32h7 has tflite-micro, and that needs onnxruntime", "tflite"),
            ("raspberry-pi-4", Means((ONNX,)), TFLITE, "the model cannot become that, only onnx", "onnx"),
            ("raspberry-pi-4", ALL, SCRIPT, "has onnxruntime, .*, and that needs torch", "onnx"),
        ],
    )
    def test_a_wish_that_cannot_be_is_what_the_error_is_about(self, name, means, wanted, words, gets):
        with pytest.raises(IncompatibleError, match=f"^--target {wanted.value}: .*{words}") as caught:
            family_for(profile.load(name), means, wanted)
        assert f"leave --target: {name} gets {gets} then" in caught.value.hint


class TestOrder:
    @pytest.mark.parametrize("board", PROFILES, ids=lambda board: board.name)
    @pytest.mark.parametrize("effort", Effort)
    def test_the_plain_export_comes_first_then_static_int8(self, board, effort):
        first, second, *_ = stages(board, TRAINED, family_for(board, TRAINED, None), effort)
        assert first.recipes[0].is_plain
        assert isinstance(second.recipes[0].compression, StaticInteger)
        assert second.helps == frozenset(Lack)

    @pytest.mark.parametrize("board", PROFILES, ids=lambda board: board.name)
    def test_exploring_tries_all_that_the_first_effort_would(self, board):
        family = family_for(board, TRAINED, None)
        little = [one for stage in stages(board, TRAINED, family, Effort.FIRST) for one in stage.recipes]
        much = [one for stage in stages(board, TRAINED, family, Effort.EXPLORE) for one in stage.recipes]
        assert set(little) < set(much)

    @pytest.mark.parametrize("board", PROFILES, ids=lambda board: board.name)
    @pytest.mark.parametrize("effort", Effort)
    def test_every_recipe_has_a_name_of_its_own(self, board, effort):
        family = family_for(board, TRAINED, None)
        found = {one for stage in stages(board, TRAINED, family, effort) for one in stage.recipes}
        assert len({one.name for one in found}) == len(found)

    def test_dynamic_int8_of_convolutions_is_never_tried_for_onnxruntime(self):
        for effort in Effort:
            for stage in planned("raspberry-pi-4", TRAINED, effort):
                assert all(one.compression != DynamicInt8(Layers.ALL) for one in stage.recipes)

    def test_without_data_to_train_on_nothing_is_trained(self):
        assert all(not one.training for stage in planned("raspberry-pi-4") for one in stage.recipes)

    def test_training_comes_last_and_only_where_it_helps(self):
        found = {stage.title: stage for stage in planned("raspberry-pi-4", TRAINED)}
        assert list(found)[-3:] == ["quantization-aware training", "pruning", "students"]
        assert found["quantization-aware training"].helps == {Lack.ACCURACY}
        assert found["pruning"].helps == found["students"].helps == {Lack.COST, Lack.BYTES}
        assert found["float16 and weights"].helps == {Lack.ACCURACY, Lack.BYTES}

    def test_pruning_keeps_to_the_channel_block_of_the_profile(self):
        steps = [
            one.training[0]
            for stage in planned("raspberry-pi-4", TRAINED)
            for one in stage.recipes
            if one.training
        ]
        blocks = {step.channel_block for step in steps if isinstance(step, Prune)}
        assert blocks == {int(profile.load("raspberry-pi-4").channel_block.value)}
        assert any(isinstance(step, QuantizationAwareTraining) for step in steps)


class TestLetters:
    @pytest.mark.parametrize(
        ("name", "activations", "bits"),
        [("raspberry-pi-4", Activations.INT8, 8), ("generic-x86-64", Activations.UINT8, 7)],
    )
    def test_suit_the_instruction_set(self, name, activations, bits):
        step = static_for(profile.load(name), ONNX)
        assert (step.activations, step.weight_bits) == (activations, bits)

    def test_a_microcontroller_takes_integers_with_channels_last(self):
        board = profile.load("stm32h7")
        assert static_for(board, TFLITE).boundary is Boundary.INTEGER
        assert export_for(board, Means((TFLITE,), is_image=True), TFLITE).layout is Layout.CHANNELS_LAST
        assert export_for(board, Means((TFLITE,)), TFLITE).layout is Layout.SOURCE

    def test_a_board_with_an_agent_takes_what_the_source_takes(self):
        board = profile.load("raspberry-pi-4")
        assert static_for(board, TFLITE).boundary is Boundary.FLOAT
        assert export_for(board, Means((TFLITE,), is_image=True), TFLITE).layout is Layout.SOURCE

    def test_a_microcontroller_is_offered_no_hybrid(self):
        assert board_runtimes("stm32h7") == (DeviceRuntime.TFLITE_MICRO,)
        for stage in planned("stm32h7"):
            assert all(one.is_plain or one.is_integer for one in stage.recipes)


def board_runtimes(name):
    return profile.load(name).runtimes


@pytest.mark.parametrize("effort", Effort)
def test_torchscript_is_made_smaller_by_training_alone(effort):
    assert [one.title for one in planned("host", ALL, effort, SCRIPT)] == ["as it is"]
    first, *others = planned("host", TRAINED, effort, SCRIPT)
    assert [one.title for one in others] == ["pruning", "students"]
    recipes = [recipe for stage in (first, *others) for recipe in stage.recipes]
    assert all(recipe.compression is None and recipe.family is SCRIPT for recipe in recipes)
    assert len({recipe.name for recipe in recipes}) == len(recipes)


def test_mixed_precision_is_a_recipe_for_each_growing_set_of_layers():
    stage = next(one for one in planned("raspberry-pi-4") if one.need is Need.SENSITIVITY)
    found = mixed(stage.recipes[0], (("a",), ("a", "b")))
    assert [one.name for one in found] == ["onnx-int8-s8s8-mixed1", "onnx-int8-s8s8-mixed2"]
