"""What the day's budget of the network does not allow: it waits in the buffer, is counted, and goes when it may."""

import random

from agent.buffer import ROWS_PER_BATCH
from agent.uplink import HOLD_S, RESEND_FIRST_S, Uplink
from edgeml.telemetry import DropReason, Stream

from .test_uplink import DEVICE, EVENTS, TENANT, WINDOWS, ack, buffer, due, event, window

__all__ = ["buffer"]


class Purse:
    """An allowance of so many bytes in all."""

    def __init__(self, left, longest=None):
        self.left, self.longest = left, longest

    def affords(self, _stream, length):
        return length <= self.left

    def take(self, stream, length):
        if not self.affords(stream, length):
            return False
        self.left -= length
        return True

    def longest_bytes(self, _stream):
        return self.longest


def test_what_the_budget_does_not_allow_waits_and_goes_when_it_does(buffer):
    purse = Purse(0)
    uplink = Uplink(buffer, TENANT, DEVICE, allowance=purse)
    for _ in range(3):
        buffer.append(window())
    assert due(uplink, 0.0) == []
    assert (uplink.held_back(Stream.WINDOWS), uplink.held_back(Stream.EVENTS)) == (3, 0)
    purse.left = 100_000
    assert due(uplink, HOLD_S - 1) == [], "it is not packed in vain at every turn"
    assert due(uplink, HOLD_S) == [(WINDOWS, [1, 2, 3])]
    assert uplink.held_back(Stream.WINDOWS) == 0
    loss = buffer.loss(Stream.WINDOWS)
    assert (loss.produced, loss.dropped, buffer.held(Stream.WINDOWS)) == (3, 0, 3)


def test_as_many_rows_go_as_the_budget_allows(buffer):
    for _ in range(64):
        buffer.append(event("".join(map(chr, range(40, 90)))))
    whole = len(Uplink(buffer, TENANT, DEVICE).due(0.0, link_up=True)[0].payload)
    purse = Purse(whole - 1)
    uplink = Uplink(buffer, TENANT, DEVICE, allowance=purse)
    [(_, seqs)] = due(uplink, 0.0)
    assert seqs == list(range(1, 33))
    assert purse.left >= 0


def test_a_sending_that_is_repeated_needs_an_allowance_of_its_own(buffer):
    purse = Purse(100_000)
    uplink = Uplink(buffer, TENANT, DEVICE, allowance=purse)
    buffer.append(window())
    assert due(uplink, 0.0) == [(WINDOWS, [1])]
    purse.left = 0
    assert due(uplink, RESEND_FIRST_S) == []
    assert uplink.held_back(Stream.WINDOWS) == 1
    uplink.on_ack(ack(1), RESEND_FIRST_S)
    assert buffer.loss(Stream.WINDOWS).acknowledged == 1, "the first one may have come all the same"


def test_a_row_that_no_day_can_pay_for_is_dropped_and_counted_rather_than_stop_all_others(buffer):
    uplink = Uplink(buffer, TENANT, DEVICE, allowance=Purse(100_000, longest=600))
    buffer.append(event(random.Random(1).randbytes(1000).hex()))
    buffer.append(event("short"))
    assert due(uplink, 0.0) == [(EVENTS, [2])]
    assert buffer.loss(Stream.EVENTS).reasons.count(DropReason.TOO_LONG) == 1


def test_of_rows_that_the_budget_holds_back_no_copies_go_ahead(buffer):
    """A copy costs what the row itself would then lack."""
    for number in range(3 * ROWS_PER_BATCH):
        buffer.append(event(f"{number}"))
    purse = Purse(100_000)
    uplink = Uplink(buffer, TENANT, DEVICE, allowance=purse)
    assert len(uplink.due(0.0, link_up=True)) == 2, "what waited longest, and a copy of the newest"
    purse.left = 0
    assert uplink.due(RESEND_FIRST_S, link_up=True) == []
    buffer.append(event("new"))
    purse.left = 100
    assert uplink.due(RESEND_FIRST_S + 20, link_up=True) == []
    assert purse.left == 100
