"""`edgeml fleet samples`: what is listed, and the file for whoever labels."""

import zlib

import numpy as np
import pytest

from edgeml.errors import ConfigError
from edgeml.telemetry import Batch, Sample, SampledTensor, Stream, Why
from edgeml.tensors import DType
from fleet import telemetry_store
from fleet.config import FleetHome
from fleet.ingest import RowsHeard

from .test_cli import Shell


@pytest.fixture
def shell(tmp_path):
    made = Shell(FleetHome(tmp_path / "fleet"))
    made.run("keys", "init")
    return made


def test_samples_are_listed_and_exported(shell, tmp_path):

    assert "no samples are stored" in shell.run("samples", "ls").stdout
    with pytest.raises(ConfigError, match="no such samples"):
        shell.run("samples", "export", "--out", tmp_path / "samples.npz")
    image = SampledTensor("x", DType.UINT8, (1, 2), zlib.compress(b"\x01\x02"))
    rows = tuple(
        Sample(seq, "digits@1.0.0", "a" * 64, f"r{seq}", (image,), 5, Why.UNCERTAIN, 1, 0.5)
        for seq in (1, 2, 3)
    )
    store = shell.store()
    with store.write() as connection:
        heard = RowsHeard("cam-1", Stream.SAMPLES, Batch("b1", samples=rows))
        telemetry_store.store_rows(connection, [heard], 1_800_000_000_000)
    store.close()
    [listed] = shell.json("samples", "ls")
    assert (listed["device"], listed["release"], listed["uncertain"], listed["random"]) == (
        "cam-1", "digits@1.0.0", 3, 0,
    )  # fmt: skip
    assert "cam-1" in shell.run("samples", "ls", "--model", "digits", "--since", "99999d").stdout
    out = tmp_path / "samples.npz"
    done = shell.run("samples", "export", "--device", "cam-1", "--limit", "2", "--out", out).stdout
    assert done == f"2 samples are in {out}: x uint8 [2, 2]\n"
    with np.load(out) as file:
        assert file["sample_request"].tolist() == ["r3", "r2"]
    assert shell.json("samples", "export", "--out", out)["samples"] == 3
