"""What is shown to a person stands there as it is: text of a stranger, and paths, have no meaning to the terminal."""

import shlex

import pytest

from converters.report import CandidateRow, Conversion, Packaging, Report, RunRow, VerdictRow, WrittenBundle
from converters.search import Progress
from converters.show import searching, tell_conversion, tell_packaging, training
from edgeml.ids import digest_of
from edgeml.manifest import RuntimeFamily

FOREIGN = "[red]a[/x] :tada: b[v2]"


def bundle(path="out/net.edgeml"):
    return WrittenBundle(
        path=path, variant="onnx-fp32", runtime=RuntimeFamily.ONNX, profiles=("pi",), length_bytes=4, sha256=digest_of(b"")
    )  # fmt: skip


def report(said=FOREIGN):
    verdict = VerdictRow(
        profile=said, verdict="chosen", reason=said, latency_ms=1.0, latency_basis="", memory_bytes=None, memory_basis=""
    )  # fmt: skip
    run = RunRow(
        runtime=said, version="", value=0.5, agreement=1.0, latency_p50_ms=1.0, latency_p95_ms=1.0, peak_memory_bytes=1
    )  # fmt: skip
    row = CandidateRow(
        variant="v[/b]", steps="", length_bytes=4, sha256=None, runs=(run,), failure="", verdicts=(verdict,)
    )  # fmt: skip
    return Report(
        release="net[/b]@1", source="", host=said, metric="m[/x]", direction="", baseline=1.0, max_drop=0.1, samples=4, candidates=(row,)
    )  # fmt: skip


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


class TestAConversion:
    def test_paths_warnings_and_names_stand_as_they_are(self, capsys):
        path = f"out{FOREIGN}/net.edgeml"
        tell_conversion(
            Conversion(
                report=report(), bundles=(bundle(path),), warnings=(FOREIGN,), page=f"{FOREIGN}.html", files=(f"{FOREIGN}.pt",)
            )
        )  # fmt: skip
        said = capsys.readouterr().out
        assert f"note: {FOREIGN}\n" in said
        assert f"{path}: onnx-fp32 for pi" in said
        assert f"{FOREIGN}.html: all of this" in said
        assert f"{FOREIGN}.pt: for torch.jit.load" in said
        assert f"here, on {FOREIGN}, over 4 samples" in said
        for title in ("net[/b]@1: m[/x] 1 before", "v[/b] ", "m[/x] ", FOREIGN):
            assert title in said

    def test_the_next_command_can_be_typed(self, capsys):
        paths = ("out[v2]/net.edgeml", "my out/net.edgeml")
        tell_conversion(Conversion(report=report(), bundles=(), for_agents=paths))
        [said] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
        assert shlex.split(said) == ["next:", "edgeml", "fleet", "publish", *paths]


def test_a_package_is_shown_as_it_is(capsys):
    tell_packaging(
        Packaging(
            bundle=bundle(FOREIGN), host=FOREIGN, runtime=FOREIGN, latency_p50_ms=1.0, latency_p95_ms=1.0, peak_memory_bytes=1,
            metric=FOREIGN, value=0.5, samples=4, golden_samples=4, golden_origin=FOREIGN, has_monitor=False,
        )
    )  # fmt: skip
    assert capsys.readouterr().out.count(FOREIGN) == 5


class TestWhileOneWaits:
    @pytest.fixture(autouse=True)
    def terminal(self, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")

    def test_what_is_done_is_told_as_it_is(self, capsys):
        with searching(quiet=False) as on_progress:
            on_progress(Progress(f"loading {FOREIGN}"))
        assert f"loading {FOREIGN}" in capsys.readouterr().err

    def test_what_is_trained_is_told_as_it_is(self, capsys):
        with training(quiet=False) as on_epoch:
            on_epoch(FOREIGN, 1, 2)
        assert f"training {FOREIGN}" in capsys.readouterr().err
