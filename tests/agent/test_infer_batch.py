"""Batches: every sample is answered or named, in order, whatever is between them."""

import json

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from agent import infer_batch
from agent.answering import Answering
from agent.cli import infer
from agent.infer import Question
from agent.infer_batch import Batch, Line, run
from agent.roster import Roster
from agent.sample_source import open_samples
from agent.server import Server
from agent.windows import Windows
from edgeml.bundle import Bundle
from edgeml.clock import SystemClock
from edgeml.errors import ConfigError, LinkDownError, StorageError
from edgeml.ids import ModelName
from edgeml.inference import ModelMetadata, ModelParameters, TensorMetadata
from edgeml.runtime import open_session

VALUES = np.random.default_rng(3).normal(size=(40, 4)).astype(np.float32)


@pytest.fixture
def url(supervisor, worker):
    roster = Roster(supervisor)
    roster.seat(ModelName("sample")).swap(worker)
    server = Server(Answering(roster, Windows(60.0), SystemClock()), "127.0.0.1:0")
    server.start()
    yield server.url
    server.stop()
    roster.close()


@pytest.fixture
def expected(sample):
    with Bundle(sample[0]) as bundle:
        scores = open_session(bundle.model(), bundle.manifest.runtime).run([VALUES])[0]
    return scores.argmax(axis=1).tolist()


def as_npz(directory):
    np.savez(directory / "all.npz", x=VALUES)
    return directory / "all.npz"


def as_table(directory):
    rows = ["a,b,c,d", *(",".join(map(repr, map(float, row))) for row in VALUES)]
    (directory / "all.csv").write_text("\n".join(rows) + "\n\n")
    return directory / "all.csv"


def as_table_without_names(directory):
    np.savetxt(directory / "all.csv", VALUES, delimiter=",", fmt="%.9g")
    return directory / "all.csv"


def as_arrays(directory):
    for number, row in enumerate(VALUES):
        np.save(directory / f"{number:03}.npy", row)
    return directory


def as_bytes(directory):
    for number, row in enumerate(VALUES):
        (directory / f"{number:03}.bin").write_bytes(row.tobytes())
    return directory


@pytest.mark.processes
@pytest.mark.parametrize("write", [as_npz, as_table, as_table_without_names, as_arrays, as_bytes])
@pytest.mark.parametrize("clients", [1, 4])
def test_every_sample_is_answered_in_order_as_the_model_answers_it(tmp_path, url, expected, write, clients):
    directory, out = tmp_path / "in", tmp_path / "answers.jsonl"
    directory.mkdir()
    report = run(Batch(Question(write(directory), url), clients, out))
    lines = [msgspec.json.decode(line, type=Line) for line in out.read_bytes().splitlines()]
    assert [line.answer.predicted for line in lines] == expected
    assert (report.samples, report.failed, sum(report.classes.values())) == (40, 0, 40)
    assert report.samples_per_s > 0
    assert 0 < report.latency_p50_ms <= report.latency_p95_ms


@pytest.mark.processes
def test_bad_samples_are_named_and_the_others_answered(tmp_path, url):
    directory, out = tmp_path / "in", tmp_path / "answers.jsonl"
    directory.mkdir()
    as_arrays(directory)
    np.save(directory / "004.npy", np.zeros(5, np.float32))
    (directory / "005.npy").write_bytes(b"garbage")
    (directory / "006.bin").write_bytes(b"short")
    (directory / "notes.txt").write_text("not a sample")
    (directory / ".hidden.npy").write_text("neither")
    done = CliRunner().invoke(infer, [str(directory), "--batch", "--url", url, "--out", str(out), "--json"])
    report = json.loads(done.stdout.splitlines()[0])
    assert (report["samples"], report["failed"], report["skipped"]) == (41, 3, 1)
    assert done.exception is not None
    assert "3 of 41 samples got no answer" in str(done.exception)
    lines = {one["sample"]: one for one in map(json.loads, out.read_text().splitlines())}
    assert {name for name, one in lines.items() if "error" in one} == {"004.npy", "005.npy", "006.bin"}
    assert "the model takes [-1, 4]" in lines["004.npy"]["error"]
    assert lines["007.npy"]["answer"]["label"] in {"a", "b", "c"}


def test_an_agent_that_is_gone_ends_the_batch(tmp_path, monkeypatch, supervisor, worker):
    """Not a failure for each of ten thousand samples, five seconds apart."""
    monkeypatch.setattr(infer_batch, "TRY_AGAIN_S", 0.0)
    roster = Roster(supervisor)
    roster.seat(ModelName("sample")).swap(worker)
    server = Server(Answering(roster, Windows(60.0), SystemClock()), "127.0.0.1:0")
    server.start()
    asked = infer_batch.describe
    monkeypatch.setattr(infer_batch, "describe", lambda question: (asked(question), server.stop())[0])
    with pytest.raises(LinkDownError):
        run(Batch(Question(as_npz(tmp_path), server.url), 1, None))
    roster.close()


@pytest.mark.processes
def test_people_get_figures(tmp_path, url):
    done = CliRunner().invoke(infer, [str(as_npz(tmp_path)), "--batch", "--url", url])
    assert done.exit_code == 0, done.output
    assert "40 samples, 0 failed; sample 1.0.0: " in done.output
    assert "samples/s" in done.output


@pytest.mark.processes
def test_what_cannot_begin_says_why(tmp_path, url):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="no samples in"):
        run(Batch(Question(empty, url), 1, None))
    with pytest.raises(ConfigError, match="cannot read"):
        run(Batch(Question(tmp_path / "gone.csv", url), 1, None))
    with pytest.raises(StorageError):
        run(Batch(Question(as_npz(tmp_path), url), 1, tmp_path / "no" / "such" / "folder"))


def metadata(shape, datatype="UINT8", names=("x",)):
    inputs = tuple(TensorMetadata(name, datatype, shape) for name in names)
    return ModelMetadata("m", ("1",), "onnx", inputs, (), ModelParameters("classification", "logits", ()))


@pytest.mark.parametrize(
    ("shape", "mode"), [((-1, 6, 8, 3), "RGB"), ((-1, 3, 6, 8), "RGB"), ((-1, 6, 8, 1), "L"), ((-1, 6, 8), "L")]
)  # fmt: skip
def test_an_image_becomes_what_the_model_takes(tmp_path, shape, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    [found] = open_samples(tmp_path, metadata(shape)).samples
    assert found.error == ""
    [array] = found.inputs
    assert array.shape == (1, *shape[1:])
    with Image.open(tmp_path / "a.png") as image:
        wanted = np.asarray(image.convert(mode))
    seen = array[0].transpose(1, 2, 0) if shape[1] == 3 else array[0]
    np.testing.assert_array_equal(seen.reshape(wanted.shape), wanted)


def test_images_of_another_size_or_no_images_are_named(tmp_path):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff no")
    first, second = open_samples(tmp_path, metadata((-1, 6, 8, 3))).samples
    assert "has shape [1, 5, 5, 3]" in first.error
    assert "is no image" in second.error


@pytest.mark.parametrize("name", ["all.csv", "a.bin"])
def test_a_model_of_several_inputs_takes_arrays_only(tmp_path, name):
    (tmp_path / name).write_text("1,2\n")
    path = tmp_path / name if name.endswith("csv") else tmp_path
    two = metadata((-1, 2), "FP32", ("x", "y"))
    if path.is_dir():
        [found] = open_samples(path, two).samples
        assert "takes 2 inputs" in found.error
        return
    with pytest.raises(ConfigError, match="takes 2 inputs"):
        open_samples(path, two)


def test_a_table_may_have_holes_and_bad_rows(tmp_path):
    (tmp_path / "t.csv").write_text("1,2\n,4\n1,2,3\n1,x\n5,6\n")
    source = open_samples(tmp_path / "t.csv", metadata((-1, 2), "FP32"))
    found = list(source.samples)
    assert source.count == len(found) == 5
    assert [bool(one.error) for one in found] == [False, False, True, True, False]
    assert np.isnan(found[1].inputs[0][0, 0])
