"""The installer with real bundles and real workers: what is loaded, what serves, and what the shadow says."""

import os
import signal

import pytest

from agent.answering import Answering
from agent.config import AgentConfig, BudgetConfig
from agent.installer import DeviceInstaller, Tools
from agent.roster import Roster
from agent.serving import NoModelError
from agent.slots import SlotTable
from agent.windows import ReleaseKey, Windows
from edgeml.clock import SystemClock
from edgeml.errors import BackendError, BudgetError, IncompatibleError, StateError
from edgeml.ids import ModelName, ReleaseId
from edgeml.testing import sample_bundle
from edgeml.twin import Slot

pytestmark = pytest.mark.processes
A, B = ModelName("a"), ModelName("b")


class House:
    """A device's installer and its endpoint's view, without network."""

    def __init__(self, supervisor, directory):
        self.directory = directory
        self.table = SlotTable(directory)
        self.table.store.mkdir(parents=True)
        self.roster = Roster(supervisor)
        self.answering = Answering(self.roster, Windows(60.0), SystemClock())
        self.supervisor = supervisor
        self.installer = self.make(BudgetConfig())

    def make(self, budget):
        tools = Tools(
            self.supervisor, self.roster, self.table, SystemClock(), self.answering.retire, self.answering.expect,
            self.answering.shadow, self.answering.totals, frozenset,
        )  # fmt: skip
        config = AgentConfig(
            device="cam", profile="generic-x86-64", storage=str(self.directory), budget=budget
        )
        return DeviceInstaller(config, tools)

    def put(self, model, version, seed=0):
        """Put a bundle into the store, as a fetch would."""
        path = self.directory / "new.edgeml"
        digest = sample_bundle(path, version, seed=seed, model=model)
        path.rename(self.table.path(digest))
        return Slot(ReleaseId(f"{model}@{version}"), digest, "t", 1)

    def commit(self, slot):
        self.installer.activate(slot)
        self.installer.observe(slot)
        self.installer.commit(slot)

    def serving(self, model):
        worker = self.roster.workers.get(model)
        return None if worker is None else worker.manifest.version

    def counted(self):
        """Inferences in the windows that are open, by release; what workers counted must be the same."""
        windows = {one.release: one for one in self.answering.close(0)}
        return {
            release: (one.counters.inferences, one.sketch.rows if one.sketch else 0)
            for release, one in windows.items()
        }

    def close(self):
        self.installer.close()
        self.roster.close()


@pytest.fixture
def house(supervisor, tmp_path):
    made = House(supervisor, tmp_path)
    yield made
    made.close()


def test_models_are_installed_and_taken_back_apart(house, ask):
    for model in (A, B):
        for version in ("1.0.0", "2.0.0"):
            house.commit(house.put(model, version, seed=int(version[0])))
    assert house.installer.restore(A, house.table.slots(A).current.digest).release == "a@1.0.0"
    assert (house.serving(A), house.serving(B)) == ("1.0.0", "2.0.0")
    assert house.answering.infer("a", ask(), "r").manifest.release == "a@1.0.0"
    with pytest.raises(NoModelError, match="no model c serves"):
        house.answering.infer("c", ask(), "r")


def test_a_commit_leaves_the_bundles_of_other_models_in_the_store(house):
    first = house.put(A, "1.0.0")
    house.commit(first)
    for number in range(1, 4):
        house.commit(house.put(B, f"{number}.0.0", seed=number))
    assert house.table.path(first.digest).exists()
    assert len(list(house.table.store.iterdir())) == 1 + 3


def test_a_bundle_that_says_it_is_another_release_is_not_loaded(house):
    slot = house.put(A, "1.0.0")
    with pytest.raises(IncompatibleError, match=r"says that it is a@1\.0\.0"):
        house.installer.activate(Slot(ReleaseId("a@9.0.0"), slot.digest, "t", 1))
    assert house.serving(A) is None


def test_the_same_answers_in_the_shadow_then_it_serves_and_what_it_saw_unseen_is_not_counted(house, ask):
    house.commit(house.put(A, "1.0.0"))
    new = house.put(A, "2.0.0")
    house.installer.shadow(new, 1.0)
    shadow = house.installer._shadows[A]
    for _ in range(5):
        assert house.answering.infer("a", ask(), "r").manifest.version == "1.0.0"
        while shadow._busy:
            pass
    said = house.installer.compare(new, 0.0)
    assert said == "in the shadow 5 answers, 0 other than those given"
    house.commit(new)
    assert house.serving(A) == "2.0.0"
    for _ in range(3):
        house.answering.infer("a", ask(), "r")
    assert house.counted() == {"a@1.0.0": (5, 5), "a@2.0.0": (3, 3)}


def test_other_answers_than_allowed_are_refused_and_the_old_one_goes_on(house, ask):
    house.commit(house.put(A, "1.0.0"))
    new = house.put(A, "2.0.0", seed=7)
    house.installer.shadow(new, 1.0)
    shadow = house.installer._shadows[A]
    for value in (-3.0, -1.0, 0.5, 1.0, 2.0):
        house.answering.infer("a", ask(value), "r")
        while shadow._busy:
            pass
    assert shadow.counts.disagreed > 0
    with pytest.raises(BudgetError, match="other than those given: more than the 0%"):
        house.installer.compare(new, 0.0)
    assert "5 answers" in house.installer.compare(new, 1.0), "with 1 it only reports"
    assert house.installer.restore(A, new.digest).release == "a@1.0.0"
    assert not shadow.worker.alive
    assert house.answering.infer("a", ask(), "r").manifest.version == "1.0.0"
    assert shadow.counts.compared == 5


def test_nothing_asked_is_nothing_to_compare_and_a_death_in_the_shadow_is_refused(house, ask):
    house.commit(house.put(A, "1.0.0"))
    new = house.put(A, "2.0.0")
    with pytest.raises(StateError, match="not in the shadow"):
        house.installer.compare(new, 1.0)
    house.installer.shadow(new, 1.0)
    with pytest.raises(StateError, match="asked nothing"):
        house.installer.compare(new, 1.0)
    os.kill(house.installer._shadows[A].worker.pid, signal.SIGKILL)
    house.installer._shadows[A].worker.wait(10)
    assert house.answering.infer("a", ask(), "r").manifest.version == "1.0.0"
    with pytest.raises(BackendError, match="died in the shadow"):
        house.installer.compare(new, 1.0)


def test_a_variant_above_the_memory_budget_is_refused_with_both_numbers(house):
    house.commit(house.put(A, "1.0.0"))
    house.installer = house.make(BudgetConfig(memory_bytes=1 << 20))
    with pytest.raises(BudgetError, match="peak memory") as caught:
        house.installer.activate(house.put(A, "2.0.0", seed=1))
    assert caught.value.observed > caught.value.budget == 1 << 20
    assert house.serving(A) == "1.0.0"


def test_requests_that_get_no_answer_on_trial_are_its_end(house, ask):
    house.commit(house.put(A, "1.0.0"))
    new = house.put(A, "2.0.0", seed=1)
    house.installer.activate(new)
    for _ in range(20):
        house.answering.infer("a", ask(), "r")
    house.installer.observe(new)
    key = ReleaseKey(new.release, new.digest)
    for _ in range(3):
        house.answering._windows.failed(key)
    with pytest.raises(BackendError, match="3 of 23 requests on trial got no answer"):
        house.installer.observe(new)
    # What happened on an earlier trial is not held against the next one.
    house.installer.restore(A, new.digest)
    house.installer.activate(house.put(A, "2.0.0", seed=1))
    house.installer.observe(new)
