"""Constraints and metrics through the command: what meets them is bundled, what nothing meets ends with the nearest ones."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from converters import errand
from converters.cli import convert as command
from edgeml import profile
from edgeml.bundle import Bundle
from edgeml.errors import BudgetError, ConfigError
from edgeml.manifest import ScoreKind, Task

pytestmark = pytest.mark.processes

TURNS = "measured on this host, in turns"
BASIS = {"host": "measured on this host", "raspberry-pi-4": "estimated", "raspberry-pi-5": "estimated"}
METRIC = textwrap.dedent(
    """
    import numpy as np

    def within_50(answers, truth, samples):
        assert len(samples) == len(answers)
        return float((np.abs(answers - truth) < 50).mean())

    def broken(answers, truth, samples):
        return answers

    def endless(answers, truth, samples):
        return float("nan")
    """
)


def run(directory, source, data, out, *more):
    arguments = [
        f"{directory}/{source}", "--data", str(directory / data), "--name", "net", "--version", "1.0.0", "--out", str(out), "--work",
        str(directory / "work"), *([] if "--profile" in more else ["--profile", "raspberry-pi-4"]),
        *([] if "--max-drop" in more else ["--max-drop", "2%"]), *more,
    ]  # fmt: skip
    return CliRunner().invoke(command, arguments)


def report_of(result):
    assert result.exception is None, result.exception
    return json.loads(result.stdout)["report"]


def chosen(report, board="raspberry-pi-4"):
    found = [
        (row, one)
        for row in report["candidates"]
        for one in row["verdicts"]
        if one["profile"] == board and one["verdict"] == "chosen"
    ]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def both(desk, tmp_path_factory):
    """The four digits for a board, for another and for this host, as JSON."""
    boards = [word for name in BASIS for word in ("--profile", name)]
    return report_of(run(desk, "net.onnx", "data.npz", tmp_path_factory.mktemp("both"), *boards, "--json"))


class TestWhatNothingMeets:
    @pytest.mark.parametrize(
        ("limit", "words"),
        [
            (("--max-bytes", "2KB"), "more than 2.0 kB"),
            (("--max-latency", "1us"), "ms (estimated), more than 0.001 ms"),
            (
                ("--max-memory", "1MB"),
                "(measured on this host) of memory, more than the 1.0 MB of --max-memory",
            ),
        ],
    )
    def test_names_the_nearest_candidates_with_what_each_misses_and_writes_a_page_alone(
        self, desk, tmp_path, limit, words
    ):
        result = run(desk, "net.onnx", "data.npz", tmp_path, *limit)
        assert isinstance(result.exception, BudgetError)
        assert result.exception.exit_code == 3
        assert "raspberry-pi-4" in result.exception.message
        assert result.exception.message.count(words) >= 2, "several candidates, nearest first"
        assert result.exception.observed > result.exception.budget
        assert "report.html" in result.exception.hint
        assert [path.name for path in tmp_path.iterdir()] == ["net-1.0.0-report.html"]
        page = (tmp_path / "net-1.0.0-report.html").read_text()
        assert "refused" in page
        assert words in page
        table = result.stdout.splitlines()
        assert any(line.split()[:1] == ["onnx-fp32"] and "onnxruntime" in line for line in table)
        assert any(
            line.startswith("  onnx-int8-") and " refused: " in line and words in line for line in table
        )
        assert "report.html: all of this with pictures" in result.stdout

    def test_the_whole_program_ends_with_3_and_says_what_to_do(self, desk, tmp_path):
        done = subprocess.run(
            [
                sys.executable, "-m", "edgeml", "convert", f"{desk}/net.onnx", "--data", str(desk / "data.npz"), "--profile",
                "raspberry-pi-4", "--name", "net", "--version", "1.0.0", "--max-drop", "2%", "--max-bytes", "2KB", "--out",
                str(tmp_path), "--work", str(desk / "work"), "--json",
            ],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 3
        assert "nothing that keeps accuracy meets the other constraints" in done.stderr
        assert "loosen the constraint" in done.stderr
        assert "Traceback" not in done.stderr
        found = json.loads(done.stdout)
        assert found["bundles"] == []
        assert found["page"].endswith("net-1.0.0-report.html")
        assert {row["verdicts"][0]["verdict"] for row in found["report"]["candidates"]} == {"refused"}


class TestWhereALatencyIsFrom:
    def test_this_hosts_is_measured_and_every_others_estimated(self, both):
        seen = {
            (one["profile"], one["latency_basis"]) for row in both["candidates"] for one in row["verdicts"]
        }
        assert seen - {("host", TURNS)} == set(BASIS.items()) - {("host", BASIS["host"])}
        bases = {
            row["variant"]: one["latency_basis"]
            for row in both["candidates"]
            for one in row["verdicts"]
            if one["profile"] == "host"
        }
        assert set(bases.values()) <= {TURNS, BASIS["host"]}
        assert bases["onnx-fp32"] == TURNS, "all that keep to the floor are compared with the plain one"

    def test_the_table_shows_what_was_measured_in_turns(self, both):
        seen = 0
        for row in both["candidates"]:
            [here] = [one for one in row["verdicts"] if one["profile"] == "host"]
            if here["latency_basis"] == TURNS:
                seen += 1
                assert row["runs"][0]["latency_turns_ms"] == here["latency_ms"]
        assert seen >= 2

    def test_why_int8_is_not_faster_is_told_of_the_figures_by_which_it_was_chosen(self, both):
        [said] = [one["answer"] for one in both["answers"] if "int8 not faster" in one["question"]]
        here = {
            row["variant"]: one["latency_ms"]
            for row in both["candidates"]
            for one in row["verdicts"]
            if one["profile"] == "host"
        }
        int8 = next(name for name in here if f"{name} takes" in said)
        assert f"{int8} takes {here[int8]:.3f} ms on this host" in said
        assert f"the {here['onnx-fp32']:.3f} ms of onnx-fp32, measured in turns" in said

    def test_this_hosts_never_stands_as_anothers(self, both):
        for row in both["candidates"]:
            [run] = row["runs"]
            figures = {one["profile"]: one["latency_ms"] for one in row["verdicts"]}
            here = {figures["host"], run["latency_p50_ms"]}
            assert not here & {figures["raspberry-pi-4"], figures["raspberry-pi-5"]}
            assert figures["raspberry-pi-4"] != figures["raspberry-pi-5"]

    def test_an_estimate_is_the_same_each_time(self, both, desk, tmp_path):
        again = report_of(run(desk, "net.onnx", "data.npz", tmp_path, "--json"))
        first = {row["variant"]: row for row in both["candidates"]}
        for row in again["candidates"]:
            [before] = [
                one for one in first[row["variant"]]["verdicts"] if one["profile"] == "raspberry-pi-4"
            ]
            assert row["verdicts"][0]["latency_ms"] == before["latency_ms"]

    def test_a_limit_is_held_against_the_estimate_on_a_board_and_the_measurement_here(self, desk, tmp_path):
        boards = ("--profile", "raspberry-pi-4", "--profile", "host")
        result = run(desk, "net.onnx", "data.npz", tmp_path, *boards, "--max-latency", "1s")
        assert result.exception is None
        board, here = result.stdout.split("for host:")
        assert "ms estimated) chosen" in board
        assert "ms measured on this host, in turns) chosen" in here.split("Which layer")[0]
        assert "latency here" in board
        assert "latencies in turns" in board

    def test_what_this_host_can_a_board_cannot(self, both, desk, tmp_path):
        """A limit between what is measured here and what is estimated there is met here alone."""
        figures = [
            {one["profile"]: one["latency_ms"] for one in row["verdicts"]} for row in both["candidates"]
        ]
        here = min(one["host"] for one in figures)
        there = min(one["raspberry-pi-4"] for one in figures)
        if here > 0.9 * there:
            pytest.skip(f"this host is as slow as the board: {here:.3f} ms against {there:.3f} ms")
        limit = ("--max-latency", f"{1000 * (here + there) / 2:.1f}us")
        assert run(desk, "net.onnx", "data.npz", tmp_path, "--profile", "host", *limit).exception is None
        refused = run(desk, "net.onnx", "data.npz", tmp_path, "--profile", "raspberry-pi-4", *limit)
        assert isinstance(refused.exception, BudgetError)
        assert "ms (estimated), more than" in refused.exception.message


class TestWhatIsPreferred:
    def test_latency_takes_none_that_is_slower_by_more_than_noise(self, desk, tmp_path):
        report = report_of(run(desk, "net.onnx", "data.npz", tmp_path, "--prefer", "latency", "--json"))
        row, taken = chosen(report)
        good = [
            (each["length_bytes"], one["latency_ms"])
            for each in report["candidates"]
            for one in each["verdicts"]
            if one["verdict"] != "refused"
        ]
        least = min(latency for _, latency in good)
        assert taken["latency_ms"] - least < max(0.05, 0.15 * taken["latency_ms"])
        assert row["length_bytes"] == min(
            length for length, latency in good if latency - least < max(0.05, 0.15 * latency)
        )

    def test_bytes_takes_the_smallest_of_those_that_keep_enough(self, both):
        row, _ = chosen(both)
        good = [each for each in both["candidates"] if each["verdicts"][0]["verdict"] != "refused"]
        assert row["length_bytes"] <= 1.1 * min(each["length_bytes"] for each in good)


class TestMetrics:
    def test_a_regression_is_judged_by_its_error_and_answers_no_classes(self, clinic, tmp_path):
        result = run(clinic, "estimators.py:diabetes", "diabetes.npz", tmp_path, "--metric", "mae", "--json")
        report = report_of(result)
        assert (report["metric"], report["direction"]) == ("MAE", "lower is better")
        assert 35 < report["baseline"] < 60
        row, _ = chosen(report)
        assert row["variant"] != "onnx-fp32"
        assert row["runs"][0]["value"] <= 1.02 * report["baseline"]
        assert not any(one["failure"] for one in report["candidates"])
        with Bundle(Path(json.loads(result.stdout)["bundles"][0]["path"])) as one:
            assert (one.manifest.task, one.manifest.scores) == (Task.OTHER, ScoreKind.NONE)
            assert one.manifest.quality.metric == "MAE"
        again = report_of(run(clinic, "estimators.py:diabetes", "diabetes.npz", tmp_path, "--json"))
        assert again["metric"] == "MAE", "numbers to answer suggest it"

    def test_a_layer_that_makes_an_error_larger_is_one_that_harms(self, clinic, tmp_path):
        report = report_of(run(clinic, "estimators.py:diabetes", "diabetes.npz", tmp_path, "--json"))
        assert report["layers"]
        page = (tmp_path / "net-1.0.0-report.html").read_text()
        assert "lower is better" in page
        assert "ceiling" in page

    def test_a_detector_is_judged_by_its_area(self, clinic, tmp_path):
        more = ("--metric", "auc", "--scores", "probabilities", "--json", "--max-drop", "0.2%")
        report = report_of(run(clinic, "estimators.py:cancer", "cancer.npz", tmp_path, *more))
        assert (report["metric"], report["direction"]) == ("AUC", "higher is better")
        assert report["baseline"] > 0.97
        row, _ = chosen(report)
        assert report["baseline"] - row["runs"][0]["value"] <= 0.002

    def test_an_own_function_gets_answers_in_the_shape_of_the_truth(self, clinic, tmp_path):
        (tmp_path / "own.py").write_text(METRIC)
        more = ("--metric", f"{tmp_path}/own.py:within_50", "--json")
        report = report_of(run(clinic, "estimators.py:diabetes", "diabetes.npz", tmp_path / "out", *more))
        assert report["metric"] == "own.py:within_50"
        assert 0.3 < report["baseline"] < 0.95
        assert chosen(report)[0]["runs"][0]["value"] >= report["baseline"] - 0.02

    @pytest.mark.parametrize(
        ("metric", "words"),
        [
            ("own.py:broken", "own.py:broken returned"),
            ("own.py:endless", "own.py:endless returned nan"),
            ("own.py:nothing", "own.py has no function nothing"),
            ("missing.py:metric", "no file"),
            ("f1", "unknown metric 'f1'"),
            ("accuracy", "accuracy needs classes in evaluation_y"),
            ("auc", "AUC needs classes in evaluation_y"),
        ],
    )
    def test_one_that_cannot_be_used_is_the_users_to_change(self, clinic, tmp_path, metric, words):
        (tmp_path / "own.py").write_text(METRIC)
        named = f"{tmp_path}/{metric}" if ".py" in metric else metric
        result = run(clinic, "estimators.py:diabetes", "diabetes.npz", tmp_path / "out", "--metric", named)
        assert isinstance(result.exception, ConfigError)
        assert words in result.exception.message
        assert not (tmp_path / "out").exists()


def test_every_profile_that_ships_is_one_that_a_limit_can_be_held_against(both):
    assert set(BASIS) - {"host"} <= set(profile.names())
    assert {row["variant"] for row in both["candidates"]} >= {"onnx-fp32", "onnx-int8-s8s8"}


def test_what_cannot_be_compared_here_is_told_and_ends_nothing(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(errand, "module_command", lambda *_: ["/bin/sh", "-c", "kill -ABRT $$", "sh"])
    report = report_of(run(desk, "net.onnx", "data.npz", tmp_path, "--profile", "host", "--json"))
    assert chosen(report, "host")
    assert {one["latency_basis"] for row in report["candidates"] for one in row["verdicts"]} == {
        BASIS["host"]
    }
    assert any("SIGABRT" in one["answer"] for one in report["answers"])
