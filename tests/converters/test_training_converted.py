"""Conversions that train: pruned, quantization-aware and smaller networks beside the others, with how each was trained."""

import json
import textwrap
from pathlib import Path

import numpy as np
import pytest

from converters.assemble import ReleaseName
from converters.order import ConversionOrder, Limits
from converters.plan import Effort
from converters.service import convert
from edgeml import profile
from edgeml.bundle import Bundle
from edgeml.errors import BudgetError, ConfigError

pytestmark = [pytest.mark.torch, pytest.mark.processes]

FACTORY = textwrap.dedent(
    """
    from pathlib import Path

    import numpy as np
    import torch
    from torch import nn

    def model():
        layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        with np.load(Path(__file__).with_name("weights.npz")) as file, torch.no_grad():
            for name in ("1.weight", "1.bias", "3.weight", "3.bias"):
                layers.state_dict()[name].copy_(torch.from_numpy(file[name]))
        return layers
    """
)
STUDENT = textwrap.dedent(
    """
    from torch import nn

    def tiny():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    """
)
RACE = "held-out samples; "


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """`net.py` with fitted weights, `small.py` with a smaller network, `data.npz` with samples to train on."""
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    folder, digits = tmp_path_factory.mktemp("school"), load_digits()
    images, labels = (digits.images / 16).astype(np.float32), digits.target
    fitted = MLPClassifier((64,), random_state=0, max_iter=400).fit(
        images[:900].reshape(900, -1), labels[:900]
    )
    arrays = {
        f"{place}.{kind}": value.astype(np.float32)
        for place, weight, bias in zip((1, 3), fitted.coefs_, fitted.intercepts_, strict=True)
        for kind, value in (("weight", np.ascontiguousarray(weight.T)), ("bias", bias))
    }
    np.savez(folder / "weights.npz", **arrays)
    (folder / "net.py").write_text(FACTORY)
    (folder / "small.py").write_text(STUDENT.replace("WIDTH", "12"))
    np.savez(
        folder / "data.npz", calibration_x=images[:60], evaluation_x=images[900:1200], evaluation_y=labels[900:1200],
        train_x=images[:600], train_y=labels[:600],
    )  # fmt: skip
    return folder


def converted(school, out, **changes):
    limits = Limits(max_drop=changes.pop("max_drop", 0.1), max_bytes=changes.pop("max_bytes", None))
    return convert(
        ConversionOrder(
            source=changes.pop("source", f"{school}/net.py:model"), data=changes.pop("data", school / "data.npz"),
            profiles=(profile.load("raspberry-pi-4"),), release=ReleaseName("net", "1.0.0"), limits=limits, out=out,
            work=school / "work", **changes,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def explored(school, tmp_path_factory):
    out = tmp_path_factory.mktemp("explored")
    return converted(school, out, effort=Effort.EXPLORE, students=(f"{school}/small.py:tiny",))


def trained(conversion):
    return {one.variant: one for one in conversion.report.candidates if one.note}


class TestEverythingTried:
    def test_pruned_aware_and_smaller_networks_are_beside_the_others_each_with_its_race(self, explored):
        found = trained(explored)
        assert {name.removeprefix("onnx-").split("-")[0] for name in found} == {
            "pruned30x8", "pruned50x8", "pruned60x8", "pruned70x8", "qat", "student",
        }  # fmt: skip
        for row in found.values():
            assert "trained: " in row.note
            assert RACE in row.note
            assert row.note.endswith(" kept")
        untrained = [one for one in explored.report.candidates if one.variant not in found]
        assert len(untrained) > 5
        assert not any(one.note for one in untrained)

    def test_smaller_networks_say_what_part_of_the_work_they_are(self, explored):
        found = trained(explored)
        parts = {
            name: int(row.note.split("% of the MACs")[0]) for name, row in found.items() if "MACs" in row.note
        }
        assert {name for name in found if "qat" not in name} == set(parts)
        by_ratio = [parts[f"onnx-pruned{ratio}x8-int8-s8s8"] for ratio in (30, 50, 60, 70)]
        assert by_ratio == sorted(by_ratio, reverse=True)
        assert parts["onnx-student-small-tiny-int8-s8s8"] < 25

    def test_names_are_of_one_candidate_each(self, explored):
        names = [one.variant for one in explored.report.candidates]
        assert len(set(names)) == len(names)

    def test_they_are_judged_like_all_others(self, explored):
        for row in trained(explored).values():
            [run], [verdict] = row.runs, row.verdicts
            assert run.value > 0.5
            assert verdict.latency_basis == "estimated"
            assert verdict.reason

    def test_the_chosen_one_is_a_smaller_network_and_no_name_of_a_folder_is_in_its_bundle(
        self, explored, school
    ):
        [said] = explored.bundles
        with Bundle(Path(said.path)) as one:
            origin, report = one.manifest.provenance, one.read("report.json")
            assert str(school).encode() not in one.model() + report
        assert said.variant in trained(explored)
        assert str(school) not in json.dumps([origin.settings, origin.recipe, origin.reason])
        steps = json.loads(origin.settings)["training"]
        assert steps[0]["type"] in {"student", "prune"}

    def test_notes_and_files_come_back_from_what_was_kept(self, explored, school, tmp_path):
        again = converted(school, tmp_path, effort=Effort.EXPLORE, students=(f"{school}/small.py:tiny",))
        assert again.report == explored.report
        assert [one.note for one in again.report.candidates] == [
            one.note for one in explored.report.candidates
        ]

    def test_the_page_tells_the_races(self, explored):
        assert "held-out samples" in Path(explored.page).read_text()


def test_a_changed_student_is_trained_anew(explored, school, tmp_path):
    """What was kept of a file of the same name is not taken for it."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "small.py").write_text(STUDENT.replace("WIDTH", "10"))
    before = trained(explored)["onnx-student-small-tiny-int8-s8s8"]
    row = before.length_bytes
    conversion = converted(
        school, tmp_path / "out", students=(f"{other}/small.py:tiny",), max_bytes=row - 1, max_drop=0.3
    )  # fmt: skip
    found = trained(conversion)["onnx-student-small-tiny-int8-s8s8"]
    assert found.length_bytes < row
    assert found.sha256 != before.sha256
    assert conversion.bundles[0].variant in trained(conversion)


def test_a_student_whose_neighbours_changed_is_trained_anew(explored, school, tmp_path):
    """Its own file is the same; what it makes of the file beside it is not."""
    wide = STUDENT.replace("WIDTH", "int(Path(__file__).with_name('width').read_text())")
    (tmp_path / "small.py").write_text(f"from pathlib import Path\n{wide}")
    most = trained(explored)["onnx-student-small-tiny-int8-s8s8"].length_bytes
    taught = []
    for width in ("12", "11"):
        (tmp_path / "width").write_text(width)
        conversion = converted(
            school, tmp_path / width, students=(f"{tmp_path}/small.py:tiny",), max_bytes=most, max_drop=0.3
        )
        taught.append(trained(conversion)["onnx-student-small-tiny-int8-s8s8"].length_bytes)
    assert taught[1] < taught[0]


class TestWhatCannotBeTrained:
    def test_two_students_of_one_name_are_not_taken_for_each_other(self, school, tmp_path):
        (tmp_path / "small.py").write_text(STUDENT.replace("WIDTH", "10"))
        students = (f"{school}/small.py:tiny", f"{tmp_path}/small.py:tiny")
        with pytest.raises(ConfigError, match=r"two students are called small\.py:tiny"):
            converted(school, tmp_path / "out", students=students)

    def test_without_samples_to_train_on_a_student_is_refused(self, school, tmp_path):
        with np.load(school / "data.npz") as file:
            arrays = {name: file[name] for name in file.files if not name.startswith("train")}
        np.savez(tmp_path / "data.npz", **arrays)
        with pytest.raises(ConfigError, match="the data have no train_x and train_y"):
            converted(
                school, tmp_path / "out", data=tmp_path / "data.npz", students=(f"{school}/small.py:tiny",)
            )

    def test_a_file_is_not_trained_and_says_why(self, desk, school, tmp_path):
        with np.load(desk / "data.npz") as file:
            arrays = dict(file)
        x, y = arrays["evaluation_x"], arrays["evaluation_y"]
        np.savez(tmp_path / "data.npz", **arrays, train_x=x, train_y=y)
        given = {"source": str(desk / "net.onnx"), "data": tmp_path / "data.npz"}
        with pytest.raises(ConfigError, match=r"net\.onnx cannot be trained: give the torch module itself"):
            converted(school, tmp_path / "out", students=(f"{school}/small.py:tiny",), **given)
        with pytest.raises(BudgetError) as caught:
            converted(school, tmp_path / "out", max_bytes=3000, **given)
        assert "pruned" not in caught.value.message

    def test_a_student_that_answers_something_else_is_a_candidate_that_failed(self, school, tmp_path):
        (tmp_path / "wrong.py").write_text(STUDENT.replace("WIDTH, 10", "WIDTH, 7").replace("WIDTH", "12"))
        students = (f"{tmp_path}/wrong.py:tiny",)
        with pytest.raises(BudgetError):
            converted(school, tmp_path / "out", students=students, max_bytes=100)
        page = (tmp_path / "out" / "net-1.0.0-report.html").read_text()
        assert "answers in shape [7], its teacher in [10]" in page

    def test_a_student_that_is_not_there_is_named_before_anything_is_made(self, school, tmp_path):
        with pytest.raises(ConfigError, match=r"no file .*missing\.py"):
            converted(school, tmp_path / "out", students=(f"{tmp_path}/missing.py:tiny",))
        assert not (tmp_path / "out").exists()
