"""Latencies that are compared are measured in turns: who takes part, what a slow machine does to it, what goes wrong."""

import numpy as np
import pytest

from converters.candidate import Basis, Candidate, Failed, Figure, Measured, Run
from converters.recipe import Export, Float16, Prune, Recipe, WeightOnly
from converters.select import Floor, slower
from converters.turns import RIVALS_MAX, in_turns, rivals_of
from converters.verify import Verified
from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily
from edgeml.probe import probe
from edgeml.profile import DeviceRuntime

ONNX, ORT = RuntimeFamily.ONNX, DeviceRuntime.ONNXRUNTIME
PLAIN = Recipe(Export(ONNX))
FLOOR = Floor("accuracy", 0.9, 0.02)


def verified(recipe, value=0.9, latency_ms=1.0, outcome=None, model=b"m", result="ran"):
    run = Run(ORT, "onnxruntime 1", outcome or Measured(value, 1.0, latency_ms, latency_ms, 1))
    return Verified(Candidate(recipe, len(model), None, (run,)), model, (result,))


def small(bits, training=()):
    return Recipe(Export(ONNX), training, WeightOnly(bits))


class TestWhoTakesPart:
    def test_the_plain_export_and_what_keeps_to_the_floor_the_fastest_first(self):
        found = [
            verified(PLAIN, latency_ms=3.0), verified(small(8), latency_ms=2.0), verified(small(4), 0.5, 0.1),
            verified(Recipe(Export(ONNX), (), Float16()), latency_ms=1.0),
            verified(small(8, (Prune(0.5, 8),)), outcome=Failed("no")),
        ]  # fmt: skip
        names = [one.candidate.name for one in rivals_of(found, FLOOR)]
        assert names == ["onnx-fp32", "onnx-fp16", "onnx-weights8"]

    def test_no_more_than_so_many(self):
        found = [verified(PLAIN, latency_ms=99.0)]
        found += [verified(small(8, (Prune(at / 100, 8),)), latency_ms=100 - at) for at in range(1, 40)]
        chosen = rivals_of(found, FLOOR)
        assert len(chosen) == RIVALS_MAX
        assert chosen[0].candidate.recipe == PLAIN
        assert [one.candidate.runs[0].outcome.latency_p50_ms for one in chosen[1:]] == list(range(61, 72))

    @pytest.mark.parametrize("found", [[], [verified(PLAIN)], [verified(PLAIN), verified(small(8), 0.1)]])
    def test_one_alone_has_nobody_to_be_compared_with(self, found):
        assert rivals_of(found, FLOOR) == ()


@pytest.mark.parametrize(
    ("bases", "told_apart"),
    [
        ((Basis.TURNS, Basis.TURNS), True),
        ((Basis.HOST, Basis.TURNS), False),
        ((Basis.HOST, Basis.HOST), False),
    ],
)
def test_short_times_are_told_apart_only_if_both_were_measured_in_turns(bases, told_apart):
    slow, quick = (Figure(ms, basis) for ms, basis in zip((0.147, 0.107), bases, strict=True))
    assert slower(slow, quick) is told_apart
    assert not slower(quick, slow)


@pytest.fixture(scope="module")
def rivals(pooled):
    """A model, one that does its work thirteen times, and the first again."""
    import onnx
    from onnx import helper, numpy_helper

    model, images, _ = pooled
    proto = onnx.load_from_string(model)
    graph = proto.graph
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    again = []
    for turn in range(12):
        # Other weights each time: onnxruntime computes what is equal once.
        for name, values in stored.items():
            if values.dtype == np.float32:
                other = (values * np.float32(1 + (turn + 1) / 100)).astype(np.float32)
                graph.initializer.append(numpy_helper.from_array(other, f"{name}-{turn}"))
        same = {name for name, values in stored.items() if values.dtype != np.float32} | {
            graph.input[0].name,
            "",
        }
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{node.name}-{turn}"
            del copy.output[:], copy.input[:]
            copy.output.extend(f"{one}-{turn}" for one in node.output)
            copy.input.extend(one if one in same else f"{one}-{turn}" for one in node.input)
            again.append(copy)
    ends = [f"{graph.output[0].name}-{turn}" for turn in range(12)]
    last = helper.make_node("Sum", [graph.output[0].name, *ends], ["all"])
    graph.node.extend([*again, last])
    graph.output[0].name = "all"
    slow = proto.SerializeToString()
    result = probe(model, ONNX, [images[:8]])
    return [
        verified(PLAIN, model=model, result=result), verified(small(8), model=slow, result=result),
        verified(Recipe(Export(ONNX), (), Float16()), model=model, result=result),
    ]  # fmt: skip


@pytest.mark.processes
class TestMeasuring:
    def test_more_work_takes_longer_and_the_same_work_as_long(self, pooled, rivals):
        plain_ms, slow_ms, same_ms = in_turns(rivals, pooled[1], ORT).values()
        assert slow_ms > 2 * plain_ms
        assert 0.5 < same_ms / plain_ms < 2

    def test_figures_belong_to_recipes(self, pooled, rivals):
        found = in_turns(rivals, pooled[1], ORT)
        assert list(found) == [one.candidate.recipe for one in rivals]

    @pytest.mark.parametrize("model", [b"", b"no model", b"\x08\x08"])
    def test_a_model_that_cannot_be_loaded_is_an_error(self, pooled, rivals, model):
        broken = Verified(rivals[1].candidate, model, rivals[1].results)
        with pytest.raises(BackendError, match="could not be measured in turns"):
            in_turns([rivals[0], broken], pooled[1], ORT)

    def test_a_process_that_dies_is_an_error(self, pooled, rivals, monkeypatch):
        from converters import errand

        monkeypatch.setattr(errand, "module_command", lambda *_: ["/bin/sh", "-c", "kill -SEGV $$", "sh"])
        with pytest.raises(BackendError, match="SIGSEGV"):
            in_turns(rivals, pooled[1], ORT)
