"""One device, two models: what happens to one is no business of the other, and of its users even less."""

import json
import os
import re
import signal
import threading
import time
import urllib.error

import pytest

from edgeml.twin import Outcome
from fleet import overview
from fleet.rollout import FINISHED, RolloutState

from .test_processes import House, house, wait_for, worker_pids

__all__ = ["House", "house"]
pytestmark = pytest.mark.processes


class User:
    """Asks one model without a pause, from a thread of its own, and remembers every answer and every failure."""

    def __init__(self, house, model):
        self.versions = []
        self.failures = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(house, model))
        self._thread.start()

    def _ask(self, house, model):
        while not self._ends.is_set():
            try:
                self.versions.append(house.ask(model=model)["model_version"])
            except (OSError, urllib.error.URLError) as error:
                self.failures.append(str(error))
            time.sleep(0.005)

    def stop(self):
        self._ends.set()
        self._thread.join()


@pytest.fixture
def users():
    made = []
    yield lambda *of: made.append(User(*of)) or made[-1]
    for one in made:
        one.stop()


def alone(house):
    """Settings of an agent that knows no fleet."""
    path = house.settings.parent / "alone.toml"
    kept = re.findall(r"^(?:device|tenant|profile|storage) = .*$", house.settings.read_text(), re.MULTILINE)
    path.write_text("\n".join(kept) + f'\n[serve]\nlisten = "127.0.0.1:{house.port}"\n')
    return path


def flash(house, bundle):
    storage = house.settings.parent / "state"
    house.edgeml("flash", bundle, "--to", storage, "--fleet", house.home.directory)


def models(house, settings):
    found = json.loads(house.edgeml("agent", "status", "-c", settings, "--json"))["models"]
    return {one["model"]: one for one in found}


def is_out(house, model, version):
    current = models(house, house.settings)[model]["slots"].get("current")
    return current is not None and current["release"] == f"{model}@{version}"


def test_two_flashed_models_serve_side_by_side_and_one_may_die_or_change_without_the_other(house, users):
    flash(house, house.publish("1.0.0", model="digits"))
    flash(house, house.publish("1.0.0", seed=1, model="kws"))
    settings = alone(house)
    agent = house.agent(settings)
    for model in ("digits", "kws"):
        assert wait_for(lambda model=model: house.ask(model=model), model)["model_name"] == model
    wait_for(
        lambda: {one["outcome"] for one in models(house, settings).values()} == {"committed"}, "both commits"
    )
    # The worker of one dies.
    asking = {model: users(house, model) for model in ("digits", "kws")}
    pids = worker_pids(agent)
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGKILL)

    def restarts():
        said = house.metrics()
        return {model: said["edgeml_worker_restarts_total", model] for model in asking}

    wait_for(lambda: sum(restarts().values()) == 1, "another worker")
    [died] = [model for model, count in restarts().items() if count]
    [other] = {*asking} - {died}
    assert house.metrics()["edgeml_worker_crashes_total", other] == 0
    assert house.ask(model=died)["model_version"] == "1.0.0"
    asking[died].stop()
    # A new version of it comes.
    flash(house, house.publish("2.0.0", seed=2, model=died))
    wait_for(lambda: house.ask(model=died)["model_version"] == "2.0.0", "the new version")
    wait_for(lambda: is_out(house, died, "2.0.0"), "its commit")
    asking[other].stop()
    assert not asking[other].failures
    assert set(asking[other].versions) == {"1.0.0"}
    assert is_out(house, other, "1.0.0")
    # All of them come back after the power goes.
    agent.kill()
    agent.start()
    for model, version in ((other, "1.0.0"), (died, "2.0.0")):
        answer = wait_for(lambda model=model: house.ask(model=model), f"{model} after the restart")
        assert answer["model_version"] == version
    assert agent.stop() == 0


def test_rollouts_of_two_models_go_on_side_by_side(house, users):
    for version, seed in (("1.0.0", 0), ("2.0.0", 1)):
        for model in ("digits", "kws"):
            house.publish(version, seed=seed, model=model)
    house.serve()
    agent = house.agent()
    wait_for(lambda: house.device().online, "the device to be online")

    def roll_out(version):
        before = len(overview.rollouts(house.store))
        for model in ("digits", "kws"):
            house.start_rollout(f"{model}@{version}")
        for model in ("digits", "kws"):
            wait_for(lambda model=model: is_out(house, model, version), f"{model}@{version}")
        askers = [users(house, model) for model in ("digits", "kws")]
        wait_for(
            lambda: all(one.state in FINISHED for one in overview.rollouts(house.store)[: -before or None]),
            "both rollouts to end",
        )
        for one in askers:
            one.stop()
            assert not one.failures
        assert {one.state for one in overview.rollouts(house.store)} == {RolloutState.COMPLETED}

    roll_out("1.0.0")
    roll_out("2.0.0")
    assert {house.ask(model=model)["model_version"] for model in ("digits", "kws")} == {"2.0.0"}
    assert agent.stop() == 0


def test_a_hot_swap_under_load_drops_no_request(house, users):
    settings = alone(house)
    flash(house, house.publish("1.0.0", model="digits"))
    house.agent(settings)
    wait_for(lambda: house.ask(model="digits"), "an answer")
    several = [users(house, "digits") for _ in range(4)]
    for number in range(2, 5):
        flash(house, house.publish(f"{number}.0.0", seed=number, model="digits"))
        wait_for(
            lambda number=number: house.ask(model="digits")["model_version"] == f"{number}.0.0", "the next"
        )
    for one in several:
        one.stop()
        assert not one.failures, one.failures[:3]
        assert one.versions == sorted(one.versions), "an old version answered after a new one"


def test_a_release_in_the_shadow_serves_only_if_its_answers_are_those_of_the_old_one(house, users):
    house.publish("1.0.0", model="digits")
    house.publish("2.0.0", seed=7, model="digits")
    house.publish("3.0.0", model="digits")
    house.serve()
    agent = house.agent()
    wait_for(lambda: house.device().online, "the device to be online")
    house.start_rollout("digits@1.0.0")
    wait_for(lambda: house.ask(model="digits"), "an answer")
    user = users(house, "digits")
    wait_for(lambda: is_out(house, "digits", "1.0.0"), "the commit")
    wait_for(lambda: overview.rollouts(house.store)[0].state in FINISHED, "the first rollout to end")

    def shadow(release):
        options = ("--shadow", "2s", "--shadow-share", "100%", "--shadow-disagreement", "5%", "--trial", "1s")
        house.start_rollout(release, *options)

    def outcome():
        [model] = house.device().models
        return model.desired_release, model.outcome, model.reason

    shadow("digits@2.0.0")
    wait_for(lambda: outcome()[:2] == ("digits@2.0.0", Outcome.ROLLED_BACK), "a refusal")
    assert "other than those given: more than the 5% allowed" in outcome()[2]
    house.edgeml(
        "fleet", "rollout", "abort", overview.rollouts(house.store)[0].id, "--dir", house.home.directory
    )
    wait_for(lambda: overview.rollouts(house.store)[0].state in FINISHED, "the abort")
    assert set(user.versions) == {"1.0.0"}
    shadow("digits@3.0.0")
    wait_for(lambda: is_out(house, "digits", "3.0.0"), "the third")
    wait_for(lambda: outcome()[:2] == ("digits@3.0.0", Outcome.COMMITTED), "the word of it")
    assert "0 other than those given" in outcome()[2]
    user.stop()
    assert not user.failures
    assert agent.stop() == 0
