"""When a stage is needed and when a search ends, with candidates whose figures are told."""

from dataclasses import dataclass, field, replace

import msgspec
import pytest

from converters.candidate import Basis, Candidate, Failed, Figure, Measured, Placement, Run
from converters.plan import Effort, Lack, Means, stages
from converters.recipe import Float16, Prune, StaticInteger
from converters.search import Aim, Search, lack
from converters.select import Constraints, Floor
from converters.service import _searched
from converters.verify import Verified
from edgeml import profile
from edgeml.manifest import RuntimeFamily
from edgeml.profile import HOST, DeviceRuntime

ARM = profile.load("raspberry-pi-4")
X86 = profile.load("generic-x86-64")
FLOOR = Floor("accuracy", 0.97, 0.005)
MEANS = Means((RuntimeFamily.ONNX,), can_train=True)


@dataclass
class Table:
    """Answers by what a recipe does: (accuracy, bytes, ms); what is not in it scores well and is small."""

    static: tuple = (0.97, 30_000, 1.0)
    ranges: tuple = (0.90, 30_000, 1.0)
    mixed: tuple = (0.968, 50_000, 1.5)
    float16: tuple = (0.97, 55_000, 3.0)
    pruned: tuple = (0.966, 10_000, 0.5)
    layers: tuple = (("a",), ("a", "b"))
    made: list = field(default_factory=list)
    scans: int = 0

    def figures(self, recipe):
        step = recipe.compression
        if any(isinstance(one, Prune) for one in recipe.training):
            return self.pruned
        if recipe.training:
            return self.static
        if recipe.is_plain:
            return (0.97, 100_000, 2.0)
        if isinstance(step, StaticInteger):
            if step.float_layers:
                return self.mixed
            return self.static if step.calibration.value == "minmax" else self.ranges
        return self.float16 if isinstance(step, Float16) else (0.90, 31_000, 2.0)

    def candidate(self, recipe):
        self.made.append(recipe)
        value, length, latency = self.figures(recipe)
        outcome = Measured(value, 1.0, latency, latency, 60_000_000)
        runs = (Run(DeviceRuntime.ONNXRUNTIME, "", outcome),)
        return Verified(Candidate(recipe, length, None, runs), b"", ())

    def exclusions(self, recipe):
        self.scans += 1
        return self.layers

    def place(self, verified, profile):
        run = verified.candidate.runs[0]
        latency = Figure(run.outcome.latency_p50_ms, Basis.HOST)
        return Placement(verified.candidate, (run,), latency, Figure(60_000_000, Basis.HOST))


def search(table, *boards, effort=Effort.FIRST, **limits):
    constraints = Constraints(FLOOR, **limits)
    aims = [
        Aim(board, stages(board, MEANS, RuntimeFamily.ONNX, effort), constraints)
        for board in boards or (ARM,)
    ]
    said = []
    Search(table, effort, said.append).run(aims)
    return [one.name for one in table.made], said


class TestAtFirstEffort:
    def test_the_first_that_keeps_to_everything_ends_it(self):
        assert search(Table())[0] == ["onnx-fp32", "onnx-int8-s8s8"]

    def test_two_profiles_share_what_is_the_same(self):
        assert search(Table(), ARM, X86)[0] == ["onnx-fp32", "onnx-int8-s8s8", "onnx-int8-u8s7"]

    def test_where_int8_scores_too_low_other_ranges_then_mixed_precision_are_tried(self):
        table = Table(static=(0.90, 30_000, 1.0))
        assert search(table)[0] == [
            "onnx-fp32", "onnx-int8-s8s8", "onnx-int8-s8s8-percentile", "onnx-int8-s8s8-entropy", "onnx-int8-s8s8-mixed1",
        ]  # fmt: skip
        assert table.scans == 1

    def test_where_layers_cannot_be_told_apart_float16_follows_then_training(self):
        table = Table(static=(0.90, 30_000, 1.0), layers=(), float16=(0.5, 1, 1.0))
        assert search(table)[0][-2:] == ["onnx-fp16", "onnx-qat-int8-s8s8"]

    def test_where_int8_is_good_and_too_large_small_weights_and_pruning_follow(self):
        names, _ = search(Table(pruned=(0.966, 25_000, 0.5)), max_bytes=20_000)
        pruned = [
            f"onnx-pruned{ratio}x8-{form}" for ratio in (30, 50, 60, 70) for form in ("int8-s8s8", "weights8")
        ]
        assert names == ["onnx-fp32", "onnx-int8-s8s8", "onnx-weights8", "onnx-fp16", *pruned]

    def test_where_int8_is_good_and_too_slow_only_pruning_follows(self):
        names, _ = search(Table(pruned=(0.966, 25_000, 0.5)), max_latency_ms=0.1)
        assert "onnx-pruned50x8-int8-s8s8" in names
        assert not {"onnx-weights8", "onnx-fp16"} & set(names)

    def test_progress_never_says_more_than_all_is_done(self):
        _, said = search(Table(static=(0.90, 30_000, 1.0)))
        assert [one.text for one in said][:2] == [
            "making and verifying onnx-fp32", "making and verifying onnx-int8-s8s8",
        ]  # fmt: skip
        assert all(0 <= one.done_s <= one.total_s for one in said)


class TestExploring:
    def test_everything_is_tried_once(self):
        names, _ = search(Table(), ARM, X86, effort=Effort.EXPLORE)
        assert len(set(names)) == len(names)
        assert {"onnx-fp16", "onnx-weights8", "onnx-int8-s8s8-qdq", "onnx-pruned50x8-int8-s8s8"} <= set(names)


class TestLack:
    @pytest.mark.parametrize(
        ("static", "constraints", "lacking"),
        [
            ((0.97, 30_000, 1.0), Constraints(FLOOR), Lack.NOTHING),
            ((0.90, 30_000, 1.0), Constraints(FLOOR), Lack.ACCURACY),
            ((0.97, 30_000, 1.0), Constraints(FLOOR, max_bytes=20_000), Lack.BYTES),
            ((0.97, 30_000, 1.0), Constraints(FLOOR, 0.7, max_bytes=20_000), Lack.BYTES),
            ((0.97, 30_000, 1.0), Constraints(FLOOR, max_latency_ms=0.7), Lack.COST),
            ((0.97, 300_000, 1.0), Constraints(FLOOR), Lack.COST),
        ],
    )
    def test_is_told_by_what_every_good_one_misses(self, static, constraints, lacking):
        table = Table(static=static)
        placements = [
            table.place(table.candidate(stage.recipes[0]), ARM)
            for stage in stages(ARM, MEANS, RuntimeFamily.ONNX, Effort.FIRST)[:2]
        ]
        assert lack(placements, ARM, constraints) is lacking

    @pytest.mark.parametrize(
        ("constraints", "lacking"),
        [(Constraints(FLOOR), Lack.NOTHING), (Constraints(FLOOR, max_bytes=20_000), Lack.COST)],
    )
    def test_where_nothing_smaller_was_tried_the_plain_export_may_do(self, constraints, lacking):
        table = Table()
        plain = stages(ARM, MEANS, RuntimeFamily.ONNX, Effort.FIRST)[0].recipes[0]
        assert lack([table.place(table.candidate(plain), ARM)], ARM, constraints) is lacking

    def test_what_does_not_run_lacks_accuracy(self):
        recipe = stages(ARM, MEANS, RuntimeFamily.ONNX, Effort.FIRST)[1].recipes[0]
        runs = (Run(DeviceRuntime.ONNXRUNTIME, "", Failed("died")),)
        broken = Placement(Candidate(recipe, 5, None, runs), runs, None, None)
        assert lack([broken], ARM, Constraints(FLOOR)) is Lack.ACCURACY


class Drifting(Table):
    """A machine that was quick while candidates were made: in turns, all take twice as long."""

    compared: int = 0

    def measure_in_turns(self, found, floor):
        assert floor == FLOOR
        self.compared = len(found)

    def place(self, verified, profile):
        placed = super().place(verified, profile)
        if not self.compared:
            return placed
        return replace(placed, latency_ms=Figure(2 * placed.latency_ms.value, Basis.TURNS))


class TestOnThisHost:
    def searched(self, name, max_latency_ms):
        board = msgspec.structs.replace(ARM, name=name)
        constraints = Constraints(FLOOR, max_latency_ms=max_latency_ms)
        aim = Aim(board, stages(board, MEANS, RuntimeFamily.ONNX, Effort.FIRST), constraints)
        table, said = Drifting(), []
        found = _searched(Search(table, Effort.FIRST, said.append), table, (aim,), FLOOR)
        return [one.candidate.name for one in found], table.compared, [one.text for one in said]

    def test_what_seemed_quick_enough_is_searched_on_if_it_is_not_beside_the_others(self):
        names, compared, said = self.searched(HOST, 1.5)
        assert names[:2] == ["onnx-fp32", "onnx-int8-s8s8"]
        assert any("pruned" in name for name in names)
        assert compared == len(names)
        assert said.count("measuring in turns") == 2

    def test_what_is_quick_enough_beside_the_others_ends_it(self):
        names, compared, said = self.searched(HOST, 2.5)
        assert (names, compared) == (["onnx-fp32", "onnx-int8-s8s8"], 2)
        assert said.count("measuring in turns") == 1

    def test_a_board_is_not_measured_here(self):
        names, compared, said = self.searched("raspberry-pi-4", 1.5)
        assert (names, compared) == (["onnx-fp32", "onnx-int8-s8s8"], 0)
        assert "measuring in turns" not in said
