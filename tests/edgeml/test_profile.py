"""Hardware profiles: the shipped ones are sound, wrong ones are refused, the commands show what the files say."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from edgeml import profile, profiles_command
from edgeml.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

SHIPPED = (
    "esp32-s3",
    "generic-x86-64",
    "imx8m-plus",
    "jetson-orin-nano",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "raspberry-pi-zero-2w",
    "stm32h7",
)
MICROCONTROLLERS = {"esp32-s3", "stm32h7"}
VALID = profile.read("raspberry-pi-4").decode()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(profiles_command.profiles, arguments)


def quantities(name: str) -> dict[str, profile.Quantity]:
    return dict(profile.quantities(profile.load(name)))


def without_rates(text: str) -> str:
    """A profile as it was before latencies could be estimated."""
    return "\n".join(
        line for line in text.splitlines() if line.partition(" ")[0] not in profile.OPTIONAL_UNITS
    )


def replaced(old: str, new: str) -> bytes:
    assert VALID.count(old) == 1, "the test no longer matches the file that it alters"
    return VALID.replace(old, new).encode()


def test_exactly_these_profiles_ship():
    assert profile.names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
class TestShipped:
    def test_is_named_as_its_file(self, name):
        assert profile.load(name).name == name

    def test_every_number_says_where_it_comes_from(self, name):
        for field, quantity in quantities(name).items():
            assert len(quantity.source) > 10, field

    def test_an_estimate_says_how_it_was_made(self, name):
        for field, quantity in quantities(name).items():
            if quantity.origin is profile.Origin.ESTIMATED:
                assert quantity.source.startswith(("chosen: ", "derived: ", "from ")), field

    def test_numbers_are_finite_and_whole_but_for_rates(self, name):
        for field, quantity in quantities(name).items():
            assert math.isfinite(quantity.value), field
            assert quantity.value.is_integer() or quantity.unit == "MACs/cycle", field

    def test_it_has_the_rates_of_its_runtimes(self, name):
        onnx = profile.DeviceRuntime.ONNXRUNTIME in profile.load(name).runtimes
        has = set(quantities(name)) & set(profile.OPTIONAL_UNITS)
        assert has == {field for field in profile.OPTIONAL_UNITS if onnx or not field.startswith("onnx_")}

    def test_no_rate_is_said_to_be_measured_on_the_board(self, name):
        for field in profile.OPTIONAL_UNITS:
            if field in quantities(name):
                assert quantities(name)[field].origin is profile.Origin.ESTIMATED

    def test_a_model_gets_a_part_and_never_all(self, name):
        numbers = quantities(name)
        assert numbers["model_memory"].value < numbers["memory"].value
        assert numbers["model_storage"].value < numbers["storage"].value

    def test_channel_block_is_a_power_of_two(self, name):
        assert quantities(name)["channel_block"].value in {4, 8, 16, 32}

    def test_runtimes_are_those_with_a_build_for_it(self, name):
        micro = profile.DeviceRuntime.TFLITE_MICRO
        runtimes = profile.load(name).runtimes
        assert len(set(runtimes)) == len(runtimes)
        assert set(runtimes) == {micro} if name in MICROCONTROLLERS else set(profile.DeviceRuntime) - {micro}

    def test_extensions_are_lower_case(self, name):
        extensions = profile.load(name).extensions
        assert extensions
        assert all(extension == extension.lower().strip() for extension in extensions)


@pytest.mark.parametrize("name", ["raspberry-pi-zero-2w", "raspberry-pi-4", "imx8m-plus"])
def test_cortex_a53_and_a72_have_no_dot_product(name):
    assert "asimddp" not in profile.load(name).extensions


def test_unknown_name_lists_the_names():
    with pytest.raises(ConfigError) as caught:
        profile.load("raspberry-pi-9")
    assert "raspberry-pi-9" in caught.value.message
    assert all(name in caught.value.hint for name in SHIPPED)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("raspberry-pi4", "raspberry-pi-4"),
        ("Raspberry-Pi-5", "raspberry-pi-5"),
        ("hots", "host"),
        ("qqq", ""),
    ],
)
def test_unknown_name_is_told_the_nearest_one_first(name, near):
    with pytest.raises(ConfigError) as caught:
        profile.load(name)
    assert caught.value.hint.startswith(f"did you mean {near}? " if near else "one of ")


@pytest.mark.parametrize("path", ["nowhere/board.toml", "board.toml", "./raspberry-pi-4"])
def test_a_path_that_does_not_exist_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="cannot read"):
        profile.load(path)


def test_a_profile_without_rates_is_whole():
    assert set(profile.OPTIONAL_UNITS) & set(VALID.split()), (
        "the test no longer matches the file that it alters"
    )
    old = profile.decode(without_rates(VALID).encode(), "my board")
    assert all(getattr(old, field) is None for field in profile.OPTIONAL_UNITS)
    assert {field for field, _ in profile.quantities(old)} == set(profile.UNITS)


def test_a_users_own_file_is_read(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_bytes(replaced('name = "raspberry-pi-4"', 'name = "mine"'))
    assert profile.load(str(own)).name == "mine"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(replaced('unit = "MHz"', 'unit = "GHz"'), id="wrong unit"),
        pytest.param(replaced("value = 1500", "value = -1500"), id="negative"),
        pytest.param(replaced("value = 3_500_000_000", "value = -1"), id="negative rate"),
        pytest.param(replaced('unit = "bytes/s"', 'unit = "GB/s"'), id="wrong unit of a rate"),
        pytest.param(replaced("value = 1500", "value = 0"), id="zero"),
        pytest.param(replaced("value = 1500", 'value = "1500"'), id="text for a number"),
        pytest.param(replaced("title =", 'colour = "red"\ntitle ='), id="unknown field"),
        pytest.param(replaced("value = 1500", "value = 1500, error = 1"), id="unknown field of a quantity"),
        pytest.param(
            replaced('architecture = "aarch64"', 'architecture = "mips"'), id="unknown architecture"
        ),
        pytest.param(replaced('"tflite-runtime"', '"caffe"'), id="unknown runtime"),
        pytest.param(VALID.replace("datasheet", "hearsay").encode(), id="unknown origin"),
        pytest.param(b'name = "raspberry-pi-4"', id="fields missing"),
        pytest.param(b'{"name": "raspberry-pi-4"}', id="not TOML"),
        pytest.param(b"\xff\xfe\x00", id="not text"),
        pytest.param(b"", id="empty"),
        pytest.param(VALID.encode() + b"#" * profile.PROFILE_BYTES_MAX, id="too long"),
    ],
)
def test_a_profile_that_is_not_valid_is_refused(data):
    with pytest.raises(ConfigError, match="my board"):
        profile.decode(data, "my board")


class TestCommands:
    def test_list_has_one_aligned_row_a_profile(self):
        result = run("list")
        assert result.exit_code == 0
        head, *rows = result.stdout.splitlines()
        assert [row.split()[0] for row in rows] == list(SHIPPED)
        for column, cell in (
            ("PROCESSOR", "Broadcom BCM2711"),
            ("MEMORY", "2.0 GiB"),
            ("STORAGE", "16.0 GB"),
        ):
            row = next(row for row in rows if row.startswith("raspberry-pi-4 "))
            assert row.index(cell) == head.index(column)

    def test_list_as_json_holds_the_whole_profiles(self):
        listed = json.loads(run("list", "--json").stdout)
        assert [entry["name"] for entry in listed] == list(SHIPPED)
        assert all(entry["memory"]["source"] for entry in listed)

    @pytest.mark.parametrize("name", SHIPPED)
    def test_show_prints_every_number_with_its_provenance(self, name):
        result = run("show", name)
        assert result.exit_code == 0
        lines = result.stdout.splitlines()
        for field, quantity in quantities(name).items():
            line = next(line for line in lines if line.startswith(f"{field} "))
            assert profiles_command.for_people(quantity) in line
            assert f"  {quantity.origin.value}" in line
            assert line.endswith(quantity.source)

    def test_show_as_json_parses(self):
        shown = json.loads(run("show", "stm32h7", "--json").stdout)
        assert shown["clock"]["value"] == 480
        assert shown["clock"]["origin"] == "datasheet"

    def test_show_as_toml_is_the_file_byte_for_byte(self):
        assert run("show", "esp32-s3", "--toml").stdout_bytes == profile.read("esp32-s3")

    @pytest.mark.parametrize("forms", [["--json", "--toml"], ["--toml", "--json"]])
    def test_two_forms_at_once_are_refused(self, forms):
        result = run("show", "esp32-s3", *forms)
        assert isinstance(result.exception, ConfigError)
        assert (result.output, result.exception.hint) == ("", "give one of them")

    def test_toml_that_was_shown_is_a_profile_again(self, tmp_path: Path):
        own = tmp_path / "own.toml"
        own.write_bytes(run("show", "jetson-orin-nano", "--toml").stdout_bytes)
        assert run("show", str(own), "--json").stdout == run("show", "jetson-orin-nano", "--json").stdout

    @pytest.mark.parametrize("form", [[], ["--json"], ["--toml"]])
    def test_a_users_mistake_is_raised_and_nothing_printed(self, form):
        result = run("show", "raspberry-pi-9", *form)
        assert isinstance(result.exception, ConfigError)
        assert result.output == ""

    @pytest.mark.parametrize("arguments", [["--help"], ["list", "--help"], ["show", "--help"]])
    def test_help_has_an_example_and_no_section_for_developers(self, arguments):
        shown = run(*arguments).stdout
        assert "    edgeml profiles " in shown
        assert "Raises" not in shown
