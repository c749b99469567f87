"""The window of a pull: every byte once and in order, whatever is lost, doubled or late; and never more than its width."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import PermanentTransferError, TransferError
from edgeml.pull import Answer, Status
from edgeml.pull_window import PIECE_BYTES, WAIT_FIRST_S, WIDTH_MAX, PullWindow

DATA = random.Random(0).randbytes(20 * PIECE_BYTES + 123)


def answer_to(wanted, data=DATA):
    piece = data[wanted.offset : wanted.offset + wanted.length]
    return Answer(wanted.id, Status.PIECE, wanted.offset, len(data), piece)


@given(st.integers(0, len(DATA)), st.integers(0, 2**32), st.floats(0, 0.6), st.floats(0, 0.6))
def test_every_byte_comes_once_and_in_order_and_memory_is_bounded(offset, seed, lost, doubled):
    source = random.Random(seed)
    window, now_s, under_way, got = PullWindow(offset, 5), 0.0, [], []
    while not window.finished:
        for one in window.due(now_s):
            copies = 2 if source.random() < doubled else 1
            under_way += [one for _ in range(copies) if source.random() >= lost]
        source.shuffle(under_way)
        now_s += source.choice([0.01, 1.0])
        if under_way:
            window.answered(answer_to(under_way.pop()), now_s)
        else:
            now_s += window.wait_s(now_s)
        assert len(window._asked) + len(window._ready) <= WIDTH_MAX
        while (piece := window.take()) is not None:
            got.append(piece)
    assert b"".join(got) == DATA[offset:]
    assert window.take() is None


def test_pieces_get_longer_then_more_and_fewer_after_a_loss():
    window, now_s, shapes = PullWindow(0, 1), 0.0, []
    for _ in range(8):
        asked = window.due(now_s)
        assert window.due(now_s) == []
        shapes.append((len(asked), asked[-1].length // 1024))
        now_s += 0.1
        for one in asked:
            assert window.answered(answer_to(one), now_s)
        while window.take() is not None:
            pass
    assert shapes == [
        (1, 4),
        (1, 8),
        (1, 16),
        (1, 32),
        (2, 32),
        (4, 32),
        (8, 32),
        (5, 32),
    ]  # the last are the file's
    assert window.finished

    window = PullWindow(0, 1)
    window._width, window._length, window._total = 8, PIECE_BYTES, len(DATA)
    lost = window.due(0.0)
    assert window.due(WAIT_FIRST_S) == lost
    for one in lost:
        window.answered(answer_to(one), WAIT_FIRST_S + 0.1)
        window.take()
    assert len(window.due(WAIT_FIRST_S + 0.1)) == 1, "all were lost"


def test_pieces_get_shorter_where_they_take_long():
    window, now_s, lengths = PullWindow(0, 1), 0.0, []
    for _ in range(4):
        [one] = window.due(now_s)
        lengths.append(one.length // 1024)
        now_s += 4.9 if len(lengths) == 1 else 16.0
        window._asked[one.id].times = 1
        window.answered(answer_to(one), now_s)
        window.take()
    assert lengths == [4, 8, 4, 2]


def test_what_is_lost_is_asked_for_again_with_the_same_id_and_twice_the_wait():
    window = PullWindow(0, 1)
    first = window.due(0.0)
    now_s, waits = 0.0, []
    for _ in range(6):
        waits.append(window.wait_s(now_s))
        assert window.due(now_s + waits[-1] - 0.001) == []
        now_s += waits[-1]
        assert window.due(now_s) == first
    assert waits == [WAIT_FIRST_S, 10.0, 20.0, 40.0, 40.0, 40.0]
    assert window.asked_again == 6


def test_a_lost_link_has_everything_asked_for_again_at_once():
    window = PullWindow(0, 1)
    first = window.due(0.0)
    window.ask_again(0.5)
    assert window.due(0.5) == first


def test_a_slow_peer_is_given_time():
    window, now_s = PullWindow(0, 1), 0.0
    for _ in range(6):
        for one in window.due(now_s):
            now_s += 4.0
            window.answered(answer_to(one), now_s)
            window.take()
    assert window.asked_again == 0


def test_an_empty_rest_is_an_end():
    window = PullWindow(len(DATA), 1)
    window.answered(answer_to(window.due(0.0)[0]), 0.1)
    assert window.finished


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"status": Status.MISSING}, PermanentTransferError, "no such file"),
        ({"status": Status.OFF}, TransferError, "no pulls"),
        ({"offset": 1}, TransferError, "from 0, the fleet sent"),
        ({"piece": b"x"}, TransferError, "sent 1 from 0"),
        ({"piece": b""}, TransferError, "sent 0 from 0"),
        ({"piece": DATA[: PIECE_BYTES + 1]}, TransferError, "the fleet sent"),
        ({"total_bytes": 1}, TransferError, "asked for 1 bytes"),
    ],
)
def test_an_answer_that_is_none_is_an_error(change, error, words):
    window = PullWindow(0, 1)
    good = answer_to(window.due(0.0)[0])
    fields = {name: getattr(good, name) for name in ("id", "status", "offset", "total_bytes", "piece")}
    with pytest.raises(error, match=words):
        window.answered(Answer(**fields | change), 0.1)


def test_a_file_that_changes_and_one_that_is_too_short_are_errors():
    window = PullWindow(0, 1)
    window.answered(answer_to(window.due(0.0)[0]), 0.1)
    window.take()
    with pytest.raises(TransferError, match="changed"):
        window.answered(answer_to(window.due(0.1)[0], DATA + b"x"), 0.2)
    window = PullWindow(100, 1)
    with pytest.raises(TransferError, match="of a file that has 5"):
        window.answered(Answer(window.due(0.0)[0].id, Status.PIECE, 100, 5), 0.1)


def test_answers_to_nothing_are_told_apart():
    window = PullWindow(0, 7)
    good = answer_to(window.due(0.0)[0])
    assert not window.answered(Answer(6, Status.MISSING), 0.1)
    assert window.answered(good, 0.1)
    assert not window.answered(good, 0.1)


@pytest.mark.parametrize("bytes_per_s", [150.0, 500.0, 2_000.0, 10_000.0, 1_000_000.0])
def test_over_a_thin_link_hardly_anything_comes_twice(bytes_per_s):
    """A link that loses nothing and takes its time: whatever was asked for comes, one after the other, however often."""
    window, now_s, free_s, sent_bytes, on_the_way, got = PullWindow(0, 1), 0.0, 0.0, 0, [], b""
    while not window.finished:
        for one in window.due(now_s):
            answer = answer_to(one)
            free_s = max(free_s, now_s) + len(answer.piece) / bytes_per_s
            on_the_way.append((free_s, answer))
            sent_bytes += len(answer.piece)
        again_s = now_s + window.wait_s(now_s)
        if on_the_way and on_the_way[0][0] <= again_s:
            now_s, answer = on_the_way.pop(0)
            window.answered(answer, now_s)
        else:
            now_s = again_s
        while (piece := window.take()) is not None:
            got += piece
    assert got == DATA
    # At first nobody knows how thin it is; that costs some pieces.
    assert sent_bytes < 1.06 * len(DATA)
