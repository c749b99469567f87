"""Row 21: a model that takes more memory than the device grants, or than there is: refused with what it needs.

The agent and the release that serves live on. What the kernel's killer takes first:
`tests/agent/test_supervisor.py` (`test_a_worker_has_its_name_its_place_before_the_oom_killer_and_no_foreign_descriptors`).
"""

import re
import resource

import pytest

from agent.forkserver import ForkServer
from agent.supervisor import Supervisor, WorkerLimits, installed_preload
from edgeml.errors import BackendError
from edgeml.twin import Outcome

from .bundles import big
from .ends import one_active_model
from .points import MODEL, Life, stage

__all__ = ["stage"]
pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]
MODEL_BYTES = 200 << 20
BUDGET_BYTES = 150 << 20


def test_a_model_above_the_budget_is_refused_with_its_measured_need(stage):
    stage.bundles["5.0.0"] = stage.directory / "5.0.0.edgeml"
    big(stage.bundles["5.0.0"], "5.0.0", MODEL_BYTES)
    stage.publish("5.0.0")
    storage = stage.copy("big", "5.0.0")
    life = Life(storage.parent / "life", storage, more=f"[budget]\nmemory_bytes = {BUDGET_BYTES}\n")
    try:
        assert life.run_to(lambda: life.is_done(stage.digest("5.0.0")), "the refusal"), life.words()
        entry = life.entry()
        assert entry.outcome is Outcome.ROLLED_BACK
        said = re.search(
            r"\(([0-9.]+) MiB measured here\), [0-9.]+ MiB are left of the budget of 150.0 MiB", entry.reason
        )
        assert said is not None, entry.reason
        assert float(said[1]) > MODEL_BYTES / (1 << 20)
        # Too big today is not bad content: with more memory it may come again.
        assert stage.digest("5.0.0") not in entry.refused
        assert life.ask() == "1.0.0"
        assert "Traceback" not in life.words()
    finally:
        life.kill()
    one_active_model(storage, MODEL, {f"{MODEL}@1.0.0"})


def test_memory_that_is_not_there_ends_the_worker_or_its_answer_and_not_the_supervisor(tmp_path, stage):
    path = tmp_path / "big.edgeml"
    digest = big(path, "5.0.0", 4 << 30)
    forkserver = ForkServer(installed_preload())
    supervisor = Supervisor(forkserver)
    try:
        sound = supervisor.load(stage.bundles["1.0.0"], stage.digest("1.0.0"))
        limit = 3 << 30
        resource.prlimit(forkserver._process.pid, resource.RLIMIT_AS, (limit, limit))
        with pytest.raises(BackendError) as caught:
            supervisor.load(path, digest, WorkerLimits(load_timeout_s=30.0)).golden()
        assert caught.value.message
        assert sound.golden().passed, "the one that serves was hurt"
    finally:
        supervisor.close()
        forkserver.close()
