"""Readings from recorded /proc and /sys trees, and from this machine."""

import os
import time
from pathlib import Path

import pytest

from agent.sensors import Sensors, disk_free_bytes

TREES = Path(__file__).parent / "trees"
STATUS = "Name:\tedgeml-worker\nVmPeak:\t  269000 kB\nVmHWM:\t   62500 kB\nVmRSS:\t   54000 kB\nThreads:\t1\n"
ROLLUP = """\
55d915642000-7ffc9b975000 ---p 00000000 00:00 0                          [rollup]
Rss:               54000 kB
Pss:               27000 kB
Pss_Anon:          20000 kB
Shared_Clean:      17648 kB
Shared_Dirty:      23000 kB
Private_Clean:       352 kB
Private_Dirty:     13000 kB
"""
MEMINFO = "MemTotal:        3884340 kB\nMemFree:          210000 kB\nMemAvailable:    1800000 kB\nHugePages_Total:       0\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def recorded(tmp_path):
    write(tmp_path / "proc/42/status", STATUS)
    write(tmp_path / "proc/42/smaps_rollup", ROLLUP)
    write(tmp_path / "proc/meminfo", MEMINFO)
    return Sensors(tmp_path / "proc", tmp_path / "sys")


def test_memory_of_a_process_is_read_in_bytes(recorded):
    assert recorded.rss_bytes(42) == 54000 * 1024
    assert recorded.peak_rss_bytes(42) == 62500 * 1024
    found = recorded.memory(42)
    assert (found.rss_bytes, found.pss_bytes, found.uss_bytes) == (54000 << 10, 27000 << 10, 13352 << 10)


def test_free_memory_is_what_could_be_had_not_what_lies_idle(recorded):
    assert recorded.memory_available_bytes() == 1800000 * 1024


def test_a_process_that_is_gone_has_no_memory(recorded):
    assert recorded.rss_bytes(43) is None
    assert recorded.peak_rss_bytes(43) is None
    assert recorded.memory(43) is None


def test_a_kernel_without_these_files_gives_nothing_and_no_error(tmp_path):
    bare = Sensors(tmp_path / "none", tmp_path / "none")
    assert bare.memory_available_bytes() is None
    assert bare.cpu_temperature_c() is None


def test_a_kernel_thread_or_a_damaged_file_gives_nothing(tmp_path):
    write(tmp_path / "proc/2/status", "Name:\tkthreadd\nVmRSS:\tmany kB\n:\n")
    (tmp_path / "proc/2/smaps_rollup").write_bytes(b"\xff\xfe\0Rss: 12\n")
    sensors = Sensors(tmp_path / "proc", tmp_path / "sys")
    assert sensors.rss_bytes(2) is None
    assert sensors.memory(2) is None


def test_the_hottest_processor_zone_counts_and_other_zones_do_not(tmp_path, recorded):
    for number, (kind, temperature) in enumerate(
        [("cpu-thermal", "48312"), ("x86_pkg_temp", "51000"), ("battery", "99000"), ("soc", "-273000")]
    ):
        write(tmp_path / f"sys/class/thermal/thermal_zone{number}/type", kind + "\n")
        write(tmp_path / f"sys/class/thermal/thermal_zone{number}/temp", temperature + "\n")
    assert recorded.cpu_temperature_c() == 51.0


def test_hardware_monitors_are_read_where_there_are_no_zones(tmp_path, recorded):
    write(tmp_path / "sys/class/hwmon/hwmon0/name", "coretemp\n")
    write(tmp_path / "sys/class/hwmon/hwmon0/temp1_input", "61500\n")
    write(tmp_path / "sys/class/hwmon/hwmon1/name", "nvme\n")
    write(tmp_path / "sys/class/hwmon/hwmon1/temp1_input", "70000\n")
    assert recorded.cpu_temperature_c() == 61.5


def test_this_machine_has_memory_and_disk(tmp_path):
    sensors = Sensors()
    found = sensors.memory(os.getpid())
    assert 0 < found.uss_bytes <= found.pss_bytes <= found.rss_bytes
    assert sensors.peak_rss_bytes(os.getpid()) >= sensors.rss_bytes(os.getpid()) // 2
    assert sensors.memory_available_bytes() > 0
    assert disk_free_bytes(tmp_path) > 0
    assert disk_free_bytes(tmp_path / "none") is None


def test_a_raspberry_pis_temperature_is_read_once_from_its_two_places():
    pi = Sensors(TREES / "raspberry-pi/proc", TREES / "raspberry-pi/sys")
    assert pi.cpu_temperature_c() == 61.322
    assert pi.memory_available_bytes() == 512208 << 10
    assert pi.memory_pressure_percent() is None


def test_a_recorded_process_is_read():
    machine = Sensors(TREES / "v1-hybrid/proc", TREES / "v1-hybrid/sys")
    assert machine.rss_bytes(42) == machine.memory(42).rss_bytes
    assert machine.cpu_s(42) == 0.0
    assert machine.oom_score_adj(42) == 0
    assert machine.memory_pressure_percent() == 0.0
    assert machine.cpu_temperature_c() is None


def test_pressure_is_the_part_of_time_in_which_some_process_waited():
    assert Sensors(TREES / "container/proc").memory_pressure_percent() == 12.34


def test_a_name_with_spaces_and_parentheses_does_not_shift_the_fields(tmp_path):
    ticks = os.sysconf("SC_CLK_TCK")
    write(
        tmp_path / "7/stat",
        f"7 (a) b (c) R 1 1 1 0 -1 4194304 101 0 0 0 {3 * ticks} {2 * ticks} 0 0 20 0 1 0 12\n",
    )
    write(tmp_path / "8/stat", "8 (cut) R 1 1\n")
    assert Sensors(tmp_path).cpu_s(7) == 5.0
    assert Sensors(tmp_path).cpu_s(8) is None
    assert Sensors(tmp_path).cpu_s(9) is None


def test_this_process_uses_processor_time():
    sensors = Sensors()
    before_s = sensors.cpu_s(os.getpid())
    until_s = time.process_time() + 0.05
    while time.process_time() < until_s:
        pass
    assert sensors.cpu_s(os.getpid()) > before_s
