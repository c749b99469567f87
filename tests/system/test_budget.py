"""Budgets on a real agent: what does not fit is refused with numbers, what takes too much is killed, what may not be
fetched now waits.
"""

import contextlib
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.allowance import DAY_MS, Spent
from agent.config import load
from edgeml.client import Client
from edgeml.errors import BackendError
from edgeml.twin import Outcome

from .test_processes import House, house, wait_for, worker_pids
from .test_several_models import alone, flash, models

__all__ = ["House", "house"]
pytestmark = pytest.mark.processes
MIB = 1 << 20


def reason(house, settings, model):
    found = models(house, settings).get(model)
    return "" if found is None else found["reason"]


def with_budget(settings, **limits):
    """Write `limits` into the settings as the budget."""
    before = settings.read_text().partition("\n[budget]")[0]
    settings.write_text(
        before + "\n[budget]\n" + "".join(f"{name} = {value}\n" for name, value in limits.items())
    )


def test_a_model_beyond_the_budget_is_refused_with_numbers_and_the_other_answers_on(house):
    settings = alone(house)
    flash(house, house.publish("1.0.0", model="digits"))
    agent = house.agent(settings)
    wait_for(lambda: house.ask(model="digits"), "an answer")
    wait_for(lambda: models(house, settings)["digits"].get("outcome") == "committed", "the commit")
    # What one model takes, with what all share; a second one would need about as much again.
    said = wait_for(lambda: (said := house.metrics())["edgeml_memory_used_bytes",] and said, "a reading")
    used, granted = said["edgeml_memory_used_bytes",], said["edgeml_memory_granted_bytes", "digits"]
    assert 0 < granted < used
    assert agent.stop() == 0
    with_budget(settings, memory_bytes=int(used + granted / 4))
    agent.start()
    wait_for(lambda: house.ask(model="digits"), "an answer within the budget")
    flash(house, house.publish("1.0.0", seed=1, model="kws"))
    wait_for(lambda: "of the budget of" in reason(house, settings, "kws"), "the refusal")
    assert "kws needs" in reason(house, settings, "kws")
    assert house.metrics()["edgeml_admissions_refused_total",] == 1
    assert house.ask(model="digits")["model_version"] == "1.0.0"
    assert "kws" not in {key[1] for key in house.metrics() if key[0] == "edgeml_worker_memory_bytes"}
    status = house.edgeml("agent", "status", "-c", settings)
    assert "budget    " in status
    assert "watched" in status or "kernel" in status
    assert agent.stop() == 0


def test_a_worker_that_takes_more_than_the_budget_is_killed_and_the_model_answers_again(house):
    settings = alone(house)
    flash(house, house.publish("1.0.0", model="digits"))
    flash(house, house.publish("1.0.0", seed=1, model="kws"))
    agent = house.agent(settings)
    for model in ("digits", "kws"):
        wait_for(lambda model=model: house.ask(model=model), f"an answer of {model}")
        wait_for(
            lambda model=model: models(house, settings)[model].get("outcome") == "committed", "the commit"
        )
    used = wait_for(lambda: house.metrics()["edgeml_memory_used_bytes",], "a reading")
    assert agent.stop() == 0
    with_budget(settings, memory_bytes=int(used + 15 * MIB))
    agent.start()
    for model in ("digits", "kws"):
        wait_for(lambda model=model: house.ask(model=model), f"an answer of {model}")
    before = set(worker_pids(agent))
    # A request of 28 MiB: the worker keeps what it needed for it.
    many = np.zeros((28 * MIB // 16, 4), np.float32)
    with Client(f"http://127.0.0.1:{house.port}") as client, contextlib.suppress(BackendError):
        # It may be killed before it has answered.
        client.infer("digits", {"x": many})
    wait_for(
        lambda: house.metrics().get(("edgeml_budget_decisions_total", "digits", "restart", "memory")),
        "the worker to be killed",
    )
    wait_for(lambda: house.ask(model="digits"), "an answer of the next worker")
    after = set(worker_pids(agent))
    assert len(after & before) == 1, "the other model's worker is the one it was"
    assert len(after) == 2
    crashes = {model: house.metrics()["edgeml_worker_crashes_total", model] for model in ("digits", "kws")}
    assert crashes == {"digits": 1, "kws": 0}
    assert "digits its worker was killed" in house.words()
    assert agent.stop() == 0


def test_fetches_wait_for_their_hour_and_for_tomorrow_without_failing(house):
    house.publish("1.0.0")
    house.serve()
    text = house.settings.read_text()
    hour = (time.localtime().tm_hour + 2) % 24
    house.settings.write_text(f'{text}\n[update]\ndownload_window = "{hour:02}:00-{(hour + 1) % 24:02}:00"\n')
    agent = house.agent()
    wait_for(lambda: house.device().online, "the device to be online")
    house.start_rollout("sample@1.0.0")
    wait_for(
        lambda: f"the download window opens at {hour:02}:00" in reason(house, house.settings, "sample"),
        "the wait",
    )
    assert agent.stop() == 0
    # The hour is right, and the day's budget is just enough for the link.
    house.settings.write_text(text)
    with_budget(house.settings, network_bytes_per_day=65536)
    agent.start()
    wait_for(
        lambda: "budget of today is used up" in reason(house, house.settings, "sample"), "the end of the day"
    )
    wait_for(lambda: house.metrics()["edgeml_network_today_bytes",] >= 3000, "the count")
    spent = house.metrics()["edgeml_network_today_bytes",]
    # A restart gives no new day.
    agent.kill()
    agent.start()
    wait_for(lambda: house.metrics()["edgeml_network_today_bytes",] >= spent, "the count after the restart")
    assert models(house, house.settings)["sample"]["state"] == "fetching"
    assert agent.stop() == 0
    house.settings.write_text(text)
    agent.start()
    assert wait_for(house.ask, "an answer")["model_version"] == "1.0.0"
    wait_for(
        lambda: models(house, house.settings)["sample"]["outcome"] == Outcome.COMMITTED.value, "the commit"
    )
    assert agent.stop() == 0


def test_rows_that_the_days_budget_does_not_allow_wait_while_state_and_the_model_go_on(house):
    house.serve()
    # Within the reserve, a broker that is not there yet is not tried again for half an hour.
    wait_for(lambda: "ready" in house.words(), "the fleet to serve")
    with_budget(house.settings, network_bytes_per_day=262_144)
    # Of a day that is not over while this test runs, the reserve is left.
    spent = Spent(time.time_ns() // 1_000_000 // DAY_MS + 1, 200_000)
    (storage := Path(load(house.settings).storage)).mkdir(parents=True, exist_ok=True)
    (storage / "traffic.json").write_bytes(msgspec.json.encode(spent))
    agent = house.agent()
    wait_for(lambda: house.device().online, "the device to be online")
    flash(house, house.publish("1.0.0", model="digits"))
    wait_for(lambda: house.ask(model="digits"), "an answer")
    held_back = "edgeml_telemetry_rows_held_back", "events"
    wait_for(lambda: house.metrics().get(held_back, 0) > 0, "rows that wait")
    wait_for(
        lambda: "rows of telemetry wait for it" in house.edgeml("agent", "status", "-c", house.settings),
        "the status to say so",
    )
    found = house.metrics()
    assert found["edgeml_telemetry_rows_sent_total", "events"] == 0
    assert 200_000 < found["edgeml_network_today_bytes",] <= found["edgeml_network_budget_bytes",] == 262_144
    assert agent.stop() == 0


def test_models_that_use_too_much_processor_time_are_slowed_down_and_still_answer(house):
    settings = alone(house)
    flash(house, house.publish("1.0.0", model="digits"))
    with_budget(settings, cpu_cores=0.02)
    house.agent(settings)
    wait_for(lambda: house.ask(model="digits"), "an answer")
    many = np.zeros((1 << 16, 4), np.float32)

    def slowed():
        with Client(f"http://127.0.0.1:{house.port}") as client:
            for _ in range(20):
                client.infer("digits", {"x": many})
        return any(
            key[:3] == ("edgeml_budget_decisions_total", "digits", "throttle") for key in house.metrics()
        )

    wait_for(slowed, "a decision")
    assert house.metrics()["edgeml_budget_level", "throttle"] == 1
    assert "digits: throttle" in house.edgeml("agent", "status", "-c", settings)
    assert house.ask(model="digits")["model_version"] == "1.0.0"
