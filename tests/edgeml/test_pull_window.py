"""The window of a pull: every byte once and in order, whatever is lost, doubled or late; and never more than its width."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import PermanentTransferError, TransferError
from edgeml.pull import Answer, Status
from edgeml.pull_window import PIECE_BYTES, WAIT_FIRST_S, WAIT_MAX_S, WIDTH_MAX, PullWindow

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


def test_only_one_piece_is_asked_for_before_the_length_is_known_then_more_and_fewer_after_a_loss():
    window = PullWindow(0, 1)
    [first] = window.due(0.0)
    assert window.due(0.1) == []
    assert window.answered(answer_to(first), 0.2)
    window.take()
    widths = []
    asked = window.due(0.2)
    for step in range(4):
        widths.append(len(asked))
        for one in asked:
            assert window.answered(answer_to(one), 0.3 + step)
            window.take()
        asked = window.due(0.3 + step)
    assert widths == [2, 4, 8, 6]  # the last ones are the file's
    assert window.finished


def test_what_is_lost_is_asked_for_again_with_the_same_id_and_twice_the_wait():
    window = PullWindow(0, 1)
    first = window.due(0.0)
    now_s, waits = 0.0, []
    for _ in range(6):
        waits.append(window.wait_s(now_s))
        assert window.due(now_s + waits[-1] - 0.001) == []
        now_s += waits[-1]
        assert window.due(now_s) == first
    assert waits == [WAIT_FIRST_S, 10.0, 20.0, 40.0, WAIT_MAX_S, WAIT_MAX_S]
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
