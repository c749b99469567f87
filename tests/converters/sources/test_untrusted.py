"""Hostile files: real ones, that really try. Each is contained, and told in one line with what to do."""

import os
import pickle
import socket
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converters.sources.load import load
from converters.sources.source_name import SourceKind, parse_source
from converters.sources.untrusted import UntrustedFile
from edgeml.child import ChildLimits
from edgeml.errors import ArtifactError, BudgetError, ConfigError
from edgeml.manifest import RuntimeFamily, ScoreKind

pytestmark = pytest.mark.torch

LIMITS = ChildLimits(timeout_s=60.0, threads=1, memory_bytes=512 << 20)
X, Y = load_breast_cancer(return_X_y=True)
X = X.astype(np.float32)


class Call:
    """Pickles as a call: whoever opens the pickle makes it."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def opened(content, limits=LIMITS, samples=X[:4]):
    if not isinstance(content, bytes):
        content = pickle.dumps(content)
    return UntrustedFile(content, "mine.pkl", SourceKind.PICKLE, limits).answers(samples, "the data")


def refused(content, error=ArtifactError, **how):
    with pytest.raises(error) as caught:
        opened(content, **how)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith("mine.pkl")
    return caught.value


@pytest.fixture(scope="module")
def fitted():
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(X, np.where(Y, "benign", "malignant"))


def test_a_pickle_that_opens_a_connection_reaches_nobody():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        error = refused(Call(socket.create_connection, server.getsockname()))
        with pytest.raises(TimeoutError):
            server.accept()
    assert error.exit_code == 3
    assert "tried to reach a network, which no model needs" in error.message


@pytest.mark.parametrize("place", ["outside.txt", "/tmp/../{tmp}/outside.txt"])
def test_a_pickle_that_writes_a_file_writes_none(tmp_path, place):
    path = tmp_path / place.format(tmp=tmp_path)
    error = refused(Call(open, str(path), "w"))
    assert error.exit_code == 3
    assert "tried to write to" in error.message
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_that_removes_a_file_removes_none(tmp_path):
    (tmp_path / "kept").touch()
    assert "tried to write to" in refused(Call(os.remove, str(tmp_path / "kept"))).message
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "content",
    [
        Call(bytearray, 1 << 40),
        Call(eval, "[bytearray(1 << 24) for _ in iter(int, 1)]"),
        Call(eval, "[__import__('mmap').mmap(-1, 1 << 26).write(bytes(1 << 26)) and m for m in [0]] * 0 or (lambda kept: [kept.append(__import__('mmap').mmap(-1, 1 << 26)) or kept[-1].write(bytes(1 << 26)) for _ in iter(int, 1)])([])"),
    ],
    ids=["at once", "bit by bit", "shared"],
)  # fmt: skip
def test_a_pickle_that_takes_memory_without_end_is_stopped(content):
    error = refused(content, BudgetError)
    assert error.exit_code == 3
    assert "takes more memory than 536870912 bytes" in error.message
    assert error.unit == "bytes"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Call(os.fork), "start a process"),
        (Call(os.system, "touch {tmp}/started"), "start a program: 'touch"),
        (Call(os.execv, "/bin/touch", ["touch", "{tmp}/started"]), "start a program: '/bin/touch'"),
        (Call(eval, "__import__('subprocess').run(['touch', '{tmp}/started'])"), "start a program: 'touch'"),
    ],
)
def test_a_pickle_that_starts_something_starts_nothing(tmp_path, content, words):
    content = pickle.dumps(content, 0).replace(b"{tmp}", str(tmp_path).encode())
    error = refused(content)
    assert error.exit_code == 3
    assert words in error.message
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_that_sleeps_for_ever_is_stopped():
    begun = time.monotonic()
    error = refused(Call(time.sleep, 1e6), limits=ChildLimits(2.0, 1, 512 << 20))
    assert time.monotonic() - begun < 20
    assert error.exit_code == 3
    assert (
        "was stopped while it was opened: the process that opened it did not finish within 2 s"
        in error.message
    )


def test_a_pickle_that_goes_around_python_does_nothing_and_is_no_model(tmp_path):
    code = f"__import__('ctypes').CDLL(None).system(b'touch {tmp_path}/started')"
    assert "holds a int, no scikit-learn estimator" in refused(Call(eval, code)).message
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_that_kills_its_process_is_told():
    code = "__import__('ctypes').string_at(0)"
    assert "died of SIGSEGV" in refused(Call(eval, code)).message


def test_an_estimator_with_a_payload_is_refused_although_its_failure_was_hidden(tmp_path, fitted):
    code = f"(lambda: exec(\"try:\\n open('{tmp_path}/x', 'w')\\nexcept OSError: pass\"))()"
    with_payload = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
    with_payload.steps[0][1].extra = Call(eval, code)
    assert "tried to write to" in refused(with_payload).message


def test_what_is_hidden_from_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKEN_OF_MINE", "secret")
    error = refused(
        Call(eval, "[1][len([n for n in __import__('os').environ if 'TOKEN' in n or n == 'HOME'])] and 1")
    )
    assert "holds a int" in error.message  # an index error would say that a variable was seen


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"garbage", "mine.pkl cannot be opened"),
        (pickle.dumps({"a": 1}), "mine.pkl holds a dict, no scikit-learn estimator"),
        (
            b"cno_such_module\nThing\n.",
            "cannot be opened: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (pickle.dumps(Call(exit, 0)), "cannot be opened: SystemExit"),
    ],
)
def test_a_pickle_without_an_estimator(content, words):
    assert words in refused(content).message


def test_results_that_are_none_are_refused(tmp_path):
    file = UntrustedFile(b"", "mine.pkl", SourceKind.PICKLE)
    promise = tmp_path / "promise.npy"
    with promise.open("wb") as target:
        np.lib.format.write_array_header_1_0(
            target, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 5)}
        )
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    short = tmp_path / "short.npy"
    np.save(short, np.zeros((3, 2), np.float32))
    link = tmp_path / "link.npy"
    link.symlink_to(short)
    for path in (promise, objects, short, link):
        with pytest.raises(ArtifactError):
            file._read_answers(path, 4)
    (tmp_path / "report.json").write_text('{"refused": "never"}')
    with pytest.raises(ArtifactError, match="left nothing readable"):
        file._read_report(tmp_path / "report.json")


def test_a_joblib_file_becomes_onnx_and_is_always_said_to_be_untrusted(tmp_path, fitted):
    joblib.dump(fitted, tmp_path / "net.joblib", compress=3)
    source = load(parse_source(str(tmp_path / "net.joblib")), X)
    assert "net.joblib is untrusted" in source.warnings[0]
    assert source.labels == ("benign", "malignant")
    assert source.scores is ScoreKind.PROBABILITIES
    assert source.can_become(RuntimeFamily.ONNX) == ""
    np.testing.assert_allclose(source.answers(X[:20], "the data"), fitted.predict_proba(X[:20]), atol=1e-6)
    np.testing.assert_allclose(source.file_answers(X, "the data"), fitted.predict_proba(X), atol=1e-5)


def test_a_machine_that_cannot_confine_opens_nothing(tmp_path, monkeypatch, fitted):
    """A processor of another kind has no filter: the process finds that it can still get out, and refuses."""
    (tmp_path / "sitecustomize.py").write_text("import platform\nplatform.machine = lambda: 'mips'\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    started = tmp_path / "started"
    with pytest.raises(ConfigError, match="this machine does not confine a process: it can still"):
        opened(Call(os.mkdir, str(started)))
    assert not started.exists()
