"""The settings of budgets and hours: what is taken, and what is refused with the file's name."""

import pytest

from agent.config import BlobsConfig, Over, load
from agent.schedule import DayWindow, Metered
from edgeml.errors import ConfigError

HEAD = 'device = "cam"\nprofile = "generic-x86-64"\nstorage = "state"\n'


def read(tmp_path, text):
    path = tmp_path / "agent.toml"
    path.write_text(HEAD + text)
    return load(path)


def test_budgets_and_hours_are_read(tmp_path):
    config = read(
        tmp_path,
        "[budget]\nmemory_bytes = 1000\ncpu_cores = 0.5\nnetwork_bytes_per_day = 500000\ntemperature_c = 80\n"
        '[update]\ndownload_window = "01:00-05:00"\nmetered = "never"\nmetered_file = "run/metered"\n',
    )
    assert (config.budget.memory_bytes, config.budget.cpu_cores, config.budget.temperature_c) == (
        1000,
        0.5,
        80.0,
    )
    assert config.update.policy.download_window == DayWindow(60, 300)
    assert config.update.policy.apply_window is None
    assert config.update.policy.metered is Metered.NEVER
    assert config.update.metered_file == str(tmp_path / "run/metered")


def test_a_fleet_is_reached_over_http_unless_the_settings_say_otherwise(tmp_path):
    assert read(tmp_path, '[blobs]\nurl = "http://x"\n').blobs.over is Over.HTTP
    assert read(tmp_path, '[blobs]\nover = "mqtt"\n').blobs == BlobsConfig("", Over.MQTT)


def test_without_settings_nothing_is_limited_but_the_store(tmp_path):
    budget = read(tmp_path, "").budget
    assert (budget.memory_bytes, budget.cpu_cores, budget.network_bytes_per_day, budget.temperature_c) == (
        None,
    ) * 4
    assert budget.storage_bytes == 2 << 30


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[budget]\nmemory_bytes = 0\n", "budget.memory_bytes must be positive"),
        ("[budget]\ncpu_cores = -1.0\n", "budget.cpu_cores must be positive"),
        ("[budget]\ntemperature_c = nan\n", "budget.temperature_c must be positive"),
        ("[budget]\nnetwork_bytes_per_day = 65535\n", "network_bytes_per_day must be at least 65536"),
        ('[update]\napply_window = "night"\n', "is no part of a day"),
        ('[update]\nmetered = "sometimes"\n', "Invalid enum value"),
        ("[budget]\nmemory = 5\n", "unknown field"),
        ('[blobs]\nurl = "http://x"\nover = "pigeon"\n', "Invalid enum value"),
        ('[blobs]\nover = "http-then-mqtt"\n', "has no url"),
        ('[blobs]\nurl = "/srv/fleet"\nover = "http-then-mqtt"\n', "blobs.url is '/srv/fleet'"),
        ("[blobs]\n", "has no url"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_files_name(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words) as caught:
        read(tmp_path, text)
    assert "agent.toml" in caught.value.message
