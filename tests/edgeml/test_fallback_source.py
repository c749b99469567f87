"""The second way is taken when the first cannot be reached, and for nothing else."""

from contextlib import contextmanager

import pytest

from edgeml.errors import LinkDownError, PermanentTransferError, StalledError, TransferError
from edgeml.fallback_source import FallbackSource
from edgeml.ids import digest_of
from edgeml.source import DirectorySource, HttpSource, Stream

DIGEST = digest_of(b"blob")


class Failing:
    """A source whose every answer is an error, before or after its first piece."""

    def __init__(self, error, *pieces):
        self.error, self.pieces, self.asked = error, pieces, 0

    def metadata(self, name):
        self.asked += 1
        yield from self.pieces
        raise self.error

    @contextmanager
    def blob(self, digest, offset):
        self.asked += 1
        if not self.pieces:
            raise self.error
        yield Stream(offset, self.metadata(digest))


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "timestamp.json").write_bytes(b"signed")
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    (tmp_path / "blobs" / "sha256" / DIGEST).write_bytes(b"blob")
    return DirectorySource(tmp_path)


def both(source):
    with source.blob(DIGEST, 1) as stream:
        rest = b"".join(stream.pieces)
    return b"".join(source.metadata("timestamp.json")), rest


def test_a_closed_port_makes_it_take_the_second_way_and_keep_to_it(directory):
    source = FallbackSource(HttpSource("http://127.0.0.1:1"), directory)
    assert both(source) == (b"signed", b"lob")
    first = Failing(LinkDownError("gone"))
    source = FallbackSource(first, directory)
    assert both(source) == both(source) == (b"signed", b"lob")
    assert first.asked == 1


@pytest.mark.parametrize("error", [TransferError("503"), PermanentTransferError("404"), StalledError("slow")])
def test_what_a_peer_answers_is_no_reason(directory, error):
    source = FallbackSource(Failing(error), directory)
    with pytest.raises(type(error)):
        b"".join(source.metadata("timestamp.json"))
    with pytest.raises(type(error)), source.blob(DIGEST, 0):
        pass


def test_a_link_that_is_lost_on_the_way_is_an_error_as_before(directory):
    source = FallbackSource(Failing(LinkDownError("gone"), b"half"), directory)
    with pytest.raises(LinkDownError):
        b"".join(source.metadata("timestamp.json"))


def test_if_the_second_cannot_be_reached_either_it_says_so():
    source = FallbackSource(Failing(LinkDownError("first")), Failing(LinkDownError("second")))
    for _ in range(2):
        with pytest.raises(LinkDownError, match="second"):
            both(source)
