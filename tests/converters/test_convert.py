"""A whole conversion: the sample's digits for two profiles, opened again, and proved by a second run."""

import hashlib
import json
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

import converters
from converters.assemble import ReleaseName
from converters.cli import convert as command
from converters.order import ConversionOrder, Limits
from converters.search import Progress
from converters.sources.load import load
from converters.sources.source_name import parse_source
from edgeml import golden, monitor, profile
from edgeml.bundle import GOLDEN, MONITOR, REPORT, Bundle
from edgeml.errors import BudgetError, ConfigError, IncompatibleError
from edgeml.manifest import RuntimeFamily, ScoreKind, Task
from edgeml.probe import probe

pytestmark = [pytest.mark.torch, pytest.mark.processes]

VARIANTS = ("onnx-fp32", "onnx-int8-s8s8")
VNNI_BOARD = (
    profile.read("generic-x86-64").decode()
    .replace('name = "generic-x86-64"', 'name = "vnni"').replace('"avx2",', '"avx2", "avx512_vnni",')
)  # fmt: skip


def order(directory, out, *profiles, **changes):
    source = changes.pop("source", f"{directory}/net.py:model")
    return ConversionOrder(
        source=source, data=changes.pop("data", directory / "data.npz"), profiles=profiles or (profile.load("raspberry-pi-4"),),
        release=ReleaseName("net", "1.0.0"), out=out,
        limits=Limits(max_drop=changes.pop("max_drop", 0.02), max_bytes=changes.pop("max_bytes", None)),
        work=changes.pop("work", out / "work"), **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def converted(digits, tmp_path_factory):
    """Digits for three profiles; two of them choose the same candidate."""
    out = tmp_path_factory.mktemp("converted")
    vnni = out / "vnni.toml"
    vnni.write_text(VNNI_BOARD)
    boards = (profile.load("raspberry-pi-4"), profile.load("raspberry-pi-5"), profile.load(str(vnni)))
    said: list[Progress] = []
    conversion = converters.convert(
        ConversionOrder(
            source=f"{digits}/v1/digits.py:model", data=digits / "v1/data.npz", profiles=boards,
            release=ReleaseName("digits", "1.0.0"), limits=Limits(max_drop=0.01), out=out, labels=tuple("0123456789"), work=out / "work",
        ),
        said.append,
    )  # fmt: skip
    return conversion, said, digits


@pytest.fixture
def bundles(converted):
    opened = [Bundle(Path(one.path)) for one in converted[0].bundles]
    yield {one.manifest.variant: one for one in opened}
    for one in opened:
        one.close()


class TestTheDigits:
    def test_profiles_that_choose_the_same_share_a_bundle(self, converted, bundles):
        assert {name: one.manifest.profiles for name, one in bundles.items()} == {
            "onnx-int8-s8s8": ("raspberry-pi-4", "raspberry-pi-5"),
            "onnx-int8-u8s8": ("vnni",),
        }
        assert [Path(one.path).name for one in converted[0].bundles] == [
            "digits-1.0.0-onnx-int8-s8s8.edgeml",
            "digits-1.0.0-onnx-int8-u8s8.edgeml",
        ]

    def test_bundles_are_sound_and_what_was_said_of_them(self, converted, bundles):
        for said in converted[0].bundles:
            bundles[said.variant].verify()
            data = Path(said.path).read_bytes()
            assert (hashlib.sha256(data).hexdigest(), len(data)) == (said.sha256, said.length_bytes)

    def test_golden_vectors_hold_in_a_second_run(self, bundles):
        for one in bundles.values():
            recorded = golden.decode(one.read(GOLDEN), one.manifest)
            assert recorded.samples == golden.SAMPLES
            again = probe(one.model(), RuntimeFamily.ONNX, recorded.inputs)
            assert golden.compare(recorded.outputs, again.answers, one.manifest).passed

    def test_golden_vectors_are_the_first_evaluation_samples(self, converted, bundles):
        evaluation = np.load(converted[2] / "v1/data.npz")["evaluation_x"]
        recorded = golden.decode(bundles["onnx-int8-s8s8"].read(GOLDEN), bundles["onnx-int8-s8s8"].manifest)
        np.testing.assert_array_equal(recorded.inputs[0], evaluation[: golden.SAMPLES])

    def test_the_monitor_is_of_the_evaluation_data_and_holds_no_times(self, bundles):
        watched = monitor.decode(bundles["onnx-int8-s8s8"].read(MONITOR))
        assert watched.reference_rows > 1000
        assert watched.latency_slow_ms is None
        assert 0.1 < watched.confidence_low < 1

    def test_quality_is_what_the_answers_score(self, converted, bundles):
        data = np.load(converted[2] / "v1/data.npz")
        for one in bundles.values():
            answers = probe(one.model(), RuntimeFamily.ONNX, [data["evaluation_x"]]).answers[0]
            quality = one.manifest.quality
            assert quality.value == pytest.approx((answers.argmax(1) == data["evaluation_y"]).mean())
            assert quality.baseline - quality.value <= 0.01
            assert quality.agreement > 0.97
            assert quality.samples == len(data["evaluation_x"])

    def test_the_manifest_says_what_it_is_and_where_it_came_from(self, converted, bundles):
        manifest = bundles["onnx-int8-s8s8"].manifest
        origin = manifest.provenance
        assert (manifest.task, manifest.scores, manifest.labels) == (
            Task.CLASSIFICATION,
            ScoreKind.LOGITS,
            tuple("0123456789"),
        )
        assert [spec.shape for spec in (*manifest.inputs, *manifest.outputs)] == [(-1, 1, 8, 8), (-1, 10)]
        assert origin.source == "digits.py:model"
        assert (
            origin.source_sha256 == hashlib.sha256((converted[2] / "v1/digits.py").read_bytes()).hexdigest()
        )
        assert origin.data_sha256 == hashlib.sha256((converted[2] / "v1/data.npz").read_bytes()).hexdigest()
        assert "suits the instruction set (aarch64)" in origin.reason
        assert json.loads(origin.settings)["compression"]["activations"] == "s8"
        assert not origin.git_dirty
        assert any(one.startswith("onnxruntime ") for one in origin.libraries)

    def test_the_model_is_one_small_file_without_paths_of_this_machine(self, converted, bundles):
        import onnx

        for one in bundles.values():
            proto = onnx.load_from_string(one.model())
            assert {entry.domain: entry.version for entry in proto.opset_import}[""] == 18
            assert {entry.domain for entry in proto.opset_import} <= {"", "com.microsoft"}
            assert b"site-packages" not in one.model()
            assert str(converted[2]).encode() not in one.model()

    def test_the_report_lists_every_candidate_with_a_verdict_for_every_profile(self, converted, bundles):
        report = json.loads(bundles["onnx-int8-s8s8"].read(REPORT))
        assert report == json.loads(msgspec.json.encode(converted[0].report))
        assert tuple(one["variant"] for one in report["candidates"]) == (*VARIANTS, "onnx-int8-u8s8")
        for one in report["candidates"]:
            assert [verdict["profile"] for verdict in one["verdicts"]] == [
                "raspberry-pi-4",
                "raspberry-pi-5",
                "vnni",
            ]
            assert all(verdict["reason"] for verdict in one["verdicts"])
        sizes = {one["variant"]: one["length_bytes"] for one in report["candidates"]}
        assert sizes["onnx-int8-s8s8"] < 0.4 * sizes["onnx-fp32"]

    def test_every_step_was_told(self, converted):
        assert [one.text for one in converted[1]] == [
            "reading data", f"loading {converted[2]}/v1/digits.py:model", "making and verifying onnx-fp32", "making and verifying onnx-int8-s8s8",
            "making and verifying onnx-int8-u8s8", "explaining", "writing bundles",
        ]  # fmt: skip


def test_two_conversions_differ_in_nothing_but_what_was_measured(linear, tmp_path):
    for name in ("one", "two"):
        converters.convert(order(linear, tmp_path / name))
    paths = [sorted((tmp_path / name).glob("*.edgeml")) for name in ("one", "two")]
    assert [path.name for path in paths[0]] == [path.name for path in paths[1]]
    for first, second in zip(*paths, strict=True):
        with Bundle(first) as one, Bundle(second) as two:
            for member in ("model.onnx", GOLDEN, MONITOR):
                assert one.read(member) == two.read(member)
            same = msgspec.structs.replace(
                two.manifest, measurement=one.manifest.measurement, files=one.manifest.files
            )
            assert one.manifest == same


def test_without_labels_the_metric_is_agreement(linear, tmp_path):
    data = np.load(linear / "data.npz")
    np.savez(tmp_path / "data.npz", calibration_x=data["calibration_x"], evaluation_x=data["evaluation_x"])
    conversion = converters.convert(order(linear, tmp_path / "out", data=tmp_path / "data.npz"))
    assert (conversion.report.metric, conversion.report.baseline) == ("agreement", 1.0)
    with Bundle(Path(conversion.bundles[0].path)) as one:
        assert (one.manifest.task, one.manifest.scores) == (Task.OTHER, ScoreKind.NONE)
        assert one.manifest.outputs[0].name == "output"


def test_an_exported_program_is_converted_with_a_warning(linear, tmp_path, recwarn):
    import torch

    space: dict = {}
    exec((linear / "net.py").read_text(), space)  # our own text, in conftest
    example = (torch.zeros(2, 8, 8),)
    free = torch.export.export(space["model"]().eval(), example, dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(free, tmp_path / "net.pt2")
    recwarn.clear()
    conversion = converters.convert(order(linear, tmp_path / "out", source=str(tmp_path / "net.pt2")))
    assert "convert only programs that you trust" in conversion.warnings[0]
    assert conversion.report.baseline > 0.9
    fixed = torch.export.export(space["model"]().eval(), (torch.zeros(1, 8, 8),))
    torch.export.save(fixed, tmp_path / "one.pt2")
    one = converters.convert(order(linear, tmp_path / "out", source=str(tmp_path / "one.pt2")))
    with Bundle(Path(one.bundles[0].path)) as bundle:
        assert bundle.manifest.inputs[0].shape == (1, 8, 8)


def test_a_commit_is_recorded_if_there_is_one(linear, tmp_path):
    (tmp_path / "net.py").write_bytes((linear / "net.py").read_bytes())
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "net.py"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    conversion = converters.convert(order(linear, tmp_path / "out", source=f"{tmp_path}/net.py:model"))
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    with Bundle(Path(conversion.bundles[0].path)) as one:
        assert one.manifest.provenance.git_commit == commit


class TestWhatDoesNotFit:
    def test_a_microcontroller_gets_no_onnx(self, linear, tmp_path):
        with pytest.raises(IncompatibleError, match="has tflite-micro, and that needs onnxruntime"):
            converters.convert(order(linear, tmp_path, profile.load("stm32h7"), target=RuntimeFamily.ONNX))

    @pytest.mark.parametrize(("field", "value"), [("model_storage", 2000), ("model_memory", 10_000_000)])
    def test_a_small_board_gets_both_numbers_and_no_bundle(self, linear, tmp_path, field, value):
        small = profile.load("raspberry-pi-4")
        small = msgspec.structs.replace(
            small, **{field: msgspec.structs.replace(getattr(small, field), value=value)}
        )
        with pytest.raises(BudgetError) as caught:
            converters.convert(order(linear, tmp_path / "out", small))
        assert "does not fit" in caught.value.message
        assert caught.value.observed > caught.value.budget
        assert not list((tmp_path / "out").glob("*.edgeml"))

    def test_a_bundle_that_is_larger_than_its_model_by_too_much_is_refused(self, linear, tmp_path):
        small = profile.load("raspberry-pi-4")
        small = msgspec.structs.replace(
            small, model_storage=msgspec.structs.replace(small.model_storage, value=9000)
        )
        with pytest.raises(BudgetError, match=r"of its bundle beside the model\) of 9\.0 kB storage"):
            converters.convert(order(linear, tmp_path / "out", small))
        assert not list((tmp_path / "out").glob("*.edgeml"))


def test_bundles_that_an_earlier_conversion_left_are_told(linear, tmp_path):
    first = converters.convert(order(linear, tmp_path))
    assert first.warnings == ()
    [left] = [Path(one.path).name for one in first.bundles]
    refused = []
    with pytest.raises(BudgetError):
        converters.convert(order(linear, tmp_path, max_bytes=100), on_refusal=refused.append)
    [(note,)] = [one.warnings for one in refused]
    assert f"bundles of net@1.0.0: {left};" in note
    assert converters.convert(order(linear, tmp_path)).warnings == (), "its own is written anew"


def test_where_one_profile_refuses_all_nothing_is_written_for_the_others(linear, tmp_path):
    board = profile.load("raspberry-pi-4")
    small = msgspec.structs.replace(
        board, name="small", model_storage=msgspec.structs.replace(board.model_storage, value=100)
    )
    with pytest.raises(BudgetError) as caught:
        converters.convert(order(linear, tmp_path, board, small))
    assert caught.value.hint.endswith("no bundle is written for the other profiles either")
    assert not list(tmp_path.glob("*.edgeml"))


def test_an_error_of_0_has_no_part_that_might_be_lost(linear, tmp_path):
    with np.load(linear / "data.npz") as file:
        arrays = dict(file)
    source = load(parse_source(f"{linear}/net.py:model"), arrays["calibration_x"])
    answers = source.answers(arrays["evaluation_x"], "evaluation_x")
    np.savez(tmp_path / "data.npz", **arrays | {"evaluation_y": answers})
    with pytest.raises(ConfigError, match="MAE is 0") as caught:
        converters.convert(order(linear, tmp_path, data=tmp_path / "data.npz"))
    assert "leave evaluation_y out" in caught.value.hint


class TestTheCommand:
    def run(self, directory, out, *more):
        arguments = [
            f"{directory}/net.py:model", "--data", str(directory / "data.npz"), "--profile", "raspberry-pi-4", "--name", "net",
            "--version", "1.0.0", "--max-drop", "2%", "--out", str(out), "--work", str(directory / "work"), *more,
        ]  # fmt: skip
        return CliRunner().invoke(command, arguments)

    def test_it_shows_a_table_the_reasons_the_bundle_and_what_to_do_next(self, linear, tmp_path):
        result = self.run(linear, tmp_path)
        assert result.exception is None
        for word in (
            *VARIANTS,
            "measured here, on ",
            "suits the instruction set (aarch64)",
            "another machine",
        ):
            assert word in result.stdout
        path = tmp_path / "net-1.0.0-onnx-int8-s8s8.edgeml"
        assert f"next: edgeml fleet publish {path}" in result.stdout
        assert path.exists()
        assert result.stderr == ""

    def test_as_json_it_prints_one_document(self, linear, tmp_path):
        result = self.run(linear, tmp_path, "--json")
        said = json.loads(result.stdout)
        assert said["bundles"][0]["path"] == str(tmp_path / "net-1.0.0-onnx-int8-s8s8.edgeml")
        assert said["report"]["release"] == "net@1.0.0"

    @pytest.mark.parametrize("drop", ["0.5", "nan", "-1%", "100%", "inf", "half", ""])
    def test_a_drop_that_cannot_be_meant_is_refused(self, linear, tmp_path, drop):
        result = self.run(linear, tmp_path, "--max-drop", drop)
        assert isinstance(result.exception, ConfigError)
        assert "0.5%" in result.exception.hint
