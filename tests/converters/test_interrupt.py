"""Ctrl-C at any moment: exit code 130, no half-written file, no temporary directory, no child left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeml.bundle import Bundle

pytestmark = [pytest.mark.torch, pytest.mark.processes]

INTERRUPTED = 130


def start(linear, tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    return subprocess.Popen(
        [
            sys.executable, "-m", "edgeml", "convert", f"{linear}/net.py:model", "--data", str(linear / "data.npz"), "--profile",
            "raspberry-pi-4", "--name", "net", "--version", "1.0.0", "--max-drop", "2%", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"),
        ],
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[2])}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def probes_of(tmp_path):
    """Command lines of processes that work in our temporary directory."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if str(tmp_path).encode() in line and b"edgeml.probe" in line:
            lines.append(line)
    return lines


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


@pytest.mark.parametrize("moment", ["loading", "verifying", "bundle"])
def test_an_interrupted_conversion_leaves_nothing_half_done(linear, tmp_path, moment):
    process = start(linear, tmp_path)
    try:
        conditions = {
            "loading": lambda: b"torch" in Path(f"/proc/{process.pid}/maps").read_bytes(),
            "verifying": lambda: probes_of(tmp_path),
            "bundle": (tmp_path / "out").exists,
        }
        wait_for(conditions[moment], process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in said
    assert probes_of(tmp_path) == []
    left = [path for path in (tmp_path / "tmp").iterdir() if path.name.startswith("edgeml-")]
    assert left == []
    written = list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else []
    if process.returncode == INTERRUPTED:
        assert said.strip().endswith("interrupted")
    else:  # it was done before the signal came
        assert (process.returncode, moment) in {(0, "bundle"), (-signal.SIGINT, "bundle")}
    for path in written:
        assert not path.name.startswith(".")
        if path.suffix == ".html":
            assert path.read_text().endswith("</html>\n")
            continue
        with Bundle(path) as one:
            one.verify()
