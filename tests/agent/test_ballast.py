"""The ballast on a disk with room; on a full one: tests/faults/test_row_17_disk_full_at_each_write.py."""

import pytest

from agent.ballast import DIRECTORY, KEEP_EVERY_S, PIECE_BYTES, PIECES, Ballast
from edgeml.errors import StorageError


def room(storage):
    """What is really set aside, piece by piece."""
    return sorted(path.stat().st_blocks * 512 for path in (storage / DIRECTORY).iterdir())


WHOLE = [PIECE_BYTES] * PIECES


@pytest.mark.parametrize("size_bytes", [0, 1, PIECE_BYTES // 2])
def test_a_piece_that_a_kill_left_half_made_is_made_whole(tmp_path, size_bytes):
    """Killed between its creation and its allocation, it would else be taken for room forever."""
    Ballast(tmp_path).keep_now()
    with (tmp_path / DIRECTORY / "1").open("wb") as file:
        file.write(b"x" * size_bytes)
    Ballast(tmp_path).keep_now()
    assert room(tmp_path) == WHOLE


def test_it_looks_once_in_a_while(tmp_path):
    ballast = Ballast(tmp_path)
    ballast.keep(0.0)
    (tmp_path / DIRECTORY / "2").unlink()
    ballast.keep(KEEP_EVERY_S - 1)
    assert len(room(tmp_path)) == PIECES - 1
    ballast.keep(KEEP_EVERY_S)
    assert room(tmp_path) == WHOLE


def test_pieces_are_given_away_until_it_opens(tmp_path):
    ballast = Ballast(tmp_path)
    ballast.keep_now()

    def opened():
        if len(room(tmp_path)) > PIECES - 2:
            raise StorageError("full", hint="free space")
        return "open"

    assert ballast.opened(opened) == "open"
    assert len(room(tmp_path)) == PIECES - 2


def test_without_any_left_the_disk_has_the_last_word(tmp_path):
    ballast = Ballast(tmp_path)
    ballast.keep_now()

    def refused():
        raise StorageError("full", hint="free space")

    with pytest.raises(StorageError, match="full"):
        ballast.opened(refused)
    assert room(tmp_path) == []
