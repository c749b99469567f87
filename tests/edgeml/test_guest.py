"""Guests: libraries in an interpreter of their own, found by a variable or not at all."""

import sys
from pathlib import Path

import pytest

from edgeml import doctor
from edgeml.errors import ConfigError
from edgeml.guest import Guest, interpreter_with, version_in


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for guest in Guest:
        monkeypatch.delenv(guest.variable, raising=False)


@pytest.mark.parametrize("guest", Guest)
def test_a_guest_that_nobody_names_is_an_error_that_says_how_to_get_it(guest):
    with pytest.raises(ConfigError) as caught:
        interpreter_with(guest)
    assert guest.variable in caught.value.message
    assert "pip install" in caught.value.hint
    assert f"export {guest.variable}=" in caught.value.hint


@pytest.mark.parametrize("name", ["/nonexistent/python", "/bin/true", "/", sys.executable, "\0"])
def test_an_interpreter_without_the_guest_is_named_in_the_error(name, monkeypatch):
    if "\0" in name:
        assert version_in(Path(name), Guest.TFLITE_RUNTIME) == ""
        return
    monkeypatch.setenv(Guest.TFLITE_RUNTIME.variable, name)
    with pytest.raises(ConfigError, match="no Python interpreter with tflite-runtime") as caught:
        interpreter_with(Guest.TFLITE_RUNTIME)
    assert name in caught.value.message


def test_the_doctor_says_of_each_guest_whether_it_can_be_reached(monkeypatch):
    monkeypatch.setenv(Guest.TFLITE_RUNTIME.variable, "/bin/true")
    found = {one.name: one for one in doctor.examine()}
    assert not found["litert-torch"].good
    assert Guest.LITERT_TORCH.variable in found["litert-torch"].said
    assert "/bin/true" in found["tflite-runtime"].said
    assert "pip install" in found["tflite-runtime"].hint
    assert found["quantizer"].good
