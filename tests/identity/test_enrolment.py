"""First contact, over real TLS: who gets in, who does not, and what a power cut leaves."""

import os
import stat

import pytest

from agent import enrolment
from agent.config import load
from agent.enrolment import enrol
from edgeml import identity_client, keypair
from edgeml.errors import ConfigError, PermanentTransferError, TransferError, TrustError
from edgeml.handshake import Fault, find_refusal
from edgeml.identity import EnrolRequest, Invitation, parse_invitation
from edgeml.port import free_port
from edgeml.source import HttpSource
from edgeml.tls import authority_context
from fleet import authority, enroll, identities, tls_files
from fleet.admission import decide
from fleet.identities import APPROVED
from fleet.keys import load_keys


def quiet(_line):
    pass


def never(_seconds):
    raise AssertionError("nothing is to be waited for")


def enrolled(fleet, directory, **wish):
    return enrol(fleet.wish(directory, **wish), quiet, 0, never)


def fetch(config):
    source = HttpSource(config.blobs.url, tls=config.tls.files)
    return b"".join(source.metadata("timestamp.json"))


def test_device_with_a_claim_gets_all_it_needs_and_is_known_by_its_certificate(fleet, tmp_path):
    said = []
    kit = tmp_path / "kit"
    done = enrol(fleet.wish(kit), said.append, 0, never)
    config = load(done.settings_path)
    assert (config.device, config.tenant, config.profile) == ("cam-1", "main", "generic-x86-64")
    assert {path.name for path in kit.iterdir()} == {
        "agent.toml", "ca.pem", "root.json", "identity.pem", "identity.claim", "state",
    }  # fmt: skip
    assert {stat.S_IMODE(path.stat().st_mode) for path in kit.iterdir() if path.is_file()} == {0o600}
    assert stat.S_IMODE((kit / "state").stat().st_mode) == 0o700
    assert (kit / "root.json").read_bytes() == load_keys(fleet.home.keys).anchor
    facts = keypair.facts((kit / "identity.pem").read_bytes())
    assert said == [f"key of cam-1: {facts.key_fingerprint}"]
    assert facts.device == "cam-1"
    assert round((facts.not_after_ms - fleet.clock.now_ms()) / 86_400_000) == 90
    assert b"signatures" in fetch(config)


def test_nothing_is_served_without_a_certificate(fleet):
    context = authority_context(fleet.authority.pem)
    status, _ = identity_client._exchange(
        ("127.0.0.1", fleet.port), context, "/metadata/timestamp.json", None
    )
    assert status == 401


def test_lying_server_is_told_nothing(fleet, tmp_path):
    other = Invitation("127.0.0.1", fleet.port, "0" * 64, fleet.invitation().token)
    with pytest.raises(TrustError, match="not the fleet that was named"):
        enrolled(fleet, tmp_path / "kit", invitation=other)
    assert not (tmp_path / "kit" / "agent.toml").exists()
    with fleet.store.read() as connection:
        assert identities.load_requests(connection) == ()


def test_server_that_only_shows_the_right_authority_is_told_nothing(fleet, tmp_path):
    """It can copy the public certificate of the authority, not a key that it certified."""
    right = fleet.authority
    liar = authority.ensure(tmp_path / "liar", fleet.clock.now_ms())
    tls_files.server_path(fleet.home).write_bytes(
        authority.issue_server(liar, ["127.0.0.1", "localhost"], fleet.clock.now_ms())
    )
    with fleet.served(free := free_port()):
        lying = Invitation("127.0.0.1", free, right.fingerprint, fleet.invitation().token)
        with pytest.raises(TrustError, match="not certified by the fleet's authority"):
            enrolled(fleet, tmp_path / "kit", invitation=lying)


def test_claim_is_good_once(fleet, tmp_path):
    invitation = fleet.invitation()
    enrolled(fleet, tmp_path / "one", invitation=invitation)
    with pytest.raises(TrustError, match="used already"):
        enrolled(fleet, tmp_path / "two", invitation=invitation, device="cam-2")


def test_claim_that_expired_is_refused(fleet, tmp_path):
    invitation = fleet.invitation(life_ms=1000)
    fleet.clock.advance(1.0)
    with pytest.raises(TrustError, match="expired"):
        enrolled(fleet, tmp_path / "kit", invitation=invitation)


def test_unknown_claim_is_refused(fleet, tmp_path):
    made_up = Invitation("127.0.0.1", fleet.port, fleet.authority.fingerprint, "made-up")
    with pytest.raises(TrustError, match="no such claim"):
        enrolled(fleet, tmp_path / "kit", invitation=made_up)


def test_claim_for_one_name_is_not_good_for_another(fleet, tmp_path):
    with pytest.raises(TrustError, match="is for cam-7"):
        enrolled(fleet, tmp_path / "kit", invitation=fleet.invitation("cam-7"))


def test_signing_request_for_another_name_is_refused(fleet):
    asked = EnrolRequest(
        device="cam-1", csr=keypair.request(keypair.generate(), "cam-2"), claim=fleet.invitation().token
    )
    with pytest.raises(TrustError, match="not for cam-1"):
        identity_client.enrol(("127.0.0.1", fleet.port), authority_context(fleet.authority.pem), asked)


@pytest.mark.parametrize("name", ["controller", "Cam 1", "../x", ""])
def test_name_that_is_none_is_refused(fleet, name):
    asked = EnrolRequest(
        device=name, csr=keypair.request(keypair.generate(), name or "x"), claim=fleet.invitation().token
    )
    with pytest.raises(TrustError, match="device"):
        identity_client.enrol(("127.0.0.1", fleet.port), authority_context(fleet.authority.pem), asked)


def test_taken_name_needs_a_claim_for_it_and_then_the_old_certificate_is_worth_nothing(fleet, tmp_path):
    old = load(enrolled(fleet, tmp_path / "old").settings_path)
    with pytest.raises(TrustError, match="exists already"):
        enrolled(fleet, tmp_path / "new")
    new = load(enrolled(fleet, tmp_path / "new", invitation=fleet.invitation("cam-1")).settings_path)
    assert b"signatures" in fetch(new)
    assert find_refusal(("127.0.0.1", fleet.port), new.tls.files) is None
    with pytest.raises(PermanentTransferError, match="403"):
        fetch(old)


def test_removed_device_is_refused_with_its_certificate(fleet, tmp_path):
    config = load(enrolled(fleet, tmp_path / "kit").settings_path)
    enroll.remove(fleet.home, fleet.store, "cam-1", fleet.clock.now_ms())
    with pytest.raises(PermanentTransferError, match="403"):
        fetch(config)


def test_certificate_of_another_authority_opens_nothing(fleet, tmp_path):
    config = load(enrolled(fleet, tmp_path / "kit").settings_path)
    other = authority.ensure(tmp_path / "other", fleet.clock.now_ms())
    key = keypair.generate()
    csr = keypair.read_request(keypair.request(key, "cam-1"))
    pem = authority.issue_device(other, csr, "cam-1", fleet.clock.now_ms(), 1_000_000)
    (tmp_path / "kit" / "identity.pem").write_bytes(key + pem.encode())
    assert find_refusal(("127.0.0.1", fleet.port), config.tls.files).fault is Fault.HUNG_UP
    with pytest.raises(TransferError):
        fetch(config)


def test_expired_certificate_opens_nothing_and_a_new_claim_makes_the_device_whole(fleet, tmp_path):
    fleet.clock.advance(-200 * 86_400)
    config = load(enrolled(fleet, tmp_path / "kit").settings_path)
    assert find_refusal(("127.0.0.1", fleet.port), config.tls.files).fault is Fault.HUNG_UP
    with pytest.raises(TransferError):
        fetch(config)
    fleet.clock.advance(200 * 86_400)
    again = enrolled(fleet, tmp_path / "kit", invitation=fleet.invitation("cam-1"))
    assert b"signatures" in fetch(load(again.settings_path))


def test_key_that_others_may_read_is_refused(fleet, tmp_path):
    config = load(enrolled(fleet, tmp_path / "kit").settings_path)
    (tmp_path / "kit" / "identity.pem").chmod(0o640)
    with pytest.raises(ConfigError, match="read by others"):
        fetch(config)


def test_settings_of_another_device_are_left_alone(fleet, tmp_path):
    enrolled(fleet, tmp_path / "kit")
    before = (tmp_path / "kit" / "identity.pem").read_bytes()
    with pytest.raises(ConfigError, match="of device cam-1"):
        enrolled(fleet, tmp_path / "kit", device="cam-2")
    assert (tmp_path / "kit" / "identity.pem").read_bytes() == before


def enrol_and_die(wish, after_syncs):
    """Enrol in a process of its own that ends, as by a power cut, at a certain write; tell whether it finished."""
    child = os.fork()
    if not child:
        done, real = 0, os.fsync

        def fsync(descriptor):
            nonlocal done
            if done == after_syncs:
                os._exit(9)
            done += 1
            real(descriptor)

        os.fsync = fsync
        enrol(wish, quiet, 0, never)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_whatever_an_interrupted_enrolment_left_the_same_command_finishes(fleet, tmp_path):
    interrupted = 0
    for after_syncs in range(40):
        kit = tmp_path / str(after_syncs)
        wish = fleet.wish(kit, device=f"cam-{after_syncs}")
        if enrol_and_die(wish, after_syncs):
            break
        interrupted += 1
        config = load(enrol(wish, quiet, 0, never).settings_path)
        assert config.device == f"cam-{after_syncs}"
        assert b"signatures" in fetch(config)
        assert not (kit / enrolment.KEY).exists()
    assert interrupted > 8


def test_without_a_claim_an_operator_decides_by_the_fingerprint(fleet, tmp_path):
    said = []

    def approve(_seconds):
        with fleet.store.read() as connection:
            (waiting,) = identities.load_requests(connection)
        assert said[0] == f"key of cam-1: {waiting.key_fingerprint}"
        decide(fleet.store, waiting.key_fingerprint[:12], APPROVED)

    wish = fleet.wish(tmp_path / "kit", fleet.without_claim(), profile="generic-x86-64")
    done = enrol(wish, said.append, 60, approve)
    assert b"signatures" in fetch(load(done.settings_path))


def test_denied_device_stays_out(fleet, tmp_path):
    wish = fleet.wish(tmp_path / "kit", fleet.without_claim(), profile="generic-x86-64")
    with pytest.raises(TrustError, match="denied"):
        enrol(wish, quiet, 60, lambda _s: decide(fleet.store, "cam-1", "denied"))
    with pytest.raises(TrustError, match="denied"):
        enrol(wish, quiet, 60, never)
    with pytest.raises(ConfigError, match="no request"):
        decide(fleet.store, "cam-1", APPROVED)


def test_who_waits_too_long_may_ask_again(fleet, tmp_path):
    wish = fleet.wish(tmp_path / "kit", fleet.without_claim(), profile="generic-x86-64")
    with pytest.raises(TrustError, match="no operator"):
        enrol(wish, quiet, 0, never)
    decide(fleet.store, "cam-1", APPROVED)
    assert enrol(wish, quiet, 0, never).device == "cam-1"


def test_two_keys_of_one_name_must_be_told_apart_by_the_operator(fleet, tmp_path):
    for kit in ("one", "two"):
        wish = fleet.wish(tmp_path / kit, fleet.without_claim(), profile="generic-x86-64")
        with pytest.raises(TrustError, match="no operator"):
            enrol(wish, quiet, 0, never)
    with pytest.raises(ConfigError, match="2 keys ask"):
        decide(fleet.store, "cam-1", APPROVED)


def test_the_token_is_stored_nowhere_and_not_shown(fleet):
    invitation = fleet.invitation()
    assert parse_invitation(invitation.text) == invitation
    assert invitation.token not in repr(invitation)
    for path in fleet.home.directory.rglob("*"):
        assert not path.is_file() or invitation.token.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:1", "host:x#t#" + "0" * 64, "host:0#" + "0" * 64, "host:1##" + "0" * 64, "h:1#t#abc"],
)
def test_what_is_no_invitation_is_refused(text):
    with pytest.raises(ConfigError, match="invitation"):
        parse_invitation(text)
