"""The page of a conversion: what stands in the record stands on it, escaped, and it asks nobody for anything."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest

from converters.calibration import Observed
from converters.candidate import Candidate
from converters.explain.conversion_page import Shown, page_of
from converters.explain.pictures import Standing
from converters.explain.report_page import render
from converters.metrics import Direction
from converters.recipe import Export, Float16, Prune, Recipe
from converters.report import Answer, CandidateRow, LayerRow, Report, RunRow, VerdictRow, candidate_rows
from converters.select import Floor
from edgeml.manifest import RuntimeFamily

HOSTILE = '"><script>alert(1)</script><img src=http://x.example/ onerror=y>&\x00\x1b'
VOID = {"meta"}


def verdict(profile, verdict, reason="keeps to every constraint", latency_ms=2.5, basis="estimated"):
    return VerdictRow(
        profile=profile, verdict=verdict, reason=reason, latency_ms=latency_ms, latency_basis=basis, memory_bytes=61_500_000,
        memory_basis="measured on this host",
    )  # fmt: skip


def ran(value, latency_ms=0.5, runtime="onnxruntime"):
    return RunRow(
        runtime=runtime, version=f"{runtime} 1.0", value=value, agreement=0.99, latency_p50_ms=latency_ms,
        latency_p95_ms=latency_ms, peak_memory_bytes=60_000_000,
    )  # fmt: skip


def candidate(variant, length, runs, verdicts, **more):
    return CandidateRow(
        variant=variant, steps=f"steps of {variant}", length_bytes=length, sha256=None, runs=runs, failure=more.pop("failure", ""),
        verdicts=verdicts, is_plain=more.pop("is_plain", variant.endswith("-fp32")), **more,
    )  # fmt: skip


REPORT = Report(
    release="net@1.0.0", source="net.py:model", host="a host", metric="accuracy", direction="higher is better", baseline=0.95,
    max_drop=0.01, samples=400,
    candidates=(
        candidate("onnx-fp32", 40_000, (ran(0.95),), (verdict("pi", "passed over", "larger"), verdict("pc", "chosen", latency_ms=0.5, basis="measured on this host"))),
        candidate("onnx-int8-s8s8", 11_000, (ran(0.945),), (verdict("pi", "chosen"), verdict("pc", "refused", "takes too long")), note="trained: plain 0.9 kept"),
        candidate("tflite-int8", 9_000, (RunRow(runtime="ai-edge-litert", version="", failure="the runtime died of SIGABRT"),), (verdict("board", "refused", "the runtime died of SIGABRT", None, ""),)),
        candidate("tflite-fp16", 0, (), (verdict("board", "refused", "no way there", None, ""),), failure="no way there"),
        candidate("tflite-fp32", 39_000, (ran(0.95, 1.0, "ai-edge-litert"), ran(0.1, 2.0, "tflite-runtime")), (verdict("board", "refused", "chance"),)),
    ),
    layers=(
        LayerRow(layer="stem", operator="Conv", parameters=90, drop=0.02, agreement=0.97, sqnr_db=21.0),
        LayerRow(layer="head", operator="Gemm", parameters=900, drop=-0.01, agreement=1.0, sqnr_db=40.0),
    ),
    answers=(Answer(question="Which layer?", answer="This one.\nBecause of that."), Answer(question="Why slow?", answer="It is small.")),
)  # fmt: skip
OBSERVED = (Observed("stem", -np.ones(32, np.float32), np.arange(32, dtype=np.float32)),)
FLOOR = Floor("accuracy", 0.95, 0.01)


def page(report=REPORT, floor=FLOOR, observed=OBSERVED, unreachable=()):
    return page_of(Shown(report, floor, observed, unreachable))


def tables(made):
    return {one.title: one for one in made.tables}


class Reader(HTMLParser):
    """Sees whether every element ends where it should, and what the page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.references, self.said = [], set(), [], []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.references += [
            value for name, value in attributes if name in {"src", "href", "action", "xlink:href"}
        ]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


def read(made):
    reader = Reader()
    reader.feed(render(made).decode())
    reader.close()
    assert reader.open == []
    return reader


class TestTheTables:
    def test_every_run_of_every_candidate_has_a_line_and_its_name_stands_once(self):
        rows = tables(page())["Candidates"].rows
        assert [row.cells[0] for row in rows] == [
            "onnx-fp32", "onnx-int8-s8s8", "tflite-int8", "tflite-fp16", "tflite-fp32", "",
        ]  # fmt: skip
        assert [row.cells[3] for row in rows] == ["0.95", "0.945", "-", "-", "0.95", "0.1"]
        assert rows[1].cells[-1] == "steps of onnx-int8-s8s8. trained: plain 0.9 kept"
        assert rows[3].cells[1] == "-"

    def test_every_profile_has_a_table_with_what_was_chosen_first(self):
        found = tables(page())
        assert [row.cells[:2] for row in found["For pi"].rows] == [
            ("onnx-int8-s8s8", "chosen"), ("onnx-fp32", "passed over"),
        ]  # fmt: skip
        assert [row.cells[:2] for row in found["For pc"].rows] == [
            ("onnx-fp32", "chosen"), ("onnx-int8-s8s8", "refused"),
        ]  # fmt: skip
        assert {row.cells[1] for row in found["For board"].rows} == {"refused"}

    def test_every_latency_says_where_it_is_from_and_none_is_a_dash(self):
        found = tables(page())
        assert found["For pi"].rows[0].cells[2] == "2.5 ms, estimated"
        assert found["For pc"].rows[0].cells[2] == "0.5 ms, measured on this host"
        assert found["For board"].rows[0].cells[2] == "-"
        assert "a host" in found["Candidates"].note

    def test_latencies_in_turns_stand_before_those_of_their_own_minute_which_are_marked(self):
        plain, int8, *rest = REPORT.candidates
        turns = msgspec.structs.replace(
            plain, runs=(msgspec.structs.replace(plain.runs[0], latency_turns_ms=0.25),)
        )
        made = page(msgspec.structs.replace(REPORT, candidates=(turns, int8, *rest)))
        table = tables(made)["Candidates"]
        assert [row.cells[5] for row in table.rows[:2]] == ["0.250 ms", "~0.500 ms"]
        assert "in turns, but for those with a ~" in table.note
        assert "in turns" not in tables(page())["Candidates"].note
        alone = tables(page(msgspec.structs.replace(REPORT, candidates=(turns, rest[0]))))["Candidates"]
        assert "latencies in turns;" in alone.note, "what did not run has no latency to mark"

    def test_a_failed_candidate_says_why(self):
        reasons = {row.cells[0]: row.cells[4] for row in tables(page())["For board"].rows}
        assert reasons["tflite-fp16"] == "no way there"
        assert reasons["tflite-int8"] == "the runtime died of SIGABRT"

    def test_layers_are_told_with_what_each_costs(self):
        [worst, best] = tables(page())["Each layer quantized alone"].rows
        assert worst.cells == ("stem", "Conv", "90", "+0.0200", "0.9700", "21.0 dB")
        assert best.cells[3] == "-0.0100"

    def test_without_layers_or_ranges_there_is_neither_table_nor_picture_of_them(self):
        made = page(msgspec.structs.replace(REPORT, layers=()), observed=())
        assert "Each layer quantized alone" not in tables(made)
        assert [one.title for one in made.pictures] == [
            "accuracy and file size", "accuracy and latency on this host",
        ]  # fmt: skip

    def test_runtimes_that_are_not_here_are_named(self):
        facts = {one.name: one.value for one in page(unreachable=("tflite-runtime",)).facts}
        assert facts["not run on"] == "tflite-runtime: not to be had here"
        assert "not run on" not in {one.name for one in page().facts}


class TestWhatCameAsItIs:
    @pytest.mark.parametrize(
        ("recipe", "standing"),
        [
            (Recipe(Export(RuntimeFamily.ONNX, opset=17)), Standing.SOURCE),
            (Recipe(Export(RuntimeFamily.TFLITE, is_quantized=True)), Standing.SOURCE),
            (Recipe(Export(RuntimeFamily.TORCHSCRIPT), (Prune(0.5, 16),)), Standing.REFUSED),
            (Recipe(Export(RuntimeFamily.ONNX), (), Float16()), Standing.REFUSED),
        ],
    )
    def test_is_told_by_what_was_done_and_not_by_its_name(self, recipe, standing):
        [row] = candidate_rows([Candidate(recipe, 0, None, (), "no")], (), {}, lambda *_: None)
        made = page(msgspec.structs.replace(REPORT, candidates=(row,)))
        assert [one.standing for one in tables(made)["Candidates"].rows] == [standing]


class TestTheAnswers:
    def test_each_has_its_paragraphs(self):
        assert [(one.question, one.paragraphs) for one in page().answers] == [
            ("Which layer?", ("This one.", "Because of that.")), ("Why slow?", ("It is small.",)),
        ]  # fmt: skip


class TestAnError:
    REPORT = msgspec.structs.replace(
        REPORT, metric="MAE", direction="lower is better", baseline=40.0,
        candidates=(
            candidate("onnx-fp32", 40_000, (ran(40.0),), (verdict("pi", "passed over"),)),
            candidate("onnx-int8-s8s8", 11_000, (ran(40.2),), (verdict("pi", "chosen"),)),
            candidate("onnx-fp16", 20_000, (ran(45.0),), (verdict("pi", "refused"),)),
        ),
    )  # fmt: skip
    FLOOR = Floor("MAE", 40.0, 0.01, Direction.LOWER)

    def test_has_a_ceiling_in_its_own_unit_and_stands_above_when_lower(self):
        picture = page(self.REPORT, self.FLOOR).pictures[0].drawing
        assert "ceiling 40.4" in picture
        places = {
            name: float(re.search(pattern, picture).group(1))
            for name, pattern in (
                ("chosen", r'class="chosen" d="M[\d.]+,([\d.]+)'), ("refused", r'class="refused" d="M[\d.]+,([\d.]+)'),
            )
        }  # fmt: skip
        assert places["chosen"] < places["refused"]

    def test_says_what_may_be_lost_as_a_part_of_itself(self):
        facts = {one.name: one.value for one in page(self.REPORT, self.FLOOR).facts}
        assert facts["floor"] == "at most 1.00% of itself may be lost"
        assert facts["metric"] == "MAE, lower is better; 40 of the source"


class TestTheFile:
    @pytest.mark.parametrize("report", [REPORT, TestAnError.REPORT], ids=["accuracy", "error"])
    def test_is_well_formed_and_refers_to_nothing(self, report):
        made = page(report)
        reader = read(made)
        assert reader.references == []
        assert not {"script", "link", "img", "iframe", "object", "base"} & reader.tags
        ET.fromstring(render(made).decode().removeprefix("<!DOCTYPE html>\n"))
        assert not re.search(r"url\(|@import", render(made).decode())

    def test_is_the_same_bytes_each_time(self):
        assert render(page()) == render(page())

    @pytest.mark.parametrize("number", range(len(REPORT.candidates)))
    def test_names_from_files_are_text_wherever_they_stand(self, number):
        hostile = msgspec.convert(_poisoned(msgspec.to_builtins(REPORT), number), Report)
        floor = Floor(HOSTILE, 0.95, 0.01)
        observed = (Observed(HOSTILE, OBSERVED[0].minima, OBSERVED[0].maxima),)
        made = page(hostile, floor, observed, (HOSTILE,))
        reader = read(made)
        assert not {"script", "img"} & reader.tags
        assert reader.references == []
        assert b"<script" not in render(made)
        assert b"\x00" not in render(made)
        assert b"\x1b" not in render(made)
        ET.fromstring(render(made).decode().removeprefix("<!DOCTYPE html>\n"))
        assert "alert(1)" in "".join(reader.said)

    def test_shows_what_the_record_says(self):
        said = "".join(read(page()).said)
        for words in (
            "net@1.0.0",
            "onnx-int8-s8s8",
            "61.5 MB",
            "takes too long",
            "no way there",
            "400 samples",
        ):
            assert words in said


KEPT = {"verdict", "sha256", "direction"}


def _poisoned(value, number, name=""):
    """The same record with hostile texts, in the candidate of that number and everywhere outside candidates."""
    if isinstance(value, dict):
        return {key: _poisoned(one, number, key) for key, one in value.items()}
    if isinstance(value, list | tuple):
        if name == "candidates":
            return [_poisoned(one, number) if at == number else one for at, one in enumerate(value)]
        return [_poisoned(one, number, name) for one in value]
    return HOSTILE if isinstance(value, str) and name not in KEPT else value
