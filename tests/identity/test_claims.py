"""How a claim reaches the command, what a new one does to a device that exists, and how many may ask from one place."""

import os
import subprocess
import sys

import pytest

from agent.config import load
from agent.enrolment import enrol
from edgeml import keypair
from edgeml.errors import ConfigError, PermanentTransferError, TrustError
from edgeml.identity import EnrolRequest, Invitation, Standing, invitation_of
from edgeml.source import HttpSource
from fleet import identities
from fleet.admission import REQUESTS_PER_ORIGIN_MAX
from fleet.peer import origin_of

FINGERPRINT = "0" * 64
BARE = f"fleet.lan:18443#{FINGERPRINT}"
WHOLE = f"fleet.lan:18443#abc#{FINGERPRINT}"


def quiet(_line):
    pass


def never(_seconds):
    raise AssertionError("nothing is to be waited for")


@pytest.mark.parametrize(
    ("argument", "claim", "token"),
    [
        (WHOLE, "", "abc"),
        ("", WHOLE + "\n", "abc"),
        (BARE, "abc\n", "abc"),
        (WHOLE, WHOLE, "abc"),
        (WHOLE, "abc", "abc"),
        (BARE, "", ""),
    ],
)
def test_invitation_and_claim_may_come_apart(argument, claim, token):
    assert invitation_of(argument, claim) == Invitation("fleet.lan", 18443, FINGERPRINT, token)


@pytest.mark.parametrize(
    ("argument", "claim"),
    [("", ""), ("", "abc"), (WHOLE, "other"), (BARE, WHOLE), (WHOLE, f"x:1#{FINGERPRINT}")],
)
def test_what_is_missing_or_contradicts_itself_is_refused(argument, claim):
    with pytest.raises(ConfigError):
        invitation_of(argument, claim)


def enroll_command(kit, *arguments, said="", **environment):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "edgeml",
            "agent",
            "enroll",
            *arguments,
            "--device",
            "cam-1",
            "--out",
            str(kit),
        ],
        input=said,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("way", ["file", "standard input", "environment", "token in the environment"])
def test_claim_need_not_be_on_the_command_line(fleet, tmp_path, way):
    invitation, kit = fleet.invitation(), tmp_path / "kit"
    match way:
        case "file":
            (tmp_path / "claim").write_text(invitation.text + "\n")
            done = enroll_command(kit, "--claim-file", str(tmp_path / "claim"))
        case "standard input":
            done = enroll_command(kit, "--claim-file", "-", said=invitation.text)
        case "environment":
            done = enroll_command(kit, EDGEML_CLAIM=invitation.text)
        case _:
            done = enroll_command(kit, fleet.without_claim().text, EDGEML_CLAIM=invitation.token)
    assert done.returncode == 0, done.stderr
    assert invitation.token not in done.stdout + done.stderr
    assert load(kit / "agent.toml").device == "cam-1"


def test_claim_file_that_is_missing_or_empty_is_told(tmp_path):
    (tmp_path / "empty").touch()
    for name, said in (("absent", "cannot read"), ("empty", "no claim in")):
        done = enroll_command(tmp_path / "kit", "--claim-file", str(tmp_path / name))
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def identity(kit):
    return (kit / "identity.pem").read_bytes()


def fetch(kit):
    config = load(kit / "agent.toml")
    return b"".join(HttpSource(config.blobs.url, tls=config.tls.files).metadata("timestamp.json"))


def test_new_claim_makes_a_new_key_and_the_same_command_again_does_not(fleet, tmp_path):
    kit, old = tmp_path / "kit", tmp_path / "old.pem"
    enrol(fleet.wish(kit), quiet, 0, never)
    first = identity(kit)
    again = fleet.wish(kit, fleet.invitation("cam-1"))
    enrol(again, quiet, 0, never)
    second = identity(kit)
    assert keypair.facts(second).key_fingerprint != keypair.facts(first).key_fingerprint
    enrol(again, quiet, 0, never)
    assert identity(kit) == second
    assert b"signatures" in fetch(kit)
    old.write_bytes(first)
    old.chmod(0o600)
    old.replace(kit / "identity.pem")
    with pytest.raises(PermanentTransferError, match="403"):
        fetch(kit)


def test_claim_that_is_refused_leaves_the_identity_as_it_is(fleet, tmp_path):
    kit = tmp_path / "kit"
    enrol(fleet.wish(kit), quiet, 0, never)
    before = identity(kit)
    with pytest.raises(TrustError, match="exists already"):
        enrol(fleet.wish(kit), quiet, 0, never)
    assert identity(kit) == before
    assert b"signatures" in fetch(kit)


def ask(fleet, number, origin):
    csr = keypair.request(keypair.generate(), f"cam-{number}")
    asked = EnrolRequest(device=f"cam-{number}", profile="generic-x86-64", csr=csr)
    return fleet.admission.enrol(asked, origin, fleet.clock.now_ms())


def test_one_place_does_not_take_the_places_of_all(fleet):
    for number in range(REQUESTS_PER_ORIGIN_MAX):
        assert ask(fleet, number, "192.0.2.7").standing is Standing.PENDING
    with pytest.raises(TrustError, match="of your address"):
        ask(fleet, 100, "192.0.2.7")
    assert ask(fleet, 101, "192.0.2.8").standing is Standing.PENDING


def test_where_a_request_comes_from_is_the_connection_and_no_word_of_its_own(fleet, tmp_path):
    wish = fleet.wish(tmp_path / "kit", fleet.without_claim(), profile="generic-x86-64")
    with pytest.raises(TrustError, match="no operator"):
        enrol(wish, quiet, 0, never)
    with fleet.store.read() as connection:
        (waiting,) = identities.load_requests(connection)
    assert waiting.origin == "127.0.0.1"


def test_addresses_of_one_ipv6_network_are_one_place():
    assert origin_of("2001:db8::1") == origin_of("2001:db8::ffff") != origin_of("2001:db8:0:1::1")
    assert origin_of("fe80::1%eth0") == "fe80::/64"
    assert origin_of("") == origin_of("nonsense") == "unknown"
