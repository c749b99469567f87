"""Selection: the rules as a table, and what holds for any candidates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.candidate import Candidate, Failed, Measured, Recipe
from converters.select import NOISE_FRACTION, Floor, Verdict, check_runtime, select
from edgeml import profile
from edgeml.errors import BudgetError, IncompatibleError, SelectionError

FLOOR = Floor("accuracy", 0.97, 0.005)
BASE = profile.read("generic-x86-64").decode()


def board(
    name="board",
    architecture="aarch64",
    extensions='["asimd"]',
    memory=None,
    storage=None,
    runtimes='["onnxruntime"]',
):
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


def candidate(recipe, length=30_000, value=0.97, latency=1.0, memory=60_000_000):
    return Candidate(recipe, length, None, Measured(value, 1.0, latency, latency, memory))


def three(fp32=100_000, **changes):
    """fp32, u8s8, s8s8; `u8s8` and `s8s8` may be given as dicts of changes."""
    return (
        candidate(Recipe.FP32, fp32, **changes.get("fp32_is", {})),
        candidate(Recipe.INT8_U8S8, **changes.get("u8s8", {})),
        candidate(Recipe.INT8_S8S8, **changes.get("s8s8", {})),
    )


BAD = {"value": 0.95}
BROKEN = Failed("the runtime died of SIGABRT")


@pytest.mark.parametrize(
    ("candidates", "board", "chosen", "words"),
    [
        (three(), ARM, Recipe.INT8_S8S8, "by the profile's instruction set (aarch64)"),
        (three(s8s8={"latency": 9.0}), ARM, Recipe.INT8_S8S8, "by the profile's instruction set"),
        (
            three(u8s8={"latency": 9.0}),
            VNNI,
            Recipe.INT8_U8S8,
            "by the profile's instruction set (avx512_vnni)",
        ),
        (
            three(s8s8={"latency": 2.0}),
            PLAIN,
            Recipe.INT8_U8S8,
            "measured on this host (without VNNI u8s8 may saturate",
        ),
        (three(u8s8={"latency": 2.0}), PLAIN, Recipe.INT8_S8S8, "s8s8 is the faster, measured on this host"),
        (three(s8s8={"latency": 1.1}), PLAIN, Recipe.INT8_S8S8, "equally fast, measured on this host"),
        (
            three(u8s8={"latency": 0.02}, s8s8={"latency": 0.06}),
            PLAIN,
            Recipe.INT8_S8S8,
            "equally fast, measured on this host",
        ),
        (three(u8s8=BAD), VNNI, Recipe.INT8_S8S8, "the only int8 candidate left"),
        (three(s8s8=BAD), ARM, Recipe.INT8_U8S8, "the only int8 candidate left"),
        (three(u8s8=BAD, s8s8=BAD), ARM, Recipe.FP32, "no int8 candidate is left"),
        (three(fp32=20_000), ARM, Recipe.FP32, "no int8 candidate is smaller"),
        (three(fp32=30_000), ARM, Recipe.FP32, "no int8 candidate is smaller"),
        (three(fp32_is=BAD), ARM, Recipe.INT8_S8S8, "within the floor"),
        (
            three(s8s8={"value": 0.965}),
            ARM,
            Recipe.INT8_S8S8,
            "within the floor",
        ),  # a drop of exactly 0.5 points
        (three(s8s8={"value": 0.99}), ARM, Recipe.INT8_S8S8, "within the floor"),
    ],
)
def test_what_is_chosen_and_why(candidates, board, chosen, words):
    selection = select(candidates, board, FLOOR)
    assert selection.chosen is chosen
    assert words in selection.reason


@pytest.mark.parametrize(
    ("candidates", "board", "recipe", "verdict", "words"),
    [
        (three(s8s8={"value": 0.958}), ARM, Recipe.INT8_S8S8, Verdict.REFUSED, "accuracy drops 1.20 points, more than 0.50"),
        (three(), ARM, Recipe.FP32, Verdict.PASSED_OVER, "larger than onnx-int8-s8s8"),
        (three(fp32=30_000), ARM, Recipe.INT8_U8S8, Verdict.PASSED_OVER, "not smaller than onnx-fp32"),
        (three(), ARM, Recipe.INT8_U8S8, Verdict.PASSED_OVER, "s8s8 suits the profile's instruction set (aarch64)"),
        (three(), PLAIN, Recipe.INT8_U8S8, Verdict.PASSED_OVER, "s8s8 is at least as fast, measured on this host"),
        (three(), board(storage=50_000), Recipe.FP32, Verdict.REFUSED, "does not fit: 100.0 kB of 50.0 kB storage"),
        (three(fp32_is={"memory": 90_000_000}), board(memory=70_000_000), Recipe.FP32, Verdict.REFUSED, "90.0 MB with its runtime, measured on this host, of 70.0 MB"),
        ((*three()[:2], Candidate(Recipe.INT8_S8S8, 5, None, BROKEN)), ARM, Recipe.INT8_S8S8, Verdict.REFUSED, "died of SIGABRT"),
    ],
)  # fmt: skip
def test_why_another_is_not_chosen(candidates, board, recipe, verdict, words):
    judgement = next(one for one in select(candidates, board, FLOOR).judgements if one.recipe is recipe)
    assert judgement.verdict is verdict
    assert words in judgement.reason


class TestWhenNothingIsLeft:
    def test_no_candidate_scores_enough_shows_the_nearest_first(self):
        bad = three(fp32_is={"value": 0.93}, u8s8={"value": 0.95}, s8s8={"value": 0.94})
        with pytest.raises(
            SelectionError,
            match=r"onnx-int8-u8s8 drops 2\.00, onnx-int8-s8s8 drops 3\.00, onnx-fp32 drops 4\.00",
        ):
            select(bad, ARM, FLOOR)

    def test_the_hint_names_a_drop_that_would_do(self):
        with pytest.raises(SelectionError) as caught:
            select(three(fp32_is={"value": 0.93}, u8s8={"value": 0.95}, s8s8={"value": 0.94}), ARM, FLOOR)
        assert "--max-drop 2%" in caught.value.hint
        assert caught.value.exit_code == 3

    def test_a_good_one_that_is_too_large_gives_both_numbers(self):
        with pytest.raises(BudgetError, match=r"onnx-int8-u8s8, has 30\.0 kB of 10\.0 kB storage") as caught:
            select(three(), board(storage=10_000), FLOOR)
        assert (caught.value.budget, caught.value.observed, caught.value.unit) == (10_000, 30_000, "bytes")

    def test_a_good_one_that_takes_too_much_memory_gives_both_numbers(self):
        with pytest.raises(BudgetError, match="measured on this host") as caught:
            select(three(), board(memory=50_000_000), FLOOR)
        assert (caught.value.budget, caught.value.observed) == (50_000_000, 60_000_000)

    def test_small_enough_but_not_good_enough_blames_the_one_that_is_good(self):
        with pytest.raises(BudgetError, match=r"onnx-fp32, has 100\.0 kB"):
            select(three(u8s8=BAD, s8s8=BAD), board(storage=50_000), FLOOR)

    def test_none_that_runs_says_why(self):
        with pytest.raises(SelectionError, match="no candidate runs: onnx-fp32: the runtime died of SIGABRT"):
            select((Candidate(Recipe.FP32, 5, None, BROKEN),), ARM, FLOOR)

    def test_a_microcontroller_has_no_converter_yet(self):
        with pytest.raises(IncompatibleError, match="no converter for tflite-micro yet"):
            check_runtime(profile.load("stm32h7"))

    def test_a_board_with_another_runtime_has_none_either(self):
        with pytest.raises(IncompatibleError, match="no converter for ai-edge-litert yet"):
            select(three(), board(runtimes='["ai-edge-litert"]'), FLOOR)


@pytest.mark.parametrize("name", [name for name in profile.names() if name not in {"stm32h7", "esp32-s3"}])
def test_every_shipped_profile_with_onnxruntime_gets_something(name):
    assert select(three(), profile.load(name), FLOOR).chosen.is_int8


FIGURES = st.builds(
    Measured, value=st.floats(0.9, 1), agreement=st.just(1.0), latency_p50_ms=st.floats(0.01, 10), latency_p95_ms=st.just(10.0),
    peak_memory_bytes=st.integers(40_000_000, 200_000_000),
)  # fmt: skip
OUTCOMES = st.one_of(FIGURES, st.just(BROKEN))
CANDIDATES = st.tuples(
    *(
        st.builds(Candidate, st.just(recipe), st.integers(1000, 200_000), st.none(), OUTCOMES)
        for recipe in Recipe
    )
)
BOARDS = st.builds(
    board, architecture=st.sampled_from(["aarch64", "x86_64", "armv7"]),
    extensions=st.sampled_from(["[]", '["avx_vnni"]', '["avx2"]']), memory=st.integers(40_000_000, 200_000_000), storage=st.integers(1000, 200_000),
)  # fmt: skip


def fits(one, board, floor):
    return (
        isinstance(one.outcome, Measured)
        and floor.holds(one.outcome.value)
        and one.length_bytes <= board.model_storage.value
        and one.outcome.peak_memory_bytes <= board.model_memory.value
    )


class TestForAnyCandidates:
    @given(CANDIDATES, BOARDS)
    def test_the_chosen_one_meets_every_constraint_and_every_one_has_a_reason(self, candidates, board):
        good = [one for one in candidates if fits(one, board, FLOOR)]
        if not good:
            with pytest.raises((SelectionError, BudgetError)) as caught:
                select(candidates, board, FLOOR)
            assert "\n" not in caught.value.message
            return
        selection = select(candidates, board, FLOOR)
        chosen = next(one for one in candidates if one.recipe is selection.chosen)
        assert chosen in good
        assert [one.recipe for one in selection.judgements] == [one.recipe for one in candidates]
        assert all(one.reason for one in selection.judgements)
        assert [one.verdict for one in selection.judgements].count(Verdict.CHOSEN) == 1
        refused = {one.recipe for one in selection.judgements if one.verdict is Verdict.REFUSED}
        assert refused == {one.recipe for one in candidates if one not in good}

    @given(CANDIDATES, BOARDS, st.floats(0, 0.1), st.floats(0, 0.1))
    def test_allowing_more_never_leaves_nothing(self, candidates, board, drop, more):
        try:
            select(candidates, board, Floor("accuracy", 0.97, drop))
        except (SelectionError, BudgetError):
            return
        select(candidates, board, Floor("accuracy", 0.97, drop + more))

    @given(CANDIDATES, BOARDS)
    def test_a_latency_matters_only_where_the_reason_says_so(self, candidates, board):
        slower = tuple(
            Candidate(
                one.recipe,
                one.length_bytes,
                None,
                Measured(one.outcome.value, 1.0, 99.0 + index, 99.0, one.outcome.peak_memory_bytes),
            )
            if isinstance(one.outcome, Measured)
            else one
            for index, one in enumerate(candidates)
        )
        try:
            selection, other = select(candidates, board, FLOOR), select(slower, board, FLOOR)
        except (SelectionError, BudgetError):
            return
        if selection.chosen is not other.chosen:
            assert "measured on this host" in selection.reason
            assert "measured on this host" in other.reason

    @given(st.floats(0.01, 10), st.floats(0, NOISE_FRACTION - 0.01))
    def test_noise_does_not_decide(self, latency, noise):
        for pair in (
            {"u8s8": {"latency": latency * (1 - noise)}, "s8s8": {"latency": latency}},
            {"u8s8": {"latency": latency}, "s8s8": {"latency": latency * (1 - noise)}},
        ):
            assert select(three(**pair), PLAIN, FLOOR).chosen is Recipe.INT8_S8S8
