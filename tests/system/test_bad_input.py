"""What a user does wrong: one line that says what, one that says what to do, the right exit code, no traceback."""

import os
import subprocess
import sys

import pytest

from edgeml.testing import sample_bundle


def edgeml(*arguments, cwd=None, env=None):
    return subprocess.run(
        [sys.executable, "-m", "edgeml", *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd, timeout=120,
        stdin=subprocess.DEVNULL, env=os.environ | (env or {}),
    )  # fmt: skip


def refused(done, code, *words):
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    first = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    for word in words:
        assert word in done.stderr, first
    return first


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A fleet with one published release."""
    directory = tmp_path_factory.mktemp("house")
    sample_bundle(directory / "one.edgeml", "1.0.0")
    sample_bundle(directory / "two.edgeml", "1.1.0", seed=1)
    assert edgeml("keys", "init", "--dir", directory / "fleet").returncode == 0
    assert edgeml("fleet", "publish", directory / "one.edgeml", "--dir", directory / "fleet").returncode == 0
    return directory


def test_an_unknown_command_and_option(house):
    assert edgeml("frobnicate").returncode == 2
    assert edgeml("fleet", "status", "--frobnicate").returncode == 2


def test_an_unknown_profile_lists_the_known_ones(house):
    refused(edgeml("profiles", "show", "raspberry-pi-9"), 2, "raspberry-pi-9", "raspberry-pi-4")


def test_publishing_a_missing_file(house):
    refused(edgeml("fleet", "publish", house / "none.edgeml", "--dir", house / "fleet"), 2, "none.edgeml")


def test_publishing_a_truncated_bundle(house, tmp_path):
    cut = tmp_path / "cut.edgeml"
    cut.write_bytes((house / "two.edgeml").read_bytes()[:-100])
    refused(edgeml("fleet", "publish", cut, "--dir", house / "fleet"), 3, "cut.edgeml")


def test_publishing_a_bundle_with_one_changed_byte(house, tmp_path):
    data = bytearray((house / "two.edgeml").read_bytes())
    data[data.find(b"\x08\x0a") + 40] ^= 1
    bad = tmp_path / "bad.edgeml"
    bad.write_bytes(data)
    refused(edgeml("fleet", "publish", bad, "--dir", house / "fleet"), 3, "bad.edgeml")


def test_publishing_other_content_under_a_published_name(house, tmp_path):
    other = tmp_path / "other.edgeml"
    sample_bundle(other, "1.0.0", seed=9)
    refused(edgeml("fleet", "publish", other, "--dir", house / "fleet"), 3, "already", "version")


def test_publishing_with_another_fleets_keys(house, tmp_path):
    assert edgeml("keys", "init", "--dir", tmp_path / "theirs").returncode == 0
    refused(
        edgeml(
            "fleet",
            "publish",
            house / "two.edgeml",
            "--dir",
            house / "fleet",
            "--keys",
            tmp_path / "theirs" / "keys",
        ),
        2,
        "key",
    )


def test_a_fleet_that_is_not_there(tmp_path):
    refused(edgeml("fleet", "status", "--dir", tmp_path / "nowhere"), 2, "edgeml keys init")


def test_making_keys_twice_keeps_the_first(house):
    before = (house / "fleet" / "keys" / "offline" / "root.pem").read_bytes()
    refused(edgeml("keys", "init", "--dir", house / "fleet"), 2)
    assert (house / "fleet" / "keys" / "offline" / "root.pem").read_bytes() == before


def test_rolling_out_what_is_not_published_lists_what_is(house):
    refused(
        edgeml("fleet", "rollout", "start", "sample@9.9.9", "--dir", house / "fleet"),
        2,
        "sample@9.9.9",
        "sample@1.0.0",
    )


def test_waves_that_make_no_sense(house):
    refused(
        edgeml("fleet", "rollout", "start", "sample@1.0.0", "--waves", "50%,10%", "--dir", house / "fleet"), 2
    )


def test_flashing_what_is_not_signed(house, tmp_path):
    refused(
        edgeml("flash", house / "two.edgeml", "--to", tmp_path / "state", "--fleet", house / "fleet"),
        3,
        "no signed release",
        "publish",
    )


def test_flashing_onto_a_device_of_another_fleet(house, tmp_path):
    assert edgeml("keys", "init", "--dir", tmp_path / "theirs").returncode == 0
    assert edgeml("fleet", "publish", house / "one.edgeml", "--dir", tmp_path / "theirs").returncode == 0
    assert (
        edgeml(
            "flash", house / "one.edgeml", "--to", tmp_path / "state", "--fleet", house / "fleet"
        ).returncode
        == 0
    )
    refused(
        edgeml("flash", house / "one.edgeml", "--to", tmp_path / "state", "--fleet", tmp_path / "theirs"),
        3,
        "trusts another fleet",
    )


def test_an_agent_without_settings(tmp_path):
    refused(edgeml("agent", "run", "-c", tmp_path / "agent.toml"), 2, "edgeml fleet device add")


def test_an_agent_with_a_misspelt_setting(tmp_path):
    (tmp_path / "agent.toml").write_text('device = "cam"\nprofil = "x"\nstorage = "state"\n')
    refused(edgeml("agent", "status", "-c", tmp_path / "agent.toml"), 2, "agent.toml")


def test_an_agent_whose_token_others_may_read(house, tmp_path):
    kit = tmp_path / "kit"
    assert (
        edgeml(
            "fleet",
            "device",
            "add",
            "open",
            "--profile",
            "generic-x86-64",
            "--out",
            kit,
            "--dir",
            house / "fleet",
        ).returncode
        == 0
    )
    (kit / "token").chmod(0o644)
    refused(edgeml("agent", "run", "-c", kit / "agent.toml"), 2, "chmod 600")


def test_asking_an_agent_that_is_not_there(tmp_path):
    import numpy as np

    np.savez(tmp_path / "x.npz", x=np.zeros((1, 4), np.float32))
    refused(edgeml("infer", tmp_path / "x.npz", "--url", "http://127.0.0.1:9"), 4)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_leaves_nothing_half_written(house, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        (small / "filler").write_bytes(b"x" * 40_000)
        refused(
            edgeml("flash", house / "one.edgeml", "--to", small / "state", "--fleet", house / "fleet"),
            5,
            "no space",
        )
        assert not list(small.glob("state/inbox/*/desired.json"))
    finally:
        subprocess.run(["umount", small], check=True)
