"""The profile of the machine itself, from what kernels say; and profiles written as TOML."""

import dataclasses
import math

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgeml import host_profile, profile, profiles_command
from edgeml.errors import ConfigError
from edgeml.machine_facts import (
    Condition,
    KernelTexts,
    Throttling,
    facts_of,
    read_condition,
    read_facts,
    throttling,
)
from edgeml.profile import Architecture, DeviceRuntime, Origin, Quantity
from edgeml.profile_text import encode

SERVER = KernelTexts(
    machine="x86_64",
    cpuinfo="".join(
        f"processor\t: {i}\nmodel name\t: Some Xeon at 2.10GHz\ncpu MHz\t\t: {1200 + i}.500\n"
        "flags\t\t: fpu sse4_2 avx avx2 fma f16c avx512f avx512vl avx512_vnni md_clear\n\n"
        for i in range(4)
    ),
    meminfo="MemTotal:       16000000 kB\nMemFree:         1000000 kB\n",
    clock_max_khz="2100000\n",
)
LAPTOP = dataclasses.replace(
    SERVER, cpuinfo=SERVER.cpuinfo.replace(" avx512f avx512vl avx512_vnni", " avx_vnni"), clock_max_khz=""
)
PI_4 = KernelTexts(
    machine="aarch64",
    cpuinfo="".join(
        f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU part\t: 0xd08\n\n"
        for i in range(4)
    )
    + "Serial\t\t: 10000000deadbeef\nModel\t\t: a board\n",
    meminfo="MemTotal:        1900000 kB\n",
    model="Some Board 4 Rev 1.4\0",
    clock_max_khz="1500000",
)
PI_5 = dataclasses.replace(PI_4, cpuinfo=PI_4.cpuinfo.replace("asimd ", "asimd asimdhp asimddp "))
OLD = KernelTexts(
    machine="armv7l",
    cpuinfo="processor\t: 0\nmodel name\t: ARMv7 Processor rev 4 (v7l)\nFeatures\t: half thumb neon vfpv4\n\nHardware\t: SoC\n",
    meminfo="MemTotal:         250000 kB\n",
)
DISK = (32_000_000_000, 20_000_000_000)


def of(texts, disk=DISK, runtimes=("onnxruntime",)):
    facts = facts_of(texts)
    return host_profile.host_profile(facts, disk, runtimes, profile.load(host_profile.nearest(facts)))


@pytest.mark.parametrize(
    ("texts", "architecture", "extensions", "block", "cores", "clock", "processor"),
    [
        (SERVER, Architecture.X86_64, ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512vl", "avx512_vnni"), 16, 4, 2100, "Some Xeon at 2.10GHz"),
        (LAPTOP, Architecture.X86_64, ("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni"), 8, 4, 1203.5, "Some Xeon at 2.10GHz"),
        (PI_4, Architecture.AARCH64, ("asimd",), 8, 4, 1500, "Some Board 4 Rev 1.4"),
        (PI_5, Architecture.AARCH64, ("asimd", "asimdhp", "asimddp"), 8, 4, 1500, "Some Board 4 Rev 1.4"),
        (OLD, Architecture.ARMV7, ("neon", "vfpv4"), 8, 1, 1000, "ARMv7 Processor rev 4 (v7l)"),
    ],
    ids=["server", "laptop", "pi 4", "pi 5", "old"],
)  # fmt: skip
def test_kernels_say_what_a_machine_is(texts, architecture, extensions, block, cores, clock, processor):
    made = of(texts)
    assert (made.name, made.architecture, made.extensions) == ("host", architecture, extensions)
    assert (made.channel_block.value, made.cores.value, made.clock.value) == (block, cores, clock)
    assert made.processor == processor
    assert "deadbeef" not in repr(made)
    assert made.clock.origin is (Origin.ESTIMATED if clock == 1000 else Origin.MEASURED)
    assert 0 < made.model_memory.value < made.memory.value
    assert profile.decode(encode(made), "host") == made


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (SERVER, "generic-x86-64"),
        (PI_4, "raspberry-pi-4"),
        (PI_5, "raspberry-pi-5"),
        (OLD, "raspberry-pi-zero-2w"),
    ],
)
def test_what_no_kernel_tells_is_that_of_the_nearest_class(texts, name):
    like = profile.load(name)
    assert host_profile.nearest(facts_of(texts)) == name
    made = of(texts)
    for field in msgspec.structs.fields(profile.HardwareProfile):
        if field.default is None:
            assert getattr(made, field.name) == getattr(like, field.name)


def test_memory_disk_and_runtimes_are_its_own():
    made = of(PI_4, runtimes=("tflite-runtime", "torch", "numpy"))
    assert made.memory.value == 1_900_000 * 1024
    assert made.model_memory.value == 890_000_000
    assert (made.storage.value, made.model_storage.value) == (32_000_000_000, 2_500_000_000)
    assert made.runtimes == (DeviceRuntime.TFLITE_RUNTIME, DeviceRuntime.TORCH)


def test_a_tiny_or_silent_machine_still_makes_a_valid_profile():
    small = dataclasses.replace(OLD, meminfo="MemTotal: 60000 kB\n", cpuinfo="")
    made = of(small, disk=(0, 0), runtimes=())
    assert profile.decode(encode(made), "host") == made


@pytest.mark.parametrize(
    "texts", [dataclasses.replace(PI_4, machine="riscv64"), dataclasses.replace(PI_4, meminfo="")]
)
def test_what_no_profile_can_be_made_of_is_said(texts):
    with pytest.raises(ConfigError, match="no profile can be made") as caught:
        of(texts)
    assert "generic-x86-64" in caught.value.hint


def test_this_machine_has_a_profile_that_can_be_shown_and_kept(tmp_path):
    mine = profile.load("host")
    assert mine.cores.value >= 1
    shown = CliRunner().invoke(profiles_command.profiles, ["show", "host", "--toml"])
    kept = tmp_path / "mine.toml"
    kept.write_text(shown.stdout)
    assert profile.load(str(kept)).extensions == mine.extensions
    assert "memory" in CliRunner().invoke(profiles_command.profiles, ["show", "host"]).stdout


@pytest.mark.parametrize("name", profile.names())
def test_a_shipped_profile_written_is_the_same(name):
    loaded = profile.load(name)
    assert profile.decode(encode(loaded), name) == loaded


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    st.floats(min_value=1e-9, max_value=1e18, allow_nan=False),
)
def test_any_text_and_number_survives_being_written(text, value):
    odd = msgspec.structs.replace(
        profile.load("stm32h7"), title=text, clock=Quantity(value, "MHz", Origin.MEASURED, text)
    )
    again = profile.decode(encode(odd), "odd")
    assert again == odd
    assert math.isclose(again.clock.value, value)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_recorded_tree_is_read(tmp_path):
    write(tmp_path / "proc/cpuinfo", PI_4.cpuinfo)
    write(tmp_path / "proc/meminfo", PI_4.meminfo)
    write(tmp_path / "proc/device-tree/model", PI_4.model)
    frequency = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    for name, text in (
        ("cpuinfo_max_freq", "1500000\n"),
        ("scaling_cur_freq", "600000\n"),
        ("scaling_governor", "ondemand\n"),
    ):
        write(frequency / name, text)
    write(tmp_path / "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    write(tmp_path / "sys/class/thermal/thermal_zone0/temp", "51500\n")
    write(tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "3\n")
    facts = read_facts(tmp_path / "proc", tmp_path / "sys")
    assert (facts.processor, facts.cores, facts.clock_max_mhz) == ("Some Board 4 Rev 1.4", 4, 1500)
    assert read_condition(tmp_path / "sys") == Condition(600.0, "ondemand", 51.5, 3)


def test_a_tree_without_anything_says_nothing(tmp_path):
    assert read_condition(tmp_path) == Condition()
    assert read_facts(tmp_path, tmp_path).memory_bytes == 0


COOL = Condition(1500.0, "performance", 45.0, 0)


@pytest.mark.parametrize(
    ("before", "after", "trend", "expected"),
    [
        (COOL, COOL, 1.0, Throttling.NO),
        (COOL, COOL, 1.3, Throttling.NO),
        (COOL, Condition(1500.0, "performance", 45.0, 2), 1.0, Throttling.LIKELY),
        (COOL, Condition(1000.0, "performance", 85.0, 0), 1.0, Throttling.LIKELY),
        (COOL, Condition(1500.0, "performance", 85.0, 0), 1.2, Throttling.LIKELY),
        (COOL, Condition(600.0, "ondemand", 45.0, 0), 1.0, Throttling.NO),
        (Condition(), Condition(), 1.5, Throttling.UNKNOWN),
    ],
)
def test_heat_that_slows_is_told_from_an_idle_clock(before, after, trend, expected):
    assert throttling(before, after, 1500.0, trend) is expected
