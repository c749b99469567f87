"""A removed device stays out: neither an approval nor a claim of before lets it in again."""

import pytest

from agent.config import load
from agent.enrolment import enrol
from edgeml.errors import PermanentTransferError, TrustError
from edgeml.source import HttpSource
from fleet import enroll, identities
from fleet.admission import decide
from fleet.identities import APPROVED


def quiet(_line):
    pass


def never(_seconds):
    raise AssertionError("nothing is to be waited for")


def approved(fleet, directory):
    wish = fleet.wish(directory, fleet.without_claim(), profile="generic-x86-64")
    enrol(wish, quiet, 60, lambda _s: decide(fleet.store, "cam-1", APPROVED))
    return wish


def remove(fleet, device="cam-1"):
    enroll.remove(fleet.home, fleet.store, device, fleet.clock.now_ms())


def requests(fleet):
    with fleet.store.read() as connection:
        return identities.load_requests(connection)


def test_removed_device_that_was_approved_waits_for_an_operator_again(fleet, tmp_path):
    wish = approved(fleet, tmp_path / "kit")
    remove(fleet)
    with pytest.raises(TrustError, match="no operator has decided"):
        enrol(wish, quiet, 0, never)
    config = load(tmp_path / "kit" / "agent.toml")
    pieces = HttpSource(config.blobs.url, tls=config.tls.files).metadata("timestamp.json")
    with pytest.raises(PermanentTransferError, match="403"):
        b"".join(pieces)


def test_approval_is_used_up_by_the_certificate_and_the_same_command_gets_the_same_one(fleet, tmp_path):
    wish = approved(fleet, tmp_path / "kit")
    assert requests(fleet) == ()
    before = (tmp_path / "kit" / "identity.pem").read_bytes()
    enrol(wish, quiet, 0, never)
    assert (tmp_path / "kit" / "identity.pem").read_bytes() == before


def test_removal_takes_away_what_was_approved_for_the_name_and_not_fetched_yet(fleet, tmp_path):
    late = fleet.wish(tmp_path / "late", fleet.without_claim(), profile="generic-x86-64")
    with pytest.raises(TrustError, match="no operator"):
        enrol(late, quiet, 0, never)
    decide(fleet.store, "cam-1", APPROVED)
    enrol(fleet.wish(tmp_path / "quick"), quiet, 0, never)
    remove(fleet)
    with pytest.raises(TrustError, match="no operator"):
        enrol(late, quiet, 0, never)


def test_approval_of_before_does_not_take_a_name_that_another_got_meanwhile(fleet, tmp_path):
    late = fleet.wish(tmp_path / "late", fleet.without_claim(), profile="generic-x86-64")
    with pytest.raises(TrustError, match="no operator"):
        enrol(late, quiet, 0, never)
    decide(fleet.store, "cam-1", APPROVED)
    quick = load(enrol(fleet.wish(tmp_path / "quick"), quiet, 0, never).settings_path)
    with pytest.raises(TrustError, match="exists already"):
        enrol(late, quiet, 0, never)
    source = HttpSource(quick.blobs.url, tls=quick.tls.files)
    assert b"signatures" in b"".join(source.metadata("timestamp.json"))


def test_denial_outlives_the_removal_of_a_device_of_the_name(fleet, tmp_path):
    wish = fleet.wish(tmp_path / "bad", fleet.without_claim(), profile="generic-x86-64")
    with pytest.raises(TrustError, match="denied"):
        enrol(wish, quiet, 60, lambda _s: decide(fleet.store, "cam-1", "denied"))
    enrol(fleet.wish(tmp_path / "good"), quiet, 0, never)
    remove(fleet)
    with pytest.raises(TrustError, match="denied"):
        enrol(wish, quiet, 0, never)


def test_removed_device_does_not_come_in_by_its_used_claim(fleet, tmp_path):
    wish = fleet.wish(tmp_path / "kit")
    enrol(wish, quiet, 0, never)
    remove(fleet)
    with pytest.raises(TrustError, match="used already"):
        enrol(wish, quiet, 0, never)
