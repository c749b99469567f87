"""The installer with real bundles and real workers: what is loaded, what serves, and what the shadow says."""

import os
import signal

import pytest

from agent.admission import Peak, PeakSource
from agent.answering import Answering
from agent.config import AgentConfig, BudgetConfig, UpdateConfig
from agent.installer import DeviceInstaller, Tools
from agent.ledger import Ledger
from agent.peaks import Peaks
from agent.roster import Roster
from agent.sensors import Sensors
from agent.serving import NoModelError
from agent.slots import SlotTable
from agent.substitution import Substitution
from agent.timetable import Timetable
from agent.traffic import Traffic
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
        self.ledger = Ledger(
            budget.memory_bytes, Peaks(self.directory), Sensors(), self.supervisor.shared_bytes
        )
        tools = Tools(
            self.supervisor, self.roster, self.table, SystemClock(), self.answering.retire, self.answering.expect,
            self.answering.shadow, self.answering.totals, frozenset, self.ledger,
            Timetable(UpdateConfig(), SystemClock()), Traffic(self.directory, None, SystemClock()),
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
    house.installer._shadows[A].worker.wait(60)
    assert house.answering.infer("a", ask(), "r").manifest.version == "1.0.0"
    with pytest.raises(BackendError, match="died in the shadow"):
        house.installer.compare(new, 1.0)


def test_a_variant_that_does_not_fit_is_refused_with_the_numbers_before_it_is_loaded(house, supervisor):
    house.commit(house.put(A, "1.0.0"))
    house.installer = house.make(BudgetConfig(memory_bytes=1 << 20))
    new = house.put(A, "2.0.0", seed=1)
    with pytest.raises(BudgetError, match=r"a needs .* are left of the budget of 1\.0 MiB") as caught:
        house.installer.activate(new)
    assert caught.value.observed > caught.value.budget == 0
    assert house.serving(A) == "1.0.0"
    assert {one.digest for one in supervisor._workers if one.alive} == {house.roster.workers[A].digest}


def test_what_the_trial_measured_is_refused_and_remembered(house, supervisor):
    shared = supervisor.shared_bytes()
    peak = house.ledger.peak
    house.installer = house.make(BudgetConfig(memory_bytes=shared + (2 << 20)))
    house.ledger.peak = lambda *_: Peak(1 << 20, PeakSource.TRIAL)
    new = house.put(A, "2.0.0", seed=1)
    with pytest.raises(BudgetError, match=r"measured here.* are left of the budget"):
        house.installer.activate(new)
    assert house.serving(A) is None
    house.ledger.peak = peak
    assert 2 << 20 < Peaks(house.directory).get(new.digest) < shared


def test_both_variants_run_side_by_side_if_they_fit_and_grants_follow_them(house, supervisor):
    house.commit(house.put(A, "1.0.0"))
    new = house.put(A, "2.0.0", seed=1)
    alone = house.ledger.granted_bytes(A)
    assert 0 < alone < 200 << 20
    house.installer.shadow(new, 1.0)
    assert house.ledger.granted_bytes(A) == pytest.approx(2 * alone, rel=0.2)
    house.installer.activate(new)
    assert house.ledger.granted_bytes(A) == pytest.approx(alone, rel=0.2)
    house.installer.restore(A, new.digest)
    assert house.serving(A) == "1.0.0"


def test_a_variant_that_fits_only_without_the_old_one_takes_its_place(house, supervisor, ask):
    house.commit(house.put(A, "1.0.0"))
    need = house.ledger.granted_bytes(A)
    house.installer = house.make(BudgetConfig(memory_bytes=supervisor.shared_bytes() + need + need // 2))
    house.ledger.grant(A, need)
    new = house.put(A, "2.0.0", seed=1)
    old = house.roster.workers[A]
    seen = []
    load = supervisor.load
    supervisor.load = lambda *of: seen.append(old.alive) or load(*of)
    with pytest.raises(BudgetError, match="fits only without the variant that serves"):
        house.installer.shadow(new, 1.0)
    house.installer.activate(new)
    assert seen == [False]
    assert house.answering.infer("a", ask(), "r").manifest.release == "a@2.0.0"


def test_what_was_committed_is_served_although_it_does_not_fit_any_more(house):
    house.commit(house.put(A, "1.0.0"))
    house.roster.close()
    house.installer = house.make(BudgetConfig(memory_bytes=1 << 20))
    assert house.installer.restore(A, None).release == "a@1.0.0"
    assert house.ledger.granted_bytes(A) > 1 << 20


def test_a_smaller_variant_of_the_same_release_stands_in_and_gives_the_place_back(house, ask):
    small = house.put(A, "1.0.0", seed=2)
    house.commit(small)
    large = house.put(A, "1.0.0", seed=1)
    house.commit(large)
    substitution = Substitution(house.table, house.ledger)
    house.ledger._peaks.keep(large.digest, 90 << 20)
    house.ledger._peaks.keep(small.digest, 60 << 20)
    assert substitution.smaller(A) == small
    house.installer.substitute(A, small)
    assert house.answering.infer("a", ask(), "r").digest == small.digest
    assert house.table.slots(A).current == large
    house.installer.substitute(A, large)
    assert house.answering.infer("a", ask(), "r").digest == large.digest


def test_another_release_or_a_larger_variant_never_stands_in(house):
    first = house.put(A, "1.0.0", seed=1)
    house.commit(first)
    second = house.put(A, "2.0.0", seed=2)
    house.commit(second)
    substitution = Substitution(house.table, house.ledger)
    house.ledger._peaks.keep(first.digest, 10 << 20)
    assert substitution.smaller(A) is None
    larger = house.put(A, "2.0.0", seed=3)
    house.commit(larger)
    house.ledger._peaks.keep(second.digest, 60 << 20)
    house.ledger._peaks.keep(larger.digest, 90 << 20)
    assert substitution.smaller(A) == second
    house.installer.commit(second)
    assert substitution.smaller(A) is None


def test_one_that_cannot_be_loaded_does_not_stand_in(house, ask, caplog):
    house.commit(house.put(A, "1.0.0"))
    gone = house.put(A, "1.0.0", seed=2)
    house.table.path(gone.digest).unlink()
    house.installer.substitute(A, gone)
    assert "cannot stand in" in caplog.text
    assert house.answering.infer("a", ask(), "r").manifest.release == "a@1.0.0"


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
