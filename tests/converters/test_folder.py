"""Whether a folder can be written is told before the work, and asking leaves nothing."""

from pathlib import Path

import pytest

from converters.folder import check_writable
from edgeml.errors import ConfigError


@pytest.mark.parametrize("name", ["", "new", "new/deep/er"])
def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path, name):
    check_writable(tmp_path / name, "--out")
    assert [*tmp_path.iterdir()] == []


def test_a_path_from_here_is_one_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_writable(Path(), "--out")
    check_writable(Path("new"), "--out")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["file", "file/below", "nowhere", "nowhere/below"])
def test_what_is_in_the_place_of_a_folder_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match="is no directory") as caught:
        check_writable(tmp_path / name, "--out")
    assert caught.value.hint == "give another --out"


@pytest.mark.parametrize("name", ["/proc/edgeml", "/proc"])
def test_a_folder_that_the_system_refuses_is_named_with_its_option(name):
    with pytest.raises(
        ConfigError, match=f"--work {name} cannot be written: nothing can be made in /proc"
    ) as caught:
        check_writable(Path(name), "--work")
    assert caught.value.hint == "give another --work"
