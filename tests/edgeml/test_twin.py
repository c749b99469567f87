"""Messages of the device twin."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml import twin
from edgeml.errors import ManifestError
from edgeml.twin import (
    GOOD,
    MESSAGE_BYTES_MAX,
    Ack,
    Birth,
    Desired,
    DeviceState,
    FullDownload,
    Outcome,
    Policy,
    Presence,
    Reported,
    Slot,
    Slots,
)

slot = Slot("digits@1.0.0", "a" * 64, "digits/1.0.0/v.edgeml", 1)
other = Slot("digits@1.1.0", "b" * 64, "digits/1.1.0/v.edgeml", 2)
MESSAGES = [
    Presence(online=True, session="s", at_ms=5),
    Presence(online=False, session="s"),
    Birth(
        device="cam-1",
        session="s",
        profile="p",
        agent_version="0.1",
        runtimes={"onnxruntime": "1.20"},
        memory_bytes=1,
    ),
    Desired(
        generation=3,
        deployment="d",
        release="digits@1.0.0",
        target="t",
        digest="a" * 64,
        policy=Policy(soak_s=5.0, full_download=FullDownload.NEVER),
    ),
    Reported(
        generation=3,
        deployment="d",
        state=DeviceState.TRIAL,
        slots=Slots(other, slot),
        outcome=Outcome.COMMITTED,
        reason="r",
    ),
    Reported(generation=0),
    Ack(boot="b", stream="windows", seq=7),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_message_survives_the_wire(message):
    assert twin.decode(twin.encode(message), type(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_fields_of_a_newer_peer_are_ignored(message):
    newer = msgspec.json.encode(msgspec.json.decode(twin.encode(message)) | {"tomorrow": [1, {"x": 2}]})
    assert twin.decode(newer, type(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_equal_messages_have_equal_bytes(message):
    assert twin.encode(message) == twin.encode(msgspec.structs.replace(message))


@given(st.binary(max_size=200), st.sampled_from([Presence, Birth, Desired, Reported, Ack]))
def test_no_bytes_raise_anything_but_manifest_error(data, kind):
    try:
        twin.decode(data, kind)
    except ManifestError as error:
        assert "\n" not in error.message  # noqa: PT017  # most payloads are refused, some are not


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"generation":"x"}',
        b"[" * 5000,
        b'{"generation":1,"state":"x"}',
        b"\xff",
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ManifestError):
        twin.decode(data, Reported)


def test_message_longer_than_its_topic_allows_is_refused():
    with pytest.raises(ManifestError, match="more than"):
        twin.decode(twin.encode(Presence(online=True, session="s" * MESSAGE_BYTES_MAX)), Presence)


def test_a_policy_that_does_not_speak_of_full_downloads_allows_them_and_no_third_word_is_known():
    text = b'{"generation":1,"deployment":"d","release":"r","target":"t","digest":"x","policy":{"attempts_max":2}}'
    assert twin.decode(text, Desired).policy.full_download is FullDownload.ALWAYS
    with pytest.raises(ManifestError):
        twin.decode(text.replace(b'"attempts_max":2', b'"full_download":"perhaps"'), Desired)


def test_slot_is_found_by_its_digest():
    slots = Slots(other, slot)
    assert slots.holding(slot.digest) == slot
    assert slots.holding("c" * 64) is None


def test_good_outcomes_are_those_after_which_the_device_runs_what_was_asked():
    assert {Outcome.COMMITTED, Outcome.ALREADY_INSTALLED, Outcome.REVERTED} == GOOD
