"""The fleet's commands: what they print, what they store, and what they refuse."""

import json
import subprocess
import sys

import msgspec
import pytest
from click.testing import CliRunner

from agent import config as agent_config
from edgeml.errors import ArtifactError, ConfigError
from edgeml.telemetry import Batch, Counters, Loss, Stream, Window
from edgeml.testing import sample_bundle
from fleet import broker, cli, config, devices, locks, rollout_store, telemetry_store
from fleet.config import FleetHome, database_url
from fleet.durations import parse_duration_s, parse_waves
from fleet.ingest import RowsHeard
from fleet.options import NOT_RUNNING
from fleet.rollout import RolloutState
from fleet.store import Store
from fleet.tokens import token_hash


class Shell:
    """Runs commands on one fleet."""

    def __init__(self, home):
        self.home = home

    def run(self, *arguments):
        """Run a command; its error, if it ends with one, is raised."""
        group = cli.keys if arguments[0] == "keys" else cli.fleet
        words = [
            *map(str, arguments[1:] if arguments[0] == "keys" else arguments),
            "--dir",
            str(self.home.directory),
        ]
        result = CliRunner().invoke(group, words, standalone_mode=False)
        if result.exception is not None:
            raise result.exception
        return result

    def json(self, *arguments):
        return json.loads(self.run(*arguments, "--json").stdout)

    def store(self):
        return Store(database_url(self.home, config.load(self.home)))


@pytest.fixture
def shell(tmp_path):
    made = Shell(FleetHome(tmp_path / "fleet"))
    made.run("keys", "init")
    return made


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundles")
    for index, version in enumerate(("1.0.0", "1.1.0")):
        sample_bundle(directory / f"{version}.edgeml", version, seed=index)
    return directory


def test_init_makes_a_fleet_whose_secrets_are_its_owners(shell):
    home = shell.home
    assert home.settings.read_text() == config.DEFAULT_TOML
    assert config.load(home).broker.port == 18830
    for path in (
        home.keys / "offline" / "root.pem",
        home.keys / "online" / "timestamp.pem",
        home.operator_token,
    ):
        assert path.stat().st_mode & 0o077 == 0
    assert home.directory.stat().st_mode & 0o077 == 0


def test_init_twice_keeps_the_keys(shell):
    before = (shell.home.keys / "offline" / "root.pem").read_bytes()
    with pytest.raises(ConfigError, match="already"):
        shell.run("keys", "init")
    assert (shell.home.keys / "offline" / "root.pem").read_bytes() == before


@pytest.mark.parametrize(
    "command", [["status"], ["serve"], ["drift"], ["rollout", "list"], ["device", "list"], ["publish", "x"]]
)
def test_command_without_a_fleet_says_how_to_make_one(tmp_path, command):
    with pytest.raises(ConfigError, match="no fleet") as caught:
        Shell(FleetHome(tmp_path / "nowhere")).run(*command)
    assert "keys init" in caught.value.hint
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("tenant = ", "fleet.toml"),
        ('tenant = "A B"', "tenant"),
        ("typo = 1", "typo"),
        ("[broker]\nport = 0", "port"),
        ("[broker]\nport = 70000", "port"),
        ('[broker]\nport = "x"', "port"),
        ('[broker]\nhost = "localhost"', "localhost"),
        ('[broker]\nkind = "nanomq"', "nanomq"),
        ("[broker]\nport = 18080", "same port"),
        ("[controller_loop]\ntick_s = 0", "tick_s"),
        ("[controller_loop]\nslice_s = nan", "slice_s"),
        ("[quota]\nbatches_per_s = 0", "batches_per_s"),
        ("[quota]\nmessages_per_s = nan", "messages_per_s"),
        ("[quota]\nbatch_bytes_burst = 65536", "batch_bytes_burst"),
        ("[quota]\nmessages_burst = 17", "messages_burst"),
        ('[store]\nurl = "mysql://x"', "mysql"),
        ("#" + "x" * (65 << 10), "longer"),
    ],
)
def test_wrong_settings_are_named(shell, text, named):
    shell.home.settings.write_text(text)
    with pytest.raises(ConfigError) as caught:
        shell.run("status")
    assert named in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_group_and_variable_name_the_directory_too(shell, monkeypatch):
    result = CliRunner().invoke(
        cli.fleet, ["--dir", str(shell.home.directory), "status", "--json"], standalone_mode=False
    )
    assert json.loads(result.stdout)["devices"] == []
    monkeypatch.setenv("EDGEML_FLEET", str(shell.home.directory))
    assert (
        json.loads(CliRunner().invoke(cli.fleet, ["status", "--json"], standalone_mode=False).stdout)[
            "devices"
        ]
        == []
    )


def test_publish_signs_remembers_the_monitor_and_says_what_was_there(shell, bundles):
    first = shell.run("publish", bundles / "1.0.0.edgeml").stdout
    assert "sample@1.0.0 onnx-fp32: published, for generic-x86-64" in first
    assert "was published before" in shell.run("publish", bundles / "1.0.0.edgeml").stdout
    store = shell.store()
    with store.read() as connection:
        assert len(telemetry_store.load_monitors(connection)) == 1
    store.close()


def test_publish_of_something_else_under_the_same_name_is_refused(shell, bundles, tmp_path):
    shell.run("publish", bundles / "1.0.0.edgeml")
    sample_bundle(tmp_path / "other.edgeml", "1.0.0", seed=5)
    with pytest.raises(ArtifactError, match="already published"):
        shell.run("publish", tmp_path / "other.edgeml")
    (tmp_path / "broken.edgeml").write_bytes(b"x")
    with pytest.raises(ArtifactError):
        shell.run("publish", tmp_path / "broken.edgeml")
    with pytest.raises(ConfigError):
        shell.run("publish", tmp_path / "missing.edgeml")


def test_publish_without_the_offline_key_says_which_one_is_missing(shell, bundles, tmp_path):
    (shell.home.keys / "offline").rename(tmp_path / "stick")
    with pytest.raises(ConfigError, match=r"targets\.pem"):
        shell.run("publish", bundles / "1.0.0.edgeml")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "stick").rename(elsewhere / "offline")
    assert "published" in shell.run("publish", bundles / "1.0.0.edgeml", "--keys", elsewhere).stdout


def test_offline_keys_with_a_passphrase_need_its_file(tmp_path, bundles):
    shell = Shell(FleetHome(tmp_path / "fleet"))
    secret = tmp_path / "passphrase"
    secret.write_text("open sesame\n")
    shell.run("keys", "init", "--passphrase-file", secret)
    with pytest.raises(ConfigError, match="encrypted"):
        shell.run("publish", bundles / "1.0.0.edgeml")
    assert "published" in shell.run("publish", bundles / "1.0.0.edgeml", "--passphrase-file", secret).stdout
    secret.write_text("\n")
    with pytest.raises(ConfigError, match="empty"):
        shell.run("publish", bundles / "1.0.0.edgeml", "--passphrase-file", secret)


def test_device_kit_is_what_the_agent_reads(shell, tmp_path):
    kit = tmp_path / "kit"
    shell.run("device", "add", "cam-1", "--profile", "raspberry-pi-4", "--out", kit)
    read = agent_config.load(kit / "agent.toml")
    assert (read.device, read.tenant, read.profile, read.storage) == (
        "cam-1",
        "main",
        "raspberry-pi-4",
        str(kit / "state"),
    )
    assert (read.broker.host, read.broker.port) == ("127.0.0.1", 18830)
    assert read.blobs.url == "http://127.0.0.1:18080"
    assert read.telemetry.window_s == 60
    token = agent_config.read_secret(kit / "token")
    assert (kit / "root.json").read_bytes() == (
        shell.home.repository / "metadata" / "1.root.json"
    ).read_bytes()
    store = shell.store()
    with store.read() as connection:
        known = devices.token_sha256(connection, "cam-1")
    store.close()
    assert known == token_hash(token)
    everything = b"".join(path.read_bytes() for path in shell.home.directory.rglob("*") if path.is_file())
    assert token.encode() not in everything, "the fleet keeps only hashes"
    assert f"cam-1:{known}" in broker.tokens_path(shell.home).read_text()


@pytest.mark.parametrize("root", ["/var/lib/edgeml", 'odd "name" \\ here'])
def test_device_kit_may_keep_its_state_elsewhere(shell, tmp_path, root):
    shell.run(
        "device", "add", "cam-1", "--profile", "raspberry-pi-4", "--out", tmp_path / "kit", "--root", root
    )
    assert msgspec.toml.decode((tmp_path / "kit" / "agent.toml").read_bytes())["storage"] == root


@pytest.mark.parametrize(
    ("name", "profile", "named"),
    [
        ("Cam 1", "raspberry-pi-4", "Cam 1"),
        ("../x", "raspberry-pi-4", "../x"),
        ("controller", "raspberry-pi-4", "controller"),
        ("cam-1", "commodore-64", "commodore-64"),
    ],
)
def test_device_that_cannot_be_is_refused_and_nothing_is_written(shell, tmp_path, name, profile, named):
    with pytest.raises(ConfigError) as caught:
        shell.run("device", "add", name, "--profile", profile, "--out", tmp_path / "kit")
    assert named in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "kit").exists()


def test_device_is_added_once_and_its_kit_overwrites_nothing(shell, tmp_path):
    shell.run("device", "add", "cam-1", "--profile", "raspberry-pi-4", "--out", tmp_path / "kit")
    with pytest.raises(ConfigError, match="exists already"):
        shell.run("device", "add", "cam-1", "--profile", "raspberry-pi-4", "--out", tmp_path / "other")
    with pytest.raises(ConfigError, match="not an empty directory"):
        shell.run("device", "add", "cam-2", "--profile", "raspberry-pi-4", "--out", tmp_path / "kit")
    assert [one["device"] for one in shell.json("device", "list")] == ["cam-1"]


def test_removed_device_may_not_log_in_any_more(shell, tmp_path):
    shell.run("device", "add", "cam-1", "--profile", "raspberry-pi-4", "--out", tmp_path / "kit")
    shell.run("device", "remove", "cam-1")
    assert "cam-1" not in broker.tokens_path(shell.home).read_text()
    assert broker.revoked_path(shell.home).exists()
    with pytest.raises(ConfigError, match="no device"):
        shell.run("device", "remove", "cam-1")


def test_rollout_is_written_down_for_the_controller_and_that_is_said(shell, bundles):
    shell.run("publish", bundles / "1.0.0.edgeml")
    result = shell.run(
        "rollout", "start", "sample@1.0.0", "--waves", "10%,100%", "--soak", "90s", "--evidence", "50"
    )
    assert NOT_RUNNING in result.stderr
    view = shell.json("rollout", "status")
    wanted = {"release": "sample@1.0.0", "waves": [0.1, 1.0], "soak_s": 90.0, "evidence_stop": 50.0}
    assert {name: view["rollout"]["plan"][name] for name in wanted} == wanted
    assert view["rollout"]["id"] in result.stdout
    assert [one["id"] for one in shell.json("rollout", "list")] == [view["rollout"]["id"]]
    lock = locks.hold(shell.home, locks.CONTROLLER, "a controller")
    assert shell.run("rollout", "pause", view["rollout"]["id"]).stderr == ""
    lock.release()
    assert shell.json("rollout", "status", view["rollout"]["id"])["rollout"]["requested"] == "paused"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["sample@9.9.9"], "9.9.9"),
        (["sample@1.0.0", "--waves", "50%"], "50%"),
        (["sample@1.0.0", "--waves", "50%,20%,100%"], "50%,20%,100%"),
        (["sample@1.0.0", "--waves", "x"], "x"),
        (["sample@1.0.0", "--waves", "nan,100%"], "nan"),
        (["sample@1.0.0", "--soak", "soon"], "soon"),
        (["sample@1.0.0", "--evidence", "0.5"], "--evidence"),
        (["sample@1.0.0", "--trials", "0"], "--trials"),
    ],
)
def test_rollout_that_makes_no_sense_is_refused(shell, bundles, arguments, named):
    shell.run("publish", bundles / "1.0.0.edgeml")
    with pytest.raises(ConfigError) as caught:
        shell.run("rollout", "start", *arguments)
    assert named in caught.value.message
    assert caught.value.hint
    assert shell.json("rollout", "list") == []


def test_unpublished_release_is_refused_with_what_there_is(shell, bundles):
    with pytest.raises(ConfigError) as caught:
        shell.run("rollout", "start", "sample@1.0.0")
    assert "publish" in caught.value.hint
    shell.run("publish", bundles / "1.0.0.edgeml", bundles / "1.1.0.edgeml")
    with pytest.raises(ConfigError) as caught:
        shell.run("rollout", "start", "sample@2.0.0")
    assert "sample@1.0.0, sample@1.1.0" in caught.value.hint


def test_rollouts_do_not_overlap_and_requests_must_make_sense(shell, bundles):
    shell.run("publish", bundles / "1.0.0.edgeml", bundles / "1.1.0.edgeml")
    shell.run("rollout", "start", "sample@1.0.0")
    (found,) = shell.json("rollout", "list")
    with pytest.raises(ConfigError, match=found["id"]):
        shell.run("rollout", "start", "sample@1.1.0")
    with pytest.raises(ConfigError, match="running"):
        shell.run("rollout", "resume", found["id"])
    with pytest.raises(ConfigError, match="no rollout"):
        shell.run("rollout", "abort", "nonsense")
    store = shell.store()
    with store.write() as connection:
        rollout = rollout_store.load(connection, found["id"])
        rollout_store.save(connection, msgspec.structs.replace(rollout, state=RolloutState.COMPLETED))
    store.close()
    with pytest.raises(ConfigError, match="completed"):
        shell.run("rollout", "abort", found["id"])
    shell.run("rollout", "start", "sample@1.1.0")
    assert shell.json("rollout", "status")["rollout"]["plan"]["release"] == "sample@1.1.0"


def test_tables_show_what_the_json_says(shell, bundles, tmp_path):
    shell.run("publish", bundles / "1.0.0.edgeml")
    shell.run("device", "add", "cam-1", "--profile", "generic-x86-64", "--out", tmp_path / "kit")
    shell.run("rollout", "start", "sample@1.0.0")
    rows = tuple(Window(seq, "sample@1.0.0", "a" * 64, 0, 1000, Counters(inferences=5)) for seq in (1, 2))
    store = shell.store()
    with store.write() as connection:
        telemetry_store.store_rows(
            connection, [RowsHeard("cam-1", Stream.WINDOWS, Batch("b", rows, loss=Loss(dropped=77)))], 0
        )
    store.close()
    for command in (["status"], ["device", "list"]):
        shown = shell.run(*command).stdout
        assert "cam-1" in shown
        assert "77" in shown
        assert "never" in shown
    assert "controller is not running" in shell.run("status").stdout
    for command in (["rollout", "status"], ["rollout", "list"]):
        assert "sample@1.0.0" in shell.run(*command).stdout
    drift = shell.run("drift").stdout
    assert "unknown" in drift
    assert [one["verdict"] for one in shell.json("drift")] == ["unknown"]


def test_status_of_no_rollout_says_how_to_start_one(shell):
    with pytest.raises(ConfigError) as caught:
        shell.run("rollout", "status")
    assert "rollout start" in caught.value.hint


@pytest.mark.parametrize("text", ["", "5", "h", "-1h", "1 year", "1e9s", "nan s", "1h30m"])
def test_what_is_no_span_of_time_is_refused(text):
    with pytest.raises(ConfigError):
        parse_duration_s(text)


@pytest.mark.parametrize(
    "text", ["", "100", "0%,100%", "100%", "33.3%,100%", "1%,1%,100%", "100%,101%", "inf"]
)
def test_waves_end_with_everybody(text):
    try:
        assert parse_waves(text)[-1] == 1.0
    except ConfigError:
        assert text in {"", "0%,100%", "1%,1%,100%", "100%,101%", "inf"}


def test_command_line_is_light_to_load():
    heavy = [
        "sqlalchemy",
        "numpy",
        "torch",
        "tuf",
        "rich",
        "psutil",
        "paho",
        "fastapi",
        "amqtt",
        "cryptography",
    ]
    code = f"import sys, fleet.cli; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
