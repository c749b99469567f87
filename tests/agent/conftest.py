"""A real bundle and a supervisor with its forkserver, shared by the tests of this room."""

import numpy as np
import pytest

from agent.forkserver import ForkServer
from agent.ipc import TensorBytes
from agent.supervisor import Supervisor, WorkerLimits, installed_preload
from edgeml.tensors import DType
from edgeml.testing import sample_bundle

LIMITS = WorkerLimits(load_timeout_s=20.0, request_timeout_s=2.0)


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """(path, digest) of a linear classifier: x float32 [-1, 4] to logits [-1, 3], labels a, b, c."""
    path = tmp_path_factory.mktemp("bundles") / "sample.edgeml"
    return path, sample_bundle(path)


@pytest.fixture(scope="session")
def forkserver():
    made = ForkServer(installed_preload())
    yield made
    made.close()


@pytest.fixture
def supervisor(forkserver):
    made = Supervisor(forkserver)
    made.start()
    yield made
    made.close()


@pytest.fixture
def worker(supervisor, sample):
    return supervisor.load(*sample, LIMITS)


@pytest.fixture
def limits():
    return LIMITS


@pytest.fixture
def ask():
    """Make a request of `rows` samples, all of the same value."""

    def make(value=1.0, rows=1):
        return (TensorBytes(DType.FLOAT32, (rows, 4), np.full((rows, 4), value, np.float32).tobytes()),)

    return make
