"""Requests and answers of pulls: what is read back, and what is refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml import pull
from edgeml.errors import ManifestError
from edgeml.ids import ChannelId
from edgeml.pull import ANSWER_BYTES_MAX, PIECE_BYTES_MAX, REQUEST_BYTES_MAX, Answer, Kind, Request, Status

FIELDS = {"channel": "a1", "id": 1, "kind": "metadata", "length": 5, "name": "timestamp.json", "offset": 0}
DIGEST = "0" * 64


@given(
    st.integers(0, pull.ID_MAX),
    st.integers(0, pull.OFFSET_MAX),
    st.integers(1, PIECE_BYTES_MAX),
    st.sampled_from([(Kind.BLOB, DIGEST), (Kind.METADATA, "4294967295.snapshot.json")]),
)
def test_a_request_is_read_back_and_is_short_enough(identity, offset, length, what):
    request = Request(
        channel=ChannelId("a" * 63), id=identity, kind=what[0], length=length, name=what[1], offset=offset
    )
    payload = pull.encode_request(request)
    assert len(payload) <= REQUEST_BYTES_MAX
    assert pull.decode_request(payload) == request


@given(
    st.integers(0, (1 << 64) - 1), st.sampled_from(Status), st.integers(0, (1 << 64) - 1), st.binary(max_size=99)
)  # fmt: skip
def test_an_answer_is_read_back(identity, status, offset, piece):
    answer = Answer(identity, status, offset, offset, piece)
    assert pull.decode_answer(pull.encode_answer(answer)) == answer


def test_the_longest_answer_is_short_enough():
    assert len(pull.encode_answer(Answer(1, Status.PIECE, piece=bytes(PIECE_BYTES_MAX)))) <= ANSWER_BYTES_MAX


@pytest.mark.parametrize("name", ["timestamp.json", "1.root.json", "12.targets.json", "3.snapshot.json"])
def test_names_of_metadata(name):
    assert pull.decode_request(msgspec.json.encode(FIELDS | {"name": name})).name == name


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../fleet.db"},
        {"name": "../../keys/offline/root.json"},
        {"name": "/etc/passwd"},
        {"name": "timestamp.json\n"},
        {"name": "timestamp.json\x00"},
        {"name": "root.json"},
        {"name": "0.root.json"},
        {"name": "1.timestamp.json"},
        {"name": "\u0661.root.json"},
        {"name": ".lock"},
        {"name": ""},
        {"name": DIGEST},
        {"kind": "blob"},
        {"kind": "blob", "name": DIGEST.replace("0", "A")},
        {"kind": "blob", "name": "../" + DIGEST},
        {"kind": "key"},
        {"length": 0},
        {"length": PIECE_BYTES_MAX + 1},
        {"length": -1},
        {"offset": -1},
        {"offset": pull.OFFSET_MAX + 1},
        {"id": -1},
        {"id": pull.ID_MAX + 1},
        {"id": True},
        {"channel": "+"},
        {"channel": "a/b"},
        {"channel": ""},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(change):
    with pytest.raises(ManifestError):
        pull.decode_request(msgspec.json.encode(FIELDS | change))


@given(st.binary(max_size=200))
def test_anything_is_read_or_refused(payload):
    for read in (pull.decode_request, pull.decode_answer):
        try:
            read(payload)
        except ManifestError:
            continue


def test_an_answer_of_another_version_or_status_or_length_is_refused():
    good = pull.encode_answer(Answer(1, Status.PIECE, 0, 5, b"piece"))
    for bad in (b"\x02" + good[1:], good[:1] + b"\x09" + good[2:], good[:25], good + bytes(PIECE_BYTES_MAX)):
        with pytest.raises(ManifestError):
            pull.decode_answer(bad)
