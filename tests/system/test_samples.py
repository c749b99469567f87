"""Sampled inputs all the way: a real agent that is asked to, a real fleet, and the file an engineer trains on."""

import json
import re

import numpy as np
import pytest

from .test_processes import House, house, wait_for

__all__ = ["House", "house"]
pytestmark = pytest.mark.processes

SAMPLING = """
[telemetry.samples]
bytes_per_day = 1000000000
rows_per_hour = 36000
confidence_max = 1.0
"""


def stored(house):
    return json.loads(house.edgeml("fleet", "samples", "ls", "--json", "--dir", house.home.directory))


def test_what_a_device_is_shown_arrives_as_it_was(house):
    house.publish("1.0.0")
    house.settings.write_text(house.settings.read_text() + SAMPLING)
    house.serve()
    agent = house.agent()
    wait_for(lambda: house.device().online, "the device to be online")
    house.start_rollout("sample@1.0.0")
    wait_for(house.ask, "an answer")
    asked = []

    def ask_and_look():
        values = [float(len(asked)), 0.5, -1.25, 3.0]
        answer = house.ask(values)
        asked.append((values, answer))
        return sum(one["uncertain"] + one["random"] for one in stored(house)) >= 6

    wait_for(ask_and_look, "samples at the fleet")
    counts = house.metrics()
    assert counts["edgeml_telemetry_rows_sent_total", "samples"] >= 6
    assert agent.stop() == 0
    [listed] = stored(house)
    assert (listed["device"], listed["release"]) == ("cam-1", "sample@1.0.0")
    out = house.directory / "samples.npz"
    house.edgeml("fleet", "samples", "export", "--dir", house.home.directory, "--out", out)
    shown = {tuple(values) for values, _ in asked} | {(1.0, 2.0, 3.0, 4.0)}
    with np.load(out) as file:
        assert set(map(tuple, file["x"].tolist())) <= shown
        assert set(file["sample_why"].tolist()) == {"uncertain", "random"}
        assert ((file["sample_confidence"] > 1 / 3) & (file["sample_confidence"] <= 1)).all()
        for row, predicted in zip(file["x"].tolist(), file["sample_predicted"].tolist(), strict=True):
            answer = next((answer for values, answer in asked if values == row), None)
            if answer is not None:
                assert predicted == int(np.argmax(answer["outputs"][0]["data"]))


def test_a_device_that_was_not_asked_sends_none(house):
    house.publish("1.0.0")
    assert not re.search("samples", house.settings.read_text())
    house.serve()
    agent = house.agent()
    wait_for(lambda: house.device().online, "the device to be online")
    house.start_rollout("sample@1.0.0")
    wait_for(house.ask, "an answer")
    for _ in range(20):
        house.ask()
    wait_for(lambda: house.stored_inferences() >= 20, "windows at the fleet")
    assert house.metrics()["edgeml_telemetry_rows_produced_total", "samples"] == 0
    assert agent.stop() == 0
    assert stored(house) == []
