"""Selection: the rules as a table, and what holds for any candidates."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.amounts import fraction
from converters.candidate import Basis, Candidate, Failed, Figure, Measured, Placement, Run
from converters.metrics import Direction
from converters.recipe import Activations, Export, Float16, Recipe, StaticInteger, WeightOnly
from converters.select import (
    NOISE_FRACTION,
    Constraints,
    Floor,
    Preference,
    Verdict,
    nothing_left,
    refusal,
    select,
)
from edgeml import profile
from edgeml.errors import BudgetError, SelectionError
from edgeml.manifest import RuntimeFamily
from edgeml.profile import DeviceRuntime

FLOOR = Floor("accuracy", 0.97, 0.005)
LIMITS = Constraints(FLOOR)
BASE = profile.read("generic-x86-64").decode()
ONNX = Export(RuntimeFamily.ONNX)
FP32 = Recipe(ONNX)
U8S8 = Recipe(ONNX, (), StaticInteger(Activations.UINT8))
U8S7 = Recipe(ONNX, (), StaticInteger(Activations.UINT8, weight_bits=7))
S8S8 = Recipe(ONNX, (), StaticInteger(Activations.INT8))
FP16 = Recipe(ONNX, (), Float16())
WEIGHTS = Recipe(ONNX, (), WeightOnly(8))
ORT = DeviceRuntime.ONNXRUNTIME


def board(
    name="board", architecture="aarch64", extensions='["asimd"]', memory=None, storage=None, runtimes='["onnxruntime"]'
):  # fmt: skip
    lines = []
    for line in BASE.splitlines():
        key = line.split(" =")[0]
        replaced = {
            "name": f'name = "{name}"', "architecture": f'architecture = "{architecture}"',
            "extensions": f"extensions = {extensions}", "runtimes": f"runtimes = {runtimes}",
            "model_memory": memory and f'model_memory = {{ value = {memory}, unit = "bytes", origin = "estimated", source = "test" }}',
            "model_storage": storage and f'model_storage = {{ value = {storage}, unit = "bytes", origin = "estimated", source = "test" }}',
        }  # fmt: skip
        lines.append(replaced.get(key) or line)
    return profile.decode("\n".join(lines).encode(), "test")


ARM = board()
VNNI = board("vnni", "x86_64", '["avx2", "avx512_vnni"]')
PLAIN = board("plain", "x86_64", '["avx2"]')


def place(recipe, length=30_000, value=0.97, latency=1.0, memory=60_000_000, basis=Basis.HOST, **more):
    outcome = Measured(value, 1.0, latency or 1.0, latency or 1.0, memory)
    runs = (Run(ORT, "onnxruntime 1", outcome),)
    return Placement(
        Candidate(recipe, length, None, runs), runs,
        None if latency is None else Figure(latency, basis), Figure(memory, Basis.HOST), **more,
    )  # fmt: skip


def broken(recipe, reason="the runtime died of SIGABRT"):
    runs = (Run(ORT, "", Failed(reason)),)
    return Placement(Candidate(recipe, 5, None, runs), runs, None, None)


def three(fp32=100_000, **changes):
    """fp32, u8s8, s8s8; `u8s8` and `s8s8` may be given as dicts of changes."""
    return (
        place(FP32, fp32, **changes.get("fp32_is", {})),
        place(U8S8, **changes.get("u8s8", {})),
        place(S8S8, **changes.get("s8s8", {})),
    )


def chosen_of(placements, board, constraints=LIMITS, preference=Preference.BYTES):
    selection = select(placements, board, constraints, preference)
    return selection.chosen


BAD = {"value": 0.95}


@pytest.mark.parametrize(
    ("placements", "board", "chosen", "words"),
    [
        (three(), ARM, S8S8, "30% of the fp32 file; s8s8 suits the instruction set (aarch64)"),
        (three(s8s8={"latency": 9.0}), ARM, S8S8, "suits the instruction set"),
        (three(u8s8={"latency": 9.0}), VNNI, U8S8, "u8s8 suits the instruction set (avx512_vnni)"),
        ((*three(), place(U8S7)), PLAIN, U8S7, "u8s7 suits the instruction set (x86-64 without VNNI)"),
        (three(s8s8={"latency": 2.0}), PLAIN, U8S8, "keeps to every constraint"),
        (three(u8s8=BAD), VNNI, S8S8, "30% of the fp32 file"),
        (three(s8s8=BAD), ARM, U8S8, "30% of the fp32 file"),
        (three(u8s8=BAD, s8s8=BAD), ARM, FP32, "nothing else does"),
        (three(fp32=20_000), ARM, FP32, "nothing smaller does"),
        (three(fp32_is=BAD), ARM, S8S8, "keeps to every constraint"),
        (three(s8s8={"value": 0.965}), ARM, S8S8, "keeps"),  # a drop of exactly 0.5 points
        (three(s8s8={"value": 0.99}), ARM, S8S8, "keeps"),
        ((*three(u8s8=BAD, s8s8=BAD), place(FP16, 55_000)), ARM, FP16, "55% of the fp32 file"),
        ((place(S8S8, 30_000, latency=1.0), place(WEIGHTS, 29_000, latency=3.0)), ARM, S8S8, "keeps"),
    ],
)  # fmt: skip
def test_what_is_chosen_and_why(placements, board, chosen, words):
    selection = select(placements, board, LIMITS, Preference.BYTES)
    assert selection.chosen == chosen
    assert words in selection.reason


@pytest.mark.parametrize(
    ("placements", "board", "recipe", "verdict", "words"),
    [
        (three(s8s8={"value": 0.958}), ARM, S8S8, Verdict.REFUSED, "accuracy drops 1.20 points, more than 0.50 points"),
        (three(), ARM, FP32, Verdict.PASSED_OVER, "larger than onnx-int8-s8s8: 100.0 kB against 30.0 kB"),
        (three(), ARM, U8S8, Verdict.PASSED_OVER, "onnx-int8-s8s8 suits the instruction set better (aarch64)"),
        (three(s8s8={"latency": 2.0}), PLAIN, S8S8, Verdict.PASSED_OVER, "slower than onnx-int8-u8s8 (measured on this host)"),
        (three(), board(storage=50_000), FP32, Verdict.REFUSED, "does not fit: 100.0 kB of 50.0 kB storage"),
        (three(fp32_is={"memory": 90_000_000}), board(memory=70_000_000), FP32, Verdict.REFUSED, "90.0 MB (measured on this host) of 70.0 MB"),
        ((*three()[:2], broken(S8S8)), ARM, S8S8, Verdict.REFUSED, "died of SIGABRT"),
        ((*three()[:2], place(S8S8, known_wrong="collapses on that runtime")), ARM, S8S8, Verdict.REFUSED, "collapses on that runtime"),
        ((*three()[:2], Placement(Candidate(S8S8, 5, None, ()), (), None, None)), ARM, S8S8, Verdict.REFUSED, "could not be verified"),
        ((*three()[:2], Placement(Candidate(S8S8, 0, None, (), "cannot be quantized"), (), None, None)), ARM, S8S8, Verdict.REFUSED, "cannot be quantized"),
    ],
)  # fmt: skip
def test_why_another_is_not_chosen(placements, board, recipe, verdict, words):
    judgements = select(placements, board, LIMITS, Preference.BYTES).judgements
    judgement = next(one for one in judgements if one.recipe == recipe)
    assert judgement.verdict is verdict
    assert words in judgement.reason


@pytest.mark.parametrize(
    ("constraints", "placement", "words"),
    [
        (Constraints(FLOOR, max_bytes=20_000), place(S8S8), "has 30.0 kB, more than 20.0 kB"),
        (Constraints(FLOOR, max_latency_ms=0.5), place(S8S8), "takes 1 ms (measured on this host), more than 0.5 ms"),
        (Constraints(FLOOR, max_latency_ms=0.5), place(S8S8, basis=Basis.ESTIMATED), "takes 1 ms (estimated)"),
        (Constraints(FLOOR, max_latency_ms=0.5), place(S8S8, latency=None), "nobody can say its latency on board"),
        (Constraints(FLOOR, max_memory_bytes=50_000_000), place(S8S8), "takes 60.0 MB (measured on this host) of memory, more than the 50.0 MB of --max-memory"),
        (Constraints(FLOOR, max_memory_bytes=50_000_000), replace(place(S8S8), memory_bytes=None), "nobody can say its memory on board"),
        (Constraints(FLOOR), replace(place(S8S8), memory_bytes=None), ""),
        (Constraints(FLOOR, max_latency_ms=2.0, max_bytes=40_000, max_memory_bytes=70_000_000), place(S8S8), ""),
    ],
)  # fmt: skip
def test_constraints_refuse_with_both_numbers(constraints, placement, words):
    said = refusal(placement, ARM, constraints)
    assert words in said
    assert bool(said) == bool(words)


def test_on_a_microcontroller_memory_must_be_known_without_a_limit_too():
    micro = board(runtimes='["tflite-micro"]')
    unknown, known = replace(place(S8S8), memory_bytes=None), place(S8S8, memory=1000)
    assert refusal(unknown, micro, LIMITS) == "nobody can say its memory on board"
    assert not refusal(known, micro, LIMITS)
    error = nothing_left((unknown,), micro, LIMITS)
    assert isinstance(error, BudgetError)
    assert "nobody can say its memory" in error.message
    assert error.observed > error.budget


def test_one_runtime_of_the_profile_that_answers_at_chance_is_enough_to_refuse():
    good, chance = Measured(0.97, 1.0, 1.0, 1.0, 1), Measured(0.1, 0.1, 1.0, 1.0, 1)
    runs = (Run(DeviceRuntime.AI_EDGE_LITERT, "", good), Run(DeviceRuntime.TFLITE_RUNTIME, "", chance))
    said = refusal(Placement(Candidate(S8S8, 5, None, runs), runs, None, None), ARM, LIMITS)
    assert "accuracy drops 87.00 points on tflite-runtime" in said


def test_the_fastest_may_be_preferred():
    placements = (place(FP32, 100_000, latency=2.0), place(WEIGHTS, 30_000, latency=2.0), place(FP16, 50_000))
    assert chosen_of(placements, ARM) == WEIGHTS
    assert chosen_of(placements, ARM, preference=Preference.LATENCY) == FP16


class TestWhereLowerIsBetter:
    FLOOR = Floor("MAE", 40.0, 0.01, Direction.LOWER)

    def test_a_drop_is_a_fraction_of_the_baseline(self):
        assert self.FLOOR.drop(40.4) == pytest.approx(0.01)
        assert self.FLOOR.holds(40.4)
        assert not self.FLOOR.holds(40.5)

    def test_better_than_the_baseline_is_no_drop(self):
        assert self.FLOOR.drop(30.0) == 0.0


class TestWhatIsNoFiniteNumber:
    VALUES = (float("nan"), float("inf"), float("-inf"))

    @pytest.mark.parametrize("direction", Direction)
    @pytest.mark.parametrize("value", VALUES)
    def test_is_never_enough(self, value, direction):
        for floor in (Floor("own", 0.97, 1e9, direction), Floor("own", 0.97, float("inf"), direction)):
            assert floor.drop(value) == float("inf")
            assert not floor.holds(value)

    @pytest.mark.parametrize("direction", Direction)
    @pytest.mark.parametrize("value", VALUES)
    def test_as_a_baseline_lets_nothing_pass(self, value, direction):
        floor = Floor("own", value, 0.5, direction)
        assert not any(floor.holds(one) for one in (0.97, -1e300, 1e300, value))

    def test_is_told_in_words_and_no_drop_would_allow_it(self):
        placements = (place(FP32, value=float("nan")),)
        assert chosen_of(placements, ARM) is None
        error = nothing_left(placements, ARM, LIMITS)
        assert "onnx-fp32 drops beyond measure" in error.message
        assert "--max-drop" not in error.hint
        assert error.hint


class TestWhenNothingIsLeft:
    def error(self, placements, board=ARM, constraints=LIMITS):
        assert select(placements, board, constraints, Preference.BYTES).chosen is None
        return nothing_left(placements, board, constraints)

    def test_no_candidate_scores_enough_shows_the_nearest_first(self):
        error = self.error(three(fp32_is={"value": 0.93}, u8s8={"value": 0.95}, s8s8={"value": 0.94}))
        assert isinstance(error, SelectionError)
        assert (
            "onnx-int8-u8s8 drops 2.00 points, onnx-int8-s8s8 drops 3.00 points, onnx-fp32 drops 4.00 points"
            in error.message
        )

    def test_the_hint_names_a_drop_that_would_do(self):
        error = self.error(three(fp32_is={"value": 0.93}, u8s8={"value": 0.95}, s8s8={"value": 0.94}))
        assert "--max-drop 2%" in error.hint
        assert error.exit_code == 3

    @given(st.floats(0, 0.96))
    def test_what_the_hint_names_is_accepted(self, value):
        error = self.error((place(FP32, value=value),))
        allowed = fraction(re.search(r"--max-drop (\S+) or more", error.hint).group(1))
        assert chosen_of((place(FP32, value=value),), ARM, Constraints(Floor("accuracy", 0.97, allowed)))

    def test_no_drop_is_named_that_is_refused(self):
        floor = Floor("MAE", 40.0, 0.01, Direction.LOWER)
        error = self.error((place(FP32, value=90.0),), constraints=Constraints(floor))
        assert "--max-drop" not in error.hint
        assert "calibration data" in error.hint

    def test_a_good_one_that_is_too_large_gives_both_numbers(self):
        error = self.error(three(), board(storage=10_000))
        assert isinstance(error, BudgetError)
        assert "onnx-int8-u8s8 does not fit: 30.0 kB of 10.0 kB storage" in error.message
        assert error.exit_code == 3

    def test_the_one_that_misses_least_comes_first(self):
        constraints = Constraints(FLOOR, max_latency_ms=0.5)
        error = self.error(three(s8s8={"latency": 0.6}), ARM, constraints)
        assert error.message.index("onnx-int8-s8s8 takes 0.6 ms") < error.message.index("onnx-fp32")

    def test_small_enough_but_not_good_enough_blames_the_one_that_is_good(self):
        error = self.error(three(u8s8=BAD, s8s8=BAD), board(storage=50_000))
        assert "onnx-fp32 does not fit: 100.0 kB" in error.message

    def test_none_that_runs_says_why(self):
        error = self.error((broken(FP32),))
        assert "no candidate for board runs: onnx-fp32: the runtime died of SIGABRT" in error.message


FIGURES = st.builds(
    Measured, value=st.floats(0.9, 1), agreement=st.just(1.0), latency_p50_ms=st.floats(0.01, 10), latency_p95_ms=st.just(10.0),
    peak_memory_bytes=st.integers(40_000_000, 200_000_000),
)  # fmt: skip


@st.composite
def placed(draw, recipe):
    outcome = draw(st.one_of(FIGURES, st.just(Failed("broken"))))
    runs = (Run(ORT, "", outcome),)
    candidate = Candidate(recipe, draw(st.integers(1000, 200_000)), None, runs)
    if isinstance(outcome, Failed):
        return Placement(candidate, runs, None, None)
    latency = draw(st.one_of(st.none(), st.just(Figure(outcome.latency_p50_ms, Basis.HOST))))
    return Placement(candidate, runs, latency, Figure(outcome.peak_memory_bytes, Basis.HOST))


PLACEMENTS = st.tuples(*(placed(recipe) for recipe in (FP32, U8S8, S8S8, U8S7, FP16, WEIGHTS)))
BOARDS = st.builds(
    board, architecture=st.sampled_from(["aarch64", "x86_64", "armv7"]),
    extensions=st.sampled_from(["[]", '["avx_vnni"]', '["avx2"]']), memory=st.integers(40_000_000, 200_000_000), storage=st.integers(1000, 200_000),
)  # fmt: skip


def fits(one, board, constraints):
    outcome = one.runs[0].outcome
    return (
        isinstance(outcome, Measured)
        and constraints.floor.holds(outcome.value)
        and one.candidate.length_bytes <= board.model_storage.value
        and outcome.peak_memory_bytes <= board.model_memory.value
        and (
            constraints.max_latency_ms is None
            or (one.latency_ms is not None and one.latency_ms.value <= constraints.max_latency_ms)
        )
    )


class TestForAnyCandidates:
    @given(PLACEMENTS, BOARDS, st.sampled_from(Preference), st.one_of(st.none(), st.floats(0.01, 10)))
    def test_the_chosen_one_meets_every_constraint_and_every_one_has_a_reason(
        self, placements, board, preference, max_latency_ms
    ):
        constraints = Constraints(FLOOR, max_latency_ms)
        good = [one for one in placements if fits(one, board, constraints)]
        selection = select(placements, board, constraints, preference)
        assert (selection.chosen is None) == (not good)
        if not good:
            assert "\n" not in nothing_left(placements, board, constraints).message
            return
        assert selection.chosen in {one.candidate.recipe for one in good}
        assert [one.recipe for one in selection.judgements] == [one.candidate.recipe for one in placements]
        assert all(one.reason for one in selection.judgements)
        assert [one.verdict for one in selection.judgements].count(Verdict.CHOSEN) == 1
        refused = {one.recipe for one in selection.judgements if one.verdict is Verdict.REFUSED}
        assert refused == {one.candidate.recipe for one in placements if one not in good}

    @given(PLACEMENTS, BOARDS, st.floats(0, 0.1), st.floats(0, 0.1))
    def test_allowing_more_never_leaves_nothing(self, placements, board, drop, more):
        tight, loose = (Constraints(Floor("accuracy", 0.97, one)) for one in (drop, drop + more))
        if chosen_of(placements, board, tight) is not None:
            assert chosen_of(placements, board, loose) is not None

    @given(st.floats(0.01, 10), st.floats(0, NOISE_FRACTION - 0.01))
    def test_noise_does_not_decide(self, latency, noise):
        for one, other in ((latency, latency * (1 - noise)), (latency * (1 - noise), latency)):
            placements = (place(U8S8, 30_000, latency=one), place(FP16, 29_999, latency=other))
            assert chosen_of(placements, VNNI) == FP16
