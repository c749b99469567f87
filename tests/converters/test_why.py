"""The two questions that users ask most: every reason is told when its cause is there, and only then."""

from dataclasses import replace

import pytest

from converters.candidate import Failed, Measured, Run
from converters.estimate.graph import ElementType, Graph, Operator, OperatorKind, Role, Tensor
from converters.explain.sensitivity import LayerSensitivity
from converters.explain.why import SMALL_MACS, Shown, which_layer, why_slow
from converters.metrics import Direction
from converters.recipe import Activations, DynamicInt8, Export, Layers, Recipe, StaticInteger
from converters.select import Floor
from edgeml.manifest import RuntimeFamily
from edgeml.profile import DeviceRuntime

ORT, LITERT, MICRO = DeviceRuntime.ONNXRUNTIME, DeviceRuntime.AI_EDGE_LITERT, DeviceRuntime.TFLITE_MICRO
ONNX = Export(RuntimeFamily.ONNX)
FP32 = Recipe(ONNX)
INT8 = Recipe(ONNX, (), StaticInteger(Activations.UINT8))
FLOOR = Floor("accuracy", 0.95, 0.005)
VNNI = frozenset({"avx2", "avx512_vnni"})
NEON = frozenset({"asimd", "asimddp"})
BIG = 50_000_000
REASONS = {
    "kernels": "slower than float",
    "signed": "no fast kernels for int8 by int8 on x86",
    "vnni": "AVX2 and no VNNI",
    "small": "The network is small",
    "conversions": "only turn floats into integers and back",
    "floats": "of its MACs are still in float",
    "channels": "Channels are worked on",
    "microcontroller": "reference kernels",
}
NOTHING = "Nothing in the file explains it"


def tensor(element, role=Role.ACTIVATION):
    return Tensor("t", (1, 8), element, role, 8)


FLOAT, INTEGER = 0, 1
WEIGHTS = 2
TENSORS = (tensor(ElementType.FLOAT32), tensor(ElementType.INT8), tensor(ElementType.INT8, Role.CONSTANT))


def layer(name="conv", macs=BIG, reads=INTEGER, channels=32, kind=OperatorKind.CONV):
    weights = (WEIGHTS,) if reads == INTEGER else ()
    return Operator(name, "Conv", kind, (reads, *weights), (reads,), weights, 10, macs, 9, channels)


def conversions(count):
    return [Operator(f"q{i}", "Quantize", OperatorKind.QUANTIZE, (FLOAT,), (INTEGER,)) for i in range(count)]


def graph(*operators):
    return Graph(RuntimeFamily.ONNX, TENSORS, operators, (FLOAT,), (FLOAT,), 18)


def measured(latency_ms, value=0.95):
    return Measured(value, 1.0, latency_ms, latency_ms, 1)


def shown(recipe, made, latency_ms=1.0, runtime=ORT):
    return Shown(recipe, made, Run(runtime, "a runtime 1.0", measured(latency_ms)))


def reasons(said):
    text = "\n".join(said)
    return {name for name, words in REASONS.items() if words in text}


GOOD = graph(layer())


class TestWhySlow:
    @pytest.mark.parametrize(
        ("made", "extensions", "causes"),
        [
            (GOOD, VNNI, set()),
            (GOOD, NEON, set()),
            (GOOD, frozenset({"avx2"}), {"vnni"}),
            (GOOD, frozenset({"avx2", "avx_vnni"}), set()),
            (graph(layer(macs=SMALL_MACS - 1)), VNNI, {"small"}),
            (graph(layer(macs=SMALL_MACS)), VNNI, set()),
            (graph(layer(), *conversions(2)), VNNI, set()),
            (graph(layer(), *conversions(3)), VNNI, {"conversions"}),
            (graph(layer(), layer("stem", BIG, FLOAT)), VNNI, {"floats"}),
            (graph(layer(), layer("add", 0, FLOAT, kind=OperatorKind.ELEMENTWISE)), VNNI, set()),
            (graph(layer(channels=24)), VNNI, {"channels"}),
            (graph(layer(channels=16)), VNNI, set()),
            (graph(layer(channels=10)), VNNI, set()),
            (graph(layer(channels=0)), VNNI, set()),
            (None, VNNI, set()),
            (graph(), VNNI, set()),
            (
                graph(layer(macs=10, channels=17), layer("stem", 10, FLOAT, 32), *conversions(4)),
                frozenset({"avx2"}),
                {"vnni", "small", "conversions", "floats", "channels"},
            ),
        ],
    )
    def test_every_reason_is_told_exactly_when_its_cause_is_there(self, made, extensions, causes):
        said = why_slow(shown(FP32, GOOD), shown(INT8, made), extensions, 16)
        assert reasons(said) == causes
        assert (NOTHING in said[-1]) is (not causes)

    @pytest.mark.parametrize(
        ("step", "runtime", "causes"),
        [
            (DynamicInt8(Layers.ALL), ORT, {"kernels"}),
            (DynamicInt8(Layers.LINEAR), ORT, set()),
            (StaticInteger(Activations.INT8), DeviceRuntime.TFLITE_RUNTIME, {"kernels"}),
            (StaticInteger(Activations.INT8), LITERT, set()),
            (StaticInteger(Activations.INT16), ORT, set()),
        ],
    )
    def test_what_is_known_of_a_runtime_is_told_for_that_runtime(self, step, runtime, causes):
        int8 = shown(Recipe(ONNX, (), step), GOOD, runtime=runtime)
        assert reasons(why_slow(shown(FP32, GOOD, runtime=runtime), int8, VNNI, 16)) == causes

    @pytest.mark.parametrize(
        ("activations", "runtime", "extensions", "causes"),
        [
            (Activations.INT8, ORT, frozenset({"sse4_2", *VNNI}), {"signed"}),
            (Activations.INT8, ORT, NEON, set()),
            (Activations.INT8, LITERT, frozenset({"sse4_2", *VNNI}), set()),
            (Activations.UINT8, ORT, frozenset({"sse4_2", *VNNI}), set()),
        ],
    )
    def test_int8_by_int8_is_the_wrong_form_on_x86_in_onnxruntime_alone(
        self, activations, runtime, extensions, causes
    ):
        int8 = shown(Recipe(ONNX, (), StaticInteger(activations)), GOOD, runtime=runtime)
        assert reasons(why_slow(shown(FP32, GOOD, runtime=runtime), int8, extensions, 16)) == causes

    def test_what_ran_for_a_microcontroller_has_reference_kernels_and_nothing_of_this_processor(self):
        made = graph(layer(channels=17))
        before, after = (shown(recipe, made, runtime=MICRO) for recipe in (FP32, INT8))
        assert reasons(why_slow(before, after, frozenset({"avx2"}), 16)) == {"microcontroller"}

    def test_figures_in_turns_stand_before_others_where_both_have_them(self):
        plain, int8 = shown(FP32, GOOD, 2.0), shown(INT8, GOOD, 1.0)
        in_turns = replace(int8, turns_ms=3.0)
        both = why_slow(replace(plain, turns_ms=2.5), in_turns, frozenset(), 8)[0]
        assert "takes 3.000 ms on this host, 1.20 times the 2.500 ms" in both
        assert "measured in turns" in both
        one = why_slow(plain, in_turns, frozenset(), 8)[0]
        assert "takes 1.000 ms on this host, 0.50 times the 2.000 ms" in one
        assert "in turns" not in one

    def test_the_figures_are_the_two_latencies_and_their_ratio(self):
        [first, *_] = why_slow(shown(FP32, GOOD, 2.0), shown(INT8, GOOD, 3.0), VNNI, 16)
        assert first == "onnx-int8-u8s8 takes 3.000 ms on this host, 1.50 times the 2.000 ms of onnx-fp32."

    @pytest.mark.parametrize(("latency_ms", "faster"), [(0.5, True), (0.84, True), (0.86, False), (1.0, False), (3, False)])  # fmt: skip
    def test_it_is_called_faster_only_beyond_noise(self, latency_ms, faster):
        [first, *rest] = why_slow(shown(FP32, GOOD), shown(INT8, GOOD, latency_ms), VNNI, 16)
        assert first.startswith("It is faster: ") is faster
        assert bool(rest) is not faster

    def test_what_keeps_a_faster_one_from_being_faster_still_is_told(self):
        said = why_slow(shown(FP32, GOOD), shown(INT8, GOOD, 0.5), frozenset({"avx2"}), 16)
        assert said[1] == "It would be faster still, but for this:"
        assert reasons(said) == {"vnni"}

    def test_the_share_and_the_names_are_of_the_layers_in_float(self):
        made = graph(layer("deep", 3 * BIG), layer("stem", BIG, FLOAT))
        assert "25% of its MACs are still in float, in stem." in why_slow(
            shown(FP32, GOOD), shown(INT8, made), VNNI, 16
        )

    @pytest.mark.parametrize(
        ("plain", "int8", "words"),
        [
            (None, shown(INT8, GOOD), "There is no int8 candidate beside a float one"),
            (shown(FP32, GOOD), None, "There is no int8 candidate beside a float one"),
            (shown(FP32, GOOD), Shown(INT8, GOOD, Run(ORT, "", Failed("it died"))), "One of the two did not run"),
            (Shown(FP32, GOOD, Run(ORT, "", Failed("it died"))), shown(INT8, GOOD), "One of the two did not run"),
        ],
    )  # fmt: skip
    def test_without_two_figures_nothing_is_compared(self, plain, int8, words):
        [said] = why_slow(plain, int8, VNNI, 16)
        assert words in said


def row(name, agreement=1.0, sqnr_db=40.0, drop=0.0):
    return LayerSensitivity(name, "Conv", 100, drop, agreement, sqnr_db, -1.0, 1.0, -3.0, 250.0)


def int8_at(value):
    return Shown(INT8, GOOD, Run(ORT, "a runtime 1.0", measured(1.0, value)))


class TestWhichLayer:
    @pytest.mark.parametrize(
        ("floor", "value", "first"),
        [
            (FLOOR, 0.95, "onnx-int8-u8s8 loses 0.00 points of accuracy and keeps to the floor."),
            (FLOOR, 0.945, "onnx-int8-u8s8 loses 0.50 points of accuracy and keeps to the floor."),
            (FLOOR, 0.90, "onnx-int8-u8s8 loses 5.00 points of accuracy and misses the floor."),
            (FLOOR, 0.97, "onnx-int8-u8s8 loses 0.00 points of accuracy and keeps to the floor."),
            (
                Floor("MAE", 40.0, 0.01, Direction.LOWER),
                42.0,
                "onnx-int8-u8s8 loses 5.00% of itself of MAE and misses the floor.",
            ),
            (
                Floor("MAE", 40.0, 0.01, Direction.LOWER),
                30.0,
                "onnx-int8-u8s8 loses 0.00% of itself of MAE and keeps to the floor.",
            ),
        ],
    )
    def test_the_loss_is_told_first_and_whether_it_is_too_much(self, floor, value, first):
        assert which_layer([row("a")], floor, int8_at(value))[0] == first

    def test_the_three_that_change_most_answers_are_named(self):
        rows = [row(name, agreement=0.9 + at / 100) for at, name in enumerate("abcd")]
        said = which_layer(rows, FLOOR, int8_at(0.9))
        assert said[1].startswith(
            "Quantized alone, these change most answers: a (Conv): 10.00% of the answers change, 40 dB; b"
        )
        assert "d (Conv)" not in said[1]
        assert len(said) == 2

    @pytest.mark.parametrize(("sqnr_db", "told"), [(19.9, True), (20.0, False)])
    def test_a_range_that_is_too_wide_is_told_of_a_layer_that_drowns_in_noise(self, sqnr_db, told):
        said = which_layer([row("a", 0.9, sqnr_db)], FLOOR, int8_at(0.9))
        assert ("a has weights from -1 to 1 and gives -3 to 250" in said[-1]) is told

    def test_a_noisy_layer_that_changes_no_answer_is_no_cause(self):
        said = which_layer([row("a", 0.99), row("b", 1.0, 3.0)], FLOOR, int8_at(0.9))
        assert not any("b" in part.split() for part in said)

    def test_where_no_answer_changes_the_noisiest_layer_is_named(self):
        said = which_layer([row("a", sqnr_db=30), row("b", sqnr_db=25.4)], FLOOR, int8_at(0.95))
        assert said[1] == (
            "No layer changes an answer when it alone is quantized. b adds most noise (25 dB)."
        )

    def test_layers_that_were_not_told_apart_are_said_to_be(self):
        assert "Its layers were not told apart" in which_layer((), FLOOR, int8_at(0.9))[1]

    @pytest.mark.parametrize("int8", [None, Shown(INT8, GOOD, Run(ORT, "", Failed("it died")))])
    def test_without_an_int8_candidate_there_is_nothing_to_tell(self, int8):
        [said] = which_layer([row("a", 0.5)], FLOOR, int8)
        assert said.startswith("No int8 candidate ran")
